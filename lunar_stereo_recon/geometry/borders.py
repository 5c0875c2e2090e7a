"""Borders follow the image: beside a jump, a median of the surroundings weighted by likeness.

Where one camera sees what the other does not, matching has no say, and a network's border is
smooth and lies beside the image's. There the disparity becomes the weighted median of those around
(Ma et al., ICCV 2013): pixels of like brightness, near by, and supported by matching count more. A
median takes one of the two surfaces and never what lies between them.
"""

from __future__ import annotations

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
    height, width = disparity.shape
    known = np.isfinite(disparity)
    filled = disparity if known.all() else np.where(known, disparity, np.float32(0))
    brightness = cv2.GaussianBlur(np.sqrt(np.maximum(left, 0)), (0, 0), BRIGHTNESS_BLUR_PX)
    weight = np.where(supported, np.float32(1), np.float32(UNSUPPORTED_WEIGHT)) * known
    square = np.ones((BORDER_PX, BORDER_PX), np.uint8)
    rough = cv2.dilate(filled, square) - cv2.erode(filled, square) > LEAST_JUMP_PX
    rows, columns = np.nonzero(rough & open_question & ~supported & known)
    result = disparity.copy()
    if len(rows) == 0:
        return result
    steps = np.clip(filled, -LARGEST_DISPARITY_PX, LARGEST_DISPARITY_PX) * DISPARITY_STEPS_PER_PX
    images = [
        cv2.copyMakeBorder(image, *4 * [REACH_PX], cv2.BORDER_REPLICATE).ravel()
        for image in (np.rint(steps), brightness, weight)
    ]
    offsets = np.arange(-REACH_PX, REACH_PX + 1, STEP_PX)
    stride = width + 2 * REACH_PX
    around = (offsets[:, None] * stride + offsets).ravel()
    near = np.exp(-np.hypot(offsets[:, None], offsets).ravel() / NEAR_PX).astype(np.float32)
    here = (rows + REACH_PX) * stride + columns + REACH_PX

    def settle(band: Band) -> None:
        centre = here[band.rows, None]
        positions = centre + around
        steps, grey, counts = (image.take(positions) for image in images)
        grey -= images[1].take(centre)
        np.abs(grey, out=grey)
        grey *= np.float32(-1 / LIKE_BRIGHTNESS)
        counts *= np.exp(grey, out=grey)
        counts *= near
        counts *= np.float32(LARGEST_WEIGHT)
        keys = steps.astype(np.int32)
        keys <<= WEIGHT_BITS
        keys |= counts.astype(np.int32)
        keys.sort(axis=1)
        counted = np.cumsum(keys & LARGEST_WEIGHT, axis=1, dtype=np.int32)
        middle = (2 * counted < counted[:, -1:]).sum(axis=1)
        chosen = np.take_along_axis(keys, middle[:, None], axis=1)[:, 0] >> WEIGHT_BITS
        result[rows[band.rows], columns[band.rows]] = chosen * np.float32(
            1 / DISPARITY_STEPS_PER_PX
        )

    over_bands(len(here), 0, settle)
    return result
