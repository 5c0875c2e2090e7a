import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from training.models.metric_scale import scale_from_baseline


@pytest.fixture
def calibration():
    return StereoCalibration(90.0, 91.0, 47.5, 31.5, 47.5, 0.2, 96, 64)


@pytest.fixture
def slope_disparity():
    rows = np.arange(64, dtype=np.float32)[:, None]
    return np.repeat(3.0 + 0.15 * rows, 96, axis=1).astype(np.float32)


def test_scale_of_a_relative_pointmap(calibration, slope_disparity):
    """The right view's points, divided by 3.7, a third of them wrong: the baseline gives 3.7."""
    depth_left = depth_from_disparity(slope_disparity, calibration)
    # The slope is constant along a row, so the right view has the left one's depths.
    right = points_from_depth(depth_left, calibration)
    right[..., 0] += calibration.baseline_m
    right /= 3.7
    right[::3, :, 0] += 5.0
    assert scale_from_baseline(right, calibration) == pytest.approx(3.7, rel=1e-4)


def test_scale_weighs_by_confidence(calibration, slope_disparity):
    right = points_from_depth(depth_from_disparity(slope_disparity, calibration), calibration)
    right[..., 0] += calibration.baseline_m
    right[:40, :, 0] += 1.0
    confidence = np.ones((64, 96))
    confidence[:40] = 0.01
    assert scale_from_baseline(right, calibration, confidence) == pytest.approx(1.0, rel=1e-4)


def test_exchanged_views_have_no_scale(calibration, slope_disparity):
    right = points_from_depth(depth_from_disparity(slope_disparity, calibration), calibration)
    right[..., 0] -= calibration.baseline_m
    with pytest.raises(InputError, match='exchanged'):
        scale_from_baseline(right, calibration)


def test_scale_of_nothing_is_an_error(calibration):
    with pytest.raises(InputError, match='no finite point'):
        scale_from_baseline(np.full((64, 96, 3), np.nan, np.float32), calibration)
