"""Warped textures: what the disparity says is what the images show."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip('torch')

from training.texture_pairs import texture_pair  # noqa: E402


def test_right_view_warped_by_the_disparity_is_the_left_view():
    pair = texture_pair(9, 0)
    height, width = pair['disparity'].shape
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    warped = cv2.remap(pair['right'], columns - pair['disparity'], rows, cv2.INTER_CUBIC)
    seen = pair['occlusion'] == 0
    difference = np.abs(warped.astype(float) - pair['left'])[seen]
    assert np.median(difference) < 3
    assert np.median(difference) < 0.25 * np.abs(pair['right'].astype(float) - pair['left']).mean()


def test_the_same_number_is_the_same_pair():
    first, again, other = texture_pair(9, 1), texture_pair(9, 1), texture_pair(9, 2)
    np.testing.assert_array_equal(first['left'], again['left'])
    assert (first['left'] != other['left']).any()
