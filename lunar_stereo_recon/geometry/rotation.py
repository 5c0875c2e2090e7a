"""Rotations in the forms that messages and files want."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError


def quaternion_from_rotation(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit quaternion x, y, z, w (w >= 0) of a (3, 3) rotation."""
    # The eigenvector of the largest eigenvalue of this symmetric matrix (Bar-Itzhack, "New method
    # for extracting the quaternion from a rotation matrix", 2000): no special cases where the
    # trace is small.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    form = np.array(
        [
            [xx - yy - zz, xy + yx, xz + zx, zy - yz],
            [xy + yx, yy - xx - zz, yz + zy, xz - zx],
            [xz + zx, yz + zy, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    quaternion = np.linalg.eigh(form)[1][:, -1]
    return quaternion if quaternion[3] >= 0 else -quaternion


def rotation_from_quaternion(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (3, 3) rotation of a quaternion x, y, z, w, which need not be of length 1.

    Raises:
        InputError: Its length is 0 or not finite.
    """
    length = float(np.linalg.norm(quaternion))
    if not (length > 0 and math.isfinite(length)):
        raise InputError(f'quaternion is {tuple(map(float, quaternion))}; a rotation is needed')
    x, y, z, w = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotation_from_rpy(roll: float, pitch: float, yaw: float) -> NDArray[np.float64]:
    """Return the (3, 3) rotation about the fixed axes x, then y, then z, by radians."""
    cr, sr = math.cos(roll), math.sin(roll)
    cp, sp = math.cos(pitch), math.sin(pitch)
    cy, sy = math.cos(yaw), math.sin(yaw)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


# Body axes (x forward, y left, z up; REP 103) from optical ones (x right, y down, z forward).
BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def without_yaw(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a (3, 3) rotation from body axes to axes with z up, its yaw taken out.

    What remains is roll and pitch: the body's x axis has no part along y.

    Args:
        rotation: (3, 3) to axes with z up, whatever their heading.
    """
    yaw = math.atan2(rotation[1, 0], rotation[0, 0])
    return rotation_from_rpy(0.0, 0.0, -yaw) @ rotation
