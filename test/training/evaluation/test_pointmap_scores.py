"""Scores of pointmaps: perfect ones score perfectly, known errors their known value."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('scipy')

from lunar_stereo_recon.errors import InputError
from training.evaluation.pointmap_scores import (
    align,
    cloud_scores,
    depth_scores,
    Ground,
    terrain_scores,
)

FOCAL, ROWS, COLUMNS = 100.0, 48, 64


def rotation(axis: int, degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, two = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[one, one] = matrix[two, two] = cosine
    matrix[one, two], matrix[two, one] = -sine, sine
    return matrix


@pytest.fixture
def hills() -> np.ndarray:
    """Return points (H, W, 3) of hilly ground seen from 100 m above, some unknown."""
    rows, columns = np.indices((ROWS, COLUMNS), dtype=np.float64)
    depth = 100 + 3 * np.sin(columns / 5) * np.cos(rows / 7) + 0.02 * columns
    points = np.stack([(columns - 32) / FOCAL * depth, (rows - 24) / FOCAL * depth, depth], -1)
    points[:3, :10] = np.nan
    return points


def test_perfect_points_score_perfectly(hills):
    depth = depth_scores(hills[..., 2], hills[..., 2])
    for name in ('abs_rel', 'mae', 'rmse', 'silog'):
        assert depth[name] == 0.0, name
    assert depth['delta1'] == depth['delta2'] == depth['delta3'] == 100.0
    assert depth['pearson'] == pytest.approx(1) and depth['ssim'] == pytest.approx(1)
    cloud = cloud_scores(hills.reshape(-1, 3), hills.reshape(-1, 3))
    assert cloud['accuracy'] == cloud['completeness'] == cloud['chamfer'] == 0.0
    assert cloud['accuracy_under_0.1%'] == cloud['completeness_under_0.1%'] == 100.0
    terrain = terrain_scores(hills, hills)
    for name, value in terrain.items():
        if name.endswith('corr'):
            assert value == pytest.approx(1), name
        elif 'agree' in name:
            assert value == 100, name
        elif not np.isnan(value):
            assert value == 0, name


def test_any_similarity_is_undone_and_outliers_have_no_say(hills):
    moved = 0.037 * (hills @ rotation(1, 40).T @ rotation(2, -15).T) + (3.0, -2.0, 1.0)
    source = moved.reshape(-1, 3).copy()
    source[::50] += 5.0  # 2 % are far off
    found = align(source, hills.reshape(-1, 3))
    assert found.scale == pytest.approx(1 / 0.037, rel=1e-6)
    np.testing.assert_allclose(found(moved), hills, atol=1e-6)
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    with pytest.raises(InputError, match='different points; 10 are needed'):
        align(source[:9], hills.reshape(-1, 3)[:9])


def test_known_errors_of_depth_score_their_value(hills):
    depth = hills[..., 2]
    scores = depth_scores(1.1 * depth, depth)
    mean = np.nanmean(depth)
    assert scores['abs_rel'] == pytest.approx(0.1)
    assert scores['mae'] == pytest.approx(0.1 * mean)
    assert scores['silog'] == pytest.approx(0, abs=1e-9)  # a scale is no error of shape
    assert scores['pearson'] == pytest.approx(1)
    assert depth_scores(1.3 * depth, depth)['delta1'] == 0.0
    assert depth_scores(1.3 * depth, depth)['delta2'] == 100.0
    signs = np.where(np.indices(depth.shape).sum(axis=0) % 2, 1.0, -1.0)
    noisy = depth_scores(depth + 0.5 * signs, depth)
    assert noisy['mae'] == pytest.approx(0.5) and noisy['rmse'] == pytest.approx(0.5)
    assert noisy['ssim'] < 0.9
    logarithmic = depth_scores(depth * np.exp(0.02 * signs), depth)
    assert logarithmic['silog'] == pytest.approx(0.02, rel=1e-3)
    with pytest.raises(InputError, match='0 pixels with depth'):
        depth_scores(-depth, depth)


def test_ssim_is_that_of_the_definition():
    # Constant maps: only the term of means is left.
    one, other = np.full((20, 20), 4.0), np.full((20, 20), 3.0)
    one[0, 0], other[0, 0] = 5.0, 3.0
    from training.evaluation.pointmap_scores import ssim

    valid = np.ones((20, 20), bool)
    assert ssim(other, other, valid) == pytest.approx(1)
    assert ssim(one, other, valid) < 0.1


def test_distances_between_clouds_are_those_of_a_shift(hills):
    flat = np.stack([*np.meshgrid(np.arange(30.0), np.arange(20.0)), np.zeros((20, 30))], -1)
    flat = flat.reshape(-1, 3)
    scores = cloud_scores(flat + (0, 0, 0.25), flat)
    assert scores['accuracy'] == pytest.approx(0.25)
    assert scores['completeness'] == pytest.approx(0.25)
    diameter = np.hypot(29, 19)
    assert scores['accuracy_under_0.1%'] == 0.0 and 0.25 > 0.001 * diameter
    # Half of the ground is missing: what is there is right, the other half far away.
    half = cloud_scores(flat[flat[:, 0] < 15], flat)
    assert half['accuracy'] == 0.0 and half['completeness'] == pytest.approx(4.0)
    assert half['chamfer'] == pytest.approx(2.0)


def tilted(degrees: float) -> np.ndarray:
    """Return a plane 50 m ahead, turned about a row."""
    rows, columns = np.indices((ROWS, COLUMNS), dtype=np.float64)
    plane = np.stack([columns - 32, rows - 24, np.zeros_like(rows)], -1)
    return plane @ rotation(0, degrees).T + (0, 0, 50.0)


def test_slopes_and_hazards_of_a_tilted_plane():
    flat, steep = tilted(0), tilted(12)
    np.testing.assert_allclose(Ground.of(flat).slopes(steep)[1:-1, 1:-1], 12, atol=1e-6)
    scores = terrain_scores(steep, flat)
    assert scores['slope_mae'] == pytest.approx(12)
    # Flat ground is called steep at 5 and 10 degrees, not at 15 and 20; there is none to miss.
    assert [scores[f'hazard_false_{n}'] for n in (5, 10, 15, 20)] == [100, 100, 0, 0]
    assert [scores[f'hazard_agree_{n}'] for n in (5, 10, 15, 20)] == [0, 0, 100, 100]
    assert np.isnan(scores['hazard_miss_5'])


def test_steep_ground_that_is_smoothed_away_is_missed():
    rows, columns = np.indices((ROWS, COLUMNS), dtype=np.float64)
    height = np.abs((columns + 8) % 32 - 16) * np.tan(np.radians(18))
    ridge = np.stack([columns, rows, 80 - height], -1)
    smooth = np.stack([columns, rows, np.full_like(rows, 80 - height.mean())], -1)
    scores = terrain_scores(smooth, ridge)
    assert scores['hazard_miss_10'] == 100.0 and scores['hazard_false_20'] == 0.0
    # Two columns of sixteen are a crest or a trough, level by differences across them.
    assert scores['slope_mae'] == pytest.approx(18 * 14 / 16, abs=1)
    assert abs(scores['relief_corr']) < 0.1  # level ground resembles no ridge
    upside_down = ridge.copy()
    upside_down[..., 2] = 160 - 2 * height.mean() - ridge[..., 2]
    assert terrain_scores(upside_down, ridge)['relief_corr'] < -0.7
    assert terrain_scores(upside_down, ridge)['curvature_corr'] == pytest.approx(-1, abs=0.01)
