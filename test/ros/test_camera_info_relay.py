"""The relay's corrections, and the node between Gazebo's topics and the reconstruction's."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy')

from lunar_stereo_recon.errors import CalibrationError  # noqa: E402
from lunar_stereo_recon.messages import calibration_from_camera_infos, stamp_ns  # noqa: E402
from lunar_stereo_recon.ros.camera_info_relay import correct_camera_info  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class  # noqa: E402

pytestmark = pytest.mark.ros
TOPIC = 'right/camera_info_in'
START_NS = 5_000_000_000


def gazebo_info(tx: float = 0.0, fx: float = 480.0):
    """Return what Gazebo publishes for a 640x480 camera: pixels counted from the corner."""
    return make_message(
        'sensor_msgs/msg/CameraInfo',
        header=make_message(
            'std_msgs/msg/Header',
            stamp=make_message('builtin_interfaces/msg/Time', sec=5, nanosec=0),
            frame_id='left_camera_optical_frame',
        ),
        width=640,
        height=480,
        k=[fx, 0.0, 320.0, 0.0, fx, 240.0, 0.0, 0.0, 1.0],
        p=[fx, 0.0, 320.0, tx, 0.0, fx, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    )


@pytest.mark.parametrize('tx', [0.0, 144.0, -144.0, -10.0], ids=str)
def test_right_projection_carries_the_baseline_whatever_came(tx):
    info = gazebo_info(tx)
    told = correct_camera_info(info, 'right', 0.3, 0.0, TOPIC)
    assert info.p[3] == pytest.approx(-144.0)
    assert bool(told) == (tx != -144.0)
    if told:
        assert TOPIC in told and f'{tx:g}' in told and '-144' in told


def test_small_disagreement_of_the_baseline_is_not_worth_a_word():
    info = gazebo_info(-144.5)
    assert correct_camera_info(info, 'right', 0.3, 0.0, TOPIC) == ''
    assert info.p[3] == pytest.approx(-144.0)


def test_without_a_parameter_the_amount_is_kept_and_the_sign_mended():
    info = gazebo_info(120.0)
    assert 'P[3] is 120' in correct_camera_info(info, 'right', 0.0, 0.0, TOPIC)
    assert info.p[3] == pytest.approx(-120.0)


def test_left_projection_loses_a_baseline():
    info = gazebo_info(-144.0)
    assert 'P[3] is -144' in correct_camera_info(info, 'left', 0.3, 0.0, 'left/camera_info_in')
    assert info.p[3] == 0.0
    assert correct_camera_info(gazebo_info(), 'left', 0.3, 0.0, 'left/camera_info_in') == ''


def test_pixel_offset_moves_both_matrices_and_nothing_else():
    info = gazebo_info(-144.0)
    correct_camera_info(info, 'right', 0.3, 0.5, TOPIC)
    assert list(info.k) == [480.0, 0.0, 319.5, 0.0, 480.0, 239.5, 0.0, 0.0, 1.0]
    assert list(info.p) == [480.0, 0, 319.5, -144.0, 0, 480.0, 239.5, 0, 0, 0, 1.0, 0]


def test_unknown_baseline_names_the_parameter():
    with pytest.raises(CalibrationError, match="parameter 'baseline'"):
        correct_camera_info(gazebo_info(), 'right', 0.0, 0.0, TOPIC)


def test_projection_without_focal_length_is_refused():
    with pytest.raises(CalibrationError, match=r'P\[0\] is 0'):
        correct_camera_info(gazebo_info(fx=0.0), 'right', 0.3, 0.0, TOPIC)


def test_node_makes_a_rig_that_the_reconstruction_accepts(processes, cameras):
    kind = message_class('sensor_msgs/msg/CameraInfo')
    received = {'left': [], 'right': []}
    publishers = {}
    for side, messages in received.items():
        publishers[side] = cameras.node.create_publisher(kind, f'{side}/camera_info_in', 10)
        cameras.node.create_subscription(kind, f'{side}/camera_info', messages.append, 10)
    processes.start('camera_info_relay', baseline=0.3, pixel_offset=0.5)
    cameras.spin_until(lambda: all(p.get_subscription_count() for p in publishers.values()))

    def both_came() -> bool:
        # Both cameras carry the pair's baseline, as Gazebo does with cameras in a wrong order.
        for publisher in publishers.values():
            publisher.publish(gazebo_info(-144.0))
        return all(received.values())

    cameras.spin_until(both_came)
    left, right = received['left'][0], received['right'][0]
    rig = calibration_from_camera_infos(left, right)
    assert rig.baseline_m == pytest.approx(0.3)
    assert (rig.cx, rig.cy, rig.cx_right) == (319.5, 239.5, 319.5)
    assert stamp_ns(left) == START_NS
    assert left.header.frame_id == 'left_camera_optical_frame'
    log = cameras.spin_until(lambda: processes.log('camera_info_relay'))
    assert 'left/camera_info_in: P[3] is -144' in log
    assert log.count('is published instead') == 1


def test_node_says_that_it_cannot_know_the_baseline(processes, cameras):
    kind = message_class('sensor_msgs/msg/CameraInfo')
    publisher = cameras.node.create_publisher(kind, 'right/camera_info_in', 10)
    processes.start('camera_info_relay')
    cameras.spin_until(publisher.get_subscription_count)

    def complaint() -> bool:
        publisher.publish(gazebo_info())
        return "set the parameter 'baseline'" in processes.log('camera_info_relay')

    cameras.spin_until(complaint)
