"""The reconstruction node over real DDS: this process plays the cameras, another one the node."""

import math
import os
from pathlib import Path
import signal
import tempfile
import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from std_srvs.srv import SetBool, Trigger  # noqa: E402

from lunar_stereo_recon.messages import decode_image, stamp_ns  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class  # noqa: E402

NODE = 'reconstruction_node'
OPTIONS = {'backend': 'sgbm', 'threads': 1}
PATIENCE_S = 120.0
OK, WARN, ERROR = b'\x00', b'\x01', b'\x02'


def start(processes, cameras, *topics, **options):
    """Start the node with everything subscribed, and wait until it hears the cameras."""
    cameras.advertise()
    cameras.listen(*topics)
    process = processes.start(NODE, **{**OPTIONS, **options})
    cameras.wait_until_heard()
    return process


def change_state(cameras, label):
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    assert cameras.call(ChangeState, 'change_state', transition=Transition(label=label)).success


def cloud_values(cloud):
    return np.frombuffer(cloud.data, '<f4').reshape(cloud.height, cloud.width, 5)


def test_results_have_the_form_that_ros_expects(running):
    stamp = running.publish()
    cloud = running.result('points2', stamp)
    assert [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields] == [
        ('x', 0, 7, 1),
        ('y', 4, 7, 1),
        ('z', 8, 7, 1),
        ('rgb', 12, 7, 1),
        ('confidence', 16, 7, 1),
    ]
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (64, 96, 20, 1920)
    assert not cloud.is_dense
    assert not cloud.is_bigendian
    assert cloud.header.frame_id == 'left_optical'
    values = cloud_values(cloud)
    valid = np.isfinite(values[..., 2])
    assert valid.mean() > 0.5
    assert np.median(values[valid][:, 2]) == pytest.approx(2.0, rel=0.01)
    columns = np.broadcast_to(np.arange(96), (64, 96))[valid]
    x = (columns - 47.5) / 60.0 * values[valid][:, 2]
    np.testing.assert_allclose(values[valid][:, 0], x, atol=1e-4)

    confidence = decode_image(running.result('confidence', stamp), 'confidence')
    np.testing.assert_array_equal(confidence, values[..., 4])
    assert 0 <= confidence.min() <= confidence.max() <= 1
    depth = running.result('depth/image', stamp)
    assert depth.encoding == '32FC1'
    np.testing.assert_array_equal(decode_image(depth, 'depth'), values[..., 2])
    info = running.result('depth/camera_info', stamp)
    assert list(info.p) == [60, 0, 47.5, 0, 0, 60, 31.5, 0, 0, 0, 1, 0]
    disparity = running.result('disparity', stamp)
    assert disparity.f == pytest.approx(60.0)
    assert disparity.t == pytest.approx(0.2)
    assert disparity.min_disparity == 0.0
    assert disparity.max_disparity > 6.0
    found = decode_image(disparity.image, 'disparity')
    np.testing.assert_allclose(found[valid], 60.0 * 0.2 / values[valid][:, 2], rtol=1e-5)

    status = running.answer(stamp)
    assert (status.level, status.message) == (OK, 'published')
    stages = {entry.key: float(entry.value) for entry in status.values}
    assert 0 < stages['inference [ms]'] < stages['latency [ms]']
    assert stages['valid share'] == pytest.approx(valid.mean(), abs=1e-4)


def test_any_reliability_on_either_side(processes, cameras):
    """The node follows what its publishers offer, also when that changes."""
    processes.start(NODE, **OPTIONS)
    topic = cameras.node.resolve_topic_name('left/image_rect')
    for reliable_cameras in (True, False):
        cameras.advertise(reliable=reliable_cameras)
        for reliable_listener in (True, False):
            cameras.listen('points2', reliable=reliable_listener)
            cameras.wait_until_heard()
            expected = 'RELIABLE' if reliable_cameras else 'BEST_EFFORT'
            (subscriber,) = cameras.node.get_subscriptions_info_by_topic(topic)
            assert subscriber.qos_profile.reliability.name == expected
            # A best-effort message may be lost: send until one gets through.
            cameras.received['points2'].clear()
            cameras.spin_until(lambda: cameras.publish() and cameras.received['points2'])
            cameras.stop_listening('points2')
        cameras.withdraw()


def test_qos_of_a_topic_is_overridden(processes, cameras, namespace):
    cameras.advertise()
    cameras.listen('frame_status', 'points2', reliable=False)
    overrides = {
        f'qos_overrides.{namespace}/points2.publisher.reliability': 'best_effort',
        f'qos_overrides.{namespace}/left/image_rect.subscription.depth': 7,
    }
    processes.start(NODE, **OPTIONS, **overrides)
    # The listener goes and comes again: the node subscribes anew.
    for _ in range(2):
        cameras.wait_until_heard()
        assert cameras.spin_until(lambda: cameras.publish() and cameras.received['points2'])
        cameras.received['points2'].clear()
        cameras.stop_listening('points2')
        image = cameras.publishers['left image']
        cameras.spin_until(lambda image=image: image.get_subscription_count() == 0)
        cameras.listen('points2', reliable=False)

    def reliability(topic):
        topic = cameras.node.resolve_topic_name(topic)
        (publisher,) = cameras.node.get_publishers_info_by_topic(topic)
        return publisher.qos_profile.reliability.name

    assert reliability('points2') == 'BEST_EFFORT'
    assert reliability('disparity') == 'RELIABLE'
    from rcl_interfaces.srv import GetParameters

    answer = cameras.call(GetParameters, 'get_parameters', names=list(overrides))
    assert [value.string_value or value.integer_value for value in answer.values] == [
        'best_effort',
        7,
    ]


