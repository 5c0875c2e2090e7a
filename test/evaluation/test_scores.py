import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.scores import (
    ause,
    DETAILED_SUBSETS,
    expected_calibration_error,
    format_table,
    GroundTruth,
    load_ground_truth,
    score_pair,
    slope_errors,
    summarise,
)

FOCAL_TIMES_BASELINE = 40.0


@pytest.fixture
def truth() -> GroundTruth:
    """Eight pixels at 10 px (4 m): one sky, two in shadow, one outside the right frame."""
    disparity = np.full((2, 4), 10.0)
    disparity[0, 0] = np.nan
    valid = np.isfinite(disparity)
    shadow = np.zeros((2, 4), bool)
    shadow[1, :2] = True
    occlusion = np.zeros((2, 4), np.uint8)
    occlusion[1, 3] = 2
    return GroundTruth(disparity, FOCAL_TIMES_BASELINE / disparity, valid, shadow, occlusion)


def test_known_errors_give_known_figures(truth):
    disparity = np.array([[77.0, 10.3, 10.6, 11.5], [13.0, np.nan, 0.0, 10.0]])
    figures = summarise([score_pair(disparity, truth, FOCAL_TIMES_BASELINE)])['overall']
    everything = figures['all']
    assert everything['pixels'] == 7
    assert everything['density'] == pytest.approx(5 / 7, abs=1e-5)
    assert everything['epe_px'] == pytest.approx((0.3 + 0.6 + 1.5 + 3.0 + 0) / 5)
    assert everything['bad05'] == pytest.approx(3 / 5)
    assert everything['bad1'] == pytest.approx(2 / 5)
    assert everything['bad2'] == pytest.approx(1 / 5)
    assert everything['bad2_all'] == pytest.approx(3 / 7, abs=1e-5)
    assert everything['delta105'] == pytest.approx(2 / 5)
    assert everything['bad05_all'] == pytest.approx(5 / 7, abs=1e-5)
    assert everything['bad1_all'] == pytest.approx(4 / 7, abs=1e-5)
    relative = [abs(10 / d - 1) for d in (10.3, 10.6, 11.5, 13.0, 10.0)]
    assert everything['absrel'] == pytest.approx(np.mean(relative), abs=1e-5)
    assert figures['shadow']['density'] == pytest.approx(1 / 2)
    assert figures['shadow']['epe_px'] == pytest.approx(3.0)
    assert figures['noc']['pixels'] == 6
    assert figures['lit']['pixels'] == 5


def test_pairs_are_pooled_by_pixels_and_by_tag(truth):
    right = score_pair(np.full((2, 4), 10.0), truth, FOCAL_TIMES_BASELINE, tag='easy')
    wrong = score_pair(
        np.where(np.arange(8).reshape(2, 4) < 4, 20.0, np.nan),
        truth,
        FOCAL_TIMES_BASELINE,
        tag='hard',
        milliseconds=30.0,
    )
    summary = summarise([right, wrong])
    assert set(summary) == {'overall', 'easy', 'hard'}
    assert summary['easy']['all']['bad2'] == 0.0
    assert summary['hard']['all']['bad2'] == 1.0
    assert summary['overall']['all']['bad2'] == pytest.approx(3 / 10)
    assert summary['overall']['ms_median'] == 30.0
    table = format_table('both', summary)
    assert '| hard | all | 42.86 | 10.000 | 100.00 |' in table


def test_subsets_by_range_occlusion_and_given_mask(truth):
    disparity = np.full((2, 4), 10.0)
    disparity[1, 3] = 12.5
    given = {'first row': np.array([[True] * 4, [False] * 4])}
    score = score_pair(
        disparity, truth, FOCAL_TIMES_BASELINE, subsets=DETAILED_SUBSETS, masks=given
    )
    figures = summarise([score])['overall']
    assert figures['2-5 m']['pixels'] == 7  # all at 4 m
    assert figures['5-10 m']['pixels'] == figures['20-40 m']['pixels'] == 0
    assert figures['occluded']['pixels'] == 1 and figures['occluded']['epe_px'] == 2.5
    assert figures['first row']['pixels'] == 3 and figures['first row']['epe_px'] == 0.0


def plane_disparity(normal, calibration, distance_m=3.0):
    """Return the disparity of the plane normal . point = distance_m."""
    columns = (np.arange(calibration.width) - calibration.cx) / calibration.fx
    rows = (np.arange(calibration.height) - calibration.cy) / calibration.fy
    along = normal[0] * columns[None, :] + normal[1] * rows[:, None] + normal[2]
    return calibration.fx * calibration.baseline_m * along / distance_m


