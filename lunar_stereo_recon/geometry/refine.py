"""Sub-pixel matching around a dense prior, along the row, at the full size of the images.

The right image is first warped onto the left by the prior, so what is left to find is small and
nearly constant over a window even where the ground slopes through tens of disparities: the
fronto-parallel assumption of plain window matching is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage


@dataclass(frozen=True)
class RefineOptions:
    """Settings of `refine_disparity`.

    Attributes:
        search_px: Offsets -search_px..search_px around the prior are tried, pixels.
        window_px: Side of the square matching window, odd, pixels.
        min_texture: Standard deviation of the window, as a share of white, below which the
            prior is kept.
        min_zncc: Matching score in [-1, 1] below which the prior is kept.
    """

    search_px: int = 2
    window_px: int = 9
    min_texture: float = 0.004
    min_zncc: float = 0.7


@dataclass(frozen=True)
class Refinement:
    """A refined disparity map and what was seen while refining; every array is (H, W).

    Attributes:
        disparity: float32, pixels, column difference. The prior where `moved` is false.
        zncc: float32 in [-1, 1], matching score at the best offset; 0 where there is no texture.
        texture: float32, standard deviation of the left window, share of white.
        occluded: bool, the right camera sees something nearer at the matched column.
        outside: bool, the matched column is outside the right image.
        moved: bool, the disparity was changed by matching.
    """

    disparity: FloatImage
    zncc: FloatImage
    texture: FloatImage
    occluded: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    moved: NDArray[np.bool_]


def refine_disparity(
    left: FloatImage,
    right: FloatImage,
    prior: FloatImage,
    options: RefineOptions,
    move: bool = True,
) -> Refinement:
    """Refine a dense prior.

    Args:
        left, right: (H, W) float32 in [0, 1].
        prior: (H, W) float32, column left minus column right, pixels. NaN stays NaN.
        options: Settings.
        move: Whether the disparity may change; scores and checks are made in either case.
    """
    offsets = np.arange(-options.search_px, options.search_px + 1, dtype=np.float32)
    moments = _window_moments(left, options.window_px)
    scores = np.stack(
        [_zncc(left, warp_right(right, prior + offset), moments, options) for offset in offsets]
    )
    best = scores.argmax(axis=0)
    offset, peak = _parabola_peak(scores, best, offsets)
    columns = np.arange(left.shape[1], dtype=np.float32) - prior
    outside = (columns < 0) | (columns > left.shape[1] - 1)
    moved = (
        (peak >= options.min_zncc)
        & (moments[1] >= options.min_texture)
        & (best > 0)
        & (best < len(offsets) - 1)
        & ~outside
    )
    if not move:
        moved = np.zeros_like(moved)
    disparity = np.where(moved, np.maximum(prior + offset, 0), prior).astype(np.float32)
    occluded = occluded_in_right(disparity)
    return Refinement(disparity, peak, moments[1], occluded, outside, moved)


def warp_right(right: FloatImage, disparity: FloatImage) -> FloatImage:
    """Return (H, W) the right image sampled at the columns that the left pixels match."""
    height, width = right.shape
    columns = np.arange(width, dtype=np.float32) - np.nan_to_num(disparity)
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    return cv2.remap(right, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def occluded_in_right(disparity: FloatImage, tolerance_px: float = 1.0) -> NDArray[np.bool_]:
    """Return (H, W) bool: another left pixel, nearer by more than the tolerance, hides this one.

    A z-buffer of the left disparity in the right view: each right column keeps its largest
    disparity, and a left pixel is hidden where that is larger than its own.
    """
    height, width = disparity.shape
    known = np.isfinite(disparity)
    values = np.where(known, disparity, np.float32(-1))
    target = np.rint(np.arange(width, dtype=np.float32) - values).astype(np.int64)
    inside = known & (target >= 0) & (target < width)
    target = np.where(inside, target, 0) + np.arange(height)[:, None] * width
    buffer = np.full(height * width, -1, np.float32)
    np.maximum.at(buffer, target[inside], values[inside])
    return inside & (buffer[target] > values + tolerance_px)


def _window_moments(image: FloatImage, window: int) -> tuple[FloatImage, FloatImage]:
    mean = cv2.blur(image, (window, window))
    variance = cv2.blur(image * image, (window, window)) - mean * mean
    return mean, np.sqrt(np.maximum(variance, 0))


def _zncc(left, warped, moments, options: RefineOptions) -> FloatImage:
    mean, deviation = moments
    other_mean, other_deviation = _window_moments(warped, options.window_px)
    product = cv2.blur(left * warped, (options.window_px, options.window_px))
    return (product - mean * other_mean) / (deviation * other_deviation + np.float32(1e-6))


def _parabola_peak(scores, best, offsets) -> tuple[FloatImage, FloatImage]:
    """Return the sub-pixel offset and the score at the best integer offset."""
    inner = np.clip(best, 1, len(offsets) - 2)[None]
    before, centre, after = (
        np.take_along_axis(scores, inner + step, axis=0)[0] for step in (-1, 0, 1)
    )
    curvature = before - 2 * centre + after
    shift = np.where(curvature < -1e-6, 0.5 * (before - after) / np.minimum(curvature, -1e-6), 0)
    peak = np.take_along_axis(scores, best[None], axis=0)[0]
    return (offsets[inner[0]] + np.clip(shift, -1, 1)).astype(np.float32), peak
