"""Where the time of a pair goes: beside filled SGBM, by stage, by operation, and of peers.

And that of the map of the ground, which has a node of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import importlib.util
import math
from pathlib import Path
import time

import cv2
import numpy as np
from tqdm import tqdm

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.backends.onnx_backend import node_times, peer_network
from lunar_stereo_recon.bags.writer import make_message
from lunar_stereo_recon.benchmark.speed import fit_throughput, Throughput
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.disparity import fill_from_background
from lunar_stereo_recon.geometry.rotation import BODY_FROM_OPTICAL, rotation_from_rpy
from lunar_stereo_recon.geometry.terrain import TerrainMap, TerrainOptions
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor
from lunar_stereo_recon.result_messages import CloudForm, point_cloud_message
from lunar_stereo_recon.terrain_messages import cost_message, points_of_cloud

ROUNDS = 20
WARM_UPS = 2
# Of many times, the one that a busy machine hardly delays and luck hardly shortens.
QUANTILE = 0.25
PRODUCTS = ('Conv', 'FusedConv', 'ConvTranspose', 'MatMul', 'FusedMatMul', 'Gemm', 'QLinearConv')
PEER_SIZE = (640, 480)
# Of images, each twice as many pixels or more as the one before.
PAIR_SIZES = ((320, 240), (640, 480), (960, 720), (1280, 960))
# The drive of the map's timing: a circle, after one turn of which all ground around is known.
CAMERA_HEIGHT_M, CAMERA_PITCH_DEG, CIRCLE_M, FRAMES_A_TURN = 1.4, 15.0, 2.0, 20


@dataclass(frozen=True)
class PairTimes:
    """Whole pairs and filled SGBM 3WAY in turns; times are lower quartiles.

    Attributes:
        pair_ms, sgbm_ms: From images to points, and to a filled disparity.
        ratio: The former over the latter.
        core_seconds_a_megapixel: Processor time of a pair, all threads, over its pixels.
        stages_ms: Of the pair.
        rounds: How many of each.
    """

    pair_ms: float
    sgbm_ms: float
    ratio: float
    core_seconds_a_megapixel: float
    stages_ms: dict[str, float]
    rounds: int


@dataclass(frozen=True)
class OperationTimes:
    """Times of the network's operations in onnxruntime, whose optimizer has fused some.

    Attributes:
        milliseconds, nodes: By operator, the slowest first.
        total_ms: Of all.
        over_products: total_ms over the time of convolutions and matrix products; 0 without any.
    """

    milliseconds: dict[str, float]
    nodes: dict[str, int]
    total_ms: float
    over_products: float


@dataclass(frozen=True)
class PeerTime:
    """A network of someone else in one runtime.

    Attributes:
        file: Its name.
        runtime: That runs it.
        width, height: Of its input, pixels.
        milliseconds: Lower quartile; None where it does not run.
        error: Why not; '' where it does.
    """

    file: str
    runtime: str
    width: int
    height: int
    milliseconds: float | None
    error: str = ''


@dataclass(frozen=True)
class TerrainTimes:
    """Processor time of a frame in `terrain_node`, milliseconds; lower quartiles.

    Attributes:
        length_m, cell_m: Of the map.
        known: Share of its cells.
        read_ms: From the cloud's message to points.
        add_ms: Points into the map.
        layers_ms: Slopes, steps and costs of the map.
        message_ms: The costs as a message.
        frame_ms: All of it.
    """

    length_m: float
    cell_m: float
    known: float
    read_ms: float
    add_ms: float
    layers_ms: float
    message_ms: float
    frame_ms: float


@dataclass(frozen=True)
class Profile:
    """All of it.

    Attributes:
        sizes: Processor time of whole pairs, all threads, by the images' size.
    """

    pair: PairTimes
    sizes: Throughput
    operations: OperationTimes
    peers: list[PeerTime]
    terrain: TerrainTimes


def measure_profile(
    model: Path, threads: int, pair: StereoPair, student: str, peers: Sequence[Path] = ()
) -> Profile:
    """Measure on a pair, at its own size.

    Args:
        model: The student's file.
        threads: Of each method.
        pair: What is reconstructed.
        student: Backend that runs the student.
        peers: ONNX files of networks that take two images.

    Raises:
        ModelError: A file is missing or does not take two images.
    """
    backend = load_backend(student, model, threads=threads)
    return Profile(
        pair_times(backend, pair),
        size_times(backend, pair),
        operation_times(node_times(model, *PEER_SIZE[::-1], threads)),
        [time_ for path in peers for time_ in peer_times(path, threads)],
        terrain_times(),
    )


def pair_times(backend: Backend, pair: StereoPair, rounds: int = ROUNDS) -> PairTimes:
    """Time pairs and filled SGBM in turns, so that a busy moment of the machine meets both."""
    # Each frame has its row estimate due one time in five, as on a rover.
    engine = StereoReconstructor(backend, ReconstructionOptions(dense=True))
    sgbm = load_backend('sgbm')
    pair_ms, sgbm_ms, core_s = [], [], []
    stages: dict[str, list[float]] = {}
    for number in tqdm(range(WARM_UPS + rounds), desc='timing', unit='pair'):
        start, used = time.perf_counter(), time.process_time()
        result = engine.reconstruct(pair)
        between, used = time.perf_counter(), time.process_time() - used
        fill_from_background(sgbm.predict(pair.left, pair.right).disparity)
        end = time.perf_counter()
        if number < WARM_UPS:
            continue
        pair_ms.append(1e3 * (between - start))
        sgbm_ms.append(1e3 * (end - between))
        core_s.append(used)
        for stage, milliseconds in result.timings_ms.items():
            stages.setdefault(stage, []).append(milliseconds)
    ours, theirs = _typical(pair_ms), _typical(sgbm_ms)
    return PairTimes(
        ours,
        theirs,
        ours / theirs,
        _typical(core_s) / (pair.left.size / 1e6),
        {stage: _typical(times) for stage, times in stages.items()},
        rounds,
    )


def size_times(backend: Backend, pair: StereoPair, rounds: int = ROUNDS // 4) -> Throughput:
    """Return the processor time of a pair resized to `PAIR_SIZES`, all threads.

    The network sees no more than its own width: beyond it only the stages around it have more to
    do.
    """
    times = []
    for size in tqdm(PAIR_SIZES, desc='timing whole pairs', unit='size'):
        left, right = (
            np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)
            for image in (pair.left, pair.right)
        )
        resized = StereoPair(left, right, pair.calibration.resized(*size))
        engine = StereoReconstructor(backend, ReconstructionOptions(dense=True))
        used = []
        for _ in range(WARM_UPS + rounds):
            start = time.process_time()
            engine.reconstruct(resized)
            used.append(1e3 * (time.process_time() - start))
        times.append(_typical(used[WARM_UPS:]))
    return fit_throughput(PAIR_SIZES, times)


def operation_times(nodes: Sequence[tuple[str, float]]) -> OperationTimes:
    """Sum the times of nodes, (operator, milliseconds) each, by operator."""
    times: dict[str, float] = {}
    counts: dict[str, int] = {}
    for operator, milliseconds in nodes:
        times[operator] = times.get(operator, 0.0) + milliseconds
        counts[operator] = counts.get(operator, 0) + 1
    order = sorted(times, key=lambda name: -times[name])
    total = sum(times.values())
    products = sum(times.get(name, 0.0) for name in PRODUCTS)
    return OperationTimes(
        {name: times[name] for name in order},
        {name: counts[name] for name in order},
        total,
        total / products if products else 0.0,
    )


def peer_times(path: Path, threads: int, rounds: int = ROUNDS // 2) -> list[PeerTime]:
    """Time a peer's network in each runtime that is installed, at 640x480 or its fixed size.

    Raises:
        ModelError: The file is missing or does not take two images.
    """
    run, feeds = peer_network(path, threads, *PEER_SIZE[::-1])
    height, width = next(iter(feeds.values())).shape[2:]
    runtimes: dict[str, Callable[[], Callable[[Mapping[str, np.ndarray]], object]]] = {
        'onnxruntime': lambda: run
    }
    if importlib.util.find_spec('openvino') is not None:
        from lunar_stereo_recon.backends.openvino_backend import compiled_network

        shapes = {name: image.shape for name, image in feeds.items()}
        runtimes['OpenVINO float32'] = lambda: compiled_network(path, shapes, threads)
    found = []
    for runtime, load in runtimes.items():
        try:
            network = load()
            times = []
            for number in tqdm(range(1 + rounds), desc=f'timing {runtime}', unit='pair'):
                start = time.perf_counter()
                network(feeds)
                if number:
                    times.append(1e3 * (time.perf_counter() - start))
        except ModelError as error:
            found.append(PeerTime(path.name, runtime, width, height, None, str(error)))
            continue
        found.append(PeerTime(path.name, runtime, width, height, _typical(times)))
    return found


def terrain_times(rounds: int = ROUNDS) -> TerrainTimes:
    """Time what `terrain_node` does with each cloud of 640x480 points when it publishes each map.

    Level ground with waves, seen from a rover that drives in a circle. Processor time: on a busy
    machine the time that others take does not count.
    """
    calibration = StereoCalibration(500.0, 500.0, 319.5, 239.5, 319.5, 0.3, 640, 480)
    pitch = rotation_from_rpy(0.0, math.radians(CAMERA_PITCH_DEG), 0.0)
    mounting = pitch @ BODY_FROM_OPTICAL
    rays = points_from_depth(np.ones((480, 640), np.float32), calibration)
    down = rays @ mounting[2].astype(np.float32)
    with np.errstate(divide='ignore'):
        flat = np.where(down < -0.05, -CAMERA_HEIGHT_M / down, np.float32(np.nan))
    depth = (flat * (1 + 0.01 * np.sin(40 * rays[..., 0]))).astype(np.float32)
    cloud = point_cloud_message(
        make_message,
        Reconstruction(
            calibration.fx * calibration.baseline_m / depth,
            depth,
            np.full_like(depth, 0.95),
            points_from_depth(depth, calibration),
            np.zeros((*depth.shape, 3), np.uint8),
            calibration,
            depth_sigma_m=0.1 * depth**2 / (calibration.fx * calibration.baseline_m),
        ),
        CloudForm(sigma=True),
    )
    terrain = TerrainMap(TerrainOptions())
    times = []
    for number in range(FRAMES_A_TURN + rounds):
        yaw = 2 * math.pi * number / FRAMES_A_TURN
        place = np.array([CIRCLE_M * math.sin(yaw), -CIRCLE_M * math.cos(yaw), CAMERA_HEIGHT_M])
        rotation = rotation_from_rpy(0.0, 0.0, yaw) @ mounting
        ends = [time.thread_time()]
        read = points_of_cloud(cloud, terrain.options.max_range_m)
        ends.append(time.thread_time())
        assert read.sigma_m is not None
        terrain.add(read.points, read.sigma_m, read.confidence, rotation, place, 0.5 * number)
        ends.append(time.thread_time())
        layers = terrain.layers()
        ends.append(time.thread_time())
        cost_message(make_message, layers, 0, 'odom')
        ends.append(time.thread_time())
        times.append([*np.diff(ends), ends[-1] - ends[0]])
    typical = 1e3 * np.quantile(times[FRAMES_A_TURN:], QUANTILE, axis=0)
    return TerrainTimes(
        terrain.options.length_m,
        terrain.options.cell_m,
        float(np.isfinite(layers.height).mean()),
        *typical.tolist(),
    )


def _typical(values: Sequence[float]) -> float:
    return float(np.quantile(values, QUANTILE))