def test_slope_error_is_the_angle_between_planes():
    calibration = StereoCalibration(90.0, 95.0, 40.0, 30.0, 40.0, 0.2, 96, 64)
    tilt = np.radians(7.0)
    level = plane_disparity((0.0, 0.6, 0.8), calibration)
    # The same plane turned by 7 degrees about the camera's x axis.
    normal = (0, 0.6 * np.cos(tilt) + 0.8 * np.sin(tilt), 0.8 * np.cos(tilt) - 0.6 * np.sin(tilt))
    valid = level > 0
    depth = np.where(valid, 90 * 0.2 / np.where(valid, level, 1), np.nan)
    truth = GroundTruth(level, depth, valid, ~valid, np.zeros((64, 96), np.uint8))
    angles = slope_errors(plane_disparity(normal, calibration), truth, calibration)
    assert len(angles) == 6
    assert angles == pytest.approx(7.0, abs=1e-6)
    assert slope_errors(level, truth, calibration) == pytest.approx(0.0, abs=1e-5)
    half = level.copy()
    half[:, :48] = np.nan
    assert len(slope_errors(half, truth, calibration)) == 2
    score = score_pair(plane_disparity(normal, calibration), truth, 18.0, calibration=calibration)
    assert summarise([score])['overall']['slope_deg'] == pytest.approx(7.0, abs=1e-4)


def test_slope_needs_near_and_nearly_plane_ground():
    calibration = StereoCalibration(90.0, 95.0, 40.0, 30.0, 40.0, 0.2, 96, 64)
    far = np.full((64, 96), 1.5)  # 12 m
    edge = np.where(np.arange(96) % 16 < 8, 6.0, 9.0) * np.ones((64, 1))
    for disparity in (far, edge):
        valid = np.ones((64, 96), bool)
        truth = GroundTruth(disparity, 18 / disparity, valid, ~valid, np.zeros((64, 96), np.uint8))
        assert slope_errors(disparity, truth, calibration).size == 0


def test_other_size_is_refused(truth):
    with pytest.raises(InputError, match=r'\(3, 4\)'):
        score_pair(np.ones((3, 4)), truth, FOCAL_TIMES_BASELINE)


def test_ause_of_oracle_random_and_worst():
    error = np.random.default_rng(0).exponential(size=5000)
    assert ause(error, -error) == pytest.approx(0.0, abs=1e-9)
    assert ause(error, np.zeros(5000)) == pytest.approx(1.0, abs=0.05)
    assert ause(error, error) > 1.5
    assert ause(error, -error + np.random.default_rng(1).normal(size=5000)) < 0.8


def test_ause_needs_pixels_and_differences():
    assert ause(np.ones(50), np.ones(50)) is None
    assert ause(np.ones(500), np.ones(500)) is None


def test_calibration_error():
    confidence = np.repeat([0.25, 0.75], 400)
    correct = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.0)
    assert expected_calibration_error(np.full(100, 1.0), np.arange(100) < 60) == pytest.approx(0.4)


def test_calibration_error_is_pooled_over_pixels(truth):
    disparity = np.where(np.arange(8).reshape(2, 4) < 4, 10.0, 15.0)
    sure = np.full((2, 4), 0.9)
    split = np.where(disparity < 12, 1.0, 0.0)
    scores = [score_pair(disparity, truth, FOCAL_TIMES_BASELINE, c) for c in (sure, split)]
    # Three of seven pixels are right: 0.9 against 3/7 once, exactly right the other time.
    assert summarise(scores[:1])['overall']['ece'] == pytest.approx(0.9 - 3 / 7)
    assert summarise(scores[1:])['overall']['ece'] == pytest.approx(0.0)
    without = score_pair(disparity, truth, FOCAL_TIMES_BASELINE)
    assert summarise([without])['overall']['ece'] is None


def test_unsure_half_is_judged_apart():
    """Three of four pixels are sure and right; the rest is too modest, which ECE hides."""
    true = np.full((20, 40), 10.0)
    truth = GroundTruth(true, FOCAL_TIMES_BASELINE / true, np.isfinite(true))
    doubted = np.arange(40) >= 30
    disparity = np.where(doubted & (np.arange(20) < 2)[:, None], 12.5, true)
    confidence = np.where(doubted, 0.2, 1.0) * np.ones(true.shape)
    figures = summarise([score_pair(disparity, truth, FOCAL_TIMES_BASELINE, confidence)])
    overall = figures['overall']
    assert overall['ece'] == pytest.approx(0.25 * 0.7, abs=1e-6)
    assert overall['ece_below'] == pytest.approx(0.9 - 0.2, abs=1e-6)
    assert overall['ece_above'] == pytest.approx(0.0)
    calibration = overall['calibration']
    assert calibration['below'] == {'share': 0.25, 'said': 0.2, 'right': 0.9}
    assert calibration['above'] == {'share': 0.75, 'said': 1.0, 'right': 1.0}
    bins = calibration['equal_mass']
    assert len(bins) == 15 and {each['share'] for each in bins} == {round(1 / 15, 5)}
    assert bins[0]['said'] == pytest.approx(0.2) and bins[0]['right'] == pytest.approx(0.9)
    assert bins[-1]['said'] == 1.0 and bins[-1]['right'] == 1.0


