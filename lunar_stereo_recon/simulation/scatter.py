"""Craters and rocks at random places: their sizes, and the part of a grid that one covers."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.simulation.terrain_config import TerrainConfig

# Features below this radius (in cells of a grid) are left out there: they would only alias.
MIN_RADIUS_CELLS = 2.0


def _sample_sizes(
    rng: np.random.Generator, count: int, smallest: float, largest: float, exponent: float
) -> NDArray[np.float64]:
    """Return sizes whose cumulative number falls as size^-exponent between two limits."""
    u = rng.random(count)
    low, high = smallest**-exponent, largest**-exponent
    return (low - u * (low - high)) ** (-1.0 / exponent)


def sample_field(
    config: TerrainConfig,
    rng: np.random.Generator,
    count_above: Callable[[float], float],
    largest_m: float,
    exponent: float,
) -> NDArray[np.float64]:
    """Return (N, 3) x, y, diameter of a power-law population, dense only where it is resolved.

    Each grid's area gets the sizes that this grid resolves and the next coarser one does not.
    """
    fields = []
    upper = largest_m
    for k in reversed(range(len(config.cells))):
        half = 0.5 * config.cells[k] * config.cell_sizes_m[k]
        smallest = 2 * MIN_RADIUS_CELLS * config.cell_sizes_m[k]
        if smallest >= upper:
            continue
        mean = (count_above(smallest) - count_above(upper)) * (2 * half) ** 2
        count = rng.poisson(max(mean, 0.0))
        sizes = _sample_sizes(rng, count, smallest, upper, exponent)
        fields.append(np.column_stack([rng.uniform(-half, half, (count, 2)), sizes]))
        upper = smallest
    return np.concatenate(fields) if fields else np.zeros((0, 3))


def patch_around(
    side: int, cell_m: float, x: float, y: float, reach: float
) -> tuple[Any, ...] | None:
    """Return slices and coordinates relative to (x, y) of the grid part within `reach`."""
    half = 0.5 * (side - 1) * cell_m
    c0 = max(int(math.ceil((x - reach + half) / cell_m)), 0)
    c1 = min(int(math.floor((x + reach + half) / cell_m)) + 1, side)
    r0 = max(int(math.ceil((y - reach + half) / cell_m)), 0)
    r1 = min(int(math.floor((y + reach + half) / cell_m)) + 1, side)
    if c0 >= c1 or r0 >= r1:
        return None
    dx = (np.arange(c0, c1) * cell_m - half - x).astype(np.float32)
    dy = (np.arange(r0, r1) * cell_m - half - y).astype(np.float32)
    return slice(r0, r1), slice(c0, c1), dx[None, :], dy[:, None]
