"""Continues the surrounding ground where the images show nothing: deep shadow, saturation.

A plane in space is a plane in disparity over the image, whatever the camera. Where confidence is
low, the disparity goes over into that of the plane through the confident pixels plus their
departure from it, carried on from the region's border (pull-push interpolation, Gortler et al.
1996). Confidence stays as low as it was: nothing has been seen there.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.geometry.bands import Band, over_bands

REDUCTION = 8
# Confidence from which a pixel keeps its disparity, and at which it loses it.
KEPT, LOST = 0.9, 0.4
# Where matching was blind the surroundings know better than the confidence alone tells: found on
# frames of split `calibration`. Share that they get outside of the right camera's view, and log
# odds that the dark takes from the confidence.
OUTSIDE_SHARE = 0.75
DARK_LOGIT = 2.0
# Outside of the right camera's view, what stands up by the first distance keeps ever more of
# itself, and by the second one all, pixels; if it is believed, from the first confidence on ever
# more, and from the second one wholly. It may be a rock.
STANDS_UP_PX, STANDS_PX = 0.5, 1.5
DOUBTED, BELIEVED = 0.4, 0.6
# Pixels less sure than this say nothing about their surroundings.
LEAST_CONFIDENCE = 0.5
# A cell with less than this share of sure pixels takes no part in the plane.
LEAST_SHARE = 0.02
LEAST_CELLS = 12
# Robust fit: a departure as large as this many root mean squares, and this much, counts half.
DEVIATIONS, DEPARTURE_PX = 0.75, 0.3
ITERATIONS = 4
# What the plane does not explain of the disparity's variance: up to the first share the ground is
# even, and then what the right camera does not see says nothing about it; from the second one on,
# as among things in a room, it says as much as the rest.
EVEN, UNEVEN = 0.003, 0.01
# Pixels squared: a wall that is looked at straight has no variance.
LEAST_VARIANCE = 1.0


def follow_surroundings(
    disparity: FloatImage,
    confidence: FloatImage,
    outside: FloatImage | None = None,
    dark: FloatImage | None = None,
    blind: FloatImage | None = None,
) -> FloatImage:
    """Return the disparity with its unsure pixels replaced by what surrounds them.

    In between, a pixel goes over by its confidence. Where hardly anything is sure, nothing is
    changed.

    Args:
        disparity: (H, W) float32, pixels. NaN stays NaN and says nothing.
        confidence: (H, W) float32 in [0, 1].
        outside, dark: (H, W) float32 in [0, 1], 1 where the right camera does not see the place,
            and where the image is black (see `geometry.confidence.FEATURES`); None for nowhere.
        blind: (H, W) float32 in [0, 1], 1 where nothing can be seen (see
            `geometry.confidence.blindness`), and 0 where an unsure pixel keeps its disparity;
            None for everywhere.
    """
    # Each pixel's share of its surroundings, and its weight in them.
    share, sure = np.empty_like(disparity), np.empty_like(disparity)

    def weigh(band: Band) -> None:
        rows = band.rows
        trust = confidence[rows] if dark is None else _darkened(confidence[rows], dark[rows])
        _write_weights(share[rows], sure[rows], trust, disparity[rows])
        if blind is not None:
            # Where the images say something, an unsure disparity is still better than the ground
            # around it: what stands up is unsure first.
            share[rows] *= blind[rows]
        if outside is not None:
            np.maximum(share[rows], np.float32(OUTSIDE_SHARE) * outside[rows], out=share[rows])

    over_bands(disparity.shape[0], 0, weigh)
    if not share.any():
        return disparity
    around = _surroundings(disparity, sure, outside)
    if around is None:
        return disparity

    def go_over(band: Band) -> None:
        rows = band.rows
        departure = np.subtract(around[rows], disparity[rows], out=around[rows])
        if outside is not None:
            share[rows] *= _lying_down(outside[rows], confidence[rows], departure)
        departure *= share[rows]
        departure += disparity[rows]

    over_bands(disparity.shape[0], 0, go_over)
    return around


def _lying_down(outside: FloatImage, confidence: FloatImage, departure: FloatImage) -> FloatImage:
    """Return (h, W): 0 outside of the right view for what is believed and stands up, else 1."""
    standing = np.subtract(np.float32(-STANDS_UP_PX), departure)
    standing *= np.float32(1 / (STANDS_PX - STANDS_UP_PX))
    np.clip(standing, 0, 1, out=standing)
    believed = np.subtract(confidence, np.float32(DOUBTED))
    believed *= np.float32(1 / (BELIEVED - DOUBTED))
    standing *= np.clip(believed, 0, 1, out=believed)
    standing *= outside
    return np.subtract(np.float32(1), standing, out=standing)


def _darkened(confidence: FloatImage, dark: FloatImage) -> FloatImage:
    """Return the confidence with `DARK_LOGIT` taken from its log odds where the image is black."""
    odds = np.multiply(dark, np.float32(-DARK_LOGIT))
    cv2.exp(odds, dst=odds)
    odds *= confidence
    total = np.subtract(np.float32(1), confidence)
    total += odds
    odds /= total
    return odds


def _write_weights(
    share: FloatImage, sure: FloatImage, confidence: FloatImage, disparity: FloatImage
) -> None:
    """Write how much of a pixel gives way, and how much it says about its surroundings, (h, W)."""
    np.subtract(np.float32(KEPT), confidence, out=share)
    share *= np.float32(1 / (KEPT - LOST))
    np.clip(share, 0, 1, out=share)
    np.subtract(confidence, np.float32(LEAST_CONFIDENCE), out=sure)
    sure *= np.float32(1 / (1 - LEAST_CONFIDENCE))
    np.clip(sure, 0, 1, out=sure)
    sure *= sure
    finite = np.isfinite(disparity)
    if not finite.all():
        sure *= finite


def _surroundings(
    disparity: FloatImage, sure: FloatImage, outside: FloatImage | None
) -> FloatImage | None:
    """Return (H, W) pixels, not negative; None where too little is sure.

    Args:
        disparity: (H, W) pixels; NaN says nothing.
        sure: (H, W) weights, 0 where the disparity is NaN.
        outside: (H, W) share that the right camera does not see; None for nothing.
    """
    height, width = disparity.shape
    finite = np.isfinite(disparity)
    if not finite.all():
        disparity = np.where(finite, disparity, np.float32(0))
    # Pixels' places in [0, 1] across the image.
    across = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]
    down = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]

    def cells(weights: FloatImage) -> NDArray[np.float32]:
        """Return (4, h, w): of each cell the weight, and the weighted places and disparity."""
        size = max(1, width // REDUCTION), max(1, height // REDUCTION)
        images = (weights, weights * across, weights * down, weights * disparity)
        return np.stack(
            [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
        )

    sums = seen = cells(sure)
    if outside is not None and outside.any():
        seen = cells(sure * (1 - outside))
    known = seen[0] > LEAST_SHARE
    if known.sum() < LEAST_CELLS:
        return None
    weight = seen[0][known]
    means = seen[1:, known] / weight
    plane = _plane(means[0], means[1], means[2], weight)
    unexplained = means[2] - plane[0] * means[0] - plane[1] * means[1] - plane[2]
    variance = float(np.cov(means[2], aweights=weight))
    share = float(np.average(unexplained**2, weights=weight)) / max(variance, LEAST_VARIANCE)
    even = np.float32(np.clip((UNEVEN - share) / (UNEVEN - EVEN), 0, 1))
    sums = sums + even * (seen - sums)
    departure = sums[3] - plane[0] * sums[1] - plane[1] * sums[2] - plane[2] * sums[0]
    around = cv2.resize(
        _carried_on(departure, sums[0]), (width, height), interpolation=cv2.INTER_LINEAR
    )
    around += plane[0] * across + (plane[1] * down + plane[2])
    return np.maximum(around, np.float32(0), out=around)


def _plane(
    across: FloatImage, down: FloatImage, values: FloatImage, weight: FloatImage
) -> FloatImage:
    """Return the plane's two slopes and offset from N cells (N,), robust against rocks."""
    points = np.stack([across, down, np.ones_like(across)], axis=-1).astype(np.float64)
    trust = weight.astype(np.float64)
    for _ in range(ITERATIONS):
        moments = (points * trust[:, None]).T @ points
        # The ridge keeps a single row of cells from being tilted across.
        moments += 1e-6 * np.trace(moments) * np.eye(3)
        plane = np.linalg.solve(moments, points.T @ (trust * values))
        departure = values - points @ plane
        spread = np.sqrt(np.average(departure**2, weights=weight))
        trust = weight / (1 + (departure / (DEVIATIONS * spread + DEPARTURE_PX)) ** 2)
    return plane.astype(np.float32)


def _carried_on(weighted: FloatImage, weight: FloatImage) -> FloatImage:
    """Return (h, w) values where they are known and, elsewhere, those of what is around.

    Args:
        weighted: (h, w) weight times value.
        weight: (h, w).
    """
    levels = [(weighted, weight)]
    while min(levels[-1][0].shape) > 3:
        levels.append((cv2.pyrDown(levels[-1][0]), cv2.pyrDown(levels[-1][1])))
    values = np.zeros_like(levels[-1][0])
    for total, share in reversed(levels):
        values = cv2.resize(values, total.shape[::-1], interpolation=cv2.INTER_LINEAR)
        values = (total + LEAST_SHARE * values) / (share + LEAST_SHARE)
    return values
