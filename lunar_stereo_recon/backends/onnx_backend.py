"""A student network in onnxruntime. The graph holds the input normalisation; metadata the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import json
import logging
import math
from pathlib import Path
import tempfile

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from lunar_stereo_recon.backends.student_file import (
    batched,
    described,
    GraphInput,
    input_channels,
    OUTPUTS,
    prediction,
    SIZE_MULTIPLE,
)
from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage
from lunar_stereo_recon.errors import ModelError

RUNTIME_VERSION = onnxruntime.__version__
Session = onnxruntime.InferenceSession
PROVIDERS = {
    'cpu': 'CPUExecutionProvider',
    'cuda': 'CUDAExecutionProvider',
    'tensorrt': 'TensorrtExecutionProvider',
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

    choice = ''
    size_multiple = SIZE_MULTIPLE
    max_width_px: int | None

    def __init__(
        self, model_path: Path, providers: Sequence[str] | None = None, threads: int = 0
    ) -> None:
        if not model_path.is_file():
            raise ModelError(f'no model file at {model_path}')
        wanted = [_provider_name(name) for name in providers or ('cpu',)]
        self._session = open_session(model_path, wanted, threads)
        self.provider = self._session.get_providers()[0]
        self.provider_fallback = _fallback_reason(wanted, self.provider)
        if self.provider_fallback:
            logger.warning('%s', self.provider_fallback)
        self._channels = _channels(self._session, model_path)
        self.metadata = _metadata(self._session, model_path)
        facts = described(self.metadata, model_path)
        self.name = facts.name
        self.confidence_calibration = facts.confidence_calibration
        self.max_disparity_px = facts.max_disparity_px
        self.max_width_px = facts.max_width_px

    def predict(self, left: FloatImage, right: FloatImage) -> DisparityPrediction:
        """Match two images (H, W) float32 in [0, 1], H and W multiples of 32."""
        feeds = batched(left, right, self._channels)
        try:
            disparity, confidence = self._session.run(list(OUTPUTS), feeds)
        except LOAD_ERRORS as error:
            raise ModelError(f'model {self.name} fails when run: {_reason(error)}') from error
        return prediction(disparity, confidence, left.shape, self.name)


def check_graph(model_path: Path) -> None:
    """Check a model's graph as onnxruntime does when it loads one, without optimizing it.

    Raises:
        ModelError: The file is no graph that could be run.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    _new_session(model_path, options, [PROVIDERS['cpu']])


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
        image = np.full((height, width), 0.5, np.float32)
        session.run(None, batched(image, image, _channels(session, model_path)))
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


def node_times(
    model_path: Path, height: int, width: int, threads: int, rounds: int = 8
) -> list[tuple[str, float]]:
    """Return operator and milliseconds of each operation of the optimized graph.

    The least of several runs counts for each operation: a busy moment meets few of them.

    Raises:
        ModelError: The file is missing, corrupted, or not a model of this format.
    """
    if not model_path.is_file():
        raise ModelError(f'no model file at {model_path}')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / 'nodes')
        session = _new_session(model_path, options, [PROVIDERS['cpu']])
        image = np.full((height, width), 0.5, np.float32)
        feeds = batched(image, image, _channels(session, model_path))
        for _ in range(rounds):
            session.run(list(OUTPUTS), feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding='utf-8'))
    least: dict[str, tuple[str, float]] = {}
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time'):
            milliseconds = event['dur'] / 1e3
            known = least.get(event['name'], ('', math.inf))[1]
            least[event['name']] = (event['args']['op_name'], min(known, milliseconds))
    return list(least.values())


