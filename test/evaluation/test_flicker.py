"""Flicker has the value of a perturbation that is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.evaluation.flicker import Flicker, flicker_table
from lunar_stereo_recon.geometry.pose_track import Pose
from lunar_stereo_recon.geometry.rotation import BODY_FROM_OPTICAL, rotation_from_rpy

CAMERA = StereoCalibration(200.0, 200.0, 159.5, 119.5, 159.5, 0.3, 320, 240)


def pose(x_m, y_m=0.0, yaw=0.0, pitch=0.5):
    rotation = rotation_from_rpy(0.0, pitch, yaw) @ BODY_FROM_OPTICAL
    return Pose(rotation, np.array([x_m, y_m, 1.4]))


def ground(seen_from):
    """Return the disparity of level ground, NaN above the horizon."""
    v, u = np.mgrid[0:240, 0:320].astype(np.float32)
    rays = np.stack([(u - 159.5) / 200, (v - 119.5) / 200, np.ones_like(u)])
    down = -np.tensordot(seen_from.rotation[2], rays, axes=1)
    return np.where(down > 0.05, 60.0 * down / 1.4, np.nan).astype(np.float32)


def figures(change, poses):
    flicker = Flicker()
    for number, each in enumerate(poses):
        flicker.add(change(ground(each), number).astype(np.float32), CAMERA, each)
    return flicker.figures()


ARC = [pose(0.15 * n, 0.02 * n, 0.03 * n, 0.5 + 0.01 * (n % 2)) for n in range(4)]
SIDEWAYS = [pose(0.0, 0.1 * n) for n in range(3)]


def test_exact_depth_does_not_flicker():
    found = figures(lambda true, number: true, ARC)
    assert found['frame_pairs'] == 3 and found['points'] > 100_000
    assert found['p95_px'] < 0.002 and found['jump_share'] == 0


def test_known_perturbations_have_their_value():
    # Two measurements 0.6 px apart deviate by 0.3 sqrt 2 from their mean.
    found = figures(lambda true, number: true + 0.3 * (-1) ** number, SIDEWAYS)
    assert found['median_px'] == pytest.approx(0.3 * 2**0.5, rel=0.02)
    assert found['jump_share'] == 0
    depth = figures(lambda true, number: true * (1 + 0.02 * (number % 2)), SIDEWAYS)
    assert depth['median_depth_share'] == pytest.approx(0.02 / 2**0.5, rel=0.03)
    found = figures(lambda true, number: true + 1.6 * (number % 2), SIDEWAYS)
    assert found['jump_share'] > 0.99


def test_noise_has_its_standard_deviation():
    rng = np.random.default_rng(0)

    def noisy(true, number):
        noise = cv2.GaussianBlur(rng.standard_normal(true.shape), (0, 0), 4)
        return true + 0.2 * noise / noise.std()

    # Half of the differences of normal numbers are below 0.674 sqrt 2 of their deviation.
    assert figures(noisy, SIDEWAYS)['median_px'] == pytest.approx(0.674 * 0.2, rel=0.1)


def test_nothing_common_has_no_figures():
    assert figures(lambda true, number: true, [pose(0.0), pose(500.0)]) == {}
    assert figures(lambda true, number: true, [pose(0.0)]) == {}
    assert flicker_table({}) == flicker_table({'a': {}}) == []
