"""Borders follow the image: beside a jump, a median of the surroundings weighted by likeness.

Where one camera sees what the other does not, matching has no say, and a network's border is
smooth and lies beside the image's. There the disparity becomes the weighted median of those around
(Ma et al., ICCV 2013): pixels of like brightness, near by, and supported by matching count more. A
median takes one of the two surfaces and never what lies between them.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.geometry.bands import Band, over_bands

# A jump of more than this within a square of this side is a border.
LEAST_JUMP_PX, BORDER_PX = 2.0, 7
# The median is over a square grid of this half side and step.
REACH_PX, STEP_PX = 6, 3
# Roots of brightness that differ by so much count 1/e; so do pixels this far away.
LIKE_BRIGHTNESS, NEAR_PX = 0.04, 7.0
# What matching does not support counts so much.
UNSUPPORTED_WEIGHT = 0.3
BRIGHTNESS_BLUR_PX = 0.7
# Disparity and weight share an integer of 32 bits, to be sorted together.
DISPARITY_STEPS_PER_PX, WEIGHT_BITS = 256, 7
LARGEST_WEIGHT = (1 << WEIGHT_BITS) - 1
# So many pixels' surroundings stay in the cache.
PIXELS_AT_ONCE = 2048
LARGEST_DISPARITY_PX = float((1 << 31) // DISPARITY_STEPS_PER_PX // (1 << WEIGHT_BITS) - 1)


def settled_borders(
    left: FloatImage,
    disparity: FloatImage,
    supported: NDArray[np.bool_],
    open_question: NDArray[np.bool_],
) -> FloatImage:
    """Return (H, W) float32 pixels, the disparity with borders where the image has them.

    Args:
        left: (H, W) float32 in [0, 1].
        disparity: (H, W) float32, pixels; NaN is unknown and stays so.
        supported: (H, W) bool, matching found the same: left as it is, and counts fully.
        open_question: (H, W) bool, may change.
    """
    width = disparity.shape[1]
    known = np.isfinite(disparity)
    filled = disparity if known.all() else np.where(known, disparity, np.float32(0))
    square = np.ones((BORDER_PX, BORDER_PX), np.uint8)
    rough = cv2.subtract(cv2.dilate(filled, square), cv2.erode(filled, square)) > LEAST_JUMP_PX
    rough &= open_question
    rough &= ~supported
    rough &= known
    result = disparity.copy()
    rows, columns = np.nonzero(rough)
    if len(rows) == 0:
        return result
    brightness = cv2.GaussianBlur(np.sqrt(np.maximum(left, 0)), (0, 0), BRIGHTNESS_BLUR_PX)
    weight = np.where(supported, np.float32(1), np.float32(UNSUPPORTED_WEIGHT))
    weight *= known
    steps = np.clip(filled, -LARGEST_DISPARITY_PX, LARGEST_DISPARITY_PX)
    steps *= DISPARITY_STEPS_PER_PX
    keys = np.rint(steps, out=steps).astype(np.int32)
    keys <<= WEIGHT_BITS
    images = [
        cv2.copyMakeBorder(image, *4 * [REACH_PX], cv2.BORDER_REPLICATE).ravel()
        for image in (keys, brightness, weight)
    ]
    stride = width + 2 * REACH_PX
    offsets = np.arange(-REACH_PX, REACH_PX + 1, STEP_PX)
    around = (offsets[:, None] * stride + offsets).ravel()
    near = np.exp(-np.hypot(offsets[:, None], offsets).ravel() / NEAR_PX).astype(np.float32)
    # In the images with their margin.
    here = (rows + REACH_PX) * stride + columns + REACH_PX

    def settle(band: Band) -> None:
        for first in range(band.rows.start, band.rows.stop, PIXELS_AT_ONCE):
            part = slice(first, min(first + PIXELS_AT_ONCE, band.rows.stop))
            medians = _weighted_medians(here[part], around, near, *images)
            result[rows[part], columns[part]] = medians

    over_bands(len(here), 0, settle)
    return result


def _weighted_medians(
    here: NDArray[np.intp],
    around: NDArray[np.intp],
    near: FloatImage,
    keys: NDArray[np.int32],
    brightness: FloatImage,
    weight: FloatImage,
) -> FloatImage:
    """Return (N,) pixels, the medians around some pixels.

    Args:
        here: (N,) where the pixels are in the images, which are flat.
        around: (K,) from a pixel to its neighbours.
        near: (K,) their weight by distance.
        keys: Disparity in steps, shifted by `WEIGHT_BITS`.
        brightness: Its root, blurred.
        weight: By support.
    """
    # All pixels' first neighbour, all their second one: long rows are quick to work on.
    positions = around[:, None] + here
    likeness = brightness.take(positions)
    likeness -= brightness.take(here)
    np.abs(likeness, out=likeness)
    likeness *= np.float32(-1 / LIKE_BRIGHTNESS)
    counts = weight.take(positions)
    counts *= np.exp(likeness, out=likeness)
    counts *= near[:, None]
    counts *= np.float32(LARGEST_WEIGHT)
    found = keys.take(positions)
    found |= counts.astype(np.int32)
    # A sort is quickest along what lies together.
    together = np.ascontiguousarray(found.T)
    together.sort(axis=1)
    found = np.ascontiguousarray(together.T)
    counted = found & np.int32(LARGEST_WEIGHT)
    # Cumulative; NumPy's own sum down columns takes seven times as long.
    for above, row in itertools.pairwise(counted):
        row += above
    total = counted[-1].copy()
    counted <<= 1
    below = (counted < total).view(np.uint8)
    middle = np.add.reduce(below, axis=0, dtype=np.uint8).astype(np.intp)
    middle *= len(here)
    middle += np.arange(len(here))
    chosen = found.ravel().take(middle) >> WEIGHT_BITS
    return chosen.astype(np.float32) / np.float32(DISPARITY_STEPS_PER_PX)
