"""Pose from matched descriptors: a known camera is found, recall has its area."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.relative_pose import (
    area_under_recall,
    pose_errors,
    pose_from_matches,
    reciprocal_matches,
    strongest,
)

CAMERA = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])


def looking(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    there = points @ pose[:3, :3].T + pose[:3, 3]
    projected = there @ CAMERA.T
    return projected[:, :2] / projected[:, 2:]


@pytest.fixture
def pose() -> np.ndarray:
    angle = np.radians(6)
    matrix = np.eye(4)
    matrix[0, 0] = matrix[2, 2] = np.cos(angle)
    matrix[0, 2], matrix[2, 0] = np.sin(angle), -np.sin(angle)
    matrix[:3, 3] = -2.0, 0.3, 0.1
    return matrix


def test_pose_of_known_matches_is_found(pose):
    rng = np.random.default_rng(0)
    points = rng.uniform((-8, -6, 12), (8, 6, 25), (300, 3))
    left, right = looking(points, np.eye(4)), looking(points, pose)
    right[::5] = rng.uniform(0, 200, right[::5].shape)  # a fifth is wrong
    found = pose_from_matches(left, right, (CAMERA, CAMERA))
    rotation, direction = pose_errors(found, pose)
    assert rotation < 0.1 and direction < 0.5
    exact = pose_errors((pose[:3, :3], pose[:3, 3]), pose)
    assert exact == pytest.approx((0, 0), abs=1e-5)
    turned = pose_errors((np.eye(3), pose[:3, 3]), pose)
    assert turned[0] == pytest.approx(6)
    assert pose_errors((pose[:3, :3], -pose[:3, 3]), pose)[1] == pytest.approx(180)
    assert pose_from_matches(left[:7], right[:7], (CAMERA, CAMERA)) is None
    assert pose_errors(None, pose) == (np.inf, np.inf)


def test_matches_are_mutual_and_off_the_border():
    rng = np.random.default_rng(1)
    left = rng.normal(size=(32, 48, 12)).astype(np.float32)
    left /= np.linalg.norm(left, axis=-1, keepdims=True)
    right = np.roll(left, -5, axis=1)
    one, other = reciprocal_matches(left, right, step=4)
    np.testing.assert_array_equal(one - other, np.broadcast_to([5, 0], one.shape))
    assert len(one) > 50
    assert other[:, 0].min() >= 3 and other[:, 0].max() < 45
    weights = np.zeros((32, 48), np.float32)
    weights[10, :] = 1.0
    first, _ = strongest((one, other), (weights, weights))
    assert len(first) == len(one) and (first[0] == first[0]).all() and first[0, 1] == 10


def test_area_under_recall():
    assert area_under_recall([0.0, 0.0], 10) == pytest.approx(100)
    assert area_under_recall([np.inf, 30.0], 10) == 0.0
    assert area_under_recall([5.0], 10) == pytest.approx(50, abs=1)
    assert area_under_recall([0.0, np.inf], 5) == pytest.approx(50)
