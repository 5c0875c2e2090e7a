"""Evidence with a known answer, for the network that chooses; see `backends.choice_network`.

The evidence is made by formula. In each block of pixels another candidate is right, with other
light, noise and texture, so that every channel of the network has something to say somewhere: a
damaged weight of a silent one would not be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.residual import CANDIDATES, EVIDENCE

ANSWER_KEY = 'self_test_answer'
TEST_HEIGHT, TEST_WIDTH = 120, 192
# Pixels whose answer is kept. None sees farther than 48 px below and to its right: the answer is
# the same whatever follows there.
_ROWS, _COLUMNS = slice(1, 72, 10), slice(2, 144, 11)
_SHAPE = (
    len(CANDIDATES) + 1,
    len(range(TEST_HEIGHT)[_ROWS]),
    len(range(TEST_WIDTH)[_COLUMNS]),
)
# Between runtimes and processors; a preference that is better by 0.15 decides.
TOLERANCE = 0.02
BLOCK_HEIGHT, BLOCK_WIDTH = 24, 32
SEED = 27
# Multiples of irrational numbers, without their whole part, are spread evenly.
GOLDEN, SQUARE_ROOT = 0.6180339887498949, 1.4142135623730951
# What is right in a block. In the first all candidates are alike, in the last matching's answer
# and the prior.
ALIKE, FOUND, FARTHER, NEARER, NOT_FOUND, OUTSIDE, BOTH = range(7)


def self_test_evidence(height: int, width: int) -> NDArray[np.float32]:
    """Return (K, height, width) float32: what has the known answer, then nothing but zeros."""
    known = _known_evidence()[:, :height, :width]
    evidence = np.zeros((len(EVIDENCE), height, width), np.float32)
    evidence[:, : known.shape[1], : known.shape[2]] = known
    return evidence


@cache
def _known_evidence() -> NDArray[np.float32]:
    """Return (K, TEST_HEIGHT, TEST_WIDTH) float32, within what evidence may be."""
    rows, columns = np.mgrid[0:TEST_HEIGHT, 0:TEST_WIDTH].astype(np.float64)
    block = rows // BLOCK_HEIGHT * 5 + columns // BLOCK_WIDTH * 3 + SEED

    def level(number: int) -> NDArray[np.float64]:
        """Return a value in [0, 1) for each block."""
        return np.asarray((GOLDEN * block * (number + 1) + SQUARE_ROOT * number) % 1)

    def texture(number: int) -> NDArray[np.float64]:
        """Return waves in [-1, 1] whose lengths change over the image."""
        part = [(GOLDEN * (7 * number + item + 13 * SEED)) % 1 for item in range(5)]
        bend = rows / (31 + 20 * part[3]) - columns / (43 + 20 * part[4])
        wave = rows * (0.03 + 0.4 * part[1]) + columns * (0.03 + 0.4 * part[2])
        return np.asarray(np.sin(2 * np.pi * wave + 6 * np.sin(2 * np.pi * bend)))

    right = np.floor(7 * level(0))

    def cost(number: int, *right_in: int) -> NDArray[np.float64]:
        """Return a candidate's cost, low in blocks of these kinds."""
        low = -0.42 + 0.15 * (1 + texture(number)) * level(number)
        high = 0.3 + 0.6 * level(number + 1) + 0.6 * texture(number + 1)
        return np.clip(np.where(np.isin(right, right_in), low, high), -0.5, 1.5)

    answered = right != NOT_FOUND
    step = 4.5 * level(4) ** 2
    found_step = np.where(level(5) > 0.5, step, -step) * (right != ALIKE) + 0.15 * texture(4)
    prior_cost = cost(8, ALIKE, NOT_FOUND, BOTH)
    planes = {
        'brightness': np.clip(2 * level(1) - 1 + 0.25 * texture(1), -1, 1),
        'contrast': -1 + 3 * level(2) + 0.5 * texture(2),
        'detail': (0.3 + 3 * level(3) ** 2) * texture(3),
        'prior_cost': prior_cost,
        'found_cost': np.where(answered, cost(10, ALIKE, FOUND, BOTH), prior_cost),
        'farther_cost': cost(12, ALIKE, FARTHER),
        'nearer_cost': cost(14, ALIKE, NEARER),
        'found_step': np.where(answered, found_step, 0),
        'farther_step': np.minimum(-step * (0.4 + 0.6 * level(6)) - 0.2 * texture(5), 0),
        'nearer_step': np.maximum(step * (0.4 + 0.6 * level(7)) + 0.2 * texture(6), 0),
        'answered': answered,
        'inside': right != OUTSIDE,
    }
    return np.stack([planes[name] for name in EVIDENCE]).astype(np.float32)


def answer_entry(answer: NDArray[np.float32]) -> str:
    """Return the metadata's `ANSWER_KEY` of a network that answered so (5, H, W)."""
    return json.dumps([round(float(value), 3) for value in answer[:, _ROWS, _COLUMNS].ravel()])


def stored_answer(metadata: Mapping[str, str], path: Path) -> NDArray[np.float64] | None:
    """Return the known answer at the pixels that are kept; None where the metadata have none.

    Raises:
        ModelError: It is something else.
    """
    text = metadata.get(ANSWER_KEY)
    if not text:
        return None
    try:
        values = np.array(json.loads(text), np.float64)
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(f'{path} metadata {ANSWER_KEY} is not a list of numbers') from error
    count = int(np.prod(_SHAPE))
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ModelError(
            f'{path} metadata {ANSWER_KEY} has shape {values.shape}; {count} finite numbers are '
            'needed'
        )
    return values.reshape(_SHAPE)


def check_answer(
    answer: NDArray[np.float32], expected: NDArray[np.float64] | None, path: Path
) -> None:
    """Refuse an answer (5, H, W) to `self_test_evidence`.

    Images smaller than what has a known answer get another one: it must only be finite.

    Raises:
        ModelError: It is not the one expected, or not finite.
    """
    if not np.isfinite(answer).all():
        raise ModelError(f'{path} fails its self-test: its answer is not finite')
    _, height, width = answer.shape
    if expected is None or height < TEST_HEIGHT or width < TEST_WIDTH:
        return
    error = float(np.abs(answer[:, _ROWS, _COLUMNS] - expected).max())
    if error > TOLERANCE:
        raise ModelError(
            f'{path} fails its self-test: it is {error:.3g} off the known answer, at most '
            f'{TOLERANCE} is allowed'
        )
