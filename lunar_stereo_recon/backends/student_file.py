"""The form of a student's `.onnx` file, whichever runtime runs it: inputs, outputs, metadata.

The graph holds the input normalisation; the metadata holds the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np

from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.limits import MAX_SIDE_PX
from lunar_stereo_recon.preprocess import NETWORK_WIDTH

FORMAT_VERSION = '1'
INPUTS = ('left', 'right')
OUTPUTS = ('disparity', 'confidence')
SIZE_MULTIPLE = 32
WIDTH_KEY = 'network_width_px'


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph.

    Attributes:
        is_float32: Whether it takes float32.
        shape: Its dimensions, numbers or whatever the runtime says of those that vary.
    """

    is_float32: bool
    shape: tuple[Any, ...]


@dataclass(frozen=True)
class StudentFacts:
    """What the metadata says, checked; see `Backend` for the attributes."""

    name: str
    confidence_calibration: dict[str, Any] | None
    max_disparity_px: float
    max_width_px: int


def input_channels(
    inputs: Mapping[str, GraphInput], outputs: Collection[str], model_path: Path
) -> int:
    """Return the number of input channels of a graph that has the names and ranks of format 1.

    Raises:
        ModelError: It has not.
    """
    if set(inputs) != set(INPUTS):
        raise ModelError(
            f'{model_path} has the inputs {", ".join(sorted(inputs)) or "none"}; '
            f'{" and ".join(INPUTS)} are needed'
        )
    missing = [name for name in OUTPUTS if name not in outputs]
    if missing:
        raise ModelError(
            f'{model_path} lacks the outputs {", ".join(missing)}; '
            f'it has {", ".join(sorted(outputs))}'
        )
    for name, entry in inputs.items():
        if len(entry.shape) != 4 or entry.shape[1] not in (1, 3) or not entry.is_float32:
            raise ModelError(
                f'{model_path} input {name} has shape {entry.shape}, '
                f'{"float32" if entry.is_float32 else "not float32"}; '
                'float32 (B, 1 or 3, H, W) is needed'
            )
    return int(inputs['left'].shape[1])


def described(metadata: Mapping[str, str], model_path: Path) -> StudentFacts:
    """Return what the metadata says.

    Raises:
        ModelError: An entry is missing or is not what it should be.
    """
    version = metadata.get('format_version')
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{model_path} has format_version {version!r}; this package runs '{FORMAT_VERSION}'"
        )
    return StudentFacts(
        metadata.get('name') or model_path.stem,
        _json_object(metadata, 'confidence_calibration', model_path),
        _positive_number(metadata, 'max_disparity_px', model_path),
        _network_width(metadata, model_path),
    )


def batched(left: FloatImage, right: FloatImage, channels: int) -> dict[str, np.ndarray]:
    """Return the inputs of a graph, (1, channels, H, W) each.

    Raises:
        InputError: Sizes differ or are no multiples of `SIZE_MULTIPLE`.
    """
    if left.shape != right.shape or any(size % SIZE_MULTIPLE for size in left.shape):
        raise InputError(
            f'images have shapes {left.shape} and {right.shape}; the network needs equal '
            f'heights and widths that are multiples of {SIZE_MULTIPLE}'
        )
    return {
        name: np.ascontiguousarray(np.broadcast_to(image, (1, channels, *image.shape)))
        for name, image in zip(INPUTS, (left, right), strict=True)
    }


def prediction(
    disparity: np.ndarray, confidence: np.ndarray, size: tuple[int, ...], name: str
) -> DisparityPrediction:
    """Return the outputs of a graph for one pair.

    Raises:
        ModelError: They are not float32 of (1, *size).
    """
    for output, values in zip(OUTPUTS, (disparity, confidence), strict=True):
        if values.shape != (1, *size) or values.dtype != np.float32:
            raise ModelError(
                f'model {name}: output {output} has shape {values.shape} and type {values.dtype}; '
                f'float32 {(1, *size)} is needed'
            )
    return DisparityPrediction(disparity[0], confidence[0])


def _json_object(metadata: Mapping[str, str], key: str, model_path: Path) -> dict[str, Any] | None:
    if not metadata.get(key):
        return None
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise ModelError(f'{model_path} metadata {key} is not JSON: {error}') from error
    if value is not None and not isinstance(value, dict):
        raise ModelError(f'{model_path} metadata {key} is {value!r}; a JSON object is needed')
    return value or None


def _positive_number(metadata: Mapping[str, str], key: str, model_path: Path) -> float:
    text = metadata.get(key, '')
    try:
        value = float(text)
    except ValueError as error:
        raise ModelError(f"{model_path} metadata {key} is '{text}'; pixels are needed") from error
    if not 0 < value <= MAX_SIDE_PX:
        raise ModelError(
            f'{model_path} metadata {key} is {value}; it must be positive, at most {MAX_SIDE_PX}'
        )
    return value


def _network_width(metadata: Mapping[str, str], model_path: Path) -> int:
    """Return the width that the student was trained for; files of before say nothing of it."""
    if WIDTH_KEY not in metadata:
        return NETWORK_WIDTH
    width = _positive_number(metadata, WIDTH_KEY, model_path)
    if width % SIZE_MULTIPLE:
        raise ModelError(
            f'{model_path} metadata {WIDTH_KEY} is {width:g}; it must be a multiple of '
            f'{SIZE_MULTIPLE}'
        )
    return int(width)
