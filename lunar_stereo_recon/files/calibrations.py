"""Calibrations from YAML: ROS camera_infos, Kalibr, OpenCV, or five plain numbers of a rig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import CalibrationError
from lunar_stereo_recon.files.kalibr import camera_infos_of_camchain, is_camchain
from lunar_stereo_recon.files.yaml_files import read_yaml
from lunar_stereo_recon.messages import calibration_from_camera_infos, StereoTopics

# Entries of a calibration in plain numbers. Anything else, such as distortion, would be ignored.
PLAIN_ENTRIES = (
    *('fx', 'fy', 'cx', 'cy', 'cx_right', 'baseline', 'baseline_m'),
    *('width', 'height', 'image_width', 'image_height'),
)


# What a camera_info's matrices are called in OpenCV's sample `stereo_calib`, before 1 and 2.
_OPENCV_NAMES = {
    'camera_matrix': 'M',
    'distortion_coefficients': 'D',
    'rectification_matrix': 'R',
    'projection_matrix': 'P',
}


@dataclass(frozen=True)
class RegionOfInterest:
    """The fields of a `sensor_msgs` RegionOfInterest; zeros mean the whole image."""

    x_offset: int = 0
    y_offset: int = 0
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class CameraInfo:
    """The fields of a `sensor_msgs` CameraInfo, from a file; `messages` reads it like a message.

    Attributes:
        width, height: Size of the images, pixels.
        p: 12 numbers, the rectified 3x4 projection; the right camera's p[3] is -fx * baseline.
        k: 9 numbers, the 3x3 intrinsics of the raw image; zeros where the file has none.
        r: 9 numbers, the rectifying rotation.
        d: Distortion coefficients; empty where the file has none.
        distortion_model: 'plumb_bob', 'rational_polynomial', 'equidistant', 'fisheye' or ''.
        binning_x, binning_y, roi: No binning and the whole image; files do not tell them.
    """

    width: int
    height: int
    p: tuple[float, ...]
    k: tuple[float, ...] = (0.0,) * 9
    r: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    d: tuple[float, ...] = ()
    distortion_model: str = ''
    binning_x: int = 0
    binning_y: int = 0
    roi: RegionOfInterest = RegionOfInterest()


def load_camera_info(path: str | Path) -> CameraInfo:
    """Return the camera_info in a YAML file of the form that `camera_calibration` writes.

    Raises:
        CalibrationError: The file cannot be read, has no image size or projection matrix, or a
            matrix is not of its size.
    """
    return _sized_camera_info(_read_mapping(Path(path)), str(path))


def _sized_camera_info(document: Mapping[str, Any], source: str) -> CameraInfo:
    width, height = document.get('image_width'), document.get('image_height')
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise CalibrationError(
            f'{source} has image_width {width} and image_height {height}; positive whole '
            'numbers are needed, as camera_calibration writes them'
        )
    return _camera_info(document, source, width, height)


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
            to have the same matrix), or is a camchain of Kalibr. Files of OpenCV's FileStorage
            are read too, and those that its sample `stereo_calib` writes (M1, D1, R1, P1 and so
            on, in one file or two).
        width: Width of the images it is for, pixels.
        height: Their height, pixels.
        baseline_m: Overrides the baseline in the files, metres.

    Raises:
        CalibrationError: A file is missing or not of these forms, a value is impossible, or the
            file is for images of another size.
    """
    return load_file_calibration(paths, width, height, baseline_m).rectified


@dataclass(frozen=True)
class FileCalibration:
    """What calibration files say about image files.

    Attributes:
        rectified: Of the rectified pair.
        infos: camera_infos of the left and the right camera, by which raw images are rectified;
            None where the files have plain numbers or one camera alone.
        sources: Names of the two.
        distorted: A camera_info in them has distortion, so raw images are not rectified ones.
    """

    rectified: StereoCalibration
    infos: tuple[CameraInfo, CameraInfo] | None
    sources: tuple[str, str]
    distorted: bool = False


def load_file_calibration(
    paths: Sequence[str | Path],
    width: int,
    height: int,
    baseline_m: float | None = None,
) -> FileCalibration:
    """Return what `load_calibration` reads, with the camera_infos behind it."""
    if baseline_m is not None and not baseline_m > 0:
        raise CalibrationError(f'baseline is {baseline_m} m; it must be positive')
    documents, sources = _documents(paths)
    for document, source in zip(documents, sources, strict=True):
        _check_size(document, source, width, height)
    both = (sources[0], sources[-1])
    if len(documents) == 1 and 'projection_matrix' not in documents[0]:
        plain = _from_numbers(documents[0], sources[0], width, height, baseline_m)
        return FileCalibration(plain, None, both)
    infos = [
        _camera_info(document, source, width, height)
        for document, source in zip(documents, sources, strict=True)
    ]
    alone = len(infos) == 1
    left, right = (_at_origin(infos[0]), infos[0]) if alone else infos
    rectified = calibration_from_camera_infos(
        left,
        right,
        baseline_m=baseline_m or 0.0,
        topics=StereoTopics(left_info=both[0], right_info=both[1]),
    )
    distorted = any(left.d) or any(right.d)
    return FileCalibration(rectified, None if alone else (left, right), both, distorted)


