"""Merges the clouds of many frames, whose poses are known, into one coloured cloud.

Poses are `map_from_camera`: 4x4 rigid transforms that take points of the left optical frame
(x right, y down, z forward) into a fixed frame. Metres throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import Reconstruction
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.voxel import MAX_INDEX, voxel_keys, weights_of_sigma


@dataclass(frozen=True)
class FusedCloud:
    """Points of a fixed frame.

    Attributes:
        points: (N, 3) float64, metres.
        colors: (N, 3) uint8 RGB.
        confidence: (N,) float32 in [0, 1], of the surest observation of each point.
        observations: (N,) int64, how many pixels were merged into each point.
    """

    points: NDArray[np.float64]
    colors: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    observations: NDArray[np.int64]


class VoxelFusion:
    """Averages all points that fall into one voxel, the precise ones counting most.

    A point weighs one over the variance of its depth. Where that is unknown: the depth error of
    stereo grows with the square of the depth, so the point weighs its confidence divided by the
    fourth power of its depth.

    Args:
        voxel_m: Edge of a voxel, metres.
        min_confidence: Points below this are left out.
        max_range_m: Points deeper than this are left out, metres.

    Raises:
        InputError: A setting is not positive, or the confidence is not in [0, 1].
    """

    def __init__(
        self, voxel_m: float = 0.01, min_confidence: float = 0.8, max_range_m: float = np.inf
    ) -> None:
        if not voxel_m > 0:
            raise InputError(f'voxel size is {voxel_m} m; it must be positive')
        if not max_range_m > 0:
            raise InputError(f'maximum range is {max_range_m} m; it must be positive')
        if not 0 <= min_confidence <= 1:
            raise InputError(f'minimum confidence is {min_confidence}; it must be in [0, 1]')
        self.voxel_m = voxel_m
        self.min_confidence = min_confidence
        self.max_range_m = max_range_m
        self._parts: list[_VoxelSums] = []

    def add(self, reconstruction: Reconstruction, map_from_camera: NDArray[np.float64]) -> None:
        """Add the confident points of one frame.

        Raises:
            InputError: The pose is not a rigid transform.
        """
        self.add_points(
            reconstruction.points.reshape(-1, 3),
            reconstruction.color.reshape(-1, 3),
            reconstruction.confidence.reshape(-1),
            map_from_camera,
            None
            if reconstruction.depth_sigma_m is None
            else reconstruction.depth_sigma_m.reshape(-1),
        )

    def add_points(
        self,
        points: NDArray[np.floating],
        colors: NDArray[np.uint8],
        confidence: NDArray[np.floating],
        map_from_camera: NDArray[np.float64],
        sigma_m: NDArray[np.floating] | None = None,
    ) -> None:
        """Add points (N, 3) of the left optical frame; NaN points are left out.

        Args:
            points: (N, 3), metres, left optical frame.
            colors: (N, 3) uint8 RGB.
            confidence: (N,) in [0, 1].
            map_from_camera: (4, 4) rigid transform.
            sigma_m: (N,) standard deviations of the depths, metres; points without one (NaN) are
                left out. None where they are unknown.

        Raises:
            InputError: The pose is not a rigid transform.
        """
        _check_rigid(map_from_camera)
        depth = points[:, 2]
        # A comparison with NaN is False, so invalid points drop out here.
        keep = (depth > 0) & (depth <= self.max_range_m) & (confidence >= self.min_confidence)
        if sigma_m is not None:
            keep &= np.isfinite(sigma_m)
        camera_points = points[keep].astype(np.float64)
        if sigma_m is None:
            weights = confidence[keep] / camera_points[:, 2] ** 4
        else:
            weights = weights_of_sigma(sigma_m[keep].astype(np.float64))
        map_points = camera_points @ map_from_camera[:3, :3].T + map_from_camera[:3, 3]
        keys = _voxel_keys(map_points, self.voxel_m)
        self._parts.append(
            _sum_by_key(
                _VoxelSums(
                    keys,
                    weights,
                    map_points * weights[:, None],
                    colors[keep] * weights[:, None],
                    confidence[keep].astype(np.float32),
                    np.ones(len(keys), np.int64),
                )
            )
        )

    def cloud(self) -> FusedCloud:
        """Return what has been added so far, one point a voxel, ordered by voxel."""
        if not self._parts:
            empty = np.empty((0, 3))
            return FusedCloud(
                empty, empty.astype(np.uint8), np.empty(0, np.float32), np.empty(0, np.int64)
            )
        columns = zip(*(part.columns() for part in self._parts), strict=True)
        merged = _sum_by_key(_VoxelSums(*(np.concatenate(column) for column in columns)))
        self._parts = [merged]
        total = merged.weight[:, None]
        return FusedCloud(
            merged.point / total,
            np.clip(merged.color / total + 0.5, 0, 255).astype(np.uint8),
            merged.confidence,
            merged.observations,
        )


@dataclass(frozen=True)
class _VoxelSums:
    """Sums over the observations of each voxel: weights, weighted points and colours."""

    key: NDArray[np.int64]
    weight: NDArray[np.float64]
    point: NDArray[np.float64]
    color: NDArray[np.float64]
    confidence: NDArray[np.float32]
    observations: NDArray[np.int64]

    def columns(self) -> tuple[NDArray[Any], ...]:
        return (
            self.key,
            self.weight,
            self.point,
            self.color,
            self.confidence,
            self.observations,
        )


def _sum_by_key(rows: _VoxelSums) -> _VoxelSums:
    """Return one row a key, ascending; sums of all columns, the maximum of the confidence."""
    if rows.key.size == 0:
        return rows
    order = np.argsort(rows.key, kind='stable')
    key = rows.key[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    return _VoxelSums(
        key[starts],
        np.add.reduceat(rows.weight[order], starts),
        np.add.reduceat(rows.point[order], starts),
        np.add.reduceat(rows.color[order], starts),
        np.maximum.reduceat(rows.confidence[order], starts),
        np.add.reduceat(rows.observations[order], starts),
    )


def _voxel_keys(points: NDArray[np.float64], voxel_m: float) -> NDArray[np.int64]:
    indices = np.floor(points / voxel_m)
    if indices.size and np.abs(indices).max() >= MAX_INDEX:
        raise InputError(
            f'a point is {np.abs(points).max():.0f} m from the origin of the fixed frame; with '
            f'voxels of {voxel_m} m the limit is {MAX_INDEX * voxel_m:.0f} m. Move the origin '
            'nearer or take larger voxels'
        )
    return voxel_keys(indices[:, ::-1])  # x first


def _check_rigid(transform: NDArray[np.float64]) -> None:
    if transform.shape != (4, 4) or not np.isfinite(transform).all():
        raise InputError(f'pose has shape {transform.shape}; a finite 4x4 matrix is needed')
    rotation = transform[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4):
        raise InputError('the rotation of the pose is not orthonormal; is the quaternion set?')
