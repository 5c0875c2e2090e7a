"""Forms of the cloud: thinned, cut, without padding, in voxels, moved."""

import dataclasses
import struct

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.bags.writer import make_message
from lunar_stereo_recon.datatypes import Reconstruction, Region, StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.results import write_pcd
from lunar_stereo_recon.result_messages import (
    CloudForm,
    compressed_depth_message,
    confidence_view_message,
    depth_sigma_message,
    disparity_message,
    moved_points,
    point_cloud_message,
)

WIDTH, HEIGHT = 12, 8
CALIBRATION = StereoCalibration(10.0, 10.0, 5.5, 3.5, 5.5, 0.3, WIDTH, HEIGHT)


@pytest.fixture
def reconstruction():
    rng = np.random.default_rng(4)
    depth = rng.uniform(1, 5, (HEIGHT, WIDTH)).astype(np.float32)
    depth[2, 3:6] = np.nan
    points = rng.uniform(-1, 1, (HEIGHT, WIDTH, 3)).astype(np.float32)
    points[..., 2] = depth
    points[np.isnan(depth)] = np.nan
    return Reconstruction(
        disparity=3 / depth,
        depth=depth,
        confidence=rng.uniform(0, 1, (HEIGHT, WIDTH)).astype(np.float32),
        points=points,
        color=rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        calibration=CALIBRATION,
        frame_id='left_optical',
    )


def values_of(cloud):
    return cloud.data.view('<f4').reshape(cloud.height, cloud.width, -1)


def colors_of(values):
    """Return (..., 3) uint8 RGB of the field rgb, 0x00RRGGBB."""
    packed = np.ascontiguousarray(values[..., 3]).view('<u4')
    return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1)


def test_organized_cloud_has_a_point_a_pixel(reconstruction):
    cloud = point_cloud_message(make_message, reconstruction)
    values = values_of(cloud)
    assert (cloud.height, cloud.width, cloud.point_step, cloud.is_dense) == (8, 12, 20, False)
    np.testing.assert_array_equal(values[..., :3], reconstruction.points)
    np.testing.assert_array_equal(colors_of(values), reconstruction.color)
    np.testing.assert_array_equal(values[..., 4], reconstruction.confidence)


def test_cloud_without_color_is_smaller(reconstruction):
    cloud = point_cloud_message(make_message, reconstruction, CloudForm(color=False))
    assert [field.name for field in cloud.fields] == ['x', 'y', 'z', 'confidence']
    assert [field.offset for field in cloud.fields] == [0, 4, 8, 12]
    assert cloud.point_step == 16
    np.testing.assert_array_equal(values_of(cloud)[..., :3], reconstruction.points)
    np.testing.assert_array_equal(values_of(cloud)[..., 3], reconstruction.confidence)


@pytest.mark.parametrize('color', [True, False])
def test_cloud_with_sigma_has_it_last(reconstruction, color):
    sigma = 0.01 * reconstruction.depth**2
    known = dataclasses.replace(reconstruction, depth_sigma_m=sigma)
    form = CloudForm(color=color, sigma=True)
    cloud = point_cloud_message(make_message, known, form)
    assert cloud.fields[-1].name == 'sigma' and cloud.fields[-1].offset == cloud.point_step - 4
    np.testing.assert_array_equal(values_of(cloud)[..., -1], sigma)
    np.testing.assert_array_equal(values_of(cloud)[..., -2], known.confidence)
    # The fields stay where the model has no sigma: nothing is known of any point.
    unknown = point_cloud_message(make_message, reconstruction, form)
    assert unknown.point_step == cloud.point_step
    assert np.isnan(values_of(unknown)[..., -1]).all()


def test_sigma_is_thinned_with_the_cloud(reconstruction):
    known = dataclasses.replace(reconstruction, depth_sigma_m=0.01 * reconstruction.depth)
    cloud = point_cloud_message(make_message, known, CloudForm(decimation=2, sigma=True))
    np.testing.assert_array_equal(values_of(cloud)[..., -1], known.depth_sigma_m[::2, ::2])


