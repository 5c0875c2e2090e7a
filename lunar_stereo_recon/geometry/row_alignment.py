"""Row-alignment monitor: how far the rows of a rectified pair are off, from the images themselves.

Cameras on the Moon move with temperature, and a calibration made on Earth no longer holds: the
right view ends up some tenths of a pixel too low, or turned about its axis. Matching along rows
then loses accuracy without a word. With the disparity known, the right image can be laid over the
left one, and what is left to explain is vertical.

The offset and the roll follow from least squares on the image gradients (Lucas and Kanade 1981),
with one unknown error of the disparity in every small window eliminated (Schur complement): where
texture runs obliquely a vertical shift looks like a disparity, and the disparity has taken up a
part of it already.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import lru_cache
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, RowAlignment, StereoPair
from lunar_stereo_recon.geometry.refine import (
    photometric_match,
)
from lunar_stereo_recon.geometry.visibility import (
    occluded_in_right,
    OCCLUSION_TOLERANCE_PX,
    outside_right,
)

# Half size is enough for hundredths of a pixel over a whole image, and sees twice as far.
REDUCTION = 2
# In the halved image, with one error of the disparity each.
WINDOW_PX = 8
# Blurred first, for the reach; standard deviations of each step, pixels of the halved image.
BLURS_PX = (2.0, 1.0, 0.0)
# A rig whose rows are known is looked at without the reach, in a third of the time, unless it
# seems to have moved by more than this since, pixels at the side borders.
NEARBY_CHANGE_PX = 0.4
# Standard deviation of a window's disparity error, pixels of the halved image.
DISPARITY_ERROR_PX = 1.0
NOISE = 0.01
# A frame counts when it knows offset and roll (at the side borders) to this, pixels.
MAX_DEVIATION_PX = 0.05
FRAMES = 15
SKIP = 5
# Below this the images are left as they are: warping would blur more than it mends.
TOLERANCE_PX = 0.07


class RowMonitor:
    """The alignment over the last frames of a rig: the median of what single frames say."""

    def __init__(self) -> None:
        self._frames: deque[RowAlignment] = deque(maxlen=FRAMES)
        self._skipped = 0

    def due(self) -> bool:
        """Say whether this frame is worth the time: each at first, then one in `SKIP`."""
        self._skipped += 1
        return not self.settled or self._skipped >= SKIP

    @property
    def settled(self) -> bool:
        """Say whether enough frames agree on the rig that only small changes are expected."""
        return len(self._frames) == FRAMES

    @property
    def alignment(self) -> RowAlignment:
        """Return the median over the last frames; not known before the first good one."""
        if not self._frames:
            return RowAlignment()
        offsets, rolls, deviations = (
            [getattr(frame, name) for frame in self._frames]
            for name in ('offset_px', 'roll_deg', 'deviation_px')
        )
        return RowAlignment(
            float(np.median(offsets)), float(np.median(rolls)), float(np.median(deviations))
        )

    def update(self, frame: RowAlignment) -> None:
        """Take a frame's estimate into account where it is sure enough."""
        self._skipped = 0
        if frame.deviation_px <= MAX_DEVIATION_PX:
            self._frames.append(frame)

    def reset(self) -> None:
        """Forget everything: another rig."""
        self._frames.clear()


