import cv2
import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.refine import (
    refine_disparity,
    RefineOptions,
    warp_right,
)
from lunar_stereo_recon.geometry.visibility import occluded_in_right, outside_right


def errors(disparity, truth, margin=16):
    """Absolute errors away from the border, where every pixel is seen by both cameras."""
    return np.abs(disparity - truth)[margin:-margin, margin:-margin]


def test_offset_prior_on_a_slope_is_brought_below_a_tenth_of_a_pixel(slope_pair, slope_disparity):
    for offset in (-0.6, 0.4):
        prior = slope_disparity + np.float32(offset)
        result = refine_disparity(slope_pair.left, slope_pair.right, prior, RefineOptions())
        assert np.median(errors(result.disparity, slope_disparity)) < 0.05
        assert (errors(result.disparity, slope_disparity) > 0.25).mean() < 0.02


def test_right_prior_stays_right(slope_pair, slope_disparity):
    result = refine_disparity(slope_pair.left, slope_pair.right, slope_disparity, RefineOptions())
    assert (errors(result.disparity, slope_disparity) > 0.1).mean() < 0.01


def test_one_dim_view_changes_nothing(slope_pair, slope_disparity):
    """Cameras with different exposure: gain and bias of one view are no motion."""
    dim = 0.7 * slope_pair.right + np.float32(0.05)
    prior = slope_disparity + np.float32(0.4)
    result = refine_disparity(slope_pair.left, dim, prior, RefineOptions())
    assert np.median(errors(result.disparity, slope_disparity)) < 0.05


def test_without_texture_the_prior_stays(slope_disparity):
    rng = np.random.default_rng(0)
    views = [
        (0.3 + 0.003 * rng.standard_normal(slope_disparity.shape)).astype(np.float32)
        for _ in range(2)
    ]
    result = refine_disparity(*views, slope_disparity, RefineOptions())
    drift = np.abs(result.disparity - slope_disparity)
    assert np.median(drift) < 0.1
    assert np.percentile(drift, 95) < 0.3
    assert np.median(result.deviation_px) > 0.3


def test_texture_tells_in_the_deviation_and_agreement(slope_pair, slope_disparity):
    result = refine_disparity(slope_pair.left, slope_pair.right, slope_disparity, RefineOptions())
    inner = (slice(16, -16), slice(16, -16))
    assert np.median(result.deviation_px[inner]) < 0.1
    assert np.median(result.agreement[inner]) > 0.9
    elsewhere = np.roll(slope_pair.right, 20, axis=0)
    wrong = refine_disparity(slope_pair.left, elsewhere, slope_disparity, RefineOptions())
    assert np.median(wrong.agreement[inner]) < 0.6


def test_missing_prior_stays_missing(slope_pair, slope_disparity):
    prior = slope_disparity.copy()
    prior[20:30, 40:60] = np.nan
    result = refine_disparity(slope_pair.left, slope_pair.right, prior, RefineOptions())
    assert np.isnan(result.disparity[20:30, 40:60]).all()
    assert np.isfinite(result.disparity[40:]).all()
    assert np.isfinite(result.agreement).all() and np.isfinite(result.deviation_px).all()


def test_scores_without_moving(slope_pair, slope_disparity):
    prior = slope_disparity + np.float32(0.4)
    result = refine_disparity(
        slope_pair.left, slope_pair.right, prior, RefineOptions(), move=False
    )
    np.testing.assert_array_equal(result.disparity, prior)
    assert not result.moved.any()


def test_black_views_do_not_crash(slope_disparity):
    black = np.zeros_like(slope_disparity)
    result = refine_disparity(black, black, slope_disparity, RefineOptions())
    np.testing.assert_allclose(result.disparity, slope_disparity)
    assert np.isfinite(result.agreement).all() and np.isfinite(result.deviation_px).all()


def test_block_hides_the_ground_to_its_left():
    """A block 10 px nearer hides the 10 columns of ground left of it from the right camera."""
    disparity = np.full((4, 80), 5.0, np.float32)
    disparity[:, 40:60] = 15.0
    hidden = occluded_in_right(disparity)
    expected = np.zeros((4, 80), bool)
    expected[:, 30:40] = True
    # The outermost hidden columns depend on rounding.
    np.testing.assert_array_equal(hidden[:, 31:39], expected[:, 31:39])
    assert not hidden[:, 41:].any() and not hidden[:, :29].any()


def test_slope_hides_nothing():
    rows, columns = np.mgrid[0:40, 0:60].astype(np.float32)
    assert not occluded_in_right(3 + 0.3 * rows + 0.1 * columns).any()


def test_missing_disparity_hides_nothing():
    assert not occluded_in_right(np.full((4, 80), np.nan, np.float32)).any()
    assert not outside_right(np.full((4, 80), np.nan, np.float32)).any()


def test_left_columns_map_outside():
    outside = outside_right(np.full((2, 20), 5.0, np.float32))
    np.testing.assert_array_equal(outside[0], np.arange(20) < 5)


def test_warp_by_whole_columns_is_a_shift():
    image = np.random.default_rng(0).random((8, 30)).astype(np.float32)
    warped = warp_right(image, np.full((8, 30), 4.0, np.float32))
    np.testing.assert_allclose(warped[:, 4:], image[:, :-4], atol=1e-6)


def test_noisy_prior_with_blobs_improves_in_every_measure(slope_pair, slope_disparity):
    rng = np.random.default_rng(1)
    rough = cv2.GaussianBlur(rng.standard_normal((64, 96)).astype(np.float32), (0, 0), 6)
    prior = slope_disparity + 0.5 * rough / rough.std()
    prior[24:34, 50:60] += 1.5
    result = refine_disparity(slope_pair.left, slope_pair.right, prior, RefineOptions())
    before, after = errors(prior, slope_disparity), errors(result.disparity, slope_disparity)
    assert after.mean() < 0.5 * before.mean()
    for limit in (0.5, 1.0, 2.0):
        assert (after > limit).mean() <= (before > limit).mean()


@pytest.mark.parametrize(
    'settings',
    [
        {'windows_px': (9,), 'offsets_px': (0.5, 0.2)},
        {'noise': 0.0},
        {'iterations': 0},
        {'windows_px': (), 'offsets_px': ()},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match='refinement'):
        RefineOptions(**settings)
