"""The 3D cloud of a report: of a whole drive where its poses are known, else of single pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.benchmark.methods import Estimate
from lunar_stereo_recon.datatypes import StereoPair
from lunar_stereo_recon.evaluation.fusion import VoxelFusion
from lunar_stereo_recon.evaluation.scores import SHOWN
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from lunar_stereo_recon.report.results import shown
from lunar_stereo_recon.report.sources import SourcePair

# As many as a browser turns smoothly without a graphics card.
MOST_POINTS = 60_000
VOXEL_M = 0.02
MAX_RANGE_M = 12.0
# Sums of this many frames are held before they are merged.
FRAMES_BETWEEN_MERGES = 32
# Optical axes (x right, y down, z forward) to x right, y forward, z up.
_UPRIGHT = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@dataclass(frozen=True)
class ViewedCloud:
    """Points to be looked at; z is up.

    Attributes:
        title: What they are of.
        points: (N, 3) float32, metres.
        colors: (N, 3) uint8 RGB.
        confidence: (N,) in [0, 1]; None of a method without.
        cameras: (M, 3), where the left camera was, metres.
    """

    title: str
    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    confidence: NDArray[np.floating] | None
    cameras: NDArray[np.float64]


class DriveCloud:
    """Merges the estimates of a method over all pairs that have a pose."""

    def __init__(self) -> None:
        self._fusion = VoxelFusion(VOXEL_M, SHOWN, MAX_RANGE_M)
        self._cameras: list[NDArray[np.float64]] = []

    def add(self, item: SourcePair, images: StereoPair, estimate: Estimate) -> None:
        """Add the points of a pair; one without pose is left out."""
        if item.pose is None:
            return
        points, colors, confidence = _arrays(images, estimate)
        pose = item.pose.matrix
        self._fusion.add_points(points, colors, confidence, pose)
        self._cameras.append(pose[:3, 3])
        if len(self._cameras) % FRAMES_BETWEEN_MERGES == 0:
            self._fusion.cloud()

    def cloud(self, with_confidence: bool) -> ViewedCloud | None:
        """Return all points; None where no pair had a pose or nothing was seen."""
        merged = self._fusion.cloud()
        if not len(merged.points):
            return None
        chosen = _chosen(len(merged.points))
        title = f'the drive, {len(self._cameras)} frames'
        return ViewedCloud(
            title,
            merged.points[chosen].astype(np.float32),
            merged.colors[chosen],
            merged.confidence[chosen] if with_confidence else None,
            np.stack(self._cameras),
        )


def pair_cloud(title: str, images: StereoPair, estimate: Estimate) -> ViewedCloud | None:
    """Return the points of one pair that a user gets; None where there are none."""
    points, colors, confidence = _arrays(images, estimate)
    # Without its few farthest points, which would shrink the rest to a dot.
    known = np.isfinite(points[:, 2])
    if not known.any():
        return None
    known &= points[:, 2] <= 1.5 * np.percentile(points[known, 2], 95)
    index = np.flatnonzero(known)
    index = index[_chosen(len(index))]
    return ViewedCloud(
        title,
        (points[index] @ _UPRIGHT.T).astype(np.float32),
        colors[index],
        None if estimate.confidence is None else confidence[index],
        np.zeros((1, 3)),
    )


def _arrays(images: StereoPair, estimate: Estimate) -> tuple[NDArray[Any], ...]:
    """Return points (N, 3), NaN where nothing is shown, colours (N, 3), confidences (N,)."""
    disparity = np.where(shown(estimate), estimate.disparity, np.float32(np.nan))
    depth = depth_from_disparity(disparity, images.calibration)
    points = points_from_depth(depth, images.calibration)
    confidence = estimate.confidence
    if confidence is None:
        confidence = np.isfinite(depth).astype(np.float32)
    return points.reshape(-1, 3), left_color(images).reshape(-1, 3), confidence.reshape(-1)


def left_color(images: StereoPair) -> NDArray[np.uint8]:
    """Return the left image (H, W, 3) RGB."""
    if images.color is not None:
        return images.color
    grey = np.clip(images.left * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _chosen(count: int) -> NDArray[np.int64]:
    """Return the indices of at most `MOST_POINTS` of so many points, drawn at random."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST_POINTS, replace=False))
