"""What the node takes for granted where nobody said it, and that it says so: over real DDS."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402

from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class  # noqa: E402

NODE = 'reconstruction_node'
OPTIONS = {'backend': 'sgbm', 'threads': 1}
OK, WARN, ERROR = b'\x00', b'\x01', b'\x02'
# Where tf2_msgs is not installed: a message of one transform in place of a list of them.
TF2_MSGS = """
from geometry_msgs.msg import TransformStamped
TransformStamped.transforms = property(lambda self: [self])
TFMessage = TransformStamped
"""


def distorted(side, info):
    """Bend nothing measurable, but enough that D is not 0."""
    info.d = [1e-9, 0.0, 0.0, 0.0, 0.0]


def calibration_status(cameras):
    """Return the next diagnosis of the calibration that speaks of a pair."""
    cameras.received['diagnostics'].clear()
    return cameras.spin_until(
        lambda: next(
            (
                status
                for status in cameras.received['diagnostics']
                if status.name.endswith(': calibration') and status.message != 'no pair yet'
            ),
            None,
        )
    )


def median_depth(cameras, stamp):
    cloud = cameras.result('points2', stamp)
    values = np.frombuffer(cloud.data, '<f4').reshape(cloud.height, cloud.width, 5)
    return float(np.nanmedian(values[4:-4, :, 2]))


def start_with_raw(processes, cameras, **options):
    """Start the node on topics that are not called rectified."""
    cameras.advertise(image_name='image_raw')
    cameras.listen('points2', 'frame_status')
    cameras.listen_diagnostics()
    remap = {f'{side}/image_rect': f'{side}/image_raw' for side in ('left', 'right')}
    processes.start(NODE, remap, **{**OPTIONS, **options})
    cameras.wait_until_heard()
    # The raw right camera looks three rows lower; its K says so.
    right = np.roll(cameras.views()['right'], 3, axis=0)

    def change_info(side, info):
        distorted(side, info)
        if side == 'right':
            info.k[5] += 3.0

    return {'right': right, 'change_info': change_info}


def test_raw_images_are_rectified_without_being_told(processes, cameras):
    changes = start_with_raw(processes, cameras)
    assert median_depth(cameras, cameras.publish(**changes)) == pytest.approx(2.0, rel=0.01)
    for text in ('left/image_raw has raw images', 'detect_raw'):
        assert text in processes.log(NODE)
    status = calibration_status(cameras)
    assert status.level == WARN and 'has raw images' in status.message
    cameras.publish(**changes)
    assert processes.log(NODE).count('has raw images') == 1


def test_images_that_only_look_raw_are_left_alone_on_request(processes, cameras):
    start_with_raw(processes, cameras, detect_raw=False)
    stamp = cameras.publish(change_info=distorted)
    assert median_depth(cameras, stamp) == pytest.approx(2.0, rel=0.01)
    assert 'raw images' not in processes.log(NODE)
    assert calibration_status(cameras).level == OK


def test_distortion_of_rectified_images_is_their_drivers_memory(running, node_log):
    def bent(side, info):
        info.d = [-0.9, 0.0, 0.0, 0.0, 0.0]

    assert median_depth(running, running.publish(change_info=bent)) == pytest.approx(2, rel=0.01)
    assert 'raw' not in node_log()


@pytest.mark.parametrize(('right_tx', 'text'), [(-0.006, '0.0001 m'), (-3600.0, '60 m')])
def test_baseline_in_other_units_is_said(running, node_log, right_tx, text):
    # Within seconds of one doubt about the baseline the next is not logged.
    for _ in range(15):
        running.answer(running.publish(right_tx=right_tx))
        if f'the baseline is {text}' in node_log():
            break
        time.sleep(0.5)
    assert f'the baseline is {text}' in node_log()
    assert "The parameter 'baseline' (m) overrides it" in node_log()
    assert calibration_status(running).level == WARN


def test_twelve_bits_in_sixteen_are_said_once(running, node_log):
    views = {side: view.astype(np.uint16) * 16 for side, view in running.views().items()}
    for _ in range(2):
        running.answer(running.publish(**views, encoding='mono16'))
    running.spin_until(lambda: "'white_level' to 4095" in node_log())
    running.set_parameters(white_level=4095.0)
    running.answer(running.publish(**views, encoding='mono16'))
    assert node_log().count('white_level') == 1
    assert calibration_status(running).level == OK


# Latched inputs


def latched(cameras, kind, topic, depth=1):
    qos = QoSProfile(depth=depth, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    return cameras.node.create_publisher(message_class(kind), topic, qos)


def advertise_latched_infos(cameras):
    """Replace the publishers of camera_infos by such that keep the last one."""
    cameras.advertise(infos=False)
    kind = 'sensor_msgs/msg/CameraInfo'
    for side in ('left', 'right'):
        cameras.publishers[f'{side} info'] = latched(cameras, kind, f'{side}/camera_info')


def test_calibration_that_was_published_before_the_node_came(processes, cameras):
    advertise_latched_infos(cameras)
    cameras.publish(sides=('left', 'right'))  # images too, which nobody hears
    cameras.listen('points2', 'frame_status')
    processes.start(NODE, **OPTIONS)
    cameras.wait_until_heard()
    stamp = cameras.publish(infos=False)
    assert cameras.answer(stamp).message == 'published'
    # The listener goes and comes again: the calibration is asked for anew.
    cameras.stop_listening('points2')
    image = cameras.publishers['left image']
    cameras.spin_until(lambda: image.get_subscription_count() == 0)
    cameras.listen('points2')
    cameras.wait_until_heard()
    assert median_depth(cameras, cameras.publish(infos=False)) == pytest.approx(2.0, rel=0.01)


# Extrinsics that only TF knows


def transform(parent, child, y_m):
    stamped = make_message('geometry_msgs/msg/TransformStamped')
    stamped.header.frame_id, stamped.child_frame_id = parent, child
    stamped.transform.translation.y = y_m
    stamped.transform.rotation.w = 1.0
    return stamped


def static_publisher(cameras, processes, folder):
    """Return a function that publishes a static transform; tf2_msgs is stood in for."""
    try:
        from tf2_msgs.msg import TFMessage
    except ModuleNotFoundError:
        (folder / 'tf2_msgs').mkdir()
        (folder / 'tf2_msgs' / '__init__.py').touch()
        (folder / 'tf2_msgs' / 'msg.py').write_text(TF2_MSGS)
        processes.environment['PYTHONPATH'] = str(folder)
        kind = 'geometry_msgs/msg/TransformStamped'
        return latched(cameras, kind, '/tf_static', 10).publish
    publisher = latched(cameras, 'tf2_msgs/msg/TFMessage', '/tf_static', 10)
    return lambda stamped: publisher.publish(TFMessage(transforms=[stamped]))


def test_baseline_that_only_static_transforms_know(processes, cameras, tmp_path):
    publish = static_publisher(cameras, processes, tmp_path)
    publish(transform('mast', 'left_optical', 0.25))
    publish(transform('mast', 'right_optical', -0.15))
    cameras.listen_diagnostics()
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    processes.start(NODE, **OPTIONS)
    cameras.wait_until_heard()

    def frames_apart(stamp):
        """Give the right image a frame of its own."""
        message = cameras.image('right', stamp)
        message.header.frame_id = 'right_optical'
        return message

    def found():
        stamp = 2_000_000_000_000 + 100_000_000 * next(counter)
        cameras.publish(stamp, right_tx=0.0, right_message=frames_apart(stamp))
        answer = cameras.answer(stamp)
        return stamp if answer.message == 'published' else None

    counter = iter(range(1000))
    stamp = cameras.spin_until(found)
    # 60 px * 0.4 m / 6 px
    assert median_depth(cameras, stamp) == pytest.approx(4.0, rel=0.01)
    assert "the distance of 'left_optical' and 'right_optical' on /tf_static" in processes.log(
        NODE
    )
    assert calibration_status(cameras).level == WARN


def test_one_frame_for_both_cameras_tells_no_baseline(running):
    status = running.answer(running.publish(right_tx=0.0))
    assert status.level == ERROR
    assert "/tf_static cannot help: both cameras have the frame 'left_optical'" in status.message


# What the node says of itself


def test_node_says_what_it_listens_to_and_why_it_rests(processes, cameras, namespace):
    process = processes.start(NODE, **OPTIONS)

    def said(*texts):
        cameras.spin_until(lambda: all(text in processes.log(NODE) for text in texts))

    inputs = f'listens to {namespace}/left/image_rect and {namespace}/right/image_rect'
    said(inputs, f'calibrated by {namespace}/left/camera_info')
    said(f'publishes {namespace}/points2, {namespace}/confidence')
    said(f'idle: nobody subscribes to {namespace}/points2')
    cameras.listen('points2')
    said(f'works for subscribers of {namespace}/points2')
    from std_srvs.srv import SetBool

    assert cameras.call(SetBool, 'enable', data=False).success
    said('disabled by ~/enable')
    assert process.poll() is None


def test_node_waits_for_a_simulator_that_has_not_begun(processes, cameras):
    cameras.listen('points2', 'frame_status')
    cameras.listen_diagnostics()
    processes.start(NODE, **OPTIONS, use_sim_time=True, silence_warning=1.0)
    cameras.spin_until(lambda: 'waits for /clock' in processes.log(NODE))

    def inputs():
        return [s for s in cameras.received['diagnostics'] if s.name.endswith(': input')]

    # They come once a second: longer than `silence_warning`.
    cameras.spin_until(lambda: len(inputs()) >= 3)
    assert 'published?' not in processes.log(NODE)
    assert {status.level for status in inputs()} == {OK}
    # Images that come before the clock are taken at once.
    cameras.advertise()
    cameras.wait_until_heard()
    assert cameras.answer(cameras.publish()).message == 'published'
    # Where the clock runs and the images do not come, that is said.
    clock = cameras.node.create_publisher(message_class('rosgraph_msgs/msg/Clock'), '/clock', 10)
    tick = make_message('rosgraph_msgs/msg/Clock')
    tick.clock.sec = 5

    def warned():
        clock.publish(tick)
        return 'published?' in processes.log(NODE)

    cameras.spin_until(warned)
