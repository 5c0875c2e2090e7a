"""A student network in onnxruntime. The graph holds the input normalisation; metadata the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import json
import logging
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.preprocess import NETWORK_WIDTH

RUNTIME_VERSION = onnxruntime.__version__
FORMAT_VERSION = '1'
INPUTS = ('left', 'right')
OUTPUTS = ('disparity', 'confidence')
PROVIDERS = {
    'cpu': 'CPUExecutionProvider',
    'cuda': 'CUDAExecutionProvider',
    'tensorrt': 'TensorrtExecutionProvider',
    'openvino': 'OpenVINOExecutionProvider',
}

# onnxruntime's own errors have no common base short of Exception.
LOAD_ERRORS = tuple(
    getattr(onnxruntime_pybind11_state, name)
    for name in (
        'Fail',
        'InvalidArgument',
        'InvalidGraph',
        'InvalidProtobuf',
        'NoModel',
        'NoSuchFile',
        'NotImplemented',
        'RuntimeException',
    )
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeShapes:
    """One operation of a graph as it was run.

    Attributes:
        operator: ONNX name, e.g. 'Conv'.
        inputs, outputs: Shapes, in the operator's order; weights are inputs.
    """

    operator: str
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]


class OnnxBackend:
    """See `Backend`.

    Args:
        model_path: `.onnx` file with the metadata this package writes.
        providers: Names of `PROVIDERS` or of onnxruntime, in order of preference; CPU where None.
        threads: Threads within an operation; 0 leaves it to onnxruntime.

    Raises:
        ModelError: The file is missing, corrupted, or not a model of this format; or a provider
            name is unknown.
    """

    size_multiple = 32
    max_width_px: int | None = NETWORK_WIDTH

    def __init__(
        self, model_path: Path, providers: Sequence[str] | None = None, threads: int = 0
    ) -> None:
        if not model_path.is_file():
            raise ModelError(f'no model file at {model_path}')
        wanted = [_provider_name(name) for name in providers or ('cpu',)]
        self._session = _open_session(model_path, wanted, threads)
        self.provider = self._session.get_providers()[0]
        self.provider_fallback = _fallback_reason(wanted, self.provider)
        if self.provider_fallback:
            logger.warning('%s', self.provider_fallback)
        self._channels = _check_graph(self._session, model_path)
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        _check_format_version(self.metadata, model_path)
        self.name = self.metadata.get('name') or model_path.stem
        self.confidence_calibration = _json_entry(
            self.metadata, 'confidence_calibration', model_path
        )
        self.max_disparity_px = _positive_number(self.metadata, 'max_disparity_px', model_path)

    def predict(self, left: FloatImage, right: FloatImage) -> DisparityPrediction:
        """Match two images (H, W) float32 in [0, 1], H and W multiples of 32."""
        if left.shape != right.shape or any(size % self.size_multiple for size in left.shape):
            raise InputError(
                f'images have shapes {left.shape} and {right.shape}; the network needs equal '
                f'heights and widths that are multiples of {self.size_multiple}'
            )
        feeds = {'left': self._batched(left), 'right': self._batched(right)}
        disparity, confidence = self._session.run(list(OUTPUTS), feeds)
        return DisparityPrediction(disparity[0], confidence[0])

    def _batched(self, image: FloatImage) -> np.ndarray:
        return np.broadcast_to(image, (1, self._channels, *image.shape))


def node_shapes(model_path: Path, height: int, width: int) -> list[NodeShapes]:
    """Return every operation of a model for a pair of this size, by running it once.

    The graph runs as it is written: the optimizer would fuse operations and pad channels.

    Raises:
        ModelError: The file is missing, corrupted, or not a model of this format.
    """
    if not model_path.is_file():
        raise ModelError(f'no model file at {model_path}')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / 'nodes')
        session = _new_session(model_path, options, [PROVIDERS['cpu']])
        channels = _check_graph(session, model_path)
        image = np.full((1, channels, height, width), 0.5, np.float32)
        session.run(None, {'left': image, 'right': image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding='utf-8'))
    return [
        NodeShapes(
            event['args']['op_name'],
            _shapes(event['args']['input_type_shape']),
            _shapes(event['args']['output_type_shape']),
        )
        for event in events
        if event.get('cat') == 'Node' and 'input_type_shape' in event.get('args', {})
    ]


def _shapes(entries: list[dict[str, list[int]]]) -> list[tuple[int, ...]]:
    """Return the shapes of a profile's list of {type: shape}."""
    return [tuple(shape) for entry in entries for shape in entry.values()]


def _provider_name(name: str) -> str:
    if name in PROVIDERS:
        return PROVIDERS[name]
    if name in onnxruntime.get_all_providers():
        return name
    raise ModelError(f"unknown execution provider '{name}'; known are {', '.join(PROVIDERS)}")


def _open_session(
    model_path: Path, wanted: list[str], threads: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    available = set(onnxruntime.get_available_providers())
    usable = [name for name in wanted if name in available]
    if PROVIDERS['cpu'] not in usable:
        usable.append(PROVIDERS['cpu'])  # onnxruntime needs it for operations the others lack
    return _new_session(model_path, options, usable)


def _new_session(
    model_path: Path, options: onnxruntime.SessionOptions, providers: list[str]
) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(model_path), options, providers=providers)
    except (*LOAD_ERRORS, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f'cannot load the model {model_path}: {reason}') from error


def _fallback_reason(wanted: list[str], used: str) -> str:
    if used == wanted[0]:
        return ''
    available = ', '.join(onnxruntime.get_available_providers())
    return f'execution provider {wanted[0]} is not in use; running on {used} (here: {available})'


def _check_graph(session: onnxruntime.InferenceSession, model_path: Path) -> int:
    """Return the number of input channels of a graph that has the names and ranks of format 1."""
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name for node in session.get_outputs()}
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
    for name, node in inputs.items():
        if len(node.shape) != 4 or node.shape[1] not in (1, 3) or node.type != 'tensor(float)':
            raise ModelError(
                f'{model_path} input {name} is {node.type} of shape {node.shape}; '
                'float (B, 1 or 3, H, W) is needed'
            )
    return int(inputs['left'].shape[1])


def _check_format_version(metadata: dict[str, str], model_path: Path) -> None:
    version = metadata.get('format_version')
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{model_path} has format_version {version!r}; this package runs '{FORMAT_VERSION}'"
        )


def _json_entry(metadata: dict[str, str], key: str, model_path: Path) -> dict[str, Any] | None:
    if not metadata.get(key):
        return None
    try:
        value = json.loads(metadata[key])
    except json.JSONDecodeError as error:
        raise ModelError(f'{model_path} metadata {key} is not JSON: {error}') from error
    if value is not None and not isinstance(value, dict):
        raise ModelError(f'{model_path} metadata {key} is {value!r}; a JSON object is needed')
    return value or None


def _positive_number(metadata: dict[str, str], key: str, model_path: Path) -> float:
    text = metadata.get(key, '')
    try:
        value = float(text)
    except ValueError as error:
        raise ModelError(f"{model_path} metadata {key} is '{text}'; pixels are needed") from error
    if not value > 0:
        raise ModelError(f'{model_path} metadata {key} is {value}; it must be positive')
    return value
