"""A pointmap prediction becomes metric: by matches, by the right camera's place, or not at all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from training.models.pointmap import (
    calibration_from_pointmap,
    confidence_from_raw,
    match_rows,
    metric_scale,
    PointmapPrediction,
    reconstruct_pointmap,
)

HEIGHT, WIDTH, UNITS_PER_METRE = 48, 96, 0.25


@pytest.fixture
def calibration():
    return StereoCalibration(100.0, 100.0, 47.5, 23.5, 47.5, 0.4, WIDTH, HEIGHT)


@pytest.fixture
def depth_m():
    """Return depth of ground that comes nearer row by row: disparity 6 to 17 px, whole pixels."""
    disparity = 6 + np.arange(HEIGHT) // 4
    return np.repeat(100.0 * 0.4 / disparity[:, None], WIDTH, axis=1)


def rays(calibration):
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    x = (columns - calibration.cx) / calibration.fx
    y = (rows - calibration.cy) / calibration.fy
    return np.stack([x, y, np.ones_like(x)], axis=-1)


@pytest.fixture
def prediction(calibration, depth_m):
    """Return what a perfect network would say, in units of 4 m."""
    generator = np.random.default_rng(0)
    left = rays(calibration) * depth_m[..., None]
    # A row has one depth, so the right view sees the same depths.
    right = left + [calibration.baseline_m, 0, 0]
    descriptors = generator.normal(size=(HEIGHT, WIDTH, 24))
    descriptors /= np.linalg.norm(descriptors, axis=-1, keepdims=True)
    disparity = np.rint(100.0 * 0.4 / depth_m).astype(int)
    sources = np.arange(WIDTH) - disparity
    matched = np.take_along_axis(descriptors, np.maximum(sources, 0)[..., None], axis=1)
    matched[sources < 0] = 24**-0.5
    confidence = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    arrays = (left * UNITS_PER_METRE, right * UNITS_PER_METRE, confidence, confidence)
    return PointmapPrediction(
        *(np.asarray(array, np.float32) for array in (*arrays, matched, descriptors))
    )


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Return points turned about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T, np.float32)


def test_matches_are_the_true_ones(prediction, calibration, depth_m):
    rows, left, right = match_rows(prediction.descriptors_left, prediction.descriptors_right)
    seen = left - right == np.rint(40.0 / depth_m[rows, left])
    assert len(rows) > 900
    assert seen.mean() > 0.99
    assert set(rows) == set(range(2, HEIGHT, 4))


def test_scale_by_matches(prediction, calibration):
    assert metric_scale(prediction, calibration) == pytest.approx(4.0, rel=1e-4)


def test_scale_by_matches_survives_a_turned_right_camera(prediction, calibration):
    moved = dataclasses.replace(prediction, right=turned(prediction.right, 0.03))
    assert metric_scale(moved, calibration) == pytest.approx(4.0, rel=1e-4)


def test_scale_minds_different_principal_points(prediction, calibration):
    # The right image cut by three columns at its left: columns and cx_right move together.
    shifted = dataclasses.replace(calibration, cx_right=calibration.cx_right - 3)
    descriptors = np.roll(prediction.descriptors_right, -3, axis=1)
    moved = dataclasses.replace(prediction, descriptors_right=descriptors)
    assert metric_scale(moved, shifted) == pytest.approx(4.0, rel=1e-4)


def test_scale_without_matches_is_that_of_the_right_camera(prediction, calibration):
    flat = np.full_like(prediction.descriptors_left, 24**-0.5)
    blind = dataclasses.replace(prediction, descriptors_left=flat)
    assert metric_scale(blind, calibration) == pytest.approx(4.0, rel=1e-4)
    lost = dataclasses.replace(blind, right=np.full_like(blind.right, np.nan))
    with pytest.raises(InputError):
        metric_scale(lost, calibration)


def test_reconstruction_is_metric(prediction, calibration, depth_m):
    color = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    result = reconstruct_pointmap(prediction, calibration, color, scale=4.0)
    np.testing.assert_allclose(result.depth, depth_m, rtol=1e-5)
    np.testing.assert_allclose(result.disparity, 40.0 / depth_m, rtol=1e-5)
    np.testing.assert_allclose(result.points, rays(calibration) * depth_m[..., None], atol=1e-4)
    np.testing.assert_allclose(result.confidence, 2 / 3, rtol=1e-6)


def test_points_behind_the_camera_or_below_the_threshold_are_invalid(prediction, calibration):
    left, confidence = prediction.left.copy(), prediction.confidence_raw_left.copy()
    left[0, 0, 2], left[0, 1, 2] = -1.0, np.nan
    confidence[0, 2] = 1.2
    marked = dataclasses.replace(prediction, left=left, confidence_raw_left=confidence)
    color = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    result = reconstruct_pointmap(marked, calibration, color, 4.0, confidence_threshold=0.5)
    assert np.argwhere(~result.valid_mask).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert np.isnan(result.points[0, :3]).all()
    assert np.isfinite(result.confidence).all()


def test_prediction_implies_its_own_camera(prediction):
    found = calibration_from_pointmap(prediction)
    assert found.fx == found.fy == pytest.approx(100.0, rel=1e-4)
    assert found.baseline_m == pytest.approx(0.4 * UNITS_PER_METRE, rel=1e-4)
    behind = dataclasses.replace(prediction, left=-prediction.left)
    with pytest.raises(InputError, match='in front'):
        calibration_from_pointmap(behind)


def test_camera_on_the_other_side_is_no_error(prediction):
    found = calibration_from_pointmap(prediction)
    # The right camera moves to the left and up: the same points, seen from there.
    width, height = prediction.right.shape[1], prediction.right.shape[0]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    depth = 2.0 + 0.02 * x + 0.01 * y
    rays = np.stack([(x - found.cx) / found.fx, (y - found.cy) / found.fx, np.ones_like(x)], -1)
    right = (rays * depth[..., None] + (-0.3, 0.4, 0.0)).astype(np.float32)
    moved = dataclasses.replace(prediction, right=right)
    assert calibration_from_pointmap(moved).baseline_m == pytest.approx(0.5, rel=1e-2)


def test_raw_confidence_becomes_a_fraction():
    raw = np.array([[1.0, 2.0, 10.0, 0.5]], np.float32)
    np.testing.assert_allclose(confidence_from_raw(raw), [[0.0, 0.5, 0.9, 0.0]], rtol=1e-6)


def test_maps_of_different_size_are_refused(prediction):
    with pytest.raises(InputError, match='descriptors_right'):
        dataclasses.replace(prediction, descriptors_right=prediction.descriptors_right[1:])
    with pytest.raises(InputError, match=r'\(H, W, 3\)'):
        dataclasses.replace(prediction, left=prediction.left[..., :2])
