"""Craters of a terrain: how many of which size and age, and how each shapes the ground."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.simulation.scatter import MIN_RADIUS_CELLS, patch_around, sample_field
from lunar_stereo_recon.simulation.terrain_config import FloatGrid, TerrainConfig

# A crater is drawn on the coarsest grid where its radius has this many cells; finer grids
# inherit it by interpolation, which is far cheaper than drawing it again cell by cell.
_HOME_RADIUS_CELLS = 20.0
# A larger crater would swallow the whole site.
_LARGEST_CRATER_M = 120.0


def sample_craters(config: TerrainConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (N, 8): x, y, radius, depth, rim height, rim width, phase, brightening."""

    def count_above(diameter: float) -> float:
        return config.crater_density * 0.0724 * diameter**-1.83

    largest = min(_LARGEST_CRATER_M, config.detail_below_m)
    field = sample_field(config, rng, count_above, largest, 1.83)
    count = len(field)
    # Small craters are worn down faster than large ones are made: most are shallow.
    freshness = rng.beta(1.0, 2.2, count)
    radius = 0.5 * field[:, 2]
    depth = config.crater_depth * 2 * radius * (0.12 + 0.88 * freshness)
    # The floor's size is limited: a deep, wide pit would swallow the whole site.
    depth = np.minimum(depth, 0.25 * radius**0.8 + 0.02)
    rim = depth * (0.10 + 0.15 * freshness)
    width = 0.22 + 0.25 * (1 - freshness)
    phase = rng.uniform(0, 2 * math.pi, count)
    bright = 0.12 * freshness**3
    return np.column_stack([field[:, :2], radius, depth, rim, width, phase, bright])


def draw_home_craters(
    ground: FloatGrid,
    bright: FloatGrid,
    craters: NDArray[np.float64],
    config: TerrainConfig,
    k: int,
) -> None:
    """Draw the craters whose home is grid k, in place; finer grids inherit them."""
    cell = config.cell_sizes_m[k]
    last = k == len(config.cells) - 1
    low = _HOME_RADIUS_CELLS * cell if k > 0 else MIN_RADIUS_CELLS * cell
    high = math.inf if last else _HOME_RADIUS_CELLS * config.cell_sizes_m[k + 1]
    radius = craters[:, 2]
    for crater in craters[(radius >= low) & (radius < high)]:
        draw_crater(ground, crater, cell, bright)


def draw_small_craters(
    height: FloatGrid, craters: NDArray[np.float64], config: TerrainConfig, k: int
) -> None:
    """Draw the craters that are resolved on grid k but belong to a finer grid, in place."""
    if k == 0:
        return
    cell = config.cell_sizes_m[k]
    radius = craters[:, 2]
    chosen = (radius >= MIN_RADIUS_CELLS * cell) & (radius < _HOME_RADIUS_CELLS * cell)
    for crater in craters[chosen]:
        draw_crater(height, crater, cell, None)


def draw_crater(
    height: FloatGrid, crater: NDArray[np.float64], cell_m: float, bright: FloatGrid | None
) -> None:
    """Draw one crater (a row of `sample_craters`) in place; its ejecta too, given `bright`."""
    x, y, radius, depth, rim, width, phase, glow = crater
    patch = patch_around(height.shape[0], cell_m, x, y, 2.4 * radius)
    if patch is None:
        return
    rows, columns, dx, dy = patch
    squared = (dx * dx + dy * dy) / (radius * radius) + 1e-9
    cos_phase, sin_phase = math.cos(phase), math.sin(phase)
    # A lopsided rim: second harmonic of the direction, cheap without trigonometry.
    lobe = ((dx * dx - dy * dy) * cos_phase + 2 * dx * dy * sin_phase) / (
        radius * radius * squared
    )
    squared = squared * (1 + 0.16 * lobe)
    distance = np.sqrt(squared)
    bowl = -depth * np.clip(1 - squared, 0, None) ** 1.25
    spread = np.where(distance < 1, 0.6 * width, 1.3 * width)
    ring = rim * np.exp(-(((distance - 1) / spread) ** 2))
    height[rows, columns] += (bowl + ring).astype(np.float32)
    if bright is not None and glow > 0.01:
        bright[rows, columns] += (glow * np.exp(-((distance / 1.2) ** 4))).astype(np.float32)
