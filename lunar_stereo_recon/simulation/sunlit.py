"""Which cells of the ground the sun reaches, found once for all pictures under one sun.

A cell whose corners and whose neighbours' corners all agree is lit or dark as a whole; what falls
on the others, along the shadows' edges, is traced for every pixel as always.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch

from lunar_stereo_recon.simulation.renderer import SHADOW_LIFT_CELLS, trace
from lunar_stereo_recon.simulation.scene import DARK, Lighting, LIT, MIXED, SunlitGround
from lunar_stereo_recon.simulation.terrain import GridLevel, Terrain

# Rays that are traced at a time; it bounds the memory.
_BLOCK_RAYS = 1 << 20


def sunlit_ground(terrain: Terrain, lighting: Lighting) -> SunlitGround:
    """Return where the sun reaches the ground; it takes as long as some ten pictures.

    Args:
        terrain: The ground; its rocks cast shadows too.
        lighting: The sun.
    """
    levels = terrain.levels
    hidden = [0.0, *(level.half_size_m for level in levels[:-1])]
    sun = torch.tensor(lighting.direction(), device=terrain.device)
    return SunlitGround(
        lighting,
        tuple(
            _cells(terrain, level, sun, hole) for level, hole in zip(levels, hidden, strict=True)
        ),
    )


def _cells(terrain: Terrain, level: GridLevel, sun: torch.Tensor, hole_m: float) -> torch.Tensor:
    """Return the states of a grid's cells; those under finer grids, which no ray asks for, mixed.

    Args:
        terrain: The whole ground.
        level: One of its grids.
        sun: (3,) direction to it.
        hole_m: Half of the side of the finer grids.
    """
    side = level.cells + 1
    heights, slopes = level.surface[:, 0], level.surface[:, 1:3]
    lit = np.zeros(side * side, np.uint8)
    margin = hole_m - 2 * level.cell_m
    for start in range(0, side * side, _BLOCK_RAYS):
        index = torch.arange(start, min(start + _BLOCK_RAYS, side * side), device=sun.device)
        x = level.origin_m + (index % side) * level.cell_m
        y = level.origin_m + torch.div(index, side, rounding_mode='floor') * level.cell_m
        asked = torch.maximum(x.abs(), y.abs()) >= margin
        index, x, y = index[asked], x[asked], y[asked]
        steepness = torch.sqrt(1 + slopes[index].square().sum(1))
        z = heights[index] + SHADOW_LIFT_CELLS * level.cell_m * steepness
        # At the very edge a ray would start outside.
        edge = level.half_size_m * (1 - 1e-6)
        points = torch.stack([x.clamp(-edge, edge), y.clamp(-edge, edge), z], dim=1)
        met = trace(terrain, points, sun.expand_as(points), None, True)
        lit[index.cpu().numpy()] = (~torch.isfinite(met.depth)).cpu().numpy()
    corners = lit.reshape(side, side)
    # Largest and smallest of the four corners of a cell and of its eight neighbours.
    around = np.ones((4, 4), np.uint8)
    spread = (
        cv2.dilate(corners, around, anchor=(1, 1)),
        cv2.erode(corners, around, anchor=(1, 1)),
    )
    most, least = (grid[:-1, :-1] for grid in spread)
    cells = np.where(most == least, np.where(most == 1, LIT, DARK), MIXED).astype(np.uint8)
    if hole_m > 0:
        inner = math.ceil(margin / level.cell_m)
        middle = slice(level.cells // 2 - inner - 1, level.cells // 2 + inner + 1)
        cells[middle, middle] = MIXED
    return torch.from_numpy(cells.reshape(-1)).to(sun.device)
