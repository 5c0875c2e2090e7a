"""How fast the student runs at several image sizes, compared with what the machine can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path
import time

import cv2
import numpy as np
from tqdm import tqdm

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.backends.onnx_backend import node_shapes, NodeShapes
from lunar_stereo_recon.benchmark.matrix_product import gflops_reached
from lunar_stereo_recon.benchmark.methods import STUDENT_BACKEND
from lunar_stereo_recon.datatypes import StereoPair

# Width and height, each a multiple of what the students need; the third is the usual one.
SIZES = ((160, 128), (320, 256), (640, 480), (960, 544), (1280, 736))
ROOFLINE_SIZE = (640, 480)
REPEATS = 7


@dataclass(frozen=True)
class Throughput:
    """Median time of the network alone at several sizes, and the line through them.

    Attributes:
        megapixels, milliseconds: One entry a size.
        sizes: Width and height.
        offset_ms, ms_per_megapixel: Least-squares line.
        explained: Share of the times' variance that the line explains (R squared).
    """

    megapixels: list[float]
    milliseconds: list[float]
    sizes: list[tuple[int, int]]
    offset_ms: float
    ms_per_megapixel: float
    explained: float


@dataclass(frozen=True)
class Roofline:
    """Work of the network at 640x480 and how fast it is done.

    Attributes:
        gflop: Of convolutions and matrix products; a multiply-add counts two.
        gflop_by_operator: The same, by ONNX operator.
        uncounted: Operators with products whose work is not known here.
        milliseconds: Median time of the network.
        gflops_reached: gflop / time, GFLOP/s.
        gflops_of_matrix_product: What a large float32 product reaches with the same threads.
    """

    gflop: float
    gflop_by_operator: dict[str, float]
    uncounted: list[str]
    milliseconds: float
    gflops_reached: float
    gflops_of_matrix_product: float


def measure_speed(
    model: Path,
    threads: int,
    pair: StereoPair,
    student: str = STUDENT_BACKEND,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> tuple[Throughput, Roofline]:
    """Return throughput and roofline of a model file on a pair resized to several sizes."""
    backend = load_backend(student, model, threads=threads)
    bar = tqdm(sizes, desc='timing', unit='size')
    times = [median_ms(backend, pair, size) for size in bar]
    width, height = ROOFLINE_SIZE
    usual = dict(zip(sizes, times, strict=True)).get(ROOFLINE_SIZE)
    usual = usual if usual is not None else median_ms(backend, pair, ROOFLINE_SIZE)
    work, uncounted = count_flops(node_shapes(model, height, width))
    gflop = sum(work.values()) / 1e9
    roofline = Roofline(
        gflop,
        {name: flops / 1e9 for name, flops in work.most_common()},
        uncounted,
        usual,
        gflop / (usual / 1e3),
        gflops_reached(threads),
    )
    return fit_throughput(sizes, times), roofline


def median_ms(backend: Backend, pair: StereoPair, size: tuple[int, int]) -> float:
    """Return the median time of the network alone on the pair at a size (width, height)."""
    left, right = (
        np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)
        for image in (pair.left, pair.right)
    )
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        backend.predict(left, right)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[1:]))  # the first run of a size makes its plan


def fit_throughput(sizes: Sequence[tuple[int, int]], times: Sequence[float]) -> Throughput:
    """Return the line of milliseconds over megapixels."""
    megapixels = np.array([width * height / 1e6 for width, height in sizes])
    slope, offset = np.polyfit(megapixels, times, 1)
    residual = np.sum((np.asarray(times) - offset - slope * megapixels) ** 2)
    spread = np.sum((np.asarray(times) - np.mean(times)) ** 2)
    return Throughput(
        megapixels.tolist(),
        list(times),
        list(sizes),
        float(offset),
        float(slope),
        float(1 - residual / spread) if spread > 0 else 1.0,
    )


def count_flops(nodes: Sequence[NodeShapes]) -> tuple[Counter[str], list[str]]:
    """Return the work of each operator that multiplies matrices, and those not counted.

    A multiply-add counts two; what works element by element does not count.
    """
    work: Counter[str] = Counter()
    for node in nodes:
        if node.operator in FLOPS:
            work[node.operator] += FLOPS[node.operator](node)
    return work, sorted({node.operator for node in nodes if node.operator in NOT_COUNTED})


def _convolution(node: NodeShapes) -> int:
    # The weights are (outputs, inputs / groups, height, width), whatever the groups.
    return 2 * math.prod(node.outputs[0]) * math.prod(node.inputs[1][1:])


def _quantized_convolution(node: NodeShapes) -> int:
    return 2 * math.prod(node.outputs[0]) * math.prod(node.inputs[3][1:])


def _transposed_convolution(node: NodeShapes) -> int:
    return 2 * math.prod(node.inputs[0]) * math.prod(node.inputs[1][1:])


def _matrix_product(node: NodeShapes) -> int:
    return 2 * math.prod(node.outputs[0]) * node.inputs[0][-1]


def _general_product(node: NodeShapes) -> int:
    # Either factor may be transposed: the summed length is what is left of the first.
    return 2 * math.prod(node.outputs[0]) * (math.prod(node.inputs[0]) // node.outputs[0][0])


FLOPS = {
    'Conv': _convolution,
    'ConvInteger': _convolution,
    'QLinearConv': _quantized_convolution,
    'ConvTranspose': _transposed_convolution,
    'MatMul': _matrix_product,
    'MatMulInteger': _matrix_product,
    'QLinearMatMul': _matrix_product,
    'Gemm': _general_product,
}
# The profile does not tell their equations or hidden sizes.
NOT_COUNTED = ('Einsum', 'GRU', 'LSTM')