def test_reliability_that_does_not_fit_is_explained(processes, cameras):
    cameras.advertise(reliable=False)
    cameras.listen('points2')
    processes.start(NODE, **OPTIONS, input_reliability='reliable', silence_warning=1.0)

    def said():
        cameras.publish()
        return 'has a publisher whose QoS does not fit (RELIABILITY)' in processes.log(NODE)

    cameras.spin_until(said)
    assert 'set input_reliability to auto' in processes.log(NODE)


def test_listener_that_asks_for_too_much_is_told(running, node_log):
    from rclpy.qos import DurabilityPolicy, QoSProfile

    cloud = message_class('sensor_msgs/msg/PointCloud2')
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    subscription = running.node.create_subscription(cloud, 'points2', print, latched)
    try:
        running.spin_until(lambda: 'asks for a DURABILITY that is not offered' in node_log())
    finally:
        running.node.destroy_subscription(subscription)


def test_late_listener_gets_the_newest_hazard_grid(running):
    from rclpy.qos import DurabilityPolicy, QoSProfile

    running.set_parameters(hazard_gravity='fixed')
    running.listen('hazard')
    running.wait_until_served('hazard')
    stamp = running.publish()
    running.result('hazard', stamp)
    running.stop_listening('hazard')
    late = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    subscription = running.node.create_subscription(
        message_class('nav_msgs/msg/OccupancyGrid'), 'hazard', late.append, latched
    )
    try:
        assert stamp_ns(running.spin_until(lambda: late)[0]) == stamp
    finally:
        running.node.destroy_subscription(subscription)


def test_lazy_node_subscribes_only_while_somebody_listens(processes, cameras):
    cameras.advertise()
    cameras.listen('frame_status')
    cameras.listen_diagnostics()
    process = processes.start(NODE, **OPTIONS)
    cameras.spin_until(lambda: any('idle' in s.message for s in cameras.received['diagnostics']))
    assert cameras.publishers['left image'].get_subscription_count() == 0
    cameras.listen('points2')
    cameras.wait_until_heard()
    assert cameras.answer(cameras.publish()).message == 'published'
    cameras.stop_listening('points2')
    cameras.spin_until(lambda: cameras.publishers['left image'].get_subscription_count() == 0)
    assert 'WARN' not in processes.log(NODE)
    cameras.set_parameters(lazy=False)
    cameras.wait_until_heard()
    assert cameras.answer(cameras.publish()).message == 'published'
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_only_what_is_selected_is_published(running):
    running.set_parameters(outputs=['depth', 'points2'])
    stamp = running.publish()
    assert running.answer(stamp).message == 'published'
    running.result('depth/image', stamp)
    running.result('points2', stamp)
    running.spin_for(0.3)
    assert running.received['disparity'] == running.received['confidence'] == []


def test_parameters_act_on_the_next_frame_and_bad_values_are_refused(running):
    before = cloud_values(running.result('points2', running.publish()))
    assert np.isfinite(before[..., 2]).any()

    (result,) = running.set_parameters(max_range=1.5)
    assert result.successful
    near = cloud_values(running.result('points2', running.publish()))
    assert np.isnan(near[..., :3]).all()  # The wall is at 2 m.
    np.testing.assert_array_equal(near[..., 4], before[..., 4])

    assert running.set_parameters(max_range=0.0, min_range=1.0)[0].successful
    again = cloud_values(running.result('points2', running.publish()))
    np.testing.assert_array_equal(again, before)

    assert running.set_parameters(confidence_threshold=1.0)[0].successful
    strict = cloud_values(running.result('points2', running.publish()))
    assert np.isfinite(strict[..., 2]).sum() < np.isfinite(before[..., 2]).sum()

    for values, reason in (
        ({'confidence_threshold': 1.5}, 'range'),
        ({'max_range': 0.5}, 'min_range_m is 1.0 and max_range_m 0.5'),
        ({'outputs': ['cloud']}, "outputs is 'cloud'; one of points2"),
        ({'threads': 2}, 'read-only'),
        ({'confidence_threshold': 'high'}, 'type'),
        ({'depth_encoding': ''}, "depth_encoding is ''; one of 32fc1, 16uc1"),
    ):
        (result,) = running.set_parameters(**values)
        assert not result.successful
        assert reason in result.reason.lower().replace('read only', 'read-only')


def test_decimation_thins_the_cloud_only(running):
    whole = cloud_values(running.result('points2', running.publish()))
    running.set_parameters(decimation=4)
    stamp = running.publish()
    cloud = running.result('points2', stamp)
    assert (cloud.height, cloud.width) == (16, 24)
    np.testing.assert_array_equal(cloud_values(cloud), whole[::4, ::4])
    assert running.result('depth/image', stamp).width == 96


def test_region_of_interest(running):
    whole = cloud_values(running.result('points2', running.publish()))
    running.set_parameters(roi=[20, 10, 60, 40])
    stamp = running.publish()
    cloud = running.result('points2', stamp)
    assert (cloud.height, cloud.width) == (40, 60)
    np.testing.assert_array_equal(cloud_values(cloud), whole[10:50, 20:80])
    disparity = running.result('disparity', stamp)
    window = disparity.valid_window
    assert (window.x_offset, window.y_offset, window.width, window.height) == (20, 10, 60, 40)
    found = decode_image(disparity.image, 'disparity')
    assert np.isnan(found[:10]).all()
    assert np.isnan(found[:, 80:]).all()
    for roi, reason in (
        ([1, 2, 3], 'roi has 3 numbers'),
        ([-1, 0, 10, 10], 'region is 10x10 at (-1, 0)'),
        ([0, 0, 10, 0], 'region is 10x0'),
    ):
        (result,) = running.set_parameters(roi=roi)
        assert not result.successful
        assert reason in result.reason
    running.set_parameters(roi=[200, 0, 10, 10])
    assert 'outside of the image of 96x64' in running.answer(running.publish()).message


