"""Sub-pixel matching around a dense prior, along the row, at the full size of the images.

The right image is first warped onto the left by the prior, so what is left to find is small and
nearly constant over a window even where the ground slopes through tens of disparities: the
fronto-parallel assumption of plain window matching is gone. The offset then follows from least
squares on the image gradient (Lucas and Kanade 1981), from wide windows to narrow ones. Each
window is shrunk towards the next wider one, and the widest towards the prior, by the offset's
expected size and the noise seen there: where the image has no texture the prior stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.bands import Band, over_bands
from lunar_stereo_recon.geometry.visibility import occluded_in_right, outside_right

# Statistics that vary slowly are computed on images reduced by this factor.
REDUCTION = 4
BRIGHTNESS_WINDOW_PX = 21
LOCAL_WINDOW_PX = 29
SCORE_WINDOW_PX = 9
# A residual this many times the local deviation counts half.
ROBUST_DEVIATIONS = 2.0
UNKNOWN_OFFSET_PX = 10.0
# Central difference of fourth order, halved for a sum of two views: the plain one is a fifth too
# small on texture as fine as a camera resolves, and the offset overshoots by as much.
GRADIENT_KERNEL = np.array([[1, -8, 0, 8, -1]], np.float32) / 24


@dataclass(frozen=True)
class RefineOptions:
    """Settings of `refine_disparity`.

    The defaults suit a prior that is right to about a fifth of a pixel, as the flight student's:
    on frames whose rows are misaligned by a fraction of a pixel, larger offsets follow the
    misalignment.

    Attributes:
        iterations: How often the right image is warped and the offset solved.
        windows_px: Sides of the square windows, wide to narrow, pixels.
        offsets_px: For each window, the expected deviation (1 sigma) of the offset from that of
            the next wider window, the first from the prior, pixels.
        noise: Least standard deviation of the image noise, as a share of white.
        max_step_px: Largest offset of one iteration, pixels.
        max_move_px: A result farther from the prior is not believed, pixels.

    Raises:
        InputError: Windows and offsets differ in number, or a value is not positive.
    """

    iterations: int = 1
    windows_px: tuple[int, ...] = (21, 9, 5)
    offsets_px: tuple[float, ...] = (0.2, 0.15, 0.1)
    noise: float = 0.006
    max_step_px: float = 1.0
    max_move_px: float = 3.0

    def __post_init__(self) -> None:
        if len(self.windows_px) != len(self.offsets_px) or not self.windows_px:
            raise InputError(
                f'{len(self.windows_px)} refinement windows but {len(self.offsets_px)} offsets; '
                'one offset for each window, and at least one, is needed'
            )
        positive = (*self.windows_px, *self.offsets_px, self.noise, self.max_step_px)
        if min(positive) <= 0 or self.max_move_px <= 0 or self.iterations < 1:
            raise InputError(f'refinement settings must be positive: {self}')


@dataclass(frozen=True)
class Refinement:
    """A refined disparity map and what was seen while refining; every array is (H, W).

    Attributes:
        disparity: float32, pixels, column difference. The prior where `moved` is false.
        agreement: float32 in [0, 1], how alike the views are at the result, measured in the
            local contrast: 1 the same, 0.4 unrelated, 0 without texture or where the right camera
            does not see the place.
        deviation_px: float32, standard deviation of the offset by the texture and the noise of
            the window, pixels; at most 10.
        occluded: bool, the right camera sees something nearer at the matched column.
        outside: bool, the matched column is outside the right image.
        moved: bool, the disparity was changed by matching.
    """

    disparity: FloatImage
    agreement: FloatImage
    deviation_px: FloatImage
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

    A pixel keeps its prior where the right camera does not see it, and where the views do not
    agree better at the result than at the prior.

    Args:
        left: (H, W) float32 in [0, 1].
        right: (H, W) float32 in [0, 1].
        prior: (H, W) float32, column left minus column right, pixels. NaN stays NaN.
        options: Settings.
        move: Whether the disparity may change; scores and checks are made in either case.
    """
    size = prior.shape
    planes = [np.empty(size, np.float32) for _ in range(3)]
    masks = [np.empty(size, np.bool_) for _ in range(3)]
    result = Refinement(planes[0], planes[1], planes[2], masks[0], masks[1], masks[2])

    def refine(band: Band) -> None:
        seen = band.seen
        part = _refined(left[seen], right[seen], prior[seen], options, move)
        for name in Refinement.__dataclass_fields__:
            getattr(result, name)[band.rows] = getattr(part, name)[band.own]

    # Half the windows of score and brightness, and for each iteration those of offset and noise.
    widest = max(options.windows_px) // 2
    halo = SCORE_WINDOW_PX // 2 + 16 + options.iterations * (widest + 20)
    over_bands(size[0], halo, refine)
    return result


