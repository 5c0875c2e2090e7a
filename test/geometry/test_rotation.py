"""Rotations, quaternions and angles."""

import math

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.rotation import (
    quaternion_from_rotation,
    rotation_from_quaternion,
    rotation_from_rpy,
)


def test_quaternions_and_rotations_are_inverses():
    for angles in ((0.1, -0.4, 2.0), (3.0, 0.2, -1.0), (0.0, math.pi / 2, 0.0)):
        rotation = rotation_from_rpy(*angles)
        quaternion = quaternion_from_rotation(rotation)
        np.testing.assert_allclose(rotation_from_quaternion(3 * quaternion), rotation, atol=1e-12)
    with pytest.raises(InputError, match='quaternion is'):
        rotation_from_quaternion(np.zeros(4))
