"""What training does to pairs on their way into a batch."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('torch')

from training.data.batches import (  # noqa: E402
    compressed,
    dust_shadow,
    LUNAR_FLIPS,
    misalign_rows,
    PairsOnTheFly,
    RenderedPairs,
    stack,
    vary_light,
)
from training.recipe import DataRecipe  # noqa: E402


@pytest.fixture
def image() -> np.ndarray:
    rows, columns = np.mgrid[:96, :128]
    return (0.5 + 0.3 * np.sin(rows / 5.0) * np.cos(columns / 7.0)).astype(np.float32)


def sample(image: np.ndarray, **more) -> dict[str, np.ndarray]:
    return {'left': image, 'right': image, 'disparity': image, **more}


def test_rows_move_down_by_the_offset_and_roll_about_the_centre(image):
    moved = misalign_rows(image, 1.0, 0.0)
    np.testing.assert_allclose(moved[1:], image[:-1], atol=1e-5)
    ramp = np.repeat(np.arange(96, dtype=np.float32)[:, None], 128, axis=1)
    rolled = misalign_rows(ramp, 0.0, 0.5)
    left, right = rolled[48, 13], rolled[48, 114]
    assert abs(left - right) == pytest.approx(101 * np.tan(np.radians(0.5)), abs=0.05)
    assert rolled[48, 63] == pytest.approx(48, abs=0.05)


def test_light_is_varied_within_range_and_repeats_with_the_seed(image):
    changed = 0
    for seed in range(40):
        left, right = vary_light(image, image, np.random.default_rng(seed))
        again = vary_light(image, image, np.random.default_rng(seed))
        np.testing.assert_array_equal(left, again[0])
        np.testing.assert_array_equal(right, again[1])
        assert left.dtype == np.float32
        assert left.min() >= 0
        assert left.max() <= 1
        changed += not np.allclose(left, right, atol=0.02)
    # The two cameras are never quite alike.
    assert changed > 20


def test_dust_darkens_and_jpeg_loses_little(image):
    light = dust_shadow(image.shape, np.random.default_rng(3))
    assert light.shape == image.shape
    assert 0 < light.min() < 0.95
    assert light.max() <= 1
    error = np.abs(compressed(image, 40) - image)
    assert 0 < error.mean() < 0.02


def test_a_batch_has_intrinsics_only_where_every_pair_has_them(image):
    intrinsics = np.eye(3, dtype=np.float32)
    mixed = stack([sample(image, intrinsics=intrinsics), sample(image)])
    assert 'intrinsics' not in mixed
    whole = stack([sample(image, intrinsics=intrinsics)] * 2)
    assert whole['intrinsics'].shape == (2, 3, 3)


def test_pairs_are_scaled_within_the_recipes_bounds_as_far_as_the_crop_fits(tmp_path):
    flat = np.full((96, 128), 10, np.float32)
    grey, none = np.full(flat.shape, 90, np.uint8), np.zeros(flat.shape, np.uint8)
    path = tmp_path / '0.npz'
    np.savez(path, left=grey, right=grey, disparity=flat, shadow=none > 0, occlusion=none)

    def disparities(**changes):
        recipe = DataRecipe(train=[str(tmp_path)], zoomed_share=1.0, crop_width=64, **changes)
        pairs = RenderedPairs(recipe, 0, 1)
        return [pairs.item(number)['disparity'].mean() for number in range(40)]

    scaled = disparities(crop_height=32, least_zoom=0.6, most_zoom=1.2)
    assert 6 <= min(scaled) < 6.5 and 11.4 < max(scaled) <= 12
    # Half the height is needed, and more.
    fitting = disparities(crop_height=64, least_zoom=0.2, most_zoom=1.0)
    assert 6.6 < min(fitting) < 7.2 and max(fitting) <= 10
    assert set(disparities(crop_height=96, least_zoom=0.2, most_zoom=0.9)) == {10.0}


def test_a_label_of_which_one_view_is_known_is_not_mirrored(image, tmp_path):
    disparity = np.full(image.shape, 3.0, np.float32)
    labelled = sample(image, disparity_right=disparity, confidence=disparity / 4)
    np.savez(tmp_path / '0.npz', left=np.zeros((2, 2), np.uint8))  # listed, never read
    recipe = DataRecipe(train=[str(tmp_path)], mirrored_share=1.0)
    turned = RenderedPairs(recipe, 0, 1)._turned(labelled, np.random.default_rng(0))
    np.testing.assert_array_equal(turned['left'], labelled['left'])


def test_replayed_pairs_are_those_that_were_there_at_the_start(tmp_path):
    new, old = tmp_path / 'new', tmp_path / 'old'
    for folder, count in ((new, 2), (old, 3)):
        folder.mkdir()
        for number in range(count):
            np.savez(folder / f'{number}.npz', left=np.zeros((2, 2), np.uint8))
    data = RenderedPairs(DataRecipe(train=[str(new)], replay=[str(old)], replay_share=0.5), 0, 2)
    (new / '9.npz').write_bytes((new / '0.npz').read_bytes())  # a writer is still at work
    assert [data._source(number)[:2] for number in range(2)] == [(0, 2), (2, 3)]


def test_rendered_ground_is_seldom_upside_down_on_the_fly_too(image):
    recipe = DataRecipe(kind='on_the_fly', flipped_share=1.0)
    lunar = sample(image, disparity_right=image)
    rng = np.random.default_rng(0)
    pairs = PairsOnTheFly(recipe, 0, 1)
    turned = [pairs._turned(lunar, rng)['left'] is not lunar['left'] for _ in range(200)]
    assert np.mean(turned) == pytest.approx(LUNAR_FLIPS, abs=0.1)
