"""A map of the ground against the true one: heights, their stated error, and hazards."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.geometry.hazard import hazard_values, HazardOptions, LETHAL
from lunar_stereo_recon.geometry.terrain import TerrainLayers

# Heights of steps that are counted, each with that clearance.
STEPS_M = (0.3, 0.2, 0.15)
_BESIDE = np.ones((3, 3), np.uint8)


def height_error(layers: TerrainLayers, truth: TerrainLayers) -> dict[str, float]:
    """Return how far heights are from true ones on common cells, and whether their sigma says so.

    Args:
        layers: The map.
        truth: The true one, at the same place.
    """
    error = np.abs(layers.height - truth.height)
    known = np.isfinite(error)
    if not known.any():
        return {'cells': 0.0}
    error, sigma = error[known], layers.deviation[known]
    return {
        'cells': float(error.size),
        'median_m': float(np.median(error)),
        'mean_m': float(error.mean()),
        'p95_m': float(np.percentile(error, 95)),
        'within_1_sigma': float((error <= sigma).mean()),
        'within_2_sigma': float((error <= 2 * sigma).mean()),
    }


def hazard_figures(
    layers: TerrainLayers, truth: TerrainLayers, options: HazardOptions
) -> dict[str, dict[str, float | None]]:
    """Return what the map says of the true steps and of the free cells, for each of `STEPS_M`.

    A step is a cell whose true surroundings have one of that height. It is found where the map
    marks the cell or one beside it, unknown where the map says nothing of the cell, else missed.
    A cell is free where neither it nor one beside it has such a step or a slope that cannot be
    driven; `false` is the share of the known ones that the map marks. Shares of nothing are None.

    Args:
        layers: The map.
        truth: The true one, at the same place, of what was seen.
        options: What the rover can do but for its clearance.
    """
    found = {}
    true_step, true_slope = (np.nan_to_num(grid) for grid in (truth.step, truth.slope))
    around_step, around_slope = (cv2.dilate(grid, _BESIDE) for grid in (true_step, true_slope))
    for height_m in STEPS_M:
        rover = dataclasses.replace(options, clearance_m=height_m)
        values = hazard_values(layers.slope, layers.step, layers.cell_m, rover)
        known, marked = values >= 0, values == LETHAL
        beside = cv2.dilate(marked.astype(np.uint8), _BESIDE) > 0
        step = true_step >= height_m
        free = np.isfinite(truth.step) & known & (around_step < height_m)
        free &= around_slope < options.max_slope_deg
        found[f'{height_m:g} m'] = {
            'steps': float(step.sum()),
            'found': _share(beside, step),
            'unknown': _share(~beside & ~known, step),
            'missed': _share(~beside & known, step),
            'free': float(free.sum()),
            'false': _share(marked, free),
        }
    return found


def map_tables(maps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return Markdown tables of the figures of maps by method; none without a comparable cell.

    Args:
        maps: For each method what `TerrainDrive.figures` returns.
    """
    known = {
        name: figures
        for name, figures in maps.items()
        if figures.get('map_height_error', {}).get('cells')
    }
    if not known:
        return []
    heights = ['| map of | cells | median cm | mean cm | 95 % cm | within 1 sigma % | 2 sigma % |']
    steps = [
        '| map of | steps from | steps | found % | unknown % | called free % | free | false % |'
    ]
    for lines in (heights, steps):
        lines.append('|---' * (lines[0].count('|') - 1) + '|')
    for name, figures in known.items():
        error = figures['map_height_error']
        numbers = [100 * error[key] for key in ('median_m', 'mean_m', 'p95_m')]
        shares = [100 * error[f'within_{n}_sigma'] for n in (1, 2)]
        cells = [f'{error["cells"]:.0f}', *(f'{n:.2f}' for n in numbers)]
        cells += [f'{share:.1f}' for share in shares]
        heights.append(f'| {name} | {" | ".join(cells)} |')
        for height, of in figures['map_hazards'].items():
            kinds = [_percent(of[key]) for key in ('found', 'unknown', 'missed')]
            cells = [height, f'{of["steps"]:.0f}', *kinds]
            cells += [f'{of["free"]:.0f}', _percent(of['false'])]
            steps.append(f'| {name} | {" | ".join(cells)} |')
    return ['\n'.join(heights), '\n'.join(steps)]


def _percent(share: float | None) -> str:
    return '' if share is None else f'{100 * share:.1f}'


def _share(what: NDArray[np.bool_], of: NDArray[np.bool_]) -> float | None:
    count = int(of.sum())
    return float((what & of).sum() / count) if count else None
