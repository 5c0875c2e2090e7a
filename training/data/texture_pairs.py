"""Stereo pairs made by warping textures: cheap, for the first steps of a training run.

A textured right view is pulled into the left one along a smooth disparity that grows towards
the bottom, as on ground. Some forty times cheaper than a rendered pair and with the same task for
the matcher, but without perspective, shadow geometry or true occlusion: rendered pairs must
follow. `plane_pair` makes tilted planes in perspective. Both views have their disparity, so that
pointmap students can learn from them too.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

# Lengths below are pixels of pairs of this width; they scale with a pair's.
WIDTH, HEIGHT = 384, 256
# Columns of texture to the left of the right view, as far as disparities may reach.
_REACH = 200
_SPARE = 20
MAX_DISPARITY_PX = 185.0
FOCAL_PX = 300.0
# Side of a plane's periodic texture, and how much of it a length of 1 is.
_PLANE_TEXTURE, _PLANE_TEXELS = 256, 60.0
# Between columns of the left view, to find where they land in the right one.
_OVERSAMPLED = 8


def spectral_noise(
    rng: np.random.Generator, height: int, width: int, exponent: float
) -> np.ndarray:
    """Return (height, width) float32 noise of zero mean and unit deviation, power 1/f^exponent."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency += 1 / max(height, width)
    spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    noise = np.fft.irfft2(spectrum * frequency**-exponent, s=(height, width))
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def regolith_texture(
    rng: np.random.Generator, height: int, width: int, scale: float = 1.0
) -> np.ndarray:
    """Return (height, width) float32 radiance of shaded noise with dark and bright spots.

    Args:
        rng: Draws it.
        height, width: Pixels.
        scale: Scale of the spots.
    """
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
        axes = _scaled((rng.integers(2, 22), rng.integers(2, 14)), scale)
        tilt, tone = float(rng.uniform(0, 180)), float(rng.choice([0.02, 0.02, 1.8, 2.2]))
        cv2.ellipse(image, center, axes, tilt, 0, 360, tone, -1, cv2.LINE_AA)
    image = np.clip(image, 0.0, None)
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.0))


def _scaled(lengths: tuple[np.integer, np.integer], scale: float) -> tuple[int, int]:
    return max(1, round(float(lengths[0]) * scale)), max(1, round(float(lengths[1]) * scale))


