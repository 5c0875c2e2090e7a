"""Labels from a whole drive: where other frames' points fall, and which of them count."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration  # noqa: E402
from lunar_stereo_recon.geometry.camera import points_from_depth  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.fused_labels import Comparison, interval, table  # noqa: E402
from training.fused_labels import fused_disparity, PosedFrame, seen_from  # noqa: E402

HEIGHT, WIDTH = 48, 64
RIG = StereoCalibration(60.0, 60.0, 31.5, 23.5, 31.5, 0.2, WIDTH, HEIGHT)
WALL_M = 4.0


def frame(forward_m: float = 0.0, wall_m: float = WALL_M) -> PosedFrame:
    """Return a sure frame, so far forward, that has a wall at this place for true."""
    depth = np.full((HEIGHT, WIDTH), wall_m - forward_m, np.float32)
    pose = np.eye(4)
    pose[2, 3] = forward_m
    result = Reconstruction(
        disparity=RIG.fx * RIG.baseline_m / depth,
        depth=depth,
        confidence=np.ones_like(depth),
        points=points_from_depth(depth, RIG),
        color=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        calibration=RIG,
    )
    return PosedFrame(result, pose)


def unsure(of: PosedFrame, where: tuple[slice, slice], error_px: float) -> PosedFrame:
    """Return the frame with wrong disparities, of which it is not sure, at a place."""
    disparity, confidence = of.result.disparity.copy(), of.result.confidence.copy()
    disparity[where] += error_px
    confidence[where] = 0.3
    result = dataclasses.replace(of.result, disparity=disparity, confidence=confidence)
    return dataclasses.replace(of, result=result)


def test_points_of_a_frame_behind_are_seen_at_their_disparity_and_weigh_less():
    disparity, weight = seen_from(frame(), frame(1.0))
    there = np.isfinite(disparity)
    # From nearer the wall is larger: its points leave gaps, and the outer ones leave the image.
    assert 0.4 < there.mean() < 0.7
    np.testing.assert_allclose(disparity[there], 60 * 0.2 / 3, rtol=1e-6)
    np.testing.assert_allclose(weight[there], (3 / 4) ** 4, rtol=1e-6)
    assert (weight[~there] == 0).all()


def test_nearer_points_hide_farther_ones():
    near = frame(wall_m=2.0)
    mixed = np.where(np.arange(WIDTH) < 32, np.float32(2.0), np.float32(4.0))
    depth = np.broadcast_to(mixed, (HEIGHT, WIDTH)).copy()
    both = dataclasses.replace(near.result, depth=depth, points=points_from_depth(depth, RIG))
    aside = np.eye(4)
    aside[0, 3] = -0.5  # the target stands to the left and sees the near wall before the far one
    disparity, _ = seen_from(
        dataclasses.replace(near, result=both), PosedFrame(near.result, aside)
    )
    # Near points of columns 16 to 31 come to 31 to 46, over the far ones' 39 to 46.
    np.testing.assert_allclose(disparity[:, 39:46], 60 * 0.2 / 2, rtol=1e-6)


def test_what_a_frame_does_not_know_comes_from_others_that_agree():
    place = np.s_[20:30, 20:30]
    target = unsure(frame(), place, 3.0)
    label = fused_disparity(target, [frame(-0.5), frame(-1.0), frame(-1.5)])
    known = np.isfinite(label[place])
    assert known.mean() > 0.7  # points that come nearer leave gaps
    np.testing.assert_allclose(label[place][known], 60 * 0.2 / WALL_M, rtol=1e-6)
    # One view alone makes no label; where the frame itself is sure there are two.
    label = fused_disparity(target, [frame(-0.5)])
    assert np.isnan(label[place]).all() and np.isfinite(label[:10]).any()


def test_frame_that_contradicts_the_others_has_no_say():
    wrong = frame(-0.5, wall_m=2.5)
    label = fused_disparity(frame(), [frame(-0.5), frame(-1.0), wrong])
    known = np.isfinite(label)
    assert known.mean() > 0.4
    np.testing.assert_allclose(label[known], 60 * 0.2 / WALL_M, rtol=1e-6)
    # Two against two: nobody is believed.
    half = fused_disparity(frame(), [wrong])
    assert np.isnan(half[20:28, 28:36]).all()


def test_table_tells_what_the_labels_know_better():
    frames = [Comparison(np.full(60, 1.5), np.full(60, 0.25 + k / 100), 240) for k in range(4)]
    text = table({'it is not': frames})
    assert '| it is not | 25.0 | 1.500 | 100.00 | 100.00 | 0.00 | 0.265 | 0.00 |' in text
    low, high = interval(frames)
    assert -1.25 <= low < high <= -1.22
    assert np.isnan(interval(frames[:1])).all()


def test_command_prints_the_table_and_needs_poses_and_depth(make_bag, capsys):
    assert main(['fused-labels', str(make_bag())]) == 0
    assert '| labelled |' in capsys.readouterr().out
    assert main(['fused-labels', str(make_bag('one', 1))]) == 2
    assert '1 frames with a pose, 1 with true depth' in capsys.readouterr().err
