"""Frames that do not move against each other: what `/tf_static` says, looked up along the tree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError, quoted
from lunar_stereo_recon.geometry.rotation import rotation_from_quaternion
from lunar_stereo_recon.limits import MAX_FRAMES, MAX_HEIGHT_M, MAX_NAME

Pose = NDArray[np.float64]


class FrameTree:
    """Static transforms by child frame; the newest one of a child holds."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, Pose]] = {}

    def add(self, parent: str, child: str, xyz_m: Pose, xyzw: Pose) -> None:
        """Add the pose of a child frame in its parent frame.

        Args:
            parent, child: Names, without a leading slash.
            xyz_m: (3,) origin of the child, metres.
            xyzw: (4,) quaternion x, y, z, w.

        Raises:
            InputError: The quaternion is no rotation, the origin is not within `limits`, a name is
                too long, or there are too many frames.
        """
        if max(len(parent), len(child)) > MAX_NAME:
            raise InputError(
                f'the frames are {quoted(parent)} and {quoted(child)}; names of at most '
                f'{MAX_NAME} characters are needed'
            )
        if not np.all(np.abs(xyz_m) <= MAX_HEIGHT_M):  # NaN fails, too
            raise InputError(
                f'the origin is at {xyz_m} m; numbers within +-{MAX_HEIGHT_M:g} are needed'
            )
        child = child.lstrip('/')
        if child not in self._parents and len(self._parents) >= MAX_FRAMES:
            raise InputError(f'{MAX_FRAMES} static frames are known; there is no room for more')
        pose = np.eye(4)
        pose[:3, :3] = rotation_from_quaternion(np.asarray(xyzw, np.float64))
        pose[:3, 3] = xyz_m
        self._parents[child] = parent.lstrip('/'), pose

    def lookup(self, target: str, source: str) -> Pose:
        """Return the (4, 4) pose of `source` in `target`.

        Raises:
            InputError: The two are not connected.
        """
        to_target, to_source = self._to_root(target), self._to_root(source)
        for frame, pose in to_source.items():
            if frame in to_target:
                return np.linalg.inv(to_target[frame]) @ pose
        raise InputError(f'no static transform from {quoted(source)} to {quoted(target)}')

    def _to_root(self, frame: str) -> dict[str, Pose]:
        """Return the pose of a frame in itself and in each frame above it, nearest first."""
        frame, pose = frame.lstrip('/'), np.eye(4)
        poses = {frame: pose}
        while frame in self._parents:
            frame, step = self._parents[frame]
            if frame in poses:
                break  # a circle: somebody published nonsense
            poses[frame] = pose = step @ pose
        return poses
