import dataclasses

import numpy as np
import pytest

from lunar_stereo_recon.backends.sgbm_backend import ClassicalBackend
from lunar_stereo_recon.datatypes import DisparityPrediction, Region, StereoPair
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.geometry.confidence import DEFAULT_CALIBRATION
from lunar_stereo_recon.geometry.pose_track import Pose
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor


class KnownDisparity:
    """A backend that answers with a given map, padded to the size it is asked for."""

    name = 'known'
    provider = 'test'
    provider_fallback = ''
    size_multiple = 32
    max_width_px = 640
    max_disparity_px = 64.0
    confidence_calibration = None
    metadata: dict = {}

    def __init__(self, disparity, confidence=0.95):
        self.disparity = disparity
        self.confidence = np.broadcast_to(np.float32(confidence), disparity.shape)

    def predict(self, left, right):
        pad = [(0, left.shape[0] - self.disparity.shape[0])]
        pad.append((0, left.shape[1] - self.disparity.shape[1]))
        maps = (np.pad(m, pad, mode='edge') for m in (self.disparity, self.confidence))
        return DisparityPrediction(*maps)


def reconstruct(backend, pair, **options):
    return StereoReconstructor(backend, ReconstructionOptions(**options)).reconstruct(pair)


def test_slope_becomes_metric(slope_pair, slope_disparity):
    # Off by 1.3 % of the depth, which refinement mends.
    result = reconstruct(KnownDisparity(slope_disparity + np.float32(0.1)), slope_pair)
    truth = 90.0 * 0.2 / slope_disparity
    inner = (slice(16, -16), slice(20, -16))
    assert result.valid_mask[inner].all()
    assert np.abs(result.depth / truth - 1)[inner].mean() < 0.005
    np.testing.assert_array_equal(result.points[..., 2], result.depth)
    assert result.confidence[inner].mean() > 0.8
    assert result.color.shape == (64, 96, 3)
    assert list(result.timings_ms) == [
        'preprocess',
        'rows',
        'inference',
        'match',
        'refine',
        'confidence',
        'fill',
        'geometry',
    ]
    for array in (result.disparity, result.depth, result.confidence, result.points):
        assert array.dtype == np.float32


def test_sigma_follows_from_the_model_and_is_given_where_depth_is(slope_pair, slope_disparity):
    backend = KnownDisparity(slope_disparity)
    assert reconstruct(backend, slope_pair).sigma_px is None
    backend.confidence_calibration = {
        **DEFAULT_CALIBRATION.to_metadata(),
        'sigma': {'weights': {}, 'bias': 0.0, 'curve': [[0.0, -1.0]]},
    }
    result = reconstruct(backend, slope_pair)
    valid = result.valid_mask
    assert 0 < valid.sum() and not np.isnan(result.sigma_px[valid]).any()
    assert np.isnan(result.sigma_px[~valid]).all() and np.isnan(result.depth_sigma_m[~valid]).all()
    np.testing.assert_allclose(result.sigma_px[valid], 0.1, rtol=5e-3)
    expected = result.sigma_px * result.depth**2 / (90.0 * 0.2)
    np.testing.assert_allclose(result.depth_sigma_m, expected, rtol=1e-4)
    assert result.depth_sigma_m.dtype == np.float32
    assert reconstruct(backend, slope_pair, sigma=False).depth_sigma_m is None


def test_refinement_can_be_switched_off(slope_pair, slope_disparity):
    prior = slope_disparity + np.float32(0.4)
    result = reconstruct(KnownDisparity(prior), slope_pair, refine=False, dense=True)
    np.testing.assert_allclose(result.disparity, prior, atol=1e-4)


def test_outside_of_the_region_nothing_is_valid(slope_pair, slope_disparity):
    backend = KnownDisparity(slope_disparity)
    whole = reconstruct(backend, slope_pair, align_rows=False)
    cut = reconstruct(backend, slope_pair, align_rows=False, region=Region(30, 20, 100, 24))
    assert cut.region == Region(30, 20, 66, 24)
    for name in ('disparity', 'depth', 'points'):
        inside = getattr(cut, name)[20:44, 30:]
        np.testing.assert_array_equal(inside, getattr(whole, name)[20:44, 30:])
    assert cut.valid_mask.sum() == whole.valid_mask[20:44, 30:].sum() > 0
    np.testing.assert_array_equal(cut.confidence, whole.confidence)
    with pytest.raises(InputError, match='outside of the image of 96x64'):
        reconstruct(backend, slope_pair, region=Region(96, 0, 4, 4))