def _refined(
    left: FloatImage,
    right: FloatImage,
    prior: FloatImage,
    options: RefineOptions,
    move: bool,
) -> Refinement:
    """Refine a band; see `refine_disparity`."""
    known = np.isfinite(prior)
    start = prior if known.all() else np.where(known, prior, np.float32(0))
    outside = outside_right(start)
    occluded = occluded_in_right(start)
    visible = known & ~outside
    visible &= ~occluded
    seen = visible.astype(np.float32)
    warped = warp_right(right, start)
    gain, bias = photometric_match(left, warped, seen)
    warped *= gain
    warped += bias
    first_residual = cv2.subtract(left, warped)
    residual = first_residual
    disparity = start
    for _ in range(options.iterations):
        offset, deviation = _offset(left, warped, residual, seen, start - disparity, options)
        if not move:
            break
        disparity = np.add(disparity, offset, out=offset)
        np.maximum(disparity, np.float32(0), out=disparity)
        warped = warp_right(right, disparity)
        warped *= gain
        warped += bias
        residual = cv2.subtract(left, warped)
    contrast = _contrast(left)
    cost = _disagreement(residual, contrast, options.noise)
    if move:
        moved = cost <= _disagreement(first_residual, contrast, options.noise)
        moved &= cv2.absdiff(disparity, start) < options.max_move_px
        moved &= visible
        disparity = np.where(moved, disparity, prior)
    else:
        moved, disparity = np.zeros(prior.shape, np.bool_), prior
    agreement = np.subtract(np.float32(1), cost, out=cost)
    agreement *= seen
    return Refinement(disparity, agreement, deviation, occluded, outside, moved)


def warp_right(right: FloatImage, disparity: FloatImage) -> FloatImage:
    """Return (H, W) the right image sampled at the columns that the left pixels match."""
    height, width = right.shape
    columns = np.arange(width, dtype=np.float32) - disparity
    rows = row_numbers(height, width)
    return cv2.remap(right, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=8)
def row_numbers(height: int, width: int) -> FloatImage:
    """Return (H, W) float32, each pixel's own row; not to be written to."""
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    rows.flags.writeable = False
    return rows


