"""Messages of rclpy from plain fields, without a running graph."""

from array import array

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from rclpy.serialization import serialize_message  # noqa: E402
from rosbags.typesys import get_typestore, Stores  # noqa: E402

from lunar_stereo_recon.bags import writer as bag_writer  # noqa: E402
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration  # noqa: E402
from lunar_stereo_recon.messages import cdr_stamp_ns, pair_from_messages  # noqa: E402
from lunar_stereo_recon.result_messages import (  # noqa: E402
    camera_info_message,
    disparity_message,
    image_message,
    point_cloud_message,
)
from lunar_stereo_recon.ros.rclpy_messages import (  # noqa: E402
    diagnostic_array,
    diagnostic_status,
    make_message,
    message_class,
    MessageBuffer,
    WARN,
)

CALIBRATION = StereoCalibration(40.0, 40.0, 3.5, 2.5, 3.5, 0.2, 8, 6)


@pytest.fixture
def reconstruction():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 3, (6, 8)).astype(np.float32)
    return Reconstruction(
        disparity=8 / depth,
        depth=depth,
        confidence=rng.uniform(0, 1, (6, 8)).astype(np.float32),
        points=rng.uniform(-1, 1, (6, 8, 3)).astype(np.float32),
        color=rng.integers(0, 256, (6, 8, 3), dtype=np.uint8),
        calibration=CALIBRATION,
        stamp_ns=5_000_000_007,
        frame_id='left_optical',
    )


@pytest.mark.parametrize('build', [point_cloud_message, disparity_message])
def test_message_on_the_wire_is_that_of_the_bag(reconstruction, build):
    """DDS and bags carry the same fields; only the padding bytes between them may differ."""
    types = get_typestore(Stores.ROS2_JAZZY)
    ours = build(bag_writer.make_message, reconstruction)
    in_bag = types.serialize_cdr(ours, ours.__msgtype__)
    on_wire = serialize_message(build(make_message, reconstruction))
    received = types.deserialize_cdr(on_wire, ours.__msgtype__)
    assert bytes(types.serialize_cdr(received, ours.__msgtype__)) == bytes(in_bag)
    assert cdr_stamp_ns(on_wire) == 5_000_000_007


def test_buffer_is_reused_and_its_message_is_the_same(reconstruction):
    buffer = MessageBuffer()
    values = buffer.floats((6, 8, 5))
    message = point_cloud_message(make_message, reconstruction, allocate=buffer.floats)
    assert message.data == point_cloud_message(make_message, reconstruction).data
    assert buffer.floats((6, 8, 5)).ctypes.data == values.ctypes.data
    assert buffer.floats((2, 3, 5)).shape == (2, 3, 5)


def test_cloud_is_read_by_sensor_msgs_py(reconstruction):
    """ROS' own reader, where it can be imported, finds the points and skips invalid ones."""
    point_cloud2 = pytest.importorskip('sensor_msgs_py.point_cloud2')
    reconstruction.points[2, 3] = np.nan
    cloud = point_cloud_message(make_message, reconstruction)
    points = point_cloud2.read_points(cloud).reshape(6, 8)
    assert points.dtype.names == ('x', 'y', 'z', 'rgb', 'confidence')
    np.testing.assert_array_equal(points['y'], reconstruction.points[..., 1])
    np.testing.assert_array_equal(points['confidence'], reconstruction.confidence)
    assert len(point_cloud2.read_points(cloud, skip_nans=True)) == 47


def test_image_and_infos_make_a_pair(reconstruction):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image = image_message(make_message, grey, 'mono8', 9, 'left_optical')
    assert isinstance(image.data, array)
    infos = [
        camera_info_message(make_message, CALIBRATION, 9, 'left_optical', right=right)
        for right in (False, True)
    ]
    pair = pair_from_messages(image, image, *infos)
    np.testing.assert_allclose(pair.left, grey / 255.0, atol=1e-6)
    assert pair.calibration == CALIBRATION
    assert pair.stamp_ns == 9


def test_status_values_are_text():
    status = diagnostic_status(WARN, 'node: input', 'why', {'rate [Hz]': 2.0, 'count': 3})
    assert [(value.key, value.value) for value in status.values] == [
        ('rate [Hz]', '2'),
        ('count', '3'),
    ]
    array_message = diagnostic_array(1_500_000_000, 'left', [status])
    assert array_message.header.stamp.nanosec == 500_000_000
    assert array_message.status[0].level == b'\x01'


def test_unknown_message_package():
    with pytest.raises(ModuleNotFoundError):
        message_class('no_such_msgs/msg/Thing')