def test_image_of_sigma_is_metric_and_refused_where_there_is_none(reconstruction):
    known = dataclasses.replace(reconstruction, depth_sigma_m=0.01 * reconstruction.depth)
    message = depth_sigma_message(make_message, known)
    assert message.encoding == '32FC1'
    values = message.data.view('<f4').reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(values, known.depth_sigma_m)
    with pytest.raises(InputError, match='no calibration'):
        depth_sigma_message(make_message, reconstruction)


def test_cloud_that_is_not_organized_holds_the_valid_points_alone(reconstruction):
    cloud = point_cloud_message(make_message, reconstruction, CloudForm(organized=False))
    assert (cloud.height, cloud.width) == (1, WIDTH * HEIGHT - 3)
    assert cloud.is_dense
    assert cloud.row_step == len(cloud.data) == 20 * cloud.width
    valid = reconstruction.valid_mask
    np.testing.assert_array_equal(values_of(cloud)[0, :, :3], reconstruction.points[valid])
    np.testing.assert_array_equal(colors_of(values_of(cloud))[0], reconstruction.color[valid])


@pytest.mark.parametrize('voxel_m', [0.0, 0.5])
def test_cloud_without_a_point_is_empty(reconstruction, voxel_m):
    nothing = np.full_like(reconstruction.points, np.nan)
    empty = dataclasses.replace(reconstruction, points=nothing)
    form = CloudForm(organized=False, voxel_m=voxel_m)
    cloud = point_cloud_message(make_message, empty, form)
    assert (cloud.height, cloud.width, len(cloud.data)) == (1, 0, 0)


def test_region_and_decimation_cut_the_cloud(reconstruction):
    cut = dataclasses.replace(reconstruction, region=Region(2, 1, 7, 5))
    cloud = point_cloud_message(make_message, cut, CloudForm(decimation=2))
    assert (cloud.height, cloud.width) == (3, 4)
    np.testing.assert_array_equal(values_of(cloud)[..., :3], reconstruction.points[1:6:2, 2:9:2])
    disparity = disparity_message(make_message, cut)
    window = disparity.valid_window
    assert (window.x_offset, window.y_offset, window.width, window.height) == (2, 1, 7, 5)
    assert (disparity.f, disparity.t) == (10.0, pytest.approx(0.3))
    whole = disparity_message(make_message, reconstruction).valid_window
    assert (whole.x_offset, whole.y_offset, whole.width, whole.height) == (0, 0, 12, 8)


def test_region_is_cut_at_the_border_and_must_meet_the_image():
    assert Region(600, 400, 100, 100).within(640, 480) == Region(600, 400, 40, 80)
    with pytest.raises(InputError, match=r'10x10 at \(640, 0\) lies outside of the image of 640x'):
        Region(640, 0, 10, 10).within(640, 480)
    with pytest.raises(InputError, match='region is 0x10'):
        Region(0, 0, 0, 10)


def test_voxel_cloud_has_mean_colors_and_fewer_points(reconstruction):
    wide = CloudForm(voxel_m=10.0)
    # All points lie within one octant of the voxels at the origin, or its neighbours.
    near = dataclasses.replace(reconstruction, points=np.abs(reconstruction.points))
    cloud = point_cloud_message(make_message, near, wide)
    valid = near.valid_mask
    assert (cloud.height, cloud.width, cloud.is_dense) == (1, 1, True)
    (value,) = values_of(cloud)[0]
    np.testing.assert_allclose(value[:3], near.points[valid].mean(axis=0), rtol=1e-5)
    assert value[4] == pytest.approx(near.confidence[valid].mean(), rel=1e-5)
    np.testing.assert_allclose(
        colors_of(values_of(cloud))[0, 0], near.color[valid].mean(axis=0), atol=0.51
    )
    grey = point_cloud_message(make_message, near, CloudForm(voxel_m=10.0, color=False))
    np.testing.assert_allclose(values_of(grey)[0, 0], np.r_[value[:3], value[4]], rtol=1e-6)