def with_rows_aligned(pair: StereoPair, alignment: RowAlignment) -> StereoPair:
    """Return the pair with its right image moved and turned onto the left rows.

    As it is where the alignment is not known, below `TOLERANCE_PX` or beyond what is corrected.
    """
    error_px = alignment.largest_px(pair.calibration.width)
    if not alignment.known or not TOLERANCE_PX < error_px <= alignment.MAX_CORRECTION_PX:
        return pair
    right = cv2.remap(
        pair.right,
        *_maps(*pair.right.shape, alignment),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return replace(pair, right=right)


def estimate_row_alignment(
    left: FloatImage,
    right: FloatImage,
    disparity: FloatImage,
    start: RowAlignment | None = None,
) -> RowAlignment:
    """Return the row alignment of one frame.

    Args:
        left, right: (H, W) float32 in [0, 1], as they came.
        disparity: (H, W) float32, pixels, column left minus column right. NaN is left out.
        start: A first guess: nearby is looked first, then about two pixels around it.

    Returns:
        Not known where the images have too little texture.
    """
    size = tuple(side // REDUCTION for side in left.shape[::-1])
    if min(size) < 2 * WINDOW_PX:
        return RowAlignment()
    small_left, small_right = (
        cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (left, right)
    )
    shifts = cv2.resize(disparity, size, interpolation=cv2.INTER_NEAREST) / REDUCTION
    known = np.isfinite(shifts)
    shifts[~known] = 0
    hidden = outside_right(shifts) | occluded_in_right(shifts, OCCLUSION_TOLERANCE_PX / REDUCTION)
    weight = (known & ~hidden).astype(np.float32)
    images = small_left, small_right, shifts, weight
    if start is None or not start.known:
        return _descend(BLURS_PX, *images, RowAlignment(0.0, 0.0))
    found = _descend(BLURS_PX[-1:], *images, start)
    if found.known and found.minus(start).largest_px(left.shape[1]) < NEARBY_CHANGE_PX:
        return found
    return _descend(BLURS_PX, *images, start)


def _descend(
    blurs_px: tuple[float, ...],
    left: FloatImage,
    right: FloatImage,
    shifts: FloatImage,
    weight: FloatImage,
    guess: RowAlignment,
) -> RowAlignment:
    """Return the alignment found from blurred to sharp images, all (H, W) of the halved size."""
    for blur_px in blurs_px:
        views = _blurred(left, blur_px), _blurred(right, blur_px)
        offset, slope, deviation = _step(*views, shifts, weight, guess)
        guess = RowAlignment(
            guess.offset_px + REDUCTION * offset,
            guess.roll_deg + math.degrees(slope),
            REDUCTION * deviation,
        )
        if not guess.known:
            break
    return guess


def _blurred(image: FloatImage, sigma_px: float) -> FloatImage:
    return cv2.GaussianBlur(image, (0, 0), sigma_px) if sigma_px else image


def _step(
    left: FloatImage,
    right: FloatImage,
    disparity: FloatImage,
    weight: FloatImage,
    guess: RowAlignment,
) -> tuple[float, float, float]:
    """Return offset, slope (rows a column) and the deviation of the former, in these pixels."""
    height, width = left.shape
    reduced = replace(guess, offset_px=guess.offset_px / REDUCTION)
    columns = np.arange(width, dtype=np.float32) - disparity
    warped = _moved(right, reduced, columns)
    gain, bias = photometric_match(left, warped, weight)
    warped = gain * warped + bias
    residual = left - warped
    both = 0.5 * (left + warped)
    across = cv2.Sobel(both, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    down = cv2.Sobel(both, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    # Robust: a residual far above its surroundings' is an occlusion or a wrong disparity.
    square = residual * residual
    variance = cv2.blur(square, (31, 31)) + np.float32(NOISE**2)
    inlier = weight / (variance + np.float32(0.25) * square)

    def windows(image: FloatImage) -> NDArray[np.float64]:
        """Return sums over windows, (H / 8, W / 8)."""
        down, across = height // WINDOW_PX, width // WINDOW_PX
        cut = image[: down * WINDOW_PX, : across * WINDOW_PX]
        means = cv2.resize(cut, (across, down), interpolation=cv2.INTER_AREA)
        return means.astype(np.float64) * WINDOW_PX**2

    # L - W = across * e + down * d, with e the window's error of the disparity (its sign does not
    # matter: it is eliminated) and d how much lower the right rows are than guessed.
    weighted_across, weighted_down = inlier * across, inlier * down
    aa, ad = windows(weighted_across * across), windows(weighted_across * down)
    dd, ar = windows(weighted_down * down), windows(weighted_across * residual)
    dr = windows(weighted_down * residual)
    eliminated = aa + 1 / DISPARITY_ERROR_PX**2
    information = dd - ad * ad / eliminated
    pull = dr - ad * ar / eliminated
    # Each window's place in the right image: -1 and 1 are its side borders.
    place = (windows(columns) / WINDOW_PX**2 - (width - 1) / 2) / (width / 2)
    design = np.stack([np.ones_like(place), place])
    normal = np.einsum('irc,jrc,rc->ij', design, design, information)
    right_side = np.einsum('irc,rc->i', design, pull)
    # Both numbers' deviations, pixels; the second is that at the side borders. A prior of 2 px.
    covariance = np.linalg.inv(normal + np.eye(2) / 4)
    offset, at_border = np.clip(covariance @ right_side, -1.0, 1.0)
    deviation = math.sqrt(max(covariance[0, 0], covariance[1, 1]))
    if deviation > 1.0:
        return 0.0, 0.0, math.inf
    return float(offset), float(at_border) / (width / 2), deviation


def _moved(right: FloatImage, alignment: RowAlignment, columns: FloatImage) -> FloatImage:
    """Return (H, W) the aligned right image at these columns (H, W)."""
    maps = _aligned_places(right.shape[0], columns, alignment)
    return cv2.remap(right, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=2)
def _maps(height: int, width: int, alignment: RowAlignment) -> tuple[FloatImage, FloatImage]:
    """Return columns and rows of the aligned image; kept while a rig's alignment stays."""
    return _aligned_places(height, np.arange(width, dtype=np.float32)[None, :], alignment)


def _aligned_places(
    height: int, columns: FloatImage, alignment: RowAlignment
) -> tuple[FloatImage, FloatImage]:
    """Return columns and rows, (H, W) each, where the aligned image's columns are found."""
    width = columns.shape[1]
    x = columns - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
    angle = math.radians(alignment.roll_deg)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return (
        cosine * x - sine * y + np.float32((width - 1) / 2),
        sine * x + cosine * y + np.float32((height - 1) / 2 + alignment.offset_px),
    )
