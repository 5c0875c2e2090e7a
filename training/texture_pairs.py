"""Stereo pairs made by warping textures: cheap, for the first steps of a training run.

A textured right view is pulled into the left one along a smooth disparity that grows towards
the bottom, as on ground. Some forty times cheaper than a rendered pair and with the same task for
the matcher, but without perspective, shadow geometry or true occlusion: rendered pairs must
follow. `python -m training texture-pairs --out DIR --count 500`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

HEIGHT, WIDTH = 256, 384
# Columns of texture to the left of the right view, as far as disparities may reach.
_REACH = 200
_SPARE = 20
MAX_DISPARITY_PX = 185.0


def spectral_noise(
    rng: np.random.Generator, height: int, width: int, exponent: float
) -> np.ndarray:
    """Return (height, width) float32 noise of zero mean and unit deviation, power 1/f^exponent."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency += 1 / max(height, width)
    spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    noise = np.fft.irfft2(spectrum * frequency**-exponent, s=(height, width))
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def regolith_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return (height, width) float32 radiance of shaded noise with dark and bright spots."""
    relief = spectral_noise(rng, height, width, rng.uniform(1.2, 2.0))
    contrast = rng.uniform(0.3, 3)
    slope_y, slope_x = np.gradient(relief)
    azimuth = rng.uniform(0, 6.28)
    slope = slope_x * np.cos(azimuth) + slope_y * np.sin(azimuth)
    image = 1 + contrast * slope / (slope_x.std() + 1e-6) * 0.3
    image = image + 0.1 * spectral_noise(rng, height, width, 1.0)
    image = image * np.exp(0.2 * spectral_noise(rng, height, width, 2.2))
    for _ in range(rng.integers(0, 25)):
        center = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(2, 22)), int(rng.integers(2, 14)))
        tilt, tone = float(rng.uniform(0, 180)), float(rng.choice([0.02, 0.02, 1.8, 2.2]))
        cv2.ellipse(image, center, axes, tilt, 0, 360, tone, -1, cv2.LINE_AA)
    image = np.clip(image, 0.0, None)
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.0))


def ground_disparity(rng: np.random.Generator) -> np.ndarray:
    """Return (H, W) float32 px: a bent slope with waves and a few raised patches."""
    down = np.linspace(0, 1, HEIGHT)[:, None] * np.ones((1, WIDTH))
    across = (np.arange(WIDTH) / WIDTH - 0.5)[None]
    disparity = rng.uniform(0, 60) + rng.uniform(10, 110) * down ** rng.uniform(0.7, 1.6)
    disparity = disparity + rng.uniform(-15, 15) * across
    disparity = disparity + rng.uniform(0.2, 2.5) * spectral_noise(rng, HEIGHT, WIDTH, 2.2)
    for _ in range(rng.integers(0, 5)):
        patch = np.zeros((HEIGHT, WIDTH), np.uint8)
        center = (int(rng.integers(0, WIDTH)), int(rng.integers(0, HEIGHT)))
        axes = (int(rng.integers(5, 40)), int(rng.integers(5, 30)))
        cv2.ellipse(patch, center, axes, 0, 0, 360, 1, -1)
        disparity = disparity + patch * rng.uniform(0.5, 6)
    return np.clip(disparity, 0, MAX_DISPARITY_PX).astype(np.float32)


def texture_pair(seed: int, number: int) -> dict[str, Any]:
    """Return pair `number` of a seed in the form of `training.data.read_sample`, images uint8."""
    rng = np.random.default_rng([seed, number])
    texture = regolith_texture(rng, HEIGHT, WIDTH + _REACH + _SPARE).astype(np.float32)
    disparity = ground_disparity(rng)
    columns = np.arange(WIDTH, dtype=np.float32)[None]
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None] + 0 * columns
    left = cv2.remap(texture, columns - disparity + _REACH, rows, cv2.INTER_CUBIC)
    right = texture[:, _REACH : _REACH + WIDTH]
    gain = 0.75 / np.percentile(left, 95) * rng.uniform(0.5, 1.2)

    def exposed(view: np.ndarray) -> np.ndarray:
        noise = rng.normal(0, 1.2, view.shape) * np.sqrt(np.clip(view * gain, 0.05, 1))
        return np.clip(view * gain * 255 + noise, 0, 255).round().astype(np.uint8)

    return {
        'left': exposed(left),
        'right': exposed(right),
        'disparity': disparity,
        'shadow': np.zeros((HEIGHT, WIDTH), bool),
        'occlusion': np.where(columns < disparity, np.uint8(2), np.uint8(0)),
    }


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('texture-pairs', help='write cheap pairs of warped textures')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--count', type=int, default=500)
    parser.add_argument('--seed', type=int, default=9)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the pairs as `NNNNN.npz`."""
    args.out.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(args.count), unit='pair'):
        np.savez(args.out / f'{number:05d}.npz', **texture_pair(args.seed, number))
    return 0
