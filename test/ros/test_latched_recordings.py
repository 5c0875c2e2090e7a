"""What was latched in a recording is there from an offset on, and for late subscribers."""

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

import numpy as np  # noqa: E402
from rosbags.interfaces import (  # noqa: E402
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import get_typestore, Stores  # noqa: E402

from lunar_stereo_recon.bags.writer import make_message  # noqa: E402
from lunar_stereo_recon.datatypes import StereoCalibration  # noqa: E402
from lunar_stereo_recon.messages import stamp_ns  # noqa: E402
from lunar_stereo_recon.result_messages import camera_info_message, image_message  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import message_class  # noqa: E402

TYPES = get_typestore(Stores.ROS2_JAZZY)
RIG = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, 96, 64)
START_NS, PERIOD_NS, FRAMES = 1_700_000_000_000_000_000, 100_000_000, 6
IMAGE, INFO, TEXT = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CameraInfo', 'std_msgs/msg/String'
STATIC = 'geometry_msgs/msg/TransformStamped'  # tf2_msgs has no wheel; the player sees the name


def qos(depth, durability, reliability=QosReliability.RELIABLE):
    never = QosTime(0, 0)
    return Qos(
        QosHistory.KEEP_LAST, depth, reliability, durability, never, never,
        QosLiveliness.AUTOMATIC, never, False,
    )  # fmt: skip


LATCHED = qos(1, QosDurability.TRANSIENT_LOCAL)
SENSOR = qos(5, QosDurability.VOLATILE, QosReliability.BEST_EFFORT)


@pytest.fixture
def bag(tmp_path):
    """Return a bag that begins with camera_infos, two texts and two static transforms."""
    view = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    path = tmp_path / 'drive'
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}

        def write(topic, kind, message, time_ns, profile):
            if topic not in connections:
                connections[topic] = writer.add_connection(
                    topic, kind, typestore=TYPES, offered_qos_profiles=[profile]
                )
            writer.write(connections[topic], time_ns, TYPES.serialize_cdr(message, kind))

        for side in ('left', 'right'):
            info = camera_info_message(make_message, RIG, START_NS, side, right=side == 'right')
            write(f'/rig/{side}/camera_info', INFO, info, START_NS, LATCHED)
        for text in ('old', 'new'):
            write('/about', TEXT, make_message(TEXT, data=text), START_NS, LATCHED)
        for child in ('left', 'right'):
            transform = make_message(
                STATIC,
                header=info.header,
                child_frame_id=child,
                transform=make_message(
                    'geometry_msgs/msg/Transform',
                    translation=make_message('geometry_msgs/msg/Vector3', x=0.0, y=0.0, z=0.0),
                    rotation=make_message(
                        'geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0
                    ),
                ),
            )
            write('/tf_static', STATIC, transform, START_NS, LATCHED)
        for index in range(FRAMES):
            stamp = START_NS + index * PERIOD_NS
            for side in ('left', 'right'):
                image = image_message(make_message, view, 'mono8', stamp, side)
                write(f'/rig/{side}/image_rect', IMAGE, image, stamp, SENSOR)
            write('/volatile', TEXT, make_message(TEXT, data=str(index)), stamp, SENSOR)
    return path


def listen(cameras, kind, topic, profile):
    found = []
    cameras.node.create_subscription(message_class(kind), topic, found.append, profile)
    return found


def profile_of(depth, latched=False, best_effort=False):
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    profile = QoSProfile(depth=depth)
    if latched:
        profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
    if best_effort:
        profile.reliability = ReliabilityPolicy.BEST_EFFORT
    return profile


def images(cameras):
    sensor = profile_of(100, best_effort=True)
    listen(cameras, IMAGE, '/rig/right/image_rect', sensor)
    return listen(cameras, IMAGE, '/rig/left/image_rect', sensor)


def test_offset_keeps_what_was_latched_before_it(processes, cameras, bag):
    left = images(cameras)
    infos = listen(cameras, INFO, '/rig/left/camera_info', profile_of(10))
    texts = listen(cameras, TEXT, '/about', profile_of(10, latched=True))
    static = listen(cameras, STATIC, '/tf_static', profile_of(10, latched=True))
    volatile = listen(cameras, TEXT, '/volatile', profile_of(10, best_effort=True))
    replay = processes.start(
        'replay_node', bag=bag, start_offset=0.35, rate=2.0, wait_for_subscribers=120.0
    )
    cameras.spin_until(lambda: replay.poll() is not None and len(left) >= 2)
    assert replay.returncode == 0, processes.log('replay_node')
    assert min(map(stamp_ns, left)) == START_NS + 4 * PERIOD_NS
    assert len(infos) == 1
    assert texts[-1].data == 'new'
    assert sorted(transform.child_frame_id for transform in static) == ['left', 'right']
    assert '0' not in [text.data for text in volatile]


def test_recorded_qos_is_offered_again_and_late_subscribers_are_served(processes, cameras, bag):
    images(cameras)
    replay = processes.start(
        'replay_node', bag=bag, rate=1.0, loop=True, wait_for_subscribers=120.0
    )
    left = images(cameras)
    cameras.spin_until(lambda: len(left) > 2)
    offered = {
        topic: cameras.node.get_publishers_info_by_topic(topic)[0].qos_profile
        for topic in ('/about', '/rig/left/camera_info', '/rig/left/image_rect', '/tf_static')
    }
    for topic in ('/about', '/rig/left/camera_info', '/tf_static'):
        assert offered[topic].durability.name == 'TRANSIENT_LOCAL'
        assert offered[topic].reliability.name == 'RELIABLE'
    assert offered['/rig/left/image_rect'].durability.name == 'VOLATILE'
    assert offered['/rig/left/image_rect'].reliability.name == 'BEST_EFFORT'
    texts = listen(cameras, TEXT, '/about', profile_of(10, latched=True))
    static = listen(cameras, STATIC, '/tf_static', profile_of(10, latched=True))
    cameras.spin_until(lambda: texts and len(static) >= 2)
    assert texts[-1].data == 'new'
    assert replay.poll() is None


def test_node_that_comes_late_has_the_calibration(processes, cameras, bag):
    left = images(cameras)
    remap = {
        f'{side}/{name}': f'/rig/{side}/{name}'
        for side in ('left', 'right')
        for name in ('image_rect', 'camera_info')
    }
    processes.start('replay_node', bag=bag, rate=0.3, loop=True, wait_for_subscribers=120.0)
    cameras.spin_until(lambda: left)
    cameras.listen('points2')
    processes.start('reconstruction_node', remap, backend='sgbm', threads=1)
    assert cameras.spin_until(lambda: cameras.received['points2'])
