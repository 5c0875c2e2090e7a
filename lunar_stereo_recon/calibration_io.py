"""Calibrations of rectified rigs from YAML: ROS camera_info files or five plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import CalibrationError
from lunar_stereo_recon.messages import calibration_from_camera_infos, StereoTopics


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
    if baseline_m is not None and not baseline_m > 0:
        raise CalibrationError(f'baseline is {baseline_m} m; it must be positive')
    documents = [_read_mapping(Path(path)) for path in paths]
    sources = [str(path) for path in paths]
    if len(documents) == 1 and {'left', 'right'} <= set(documents[0]):
        sources = [f'{paths[0]} ({side})' for side in ('left', 'right')]
        documents = [_mapping(documents[0][side], paths[0]) for side in ('left', 'right')]
    for document, source in zip(documents, sources, strict=True):
        _check_size(document, source, width, height)
    if len(documents) == 1 and 'projection_matrix' not in documents[0]:
        return _from_numbers(documents[0], sources[0], width, height, baseline_m)
    infos = [
        _camera_info(document, source, width, height)
        for document, source in zip(documents, sources, strict=True)
    ]
    if len(infos) == 1:
        infos = [_at_origin(infos[0]), *infos]
    return calibration_from_camera_infos(
        *infos,
        baseline_m=baseline_m or 0.0,
        topics=StereoTopics(left_info=sources[0], right_info=sources[-1]),
    )


def _read_mapping(path: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise CalibrationError(f'cannot read calibration {path}: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = ' '.join(str(error).split())
        raise CalibrationError(f'calibration {path} is not YAML: {reason}') from error
    return _mapping(document, path)


def _mapping(document: Any, path: str | Path) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise CalibrationError(f'calibration {path} holds {document!r}; a mapping is needed')
    return document


def _check_size(document: Mapping[str, Any], source: str, width: int, height: int) -> None:
    expected = {
        'image_width': width,
        'width': width,
        'image_height': height,
        'height': height,
    }
    for name, wanted in expected.items():
        if name in document and document[name] != wanted:
            raise CalibrationError(
                f'{source} is for images with {name} {document[name]}, '
                f'but the images are {width}x{height}'
            )


def _camera_info(
    document: Mapping[str, Any], source: str, width: int, height: int
) -> SimpleNamespace:
    """Return what `messages` reads of a CameraInfo, from its YAML form."""
    try:
        values = [float(value) for value in document['projection_matrix']['data']]
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(
            f'{source} has no readable projection_matrix.data; '
            'a camera_info of a rectified camera is needed'
        ) from error
    if len(values) != 12:
        raise CalibrationError(f'{source}: projection_matrix has {len(values)} values, not 12')
    whole = SimpleNamespace(width=0, height=0, x_offset=0, y_offset=0)
    return SimpleNamespace(
        width=width, height=height, p=values, roi=whole, binning_x=0, binning_y=0
    )


def _at_origin(info: SimpleNamespace) -> SimpleNamespace:
    """Return the left camera that belongs to a right one whose P holds the baseline."""
    return SimpleNamespace(**{**vars(info), 'p': [*info.p[:3], 0.0, *info.p[4:]]})


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