def photometric_match(
    left: FloatImage, warped: FloatImage, seen: FloatImage | None = None
) -> tuple[FloatImage, FloatImage]:
    """Return slowly varying gain and bias that match the right view's brightness to the left.

    Args:
        left, warped: (H, W) float32.
        seen: (H, W) float32, each pixel's weight; None where all count the same.
    """
    window = (BRIGHTNESS_WINDOW_PX // REDUCTION | 1,) * 2

    def mean(image: FloatImage) -> FloatImage:
        return cv2.blur(_reduced(image, REDUCTION), window)

    seen_left = left if seen is None else left * seen
    seen_warped = warped if seen is None else warped * seen
    weight = np.float32(1e-4) + (np.float32(1) if seen is None else mean(seen))
    mean_left, mean_right = mean(seen_left) / weight, mean(seen_warped) / weight
    variance_left = mean(left * seen_left) / weight - mean_left**2
    variance_right = mean(warped * seen_warped) / weight - mean_right**2
    ratio = (variance_left + np.float32(1e-6)) / (variance_right + np.float32(1e-6))
    gain = np.sqrt(np.clip(ratio, 0.25, 4.0))
    return _enlarged(gain, left), _enlarged(mean_left - gain * mean_right, left)


def _offset(
    left: FloatImage,
    warped: FloatImage,
    residual: FloatImage,
    seen: FloatImage,
    to_prior: FloatImage,
    options: RefineOptions,
) -> tuple[FloatImage, FloatImage]:
    """Return the offset to add to the disparity and its standard deviation, both pixels.

    `to_prior` is the offset that would lead back to the prior: without texture, the result. It is
    overwritten.
    """
    # Both views' gradient: the noise of one alone would bias the offset towards zero.
    gradient = cv2.filter2D(cv2.add(left, warped), cv2.CV_32F, GRADIENT_KERNEL)
    square = residual * residual
    noise = _local_mean(square)
    noise += np.float32(options.noise**2)
    # The robust weight seen / (1 + r^2 / (k^2 noise)), in one division.
    weighted = noise * np.float32(ROBUST_DEVIATIONS**2)
    square += weighted
    weighted *= seen
    weighted /= square
    weighted *= gradient
    pull = np.multiply(weighted, residual, out=square)
    information = np.multiply(weighted, gradient, out=weighted)
    offset = to_prior
    # New memory for each window would cost more than what is done with it.
    stiffness, seen_information, seen_pull = (np.empty_like(noise) for _ in range(3))
    for window, size in zip(options.windows_px, options.offsets_px, strict=True):
        # Posterior mean: the wider window's offset counts as much as `stiffness` of information.
        np.multiply(noise, np.float32(1 / (size * window) ** 2), out=stiffness)
        cv2.blur(information, (window, window), dst=seen_information)
        offset *= stiffness
        offset -= cv2.blur(pull, (window, window), dst=seen_pull)
        stiffness += seen_information
        offset /= stiffness
    seen_information += np.float32(1e-9)
    noise /= seen_information
    deviation = cv2.sqrt(noise, dst=noise)
    deviation *= np.float32(1 / window)
    limit = np.float32(options.max_step_px)
    np.clip(offset, -limit, limit, out=offset)
    offset *= seen
    return offset, np.minimum(deviation, np.float32(UNKNOWN_OFFSET_PX), out=deviation)


def _contrast(left: FloatImage) -> FloatImage:
    """Return (H, W) the variance over a wide window, not negative."""
    mean = _local_mean(left)
    mean *= mean
    contrast = np.subtract(_local_mean(left * left), mean, out=mean)
    return np.maximum(contrast, np.float32(0), out=contrast)


def _disagreement(residual: FloatImage, contrast: FloatImage, noise: float) -> FloatImage:
    """Return (H, W) in (0, 1]: residual and noise against contrast; 1 where there is none."""
    square = residual * residual
    square += np.float32(noise**2)
    square /= square + contrast
    return cv2.blur(square, (SCORE_WINDOW_PX, SCORE_WINDOW_PX))


def _local_mean(image: FloatImage) -> FloatImage:
    """Return the mean over a wide window, made on a reduced image."""
    window = (LOCAL_WINDOW_PX // REDUCTION | 1,) * 2
    return _enlarged(cv2.blur(_reduced(image, REDUCTION), window), image)


def _reduced(image: FloatImage, factor: int) -> FloatImage:
    height, width = image.shape
    size = (max(1, width // factor), max(1, height // factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _enlarged(image: FloatImage, like: FloatImage) -> FloatImage:
    return cv2.resize(image, like.shape[::-1], interpolation=cv2.INTER_LINEAR)
