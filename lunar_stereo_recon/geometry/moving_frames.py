"""Frames that move against each other: what `/tf` and `/tf_static` say, looked up at a time."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.rotation import rotation_from_quaternion
from lunar_stereo_recon.limits import MAX_HEIGHT_M

Pose = NDArray[np.float64]
# Between two poses farther apart nothing is known about the way.
MOST_APART_NS = 1_000_000_000


class RecordedPoses:
    """The poses of a frame in another one over a recording."""

    def __init__(self) -> None:
        self._poses: dict[int, tuple[Pose, Pose]] = {}
        self._stamps: list[int] = []

    def add(self, stamp_ns: int, xyz_m: Pose, xyzw: Pose) -> None:
        """Add a pose; of two with one stamp the later one holds.

        Raises:
            InputError: The quaternion is no rotation, or the position not within `limits`.
        """
        _matrix(xyz_m, xyzw)
        self._poses[stamp_ns] = xyz_m, xyzw / np.linalg.norm(xyzw)
        self._stamps = []

    def at(self, stamp_ns: int) -> Pose | None:
        """Return the (4, 4) pose at a time; None where none is there, nor two around it."""
        known = self._poses.get(stamp_ns)
        if known is not None:
            return _matrix(*known)
        if not self._stamps:
            self._stamps = sorted(self._poses)
        after = bisect_left(self._stamps, stamp_ns)
        if after == 0 or after == len(self._stamps):
            return None
        start, end = self._stamps[after - 1], self._stamps[after]
        if end - start > MOST_APART_NS:
            return None
        share = (stamp_ns - start) / (end - start)
        (position_a, turn_a), (position_b, turn_b) = self._poses[start], self._poses[end]
        position = (1 - share) * position_a + share * position_b
        return _matrix(position, _between(turn_a, turn_b, share))


class MovingFrames:
    """Transforms by child frame; static ones hold at all times.

    Leading slashes are no part of the names.
    """

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, RecordedPoses | Pose]] = {}

    def add(self, parent: str, child: str, stamp_ns: int, xyz_m: Pose, xyzw: Pose) -> None:
        """Add the pose of a moving child frame in its parent frame.

        Raises:
            InputError: See `RecordedPoses.add`.
        """
        parent, child = parent.lstrip('/'), child.lstrip('/')
        known = self._parents.get(child)
        track = known[1] if known and isinstance(known[1], RecordedPoses) else RecordedPoses()
        track.add(stamp_ns, xyz_m, xyzw)
        self._parents[child] = parent, track

    def add_static(self, parent: str, child: str, xyz_m: Pose, xyzw: Pose) -> None:
        """Add the pose of a child frame that does not move in its parent frame.

        Raises:
            InputError: See `RecordedPoses.add`.
        """
        self._parents[child.lstrip('/')] = parent.lstrip('/'), _matrix(xyz_m, xyzw)

    def root(self, frame: str) -> str:
        """Return the frame at the top of the tree, the frame itself where it has no parent."""
        return self._chain(frame)[-1]

    def moves(self, frame: str) -> bool:
        """Say whether a frame or one above it moves."""
        return any(
            isinstance(self._parents[name][1], RecordedPoses) for name in self._chain(frame)[:-1]
        )

    def lookup(self, target: str, source: str, stamp_ns: int) -> Pose | None:
        """Return the (4, 4) pose of `source` in `target`; None where one is not known then.

        Raises:
            InputError: The two are not connected.
        """
        above_target, above_source = self._chain(target), self._chain(source)
        common = next((frame for frame in above_source if frame in above_target), None)
        if common is None:
            raise InputError(f'no transform from {source!r} to {target!r}')
        poses = [self._up(chain, common, stamp_ns) for chain in (above_target, above_source)]
        if poses[0] is None or poses[1] is None:
            return None
        return np.linalg.inv(poses[0]) @ poses[1]

    def _up(self, chain: list[str], common: str, stamp_ns: int) -> Pose | None:
        """Return the pose of the first frame of a chain in one above it."""
        pose = np.eye(4)
        for frame in chain[: chain.index(common)]:
            step = self._parents[frame][1]
            here = step.at(stamp_ns) if isinstance(step, RecordedPoses) else step
            if here is None:
                return None
            pose = here @ pose
        return pose

    def _chain(self, frame: str) -> list[str]:
        """Return a frame and those above it; a circle, which is nonsense, ends."""
        chain = [frame.lstrip('/')]
        while chain[-1] in self._parents and self._parents[chain[-1]][0] not in chain:
            chain.append(self._parents[chain[-1]][0])
        return chain


def _matrix(position: Pose, quaternion: Pose) -> Pose:
    if not np.all(np.abs(position) <= MAX_HEIGHT_M):  # NaN fails, too
        raise InputError(
            f'position is {tuple(map(float, position))}; metres within +-{MAX_HEIGHT_M:g} are '
            'needed'
        )
    pose = np.eye(4)
    pose[:3, :3] = rotation_from_quaternion(quaternion)
    pose[:3, 3] = position
    return pose


def _between(first: Pose, second: Pose, share: float) -> Pose:
    """Return the unit quaternion at a share of the shorter way between two (slerp)."""
    dot = float(first @ second)
    if dot < 0:
        second, dot = -second, -dot
    angle = np.arccos(min(dot, 1.0))
    if angle < 1e-6:
        return first + share * (second - first)
    parts = np.sin([(1 - share) * angle, share * angle]) / np.sin(angle)
    return parts[0] * first + parts[1] * second
