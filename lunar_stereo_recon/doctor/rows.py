"""How well the rows of the two views fit: offset, roll, and where they bend.

Measured by matched points, which need neither calibration nor matcher. Where smooth ground has
few of them, `geometry.row_alignment` measures on all of the image, once the right view is laid
over the left one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, Reconstruction, RowAlignment, StereoPair
from lunar_stereo_recon.doctor.findings import Finding, Severity
from lunar_stereo_recon.doctor.matches import Matches
from lunar_stereo_recon.geometry.row_alignment import estimate_row_alignment

# Parts of the image that are looked at for themselves.
TILE_ROWS, TILE_COLUMNS = 3, 4
# Points that are enough to do without the rest of the image: in all of it, in a part.
POINTS, POINTS_A_TILE = 100, 10
# A part counts where the images know it to this, pixels.
TILE_DEVIATION_PX = 0.1
SURE = 0.5
# Departure of a part from offset and roll: from here on the rig needs a new calibration.
BEND_PX, BEND_FAULT_PX = 0.5, 1.5


@dataclass(frozen=True)
class RowErrors:
    """Rows of the right view minus those of the left one.

    Attributes:
        alignment: Offset and roll of the whole image.
        tiles: (TILE_ROWS, TILE_COLUMNS) pixels; NaN where the images do not tell.
        size: Width and height of the images, pixels.
    """

    alignment: RowAlignment
    tiles: NDArray[np.float64]
    size: tuple[int, int]

    @property
    def bends(self) -> NDArray[np.float64]:
        """Return what is left of the tiles once offset and roll are taken out, pixels."""
        centres, _ = tile_centres(*self.size)
        slope = math.tan(math.radians(self.alignment.roll_deg))
        return self.tiles - self.alignment.offset_px - slope * (centres - (self.size[0] - 1) / 2)


def tile_centres(width: int, height: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return columns and rows of the middles of the tiles, (TILE_ROWS, TILE_COLUMNS) each."""
    columns = (np.arange(TILE_COLUMNS) + 0.5) * width / TILE_COLUMNS - 0.5
    rows = (np.arange(TILE_ROWS) + 0.5) * height / TILE_ROWS - 0.5
    across, down = np.meshgrid(columns, rows)
    return across, down


def measure_rows(
    pairs: Sequence[StereoPair], results: Sequence[Reconstruction], matches: Matches
) -> RowErrors:
    """Return how the rows lie.

    Args:
        pairs: Some pairs of one rig.
        results: What became of them, dense; none where they could not be matched.
        matches: Points of the pairs.
    """
    height, width = pairs[0].left.shape
    alignment, tiles = _alignment_of(matches), _tiles_of(matches)
    dense = results[-1].row_alignment if results else RowAlignment()
    if not dense.known or alignment.largest_px(width) > RowAlignment.MAX_CORRECTION_PX:
        return RowErrors(alignment, tiles, (width, height))
    if matches.agree.sum() < POINTS:
        alignment = dense
    unknown = ~np.isfinite(tiles)
    if unknown.any():
        views = np.stack([_dense_tiles(*each) for each in zip(pairs, results, strict=True)])
        told = unknown & np.isfinite(views).any(axis=0)
        tiles[told] = np.nanmedian(views[:, told], axis=0)
    return RowErrors(alignment, tiles, (width, height))


def check_rows(errors: RowErrors) -> list[Finding]:
    """Return what the rows say."""
    width = errors.size[0]
    findings = [_whole(errors.alignment, width)]
    bends = errors.bends
    if not np.isfinite(bends).any() or not errors.alignment.known:
        return findings
    largest = float(np.nanmax(np.abs(bends)))
    row, column = np.unravel_index(np.nanargmax(np.abs(bends)), bends.shape)
    place = f'{_ROWS[row]} {_COLUMNS[column]}'
    text = f'parts of the image depart by up to {largest:.2f} px ({place}) from offset and roll'
    if largest < BEND_PX:
        findings.append(Finding('rows bend', Severity.GOOD, text))
    else:
        findings.append(
            Finding(
                'rows bend',
                Severity.FAULT if largest >= BEND_FAULT_PX else Severity.WARNING,
                text,
                'offset and roll cannot mend that: raw images (rectify:=true, --rectify), a wrong '
                'lens model, or one zoomed or moved lens: recalibrate',
            )
        )
    return findings


