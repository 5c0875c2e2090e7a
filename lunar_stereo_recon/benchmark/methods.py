"""The methods that are compared, and the result of running one of them on a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
import multiprocessing
from pathlib import Path
import time
from typing import Any

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.benchmark.degradations import degrade
from lunar_stereo_recon.benchmark.pairs import BenchmarkPair
from lunar_stereo_recon.datatypes import FloatImage, StereoPair
from lunar_stereo_recon.evaluation.scores import (
    DETAILED_SUBSETS,
    GroundTruth,
    PairScore,
    score_pair,
)
from lunar_stereo_recon.geometry.disparity import fill_from_background
from lunar_stereo_recon.pipeline import (
    ReconstructionOptions,
    SIGMA_STAGE,
    StereoReconstructor,
)

FILL = ' + fill'
# What runs a student; the bench may be asked for another.
STUDENT_BACKEND = 'onnx'
# Which backend, and the pipeline's options that follow; None: the matcher alone.
RUNS: dict[str, tuple[str, ReconstructionOptions | None]] = {
    'SGBM 3WAY': ('sgbm', None),
    'SGBM HH': ('sgbm_hh', None),
    'BM': ('bm', None),
    'BM padded': ('bm_padded', None),
    'student': (
        STUDENT_BACKEND,
        ReconstructionOptions(dense=True, refine=False, align_rows=False),
    ),
    'student + refinement': (STUDENT_BACKEND, ReconstructionOptions(dense=True, align_rows=False)),
    'student + rows + refinement': (STUDENT_BACKEND, ReconstructionOptions(dense=True)),
}
# What users get.
SHIPPED = 'student + rows + refinement'
METHODS = tuple(
    column
    for name, (_, options) in RUNS.items()
    for column in ([name, name + FILL] if options is None else [name])
)
# The pixels on which this one has an estimate are a subset of their own.
REFERENCE = 'SGBM 3WAY'
REFERENCE_SUBSET = f'where {REFERENCE} answers'
WARM_UPS = 2


@dataclass(frozen=True)
class Estimate:
    """What a method says of a pair.

    Attributes:
        disparity: (H, W) pixels, NaN where there is none.
        confidence: (H, W) in [0, 1]; None where the method has none.
        milliseconds: From images in memory to the result, without sigma: a node gives that only
            where it is asked for.
        stages_ms: Times of the pipeline's stages; empty for a matcher alone.
        sigma_px: (H, W) one standard deviation of the disparity; None where the method has none.
    """

    disparity: FloatImage
    confidence: FloatImage | None
    milliseconds: float
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    sigma_px: FloatImage | None = None


Estimator = Callable[[StereoPair], Estimate]


@dataclass
class MethodScores:
    """One method's scores and times, a list entry a pair."""

    pairs: list[PairScore] = field(default_factory=list)
    stages_ms: list[Mapping[str, float]] = field(default_factory=list)


def runs_of(methods: Sequence[str]) -> list[str]:
    """Return the names of `RUNS` that the methods need, in the order of `RUNS`."""
    wanted = {method.removesuffix(FILL) for method in methods}
    return [name for name in RUNS if name in wanted]


def load_estimator(
    name: str,
    model: Path | None,
    threads: int,
    student: str = STUDENT_BACKEND,
    one_rig: bool = False,
) -> Estimator:
    """Return one of `RUNS`, ready.

    Args:
        name: Which.
        model: The student's file; None is the shipped one.
        threads: Threads of the matcher.
        student: Backend that runs the student.
        one_rig: The pairs follow each other in a recording, so that earlier ones tell the rows of
            later ones. Otherwise every pair is of a rig of its own.

    Raises:
        ModelError: The student's file is missing or is not a model, or its backend is not there.
    """
    backend_name, options = RUNS[name]
    if backend_name == STUDENT_BACKEND:
        backend_name = student
    backend = load_backend(backend_name, model, threads=threads)
    if options is None:

        def matched(pair: StereoPair) -> Estimate:
            start = time.perf_counter()
            disparity = backend.predict(pair.left, pair.right).disparity
            return Estimate(disparity, None, _milliseconds_since(start))

        return matched
    engine = StereoReconstructor(backend, options)

    def reconstructed(pair: StereoPair) -> Estimate:
        if options.align_rows and not one_rig:
            # As if the frame before had told the rows.
            engine.reset_rows()
            engine.match(pair)
        start = time.perf_counter()
        result = engine.reconstruct(pair)
        elapsed = _milliseconds_since(start) - result.timings_ms.get(SIGMA_STAGE, 0.0)
        return Estimate(
            result.disparity, result.confidence, elapsed, result.timings_ms, result.sigma_px
        )

    return reconstructed