def test_one_half_is_not_below(truth):
    confidence = np.where(np.arange(8).reshape(2, 4) < 4, 0.5, np.nextafter(0.5, 0))
    scores = [score_pair(truth.disparity, truth, FOCAL_TIMES_BASELINE, confidence)]
    calibration = summarise(scores)['overall']['calibration']
    assert calibration['above']['share'] == pytest.approx(3 / 7, abs=1e-5)


def test_flying_is_a_share_of_the_confident_points():
    true = np.full((20, 40), 10.0)
    true[:, 20:] = 20.0
    truth = GroundTruth(true, FOCAL_TIMES_BASELINE / true, np.isfinite(true))
    disparity = true.copy()
    disparity[:, 19] = 15.0
    confidence = np.ones(true.shape)
    confidence[:10, :] = 0.4
    confidence[10:15, 19] = 0.4
    every, confident = (
        summarise(
            [score_pair(disparity, truth, FOCAL_TIMES_BASELINE, c, subsets=DETAILED_SUBSETS)]
        )
        for c in (None, confidence)
    )
    assert every['overall']['all']['flying'] == pytest.approx(20 / 800)
    assert every['overall']['all']['confident'] == 1.0
    assert confident['overall']['all']['flying'] == pytest.approx(5 / 395, abs=1e-5)
    assert confident['overall']['all']['confident'] == pytest.approx(395 / 800, abs=1e-5)
    assert every['overall']['all']['flying_1px'] == every['overall']['all']['flying']
    # At the edge alone: six columns.
    assert confident['overall']['edges']['flying'] == pytest.approx(5 / 55, abs=1e-5)


def test_ground_truth_file_round_trip(tmp_path):
    valid = np.random.default_rng(0).random((6, 10)) > 0.5
    arrays = {
        'disparity': np.ones((6, 10), np.float32),
        'depth': np.ones((6, 10), np.float32),
        'occlusion': np.zeros((6, 10), np.uint8),
    }
    packed = {'valid': np.packbits(valid), 'shadow': np.packbits(~valid)}
    np.savez(tmp_path / 'gt.npz', **arrays, **packed)
    truth = load_ground_truth(tmp_path / 'gt.npz', 6, 10, 40.0)
    np.testing.assert_array_equal(truth.valid, valid)
    np.testing.assert_array_equal(truth.shadow, ~valid)
    with pytest.raises(InputError, match='shape'):
        load_ground_truth(tmp_path / 'gt.npz', 5, 12, 40.0)
    np.savez(tmp_path / 'half.npz', depth=arrays['depth'])
    with pytest.raises(InputError, match='half.npz: it has no array disparity'):
        load_ground_truth(tmp_path / 'half.npz', 6, 10, 40.0)
    np.savez(tmp_path / 'odd.npz', **arrays | {'occlusion': np.zeros((6, 9))})
    with pytest.raises(InputError, match=r'odd.npz has occlusion of shape \(6, 9\)'):
        load_ground_truth(tmp_path / 'odd.npz', 6, 10, 40.0)
    with pytest.raises(InputError, match='none.npz'):
        load_ground_truth(tmp_path / 'none.npz', 6, 10, 40.0)


def test_ground_truth_of_disparity_alone(tmp_path):
    disparity = np.full((6, 10), 8.0, np.float32)
    disparity[0, 0], disparity[1, 1] = np.nan, 0.0
    np.savez(tmp_path / 'gt.npz', disparity=disparity)
    truth = load_ground_truth(tmp_path / 'gt.npz', 6, 10, 40.0)
    assert truth.valid.sum() == 58 and truth.depth[2, 2] == 5.0
    # What is unknown is in no subset, rather than in all.
    for name in ('lit', 'shadow', 'rocks'):
        assert not truth.subset(name).any()


def test_dense_disparity_tells_what_the_right_camera_does_not_see(tmp_path):
    disparity = np.full((6, 40), 4.0, np.float32)
    disparity[:, 20:30] = 10.0
    np.savez(tmp_path / 'gt.npz', disparity=disparity)
    truth = load_ground_truth(tmp_path / 'gt.npz', 6, 40, 40.0)
    # Four columns are left of the right view; six of the ground, and one by the slack of the
    # check, are behind the near surface.
    hidden = np.zeros((6, 40), bool)
    hidden[:, [*range(4), *range(13, 20)]] = True
    np.testing.assert_array_equal(truth.subset('occluded'), hidden)
    np.testing.assert_array_equal(truth.subset('noc'), ~truth.subset('occluded'))
    disparity[:, ::3] = np.nan
    np.savez(tmp_path / 'sparse.npz', disparity=disparity)
    sparse = load_ground_truth(tmp_path / 'sparse.npz', 6, 40, 40.0)
    assert not sparse.subset('occluded').any() and not sparse.subset('noc').any()
