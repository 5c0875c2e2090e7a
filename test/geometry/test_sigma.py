import math

import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.evaluation.scores import sigma_bins, sigma_counts
from lunar_stereo_recon.geometry.confidence import FEATURES
from lunar_stereo_recon.geometry.sigma import (
    depth_sigma,
    disparity_sigma,
    FILLED,
    fit_sigma,
    normal_like_sigma,
    SigmaCalibration,
    WITHIN_ONE,
    WITHIN_TWO,
)

FLAT = SigmaCalibration({}, 0.0, ((0.0, -1.0),))


def errors_by_texture(count, seed=0):
    """Return features, how far the fill moved, and errors that follow from both."""
    rng = np.random.default_rng(seed)
    features = np.zeros((len(FEATURES), count))
    features[FEATURES.index('deviation')] = rng.uniform(-2, 0, count)
    features[FEATURES.index('agreement')] = rng.uniform(0, 1, count)
    filled = np.where(rng.random(count) < 0.1, rng.uniform(0, 1, count), 0.0)
    log_sigma = -1 + 0.7 * features[FEATURES.index('deviation')] + 0.5 * np.log10(1 + 20 * filled)
    return features, filled, 10**log_sigma * rng.standard_normal(count)


def test_fitted_sigma_holds_in_every_bin():
    features, filled, error = errors_by_texture(40_000)
    calibration = fit_sigma(features, filled, error)
    other, filled_there, error_there = errors_by_texture(40_000, seed=1)
    sigma = disparity_sigma(other.astype(np.float32), filled_there, calibration)
    bins = sigma_bins(sigma_counts(sigma, np.abs(error_there)))
    assert len(bins) == 10
    for each in bins:
        assert each['within_one'] == pytest.approx(WITHIN_ONE, abs=0.04)
        assert each['within_two'] == pytest.approx(WITHIN_TWO, abs=0.04)
    assert bins[-1]['sigma_px'] > 10 * bins[0]['sigma_px']


def test_outliers_do_not_decide():
    features, filled, error = errors_by_texture(20_000)
    clean = fit_sigma(features, filled, error)
    error[::50] = 1e6
    spoilt = fit_sigma(features, filled, error)
    place = FEATURES.index('deviation')
    assert spoilt.weights[FEATURES[place]] == pytest.approx(
        clean.weights[FEATURES[place]], abs=0.1
    )
    assert np.isfinite([value for knot in spoilt.curve for value in knot]).all()


def test_gross_errors_have_a_sigma_of_their_own():
    features, filled, error = errors_by_texture(20_000)
    lost = features[FEATURES.index('agreement')] < 0.1
    features[FEATURES.index('outside'), lost] = 1
    error[lost] = 20 * np.random.default_rng(1).standard_normal(lost.sum())
    sigma = disparity_sigma(
        features.astype(np.float32), filled, fit_sigma(features, filled, error)
    )
    assert (np.abs(error[lost]) <= 2 * sigma[lost]).mean() == pytest.approx(WITHIN_TWO, abs=0.04)


def test_sigma_of_normal_errors_is_theirs():
    error = 0.3 * np.random.default_rng(0).standard_normal(20_000)
    assert normal_like_sigma(error) == pytest.approx(0.3, rel=0.05)


def test_heavy_tails_are_shared_between_one_and_two_sigma():
    error = np.random.default_rng(0).laplace(size=20_000)
    sigma = normal_like_sigma(error)
    one, two = ((np.abs(error) <= k * sigma).mean() for k in (1, 2))
    assert abs(one - WITHIN_ONE) < 0.04 and abs(two - WITHIN_TWO) < 0.04


def test_sigma_is_positive_whatever_the_features_say():
    features = np.zeros((len(FEATURES), 4), np.float32)
    features[0] = (np.nan, np.inf, -np.inf, 1e30)
    calibration = SigmaCalibration({FEATURES[0]: 1.0}, 0.0, ((-1.0, -2.0), (1.0, 1.0)))
    sigma = disparity_sigma(features, np.zeros(4, np.float32), calibration)
    assert (sigma > 0).all() and np.isfinite(sigma).all()
    assert sigma[0] == sigma.max()  # what says nothing is known to nothing


def test_what_was_filled_is_known_less():
    calibration = SigmaCalibration({FILLED: 1.0}, -1.0, ((-3.0, -3.0), (2.0, 2.0)))
    features = np.zeros((len(FEATURES), 3), np.float32)
    sigma = disparity_sigma(features, np.array([0, 0.05, np.nan], np.float32), calibration)
    np.testing.assert_allclose(sigma[:2], [0.1, 0.2], rtol=0.01)
    assert sigma[2] > 10


def test_depth_is_uncertain_by_the_square_of_it():
    camera = StereoCalibration(500.0, 500.0, 1.5, 0.5, 1.5, 0.2, 3, 1)
    depth = np.array([[1.0, 10.0, np.nan]], np.float32)
    sigma = depth_sigma(np.full((1, 3), 0.1, np.float32), depth, camera)
    np.testing.assert_allclose(sigma, [[0.001, 0.1, np.nan]], rtol=1e-5)


def test_metadata_round_trip_and_old_files():
    entry = {'weights': {}, 'bias': 0.0, 'sigma': FLAT.to_metadata()}
    assert SigmaCalibration.from_metadata(entry) == FLAT
    assert SigmaCalibration.from_metadata({'weights': {}, 'bias': 0.0}) is None
    assert SigmaCalibration.from_metadata(None) is None


@pytest.mark.parametrize(
    ('entry', 'text'),
    [
        ({'weights': {}, 'curve': [[0, 0]]}, 'needs weights, bias and curve'),
        ({'weights': {}, 'bias': 0.0}, 'empty'),
        (7, 'needs weights, bias and curve'),
        ({'weights': {'mood': 1}, 'bias': 0, 'curve': [[0, 0]]}, 'unknown features mood'),
        ({'weights': {}, 'bias': math.nan, 'curve': [[0, 0]]}, 'not finite'),
        ({'weights': {}, 'bias': 0, 'curve': []}, 'empty'),
        ({'weights': {}, 'bias': 0, 'curve': [[0, 0], [1, -1]]}, 'not ascending'),
        ({'weights': {}, 'bias': 0, 'curve': [[0, -40]]}, 'not within'),
    ],
)
def test_impossible_calibration_is_refused(entry, text):
    with pytest.raises(ModelError, match=text):
        SigmaCalibration.from_metadata({'sigma': entry})


def test_fit_refuses_what_is_not_finite():
    features, filled, error = errors_by_texture(100)
    error[3] = np.nan
    with pytest.raises(InputError, match='finite'):
        fit_sigma(features, filled, error)
    with pytest.raises(InputError, match='shape'):
        fit_sigma(features[:, :5], filled, error)