def test_forms_of_the_cloud(running):
    whole = cloud_values(running.result('points2', running.publish()))
    valid = whole[np.isfinite(whole[..., 2])]

    running.set_parameters(organized=False)
    cloud = running.result('points2', running.publish())
    assert (cloud.height, cloud.width, cloud.is_dense) == (1, len(valid), True)
    np.testing.assert_array_equal(cloud_values(cloud)[0], valid)

    running.set_parameters(organized=True, color=False)
    cloud = running.result('points2', running.publish())
    assert [field.name for field in cloud.fields] == ['x', 'y', 'z', 'confidence']
    assert (cloud.height, cloud.width, cloud.point_step) == (64, 96, 16)

    running.set_parameters(color=True, voxel_size=0.25)
    cloud = running.result('points2', running.publish())
    voxels = {tuple(index) for index in np.floor(valid[:, :3] / np.float32(0.25)).astype(int)}
    assert (cloud.height, cloud.width, cloud.is_dense) == (1, len(voxels), True)
    (result,) = running.set_parameters(voxel_size=0.001)
    assert not result.successful
    assert 'voxel_size is 0.001 m; 0 or at least' in result.reason


def test_confidence_for_eyes(running):
    stamp = running.publish()
    confidence = decode_image(running.result('confidence', stamp), 'confidence')
    view = running.result('confidence/image_mono8', stamp)
    assert view.encoding == 'mono8'
    np.testing.assert_array_equal(decode_image(view, 'view'), np.rint(255 * confidence))


def test_hazard_grid(running, node_log):
    running.listen('hazard')

    def grid(**options):
        running.set_parameters(**options)
        message = running.result('hazard', running.publish())
        values = np.array(message.data, np.int8)
        return message, values.reshape(message.info.height, message.info.width)

    try:
        running.set_parameters(hazard_gravity='fixed')
        running.wait_until_served('hazard')
        # The wall at 2 m, upright.
        message, upright = grid(hazard_range=4.0)
        assert message.header.frame_id == 'left_optical'
        assert (message.info.width, message.info.height) == (20, 40)
        rows, columns = np.nonzero(upright == 100)
        assert len(rows) > 3
        assert set(columns) <= {8, 9, 10, 11}
        assert (upright == 0).sum() == 0
        # Seen from above it is level ground: the grid begins below the camera.
        message, ground = grid(camera_pitch=-90.0)
        assert np.median(ground[ground >= 0]) < 5
        assert ground.max() < 100
        # A slope of 30 degrees.
        assert (grid(camera_pitch=-60.0, hazard_max_slope=20.0)[1] == 100).sum() > 10
        slope = grid(hazard_max_slope=40.0)[1]
        assert np.median(slope[slope >= 0]) == pytest.approx(99 * 30 / 40, abs=3)
        # Coarser cells, and what doubtful points do not tell.
        message, _ = grid(hazard_cell=0.5)
        assert message.info.resolution == pytest.approx(0.5)
        assert (grid(hazard_confidence=1.0)[1] == -1).all()

        running.set_parameters(hazard_gravity='imu')
        reasons = [v.value for v in running.answer(running.publish()).values]
        assert any('no Imu message has arrived on' in reason for reason in reasons)
        imu = running.node.create_publisher(message_class('sensor_msgs/msg/Imu'), 'imu', 10)
        running.spin_until(imu.get_subscription_count)
        # The body's nose is 30 degrees down, and the camera looks 60 degrees down in the body.
        running.set_parameters(
            camera_pitch=-60.0, hazard_confidence=0.5, hazard_cell=0.2, hazard_max_slope=20.0
        )
        running.received['hazard'].clear()
        attitude = message_class('sensor_msgs/msg/Imu')()
        attitude.orientation.y = math.sin(math.radians(15))
        attitude.orientation.w = math.cos(math.radians(15))

        def told():
            stamp = running.publish(sides=())  # only counts on
            attitude.header.stamp.sec, attitude.header.stamp.nanosec = divmod(stamp, 10**9)
            imu.publish(attitude)
            running.spin_for(0.1)
            running.answer(running.publish(stamp))
            return running.received['hazard']

        message = running.spin_until(told)[0]
        ground = np.array(message.data, np.int8)
        assert np.median(ground[ground >= 0]) < 5
        running.node.destroy_publisher(imu)

        # A rover that climbs walls.
        _, upright = grid(hazard_gravity='fixed', camera_pitch=0.0, hazard_clearance=10.0)
        assert not (upright == 100).any()
        _, small = grid(camera_pitch=-60.0, hazard_max_slope=60.0, hazard_footprint=0.2)
        _, large = grid(hazard_footprint=3.0)
        assert np.std(small[small >= 0]) > np.std(large[large >= 0])
        (result,) = running.set_parameters(hazard_cell=0.02)
        assert not result.successful
        assert '400x400 cells of 0.02 m' in result.reason
    finally:
        running.stop_listening('hazard')


