"""Voxel-grid filter: one point for each cube, the mean of all points in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Three indices are packed in one 63-bit key: 10 km to each side with voxels of 1 cm.
KEY_BITS = 21
MAX_INDEX = 1 << (KEY_BITS - 1)


def voxel_means(
    points: NDArray[np.float32], attributes: NDArray[np.float32], voxel_m: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean point (M, 3) and mean attributes (M, C) of each voxel that has points.

    Args:
        points: (N, 3) float32, metres, finite. Those beyond 2^20 voxels from the origin are left
            out: no stereo rig measures that far.
        attributes: (N, C) float32.
        voxel_m: Edge of a voxel, metres, positive.
    """
    indices = np.floor(points * np.float32(1.0 / voxel_m))
    if len(points) == 0:
        return points, attributes
    if np.abs(indices).max() >= MAX_INDEX:
        near = (np.abs(indices) < MAX_INDEX).all(axis=1)
        return voxel_means(points[near], attributes[near], voxel_m)
    # Sums of float32 would lose the millimetres far out: they are taken from the voxel's corner.
    local = points - indices * np.float32(voxel_m)
    x, y, z = (indices[:, axis].astype(np.int64) for axis in range(3))
    keys = ((z << KEY_BITS) + y << KEY_BITS) + x  # sums, so that negative ones differ too
    # Neighbours in the image share voxels, so the keys come in long runs, which this sort likes.
    order = np.argsort(keys, kind='stable')
    keys = keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    counts = np.diff(np.r_[starts, len(keys)]).astype(np.float32)[:, None]
    means = np.add.reduceat(np.hstack([local, attributes]).take(order, axis=0), starts) / counts
    corners = indices[order[starts]] * np.float32(voxel_m)
    return means[:, :3] + corners, means[:, 3:]
