"""Fusing posed frames: known answers, weights, transforms."""

from __future__ import annotations

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.fusion import VoxelFusion

GREY = np.uint8([[100, 100, 100]])


def add_one(fusion, point, pose=None, confidence=1.0, color=GREY):
    fusion.add_points(
        np.float32([point]), color, np.float32([confidence]), np.eye(4) if pose is None else pose
    )


def test_a_point_is_moved_into_the_fixed_frame():
    # A camera one metre above the ground that looks along the map's x axis.
    forward_looking = np.array(
        [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
    )
    fusion = VoxelFusion(voxel_m=0.01)
    add_one(fusion, (0.0, 1.0, 4.0), forward_looking)
    np.testing.assert_allclose(fusion.cloud().points, [[4.0, 0.0, 0.0]], atol=1e-6)


def test_two_poses_that_see_one_point_give_one_point():
    fusion = VoxelFusion(voxel_m=0.1)
    moved = np.eye(4)
    moved[:3, 3] = (0.0, 0.0, 1.0)
    add_one(fusion, (0.05, 0.05, 3.05))
    add_one(fusion, (0.05, 0.05, 2.05), moved)
    cloud = fusion.cloud()
    np.testing.assert_allclose(cloud.points, [[0.05, 0.05, 3.05]], atol=1e-6)
    assert cloud.observations.tolist() == [2]


def test_near_observations_count_more_and_colours_follow():
    fusion = VoxelFusion(voxel_m=1.0)
    moved = np.eye(4)
    moved[:3, 3] = (0.0, 0.0, -1.0)
    add_one(fusion, (0.2, 0.5, 1.5), color=np.uint8([[0, 0, 0]]))
    # Seen from a metre behind, so from 2.5 m: weight (1.5 / 2.5)^4 of the first.
    add_one(fusion, (0.8, 0.5, 2.5), moved, color=np.uint8([[255, 0, 0]]))
    far_weight = (1.5 / 2.5) ** 4
    expected_x = (0.2 + 0.8 * far_weight) / (1 + far_weight)
    cloud = fusion.cloud()
    assert cloud.points[0, 0] == pytest.approx(expected_x, abs=1e-6)
    assert cloud.colors[0].tolist() == [round(255 * far_weight / (1 + far_weight)), 0, 0]


def test_sigma_decides_where_it_is_known():
    fusion = VoxelFusion(voxel_m=1.0)
    points = np.float32([[0.2, 0.5, 1.5], [0.8, 0.5, 1.5], [0.9, 0.5, 1.5], [0.4, 0.5, 5.5]])
    sigma = np.float32([0.01, 0.02, np.nan, 0.0])
    fusion.add_points(points, np.repeat(GREY, 4, 0), np.ones(4, np.float32), np.eye(4), sigma)
    cloud = fusion.cloud()
    assert cloud.points[0, 0] == pytest.approx((4 * 0.2 + 0.8) / 5, abs=1e-6)
    assert cloud.observations.tolist() == [2, 1]  # NaN is left out, zero is not infinitely right
    assert np.isfinite(cloud.points).all()


def test_unsure_invalid_and_far_points_are_left_out():
    fusion = VoxelFusion(voxel_m=0.1, min_confidence=0.8, max_range_m=10.0)
    add_one(fusion, (0.0, 0.0, 2.0), confidence=0.79)
    add_one(fusion, (np.nan, np.nan, np.nan))
    add_one(fusion, (0.0, 0.0, 10.5))
    assert len(fusion.cloud().points) == 0
    add_one(fusion, (0.0, 0.0, 9.5), confidence=0.9)
    assert fusion.cloud().confidence == pytest.approx([0.9])


def test_reading_the_cloud_between_frames_changes_nothing():
    rng = np.random.default_rng(0)
    points = rng.uniform((-1, -1, 1), (1, 1, 4), (500, 3)).astype(np.float32)
    colors = rng.integers(0, 255, (500, 3)).astype(np.uint8)
    confidence = rng.uniform(0.8, 1.0, 500).astype(np.float32)
    at_once, in_steps = VoxelFusion(0.3), VoxelFusion(0.3)
    at_once.add_points(points, colors, confidence, np.eye(4))
    for part in (slice(0, 200), slice(200, 500)):
        in_steps.add_points(points[part], colors[part], confidence[part], np.eye(4))
        in_steps.cloud()
    one, other = at_once.cloud(), in_steps.cloud()
    np.testing.assert_allclose(one.points, other.points, atol=1e-9)
    np.testing.assert_array_equal(one.colors, other.colors)
    assert one.observations.sum() == 500


def test_unusable_poses_and_settings_are_refused():
    with pytest.raises(InputError, match='finite 4x4'):
        add_one(VoxelFusion(), (0.0, 0.0, 1.0), np.full((4, 4), np.nan))
    with pytest.raises(InputError, match='orthonormal'):
        add_one(VoxelFusion(), (0.0, 0.0, 1.0), 2 * np.eye(4))
    with pytest.raises(InputError, match='voxel size is 0'):
        VoxelFusion(voxel_m=0.0)
    with pytest.raises(InputError, match='from the origin'):
        add_one(VoxelFusion(voxel_m=0.01), (2e4, 0.0, 1.0))