# What the node uses of tf2_ros: a static transform from left_optical to base_link, from START on.
# As in tf2, times before the newest one seen are unknown until the buffer is cleared.
TF2_ROS = """
from types import SimpleNamespace

START_NS = 1_000_000_200_000_000

class TransformException(Exception):
    pass

class Buffer:
    def __init__(self):
        self.clear()

    def clear(self):
        self.newest_ns = START_NS

    def lookup_transform(self, target_frame, source_frame, time, timeout):
        if (target_frame, source_frame) != ('base_link', 'left_optical'):
            raise TransformException(f'frame {target_frame} does not exist')
        if time.nanoseconds < self.newest_ns:
            raise TransformException('extrapolation into the past')
        self.newest_ns = time.nanoseconds
        rotation = SimpleNamespace(x=-0.5, y=0.5, z=-0.5, w=0.5)
        translation = SimpleNamespace(x=0.1, y=0.2, z=0.3)
        transform = SimpleNamespace(rotation=rotation, translation=translation)
        return SimpleNamespace(transform=transform)

class TransformListener:
    def __init__(self, buffer, node):
        print('tf2: listens')

    def unregister(self):
        print('tf2: listens no more')
"""


def test_cloud_in_a_body_frame(processes, cameras, tmp_path):
    (tmp_path / 'tf2_ros.py').write_text(TF2_ROS)
    processes.environment['PYTHONPATH'] = str(tmp_path)
    cameras.listen_diagnostics()
    start(processes, cameras, cloud_frame='base_link')
    early = cameras.publish()
    status = cameras.answer(early)
    assert (status.level, status.message) == (WARN, 'published')
    reasons = {value.key: value.value for value in status.values}
    assert "from 'left_optical' to 'base_link': extrapolation" in reasons['withheld points2']
    cameras.result('depth/image', early)  # What needs no transform comes all the same.
    warned = cameras.spin_until(
        lambda: [s for s in cameras.received['diagnostics'] if 'points2 is not' in s.message]
    )
    assert warned[0].level == WARN

    stamp = 1_000_000_300_000_000
    cloud = cameras.result('points2', cameras.publish(stamp))
    assert cloud.header.frame_id == 'base_link'
    body = cloud_values(cloud)
    cameras.set_parameters(cloud_frame='')
    cloud = cameras.result('points2', cameras.publish(stamp + 1_000_000_000))
    assert cloud.header.frame_id == 'left_optical'
    optical = cloud_values(cloud)
    np.testing.assert_allclose(body[..., 0], optical[..., 2] + 0.1, rtol=1e-5)
    np.testing.assert_allclose(body[..., 1], 0.2 - optical[..., 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(body[..., 2], 0.3 - optical[..., 1], rtol=1e-5, atol=1e-6)
    # The same transform serves the hazard grid: the camera looks along the body's x axis.
    cameras.listen('hazard')
    cameras.set_parameters(hazard_frame='base_link', hazard_range=4.0)
    moments = iter(range(stamp + 1_100_000_000, stamp + 10_000_000_000, 10_000_000))

    def mapped():  # the node may not know of the listener at once
        cameras.answer(cameras.publish(next(moments)))
        return cameras.received['hazard']

    grid = cameras.spin_until(mapped)[0]
    assert grid.header.frame_id == 'base_link'
    assert grid.info.origin.orientation.w == 1.0
    assert (grid.info.width, grid.info.origin.position.x) == (40, pytest.approx(-4.0))
    rows, columns = np.nonzero(np.array(grid.data).reshape(40, 40) == 100)
    assert np.abs(-4.0 + 0.2 * columns - 2.1).max() < 0.5  # the wall, 2 m ahead of the camera
    cameras.stop_listening('hazard')
    cameras.set_parameters(cloud_frame='map')
    reasons = cameras.answer(cameras.publish(stamp + 11_000_000_000)).values
    assert any('frame map does not exist' in value.value for value in reasons)
    # The stamps jump back, as in a bag that loops: what tf2 had of the time after is forgotten.
    cameras.set_parameters(cloud_frame='base_link')
    assert cameras.result('points2', cameras.publish(stamp)).header.frame_id == 'base_link'
    # An inactive node listens to nothing.
    assert processes.log(NODE).count('tf2: listens\n') == 1
    assert 'tf2: listens no more' not in processes.log(NODE)
    change_state(cameras, 'deactivate')
    assert processes.log(NODE).count('tf2: listens no more') == 1
    change_state(cameras, 'activate')
    cameras.spin_until(lambda: processes.log(NODE).count('tf2: listens\n') == 2)


def test_transforms_without_tf2_ros_are_refused_with_the_reason(running, node_log):
    try:
        import tf2_ros  # noqa: F401
    except ModuleNotFoundError:
        running.set_parameters(cloud_frame='base_link')

        def said():
            reasons = running.answer(running.publish()).values
            return any('transforms need tf2_ros' in value.value for value in reasons)

        running.spin_until(said)
        # The log says it every five seconds at most.
        running.spin_until(
            lambda: said() and 'is not published: transforms need tf2_ros' in node_log()
        )
    else:
        pytest.skip('tf2_ros is installed')


def test_depth_in_millimetres(running):
    metres = decode_image(running.result('depth/image', running.publish()), 'depth')
    running.set_parameters(depth_encoding='16UC1')
    message = running.result('depth/image', running.publish())
    assert message.encoding == '16UC1'
    millimetres = decode_image(message, 'depth')
    valid = np.isfinite(metres)
    assert (millimetres[~valid] == 0).all()
    np.testing.assert_allclose(millimetres[valid], 1000 * metres[valid], atol=0.5)


def test_compressed_depth_is_made_for_who_asks(running):
    running.listen('depth/image/compressedDepth')
    running.wait_until_heard()
    stamp = running.publish()
    message = running.result('depth/image/compressedDepth', stamp)
    assert message.format == '32FC1; compressedDepth png'
    depth = decode_image(running.result('depth/image', stamp), 'depth')
    data = np.frombuffer(message.data, np.uint8)
    factor = np.frombuffer(message.data[4:8], np.float32)[0]
    values = cv2.imdecode(data[12:], cv2.IMREAD_UNCHANGED)
    valid = np.isfinite(depth)
    np.testing.assert_array_equal(values > 0, valid)
    np.testing.assert_allclose(
        60 * 0.2 * values[valid] / factor, 60 * 0.2 / depth[valid], atol=0.008
    )


def test_enable_stops_and_resumes_the_work(running):
    assert running.call(SetBool, 'enable', data=False).success
    heard = running.publishers['left image']
    running.spin_until(lambda: heard.get_subscription_count() == 0)
    running.received['diagnostics'].clear()
    running.spin_until(
        lambda: any('disabled' in s.message for s in running.received['diagnostics'])
    )
    assert running.call(SetBool, 'enable', data=True).success
    running.wait_until_heard()
    assert running.answer(running.publish()).message == 'published'


def test_model_is_changed_while_the_node_runs(running):
    subscribed = running.publishers['left image'].get_subscription_count()
    before = running.result('confidence', running.publish())
    running.set_parameters(backend='onnx', model='flight_int8')
    answer = running.call(Trigger, 'set_model')
    assert answer.success
    assert answer.message == 'flight-int8 on CPUExecutionProvider'
    assert running.publishers['left image'].get_subscription_count() == subscribed
    after = running.result('confidence', running.publish())
    assert bytes(after.data) != bytes(before.data)

    # A time that any width keeps to: the widest that the images can use.
    running.set_parameters(target_ms=10000.0)
    assert running.answer(running.publish()).message == 'published'
    running.received['diagnostics'].clear()
    model = running.spin_until(
        lambda: [s for s in running.received['diagnostics'] if s.name == f'{NODE}: model']
    )[0]
    width = {value.key: value.value for value in model.values}['network width, px']
    assert width == str(after.width)

    # One that cannot be loaded leaves the old one at work.
    running.set_parameters(model='/nowhere/else.onnx')
    answer = running.call(Trigger, 'set_model')
    assert not answer.success
    assert answer.message == 'no model file at /nowhere/else.onnx; flight-int8 goes on'
    assert running.answer(running.publish()).message == 'published'
    running.set_parameters(model='flight_int8', providers=['abacus'])
    answer = running.call(Trigger, 'set_model')
    assert not answer.success
    assert "'abacus'" in answer.message

    running.set_parameters(backend='sgbm', model='')
    assert running.call(Trigger, 'set_model').success
    again = running.result('confidence', running.publish())
    assert bytes(again.data) == bytes(before.data)


def test_save_cloud_writes_ply_and_pcd(running, tmp_path):
    running.set_parameters(save_directory=str(tmp_path / 'clouds'))
    stamp = running.publish()
    cloud = cloud_values(running.result('points2', stamp))
    answer = running.call(Trigger, 'save_cloud')
    assert answer.success
    data = (tmp_path / 'clouds' / f'cloud_{stamp}.ply').read_bytes()
    count = int(np.isfinite(cloud[..., 2]).sum())
    assert f'element vertex {count}\n'.encode() in data
    assert f'{count} points in' in answer.message
    from_home = os.path.relpath(tmp_path / 'clouds', Path.home())
    running.set_parameters(save_format='pcd', save_directory=f'~/{from_home}')
    assert running.call(Trigger, 'save_cloud').success
    data = (tmp_path / 'clouds' / f'cloud_{stamp}.pcd').read_bytes()
    assert f'POINTS {count}\n'.encode() in data
    assert len(data.partition(b'DATA binary\n')[2]) == 20 * count
    (tmp_path / 'file').touch()
    running.set_parameters(save_directory=str(tmp_path / 'file'))
    answer = running.call(Trigger, 'save_cloud')
    assert not answer.success
    assert 'cannot write' in answer.message


def test_a_folder_that_is_not_below_the_root_is_refused(running, tmp_path):
    """By name, and where a link leads out of it when the file is written."""
    outside = Path(tempfile.mkdtemp())
    for folder in ('/', '..', str(outside)):
        (result,) = running.set_parameters(save_directory=folder)
        assert not result.successful and 'not below save_root' in result.reason
    assert not running.set_parameters(save_root='/')[0].successful
    (tmp_path / 'link').mkdir()
    assert running.set_parameters(save_directory=str(tmp_path / 'link'))[0].successful
    running.result('points2', running.publish())
    (tmp_path / 'link').rmdir()
    (tmp_path / 'link').symlink_to(outside)
    answer = running.call(Trigger, 'save_cloud')
    assert not answer.success
    assert 'not below save_root' in answer.message
    assert not list(outside.iterdir())
    outside.rmdir()


def test_services_that_write_can_be_switched_off(processes, cameras, tmp_path):
    cameras.advertise()
    cameras.listen('points2')
    processes.start(NODE, backend='sgbm', threads=1, allow_saving=False, save_root=tmp_path)
    cameras.wait_until_heard()
    # Other nodes may share the domain.
    own = cameras.node.get_namespace() + '/'
    services = [
        name for name, _ in cameras.node.get_service_names_and_types() if name.startswith(own)
    ]
    assert any(name.endswith('/doctor') for name in services)
    assert not any(name.endswith('/save_cloud') for name in services)


def test_white_level_and_refinement_act(running):
    before = running.result('disparity', running.publish())
    dark = {side: view // 8 for side, view in running.views().items()}
    running.set_parameters(white_level=32.0)
    stamp = running.publish(**dark)
    packed = np.ascontiguousarray(cloud_values(running.result('points2', stamp))[..., 3])
    red = packed.view('<u4') >> 16 & 255
    assert np.abs(red.astype(int) - running.views()['left']).max() < 10
    running.set_parameters(white_level=0.0, refine=False)
    coarse = running.result('disparity', running.publish())
    values = [decode_image(message.image, 'disparity') for message in (before, coarse)]
    both = np.isfinite(values).all(axis=0)
    assert (values[0] != values[1])[both].mean() > 0.1
    assert np.abs(values[0] - 6.0)[both].mean() <= np.abs(values[1] - 6.0)[both].mean() + 0.02


def test_rows_are_watched_unless_told_not_to(running):
    def output(align_rows, right_tx):
        running.set_parameters(align_rows=align_rows)
        running.answer(running.publish(right_tx=right_tx))
        running.received['diagnostics'].clear()
        name = f'{NODE}: output'
        status = running.spin_until(
            lambda: [s for s in running.received['diagnostics'] if s.name == name]
        )[0]
        return {value.key: value.value for value in status.values}['row alignment']

    # Each baseline is another rig, of which nothing is known yet.
    assert 'rows aligned within' in output(True, right_tx=-12.6)
    assert 'not known' in output(False, right_tx=-12.9)


def test_target_rate_drops_pairs_with_that_reason(running):
    running.set_parameters(target_rate=5.0)
    answers = [running.answer(running.publish()).message for _ in range(6)]
    assert answers in (['published', 'target_rate'] * 3, ['target_rate', 'published'] * 3)


def test_newest_pair_wins_and_every_pair_is_answered(running):
    running.answer(running.publish())
    stamps = [running.publish() for _ in range(4)]
    answers = [running.answer(stamp).message for stamp in stamps]
    assert set(answers) <= {'published', 'superseded'}
    assert answers[-1] == 'published'


def test_missing_baseline_is_said_and_the_parameter_mends_it(running, node_log):
    status = running.answer(running.publish(right_tx=0.0))
    assert status.level == ERROR
    assert 'right/camera_info: P[3] is 0' in status.message
    assert "'baseline'" in status.message
    refused = running.spin_until(
        lambda: [s for s in running.received['diagnostics'] if s.level == ERROR]
    )
    assert refused[0].name == 'reconstruction_node: output'
    assert "'baseline'" in refused[0].message

    def said():
        running.answer(running.publish(right_tx=0.0))
        return "'baseline'" in node_log()

    running.spin_until(said)  # the log has an error every five seconds at most
    running.set_parameters(baseline=0.4)
    cloud = cloud_values(running.result('points2', running.publish(right_tx=0.0)))
    assert np.nanmedian(cloud[..., 2]) == pytest.approx(4.0, rel=0.01)
    # Where P[3] does say something else, the parameter still rules, with a warning.
    running.answer(running.publish())
    assert "the parameter 'baseline' is 0.4 m, but P[3]" in node_log()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'encoding': 'mono7'}, "unknown image encoding 'mono7'"),
        ({'right': np.zeros((64, 80), np.uint8)}, 'right/image_rect is 80x64'),
        ({side: np.zeros((40, 96), np.uint8) for side in ('left', 'right')}, '96x40'),
    ],
)
def test_bad_pairs_are_answered_with_the_reason(running, changes, words):
    status = running.answer(running.publish(**changes))
    assert status.level == ERROR
    assert words in status.message
    assert running.answer(running.publish()).message == 'published'


