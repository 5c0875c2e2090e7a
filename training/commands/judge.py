"""Fit who chooses between a network's disparity and what matching found around it.

The student is run as on a rover on frames that it was not trained on, half of them with worse
light, focus, dust, noise or JPEG. Where the two answers differ, the classifier learns which one is
nearer the truth, weighted by what the choice is worth. On half of the frames the student's answer
is spoiled in places, as on images of an unfamiliar kind: else the classifier would learn that
a student is hardly ever wrong by much.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.residual import (
    disputed,
    EVIDENCE,
    evidence,
    ResidualJudge,
    search_around,
)
from lunar_stereo_recon.pipeline import StereoReconstructor
from training.commands.calibrate import load_rendered_pair
from training.data.batches import compressed, list_samples, vary_light

HIDDEN_UNITS = 8
PIXELS_PER_FRAME = 12000
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 2000, 8192, 1e-2, 1e-3
# What an error costs: each bound that it is above, and a little for its size, pixels.
BOUNDS_PX = {0.5: 0.3, 1.0: 0.5, 2.0: 0.5}
COST_A_PIXEL, LARGEST_ERROR_PX = 0.1, 4.0
JPEG_QUALITIES = (25, 65)
SPOILED_SHARE, SPOILED_FROM, LARGEST_SPOIL_PX = 0.5, 0.15, 8.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'judge', help='fit who chooses between network and matching, on frames apart from training'
    )
    parser.add_argument('model', type=Path, help='.onnx file')
    parser.add_argument('data', type=Path, nargs='+', help='folders of rendered full frames')
    parser.add_argument('--out', type=Path, required=True, help='JSON file of its weights')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=0, help='0 leaves it to the runtime')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit, say how often the choice is right, and write the file."""
    engine = StereoReconstructor(load_backend('onnx', args.model, threads=args.threads))
    samples = collect(engine, list_samples(args.data), args.seed)
    judge = fit(*samples, seed=args.seed)
    worth = samples[2]
    right = (judge.log_odds(samples[0]) > 0) == samples[1]
    print(f'{worth.size} pixels with two answers')
    print(
        f'worth of the right choices: always the network {_share(~samples[1], worth):.3f}, '
        f'always matching {_share(samples[1], worth):.3f}, chosen {_share(right, worth):.3f}'
    )
    args.out.write_text(judge.to_json(), encoding='utf-8')
    return 0


def collect(
    engine: StereoReconstructor, paths: Sequence[Path], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Return evidence (K, N), whether the found disparity is better (N,), and its worth (N,).

    Raises:
        InputError: No frame has two answers.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for number, path in enumerate(paths):
        pair, truth = load_rendered_pair(path)
        if number % 2:
            left, right = vary_light(pair.left, pair.right, rng)
            if number % 4 == 1:
                # The blocks of JPEG pass for texture until one has seen them.
                quality = int(rng.integers(*JPEG_QUALITIES))
                left, right = compressed(left, quality), compressed(right, quality)
            pair = replace(pair, left=left, right=right)
        engine.reset_rows()
        engine.prior(pair)  # tells how the rows of this frame's rig are aligned
        aligned, prior = engine.prior(pair)
        disparity = prior.disparity
        if rng.random() < SPOILED_SHARE:
            disparity = spoiled(disparity, aligned.left, rng)
        found = search_around(aligned.left, aligned.right, disparity)
        # The dark too, where the judge is not asked: it teaches what noise looks like.
        pixels = np.flatnonzero(disputed(disparity, found) & np.isfinite(truth))
        pixels = rng.permutation(pixels)[:PIXELS_PER_FRAME]
        worth = _cost(disparity, truth, pixels) - _cost(found, truth, pixels)
        planes = evidence(aligned.left, aligned.right, disparity, found, pixels)
        parts.append((planes, worth > 0, np.abs(worth)))
    if not any(part[2].size for part in parts):
        raise InputError(f'{len(paths)} frames without a pixel that has two answers')
    features, better, worths = (
        np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)
    )
    return features, better, worths


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


def fit(
    features: NDArray[np.float32],
    better: NDArray[np.bool_],
    worth: NDArray[np.float32],
    seed: int = 0,
    steps: int = STEPS,
) -> ResidualJudge:
    """Return the classifier.

    Args:
        features: (K, N), the evidence of N pixels.
        better: (N,) bool, the found disparity is nearer the truth.
        worth: (N,) what the choice is worth, not negative.
        seed: Of start and batches.
        steps: Steps of the optimiser.
    """
    mean = features.mean(axis=1)
    scale = features.std(axis=1) + np.float32(1e-3)
    inputs = torch.from_numpy(((features - mean[:, None]) / scale[:, None]).T.copy())
    targets, weights = torch.from_numpy(better.astype(np.float32)), torch.from_numpy(worth)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden, output = nn.Linear(len(EVIDENCE), HIDDEN_UNITS), nn.Linear(HIDDEN_UNITS, 1)
    net = nn.Sequential(hidden, nn.ReLU(), output)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (BATCH,), generator=generator)
        losses = nn.functional.binary_cross_entropy_with_logits(
            net(inputs[batch])[:, 0], targets[batch], reduction='none'
        )
        optimizer.zero_grad()
        (weights[batch] * losses).mean().backward()
        optimizer.step()
        schedule.step()
    # Unscaled: the classifier takes the evidence as it is.
    weights_in = hidden.weight.detach().numpy() / scale
    bias_in = hidden.bias.detach().numpy() - weights_in @ mean
    return ResidualJudge(
        weights_in.astype(np.float32),
        bias_in.astype(np.float32),
        output.weight.detach().numpy()[0].astype(np.float32),
        float(output.bias.detach()),
    )


def _cost(
    disparity: NDArray[np.float32], truth: NDArray[np.float32], pixels: NDArray[np.intp]
) -> NDArray[np.float32]:
    error = np.abs(disparity.ravel()[pixels] - truth.ravel()[pixels])
    cost = np.float32(COST_A_PIXEL) * np.minimum(error, np.float32(LARGEST_ERROR_PX))
    for bound, price in BOUNDS_PX.items():
        cost += np.float32(price) * (error > bound)
    return np.asarray(cost, np.float32)


def _share(chosen: NDArray[np.bool_], worth: NDArray[np.float32]) -> float:
    return float(worth[chosen].sum() / worth.sum())
