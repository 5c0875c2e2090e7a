"""Warped textures and planes: what the disparities say is what the images show."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

pytest.importorskip('torch')

from training.cli import main  # noqa: E402
from training.data.batches import read_sample  # noqa: E402
from training.data.texture_pairs import plane_pair, right_disparity, texture_pair  # noqa: E402


def warped(view: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the view sampled at x + shift (H, W)."""
    height, width = shift.shape
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    return cv2.remap(view, columns + shift, rows, cv2.INTER_CUBIC).astype(float)


@pytest.mark.parametrize('make', [texture_pair, plane_pair])
@pytest.mark.parametrize('size', [(384, 256), (96, 64)])
def test_each_view_warped_by_the_disparity_is_the_other(
    make: Callable[..., dict], size: tuple[int, int]
):
    pair = make(9, 0, *size)
    assert pair['left'].shape == pair['disparity'].shape == size[::-1]
    apart = np.abs(pair['right'].astype(float) - pair['left']).mean()
    seen = pair['occlusion'] == 0
    difference = np.abs(warped(pair['right'], -pair['disparity']) - pair['left'])[seen]
    assert np.median(difference) < min(3, 0.25 * apart)
    columns = np.arange(size[0])
    known = np.isfinite(pair['disparity_right'])
    inside = known & (columns + np.nan_to_num(pair['disparity_right']) < size[0] - 1)
    shift = np.nan_to_num(pair['disparity_right']).astype(np.float32)
    difference = np.abs(warped(pair['left'], shift) - pair['right'])[inside]
    assert inside.mean() > 0.5
    assert np.median(difference) < min(3, 0.25 * apart)


def test_intrinsics_of_a_plane_make_it_flat():
    pair = plane_pair(3, 1, 96, 64)
    focal, centre = pair['intrinsics'][0, 0], pair['intrinsics'][:2, 2]
    depth = 1 / pair['disparity']
    rows, columns = np.indices(depth.shape)
    points = [(columns - centre[0]) / focal * depth, (rows - centre[1]) / focal * depth, depth]
    matrix = np.stack([*(axis.ravel() for axis in points)], axis=1)
    normal = np.linalg.lstsq(matrix, np.ones(len(matrix)), rcond=None)[0]
    np.testing.assert_allclose(matrix @ normal, 1, atol=1e-3)


def test_right_disparity_keeps_the_nearest_and_knows_holes():
    disparity = np.full((1, 12), 1.0, np.float32)
    disparity[:, 6:9] = 4.0  # lands on columns 2 to 4, which the background leaves hidden
    found = right_disparity(disparity)[0]
    np.testing.assert_allclose(found[[0, 1, 9, 10]], 1.0)
    np.testing.assert_allclose(found[2:5], 4.0)
    assert np.isnan(found[11])


def test_the_same_number_is_the_same_pair():
    first, again, other = texture_pair(9, 1), texture_pair(9, 1), texture_pair(9, 2)
    np.testing.assert_array_equal(first['left'], again['left'])
    assert (first['left'] != other['left']).any()


def test_command_writes_what_is_missing(tmp_path):
    command = ['texture-pairs', '--planes', '--out', str(tmp_path), '--width', '64']
    command += ['--height', '48', '--count', '2']
    assert main(command) == 0
    first = tmp_path / '00000.npz'
    sample = read_sample(first)
    assert sample['left'].shape == sample['disparity_right'].shape == (48, 64)
    first.write_bytes(b'kept')
    (tmp_path / '00001.npz').unlink()
    assert main(command) == 0
    assert first.read_bytes() == b'kept'
    assert {path.name for path in tmp_path.iterdir()} == {'00000.npz', '00001.npz'}