def test_truncated_image_is_answered_with_the_reason(running):
    from lunar_stereo_recon.result_messages import image_message

    stamp = 77_000_000_000
    short = image_message(make_message, np.zeros((64, 96), np.uint8), 'mono8', stamp, 'left')
    short.data = short.data[:1000]
    status = running.answer(running.publish(stamp, left_message=short))
    assert 'truncated' in status.message


def test_black_images_are_a_result_without_points(running):
    black = np.zeros((64, 96), np.uint8)
    cloud = cloud_values(running.result('points2', running.publish(left=black, right=black)))
    assert np.isnan(cloud[..., :3]).all()
    assert cloud[..., 4].max() < 0.5


def test_compressed_images(processes, cameras):
    cameras.advertise(image='CompressedImage', suffix='/compressed')
    cameras.listen('points2', 'frame_status')
    processes.start(NODE, **OPTIONS, input_transport='compressed')
    cameras.wait_until_heard()
    from lunar_stereo_recon.result_messages import header

    messages = {}
    for side, values in cameras.views().items():
        data = cv2.imencode('.png', values)[1].reshape(-1)
        messages[f'{side}_message'] = make_message(
            'sensor_msgs/msg/CompressedImage',
            header=header(make_message, 5_000_000_000, 'left_optical'),
            format='mono8; png compressed mono8',
            data=data,
        )
    cloud = cloud_values(cameras.result('points2', cameras.publish(5_000_000_000, **messages)))
    assert np.nanmedian(cloud[..., 2]) == pytest.approx(2.0, rel=0.01)
    # What is wrong is said of the topic that the node listens to.
    messages['right_message'].data = b'not a picture'
    for message in messages.values():
        message.header.stamp.sec = 6
    status = cameras.answer(cameras.publish(6_000_000_000, **messages))
    assert 'right/image_rect/compressed: 13 bytes are not PNG' in status.message


