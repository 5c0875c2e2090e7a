"""The ground that hazard grids are graded on: its cells, the samples in them, files of scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.geometry.hazard import GridLayout

RANGE_M, CELL_M, SAMPLES_A_CELL = 10.0, 0.2, 4
_CELLS = round(RANGE_M / CELL_M)
# Ahead of the camera, its axes level: x forward, y left.
LAYOUT = GridLayout(0.0, -RANGE_M, _CELLS, 2 * _CELLS, CELL_M)
FINE_M = CELL_M / SAMPLES_A_CELL
# Rows and columns of the true ground's samples.
FINE_SHAPE = (LAYOUT.rows * SAMPLES_A_CELL, LAYOUT.columns * SAMPLES_A_CELL)
LOW_SUN_DEG = 8.0


def scene_file(folder: Path, preset: str, low_sun: bool, number: int) -> Path:
    """Return the file of a pair."""
    return folder / f'{preset}-{"low" if low_sun else "typical"}_sun-{number:02d}.npz'


def fine_places() -> NDArray[np.float64]:
    """Return (N, 2) x and y of the samples of the true ground, row by row, metres."""
    rows, columns = FINE_SHAPE
    x = LAYOUT.x_m + FINE_M * (np.arange(columns) + 0.5)
    y = LAYOUT.y_m + FINE_M * (np.arange(rows) + 0.5)
    return np.column_stack([np.tile(x, y.size), np.repeat(y, x.size)])
