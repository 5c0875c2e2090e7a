"""A recorder on a full or slow disk: it says so, keeps what is whole, bounds its memory."""

import dataclasses
import errno
import random
import time

import pytest

pytest.importorskip('rclpy')
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import serialize_message
from rosbags.highlevel import AnyReader

from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter
from lunar_stereo_recon.ros import recorder_node
from lunar_stereo_recon.ros.rclpy_messages import (
    diagnostic_array,
    diagnostic_status,
    message_class,
    OK,
)
from lunar_stereo_recon.ros.recorder_node import RecorderNode

pytestmark = pytest.mark.ros
HEADER = b'\x00\x01\x00\x00' + bytes(12)


@pytest.fixture
def recorder(tmp_path):
    context = rclpy.Context()
    rclpy.init(context=context)
    bag = Parameter('bag', value=str(tmp_path / 'bag'))
    node = RecorderNode(context=context, parameter_overrides=[bag])
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def give(node, size=100):
    times = {'source_timestamp': 1, 'received_timestamp': 2}
    node._on_message('confidence', HEADER + bytes(size), times)


def test_full_disk_stops_the_recording_and_keeps_the_bag(recorder, monkeypatch):
    give(recorder)
    while not recorder._queue.empty():
        pass
    full = OSError(errno.ENOSPC, 'No space left on device')

    def fail(*args):
        raise full

    monkeypatch.setattr(BagWriter, 'write_raw', fail)
    for _ in range(5):
        give(recorder)
    recorder.finish()
    assert recorder.failure is full
    assert recorder.is_done()
    assert recorder._queued_bytes == 0


def test_queue_of_a_slow_disk_is_bounded(recorder, monkeypatch):
    monkeypatch.setattr(recorder_node, 'MAX_QUEUED_BYTES', 10_000)
    monkeypatch.setattr(recorder, '_queue', recorder_node.queue.SimpleQueue())  # nobody takes
    for _ in range(50):
        give(recorder, 1000)
    assert recorder._queued_bytes <= 10_000
    assert recorder._dropped == 50 - recorder._queue.qsize()
    recorder._thread.join(0)


def test_bytes_that_are_no_message_are_passed_over(recorder):
    recorder._on_message('confidence', b'abc', {})
    recorder.finish()
    assert recorder.failure is None


def test_a_drive_with_its_truth_is_a_recording_that_can_be_graded(tmp_path, make_bag):
    """The messages of a bag go through the recorder and come out as posed frames with depth."""
    context = rclpy.Context()
    rclpy.init(context=context)
    given = {'bag': str(tmp_path / 'recorded'), 'topics': list(recorder_node.DRIVE)}
    overrides = [Parameter(name, value=value) for name, value in given.items()]
    node = RecorderNode(context=context, parameter_overrides=overrides)
    times = {'source_timestamp': 1, 'received_timestamp': 2}
    with AnyReader([make_bag(frames=2)]) as source:
        for connection, _, data in source.messages():
            topic = connection.topic.removeprefix('/rig/').removeprefix('/')
            if topic in recorder_node.DRIVE:
                node._on_message(topic, data, times)
    node.finish()
    assert len(node.frames) == 2  # truth makes no frames of its own
    node.destroy_node()
    rclpy.shutdown(context=context)
    with StereoBagReader(tmp_path / 'recorded') as reader:
        frames = list(reader.frames())
    assert len(frames) == 2
    assert all(frame.pose is not None and frame.depth() is not None for frame in frames)


def status_of(stamp_ns):
    status = diagnostic_status(OK, 'node', 'published', {})
    return serialize_message(diagnostic_array(stamp_ns, '', [status]))


def test_a_long_recording_without_a_summary_forgets_old_frames(recorder, monkeypatch):
    monkeypatch.setattr(recorder_node, 'FRAMES_KEPT', 3)
    monkeypatch.setattr(
        recorder, 'settings', dataclasses.replace(recorder.settings, stop_after=10)
    )
    for number in range(10):
        assert not recorder.is_done()
        recorder._on_message('frame_status', status_of(number), {})
        recorder._on_message('frame_status', status_of(number), {})  # an answer counts once
    assert recorder.is_done()
    assert list(recorder.frames) == [7, 8, 9]
    recorder.finish()
    assert recorder._writer.counts == {'/frame_status': 20}


def test_a_camera_that_offers_best_effort_is_recorded(tmp_path):
    """A reliable subscription would never hear it."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=random.randint(1, 101))
    given = {'bag': str(tmp_path / 'bag'), 'topics': ['left/image_rect', 'left/camera_info']}
    overrides = [Parameter(name, value=value) for name, value in given.items()]
    node = RecorderNode(context=context, parameter_overrides=overrides)
    camera = rclpy.create_node('camera', context=context)
    kinds = {'left/image_rect': 'Image', 'left/camera_info': 'CameraInfo'}
    publishers = {
        topic: camera.create_publisher(
            message_class(f'sensor_msgs/msg/{kind}'), topic, qos_profile_sensor_data
        )
        for topic, kind in kinds.items()
    }
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    deadline = time.monotonic() + 30
    while len(node._writer.counts) < 2 and time.monotonic() < deadline:
        for publisher in publishers.values():
            publisher.publish(publisher.msg_type())
        executor.spin_once(timeout_sec=0.05)
    node.finish()
    camera.destroy_node()
    node.destroy_node()
    context.try_shutdown()
    assert set(node._writer.counts) == {'/left/image_rect', '/left/camera_info'}
