"""Borders of the disparity follow those of the image where matching has no say."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.geometry.borders import (
    BORDER_PX,
    DISPARITY_STEPS_PER_PX,
    settled_borders,
)

HEIGHT, WIDTH, BORDER = 40, 80, 44
NEAR, FAR = np.float32(20), np.float32(8)


@pytest.fixture
def scene():
    """Return a bright surface before a dark one; the disparity's border is beside the image's."""
    columns = np.arange(WIDTH)
    left = np.where(columns < BORDER, 0.2, 0.7) * np.ones((HEIGHT, 1))
    truth = np.where(columns < BORDER, FAR, NEAR) * np.ones((HEIGHT, 1), np.float32)
    return left.astype(np.float32), truth, np.roll(truth, -3, axis=1)


def test_border_moves_to_that_of_the_image(scene):
    left, truth, disparity = scene
    everywhere, nowhere = np.ones(truth.shape, bool), np.zeros(truth.shape, bool)
    inner = np.s_[:, 10:-10]
    assert (disparity != truth)[inner].sum(axis=1).min() == 3
    settled = settled_borders(left, disparity, nowhere, everywhere)
    assert (settled != truth)[inner].sum(axis=1).max() <= 1


def test_answer_is_one_of_those_around(scene):
    left, truth, _ = scene
    blurred = cv2.GaussianBlur(truth, (0, 0), 1.5)
    everywhere, nowhere = np.ones(truth.shape, bool), np.zeros(truth.shape, bool)
    settled = settled_borders(left, blurred, nowhere, everywhere)
    moved = settled != blurred
    assert moved.any()
    distance = np.abs(settled[moved][:, None] - np.unique(blurred)).min(axis=1)
    assert distance.max() <= 0.5 / DISPARITY_STEPS_PER_PX
    error, before = np.abs(settled - truth), np.abs(blurred - truth)
    assert error.mean() < 0.8 * before.mean()


def test_supported_and_closed_pixels_stay(scene):
    left, truth, disparity = scene
    everywhere, nowhere = np.ones(truth.shape, bool), np.zeros(truth.shape, bool)
    np.testing.assert_array_equal(
        settled_borders(left, disparity, everywhere, everywhere), disparity
    )
    np.testing.assert_array_equal(settled_borders(left, disparity, nowhere, nowhere), disparity)


def test_what_matching_supports_counts_more(scene):
    _, truth, disparity = scene
    blind = np.full(truth.shape, 0.5, np.float32)  # no border to see
    columns = np.arange(WIDTH)
    wrong = (columns >= BORDER - 3) & (columns < BORDER)
    # Beside the wrong pixels only the far surface is supported.
    supported = np.broadcast_to(columns < BORDER - 3, truth.shape)
    settled = settled_borders(blind, disparity, supported, ~supported)
    assert (settled[:, wrong] == FAR).mean() > 0.6
    swapped = np.broadcast_to(columns >= BORDER, truth.shape)
    settled = settled_borders(blind, disparity, swapped, np.broadcast_to(wrong, truth.shape))
    assert (settled[:, wrong] == NEAR).mean() > 0.9


def test_slopes_without_a_jump_stay():
    slope = np.tile(np.linspace(10, 10 + 70 * 0.25, 70, dtype=np.float32), (30, 1))
    assert 0.25 * BORDER_PX < 2
    left = np.random.default_rng(0).random((30, 70), np.float32)
    everywhere, nowhere = np.ones(slope.shape, bool), np.zeros(slope.shape, bool)
    np.testing.assert_array_equal(settled_borders(left, slope, nowhere, everywhere), slope)


def test_unknown_stays_unknown_and_is_no_sample(scene):
    left, truth, disparity = scene
    disparity = disparity.copy()
    disparity[10:20, 38:50] = np.nan
    everywhere, nowhere = np.ones(truth.shape, bool), np.zeros(truth.shape, bool)
    settled = settled_borders(left, disparity, nowhere, everywhere)
    np.testing.assert_array_equal(np.isnan(settled), np.isnan(disparity))
    values = settled[np.isfinite(settled)]
    assert np.isin(values, [NEAR, FAR]).all()


@pytest.mark.parametrize('shape', [(1, 1), (2, 3), (5, 40)])
def test_small_and_unknown_images(shape):
    left = np.zeros(shape, np.float32)
    unknown = np.full(shape, np.nan, np.float32)
    everywhere, nowhere = np.ones(shape, bool), np.zeros(shape, bool)
    assert np.isnan(settled_borders(left, unknown, nowhere, everywhere)).all()
    steps = np.zeros(shape, np.float32)
    steps[:, shape[1] // 2 :] = 9
    assert np.isin(settled_borders(left, steps, nowhere, everywhere), [0, 9]).all()


def test_threads_do_not_change_the_result(scene):
    left, truth, disparity = scene
    everywhere, nowhere = np.ones(truth.shape, bool), np.zeros(truth.shape, bool)
    noise = np.random.default_rng(1).normal(0, 1, truth.shape).astype(np.float32)
    threads = cv2.getNumThreads()
    results = []
    for count in (1, 3):
        cv2.setNumThreads(count)
        results.append(settled_borders(left, disparity + noise, nowhere, everywhere))
    cv2.setNumThreads(threads)
    np.testing.assert_array_equal(*results)
