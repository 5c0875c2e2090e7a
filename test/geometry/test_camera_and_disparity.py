import dataclasses

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.disparity import (
    depth_from_disparity,
    disparity_from_columns,
    disparity_from_depth,
    fill_from_background,
)


def test_plane_at_five_metres(calibration):
    disparity = np.full((64, 96), 90.0 * 0.2 / 5.0, np.float32)
    depth = depth_from_disparity(disparity, calibration)
    points = points_from_depth(depth, calibration)
    assert depth.dtype == points.dtype == np.float32
    np.testing.assert_allclose(depth, 5.0, rtol=1e-6)
    np.testing.assert_allclose(points[0, 0], [5 * -47.5 / 90, 5 * -31.5 / 91, 5], rtol=1e-5)


def test_projection_undoes_back_projection(calibration, slope_disparity):
    points = points_from_depth(depth_from_disparity(slope_disparity, calibration), calibration)
    columns, rows = np.meshgrid(np.arange(96), np.arange(64))
    x, y, z = np.moveaxis(points, -1, 0)
    np.testing.assert_allclose(90.0 * x / z + 47.5, columns, atol=1e-3)
    np.testing.assert_allclose(91.0 * y / z + 31.5, rows, atol=1e-3)


def test_disparity_and_depth_are_inverses(calibration, slope_disparity):
    depth = depth_from_disparity(slope_disparity, calibration)
    np.testing.assert_allclose(
        disparity_from_depth(depth, calibration), slope_disparity, rtol=1e-5
    )


def test_no_depth_without_positive_disparity(calibration):
    disparity = np.full((64, 96), 4.0, np.float32)
    disparity[0, :3] = [np.nan, 0.0, -1.0]
    depth = depth_from_disparity(disparity, calibration)
    assert np.isnan(depth[0, :3]).all() and np.isfinite(depth[1:]).all()


def test_principal_point_offset_is_taken_from_columns(calibration):
    rig = dataclasses.replace(calibration, cx_right=calibration.cx - 3.0)
    columns = np.full((64, 96), 10.0, np.float32)
    np.testing.assert_allclose(disparity_from_columns(columns, rig), 7.0)


@pytest.mark.parametrize(
    'convert', [depth_from_disparity, disparity_from_depth, points_from_depth]
)
def test_wrong_size_is_refused(convert, calibration):
    with pytest.raises(InputError, match='96x64'):
        convert(np.ones((10, 10), np.float32), calibration)


def test_holes_are_filled_with_the_farther_neighbour():
    nan = np.nan
    disparity = np.array(
        [
            [nan, 5, nan, nan, 3, nan],
            [nan, nan, nan, nan, nan, nan],
            [0, nan, 7, -1, 9, 9],
        ],
        np.float32,
    )
    expected = np.array([[5, 5, 3, 3, 3, 3], [5, 5, 3, 3, 3, 3], [7, 7, 7, 7, 9, 9]], np.float32)
    np.testing.assert_array_equal(fill_from_background(disparity), expected)


def test_nothing_to_fill_from_stays_missing():
    assert np.isnan(fill_from_background(np.zeros((3, 4), np.float32))).all()
