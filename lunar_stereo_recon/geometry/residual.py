"""What a network's disparity leaves open, matched at the full size of the images.

A network sees the images reduced and its answer is smooth: small rocks and sharp borders are lost
in it. Here the right view is warped by the smoothed prior, so that semi-global matching
(Hirschmueller 2008) has some disparities left to search where it had more than a hundred. Beside a
border the right answer is often the network's own a few pixels away, so the least and the largest
disparity around are candidates too. A small network (see `training.models.choice`) chooses for
each pixel by how well each candidate explains the right view, and by the image around. It is not
told how sure the network is, for on images of an unfamiliar kind a network is surely wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.geometry.bands import Band, over_bands
from lunar_stereo_recon.geometry.borders import settled_borders
from lunar_stereo_recon.geometry.refine import photometric_match, row_numbers

# The prior is smoothed so far, pixels: its own borders must not be those of the answer.
SMOOTHING_PX = 40.0
SMOOTHING_REDUCTION = 8
# Disparities around the smoothed prior that are searched, pixels.
LEAST_OFFSET_PX, OFFSETS_PX = -32, 64
BLOCK_PX = 3
SGBM_FRACTION = 16
# What semi-global matching answers where it knows nothing, in steps of 1 / 16 px.
LEAST_STEP = (LEAST_OFFSET_PX - 1) * SGBM_FRACTION
# The least and the largest disparity are taken over a square of this side.
SURROUNDINGS_PX = 11
# Preferences that differ by less are alike, and then the network keeps the word.
CLEARLY_BETTER = np.float32(0.15)
# Answers that differ by less are one answer, which `geometry.refine` sharpens.
SAME_ANSWER_PX = 0.2
# Matching supports what is not farther than this from what it found.
SUPPORT_PX = 1.0
CONTRAST_WINDOW_PX, DETAIL_WINDOW_PX = 5, 9
# Differences of grey and of gradient from here on count the same, as a share of white.
LARGEST_DIFFERENCE, LARGEST_GRADIENT_DIFFERENCE = 0.06, 0.03
GRADIENT_SCALE = 1 / 8
# The noise is at least that of rounding to 256 grey values.
LEAST_NOISE = 0.004
GREY_LEVEL = 1 / 255
NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
# A normal distribution's median absolute deviation.
MEDIAN_DEVIATION = 0.6745
BLACK, WHITE = 0.012, 0.98
# Rows that evidence looks up and down: half the windows of brightness, with its reduction, and of
# detail.
HALO_PX = 32
CANDIDATES = (
    'prior',  # the network's
    'found',  # by semi-global matching; the prior where that has no answer
    'farther',  # the least prior around
    'nearer',  # the largest
)
EVIDENCE = (
    'brightness',  # of the left view, square root, -1..1
    'contrast',  # half the log of 0.1 + local deviation of grey over the image's noise
    'detail',  # grey less its local mean over its local deviation
    'prior_cost',  # how badly each candidate explains the right view, -0.5..1.5
    'found_cost',
    'farther_cost',
    'nearer_cost',
    'found_step',  # from the prior to each of the others, signed log of 1 + pixels
    'farther_step',
    'nearer_step',
    'answered',  # semi-global matching has an answer, 0 or 1
    'inside',  # the prior's match is not left of the right image, 0 or 1
)
# (K, H, W) `EVIDENCE` to (5, H, W): a preference for each of the `CANDIDATES`, and the log of the
# error that is expected of the preferred one, pixels.
Chooser = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class ResidualMatch:
    """A prior and what matching made of it; every array is (H, W).

    Attributes:
        disparity: float32, pixels. The chosen candidate, or that of a pixel beside a border; NaN
            where the prior is.
        taken: bool, it is not the prior's answer.
        log_error_px: float32, log of the error that the chooser expects, pixels.
    """

    disparity: FloatImage
    taken: NDArray[np.bool_]
    log_error_px: FloatImage


def match_around(
    left: FloatImage, right: FloatImage, prior: FloatImage, choose: Chooser
) -> ResidualMatch:
    """Return the prior with what matching knows better.

    What the right camera does not see keeps its prior: there is nothing to choose by.

    Args:
        left, right: (H, W) float32 in [0, 1], rows aligned.
        prior: (H, W) float32, column left minus column right, pixels. NaN stays NaN.
        choose: The chooser.
    """
    candidates, answered = candidates_around(left, right, prior)
    planes = evidence(left, right, candidates, answered)
    preferences = choose(planes)
    inside = planes[EVIDENCE.index('inside')]
    disparity, supported = np.empty_like(prior), np.empty(prior.shape, np.bool_)

    def decide(band: Band) -> None:
        seen, rows = band.seen, band.rows
        better, differs = _decided(
            prior[seen], candidates[:, seen], preferences[:, seen], inside[seen]
        )
        # Single pixels do not stand alone.
        differs &= cv2.blur(differs.astype(np.float32), (3, 3)) > 0.5
        disparity[rows] = prior[rows]
        np.copyto(disparity[rows], better[band.own], where=differs[band.own])
        np.less(cv2.absdiff(candidates[1, rows], disparity[rows]), SUPPORT_PX, out=supported[rows])
        supported[rows] &= answered[rows]

    over_bands(prior.shape[0], 1, decide)
    disparity = settled_borders(left, disparity, supported, inside > 0)
    taken = cv2.absdiff(disparity, prior) > SAME_ANSWER_PX
    return ResidualMatch(disparity, taken, preferences[len(CANDIDATES)])


def _decided(
    prior: FloatImage,
    candidates: NDArray[np.float32],
    preferences: NDArray[np.float32],
    inside: FloatImage,
) -> tuple[FloatImage, NDArray[np.bool_]]:
    """Return a band's best candidate beside the prior, and where it is another, better answer."""
    _, second, third, last = candidates
    strongest = np.maximum(preferences[1], preferences[2])
    np.maximum(strongest, preferences[3], out=strongest)
    better = last.copy()
    np.copyto(better, third, where=preferences[2] == strongest)
    np.copyto(better, second, where=preferences[1] == strongest)
    differs = strongest > preferences[0] + CLEARLY_BETTER
    differs &= inside > 0
    # Not where the prior is unknown: what is NaN is not larger.
    differs &= cv2.absdiff(better, prior) > SAME_ANSWER_PX
    return better, differs


