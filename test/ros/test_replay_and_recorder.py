"""Recording in, results out: replay node, reconstruction node and recorder as three processes."""

import json
import signal
import time

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.messages import cdr_stamp_ns, stamp_ns  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import message_class  # noqa: E402

PATIENCE_S = 240
PATIENT = {'wait_for_subscribers': 120.0}


def subscribe(cameras, type_name, topic, into):
    cameras.node.create_subscription(message_class(type_name), topic, into.append, 100)


def test_every_frame_arrives_with_flow_control(processes, make_bag, tmp_path):
    result = tmp_path / 'result'
    recorder = processes.start('recorder_node', bag=result, summary=tmp_path / 'summary.json')
    node = processes.start('reconstruction_node', backend='sgbm', threads=1)
    replay = processes.start(
        'replay_node',
        bag=make_bag(frames=6),
        rate=0.0,
        flow_control=True,
        min_subscribers=2,
        rename_rig=True,
        wait_for_subscribers=120.0,
    )
    assert replay.wait(PATIENCE_S) == 0, processes.log('replay_node')
    assert '6 frames' in processes.log('replay_node')
    assert '0 unanswered' in processes.log('replay_node')
    for process in (recorder, node):
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0

    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['outcomes'] == {'published': 6}
    assert all(0 < frame['latency_ms'] < 10_000 for frame in summary['frames'])
    assert all(frame['inference [ms]'] > 0 for frame in summary['frames'])
    with AnyReader([result]) as reader:
        counts = {topic.split('/', 2)[2]: info.msgcount for topic, info in reader.topics.items()}
        stamps = {connection.topic.split('/', 2)[2]: [] for connection in reader.connections}
        for connection, recorded_ns, raw in reader.messages():
            assert cdr_stamp_ns(raw) == recorded_ns
            stamps[connection.topic.split('/', 2)[2]].append(recorded_ns)
        clouds = [c for c in reader.connections if c.topic.endswith('points2')]
        _, _, raw = next(reader.messages(connections=clouds))
        cloud = reader.deserialize(raw, clouds[0].msgtype)
    assert counts == dict.fromkeys(
        [
            'left/image_rect',
            'points2',
            'confidence',
            'disparity',
            'depth/image',
            'depth/camera_info',
            'frame_status',
        ],
        6,
    )
    expected = [1_700_000_000_000_000_000 + 100_000_000 * index for index in range(6)]
    assert all(sorted(times) == expected for times in stamps.values())
    depth = cloud.data.view('<f4').reshape(64, 96, 5)[..., 2]
    assert np.nanmedian(depth) == pytest.approx(2.0, rel=0.01)


def test_replay_keeps_stamps_order_and_pace(processes, cameras, make_bag):
    images, clock = [], []
    subscribe(cameras, 'sensor_msgs/msg/Image', '/rig/left/image_rect', images)
    subscribe(cameras, 'sensor_msgs/msg/Image', '/rig/right/image_rect', [])
    subscribe(cameras, 'rosgraph_msgs/msg/Clock', '/clock', clock)
    replay = processes.start(
        'replay_node', bag=make_bag(frames=6), rate=0.5, clock=True, **PATIENT
    )
    started = []

    def ended():
        if images and not started:
            started.append(time.monotonic())
        return replay.poll() is not None

    cameras.spin_until(ended)
    elapsed = time.monotonic() - started[0]
    assert replay.returncode == 0
    assert np.diff([stamp_ns(image) for image in images]).tolist() == [100_000_000] * 5
    # 0.5 s of recording at half speed.
    assert elapsed > 0.8
    times = [message.clock.sec * 10**9 + message.clock.nanosec for message in clock]
    assert times == sorted(times)
    assert len(times) > 20
    assert times[-1] >= stamp_ns(images[-1])


def test_replay_loops_until_interrupted(processes, cameras, make_bag):
    images = []
    subscribe(cameras, 'sensor_msgs/msg/Image', '/rig/left/image_rect', images)
    subscribe(cameras, 'sensor_msgs/msg/Image', '/rig/right/image_rect', [])
    replay = processes.start('replay_node', bag=make_bag(frames=3), rate=4.0, loop=True, **PATIENT)
    cameras.spin_until(lambda: len(images) > 9)
    first = [stamp_ns(image) for image in images[:9]]
    assert first == first[:3] * 3
    assert replay.poll() is None
    replay.send_signal(signal.SIGINT)
    assert replay.wait(60) == 0


