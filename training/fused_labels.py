"""Disparities of a frame from a whole drive: what other frames saw, brought there by their poses.

Ground that is far, dark or hidden in one frame is near or open in another, so labels from a drive
can know what no network sees in a single pair. A label is kept where frames agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import Reconstruction
from lunar_stereo_recon.geometry.disparity import disparity_from_depth

# Points of other frames count from this confidence on.
SURE = 0.8
# Frames agree where their disparities are within this of the middle one.
AGREE_PX = 0.5
# So many must agree, and so large a share of those that see the place.
MIN_VIEWS, MIN_SHARE = 2, 0.5
NEAREST_M = 0.2


@dataclass(frozen=True)
class PosedFrame:
    """One frame of a drive.

    Attributes:
        result: Reconstructed densely.
        map_from_camera: (4, 4), takes points of the left optical frame to a fixed frame, metres.
    """

    result: Reconstruction
    map_from_camera: NDArray[np.float64]


def seen_from(
    source: PosedFrame, target: PosedFrame
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the target would see of the source's sure points.

    Returns:
        Disparity (H, W) px, NaN where there is no point; the nearest one where there are several.
        Weight (H, W): the error of stereo grows with the square of the depth that it was measured
        at, so a point that the source saw from nearer weighs more; 0 without a point.
    """
    calibration = target.result.calibration
    height, width = target.result.depth.shape
    sure = source.result.valid_mask & (source.result.confidence >= SURE)
    move = np.linalg.inv(target.map_from_camera) @ source.map_from_camera
    there = source.result.points[sure].astype(np.float64) @ move[:3, :3].T + move[:3, 3]
    measured_at = source.result.depth[sure]
    ahead = there[:, 2] > NEAREST_M
    there, measured_at = there[ahead], measured_at[ahead]
    x, y, z = there.T
    column = np.rint(calibration.fx * x / z + calibration.cx).astype(int)
    row = np.rint(calibration.fy * y / z + calibration.cy).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    far_first = np.flatnonzero(inside)[np.argsort(-z[inside], kind='stable')]
    places = row[far_first], column[far_first]  # the nearest is written last
    depth, weight = np.full((height, width), np.nan), np.zeros((height, width))
    depth[places] = z[far_first]
    weight[places] = (z[far_first] / measured_at[far_first]) ** 4
    return disparity_from_depth(depth, calibration).astype(np.float64), weight


def fused_disparity(target: PosedFrame, others: Sequence[PosedFrame]) -> NDArray[np.float64]:
    """Return the disparity (H, W) px on which frames agree, the target's own among them; else NaN.

    It is the weighted mean of those near the middle one; see `seen_from`.
    """
    own = target.result
    sure = own.valid_mask & (own.confidence >= SURE)
    views = [seen_from(other, target) for other in others]
    views.append((np.where(sure, own.disparity, np.nan), sure.astype(np.float64)))
    disparities = np.stack([disparity for disparity, _ in views])
    weights = np.stack([weight for _, weight in views])
    known = np.isfinite(disparities)
    seen = known.any(axis=0)
    middle = np.full(seen.shape, np.nan)
    middle[seen] = np.nanmedian(disparities[:, seen], axis=0)
    near = known & (np.abs(np.where(known, disparities, np.inf) - middle) <= AGREE_PX)
    agreeing = near.sum(axis=0)
    agreed = (agreeing >= MIN_VIEWS) & (agreeing >= MIN_SHARE * known.sum(axis=0))
    total = np.where(near, weights, 0.0).sum(axis=0)
    mean = np.where(near, weights * np.where(known, disparities, 0.0), 0.0).sum(axis=0)
    return np.where(agreed, mean / np.where(total > 0, total, 1.0), np.nan)
