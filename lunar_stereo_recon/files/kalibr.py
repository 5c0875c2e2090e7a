"""Calibrations of Kalibr: a camchain file of two cameras as two camera_infos, rectified here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import CalibrationError

# Kalibr's distortion models, and what sensor_msgs calls them.
MODELS = {'none': '', 'radtan': 'plumb_bob', 'equidistant': 'equidistant'}
COEFFICIENTS = {'none': 0, 'radtan': 4, 'equidistant': 4}
ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Camera:
    matrix: NDArray[np.float64]
    model: str
    distortion: NDArray[np.float64]
    size: tuple[int, int]


def is_camchain(document: Mapping[str, Any]) -> bool:
    """Say whether a YAML document is a camchain."""
    return isinstance(document.get('cam0'), Mapping)


def camera_infos_of_camchain(document: Mapping[str, Any], source: str) -> list[Mapping[str, Any]]:
    """Return left and right mapping in the form of ROS's camera_info files.

    The left camera is the one whose right neighbour the other is, whichever number it has. Further
    cameras of the chain are left aside. The rectified views are as large as the raw ones and show
    nothing beyond them (OpenCV's `stereoRectify`, alpha 0).

    Args:
        document: What the file holds.
        source: Its name.

    Raises:
        CalibrationError: There is no second camera, a model that is not known, an impossible
            number, or the cameras do not stand side by side.
    """
    if not isinstance(document.get('cam1'), Mapping):
        raise CalibrationError(f'{source} is a camchain without cam1; two cameras are needed')
    cameras = [_camera(document[name], f'{source} ({name})') for name in ('cam0', 'cam1')]
    if cameras[0].size != cameras[1].size:
        raise CalibrationError(
            f'{source}: cam0 is {cameras[0].size} and cam1 {cameras[1].size}; both views must '
            'have one size'
        )
    rotation, translation = _transform(document['cam1'], f'{source} (cam1)')
    centre = -rotation.T @ translation  # of cam1, in cam0
    if abs(centre[0]) <= abs(centre[1]):
        raise CalibrationError(
            f'{source}: cam1 is at {np.round(centre, 4).tolist()} m as cam0 sees it; cameras that '
            'stand side by side are needed'
        )
    if centre[0] < 0:
        cameras.reverse()
        rotation, translation = rotation.T, centre
    try:
        rotations, projections = _rectified(cameras[0], cameras[1], rotation, translation)
    except cv2.error as error:
        raise CalibrationError(f'{source} cannot be rectified: {error.err}') from error
    return [
        {
            'image_width': camera.size[0],
            'image_height': camera.size[1],
            'camera_matrix': {'data': camera.matrix.ravel().tolist()},
            'distortion_model': MODELS[camera.model],
            'distortion_coefficients': {'data': camera.distortion.tolist()},
            'rectification_matrix': {'data': rotation.ravel().tolist()},
            'projection_matrix': {'data': projection.ravel().tolist()},
        }
        for camera, rotation, projection in zip(cameras, rotations, projections, strict=True)
    ]


def _camera(entries: Mapping[str, Any], source: str) -> _Camera:
    kind = entries.get('camera_model')
    if kind != 'pinhole':
        raise CalibrationError(f'{source}: camera_model is {kind!r}; pinhole is needed')
    model = entries.get('distortion_model', 'none')
    if model not in MODELS:
        raise CalibrationError(
            f'{source}: distortion_model is {model!r}; one of {", ".join(MODELS)} is needed'
        )
    fx, fy, cx, cy = _numbers(entries, 'intrinsics', (4,), source)
    if not min(fx, fy) > 0:
        raise CalibrationError(
            f'{source}: focal lengths are {fx:g} and {fy:g}; positive is needed'
        )
    size = _numbers(entries, 'resolution', (2,), source)
    if not all(number > 0 and number == int(number) for number in size):
        raise CalibrationError(f'{source}: resolution is {size.tolist()}; pixels are needed')
    count = COEFFICIENTS[model]
    distortion = _numbers(entries, 'distortion_coeffs', (count,), source) if count else np.zeros(0)
    matrix = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    return _Camera(matrix, model, distortion, (int(size[0]), int(size[1])))


def _transform(
    entries: Mapping[str, Any], source: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rotation (3, 3) and translation (3,) that take points of cam0 to cam1."""
    name = 'T_cn_cnm1'
    matrix = _numbers(entries, name, (4, 4), source)
    rotation, translation = matrix[:3, :3], matrix[:3, 3]
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise CalibrationError(f'{source}: {name} is {matrix.tolist()}; a rotation is needed')
    return rotation, translation


def _numbers(
    entries: Mapping[str, Any], name: str, shape: tuple[int, ...], source: str
) -> NDArray[np.float64]:
    try:
        values = np.array(entries[name], np.float64)
    except KeyError as error:
        raise CalibrationError(f'{source} has no {name}, as Kalibr writes it') from error
    except (TypeError, ValueError, OverflowError) as error:
        raise CalibrationError(f'{source}: {name} is not made of numbers: {error}') from error
    if values.shape != shape or not np.isfinite(values).all():
        raise CalibrationError(
            f'{source}: {name} has the shape {values.shape}; {shape} finite numbers are needed'
        )
    return values


def _rectified(
    left: _Camera,
    right: _Camera,
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return the rectifying rotations (3, 3) and the projections (3, 4), left and right."""
    if (left.model == 'equidistant') != (right.model == 'equidistant'):
        raise CalibrationError(
            f'the left camera is {left.model!r} and the right {right.model!r}; cameras of one '
            'kind are needed'
        )
    arguments = (
        *(left.matrix, _or_none(left.distortion), right.matrix, _or_none(right.distortion)),
        # OpenCV takes no slice of a larger matrix, nor a transposed one.
        *(left.size, rotation.copy('C'), translation.copy('C').reshape(3, 1)),
    )
    if left.model == 'equidistant':
        found = cv2.fisheye.stereoRectify(*arguments, flags=cv2.CALIB_ZERO_DISPARITY)
    else:
        found = cv2.stereoRectify(*arguments, flags=cv2.CALIB_ZERO_DISPARITY, alpha=0)
    return list(found[:2]), list(found[2:4])


def _or_none(distortion: NDArray[np.float64]) -> NDArray[np.float64] | None:
    return distortion if distortion.size else None