def filled(estimate: Estimate) -> Estimate:
    """Return the estimate with its holes filled from the background, and the time of that."""
    start = time.perf_counter()
    disparity = fill_from_background(estimate.disparity)
    return Estimate(disparity, None, estimate.milliseconds + _milliseconds_since(start))


def estimate_of(found: Mapping[str, Estimate], method: str) -> Estimate:
    """Return the estimate of a method, its holes filled where the name ends with `FILL`."""
    estimate = found[method.removesuffix(FILL)]
    return filled(estimate) if method.endswith(FILL) else estimate


def score_methods(
    pairs: Sequence[BenchmarkPair],
    methods: Sequence[str],
    estimators: Mapping[str, Estimator],
    degradation: str | None = None,
    done: Callable[[], object] = lambda: None,
) -> dict[str, MethodScores]:
    """Score methods on pairs, pair by pair, so that a busy moment of the machine meets them all.

    Args:
        pairs: What to score on.
        methods: Some of `METHODS`.
        estimators: The runs that these need, by name.
        degradation: What is done to the images first, see `degradations`.
        done: Called after each pair.
    """
    results = {method: MethodScores() for method in methods}
    for number, pair in enumerate(pairs):
        images, truth = pair.load()
        if degradation is not None:
            images = degrade(images, degradation, pair.id)
        for _ in range(0 if number else WARM_UPS):
            for estimate in estimators.values():
                estimate(images)
        found = {name: estimate(images) for name, estimate in estimators.items()}
        masks = {}
        if REFERENCE in found:
            masks[REFERENCE_SUBSET] = found[REFERENCE].disparity > 0
        for method in methods:
            estimate_ = estimate_of(found, method)
            results[method].pairs.append(
                score_estimate(estimate_, images, truth, pair.stratum, masks)
            )
            results[method].stages_ms.append(estimate_.stages_ms)
        done()
    return results


def score_estimate(
    estimate: Estimate,
    images: StereoPair,
    truth: GroundTruth,
    stratum: str,
    masks: Mapping[str, Any] | None = None,
) -> PairScore:
    """Return the score of an estimate, with all `DETAILED_SUBSETS` and the further masks."""
    calibration = images.calibration
    return score_pair(
        estimate.disparity,
        truth,
        calibration.fx * calibration.baseline_m,
        estimate.confidence,
        stratum,
        estimate.milliseconds,
        DETAILED_SUBSETS,
        masks,
        calibration,
        estimate.sigma_px,
    )


def peak_memory_mb(
    name: str,
    model: Path | None,
    threads: int,
    pair: StereoPair,
    student: str = STUDENT_BACKEND,
) -> float:
    """Return the largest resident size of a fresh process that runs one of `RUNS`, 1e6 bytes."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_run_and_measure, (name, model, threads, pair, student))


def _run_and_measure(
    name: str, model: Path | None, threads: int, pair: StereoPair, student: str
) -> float:
    import cv2

    cv2.setNumThreads(threads)
    estimate = load_estimator(name, model, threads, student)
    for _ in range(WARM_UPS):
        estimate(pair)
    # Not getrusage: its maximum survives exec and so counts what the parent process held.
    for line in Path('/proc/self/status').read_text(encoding='ascii').splitlines():
        if line.startswith('VmHWM:'):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError('/proc/self/status has no VmHWM')


def _milliseconds_since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
