"""Where true surfaces end, where they are thin, and which points float between them.

Disparities are (H, W), pixels, NaN where unknown; what is unknown never makes an edge.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

JUMP_PX = 1.5
EDGE_REACH_PX = 3
THIN_WIDTH_PX = 8
FLYING_REACH_PX = 3
FLYING_SHARE = 0.03


def depth_edges(disparity: NDArray[np.floating]) -> Mask:
    """Return the pixels within 3 px of a jump of more than 1.5 px between two neighbours."""
    jump = np.zeros(disparity.shape, bool)
    down = np.abs(np.diff(disparity, axis=0)) > JUMP_PX
    across = np.abs(np.diff(disparity, axis=1)) > JUMP_PX
    jump[:-1] |= down
    jump[1:] |= down
    jump[:, :-1] |= across
    jump[:, 1:] |= across
    # The two pixels of the jump are within its reach themselves.
    height, width = disparity.shape
    reach = EDGE_REACH_PX - 1
    padded = np.pad(jump, reach)
    edges = np.zeros_like(jump)
    for y, x in _disc(reach):
        edges |= padded[reach + y : reach + y + height, reach + x : reach + x + width]
    return edges


def thin_surfaces(disparity: NDArray[np.floating]) -> Mask:
    """Return the pixels of what stands out by more than 1.5 px and is at most 8 px wide.

    Wide is meant along the row or along the column, whichever is less.
    """
    thin = np.zeros(disparity.shape, bool)
    known = np.isfinite(disparity)
    # Beyond the known, and beyond the image, the surface is taken to go on.
    filled = np.where(known, disparity, np.inf).astype(np.float32)
    for axis in (0, 1):
        # An opening along the axis: least, then greatest, of the pixels that a line covers.
        pad = [(0, 0), (0, 0)]
        pad[axis] = (THIN_WIDTH_PX, THIN_WIDTH_PX)
        lines = np.pad(filled, pad, constant_values=np.inf)
        for extreme in (np.min, np.max):
            lines = extreme(sliding_window_view(lines, THIN_WIDTH_PX + 1, axis), axis=-1)
        thin |= known & (filled > lines + np.float32(JUMP_PX))
    return thin


def flying_points(
    disparity: NDArray[np.floating],
    true_disparity: NDArray[np.floating],
    seen: Mask,
    beyond_px: float = 0.0,
) -> Mask:
    """Return the points whose depth is off by more than 3 % from every true one within 3 px.

    Depth is proportional to 1 / disparity, so no calibration is needed. A disparity halfway
    between two surfaces flies; that of either one does not, within 3 px of where it is seen. What
    only the left view sees counts like the rest: its truth is known.

    Args:
        disparity: (H, W) estimated.
        true_disparity: (H, W); surfaces that do not count keep points from flying too.
        seen: (H, W), pixels that have both and count; others are never flying.
        beyond_px: Only points that are also off by more than this from each of them: far away
            3 % of depth is a fraction of a pixel.
    """
    rows, columns = np.nonzero(seen)
    height, width = disparity.shape
    flying = np.zeros(disparity.shape, bool)
    # From the pixel itself outwards: few are left after the first look.
    for down, across in _disc(FLYING_REACH_PX):
        y, x = rows + down, columns + across
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        true = true_disparity[y.clip(0, height - 1), x.clip(0, width - 1)]
        estimated = disparity[rows, columns]
        # Depth over true depth is true disparity over disparity.
        with np.errstate(divide='ignore', invalid='ignore'):
            on_surface = np.abs(true / estimated - 1) <= FLYING_SHARE
        on_surface |= np.abs(true - estimated) <= beyond_px
        on_surface &= inside
        rows, columns = rows[~on_surface], columns[~on_surface]
    flying[rows, columns] = True
    return flying


def _disc(radius: int) -> list[tuple[int, int]]:
    """Return the offsets (down, across) within a radius, the nearest first."""
    axis = range(-radius, radius + 1)
    offsets = [(y, x) for y in axis for x in axis if x * x + y * y <= radius**2]
    return sorted(offsets, key=lambda offset: offset[0] ** 2 + offset[1] ** 2)
