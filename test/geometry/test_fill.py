"""Regions that nobody is sure of follow the ground around them."""

import numpy as np
import pytest

from lunar_stereo_recon.geometry.fill import follow_surroundings

HEIGHT, WIDTH = 120, 160


@pytest.fixture
def ground():
    """Return the disparity of a plane, (H, W)."""
    rows, columns = np.indices((HEIGHT, WIDTH), dtype=np.float32)
    return 4 + 0.3 * rows + 0.02 * columns


def doubt(region) -> np.ndarray:
    confidence = np.ones((HEIGHT, WIDTH), np.float32)
    confidence[region] = 0.02
    return confidence


SHADOW = (slice(70, 120), slice(90, 160))


def test_shadow_in_a_corner_is_the_plane_around_it(ground):
    wrong = ground.copy()
    wrong[SHADOW] = np.random.default_rng(0).uniform(0, 90, (50, 70))
    filled = follow_surroundings(wrong, doubt(SHADOW))
    inner = (slice(74, 120), slice(94, 160))
    assert np.abs(filled - ground)[inner].max() < 0.3
    outer = np.ones((HEIGHT, WIDTH), bool)
    outer[66:, 86:] = False
    np.testing.assert_array_equal(filled[outer], wrong[outer])


def test_ground_that_is_no_plane_is_carried_on(ground):
    ground += 2 * np.sin(np.indices((HEIGHT, WIDTH))[1] / 40).astype(np.float32)
    wrong = ground.copy()
    hole = (slice(40, 70), slice(60, 100))
    wrong[hole] = 0
    filled = follow_surroundings(wrong, doubt(hole))
    assert np.abs(filled - ground)[hole].max() < 1.0
    assert np.abs(filled - ground)[hole].mean() < 0.3


def test_rocks_do_not_tilt_the_plane(ground):
    rocky = ground.copy()
    rocky[20:50, 10:60] += 15
    wrong = rocky.copy()
    wrong[SHADOW] = 0
    filled = follow_surroundings(wrong, doubt(SHADOW))
    assert np.abs(filled - ground)[80:, 110:].mean() < 0.5


def test_half_a_doubt_goes_part_of_the_way(ground):
    wrong = ground.copy()
    wrong[SHADOW] += 5
    confidence = doubt(SHADOW)
    confidence[SHADOW] = 0.5  # too little to say anything, enough to be kept in part
    filled = follow_surroundings(wrong, confidence)
    assert (filled - ground)[90, 120] == pytest.approx(1.0, abs=0.3)
    assert (follow_surroundings(wrong, doubt(SHADOW)) - ground)[90, 120] < 0.3


def test_where_matching_was_blind_the_surroundings_count_more(ground):
    wrong = ground.copy()
    wrong[SHADOW] += 4
    fairly_sure = np.full((HEIGHT, WIDTH), 0.95, np.float32)
    blind = np.zeros((HEIGHT, WIDTH), np.float32)
    blind[SHADOW] = 1
    fairly_sure[SHADOW] = 0.8
    seen = follow_surroundings(wrong, fairly_sure) - ground
    dark = follow_surroundings(wrong, fairly_sure, dark=blind) - ground
    assert seen[90, 120] > 2.5
    assert dark[90, 120] < seen[90, 120] - 0.5
    # The dark is no doubt about what certainly is right; outside nothing is certain.
    certain = np.ones((HEIGHT, WIDTH), np.float32)
    assert (follow_surroundings(wrong, certain, dark=blind) - ground)[90, 120] == 4


def outside_strip() -> np.ndarray:
    outside = np.zeros((HEIGHT, WIDTH), np.float32)
    outside[:, :40] = 1
    return outside


def test_outside_of_the_right_view_even_ground_goes_on_and_what_stands_up_stays(ground):
    sure = np.ones((HEIGHT, WIDTH), np.float32)
    guessed = ground.copy()
    guessed[:60, :40] += 0.4  # about right; a quarter of it is left
    guessed[80:100, 10:30] += 4  # a rock
    guessed[80:100, 32:40] -= 4  # a hole that nobody has seen
    departure = follow_surroundings(guessed, sure, outside=outside_strip()) - ground
    np.testing.assert_allclose(departure[5:55, :35], 0.1, atol=0.02)
    np.testing.assert_allclose(departure[80:100, 10:30], 4, atol=0.01)
    np.testing.assert_allclose(departure[82:98, 33:39], -1, atol=0.15)  # a quarter is left
    np.testing.assert_array_equal(departure[:, 40:], 0)


def test_among_things_in_a_room_one_camera_is_believed(ground):
    sure = np.ones((HEIGHT, WIDTH), np.float32)
    room = ground.copy()
    for column in range(0, WIDTH, 40):
        room[:, column : column + 20] += 25
    guessed = room.copy()
    guessed[:, :40] -= 0.4
    filled = follow_surroundings(guessed, sure, outside=outside_strip())
    # Within a surface: cells of 8 pixels mix two of them.
    np.testing.assert_allclose((filled - room)[20:100, 6:12], -0.4, atol=0.1)


def test_sure_pixels_holes_and_hopeless_images_stay(ground):
    sure = np.ones((HEIGHT, WIDTH), np.float32)
    assert follow_surroundings(ground, sure) is ground
    np.testing.assert_array_equal(follow_surroundings(ground, 0.1 * sure), ground)
    holes = ground.copy()
    holes[SHADOW] = np.nan
    filled = follow_surroundings(holes, doubt(SHADOW))
    assert np.isnan(filled[74:, 94:]).all()
    np.testing.assert_array_equal(np.isnan(filled), np.isnan(holes))


def test_unsure_things_that_are_seen_keep_their_disparity(ground):
    pole = (slice(40, 100), slice(60, 66))
    ground[pole] += 12
    seen = np.zeros((HEIGHT, WIDTH), np.float32)
    kept = follow_surroundings(ground, doubt(pole), blind=seen)
    np.testing.assert_array_equal(kept, ground)
    flattened = follow_surroundings(ground, doubt(pole), blind=np.ones_like(seen))
    assert (ground - flattened)[pole].mean() > 6


def test_nothing_becomes_negative(ground):
    sky = (slice(0, 40), slice(None))
    filled = follow_surroundings(ground - 16, doubt(sky))
    assert filled[:30].min() >= 0