_ROWS = ('top', 'middle', 'bottom')
_COLUMNS = ('far left', 'left of the middle', 'right of the middle', 'far right')


def _whole(alignment: RowAlignment, width: int) -> Finding:
    if not alignment.known:
        return Finding(
            'rows',
            Severity.NOTE,
            'the images have too little texture to tell',
            'look at images of textured ground',
        )
    largest = alignment.largest_px(width)
    text = (
        f'right rows {alignment.offset_px:+.2f} px (positive is low), turned by '
        f'{alignment.roll_deg:+.3f} deg (positive is clockwise): up to {largest:.2f} px'
    )
    if not alignment.poor(width):
        return Finding('rows', Severity.GOOD, text)
    if largest > RowAlignment.MAX_CORRECTION_PX:
        return Finding(
            'rows',
            Severity.FAULT,
            text,
            'more than is corrected while running. Raw images? rectify:=true (--rectify). Else '
            'recalibrate, and look for a loose camera',
        )
    return Finding(
        'rows',
        Severity.WARNING,
        text,
        'align_rows corrects that while running, at some loss: recalibrate the rig',
    )


def _alignment_of(matches: Matches) -> RowAlignment:
    if not matches.enough:
        return RowAlignment()
    offset, at_right, _ = matches.row_model
    roll = math.degrees(math.atan(at_right / (matches.width / 2)))
    return RowAlignment(offset, roll, TILE_DEVIATION_PX)


def _tiles_of(matches: Matches) -> NDArray[np.float64]:
    """Return the medians of the matches in each tile of the right image."""
    tiles = np.full((TILE_ROWS, TILE_COLUMNS), np.nan)
    places = matches.right[matches.agree]
    errors = matches.row_errors[matches.agree]
    columns = np.clip(places[:, 0] / matches.width * TILE_COLUMNS, 0, TILE_COLUMNS - 1).astype(int)
    rows = np.clip(places[:, 1] / matches.height * TILE_ROWS, 0, TILE_ROWS - 1).astype(int)
    for row in range(TILE_ROWS):
        for column in range(TILE_COLUMNS):
            here = errors[(rows == row) & (columns == column)]
            if here.size >= POINTS_A_TILE:
                tiles[row, column] = np.median(here)
    return tiles


def _dense_tiles(pair: StereoPair, result: Reconstruction) -> NDArray[np.float64]:
    """Return the row error of each tile; NaN where the images know it too badly."""
    height, width = pair.left.shape
    sure = np.isfinite(result.disparity) & (result.confidence >= SURE)
    laid_over = _over_left(pair, result.disparity)
    no_shift = np.where(sure, np.float32(0), np.float32(np.nan))
    tiles = np.full((TILE_ROWS, TILE_COLUMNS), np.nan)
    row_ends = np.linspace(0, height, TILE_ROWS + 1).astype(int)
    column_ends = np.linspace(0, width, TILE_COLUMNS + 1).astype(int)
    for row in range(TILE_ROWS):
        for column in range(TILE_COLUMNS):
            part = (
                slice(row_ends[row], row_ends[row + 1]),
                slice(column_ends[column], column_ends[column + 1]),
            )
            found = estimate_row_alignment(pair.left[part], laid_over[part], no_shift[part])
            if found.deviation_px <= TILE_DEVIATION_PX:
                tiles[row, column] = found.offset_px
    return tiles


def _over_left(pair: StereoPair, disparity: FloatImage) -> FloatImage:
    """Return (H, W) the right view at the left one's columns, its rows as they are."""
    height, width = disparity.shape
    columns = np.arange(width, dtype=np.float32) - np.nan_to_num(disparity)
    columns -= np.float32(pair.calibration.disparity_offset_px)
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    return cv2.remap(
        pair.right,
        columns.astype(np.float32),
        rows,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
