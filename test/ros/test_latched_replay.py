"""A recording is played with the QoS it was recorded with, and what holds is there for all."""

from __future__ import annotations

import numpy as np
import pytest
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402

from lunar_stereo_recon.bags.writer import make_message, transform_message  # noqa: E402
from lunar_stereo_recon.datatypes import StereoCalibration  # noqa: E402
from lunar_stereo_recon.result_messages import camera_info_message, image_message  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import message_class  # noqa: E402

TYPES = get_typestore(Stores.ROS2_JAZZY)
RIG = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, 96, 64)
START_NS, PERIOD_NS, FRAMES = 1_700_000_000_000_000_000, 100_000_000, 30
FOREVER = QosTime(2**31 - 1, 2**32 - 1)
REPLAY = 'replay_node'


def recorded(reliability: QosReliability, durability: QosDurability, depth: int) -> Qos:
    """Return the QoS that a recorder noted of a publisher."""
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        reliability,
        durability,
        FOREVER,
        FOREVER,
        QosLiveliness.AUTOMATIC,
        FOREVER,
        False,
    )


LATCHED = recorded(QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, 1)
SENSOR = recorded(QosReliability.BEST_EFFORT, QosDurability.VOLATILE, 25)


@pytest.fixture
def latched_bag(tmp_path):
    """Return a bag: two nodes' static transforms and latched infos at once, then 3 s of images."""
    path = tmp_path / 'drive'
    view = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:

        def connection(topic, message, *qos):
            return writer.add_connection(
                topic, message.__msgtype__, typestore=TYPES, offered_qos_profiles=qos
            )

        def write(at, message, stamp):
            writer.write(at, stamp, TYPES.serialize_cdr(message, message.__msgtype__))

        upright = np.array([0, 0, 0, 1.0])
        # Without tf2_msgs the player goes by the topic's name. Each of two nodes kept one message.
        static = [
            transform_message(np.zeros(3), upright, START_NS, 'mast', child).transforms[0]
            for child in ('left', 'right')
        ]
        of_both = connection('/tf_static', static[0], LATCHED, LATCHED)
        for message in static:
            write(of_both, message, START_NS)
        for side in ('left', 'right'):
            info = camera_info_message(make_message, RIG, START_NS, side, right=side == 'right')
            write(connection(f'/rig/{side}/camera_info', info, LATCHED), info, START_NS)
        images = {}
        for index in range(FRAMES):
            stamp = START_NS + index * PERIOD_NS
            for side in ('left', 'right'):
                image = image_message(make_message, view, 'mono8', stamp, side)
                if side not in images:
                    images[side] = connection(f'/rig/{side}/image_rect', image, SENSOR)
                write(images[side], image, stamp)
    return path


def listen(cameras, kind, topic, durability=DurabilityPolicy.TRANSIENT_LOCAL):
    received = []
    cameras.node.create_subscription(
        message_class(kind), topic, received.append, QoSProfile(depth=100, durability=durability)
    )
    return received


def listen_to_images(cameras):
    from rclpy.qos import qos_profile_sensor_data

    kind, images = message_class('sensor_msgs/msg/Image'), []
    for side in ('left', 'right'):
        cameras.node.create_subscription(
            kind, f'/rig/{side}/image_rect', images.append, qos_profile_sensor_data
        )
    return images


@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_latecomers_get_what_was_published_once(processes, cameras, latched_bag, offset):
    images = listen_to_images(cameras)
    player = processes.start(
        REPLAY, bag=latched_bag, start_offset=offset, rate=0.3, wait_for_subscribers=120.0
    )
    cameras.spin_until(lambda: len(images) >= 4)
    # Now somebody comes who was not there when they were published.
    static = listen(cameras, 'geometry_msgs/msg/TransformStamped', '/tf_static')
    infos = {
        side: listen(cameras, 'sensor_msgs/msg/CameraInfo', f'/rig/{side}/camera_info')
        for side in ('left', 'right')
    }
    cameras.spin_until(lambda: len(static) == 2 and all(infos.values()))
    assert {transform.child_frame_id for transform in static} == {'left', 'right'}
    assert infos['right'][0].p[3] == pytest.approx(-12.0)
    assert player.poll() is None


def test_recorded_quality_of_service_is_offered_again(processes, cameras, latched_bag):
    images = listen_to_images(cameras)
    processes.start(REPLAY, bag=latched_bag, rate=0.3, wait_for_subscribers=120.0)
    cameras.spin_until(lambda: images)

    def offered(topic):
        [publisher] = cameras.node.get_publishers_info_by_topic(topic)
        qos = publisher.qos_profile
        return qos.reliability.name, qos.durability.name

    assert offered('/rig/left/image_rect') == ('BEST_EFFORT', 'VOLATILE')
    assert offered('/rig/right/camera_info') == ('RELIABLE', 'TRANSIENT_LOCAL')
    assert offered('/tf_static') == ('RELIABLE', 'TRANSIENT_LOCAL')


def test_node_that_comes_late_reconstructs_a_latched_recording(processes, cameras, latched_bag):
    images = listen_to_images(cameras)
    remap = {
        f'{side}/{name}': f'/rig/{side}/{name}'
        for side in ('left', 'right')
        for name in ('image_rect', 'camera_info')
    }
    processes.start(REPLAY, bag=latched_bag, rate=0.3, loop=True, wait_for_subscribers=120.0)
    cameras.spin_until(lambda: images)
    cameras.listen('points2')
    processes.start('reconstruction_node', remap, backend='sgbm', threads=1)
    assert cameras.spin_until(lambda: cameras.received['points2'])
