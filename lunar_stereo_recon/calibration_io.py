"""Calibrations of rectified rigs from YAML: ROS camera_info files or five plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import CalibrationError


def load_calibration(
    paths: Sequence[str | Path],
    width: int,
    height: int,
    baseline_m: float | None = None,
) -> StereoCalibration:
    """Return the calibration of a rectified rig.

    Args:
        paths: One or two YAML files. Two are the camera_info files of the left and the right
            camera. One is either plain (`fx fy cx cy baseline`, optionally `cx_right`, `width`,
            `height`), or has `left` and `right` camera_info mappings, or is one camera_info whose
            projection_matrix carries -fx * baseline (the right camera's; the left one is taken
            to have the same matrix).
        width: Width of the images it is for, pixels.
        height: Their height, pixels.
        baseline_m: Overrides the baseline in the files, metres.

    Raises:
        CalibrationError: A file is missing or not of these forms, a value is impossible, or the
            file is for images of another size.
    """
    if len(paths) not in (1, 2):
        raise CalibrationError(f'{len(paths)} calibration files given; 1 or 2 are needed')
    documents = [_read_mapping(Path(path)) for path in paths]
    sources = [str(path) for path in paths]
    if len(documents) == 1 and {'left', 'right'} <= set(documents[0]):
        sources = [f'{paths[0]} ({side})' for side in ('left', 'right')]
        documents = [_mapping(documents[0][side], paths[0]) for side in ('left', 'right')]
    for document, source in zip(documents, sources, strict=True):
        _check_size(document, source, width, height)
    if len(documents) == 1 and 'projection_matrix' not in documents[0]:
        return _from_numbers(documents[0], sources[0], width, height, baseline_m)
    projections = [
        _projection(document, source) for document, source in zip(documents, sources, strict=True)
    ]
    return calibration_from_projections(
        projections[0], projections[-1], width, height, baseline_m, sources[-1]
    )


def calibration_from_projections(
    left: Sequence[float],
    right: Sequence[float],
    width: int,
    height: int,
    baseline_m: float | None = None,
    source: str = 'right camera_info',
) -> StereoCalibration:
    """Return the calibration held by two ROS projection matrices P (12 values, row-major).

    Args:
        left: P of the rectified left camera.
        right: P of the right one; P[3] = -fx * baseline, pixels * metres.
        width: Image width, pixels.
        height: Image height, pixels.
        baseline_m: Overrides the baseline from P[3], metres.
        source: What `right` came from, for messages.

    Raises:
        CalibrationError: Focal lengths differ, or P[3] gives no positive baseline and none is
            given.
    """
    fx, fy, fx_right = left[0], left[5], right[0]
    if not fx > 0 or not fy > 0:
        raise CalibrationError(f'left projection has fx {fx}, fy {fy}; both must be positive')
    if abs(fx - fx_right) > 1e-3 * fx:
        raise CalibrationError(
            f'{source}: fx is {fx_right} but the left camera has {fx}; '
            'a rectified rig has one focal length'
        )
    if baseline_m is None:
        if not right[3] < 0:
            raise CalibrationError(
                f'{source}: P[3] is {right[3]}; -fx * baseline, which is negative, is needed '
                '(set `baseline` in metres to override it)'
            )
        baseline_m = -right[3] / fx_right
    return StereoCalibration(fx, fy, left[2], left[6], right[2], baseline_m, width, height)


def _read_mapping(path: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise CalibrationError(f'cannot read calibration {path}: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CalibrationError(f'calibration {path} is not YAML: {error}') from error
    return _mapping(document, path)


def _mapping(document: Any, path: str | Path) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise CalibrationError(f'calibration {path} holds {document!r}; a mapping is needed')
    return document


def _check_size(document: Mapping[str, Any], source: str, width: int, height: int) -> None:
    for names, wanted in ((('image_width', 'width'), width), (('image_height', 'height'), height)):
        for name in names:
            if name in document and document[name] != wanted:
                raise CalibrationError(
                    f'{source} is for images with {name} {document[name]}, '
                    f'but the images are {width}x{height}'
                )


def _projection(document: Mapping[str, Any], source: str) -> list[float]:
    try:
        values = [float(value) for value in document['projection_matrix']['data']]
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(
            f'{source} has no readable projection_matrix.data; '
            'a camera_info of a rectified camera is needed'
        ) from error
    if len(values) != 12:
        raise CalibrationError(f'{source}: projection_matrix has {len(values)} values, not 12')
    return values


def _from_numbers(
    document: Mapping[str, Any], source: str, width: int, height: int, baseline_m: float | None
) -> StereoCalibration:
    numbers = dict(document)
    if 'baseline_m' in numbers:
        numbers['baseline'] = numbers.pop('baseline_m')
    if baseline_m is not None:
        numbers['baseline'] = baseline_m
    missing = [name for name in ('fx', 'fy', 'cx', 'cy', 'baseline') if name not in numbers]
    if missing:
        raise CalibrationError(
            f'{source} lacks {", ".join(missing)}; fx, fy, cx, cy (pixels) and baseline (metres), '
            'or a ROS camera_info with projection_matrix, is needed'
        )
    numbers.setdefault('cx_right', numbers['cx'])
    try:
        fx, fy, cx, cy, cx_right, baseline = (
            float(numbers[name]) for name in ('fx', 'fy', 'cx', 'cy', 'cx_right', 'baseline')
        )
    except (TypeError, ValueError) as error:
        raise CalibrationError(f'{source}: {error}') from error
    return StereoCalibration(fx, fy, cx, cy, cx_right, baseline, width, height)