def test_moved_points_are_in_the_other_frame(reconstruction):
    # Optical axes in a body frame: x is the optical z, y is -x, z is -y.
    rotation = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    moved = moved_points(reconstruction, rotation, np.array([0.5, 0.0, 1.2]), 'base_link')
    x, y, z = np.moveaxis(reconstruction.points, -1, 0)
    np.testing.assert_allclose(moved.points[..., 0], z + 0.5, rtol=1e-6)
    np.testing.assert_allclose(moved.points[..., 1], -x, rtol=1e-6)
    np.testing.assert_allclose(moved.points[..., 2], -y + 1.2, rtol=1e-5, atol=1e-6)
    assert point_cloud_message(make_message, moved).header.frame_id == 'base_link'
    assert np.isnan(moved.points[2, 3]).any()


def decompressed(message):
    """Return what image_transport's plugin `compressedDepth` makes of a message."""
    assert message.format == '32FC1; compressedDepth png'
    kind, a, b = struct.unpack('<iff', message.data[:12].tobytes())
    assert kind == 0
    values = cv2.imdecode(message.data[12:], cv2.IMREAD_UNCHANGED)
    assert values.dtype == np.uint16
    with np.errstate(divide='ignore'):
        depth = np.float32(a) / (values.astype(np.float32) - np.float32(b))
    return np.where(values > 0, depth, np.nan)


@pytest.mark.parametrize('nearest_m', [1.0, 0.001])
def test_compressed_depth_is_as_exact_as_it_says(reconstruction, nearest_m):
    depth = reconstruction.depth.copy()
    depth[0, 0], depth[0, 1] = 30.0, nearest_m  # 0.1 px, and 3 or 3,000 px
    message = compressed_depth_message(
        make_message, dataclasses.replace(reconstruction, depth=depth, stamp_ns=7)
    )
    assert message.header.stamp.nanosec == 7 and message.header.frame_id == 'left_optical'
    found = decompressed(message)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(depth))
    known = np.isfinite(depth)
    disparity = CALIBRATION.fx * CALIBRATION.baseline_m / depth[known]
    error = np.abs(CALIBRATION.fx * CALIBRATION.baseline_m / found[known] - disparity)
    assert error.max() <= max(1 / 128, disparity.max() / 131070) * 1.001


def test_compressed_depth_without_a_point(reconstruction):
    nothing = dataclasses.replace(reconstruction, depth=np.full_like(reconstruction.depth, np.nan))
    assert np.isnan(decompressed(compressed_depth_message(make_message, nothing))).all()


def test_confidence_view_is_for_eyes(reconstruction):
    reconstruction.confidence[0, :3] = 0.0, 0.5, 1.0
    view = confidence_view_message(make_message, reconstruction)
    assert view.encoding == 'mono8'
    np.testing.assert_array_equal(view.data[:3], [0, 128, 255])


def test_pcd_file_holds_the_valid_points(reconstruction, tmp_path):
    path = tmp_path / 'cloud.pcd'
    assert write_pcd(path, reconstruction) == WIDTH * HEIGHT - 3
    header, _, data = path.read_bytes().partition(b'DATA binary\n')
    fields = dict(line.split(' ', 1) for line in header.decode().splitlines()[1:])
    assert (fields['FIELDS'], fields['SIZE']) == ('x y z rgb confidence', '4 4 4 4 4')
    assert fields['WIDTH'] == fields['POINTS'] == str(WIDTH * HEIGHT - 3)
    values = np.frombuffer(data, '<f4').reshape(-1, 5)
    valid = reconstruction.valid_mask
    np.testing.assert_array_equal(values[:, :3], reconstruction.points[valid])
    np.testing.assert_array_equal(colors_of(values), reconstruction.color[valid])
    np.testing.assert_array_equal(values[:, 4], reconstruction.confidence[valid])
