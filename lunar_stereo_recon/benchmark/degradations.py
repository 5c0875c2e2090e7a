"""Degradations of a good rectified pair: what goes wrong between the ground and the image.

The true disparity stays that of the left image: where geometry is disturbed, it is the right
image's. Images are (H, W) float32 in [0, 1], and 8 bits deep again in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import math
import zlib

import cv2
import numpy as np
from numpy.random import Generator

from lunar_stereo_recon.datatypes import FloatImage, StereoPair
from lunar_stereo_recon.errors import InputError

Images = tuple[FloatImage, FloatImage]
Degradation = Callable[[FloatImage, FloatImage, Generator], Images]

WHITE_DN = 255.0
ROLL_DEG = 0.1
JPEG_QUALITY = 40
DARK_GAIN = 0.3
SHOT_NOISE_DN = 3.0  # standard deviation at 200 DN
READ_NOISE_DN = 1.0
BRIGHT_GAIN = 1.9
BLUR_SIGMA_PX = 1.2
DUST_SPOTS = 6
GAMMA = 0.8
GAIN, OFFSET_DN = 0.85, 3.0


def degrade(pair: StereoPair, name: str, pair_id: str) -> StereoPair:
    """Return the pair as it would be with one thing wrong.

    Args:
        pair: A good pair.
        name: One of `DEGRADATIONS`.
        pair_id: What is random depends on this and the name alone.

    Raises:
        InputError: Unknown name.
    """
    if name not in DEGRADATIONS:
        raise InputError(f"unknown degradation '{name}'; known are {', '.join(DEGRADATIONS)}")
    rng = np.random.default_rng(zlib.crc32(f'{name} {pair_id}'.encode()))
    left, right = DEGRADATIONS[name](pair.left, pair.right, rng)
    return replace(pair, left=_quantised(left), right=_quantised(right), color=None)


def _rows_misaligned(offset_px: float) -> Degradation:
    """Return what shifts the right image up or down."""

    def shifted(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
        matrix = np.array([[1, 0, 0], [0, 1, offset_px * rng.choice([-1.0, 1.0])]])
        return left, _warped(right, matrix)

    return shifted


def _rolled(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
    height, width = right.shape
    centre = ((width - 1) / 2, (height - 1) / 2)
    return left, _warped(
        right, cv2.getRotationMatrix2D(centre, ROLL_DEG * float(rng.choice([-1.0, 1.0])), 1.0)
    )


def _warped(image: FloatImage, matrix: np.ndarray) -> FloatImage:
    # Lanczos keeps the image sharp: the misalignment is what is tested, not a blur.
    size = image.shape[1], image.shape[0]
    warped = cv2.warpAffine(
        image, matrix, size, flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(warped, np.float32)


def _jpeg(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
    def coded(image: FloatImage) -> FloatImage:
        grey = np.rint(np.clip(image, 0, 1) * WHITE_DN).astype(np.uint8)
        _, data = cv2.imencode('.jpg', grey, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE).astype(np.float32) / np.float32(WHITE_DN)

    return coded(left), coded(right)


def _dark_and_noisy(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
    def exposed(image: FloatImage) -> FloatImage:
        level = image * DARK_GAIN * WHITE_DN
        deviation = np.sqrt(READ_NOISE_DN**2 + SHOT_NOISE_DN**2 * level / 200.0)
        noise = deviation * rng.standard_normal(image.shape)
        return ((level + noise) / WHITE_DN).astype(np.float32)

    return exposed(left), exposed(right)


def _saturated(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
    return left * np.float32(BRIGHT_GAIN), right * np.float32(BRIGHT_GAIN)


def _one_sided_blur(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
    blurred = cv2.GaussianBlur(right, (0, 0), BLUR_SIGMA_PX, borderType=cv2.BORDER_REPLICATE)
    return left, np.asarray(blurred, np.float32)


def _dusty(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
    def behind_dust(image: FloatImage) -> FloatImage:
        height, width = image.shape
        columns, rows = np.arange(width)[None, :], np.arange(height)[:, None]
        light = np.ones(image.shape)
        for _ in range(DUST_SPOTS):
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            radius = width * math.exp(rng.uniform(math.log(0.01), math.log(0.06)))
            distance2 = (columns - x) ** 2 + (rows - y) ** 2
            light *= 1 - rng.uniform(0.1, 0.4) * np.exp(-distance2 / radius**2)
        return (image * light).astype(np.float32)

    return behind_dust(left), behind_dust(right)


def _gamma_mismatch(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
    return left, right ** np.float32(GAMMA)


def _gain_mismatch(left: FloatImage, right: FloatImage, rng: Generator) -> Images:
    return left, right * np.float32(GAIN) + np.float32(OFFSET_DN / WHITE_DN)


def _quantised(image: FloatImage) -> FloatImage:
    levels = np.rint(np.clip(image, 0, 1) * np.float32(WHITE_DN))
    return (levels / np.float32(WHITE_DN)).astype(np.float32)


DEGRADATIONS: dict[str, Degradation] = {
    'rows_0.3px': _rows_misaligned(0.3),
    'rows_0.6px': _rows_misaligned(0.6),
    'rows_1.0px': _rows_misaligned(1.0),
    'roll_0.1deg': _rolled,
    'jpeg_40': _jpeg,
    'dark_noisy': _dark_and_noisy,
    'saturated': _saturated,
    'one_sided_blur': _one_sided_blur,
    'dust': _dusty,
    'gamma_mismatch': _gamma_mismatch,
    'gain_mismatch': _gain_mismatch,
}
