"""The frame before, in the node: used where a pose topic tells the motion, or why not."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from rclpy.qos import qos_profile_sensor_data  # noqa: E402

from lunar_stereo_recon.result_messages import header  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class  # noqa: E402

NODE = 'reconstruction_node'
START_NS, PERIOD_NS = 2_000_000_000_000, 100_000_000


def camera_pose(stamp_ns, x_m):
    position = make_message('geometry_msgs/msg/Point', x=x_m, y=0.0, z=1.0)
    level = make_message('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0)
    return make_message(
        'geometry_msgs/msg/PoseStamped',
        header=header(make_message, stamp_ns, 'map'),
        pose=make_message('geometry_msgs/msg/Pose', position=position, orientation=level),
    )


def test_over_dds_with_a_pose_topic(processes, cameras):
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    poses = cameras.node.create_publisher(
        message_class('geometry_msgs/msg/PoseStamped'), 'pose', qos_profile_sensor_data
    )
    processes.start(NODE, threads=1, temporal='pose')
    cameras.wait_until_heard()
    cameras.spin_until(lambda: poses.get_subscription_count() > 0)
    number = [0]

    def outcome(x_m):
        """Return what became of the frame before; the pose comes after the images."""
        stamp_ns = START_NS + number[0] * PERIOD_NS
        number[0] += 1
        cameras.publish(stamp_ns)
        if x_m is not None:
            poses.publish(camera_pose(stamp_ns, x_m))
        values = {v.key: v.value for v in cameras.answer(stamp_ns).values}
        return values.get('frame before', '')

    # Subscribers are discovered one after the other: the first messages may be lost.
    cameras.spin_until(lambda: outcome(0.0) == 'used')
    assert 'temporal [ms]' in {
        v.key for v in cameras.received['frame_status'][-1].status[0].values
    }
    assert outcome(None) == 'left out: no pose'
    cameras.spin_until(lambda: 'the pose moved 9' in outcome(9.0 * (number[0] % 2)))