def candidates_around(
    left: FloatImage, right: FloatImage, prior: FloatImage
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the `CANDIDATES` (4, H, W), pixels, finite, and where matching has an answer (H, W).

    An unknown prior counts as 0.
    """
    found = search_around(left, right, prior)
    square = np.ones((SURROUNDINGS_PX, SURROUNDINGS_PX), np.uint8)
    candidates = np.empty((len(CANDIDATES), *prior.shape), np.float32)
    answered = np.empty(prior.shape, np.bool_)

    def write(band: Band) -> None:
        rows, own = band.rows, band.own
        start = prior[band.seen]
        known = np.isfinite(start)
        if not known.all():
            start = np.where(known, start, np.float32(0))
        candidates[0, rows] = candidates[1, rows] = start[own]
        np.isfinite(found[rows], out=answered[rows])
        np.copyto(candidates[1, rows], found[rows], where=answered[rows])
        candidates[2, rows] = cv2.erode(start, square)[own]
        candidates[3, rows] = cv2.dilate(start, square)[own]

    over_bands(prior.shape[0], SURROUNDINGS_PX // 2, write)
    return candidates, answered


def search_around(left: FloatImage, right: FloatImage, prior: FloatImage) -> FloatImage:
    """Return (H, W) float32 pixels, found by semi-global matching around the smoothed prior.

    NaN where the answer is not unique, not the same from both views, or outside the right image.
    """
    height, width = prior.shape
    base = _smoothed(prior)
    columns = np.arange(width, dtype=np.float32)[None, :]
    # Beside the borders there must be room for the search.
    views = [np.empty((height, width + 2 * OFFSETS_PX), np.uint8) for _ in range(2)]

    def prepare(band: Band) -> None:
        rows = band.rows
        for view, image in zip(views, (left[rows], _warped(right[rows], base[rows])), strict=True):
            cv2.copyMakeBorder(
                _grey(image), 0, 0, OFFSETS_PX, OFFSETS_PX, cv2.BORDER_REPLICATE, view[rows]
            )

    over_bands(height, 0, prepare)
    area = BLOCK_PX * BLOCK_PX
    matcher = cv2.StereoSGBM_create(
        minDisparity=LEAST_OFFSET_PX,
        numDisparities=OFFSETS_PX,
        blockSize=BLOCK_PX,
        P1=8 * area,
        P2=32 * area,
        disp12MaxDiff=1,
        preFilterCap=63,
        uniquenessRatio=5,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    fixed = matcher.compute(*views)[:, OFFSETS_PX:-OFFSETS_PX]
    found = np.empty_like(prior)

    def convert(band: Band) -> None:
        steps, part = fixed[band.rows], base[band.rows]
        offset = _offset_of_steps().take(steps + np.int16(-LEAST_STEP), mode='clip')
        # The warped view's column x - offset holds the right column x - offset - base(x - offset).
        there = cv2.remap(
            part,
            columns - offset,
            row_numbers(*part.shape),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        answer = np.add(there, offset, out=found[band.rows])
        unknown = steps < LEAST_OFFSET_PX * SGBM_FRACTION
        unknown |= answer > columns
        unknown |= answer < 0
        np.copyto(answer, np.float32(np.nan), where=unknown)

    over_bands(height, 0, convert)
    return found


def evidence(
    left: FloatImage,
    right: FloatImage,
    candidates: NDArray[np.float32],
    answered: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Return (K, H, W) float32, the `EVIDENCE`, finite.

    Args:
        left, right: (H, W) float32 in [0, 1].
        candidates: (4, H, W) pixels, finite.
        answered: (H, W) bool, the second one is found and not the prior.
    """
    planes = np.empty((len(EVIDENCE), *left.shape), np.float32)
    noise = noise_of(left)

    def write(band: Band) -> None:
        seen, rows = band.seen, band.rows
        _write_evidence(
            planes[:, rows], left[seen], right[seen], candidates[:, seen], band.own, noise
        )
        planes[-2, rows] = answered[rows]
        columns = np.arange(left.shape[1], dtype=np.float32)
        planes[-1, band.rows] = columns >= candidates[0, band.rows]

    over_bands(left.shape[0], HALO_PX, write)
    return planes


def _write_evidence(
    planes: NDArray[np.float32],
    left: FloatImage,
    right: FloatImage,
    candidates: NDArray[np.float32],
    own: slice,
    noise: float,
) -> None:
    """Write all `EVIDENCE` of a band but the last two.

    Args:
        planes: (K, h, W), to be written; rows `own` of what is seen.
        left, right: Of the rows that are seen.
        candidates: (4, rows that are seen, W).
        own: The band's own rows among those that are seen.
        noise: Of the image.
    """
    brightness, contrast, detail = planes[:3]
    np.maximum(left[own], 0, out=brightness)
    np.sqrt(brightness, out=brightness)
    brightness *= 2
    brightness -= 1
    square = left * left
    _, deviation = _local(left, square, CONTRAST_WINDOW_PX)
    np.multiply(deviation[own], np.float32(1 / noise), out=contrast)
    contrast += np.float32(0.1)
    cv2.log(contrast, dst=contrast)
    contrast *= np.float32(0.5)
    mean, deviation = _local(left, square, DETAIL_WINDOW_PX)
    deviation += np.float32(GREY_LEVEL)
    np.subtract(left[own], mean[own], out=detail)
    detail /= deviation[own]
    prior, *others = candidates
    first = _warped(right, prior)
    gain, bias = photometric_match(left, first)
    # Instead of changing each warped view's brightness twice.
    darker = np.subtract(left, bias, out=bias)
    _write_cost(planes[3], darker, gain, first, own)
    for cost, step, other in zip(planes[4:7], planes[7:10], others, strict=True):
        _write_cost(cost, darker, gain, _warped(right, other), own)
        _write_signed_logarithm(step, np.subtract(other[own], prior[own], out=step))


def _warped(right: FloatImage, disparity: FloatImage) -> FloatImage:
    """Return (H, W) the right image at the columns that the left pixels match, linear."""
    columns = np.arange(right.shape[1], dtype=np.float32) - disparity
    rows = row_numbers(*right.shape)
    return cv2.remap(right, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _local(image: FloatImage, square: FloatImage, side: int) -> tuple[FloatImage, FloatImage]:
    """Return mean and standard deviation over a square, of an image and its square."""
    mean = cv2.blur(image, (side, side))
    variance = cv2.blur(square, (side, side))
    variance -= mean * mean
    np.maximum(variance, 0, out=variance)
    return mean, np.sqrt(variance, out=variance)


def _write_signed_logarithm(out: FloatImage, step: FloatImage) -> None:
    """Write log(1 + |step|) with the sign of `step`, which may be the memory of `out`."""
    size = np.abs(step)
    size += 1
    cv2.log(size, dst=size)
    np.copysign(size, step, out=out)


def noise_of(image: FloatImage) -> float:
    """Return the standard deviation of an image's noise, as a share of white (Immerkaer 1996).

    At least what rounding to 256 grey values makes.
    """
    sample = image[::2, ::2]
    lit = (sample > BLACK) & (sample < WHITE)
    if not lit.any():
        return LEAST_NOISE
    roughness = np.abs(cv2.filter2D(image, cv2.CV_32F, NOISE_KERNEL)[::2, ::2][lit])
    return max(LEAST_NOISE, float(np.median(roughness)) / MEDIAN_DEVIATION)


def _smoothed(prior: FloatImage) -> FloatImage:
    """Return (H, W) the prior's course, known everywhere; all zero where nothing is known."""
    height, width = prior.shape
    size = max(1, width // SMOOTHING_REDUCTION), max(1, height // SMOOTHING_REDUCTION)
    known = np.isfinite(prior)
    values = prior if known.all() else np.where(known, prior, np.float32(0))
    weight = known.astype(np.float32)
    total, share = (
        cv2.GaussianBlur(
            cv2.resize(image, size, interpolation=cv2.INTER_AREA),
            (0, 0),
            SMOOTHING_PX / SMOOTHING_REDUCTION,
        )
        for image in (values, weight)
    )
    mean = float(values.sum() / max(weight.sum(), 1))
    # Far from everything known: the mean of what is.
    course = (total + np.float32(1e-3) * mean) / (share + np.float32(1e-3))
    return cv2.resize(course, (width, height), interpolation=cv2.INTER_LINEAR)


@cache
def _offset_of_steps() -> FloatImage:
    """Return the offset, pixels, of each answer of semi-global matching from `LEAST_STEP` on."""
    steps = np.arange(LEAST_STEP, (LEAST_OFFSET_PX + OFFSETS_PX) * SGBM_FRACTION + 1)
    return _equiangular(steps.astype(np.float32) * np.float32(1 / SGBM_FRACTION))


def _equiangular(offset: FloatImage) -> FloatImage:
    """Return offsets whose fraction was fitted with a parabola as two straight lines tell it.

    Absolute differences rise in straight lines from where the views agree. A parabola through
    three of them turns a fraction t into t / (2 - 2 t): the answers gather at whole pixels.
    """
    whole = np.rint(offset)
    fraction = offset - whole
    return whole + 2 * fraction / (1 + 2 * np.abs(fraction))


def _grey(image: FloatImage) -> NDArray[np.uint8]:
    return np.asarray(cv2.multiply(image, 255.0, dtype=cv2.CV_8U))


def _write_cost(
    out: FloatImage, darker: FloatImage, gain: FloatImage, warped: FloatImage, own: slice
) -> None:
    """Write how badly a warped view explains the left one, grey and gradient alike, -0.5..1.5.

    Args:
        out: (h, W), to be written; rows `own` of the images.
        darker: (H, W) the left view less the bias of the right one's brightness.
        gain: (H, W) of the right one's brightness.
        warped: (H, W) the right view, warped; overwritten.
        own: The band's own rows.
    """
    warped *= gain
    difference = cv2.subtract(darker, warped, dst=warped)
    slope = cv2.Sobel(difference, cv2.CV_32F, 1, 0, scale=GRADIENT_SCALE)[own]
    difference = difference[own]
    for image, largest in (
        (difference, LARGEST_DIFFERENCE),
        (slope, LARGEST_GRADIENT_DIFFERENCE),
    ):
        np.abs(image, out=image)
        np.minimum(image, np.float32(largest), out=image)
    weights = 1 / LARGEST_DIFFERENCE, 1 / LARGEST_GRADIENT_DIFFERENCE
    cv2.addWeighted(difference, weights[0], slope, weights[1], -0.5, dst=out)