def test_raw_images_are_rectified(processes, cameras):
    cameras.advertise(image_name='image_raw')
    cameras.listen('points2', 'frame_status', 'depth/camera_info', 'left/image_rect')
    processes.start(NODE, **OPTIONS, rectify=True)
    cameras.wait_until_heard()
    # The raw right camera looks three rows lower; its K says so.
    right = np.roll(cameras.views()['right'], 3, axis=0)

    def change_info(side, info):
        if side == 'right':
            info.k[5] += 3.0

    stamp = cameras.publish(right=right, change_info=change_info)
    cloud = cloud_values(cameras.result('points2', stamp))
    depth = cloud[3:-3, :, 2]
    assert np.isfinite(depth).mean() > 0.5
    assert np.nanmedian(depth) == pytest.approx(2.0, rel=0.01)
    # Of the rectified image's last rows the raw one has nothing.
    assert (cloud[-3:, :, 4] == 0).all()
    info = cameras.result('depth/camera_info', stamp)
    assert list(info.d) == [0.0] * 5
    rectified = decode_image(cameras.result('left/image_rect', stamp), 'left/image_rect')
    np.testing.assert_array_equal(rectified[..., 1], cameras.views()['left'])

    def spoil_info(side, info):
        info.distortion_model = 'ftheta'

    status = cameras.answer(cameras.publish(change_info=spoil_info))
    assert status.level == ERROR
    assert "left/camera_info: distortion model is 'ftheta'" in status.message


