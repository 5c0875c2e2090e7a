"""Examples for the network that chooses between candidates: what a rover would show it.

The student is run on rendered frames, half of them with worse light, focus, dust, noise or JPEG,
many with rows that bend, at different widths of its input. On a third of the frames the student's
answer is spoiled in places, as on images of an unfamiliar kind: else the network would learn that
a student is hardly ever wrong by much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lunar_stereo_recon.datatypes import StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import load_arrays
from lunar_stereo_recon.files.atomic import write_bytes
from lunar_stereo_recon.geometry.residual import candidates_around, evidence
from lunar_stereo_recon.pipeline import StereoReconstructor
from training.data.batches import (
    bend_rows,
    compressed,
    list_samples,
    load_rendered_pair,
    vary_light,
)

CROP_HEIGHT, CROP_WIDTH = 160, 192
FLIPPED_SHARE = 0.4
WORSE_SHARE, BENT_SHARE, JPEG_SHARE = 0.5, 0.35, 0.3
LARGEST_BEND_PX = 0.8
JPEG_QUALITIES = (25, 65)
# Widths of the network's input, and how often each is used.
NETWORK_WIDTHS, WIDTH_SHARES = (640, 480, 320), (0.6, 0.2, 0.2)
SPOILED_SHARE, SPOILED_FROM, LARGEST_SPOIL_PX = 0.3, 0.15, 8.0
# 6 GB of memory.
KEPT_EXAMPLES = 600
ARRAYS = ('evidence', 'prior', 'steps', 'truth')


@dataclass(frozen=True)
class ChoiceExample:
    """A frame, or a part of one.

    Attributes:
        evidence: (K, H, W) float32, see `geometry.residual.EVIDENCE`.
        candidates: (4, H, W) float32, pixels.
        truth: (H, W) float32, column difference in pixels, NaN unknown.
    """

    evidence: NDArray[np.float32]
    candidates: NDArray[np.float32]
    truth: NDArray[np.float32]


def make_examples(
    engine: StereoReconstructor, paths: Sequence[Path], folder: Path, seed: int
) -> list[Path]:
    """Write an example for each rendered frame, 9 MB a file; those that are there are kept.

    Raises:
        InputError: A frame cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, path in enumerate(tqdm(paths, desc='examples', unit='frame')):
        target = folder / f'{path.parent.name}_{path.stem}.npz'
        written.append(target)
        if target.exists():
            continue
        rng = np.random.default_rng([seed, number])
        example = _example(engine, path, rng)
        prior = example.candidates[0]
        content = io.BytesIO()
        np.savez(
            content,
            evidence=example.evidence.astype(np.float16),
            prior=prior,
            steps=(example.candidates[1:] - prior).astype(np.float16),
            truth=example.truth,
        )
        write_bytes(target, content.getvalue())
    return written


def _example(engine: StereoReconstructor, path: Path, rng: np.random.Generator) -> ChoiceExample:
    pair, truth = load_rendered_pair(path)
    pair = _varied(pair, rng)
    width = int(rng.choice(NETWORK_WIDTHS, p=WIDTH_SHARES))
    engine.network_width_px = min(width, engine.backend.max_width_px or width)
    engine.reset_rows()
    engine.prior(pair)  # tells how the rows of this frame's rig are aligned
    aligned, prior = engine.prior(pair)
    disparity = prior.disparity
    if rng.random() < SPOILED_SHARE:
        disparity = spoiled(disparity, aligned.left, rng)
    candidates, answered = candidates_around(aligned.left, aligned.right, disparity)
    planes = evidence(aligned.left, aligned.right, candidates, answered)
    return ChoiceExample(planes, candidates, truth.astype(np.float32))


