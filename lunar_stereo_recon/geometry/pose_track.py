"""Poses over time: looked up between the stamps at which they were given."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
import math

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.rotation import rotation_from_quaternion
from lunar_stereo_recon.limits import MAX_HEIGHT_M

# A minute of 100 Hz.
POSES_KEPT = 6000
# A rover that is placed elsewhere moves farther and faster than it can drive, or turns so.
JUMP_M = 0.5
JUMP_DEG, JUMP_DEG_S = 20.0, 180.0


@dataclass(frozen=True)
class Pose:
    """A frame in another one.

    Attributes:
        rotation: (3, 3), other frame from this one.
        position: (3,) origin of this frame in the other one, metres.
    """

    rotation: NDArray[np.float64]
    position: NDArray[np.float64]

    def of(self, child: Pose) -> Pose:
        """Return the pose in the other frame of what has the pose `child` in this one."""
        return Pose(self.rotation @ child.rotation, self.position + self.rotation @ child.position)

    def inverse(self) -> Pose:
        """Return the pose of the other frame in this one."""
        return Pose(self.rotation.T, -self.rotation.T @ self.position)

    def jump_to(self, later: Pose, seconds: float, max_speed: float) -> str:
        """Return what is impossible about a motion, '' where a rover can do it.

        Args:
            later: Pose after that time.
            seconds: The time.
            max_speed: Fastest that the rover moves, metres per second.
        """
        way_m = float(np.linalg.norm(later.position - self.position))
        if way_m > max(JUMP_M, max_speed * seconds):
            return f'the pose moved {way_m:.2f} m in {seconds:.2f} s'
        cosine = (float(np.trace(self.rotation.T @ later.rotation)) - 1) / 2
        angle_deg = math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
        if angle_deg > max(JUMP_DEG, JUMP_DEG_S * seconds):
            return f'the pose turned {angle_deg:.0f} degrees in {seconds:.2f} s'
        return ''


class PoseTrack:
    """The newest poses of one frame, in the order of their stamps.

    Args:
        max_gap_s: Poses farther apart say nothing about the time between them.
    """

    def __init__(self, max_gap_s: float = 1.0) -> None:
        self._max_gap_s = max_gap_s
        self._entries: deque[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = deque(
            maxlen=POSES_KEPT
        )

    def add(
        self, stamp_ns: int, position: NDArray[np.float64], quaternion: NDArray[np.float64]
    ) -> None:
        """Add a pose; what is not newer than the newest one is left out.

        Args:
            stamp_ns: Its time, nanoseconds.
            position: (3,) metres.
            quaternion: (4,) x, y, z, w.

        Raises:
            InputError: It is no finite pose.
        """
        if not (np.abs(position) < MAX_HEIGHT_M).all():
            raise InputError(
                f'position is {position.tolist()} m; below {MAX_HEIGHT_M:g} m is needed'
            )
        rotation_from_quaternion(quaternion)
        if self._entries and stamp_ns <= self._entries[-1][0]:
            return
        self._entries.append((stamp_ns, position, quaternion / np.linalg.norm(quaternion)))

    def clear(self) -> None:
        """Forget all poses."""
        self._entries.clear()

    @property
    def newest_ns(self) -> int | None:
        """Return the stamp of the newest pose, None where there is none."""
        return self._entries[-1][0] if self._entries else None

    def at(self, stamp_ns: int) -> Pose | None:
        """Return the pose at a time, between the two that surround it; None while it may come.

        Raises:
            InputError: It will never be known: the poses begin later, or leave too wide a gap.
        """
        if not self._entries or stamp_ns > self._entries[-1][0]:
            return None
        after = len(self._entries) - 1
        while after > 0 and self._entries[after - 1][0] >= stamp_ns:
            after -= 1
        end_ns, end_position, end_quaternion = self._entries[after]
        if end_ns == stamp_ns:
            return Pose(rotation_from_quaternion(end_quaternion), end_position)
        if after == 0:
            raise InputError(
                f'the poses begin {1e-9 * (end_ns - stamp_ns):.3f} s after the time of the cloud'
            )
        start_ns, start_position, start_quaternion = self._entries[after - 1]
        gap_s = 1e-9 * (end_ns - start_ns)
        if gap_s > self._max_gap_s:
            raise InputError(
                f'the poses before and after the cloud are {gap_s:.2f} s apart; at most '
                f'{self._max_gap_s:g} s is allowed'
            )
        share = (stamp_ns - start_ns) / (end_ns - start_ns)
        # Both quaternions are one rotation: take the nearer one. For turns of a few degrees the
        # mean of quaternions is what a slerp gives.
        sign = 1.0 if float(start_quaternion @ end_quaternion) >= 0 else -1.0
        quaternion = (1 - share) * start_quaternion + share * sign * end_quaternion
        position = (1 - share) * start_position + share * end_position
        return Pose(rotation_from_quaternion(quaternion), position)


def pose_of_arrays(xyz_m: NDArray[np.float64], xyzw: NDArray[np.float64]) -> Pose:
    """Return a pose from a position (3,) and a quaternion (4,) x, y, z, w.

    Raises:
        InputError: The quaternion is no rotation.
    """
    return Pose(rotation_from_quaternion(np.asarray(xyzw, np.float64)), np.asarray(xyz_m, float))