def load_camera_infos(paths: Sequence[str | Path]) -> tuple[CameraInfo, CameraInfo]:
    """Return the camera_infos of the left and the right camera.

    Args:
        paths: One file with both, or two, in the forms of `load_calibration`. Two times the same
            is one.

    Raises:
        CalibrationError: As `load_calibration`; or there is one camera alone.
    """
    same = len(paths) == 2 and str(paths[0]) == str(paths[1])
    documents, sources = _documents(paths[:1] if same else paths)
    if len(documents) == 1 and same:
        documents, sources = documents * 2, sources * 2
    if len(documents) == 1:
        raise CalibrationError(
            f'{sources[0]} is of one camera; a file of each, or one of both (left and right, '
            "OpenCV's stereo_calib, Kalibr's camchain) is needed"
        )
    left, right = (
        _sized_camera_info(document, source)
        for document, source in zip(documents, sources, strict=True)
    )
    return left, right


def _documents(paths: Sequence[str | Path]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return what is known of the left and the right camera, or of the rig, and where from."""
    if len(paths) not in (1, 2):
        raise CalibrationError(f'{len(paths)} calibration files given; 1 or 2 are needed')
    documents = [_read_mapping(Path(path)) for path in paths]
    sources = [str(path) for path in paths]
    sides = [f'{", ".join(sources)} ({side})' for side in ('left', 'right')]
    of_opencv = _stereo_calibration_of_opencv(documents)
    if of_opencv is not None:
        return of_opencv, sides
    if len(documents) == 1 and is_camchain(documents[0]):
        return camera_infos_of_camchain(documents[0], sources[0]), sides
    if len(documents) == 1 and {'left', 'right'} <= set(documents[0]):
        return [_mapping(documents[0][side], paths[0]) for side in ('left', 'right')], sides
    return documents, sources


def _read_mapping(path: Path) -> Mapping[str, Any]:
    try:
        document = read_yaml(path)
    except OSError as error:
        raise CalibrationError(f'cannot read calibration {path}: {error.strerror}') from error
    except yaml.YAMLError as error:
        reason = ' '.join(str(error).split())
        raise CalibrationError(f'calibration {path} is not YAML: {reason}') from error
    return _mapping(document, path)


def _mapping(document: Any, path: str | Path) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise CalibrationError(f'calibration {path} holds {document!r}; a mapping is needed')
    return document


def _stereo_calibration_of_opencv(
    documents: Sequence[Mapping[str, Any]],
) -> list[Mapping[str, Any]] | None:
    """Return left and right camera_info of what OpenCV's `stereo_calib` writes; None for others.

    Its names are M1, D1, R1, P1 and M2, D2, R2, P2, in one file or in two.
    """
    merged = {name: value for document in documents for name, value in document.items()}
    if not {'P1', 'P2'} <= set(merged):
        return None
    infos: list[Mapping[str, Any]] = []
    for number in (1, 2):
        info = {
            name: merged[f'{letter}{number}']
            for name, letter in _OPENCV_NAMES.items()
            if f'{letter}{number}' in merged
        }
        infos.append(info)
    return infos


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


def _camera_info(document: Mapping[str, Any], source: str, width: int, height: int) -> CameraInfo:
    """Return the CameraInfo that the mapping describes, for images of this size."""
    if 'projection_matrix' not in document:
        raise CalibrationError(
            f'{source} has no projection_matrix; a camera_info of a rectified camera is needed'
        )
    info = CameraInfo(
        width,
        height,
        _matrix(document, 'projection_matrix', 12, source),
        distortion_model=_distortion_model(document),
    )
    if 'camera_matrix' in document:
        info = dataclasses.replace(info, k=_matrix(document, 'camera_matrix', 9, source))
    if 'rectification_matrix' in document:
        info = dataclasses.replace(info, r=_matrix(document, 'rectification_matrix', 9, source))
    if 'distortion_coefficients' in document:
        coefficients = _matrix(document, 'distortion_coefficients', None, source)
        info = dataclasses.replace(info, d=coefficients)
    return info


def _distortion_model(document: Mapping[str, Any]) -> str:
    """Return the model; without a name that of ROS's own parser, which takes plumb_bob."""
    name = document.get('distortion_model') or document.get('camera_model')
    if not name and 'distortion_coefficients' in document:
        return 'plumb_bob'
    return str(name or '')


def _matrix(
    document: Mapping[str, Any], name: str, count: int | None, source: str
) -> tuple[float, ...]:
    """Return the values of a matrix entry, `count` of them where that is given."""
    try:
        values = tuple(float(value) for value in document[name]['data'])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CalibrationError(f'{source} has no readable {name}.data of numbers') from error
    if count is not None and len(values) != count:
        raise CalibrationError(f'{source}: {name} has {len(values)} values, not {count}')
    return values


def _at_origin(info: CameraInfo) -> CameraInfo:
    """Return the left camera that belongs to a right one whose P holds the baseline."""
    return dataclasses.replace(info, p=(*info.p[:3], 0.0, *info.p[4:]))


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
    unknown = sorted(map(str, set(numbers) - set(PLAIN_ENTRIES)))
    if unknown:
        raise CalibrationError(
            f'{source} has {", ".join(unknown)}, which a plain calibration of a rectified rig '
            f'does not know; known are {", ".join(PLAIN_ENTRIES)}'
        )
    numbers.setdefault('cx_right', numbers['cx'])
    try:
        fx, fy, cx, cy, cx_right, baseline = (
            float(numbers[name]) for name in ('fx', 'fy', 'cx', 'cy', 'cx_right', 'baseline')
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise CalibrationError(f'{source}: {error}') from error
    try:
        return StereoCalibration(fx, fy, cx, cy, cx_right, baseline, width, height)
    except CalibrationError as error:
        raise CalibrationError(f'{source}: {error}') from error