def test_threshold_and_range_reject_and_dense_keeps(slope_pair, slope_disparity):
    backend = KnownDisparity(slope_disparity)
    everything = reconstruct(backend, slope_pair, dense=True)
    assert everything.valid_mask.all()
    near = reconstruct(backend, slope_pair, confidence_threshold=0.0, max_range_m=3.0)
    assert np.nanmax(near.depth) <= 3.0 and near.valid_mask.any()
    far = reconstruct(backend, slope_pair, confidence_threshold=0.0, min_range_m=3.0)
    assert np.nanmin(far.depth) >= 3.0 * (1 - 1e-6)
    doubtful = KnownDisparity(slope_disparity, confidence=0.001)
    assert not reconstruct(doubtful, slope_pair).valid_mask.any()
    # What was rejected is rejected everywhere, but its confidence is still told.
    rejected = ~near.valid_mask
    assert np.isnan(near.disparity[rejected]).all() and np.isnan(near.points[rejected]).all()
    assert np.isfinite(near.confidence).all()


def test_principal_points_that_differ(slope_pair, slope_disparity):
    """The same scene seen by a rig whose right principal point is 4.5 px further left."""
    rig = dataclasses.replace(
        slope_pair.calibration, cx_right=slope_pair.calibration.cx_right - 4.5
    )
    # The backend sees the views after their alignment by 4 whole columns: the slope as it is.
    backend = KnownDisparity(slope_disparity)
    pair = dataclasses.replace(
        slope_pair, right=np.roll(slope_pair.right, -4, axis=1), calibration=rig
    )
    result = reconstruct(backend, pair, dense=True)
    expected = slope_disparity - 0.5
    assert np.abs(result.disparity - expected)[16:-16, 24:-16].mean() < 0.03


def test_black_pair_is_not_believed(calibration, slope_disparity):
    black = np.zeros((64, 96), np.float32)
    pair = StereoPair(black, black, calibration)
    result = reconstruct(KnownDisparity(slope_disparity), pair)
    assert result.confidence.max() < 0.1
    assert not result.valid_mask.any()
    classical = reconstruct(ClassicalBackend('sgbm'), pair)
    assert classical.confidence.max() < 0.1 and not classical.valid_mask.any()


def test_stamp_frame_and_colour_are_kept(slope_pair, slope_disparity):
    color = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    pair = dataclasses.replace(slope_pair, stamp_ns=42, frame_id='left_optical', color=color)
    result = reconstruct(KnownDisparity(slope_disparity), pair)
    assert (result.stamp_ns, result.frame_id) == (42, 'left_optical')
    assert result.color is color and result.calibration is pair.calibration


@pytest.mark.parametrize(
    'options',
    [{'confidence_threshold': 1.5}, {'min_range_m': -1.0}, {'min_range_m': 5, 'max_range_m': 5}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError):
        ReconstructionOptions(**options)


def test_stored_calibration_is_used(slope_pair, slope_disparity):
    backend = KnownDisparity(slope_disparity)
    backend.confidence_calibration = {'weights': {}, 'bias': 0.0}
    np.testing.assert_allclose(reconstruct(backend, slope_pair).confidence, 0.5)
    backend.confidence_calibration = {'weights': {'taste': 1.0}, 'bias': 0.0}
    with pytest.raises(ModelError, match='taste'):
        StereoReconstructor(backend)


def test_the_frame_before_is_used_where_poses_are_known(slope_pair, slope_disparity):
    backend = KnownDisparity(slope_disparity)
    backend.confidence_calibration = {
        **DEFAULT_CALIBRATION.to_metadata(),
        'sigma': {'weights': {}, 'bias': 0.0, 'curve': [[0.0, -1.0]]},
    }
    here = Pose(np.eye(3), np.zeros(3))
    options = ReconstructionOptions(temporal=True, sigma=False, refine=False, dense=True)
    engine = StereoReconstructor(backend, options)

    def outcome(number, error, pose):
        backend.disparity = slope_disparity + np.float32(error)
        pair = dataclasses.replace(slope_pair, stamp_ns=number * 10**8)
        result = engine.reconstruct(pair, lambda: pose)
        assert result.sigma_px is None and 'temporal' in result.timings_ms
        return result.earlier_frame, np.median(result.disparity - slope_disparity)

    assert outcome(0, 0.1, here) == ('left out: there is none', pytest.approx(0.1, abs=1e-4))
    assert outcome(1, 0.0, None) == ('left out: no pose', pytest.approx(0.0, abs=1e-4))
    assert outcome(2, 0.0, here) == ('used', pytest.approx(0.05, abs=1e-3))
    away = Pose(np.eye(3), np.array([0.0, 0.0, 9.0]))
    reason, error = outcome(3, 0.0, away)
    assert 'the pose moved 9.00 m' in reason and error == pytest.approx(0.0, abs=1e-4)
    backend.confidence_calibration = None
    ignorant = StereoReconstructor(backend, options).reconstruct(slope_pair, lambda: here)
    assert ignorant.earlier_frame == 'left out: the model has no calibration of sigma'
    alone = StereoReconstructor(backend, ReconstructionOptions()).reconstruct(slope_pair)
    assert alone.earlier_frame == '' and 'temporal' not in alone.timings_ms
