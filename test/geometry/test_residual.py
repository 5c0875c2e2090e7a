import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import load_chooser
from lunar_stereo_recon.geometry import residual
from lunar_stereo_recon.geometry.residual import (
    CANDIDATES,
    candidates_around,
    EVIDENCE,
    evidence,
    noise_of,
    search_around,
)

HEIGHT, WIDTH = 120, 240
ROCK = (slice(50, 64), slice(120, 136))
ROCK_PX = 5.0


def match_around(left, right, prior):
    return residual.match_around(left, right, prior, load_chooser())


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


def test_a_rock_grows_by_less_than_half_a_pixel():
    left, right, _, ground = scene()
    taken = match_around(left, right, ground).taken
    around = np.zeros_like(taken)
    around[48:66, 118:138] = True
    around[ROCK] = False
    # Of two pixels all around, whose corners nobody can tell.
    assert taken[around].mean() < 0.25


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
    candidates = np.stack([ground, truth, ground, truth])
    planes = evidence(left, right, candidates, np.ones(ground.shape, bool))
    inner = (slice(54, 60), slice(125, 131))
    mean = {name: plane[inner].mean() for name, plane in zip(EVIDENCE, planes, strict=True)}
    assert mean['found_cost'] < mean['prior_cost'] - 0.3
    assert mean['nearer_cost'] == mean['found_cost']
    assert mean['found_step'] == pytest.approx(np.log(1 + ROCK_PX), abs=1e-4)
    assert mean['farther_step'] == 0 and mean['answered'] == mean['inside'] == 1
    assert np.isfinite(planes).all()


def test_candidates_lie_on_both_sides_of_a_border():
    left, right, truth, ground = scene()
    candidates, answered = candidates_around(left, right, truth)
    by_name = dict(zip(CANDIDATES, candidates, strict=True))
    beside = (57, ROCK[1].stop + 2)
    assert by_name['prior'][beside] == truth[beside]
    assert by_name['nearer'][beside] > ground[beside] + ROCK_PX - 1
    assert by_name['farther'][57, 122] < ground[57, 122] + 1
    assert answered.mean() > 0.5
    assert (by_name['found'][~answered] == by_name['prior'][~answered]).all()


@pytest.mark.parametrize('number', range(len(CANDIDATES)))
def test_the_preferred_candidate_is_taken_and_never_mixed(number, monkeypatch):
    monkeypatch.setattr(residual, 'settled_borders', lambda left, disparity, *_: disparity)
    left, right, _, ground = scene()
    candidates, _ = candidates_around(left, right, ground)

    def prefer(planes):
        preferences = np.zeros((len(CANDIDATES) + 1, *ground.shape), np.float32)
        preferences[number] = 1
        preferences[-1] = 0.25
        return preferences

    result = residual.match_around(left, right, ground, prefer)
    # What the right camera does not see keeps its prior, and so does what is the same answer.
    other = np.arange(WIDTH)[None, :] >= ground
    other &= np.abs(candidates[number] - ground) > residual.SAME_ANSWER_PX
    assert (other | ~result.taken).all()
    other = result.taken
    np.testing.assert_array_equal(result.disparity[other], candidates[number][other])
    np.testing.assert_array_equal(result.disparity[~other], ground[~other])
    assert (result.log_error_px == 0.25).all()
    assert result.taken.any() == (number > 0)


def test_borders_that_nothing_supports_are_settled():
    left, right, truth, _ = scene()
    shifted = np.roll(truth, -4, axis=1)

    def keep(planes):
        preferences = np.zeros((len(CANDIDATES) + 1, *truth.shape), np.float32)
        preferences[0] = 1
        return preferences

    result = residual.match_around(left, right, shifted, keep)
    wrong = np.abs(shifted - truth) > 2
    error = np.abs(result.disparity - truth)
    assert error[wrong].mean() < np.abs(shifted - truth)[wrong].mean()
    np.testing.assert_array_equal(
        result.taken, np.abs(result.disparity - shifted) > residual.SAME_ANSWER_PX
    )


def test_noise_is_measured():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0.2, 0.8, 200, dtype=np.float32)[None, :].repeat(200, 0)
    noisy = ramp + 0.02 * rng.standard_normal(ramp.shape).astype(np.float32)
    assert noise_of(noisy) == pytest.approx(0.02, rel=0.1)
    assert noise_of(ramp) == noise_of(np.zeros_like(ramp)) == pytest.approx(0.004)