def test_replay_skips_the_beginning_and_publishes_chosen_topics(processes, cameras, make_bag):
    poses, images = [], []
    subscribe(cameras, 'geometry_msgs/msg/PoseStamped', '/ground_truth/pose', poses)
    subscribe(cameras, 'sensor_msgs/msg/Image', '/rig/left/image_rect', images)
    subscribe(cameras, 'sensor_msgs/msg/Image', '/rig/right/image_rect', [])
    replay = processes.start(
        'replay_node',
        bag=make_bag(frames=4),
        start_offset=0.15,
        rate=2.0,
        topics="['/rig/left/image_rect','/rig/right/image_rect']",
        **PATIENT,
    )
    cameras.spin_until(lambda: replay.poll() is not None)
    assert replay.returncode == 0
    assert [image.header.stamp.nanosec for image in images] == [200_000_000, 300_000_000]
    assert poses == []


def test_replay_reports_frames_that_nobody_answers(processes, cameras, make_bag):
    for side in ('left', 'right'):
        subscribe(cameras, 'sensor_msgs/msg/Image', f'/rig/{side}/image_rect', [])
    replay = processes.start(
        'replay_node',
        bag=make_bag(frames=2),
        rate=0.0,
        flow_control=True,
        answer_timeout=0.3,
        **PATIENT,
    )
    cameras.spin_until(lambda: replay.poll() is not None)
    assert replay.returncode == 2
    assert '2 unanswered' in processes.log('replay_node')


def test_replay_that_cannot_start_says_why(processes, make_bag, tmp_path):
    bag = make_bag()
    attempts = [
        ({'bag': bag, 'wait_for_subscribers': 0.3}, 3, 'left/image_rect has 0 of 1'),
        ({'bag': tmp_path / 'nowhere'}, 1, 'no such bag'),
        ({}, 1, "parameter 'bag' is empty"),
        ({'bag': bag, 'topics': "['/no/such']"}, 1, 'no topic /no/such; the bag has'),
        ({'bag': bag, 'left_image': '/rig/left/image_rect'}, 1, 'give both images'),
        ({'bag': bag, 'rate': -1.0}, 1, 'rate'),
        (
            {'bag': bag, 'start_offset': 100.0, 'wait_for_subscribers': 0.0, 'loop': True},
            1,
            'start_offset is 100 s, but',
        ),
    ]
    started = [
        (processes.start('replay_node', **options), processes.logs['replay_node'], code, words)
        for options, code, words in attempts
    ]
    for process, log, code, words in started:
        assert process.wait(240) == code, log.read_text()
        assert words in log.read_text()
        assert 'Traceback' not in log.read_text()


def test_recorder_that_cannot_start_says_why(processes, make_bag, tmp_path):
    attempts = [
        ({}, "parameter 'bag' is empty"),
        ({'bag': make_bag()}, 'exists already'),
        ({'bag': tmp_path / 'new', 'topics': "['cloud']"}, 'topic cloud is not one of'),
    ]
    started = [
        (processes.start('recorder_node', **options), processes.logs['recorder_node'], words)
        for options, words in attempts
    ]
    for process, log, words in started:
        assert process.wait(240) == 1, log.read_text()
        assert words in log.read_text()
        assert 'Traceback' not in log.read_text()


def test_recorder_ends_after_enough_frames_or_silence(processes, cameras, tmp_path):
    from lunar_stereo_recon.ros.rclpy_messages import diagnostic_array, diagnostic_status, OK

    enough = processes.start('recorder_node', bag=tmp_path / 'a', stop_after=3, drain_timeout=0.1)
    silent = processes.start('recorder_node', bag=tmp_path / 'b', idle_timeout=1.0)
    publisher = cameras.node.create_publisher(
        message_class('diagnostic_msgs/msg/DiagnosticArray'), 'frame_status', 10
    )
    cameras.spin_until(lambda: publisher.get_subscription_count() == 2)
    cameras.spin_for(0.3)
    for stamp in range(3):
        status = diagnostic_status(OK, 'node', 'published', {'latency [ms]': 5.0})
        publisher.publish(diagnostic_array(stamp * 10**9, '', [status]))
    for process in (enough, silent):
        cameras.spin_until(lambda process=process: process.poll() is not None)
        assert process.returncode == 0
    for name in ('a', 'b'):
        with AnyReader([tmp_path / name]) as reader:
            assert reader.message_count == 3