def test_silent_camera_is_named_in_log_and_diagnostics(running, node_log):
    running.set_parameters(silence_warning=1.0)

    def said():
        running.publish(sides=('left',))
        return 'right 0: is /' in node_log()

    running.spin_until(said)
    assert 'right/image_rect published?' in node_log()
    running.spin_until(
        lambda: any(
            s.name.endswith(': input') and s.level == WARN and 'right 0' in s.message
            for s in running.received['diagnostics']
        )
    )


def test_stamps_that_differ_are_explained_and_the_tolerance_helps(running, node_log):
    running.set_parameters(silence_warning=1.0)

    def said():
        running.publish(right_offset_ns=31_000_000)
        return 'left and right stamps differ by 31 ms' in node_log()

    running.spin_until(said)
    assert 'approximate_sync' in node_log()
    assert running.received['points2'] == []


def test_approximate_synchronization(processes, cameras):
    options = {'approximate_sync': True, 'approximate_sync_tolerance_seconds': 0.02}
    start(processes, cameras, 'points2', 'frame_status', **options)
    stamps = [cameras.publish(right_offset_ns=7_000_000) for _ in range(3)]
    cloud = cameras.result('points2', stamps[-1])
    assert stamp_ns(cloud) == stamps[-1]


def test_queue_size_limits_the_images_that_wait_for_the_other_side(processes, cameras):
    cameras.listen_diagnostics()
    start(processes, cameras, 'points2', 'frame_status', queue_size=2)

    def inputs():
        newest = [s for s in cameras.received['diagnostics'] if s.name.endswith(': input')]
        return {value.key: value.value for value in newest[-1].values} if newest else {}

    stamps = []
    stamps += [cameras.publish(sides=('left',)) for _ in range(4)]
    for stamp in stamps[:2]:
        text = cameras.answer(stamp).message
        assert text == 'unpaired: left image: waited in vain for a partner'
    cameras.spin_until(lambda: inputs().get('left images') == '4')
    assert inputs()['dropped: left queue_full'] == '2'
    for number, stamp in enumerate(stamps, 1):
        cameras.publish(stamp, sides=('right',))
        cameras.spin_until(lambda number=number: inputs()['right images'] == str(number))
    for stamp in stamps[2:]:
        assert cameras.answer(stamp).message == 'published'
    answers = [stamp_ns(message) for message in cameras.received['frame_status']]
    assert sorted(answers) == stamps  # one for each


def test_threads_are_those_of_the_process(processes):
    """As Linux counts them, once the model is warm: a pool has one less than it may use."""

    def running_threads(threads):
        process = processes.start(NODE, threads=threads)
        deadline = time.monotonic() + PATIENCE_S
        while 'first pair' not in processes.log(NODE):
            assert time.monotonic() < deadline and process.poll() is None, processes.log(NODE)
            time.sleep(0.05)
        return len(os.listdir(f'/proc/{process.pid}/task'))

    # Those of onnxruntime at least; OpenCV makes its own by the way it was built.
    assert running_threads(5) - running_threads(1) >= 5 - 1


def test_camera_info_that_comes_late(processes, cameras):
    start(processes, cameras, 'points2', 'frame_status', silence_warning=0.5)

    def said():
        cameras.publish(infos=False)
        return 'but no camera_info: are ' in processes.log(NODE)

    cameras.spin_until(said)
    assert 'left/camera_info and /' in processes.log(NODE)
    texts = {message.status[0].message for message in cameras.received['frame_status']}
    assert texts <= {'unpaired: no camera_info yet'}
    stamp = cameras.publish()
    assert cameras.answer(stamp).message == 'published'


def camera_info_file(path, tx=0.0, width=96):
    path.write_text(
        f'image_width: {width}\nimage_height: 64\n'
        f'projection_matrix: {{data: [60, 0, 47.5, {tx}, 0, 60, 31.5, 0, 0, 0, 1, 0]}}\n'
    )
    return str(path)


