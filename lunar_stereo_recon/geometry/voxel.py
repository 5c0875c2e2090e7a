"""Voxel-grid filter: one point for each cube, the mean of all points in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Three indices are packed in one 63-bit key: 10 km to each side with voxels of 1 cm.
KEY_BITS = 21
MAX_INDEX = 1 << (KEY_BITS - 1)
# Standard deviations of depth, metres: calibration is never better, and what is unknown.
SMALLEST_SIGMA_M, UNKNOWN_SIGMA_M = 0.002, 10.0


def weights_of_sigma(sigma_m: NDArray[Any]) -> NDArray[Any]:
    """Return (N,) weights: one over the variance.

    Args:
        sigma_m: (N,) standard deviations, metres. Those below `SMALLEST_SIGMA_M` count as that:
            nothing is known better. Those that are not known (NaN) or infinite count as
            `UNKNOWN_SIGMA_M`.
    """
    known = np.nan_to_num(sigma_m, nan=UNKNOWN_SIGMA_M, posinf=UNKNOWN_SIGMA_M)
    return 1 / np.maximum(known, SMALLEST_SIGMA_M) ** 2


def voxel_keys(indices: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return (N,) keys of voxels, which are ordered by the last index, then the others.

    Args:
        indices: (N, 3) whole numbers of less than `MAX_INDEX` to each side.
    """
    low, middle, high = (indices[:, axis].astype(np.int64) for axis in range(3))
    return ((high << KEY_BITS) + middle << KEY_BITS) + low  # sums: negative ones differ too


def voxel_means(
    points: NDArray[np.float32],
    attributes: NDArray[np.float32],
    voxel_m: float,
    weights: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean point (M, 3) and mean attributes (M, C) of each voxel that has points.

    Args:
        points: (N, 3) float32, metres, finite. Those beyond 2^20 voxels from the origin are left
            out: no stereo rig measures that far.
        attributes: (N, C) float32.
        voxel_m: Edge of a voxel, metres, positive.
        weights: (N,) float32, positive, of the points in their mean; None weighs them alike.
    """
    indices = np.floor(points * np.float32(1.0 / voxel_m))
    if len(points) == 0:
        return points, attributes
    if np.abs(indices).max() >= MAX_INDEX:
        near = (np.abs(indices) < MAX_INDEX).all(axis=1)
        kept = None if weights is None else weights[near]
        return voxel_means(points[near], attributes[near], voxel_m, kept)
    # Sums of float32 would lose the millimetres far out: they are taken from the voxel's corner.
    local = points - indices * np.float32(voxel_m)
    keys = voxel_keys(indices)
    # Neighbours in the image share voxels, so the keys come in long runs, which this sort likes.
    order = np.argsort(keys, kind='stable')
    keys = keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    values = np.hstack([local, attributes]).take(order, axis=0)
    if weights is None:
        total = np.diff(np.r_[starts, len(keys)]).astype(np.float32)[:, None]
    else:
        share = weights.take(order)[:, None]
        values *= share
        total = np.add.reduceat(share, starts)
    means = np.add.reduceat(values, starts) / total
    corners = indices[order[starts]] * np.float32(voxel_m)
    return means[:, :3] + corners, means[:, 3:]
