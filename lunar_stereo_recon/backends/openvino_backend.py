"""A student network in OpenVINO, faster than onnxruntime on CPUs that multiply bfloat16.

What may be rounded to bfloat16 is written into the graph as types of its operations, and the
runtime is told to keep the types. Its own switch rounds everything: disparities then come in steps
of a twentieth of a pixel, and images in 256 grey levels before their contrast is normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
import json
from pathlib import Path
import sys

# OpenVINO reports its use to an analytics host unless this cannot be imported.
sys.modules['openvino_telemetry'] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import openvino  # noqa: E402
from openvino import opset13, properties  # noqa: E402
from openvino.passes import ConstantFolding, Manager  # noqa: E402
from openvino.properties import hint  # noqa: E402

from lunar_stereo_recon.backends.onnx_backend import check_graph  # noqa: E402
from lunar_stereo_recon.backends.student_file import (  # noqa: E402
    batched,
    described,
    GraphInput,
    input_channels,
    OUTPUTS,
    prediction,
    SIZE_MULTIPLE,
)
from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage  # noqa: E402
from lunar_stereo_recon.errors import ModelError  # noqa: E402

DEVICE = 'CPU'
FLOAT32 = openvino.Type.f32
# Where the work is: these are rounded unless the model forbids it ...
LAYERS = ('Convolution', 'MatMul')
# ... and what comes after them stays rounded through these, as in training with mixed precision.
CARRIERS = frozenset(
    'Add Concat Gelu Interpolate MatMul Multiply MVN Negative Pad Relu Reshape Slice Softmax '
    'Split Squeeze StridedSlice Transpose Unsqueeze VariadicSplit'.split()
)


class OpenVinoBackend:
    """See `Backend`.

    Layers compute in bfloat16 where the processor has instructions for it and the model's
    metadata say which of them must stay in float32 (`float32_nodes`); otherwise all is float32.
    `provider` tells which it is.

    Args:
        model_path: `.onnx` file with the metadata this package writes, not quantized.
        threads: Threads within an operation; 0 leaves it to OpenVINO.

    Raises:
        ModelError: The file is missing, corrupted, quantized, or not a model of this format.
    """

    size_multiple = SIZE_MULTIPLE
    max_width_px: int | None
    provider_fallback = ''
    choice = ''

    def __init__(self, model_path: Path, threads: int = 0) -> None:
        if not model_path.is_file():
            raise ModelError(f'no model file at {model_path}')
        # Its parser refuses what ends the process in OpenVINO's compiler.
        check_graph(model_path)
        self._core = openvino.Core()
        # A file that is cut off while it is mapped into memory ends the process.
        self._core.set_property({properties.enable_mmap: False})
        # Kept: the file may be replaced before the network is compiled for another size.
        self._model = self._read(model_path)
        self._channels = _channels(self._model, model_path)
        self.metadata = _metadata(self._model)
        facts = described(self.metadata, model_path)
        self.name = facts.name
        self.confidence_calibration = facts.confidence_calibration
        self.max_disparity_px = facts.max_disparity_px
        self.max_width_px = facts.max_width_px
        if self.metadata.get('quantization'):
            raise ModelError(
                f'{model_path} is quantized for onnxruntime; OpenVINO computes with its ranges '
                'less exactly: give the float model'
            )
        capabilities = self._core.get_property(DEVICE, properties.device.capabilities)
        self._rounds = 'BF16' in capabilities and 'float32_nodes' in self.metadata
        precision = 'bfloat16 and float32' if self._rounds else 'float32'
        self.provider = f'OpenVINO {openvino.__version__.split("-")[0]} {DEVICE}, {precision}'
        self._options = {
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            hint.inference_precision: FLOAT32,
            properties.inference_num_threads: threads,
        }
        self._compiled: tuple[tuple[int, ...], openvino.InferRequest] | None = None

    def predict(self, left: FloatImage, right: FloatImage) -> DisparityPrediction:
        """Match two images (H, W) float32 in [0, 1], H and W multiples of 32.

        The first pair of a size takes longer: the graph is compiled for it.
        """
        feeds = batched(left, right, self._channels)
        try:
            request = self._request(feeds['left'].shape)
            request.infer(feeds)
        except RuntimeError as error:
            raise ModelError(f'model {self.name} fails when run: {_reason(error)}') from error
        # Copied: the request writes its next results into the same memory.
        disparity, confidence = (request.get_tensor(name).data.copy() for name in OUTPUTS)
        return prediction(disparity, confidence, left.shape, self.name)

    def _request(self, shape: tuple[int, ...]) -> openvino.InferRequest:
        """Return the graph compiled for inputs of this shape; the last one is kept."""
        if self._compiled is None or self._compiled[0] != shape:
            self._compiled = None  # its memory is free before the next one takes some
            model = self._model.clone()
            for output in list(model.outputs):
                if not set(OUTPUTS) & output.get_names():
                    model.remove_result(output.get_node())
            model.reshape({name: list(shape) for name in _names(model.inputs)})
            if self._rounds:
                round_layers(model, json.loads(self.metadata['float32_nodes']))
            compiled = self._core.compile_model(model, DEVICE, self._options)
            self._compiled = shape, compiled.create_infer_request()
        return self._compiled[1]

    def _read(self, model_path: Path) -> openvino.Model:
        try:
            return self._core.read_model(model_path)
        except RuntimeError as error:
            raise ModelError(f'cannot load the model {model_path}: {_reason(error)}') from error


def _reason(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or ['no reason given'])[-1]


def compiled_network(
    path: Path, shapes: Mapping[str, tuple[int, ...]], threads: int
) -> Callable[[Mapping[str, np.ndarray]], object]:
    """Return what runs a network of any origin in float32, for inputs of these shapes.

    Raises:
        ModelError: OpenVINO cannot read, compile or run it.
    """
    # Its parser refuses what ends the process in OpenVINO's compiler.
    check_graph(path)
    core = openvino.Core()
    options = {
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        hint.inference_precision: FLOAT32,
        properties.inference_num_threads: threads,
    }
    try:
        model = core.read_model(path)
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        request = core.compile_model(model, DEVICE, options).create_infer_request()
    except RuntimeError as error:
        raise ModelError(f'cannot load the model {path}: {_reason(error)}') from error

    def run(feeds: Mapping[str, np.ndarray]) -> object:
        try:
            return request.infer(dict(feeds))
        except RuntimeError as error:
            raise ModelError(f'{path} fails when run: {_reason(error)}') from error

    return run


def round_layers(model: openvino.Model, kept: Collection[str]) -> None:
    """Let a model's layers compute in bfloat16, and what only passes their results on.

    Args:
        model: A model of static shape; changed in place.
        kept: Names of layers that stay in float32.
    """
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    rounded = _rounded(model, kept)
    operations = [node for node in model.get_ordered_ops() if _name(node) in rounded]
    for node in operations:
        for port in node.inputs():
            source = port.get_source_output()
            if source.get_element_type() == FLOAT32 and _name(source.get_node()) not in rounded:
                port.replace_source_output(opset13.convert(source, 'bf16').output(0))
    for node in operations:
        for output in node.outputs():
            outside = [
                port
                for port in output.get_target_inputs()
                if _name(port.get_node()) not in rounded
            ]
            if outside:
                widened = opset13.convert(output, 'f32').output(0)
                for port in outside:
                    port.replace_source_output(widened)
    model.validate_nodes_and_infer_types()


def _rounded(model: openvino.Model, kept: Collection[str]) -> set[str]:
    """Return the names of the operations that compute in bfloat16."""
    rounded: set[str] = set()
    for node in model.get_ordered_ops():
        if not node.get_output_size() or node.get_output_element_type(0) != FLOAT32:
            continue
        sources = [
            port.get_source_output().get_node()
            for port in node.inputs()
            if port.get_element_type() == FLOAT32
        ]
        constant = [source.get_type_name() == 'Constant' for source in sources]
        kind = node.get_type_name()
        if kind in LAYERS and len(sources) == 2 and constant[1]:
            # A convolution with a bias arrives as two operations, the first named 'name/...'.
            if not any(f'{_name(node)}/'.startswith(f'{name}/') for name in kept):
                rounded.add(_name(node))
        elif kind in CARRIERS and not all(constant):
            known = [
                fixed or _name(n) in rounded for n, fixed in zip(sources, constant, strict=True)
            ]
            if all(known):
                rounded.add(_name(node))
    return rounded


def _name(node: openvino.Node) -> str:
    return node.get_friendly_name()


def _names(ports: Collection[openvino.Output]) -> list[str]:
    return [port.get_any_name() for port in ports]


def _channels(model: openvino.Model, model_path: Path) -> int:
    inputs = {}
    for port in model.inputs:
        shape = tuple(
            size.get_length() if size.is_static else '?' for size in port.get_partial_shape()
        )
        inputs[port.get_any_name()] = GraphInput(port.get_element_type() == FLOAT32, shape)
    return input_channels(inputs, _names(model.outputs), model_path)


def _metadata(model: openvino.Model) -> dict[str, str]:
    """Return the ONNX file's own entries; OpenVINO files them under 'framework'."""
    if not model.has_rt_info('framework'):
        return {}
    entries = model.get_rt_info('framework').value
    return {str(key): str(value) for key, value in entries.items()}
