import json

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.residual import (
    disputed,
    EVIDENCE,
    evidence,
    match_around,
    noise_of,
    ResidualJudge,
    search_around,
    shipped_judge,
)

HEIGHT, WIDTH = 120, 240
ROCK = (slice(50, 64), slice(120, 136))
ROCK_PX = 5.0


def scene(rock_px=ROCK_PX, noise=0.004, contrast=0.25):
    """Return left, right, true disparity and that of the ground: a slope with a small rock."""
    rng = np.random.default_rng(0)
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    ground = np.repeat(12 + 0.1 * rows, WIDTH, axis=1).astype(np.float32)
    truth = ground.copy()
    truth[ROCK] += rock_px

    def texture():
        white = rng.standard_normal((HEIGHT, WIDTH)).astype(np.float32)
        return np.clip(0.5 + contrast * cv2.GaussianBlur(white, (0, 0), 1.0) * 2, 0, 1)

    far, rock = texture(), texture()
    columns = np.arange(WIDTH, dtype=np.float32)[None, :].repeat(HEIGHT, 0)
    grid = rows.repeat(WIDTH, 1)
    # The right view shows at column c what the left one shows at c + disparity.
    right = cv2.remap(far, columns + ground, grid, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    right_rock = columns + ground + rock_px
    on_rock = (right_rock >= ROCK[1].start) & (right_rock < ROCK[1].stop)
    on_rock &= (grid >= ROCK[0].start) & (grid < ROCK[0].stop)
    right = np.where(on_rock, cv2.remap(rock, right_rock, grid, cv2.INTER_CUBIC), right)
    left = far.copy()
    left[ROCK] = rock[ROCK]
    views = [
        np.clip(view + noise * rng.standard_normal(view.shape), 0, 1).astype(np.float32)
        for view in (left, right)
    ]
    return views[0], views[1], truth, ground


def test_a_rock_that_the_network_did_not_see_is_found():
    left, right, truth, ground = scene()
    result = match_around(left, right, ground)
    inner = (slice(53, 61), slice(124, 132))
    assert (np.abs(result.disparity - truth)[inner] < 0.5).mean() > 0.9
    assert result.taken[inner].mean() > 0.9


def test_a_rock_does_not_grow():
    left, right, _, ground = scene()
    taken = match_around(left, right, ground).taken
    around = np.zeros_like(taken)
    around[48:66, 118:138] = True
    around[ROCK] = False
    assert taken[around].mean() < 0.05


def test_ground_that_the_network_knows_keeps_its_disparity():
    left, right, truth, ground = scene(rock_px=0.0)
    result = match_around(left, right, ground)
    assert (np.abs(result.disparity - truth) > 0.5).mean() < 0.01


def test_a_prior_that_is_off_by_pixels_is_replaced():
    left, right, truth, ground = scene(rock_px=0.0)
    prior = ground.copy()
    prior[20:100, 60:200] += 4.0
    result = match_around(left, right, prior)
    assert (np.abs(result.disparity - truth)[30:90, 80:180] < 0.5).mean() > 0.9


def test_answers_do_not_gather_at_whole_pixels():
    rng = np.random.default_rng(2)
    texture = cv2.GaussianBlur(rng.standard_normal((80, 160)).astype(np.float32), (0, 0), 1.2)
    left = np.clip(0.5 + 0.4 * texture, 0, 1)
    errors = []
    for shift in np.arange(0.1, 1.0, 0.1):
        moved = np.array([[1, 0, -10 - shift], [0, 1, 0]], np.float32)
        right = cv2.warpAffine(left, moved, (160, 80), flags=cv2.INTER_CUBIC)
        found = search_around(left, right, np.full(left.shape, 10, np.float32))
        errors.append(np.nanmedian(found[10:-10, 40:-40]) - 10 - shift)
    # The parabola's own answers are off by 0.11 on average.
    assert np.abs(errors).mean() < 0.08


def test_noise_is_no_reason_to_leave_the_prior():
    rng = np.random.default_rng(1)
    views = [
        np.clip(0.2 + 0.01 * rng.standard_normal((HEIGHT, WIDTH)), 0, 1).astype(np.float32)
        for _ in range(2)
    ]
    prior = np.full((HEIGHT, WIDTH), 20.0, np.float32)
    assert match_around(*views, prior).taken.mean() < 0.02


def test_unknown_stays_unknown():
    left, right, _, ground = scene()
    prior = ground.copy()
    prior[:, :40] = np.nan
    result = match_around(left, right, prior)
    assert np.isnan(result.disparity[:, :40]).all()
    assert np.isfinite(result.disparity[:, 60:]).all()
    nothing = match_around(left, right, np.full_like(prior, np.nan))
    assert np.isnan(nothing.disparity).all() and not nothing.taken.any()


def test_found_disparities_lie_within_the_right_image():
    left, right, _, ground = scene()
    found = search_around(left, right, ground)
    columns = np.arange(WIDTH)[None, :].repeat(HEIGHT, 0)
    known = np.isfinite(found)
    assert known.mean() > 0.7
    assert (found[known] <= columns[known]).all() and (found[known] >= 0).all()


@pytest.mark.parametrize('shape', [(32, 40), (33, 47), (48, 16)])
def test_images_of_any_size(shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    assert match_around(image, image, np.zeros(shape, np.float32)).disparity.shape == shape


def test_evidence_speaks_for_the_better_answer():
    left, right, truth, ground = scene()
    pixels = np.ravel_multi_index((np.array([57]), np.array([128])), ground.shape)
    seen = dict(zip(EVIDENCE, evidence(left, right, ground, truth, pixels)[:, 0], strict=True))
    assert seen['gain'] > 0.1
    assert seen['found_cost'] < seen['prior_cost']
    assert seen['nearer'] == pytest.approx(NEARER := 4.0) and NEARER < ROCK_PX
    assert seen['distance'] == pytest.approx(np.log(ROCK_PX + 0.1), abs=1e-4)


def test_no_dispute_where_one_answer_is_missing():
    prior = np.array([[1.0, np.nan, 1.0, 1.0]], np.float32)
    found = np.array([[2.0, 2.0, np.nan, 1.1]], np.float32)
    assert disputed(prior, found).tolist() == [[True, False, False, False]]


def test_matching_is_not_asked_in_the_dark():
    left, right, _, ground = scene()
    assert match_around(left, right, ground).taken.any()
    assert not match_around(0.05 * left, 0.05 * right, ground).taken.any()


def test_noise_is_measured():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0.2, 0.8, 200, dtype=np.float32)[None, :].repeat(200, 0)
    noisy = ramp + 0.02 * rng.standard_normal(ramp.shape).astype(np.float32)
    assert noise_of(noisy) == pytest.approx(0.02, rel=0.1)
    assert noise_of(ramp) == noise_of(np.zeros_like(ramp)) == pytest.approx(0.004)


def test_judge_survives_its_file():
    judge = shipped_judge()
    again = ResidualJudge.from_json(judge.to_json())
    features = np.random.default_rng(0).random((len(EVIDENCE), 50)).astype(np.float32)
    np.testing.assert_array_equal(judge.log_odds(features), again.log_odds(features))


def test_judge_of_something_else_is_refused():
    entry = json.loads(shipped_judge().to_json())
    with pytest.raises(ModelError, match='evidence'):
        ResidualJudge.from_json(json.dumps(entry | {'evidence': ['taste']}))
    with pytest.raises(ModelError, match='needs'):
        ResidualJudge.from_json('{}')
    with pytest.raises(ModelError, match='weights'):
        ResidualJudge.from_json(json.dumps(entry | {'output': [1.0]}))
    with pytest.raises(ModelError, match='finite'):
        ResidualJudge.from_json(json.dumps(entry | {'bias': float('nan')}))