def _varied(pair: StereoPair, rng: np.random.Generator) -> StereoPair:
    left, right = pair.left, pair.right
    if rng.random() < BENT_SHARE:
        right = bend_rows(right, rng, LARGEST_BEND_PX)
    if rng.random() < WORSE_SHARE:
        left, right = vary_light(left, right, rng)
        if rng.random() < JPEG_SHARE:
            # The blocks of JPEG pass for texture until one has seen them.
            quality = int(rng.integers(*JPEG_QUALITIES))
            left, right = compressed(left, quality), compressed(right, quality)
    return replace(pair, left=np.clip(left, 0, 1), right=np.clip(right, 0, 1))


def spoiled(
    disparity: NDArray[np.float32], left: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return the disparity (H, W) with a few ellipses moved by up to `LARGEST_SPOIL_PX`.

    Only where the image is bright: in the dark there is nothing to tell the two answers apart.
    """
    height, width = disparity.shape
    bright = (cv2.blur(left, (9, 9)) > SPOILED_FROM).astype(np.float32)
    result = disparity.copy()
    for _ in range(rng.integers(2, 7)):
        axes = [
            float(np.exp(rng.uniform(np.log(6), np.log(side / 3)))) for side in (width, height)
        ]
        centre = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        shape = np.zeros((height, width), np.float32)
        cv2.ellipse(shape, (centre, (axes[0], axes[1]), float(rng.uniform(0, 180))), 1.0, -1)
        border_px = float(rng.uniform(0.5, 6.0))
        offset_px = rng.uniform(0.5, LARGEST_SPOIL_PX) * rng.choice((-1, 1))
        result += np.float32(offset_px) * cv2.GaussianBlur(shape, (0, 0), border_px) * bright
    return np.maximum(result, 0)


class ChoiceCrops:
    """Endless random crops, a pure function of the seed and their number.

    Args:
        folders: Folders of examples; as many crops are drawn from each.
        seed: Of what is drawn.

    Raises:
        InputError: A folder holds no examples.
    """

    def __init__(self, folders: Sequence[Path], seed: int) -> None:
        self._folders = [list_samples([folder]) for folder in folders]
        self._seed = seed
        # They are read again and again.
        self._read = lru_cache(KEPT_EXAMPLES)(read_example)

    def __getitem__(self, number: int) -> ChoiceExample:
        """Return crop `number`, (160, 192) pixels, some upside down."""
        rng = np.random.default_rng([self._seed, number])
        paths = self._folders[rng.integers(len(self._folders))]
        planes, prior, steps, truth = self._read(paths[rng.integers(len(paths))])
        height, width = prior.shape
        if height < CROP_HEIGHT or width < CROP_WIDTH:
            raise InputError(
                f'an example has {width}x{height} pixels; at least {CROP_WIDTH}x{CROP_HEIGHT} '
                'are needed'
            )
        # The network looks at cells of 2x2 pixels: crops begin at even ones.
        top = 2 * rng.integers((height - CROP_HEIGHT) // 2 + 1)
        first = 2 * rng.integers((width - CROP_WIDTH) // 2 + 1)
        window = np.s_[..., top : top + CROP_HEIGHT, first : first + CROP_WIDTH]
        order = -1 if rng.random() < FLIPPED_SHARE else 1
        cut_planes, cut_prior, cut_steps, cut_truth = (
            np.ascontiguousarray(array[window][..., ::order, :], np.float32)
            for array in (planes, prior, steps, truth)
        )
        candidates = np.concatenate([cut_prior[None], cut_prior + cut_steps])
        return ChoiceExample(cut_planes, candidates, cut_truth)


def read_example(
    path: Path,
) -> tuple[NDArray[np.float16], NDArray[np.float32], NDArray[np.float16], NDArray[np.float32]]:
    """Return evidence, prior, steps from it to the other candidates, and truth of a file.

    Raises:
        InputError: It cannot be read, or an array is missing.
    """
    arrays = load_arrays(path, 'choice example', ARRAYS, ())
    planes, prior, steps, truth = (arrays[name] for name in ARRAYS)
    return planes, prior, steps, truth