def test_camera_infos_from_files(processes, cameras, tmp_path):
    cameras.advertise(infos=False)
    cameras.listen('points2', 'frame_status')
    processes.start(
        NODE,
        **OPTIONS,
        left_camera_info_url=camera_info_file(tmp_path / 'left.yaml'),
        right_camera_info_url=f'file://{camera_info_file(tmp_path / "right.yaml", -24.0)}',
    )
    cameras.wait_until_heard()
    cloud = cloud_values(cameras.result('points2', cameras.publish(infos=False)))
    assert np.nanmedian(cloud[..., 2]) == pytest.approx(4.0, rel=0.01)  # 60 px * 0.4 m / 6 px
    topic = cameras.node.resolve_topic_name('left/camera_info')
    assert cameras.node.count_subscribers(topic) == 0
    # Images of another size: the file is named.
    small = {side: np.zeros((40, 96), np.uint8) for side in ('left', 'right')}
    status = cameras.answer(cameras.publish(infos=False, **small))
    assert f'{tmp_path / "left.yaml"} is for 96x64' in status.message


def test_first_camera_infos_are_kept(processes, cameras):
    start(processes, cameras, 'points2', 'frame_status', cache_camera_info=True)
    for _ in range(2):
        # A wrong one that comes later is not looked at.
        cloud = cloud_values(cameras.result('points2', cameras.publish()))
        assert np.nanmedian(cloud[..., 2]) == pytest.approx(2.0, rel=0.01)
        info = cameras.publishers['right info']
        cameras.spin_until(lambda info=info: info.get_subscription_count() == 0)
        cameras.publish(right_tx=-24.0)
    assert cameras.publishers['left image'].get_subscription_count() == 1


def test_stamps_that_jump_back_are_a_new_start(running):
    for _ in range(2):
        for index in range(3):
            stamp = (100 + index) * 1_000_000_000
            running.received['frame_status'].clear()
            assert running.answer(running.publish(stamp)).message == 'published'


def test_simulated_time_is_that_of_the_diagnostics_alone(processes, cameras):
    """Frames are reconstructed before the clock runs, and whatever it says."""
    stamps = []
    cameras.node.create_subscription(
        message_class('diagnostic_msgs/msg/DiagnosticArray'),
        '/diagnostics',
        lambda array: stamps.append(stamp_ns(array)),
        10,
    )
    clock = cameras.node.create_publisher(message_class('rosgraph_msgs/msg/Clock'), '/clock', 10)
    start(processes, cameras, 'points2', 'frame_status', use_sim_time=True)
    assert cameras.answer(cameras.publish(50_000_000_000)).message == 'published'
    # Another test's node, on the same domain, has the time of day.
    cameras.spin_until(lambda: 0 in stamps)
    message = message_class('rosgraph_msgs/msg/Clock')()
    for seconds in (100, 30):  # the simulation is reset in between

        def told(seconds=seconds):
            message.clock.sec = seconds
            clock.publish(message)
            return seconds * 1_000_000_000 in stamps

        cameras.spin_until(told)
        stamp = cameras.publish(seconds * 1_000_000_000)
        assert cameras.answer(stamp).message == 'published'


def test_lifecycle_is_obeyed(processes, cameras):
    from lifecycle_msgs.srv import GetState

    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    process = processes.start(NODE, **OPTIONS, autostart=False)

    def label():
        return cameras.call(GetState, 'get_state').current_state.label

    assert label() == 'unconfigured'
    change_state(cameras, 'configure')
    assert label() == 'inactive'
    cameras.spin_for(1.0)
    assert cameras.publishers['left image'].get_subscription_count() == 0
    change_state(cameras, 'activate')
    cameras.wait_until_heard()
    assert cameras.answer(cameras.publish()).message == 'published'
    change_state(cameras, 'deactivate')
    cameras.spin_until(lambda: cameras.publishers['left image'].get_subscription_count() == 0)
    change_state(cameras, 'activate')
    cameras.wait_until_heard()
    assert cameras.answer(cameras.publish()).message == 'published'
    change_state(cameras, 'deactivate')
    change_state(cameras, 'cleanup')
    assert label() == 'unconfigured'
    change_state(cameras, 'configure')
    change_state(cameras, 'shutdown')
    assert label() == 'finalized'
    assert process.poll() is None


def test_a_node_that_cannot_start_says_why_and_ends_with_status_1(processes):
    attempts = [
        ({'backend': 'onnx', 'model': '/nowhere/model.onnx'}, '/nowhere/model.onnx'),
        ({'backend': 'magic'}, "backend is 'magic'; one of onnx"),
        ({'confidence_threshold': 2.0}, 'confidence_threshold'),
        ({'min_range': 5.0, 'max_range': 2.0}, 'min_range_m is 5.0'),
        ({'queue_size': '"many"'}, 'queue_size'),
        ({'left_camera_info_url': 'left.yaml'}, 'give both, or neither'),
    ]
    started = [
        (processes.start(NODE, **{**OPTIONS, **options}), processes.logs[NODE], words)
        for options, words in attempts
    ]
    for process, log, words in started:
        assert process.wait(240) == 1
        assert words in log.read_text()
        assert 'Traceback' not in log.read_text()


@pytest.mark.slow
def test_frames_leave_no_memory_behind(processes, cameras):
    cameras.listen('hazard')
    process = start(processes, cameras, hazard_gravity='fixed')

    def resident_kib():
        with open(f'/proc/{process.pid}/status', encoding='ascii') as file:
            line = next(line for line in file if line.startswith('VmRSS'))
        return int(line.split()[1])

    def send(count):
        for _ in range(count):
            assert cameras.answer(cameras.publish()).message == 'published'
            for messages in cameras.received.values():
                messages.clear()

    send(100)
    before = resident_kib()
    send(400)
    # 8 KiB a frame, about one image; `soak.py` looks closer.
    assert resident_kib() - before < 400 * 8