def peer_network(
    path: Path, threads: int, height: int, width: int
) -> tuple[Callable[[Mapping[str, np.ndarray]], object], dict[str, np.ndarray]]:
    """Return what runs a network of any origin, and a pair for it.

    Args:
        path: ONNX file of a network that takes two images (1, channels, height, width).
        threads: Threads within an operation; 0 leaves it to onnxruntime.
        height, width: Of the pair, where the network takes any size, pixels.

    Raises:
        ModelError: The file is missing, corrupted, or takes something else.
    """
    if not path.is_file():
        raise ModelError(f'no model file at {path}')
    session = open_session(path, threads=threads)
    shapes = {node.name: list(node.shape) for node in session.get_inputs()}
    images = all(
        node.type == 'tensor(float)' and len(node.shape) == 4 for node in session.get_inputs()
    )
    if len(shapes) != 2 or not images:
        text = ', '.join(f'{name} {shape}' for name, shape in shapes.items())
        raise ModelError(f'{path} takes {text or "nothing"}; two float32 images are needed')
    usual = (1, 3, height, width)
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.random(
            [size if isinstance(size, int) else u for size, u in zip(shape, usual, strict=True)],
            np.float32,
        )
        for name, shape in shapes.items()
    }

    def run(feeds: Mapping[str, np.ndarray]) -> object:
        try:
            return session.run(None, dict(feeds))
        except LOAD_ERRORS as error:
            raise ModelError(f'{path} fails when run: {_reason(error)}') from error

    return run, feeds


def _shapes(entries: list[dict[str, list[int]]]) -> list[tuple[int, ...]]:
    """Return the shapes of a profile's list of {type: shape}."""
    return [tuple(shape) for entry in entries for shape in entry.values()]


def _provider_name(name: str) -> str:
    if name in PROVIDERS:
        return PROVIDERS[name]
    if name in onnxruntime.get_all_providers():
        return name
    raise ModelError(f"unknown execution provider '{name}'; known are {', '.join(PROVIDERS)}")


def open_session(
    model_path: Path,
    wanted: Sequence[str] = (PROVIDERS['cpu'],),
    threads: int = 0,
    content: bytes | None = None,
    sizes: Mapping[str, int] | None = None,
) -> onnxruntime.InferenceSession:
    """Return a session of the graph on the providers that are there, the CPU always among them.

    Args:
        model_path: `.onnx` file.
        wanted: Names of onnxruntime, in order of preference.
        threads: Threads within an operation; 0 leaves it to onnxruntime.
        content: What was read from the file before; None reads it.
        sizes: Of dimensions that the graph leaves open, by name: with them known, more operations
            are fused.

    Raises:
        ModelError: The file is no graph that can be run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads wait actively for the next pair, on the cores that the rest of this one
    # needs.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    options.log_severity_level = 3
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    available = set(onnxruntime.get_available_providers())
    usable = [name for name in wanted if name in available]
    if PROVIDERS['cpu'] not in usable:
        usable.append(PROVIDERS['cpu'])  # onnxruntime needs it for operations the others lack
    return _new_session(model_path, options, usable, content)


def _new_session(
    model_path: Path,
    options: onnxruntime.SessionOptions,
    providers: list[str],
    content: bytes | None = None,
) -> onnxruntime.InferenceSession:
    source = str(model_path) if content is None else content
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except (*LOAD_ERRORS, RuntimeError, ValueError) as error:
        raise ModelError(f'cannot load the model {model_path}: {_reason(error)}') from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _fallback_reason(wanted: list[str], used: str) -> str:
    if used == wanted[0]:
        return ''
    available = ', '.join(onnxruntime.get_available_providers())
    return f'execution provider {wanted[0]} is not in use; running on {used} (here: {available})'


def _metadata(session: onnxruntime.InferenceSession, model_path: Path) -> dict[str, str]:
    try:
        return dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise ModelError(f'{model_path} has metadata that are not UTF-8: {error}') from error


def _channels(session: onnxruntime.InferenceSession, model_path: Path) -> int:
    inputs = {
        node.name: GraphInput(node.type == 'tensor(float)', tuple(node.shape))
        for node in session.get_inputs()
    }
    return input_channels(inputs, {node.name for node in session.get_outputs()}, model_path)
