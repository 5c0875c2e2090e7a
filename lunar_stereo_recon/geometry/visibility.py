"""Which pixels of the left view the right camera does not see, by the disparity alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage

OCCLUSION_TOLERANCE_PX = 1.0
# The left-right check's temporaries stay in the cache if it is made of so many rows at once.
OCCLUSION_ROWS = 48


def outside_right(disparity: FloatImage) -> NDArray[np.bool_]:
    """Return (H, W) bool: the matched column is not in the right image. False where NaN."""
    width = disparity.shape[1]
    columns = np.arange(width, dtype=np.float32) - disparity
    return (columns < 0) | (columns > width - 1)


def occluded_in_right(
    disparity: FloatImage, tolerance_px: float = OCCLUSION_TOLERANCE_PX
) -> NDArray[np.bool_]:
    """Return (H, W) bool: another left pixel, nearer by more than the tolerance, hides this one.

    The left-right check: each right column takes the nearest left pixel that maps to it, and a
    left pixel is hidden where that one is not itself. False where NaN.
    """
    hidden = np.empty(disparity.shape, np.bool_)
    for first in range(0, disparity.shape[0], OCCLUSION_ROWS):
        rows = slice(first, first + OCCLUSION_ROWS)
        _write_hidden(hidden[rows], disparity[rows], tolerance_px)
    return hidden


def _write_hidden(out: NDArray[np.bool_], disparity: FloatImage, tolerance_px: float) -> None:
    """Write the left-right check of some rows; see `occluded_in_right`."""
    height, width = disparity.shape
    # What is unknown or negative maps far outside.
    values = np.where(disparity >= 0, disparity, np.float32(-2 * width))
    columns = np.arange(width, dtype=np.float32) - values
    np.rint(columns, out=columns)
    # Columns outside go to a spare one at the right end; as unsigned numbers, negative ones are
    # larger than any.
    index = np.minimum(columns.astype(np.int32).view(np.uint32), np.uint32(width))
    inside = index < width
    places = np.add(index, (width + 1) * np.arange(height)[:, None], dtype=np.intp)
    nearest = np.full(height * (width + 1), -1, np.float32)
    # Of the left pixels on one right column the rightmost is the nearest, and in row-major order
    # it is written last: the assignment is a z-buffer.
    nearest[places.ravel()] = values.ravel()
    # A surface seen obliquely leaves single columns unwritten.
    rows = nearest.reshape(height, width + 1)
    wide = rows.copy()
    np.maximum(wide[:, 1:], rows[:, :-1], out=wide[:, 1:])
    np.maximum(wide[:, :-1], rows[:, 1:], out=wide[:, :-1])
    values += np.float32(tolerance_px)
    np.greater(wide.take(places), values, out=out)
    out &= inside
