import json

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.evaluation.scores import expected_calibration_error
from lunar_stereo_recon.geometry.confidence import (
    blindness,
    calibrated_confidence,
    confidence_features,
    ConfidenceCalibration,
    DEFAULT_CALIBRATION,
    FEATURES,
    fit_confidence,
)
from lunar_stereo_recon.geometry.refine import refine_disparity, RefineOptions
from lunar_stereo_recon.geometry.residual import ResidualMatch


def scene_features(left, right, prior, belief=0.9):
    refinement = refine_disparity(left, right, prior, RefineOptions())
    return confidence_features(left, np.full_like(left, belief), prior, refinement, None)


def samples(count=20000, seed=0):
    """Random features and outcomes whose probability is logistic in two of them, then squared."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((len(FEATURES), count))
    logit = 1.5 * features[0] - 2.0 * features[3] + 1.0
    correct = rng.random(count) < (1 / (1 + np.exp(-logit))) ** 2
    return features, correct


def test_features_are_finite_where_everything_is_missing():
    black = np.zeros((32, 48), np.float32)
    missing = np.full((32, 48), np.nan, np.float32)
    refinement = refine_disparity(black, black, missing, RefineOptions())
    features = confidence_features(black, missing, missing, refinement, None)
    assert features.shape == (len(FEATURES), 32, 48)
    assert np.isfinite(features).all()
    assert calibrated_confidence(features, DEFAULT_CALIBRATION).max() < 0.01


def test_what_the_chooser_said_is_kept_within_bounds(slope_pair, slope_disparity):
    refinement = refine_disparity(
        slope_pair.left, slope_pair.right, slope_disparity, RefineOptions()
    )
    taken = np.zeros(slope_disparity.shape, bool)
    taken[:, :9] = True
    match = ResidualMatch(slope_disparity, taken, np.full(taken.shape, 7, np.float32))
    belief = np.full_like(slope_pair.left, 0.9)
    features = confidence_features(slope_pair.left, belief, slope_disparity, refinement, match)
    seen = dict(zip(FEATURES, features, strict=True))
    assert (seen['taken'] == taken).all()
    assert (seen['choice_error'] == 4).all()
    assert (seen['taken_logit'][taken] == seen['prior_logit'][taken]).all()
    assert (seen['taken_logit'][~taken] == 0).all()


def test_default_trusts_matched_texture_and_distrusts_black_and_white(slope_pair, slope_disparity):
    inner = (slice(16, -16), slice(20, -16))
    good = scene_features(slope_pair.left, slope_pair.right, slope_disparity)
    assert np.median(calibrated_confidence(good, DEFAULT_CALIBRATION)[inner]) > 0.8
    for level in (0.0, 1.0):
        flat = np.full_like(slope_disparity, level)
        confidence = calibrated_confidence(
            scene_features(flat, flat, slope_disparity, belief=0.99), DEFAULT_CALIBRATION
        )
        assert confidence.max() < 0.2


def test_fit_is_calibrated_on_unseen_samples():
    calibration = fit_confidence(*samples())
    features, correct = samples(seed=1)
    confidence = calibrated_confidence(features.astype(np.float32), calibration)
    assert expected_calibration_error(confidence, correct) < 0.02
    # It separates right from wrong: the surest tenth is nearly always right.
    order = np.argsort(confidence)
    assert correct[order[-2000:]].mean() > 0.95 > 0.1 > correct[order[:2000]].mean()


def test_fit_finds_the_features_that_matter():
    weights = fit_confidence(*samples()).weights
    others = [abs(weights[name]) for name in FEATURES if name not in ('prior_logit', 'shift')]
    assert weights['prior_logit'] > 1 and weights['shift'] < -1
    assert max(others) < 0.2


def test_curve_is_monotone():
    curve = np.array(fit_confidence(*samples()).curve)
    assert len(curve) > 5
    assert (np.diff(curve, axis=0) >= 0).all()


def test_constant_feature_gets_no_weight():
    features, correct = samples(2000)
    features[5] = 1.0
    assert fit_confidence(features, correct).weights['occluded'] == 0.0


def test_metadata_round_trip():
    calibration = fit_confidence(*samples(2000))
    text = json.dumps(calibration.to_metadata())
    assert ConfidenceCalibration.from_metadata(json.loads(text)) == calibration


@pytest.mark.parametrize(
    'entry, message',
    [
        ({'weights': {'prior_logit': 1.0}}, 'bias'),
        ({'weights': {'colour': 1.0}, 'bias': 0.0}, 'colour'),
        ({'weights': {'prior_logit': 'high'}, 'bias': 0.0}, 'weights'),
        ({'weights': {}, 'bias': float('nan')}, 'finite'),
        ({'weights': {}, 'bias': 0.0, 'curve': [[0.0, 0.5], [1.0, 0.2]]}, 'ascending'),
    ],
)
def test_broken_metadata_is_refused(entry, message):
    with pytest.raises(ModelError, match=message):
        ConfidenceCalibration.from_metadata(entry)


def test_fit_refuses_what_cannot_be_fitted():
    features, correct = samples(500)
    with pytest.raises(InputError, match='equally right'):
        fit_confidence(features, np.ones(500, bool))
    with pytest.raises(InputError, match='shape'):
        fit_confidence(features[:3], correct)
    features[0, 0] = np.nan
    with pytest.raises(InputError, match='finite'):
        fit_confidence(features, correct)


@pytest.mark.parametrize('name, value', [('outside', 1), ('dark', 1), ('saturated', 1)])
def test_blind_is_what_the_images_do_not_show(name, value):
    features = np.zeros((len(FEATURES), 1, 2), np.float32)
    features[FEATURES.index('deviation')] = -1.5  # texture: the offset is known to 0.03 px
    features[FEATURES.index(name), 0, 1] = value
    bright = np.full((1, 2), 0.5, np.float32)
    assert blindness(features, bright).tolist() == [[0.0, 1.0]]


def test_a_plain_surface_is_blind_in_the_dim_alone():
    features = np.zeros((len(FEATURES), 1, 3), np.float32)
    features[FEATURES.index('deviation')] = [[-1.0, 0.0, 1.0]]
    dim, bright = (np.full((1, 3), level, np.float32) for level in (0.08, 0.2))
    assert blindness(features, dim)[0].tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert blindness(features, bright).tolist() == [[0.0, 0.0, 0.0]]
