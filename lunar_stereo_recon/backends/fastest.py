"""Chooses the fastest way to run a student: each is timed on one pair and compared with the first.

Which runtime is faster depends on the processor: OpenVINO where it multiplies bfloat16, often
onnxruntime elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import logging
import time

import cv2
import numpy as np

from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage
from lunar_stereo_recon.errors import ModelError

# The usual size of the network's input.
WIDTH, HEIGHT = 640, 480
NEAR_PX, FAR_PX = 40.0, 8.0
REPEATS = 4
# Answers may differ from the first one's by this much in the median, and by a pixel in this share
# of the image.
MEDIAN_TOLERANCE_PX, GROSS_PX, GROSS_SHARE = 0.1, 1.0, 0.01

logger = logging.getLogger(__name__)


@dataclass
class Candidate:
    """A backend, its answer to the pair and its best time, milliseconds."""

    backend: Backend
    answer: DisparityPrediction
    milliseconds: float


def fastest(loaders: Mapping[str, Callable[[], Backend]]) -> Backend:
    """Return the fastest of several backends; its `choice` and the log say why.

    One that cannot be loaded, or whose answers differ too much from the first one's, is left out.

    Args:
        loaders: What makes each, by name; the first is the one to agree with.

    Raises:
        ModelError: The first one cannot be loaded or fails.
    """
    left, right = timing_pair()
    candidates: dict[str, Candidate] = {}
    remarks: dict[str, str] = {}
    for name, load in loaders.items():
        try:
            backend = load()
            # The first pair of a size takes longer.
            candidate = Candidate(backend, backend.predict(left, right), float('inf'))
        except ModelError as error:
            if not candidates:
                raise
            remarks[name] = str(error)
            continue
        reference = next(iter(candidates.values()), candidate)
        difference = _difference(reference.answer, candidate.answer)
        if difference:
            remarks[name] = difference
        else:
            candidates[name] = candidate
    # In turns: a busy moment of the machine meets all of them.
    for _ in range(REPEATS):
        for candidate in candidates.values():
            start = time.perf_counter()
            candidate.backend.predict(left, right)
            elapsed = 1e3 * (time.perf_counter() - start)
            candidate.milliseconds = min(candidate.milliseconds, elapsed)
    chosen = min(candidates, key=lambda name: candidates[name].milliseconds)
    backend = candidates[chosen].backend
    times = [f'{name} {each.milliseconds:.0f} ms' for name, each in candidates.items()]
    out = [f'{name} left out ({remark})' for name, remark in remarks.items()]
    backend.choice = f'{chosen}, the fastest of {", ".join(times + out)}'
    logger.info('auto: %s', backend.choice)
    return backend


def timing_pair() -> tuple[FloatImage, FloatImage]:
    """Return left and right (480, 640) float32: textured ground that comes nearer downwards."""
    texture = np.random.default_rng(19).random((HEIGHT, WIDTH), np.float32)
    right = cv2.GaussianBlur(texture, (0, 0), 1.5)
    right = np.clip(0.5 + 3 * (right - 0.5), 0, 1).astype(np.float32)
    rows = np.repeat(np.arange(HEIGHT, dtype=np.float32)[:, None], WIDTH, axis=1)
    disparity = FAR_PX + (NEAR_PX - FAR_PX) * rows / HEIGHT
    columns = np.arange(WIDTH, dtype=np.float32) - disparity
    left = cv2.remap(right, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(left, np.float32), right


def _difference(reference: DisparityPrediction, answer: DisparityPrediction) -> str:
    """Return what is wrong with an answer; '' where it is within tolerance."""
    if reference.disparity.shape != answer.disparity.shape:
        return f'its answer has shape {answer.disparity.shape}'
    error = np.abs(reference.disparity - answer.disparity)
    median = float(np.median(error))
    # What is not finite counts as wrong.
    gross = 1 - float((error <= GROSS_PX).mean())
    if median <= MEDIAN_TOLERANCE_PX and gross <= GROSS_SHARE:
        return ''
    return f'its disparities differ by {median:.2g} px, {gross:.1%} of them by more than a pixel'