def ground_disparity(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return (height, width) float32 px: a bent slope with waves and a few raised patches."""
    scale = width / WIDTH
    down = np.linspace(0, 1, height)[:, None] * np.ones((1, width))
    across = (np.arange(width) / width - 0.5)[None]
    disparity = rng.uniform(0, 60) + rng.uniform(10, 110) * down ** rng.uniform(0.7, 1.6)
    disparity = disparity + rng.uniform(-15, 15) * across
    disparity = disparity + rng.uniform(0.2, 2.5) * spectral_noise(rng, height, width, 2.2)
    for _ in range(rng.integers(0, 5)):
        patch = np.zeros((height, width), np.uint8)
        center = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = _scaled((rng.integers(5, 40), rng.integers(5, 30)), scale)
        cv2.ellipse(patch, center, axes, 0, 0, 360, 1, -1)
        disparity = disparity + patch * rng.uniform(0.5, 6)
    return (np.clip(disparity, 0, MAX_DISPARITY_PX) * scale).astype(np.float32)


def right_disparity(disparity: np.ndarray) -> np.ndarray:
    """Return the right view's disparity (H, W) px of the left view's, NaN where none lands.

    Where several columns land, the nearest counts.
    """
    height, width = disparity.shape
    columns = np.linspace(0, width - 1, (width - 1) * _OVERSAMPLED + 1)
    before = columns.astype(np.int64).clip(max=width - 2)
    share = (columns - before).astype(np.float32)
    dense = disparity[:, before] * (1 - share) + disparity[:, before + 1] * share
    landing = np.rint(columns - dense).astype(np.int64)
    rows = np.broadcast_to(np.arange(height)[:, None], landing.shape)
    inside = (landing >= 0) & (landing < width)
    seen = np.full((height, width), -1.0, np.float32)
    np.maximum.at(seen, (rows[inside], landing[inside]), dense[inside])
    return np.where(seen < 0, np.float32(np.nan), seen)


def centred_intrinsics(width: int, height: int) -> np.ndarray:
    """Return (3, 3) float64 of a camera of this size, px."""
    focal = FOCAL_PX * width / WIDTH
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def texture_pair(
    seed: int, number: int, width: int = WIDTH, height: int = HEIGHT
) -> dict[str, Any]:
    """Return pair `number` of a seed as `training.data.batches.read_sample` does, images uint8."""
    rng = np.random.default_rng([seed, number])
    scale = width / WIDTH
    reach, spare = math.ceil(_REACH * scale), math.ceil(_SPARE * scale)
    texture = regolith_texture(rng, height, width + reach + spare, scale).astype(np.float32)
    disparity = ground_disparity(rng, width, height)
    columns = np.arange(width, dtype=np.float32)[None]
    rows = np.arange(height, dtype=np.float32)[:, None] + 0 * columns
    left = cv2.remap(texture, columns - disparity + reach, rows, cv2.INTER_CUBIC)
    right = texture[:, reach : reach + width]
    gain = 0.75 / np.percentile(left, 95) * rng.uniform(0.5, 1.2)

    def exposed(view: np.ndarray) -> np.ndarray:
        noise = rng.normal(0, 1.2, view.shape) * np.sqrt(np.clip(view * gain, 0.05, 1))
        return np.clip(view * gain * 255 + noise, 0, 255).round().astype(np.uint8)

    return {
        'left': exposed(left),
        'right': exposed(right),
        'disparity': disparity,
        'disparity_right': right_disparity(disparity),
        'shadow': np.zeros((height, width), bool),
        'occlusion': np.where(columns < disparity, np.uint8(2), np.uint8(0)),
        'intrinsics': centred_intrinsics(width, height),
    }


def blob_texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return (side, side) float32 periodic noise of unit deviation, of one typical blob size."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1e-6
    octaves = np.log(frequency / rng.uniform(0.09, 0.13)) / 0.35
    amplitude = np.exp(-0.5 * octaves**2) / frequency
    spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    noise = np.fft.irfft2(spectrum * amplitude, s=(side, side))
    return (noise / noise.std()).astype(np.float32)


def plane_pair(seed: int, number: int, width: int = WIDTH, height: int = HEIGHT) -> dict[str, Any]:
    """Return a textured plane in perspective, tilted any way; form as of `texture_pair`.

    Blobs of one size look smaller where the plane is further, so that one view tells the slope
    and two tell it better.
    """
    rng = np.random.default_rng([seed, number])
    texture = blob_texture(rng, _PLANE_TEXTURE)
    focal = FOCAL_PX * width / WIDTH
    intrinsics = centred_intrinsics(width, height)
    x = (np.arange(width) - (width - 1) / 2) / focal
    y = ((np.arange(height) - (height - 1) / 2) / focal)[:, None]
    baseline, slope = rng.uniform(0.06, 0.14), rng.uniform(0.1, 0.6)
    azimuth = rng.uniform(0, 2 * np.pi)
    along = slope * np.cos(azimuth) * focal / (width / 2)
    down = slope * np.sin(azimuth) * focal / (height / 2)
    origin = rng.uniform(0, _PLANE_TEXTURE, 2)
    contrast = rng.uniform(25, 50)

    def view(shift: float) -> tuple[np.ndarray, np.ndarray]:
        # Inverse depth is linear in a view's coordinates; the middle of the left view is at 1.
        inverse = (1 + along * x + down * y) / (1 - along * shift)
        places = (x / inverse + shift, y / inverse)
        columns, rows = (
            ((place * _PLANE_TEXELS + start) % _PLANE_TEXTURE).astype(np.float32)
            for place, start in zip(places, origin, strict=True)
        )
        image = cv2.remap(texture, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
        image = 128 + contrast * image + rng.normal(0, 1.2, image.shape)
        disparity = (focal * baseline * inverse).astype(np.float32)
        return np.clip(image, 0, 255).round().astype(np.uint8), disparity

    (left, disparity), (right, disparity_right) = view(0.0), view(baseline)
    return {
        'left': left,
        'right': right,
        'disparity': disparity,
        'disparity_right': disparity_right,
        'shadow': np.zeros((height, width), bool),
        'occlusion': np.where(np.arange(width) < disparity, np.uint8(2), np.uint8(0)),
        'intrinsics': intrinsics,
    }
