"""Where the cameras of a rig are on the rover: their optical frames, from a YAML file.

A body frame has x forward, y left, z up; an optical frame z forward, x right, y down (REP 103).
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
import yaml

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.yaml_files import read_yaml
from lunar_stereo_recon.geometry.rotation import (
    BODY_FROM_OPTICAL,
    quaternion_from_rotation,
    rotation_from_rpy,
)

_NAMES = ('base_frame', 'left_optical_frame', 'right_optical_frame')
_VECTORS = ('position', 'rotation_deg')


@dataclass(frozen=True)
class FrameTransform:
    """Pose of a child frame in its parent frame.

    Attributes:
        parent, child: Names of the frames.
        xyz_m: Origin of the child, metres.
        xyzw: Unit quaternion, x y z w.
    """

    parent: str
    child: str
    xyz_m: tuple[float, float, float]
    xyzw: tuple[float, float, float, float]


@dataclass(frozen=True)
class RigFrames:
    """The optical frames of a stereo rig in the rover's base frame."""

    left: FrameTransform
    right: FrameTransform


def optical_frame(base: str, name: str, camera_in_base: NDArray[np.float64]) -> FrameTransform:
    """Return the optical frame `name` of a camera whose body has a (4, 4) pose in `base`."""
    x, y, z = (float(value) for value in camera_in_base[:3, 3])
    quaternion = quaternion_from_rotation(camera_in_base[:3, :3] @ BODY_FROM_OPTICAL)
    qx, qy, qz, qw = quaternion.tolist()
    return FrameTransform(base, name, (x, y, z), (qx, qy, qz, qw))


def read_rig_frames(path: str | Path) -> RigFrames:
    """Return the optical frames that a rig file describes; `config/rig.yaml` is one.

    Args:
        path: YAML with `base_frame`, `left_optical_frame`, `right_optical_frame`, `position`
            (x y z of the left optical centre in the base frame, metres), `rotation_deg` (roll
            pitch yaw of the camera, about the base frame's axes) and `baseline` (metres).

    Raises:
        InputError: The file cannot be read, or an entry is missing, unknown or not of its form.
    """
    entries = _entries(Path(path))
    camera = np.eye(4)
    camera[:3, :3] = rotation_from_rpy(*np.radians(entries['rotation_deg']))
    camera[:3, 3] = entries['position']
    right_camera = camera.copy()
    # The right camera is `baseline` to the right, which is -y of the body.
    right_camera[:3, 3] -= entries['baseline'] * camera[:3, 1]
    base, left, right = (entries[name] for name in _NAMES)
    return RigFrames(optical_frame(base, left, camera), optical_frame(base, right, right_camera))


def _entries(path: Path) -> dict[str, Any]:
    try:
        document = read_yaml(path)
    except OSError as error:
        raise InputError(f'cannot read the rig {path}: {error.strerror}') from error
    except yaml.YAMLError as error:
        raise InputError(f'the rig {path} is not YAML: {" ".join(str(error).split())}') from error
    known = {*_NAMES, *_VECTORS, 'baseline'}
    if not isinstance(document, dict) or document.keys() != known:
        has = ', '.join(map(str, document)) if isinstance(document, dict) else repr(document)
        raise InputError(f'the rig {path} has {has}; {", ".join(sorted(known))} are needed')
    for name in _NAMES:
        if not isinstance(document[name], str) or not document[name]:
            raise InputError(f'{path}: {name} is {document[name]!r}; a frame name is needed')
    for name in _VECTORS:
        document[name] = _numbers(path, name, document[name], 3)
    (document['baseline'],) = _numbers(path, 'baseline', [document['baseline']], 1)
    if document['baseline'] <= 0:
        raise InputError(f'{path}: baseline is {document["baseline"]} m; it must be positive')
    return document


def _numbers(path: Path, name: str, values: Any, count: int) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(f'{path}: {name} is {values!r}; {count} finite numbers are needed')
    return numbers
