"""StereoLunar folders, and correspondences of both kinds of pairs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

OpenEXR = pytest.importorskip('OpenEXR')
pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from training.data.batches import sample_matches  # noqa: E402
from training.data.stereolunar import (  # noqa: E402
    corresponding_pixels,
    fitted,
    list_view_pairs,
    read_view,
    StereoLunarPairs,
)
from training.recipe import DataRecipe  # noqa: E402

REAL = Path(__file__).resolve().parents[4] / 'shared' / 'data' / 'stereolunar'
SIZE, FOCAL, ALTITUDE_M = 48, 60.0, 1000.0
SHIFT_PX = 6


def write_view(stem: Path, image: np.ndarray, depth: np.ndarray, x_m: float) -> None:
    """Write a view that looks down from x_m, metres; selenocentric, so far from the origin."""
    cv2.imwrite(str(stem.with_suffix('.jpg')), image)
    header = {'compression': OpenEXR.ZIP_COMPRESSION, 'type': OpenEXR.scanlineimage}
    OpenEXR.File(header, {'Y': depth.astype(np.float32)}).write(str(stem.with_suffix('.exr')))
    centre = (SIZE - 1) / 2
    pose = np.eye(4)
    pose[:3, 3] = x_m, 0.0, 1.7e6
    np.savez(
        stem.with_suffix('.npz'),
        intrinsics=np.array([[FOCAL, 0, centre], [0, FOCAL, centre], [0, 0, 1]]),
        cam2world=pose,
    )


@pytest.fixture
def flight(tmp_path: Path) -> Path:
    """Return a folder of three nadir views of flat ground, each SHIFT_PX further to the right."""
    folder = tmp_path / 'nadir'
    folder.mkdir()
    noise = np.random.default_rng(0).standard_normal((SIZE, SIZE + 4 * SHIFT_PX))
    ground = np.clip(128 + 300 * cv2.GaussianBlur(noise, (0, 0), 2.0), 0, 255).astype(np.uint8)
    depth = np.full((SIZE, SIZE), ALTITUDE_M)
    for number in range(3):
        start = number * SHIFT_PX
        x_m = start * ALTITUDE_M / FOCAL
        write_view(folder / f'im_{number:05d}', ground[:, start : start + SIZE], depth, x_m)
    return folder


def recipe(folder: Path, **options) -> DataRecipe:
    defaults = {'crop_height': SIZE, 'crop_width': SIZE, 'photometric': False, 'matches': 64}
    return DataRecipe(kind='stereolunar', train=[str(folder)], **{**defaults, **options})


def test_pairs_are_neighbours_in_both_orders(flight):
    names = [(one.name[-1], two.name[-1]) for one, two in list_view_pairs([flight])]
    assert names == [('0', '1'), ('1', '0'), ('1', '2'), ('2', '1')]
    assert len(list_view_pairs([flight], max_distance=2)) == 6


def test_pointmaps_and_matches_follow_from_the_cameras(flight):
    data = StereoLunarPairs(recipe(flight), seed=0, batch_size=1)
    item = data.read((flight / 'im_00000', flight / 'im_00001'), np.random.default_rng(0))
    assert item['left'].shape == (SIZE, SIZE, 3)
    step_m = SHIFT_PX * ALTITUDE_M / FOCAL
    # Both pointmaps are in the left camera's frame: the right one lies a step further right.
    apart = (item['pointmap2'] - item['pointmap1']).reshape(-1, 3)
    np.testing.assert_allclose(apart, np.tile([step_m, 0, 0], (SIZE**2, 1)), atol=0.2)
    one, two = item['matches1'], item['matches2']
    assert item['matches_valid'].all()
    np.testing.assert_array_equal(one - two, np.tile([SHIFT_PX, 0], (64, 1)))
    grey = [item[view][..., 0] for view in ('left', 'right')]
    difference = grey[0][one[:, 1], one[:, 0]] - grey[1][two[:, 1], two[:, 0]]
    assert np.abs(difference).mean() < 0.03
    batch = data[0]
    assert batch['left'].shape == (1, 3, SIZE, SIZE)
    assert batch['valid1'].all() and batch['pointmap1'].shape == (1, SIZE, SIZE, 3)


def test_scaled_view_shows_the_same_points(flight):
    view = read_view(flight / 'im_00001')
    small = fitted(view, 16, 24)
    assert small.image.shape == (16, 24, 3)
    # Pixel (x, y) of the half-size image is centred between 2x and 2x + 1; 8 rows were cut.
    full = view.points
    expected = (full[2 * 4 + 8, 2 * 5] + full[2 * 4 + 9, 2 * 5 + 1]) / 2
    np.testing.assert_allclose(small.points[4, 5], expected, rtol=1e-6)


def test_filter_leaves_pairs_out_and_says_so(flight):
    data = StereoLunarPairs(recipe(flight, min_overlap=0.95), seed=0, batch_size=1)
    with pytest.raises(InputError, match='4 do not pass the filters'):
        data[0]
    assert not data.unreadable


@pytest.mark.parametrize(
    ('suffix', 'content', 'message'),
    [
        ('.npz', None, 'camera file'),
        ('.exr', b'no exr', 'not a readable EXR file'),
        ('.jpg', None, 'no image at'),
        ('.jpg', b'', '0 bytes are not PNG'),
    ],
)
def test_damaged_view_is_counted_and_named(flight, suffix, content, message):
    path = (flight / 'im_00002').with_suffix(suffix)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_view(flight / 'im_00002')
    options = recipe(flight, max_unreadable_fraction=0.5)
    data = StereoLunarPairs(options, seed=0, batch_size=4)
    assert data[0]['left'].shape[0] == 4
    assert len(data.unreadable) == 2  # the two pairs with that view
    options.max_unreadable_fraction = 0.1
    with pytest.raises(InputError, match='of 4 pairs cannot be read'):
        StereoLunarPairs(options, seed=0, batch_size=4)[0]


def test_folder_without_views_is_an_error(tmp_path):
    with pytest.raises(InputError, match='0 views'):
        list_view_pairs([tmp_path])


def test_matches_of_rendered_pairs_follow_the_disparity():
    disparity = np.full((4, 10), 3.0, np.float32)
    disparity[0] = np.nan
    occlusion = np.zeros((4, 10), np.uint8)
    occlusion[1] = 1
    matches = sample_matches(disparity, occlusion, 32, np.random.default_rng(0))
    valid = matches['matches_valid']
    assert valid.sum() == 2 * 7  # two rows, seven columns whose match is inside
    one, two = matches['matches1'][valid], matches['matches2'][valid]
    np.testing.assert_array_equal(one - two, np.tile([3, 0], (14, 1)))
    assert set(one[:, 1]) == {2, 3}


@pytest.mark.skipif(not REAL.is_dir(), reason=f'no samples at {REAL}')
def test_samples_of_the_data_set_agree_between_views():
    stems = [REAL / 'nadir' / f'im_{number:05d}' for number in (594, 595)]
    left, right = (fitted(read_view(stem), 96, 96) for stem in stems)
    seen, pixels = corresponding_pixels(left, right)
    assert seen.mean() > 0.85
    grey = left.image.mean(-1), right.image.mean(-1)
    there = grey[1][pixels[..., 1], pixels[..., 0]]
    assert np.corrcoef(grey[0][seen], there[seen])[0, 1] > 0.95
