"""Random lunar heightfields: nested grids, fractal regolith, craters and rocks.

World frame: x east, y north, z up, metres. The grids are centred on the origin; the finest one
holds the ground around the rover, each coarser one reaches farther, the last one the horizon.
Neighbouring grids agree exactly on their common border, so that the surface has no cracks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import math

import cv2
import numpy as np
from numpy.typing import NDArray
import torch
import torch.nn.functional as nnf

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.craters import (
    draw_home_craters,
    draw_small_craters,
    sample_craters,
)
from lunar_stereo_recon.simulation.fractal_ground import (
    albedo_noise,
    fractal_ground,
    MICRO_TEXEL_M,
    micro_texture,
    tilt,
)
from lunar_stereo_recon.simulation.heightfield_rocks import draw_rocks, sample_rocks
from lunar_stereo_recon.simulation.rock_mesh import (
    bank_height,
    check_tracer,
    EDGE_M,
    make_rock_meshes,
    RockMeshes,
    RockShapes,
    sample_shapes,
)
from lunar_stereo_recon.simulation.scatter import MIN_RADIUS_CELLS, patch_around
from lunar_stereo_recon.simulation.terrain_config import FloatGrid, TerrainConfig

# Width of the ring in which a grid passes over to the next coarser one, cells.
_BLEND_CELLS = 24


@dataclass(frozen=True)
class GridLevel:
    """One square grid of the terrain, in the form that the renderer walks through.

    Attributes:
        cells: Number of cells N along a side; there are N + 1 vertices.
        cell_m: Cell size, metres.
        origin_m: x and y of vertex (0, 0), metres.
        heights: ((N + 1)^2,) vertex heights, metres, row (y) major.
        surface: ((N + 1)^2, 4) height (m), dz/dx, dz/dy, relative albedo at each vertex.
        maxima: Flat pyramid of the largest height under each cell: N^2, (N/2)^2, ... 1 values.
        offsets: (L,) int64 start of each pyramid level in `maxima`.
    """

    cells: int
    cell_m: float
    origin_m: float
    heights: torch.Tensor
    surface: torch.Tensor
    maxima: torch.Tensor
    offsets: torch.Tensor

    @property
    def half_size_m(self) -> float:
        """Return half of the side length, metres."""
        return 0.5 * self.cells * self.cell_m

    def to(self, device: torch.device | str) -> GridLevel:
        """Return the same grid on another device."""
        return GridLevel(
            self.cells,
            self.cell_m,
            self.origin_m,
            self.heights.to(device),
            self.surface.to(device),
            self.maxima.to(device),
            self.offsets.to(device),
        )


@dataclass(frozen=True)
class Terrain:
    """A heightfield as nested grids, finest first, with a fine texture below the finest cell.

    Attributes:
        levels: Grids, finest first, all centred on the origin.
        micro: (T, T, 3) periodic texture of dz/dx, dz/dy and relative albedo; it only shades.
        micro_texel_m: Texel size of `micro`, metres.
        rocks: Rocks that are meshes; None where there are none.
        on_cpu: The same terrain on the CPU, where this one is on another device: heights are
            looked up there without work for the device.
    """

    levels: tuple[GridLevel, ...]
    micro: torch.Tensor
    micro_texel_m: float = MICRO_TEXEL_M
    rocks: RockMeshes | None = None
    on_cpu: Terrain | None = None

    @property
    def device(self) -> torch.device:
        """Return the device that the grids are on."""
        return self.micro.device

    def to(self, device: torch.device | str) -> Terrain:
        """Return the same terrain on another device.

        Raises:
            InputError: The terrain has rocks as meshes, and the device is no CPU.
        """
        if self.rocks is not None:
            check_mesh_device(device)
        if torch.device(device).type == 'cpu' and self.on_cpu is not None:
            return self.on_cpu
        levels = tuple(level.to(device) for level in self.levels)
        moved = Terrain(levels, self.micro.to(device), self.micro_texel_m, self.rocks)
        return moved if moved.device.type == 'cpu' else replace(moved, on_cpu=self.to('cpu'))

    def height_at(self, x_m: torch.Tensor, y_m: torch.Tensor) -> torch.Tensor:
        """Return the surface height (metres) at points (N,), that of rocks where they lie.

        Outside the last grid it is NaN. The points are on the terrain's device or on the CPU.
        """
        height = self.ground_at(x_m, y_m)
        if self.rocks is None:
            return height
        tops = torch.from_numpy(self.rocks.tops(x_m.numpy(), y_m.numpy()))
        return torch.where(height.isnan(), height, torch.maximum(height, tops.to(height)))

    def ground_at(self, x_m: torch.Tensor, y_m: torch.Tensor) -> torch.Tensor:
        """Return the height (metres) of the heightfield, without rocks that are meshes."""
        here = self if self.on_cpu is None or x_m.device.type != 'cpu' else self.on_cpu
        height = torch.full_like(x_m, math.nan)
        reach = torch.maximum(x_m.abs(), y_m.abs())
        for level in reversed(here.levels):
            inside = reach <= level.half_size_m
            values = _bilinear(level, x_m[inside], y_m[inside])
            height[inside] = values
        return height


def check_mesh_device(device: torch.device | str) -> None:
    """Refuse a device that cannot render rocks as meshes.

    Raises:
        InputError: The device is no CPU.
    """
    if torch.device(device).type != 'cpu':
        raise InputError(
            f'rocks as meshes are rendered on CPUs only, not on {device}; rock_form '
            "'heightfield' is rendered on both"
        )


def terrain_from_heights(
    heights: list[FloatGrid],
    cell_sizes_m: list[float],
    albedo: list[FloatGrid] | None = None,
    micro: torch.Tensor | None = None,
) -> Terrain:
    """Return a terrain made of given vertex heights, finest grid first.

    Args:
        heights: (N + 1, N + 1) vertex heights per grid, metres; N a power of two.
        cell_sizes_m: Cell size per grid, metres.
        albedo: Relative albedo per vertex; None is 1 everywhere.
        micro: (T, T, 3) fine texture; None is flat and even.

    Raises:
        InputError: A grid is not square or its size is not a power of two plus one.
    """
    levels = []
    for k, height in enumerate(heights):
        cells = height.shape[0] - 1
        if height.shape != (cells + 1, cells + 1) or cells < 2 or cells & (cells - 1):
            raise InputError(f'grid has shape {height.shape}; (2^k + 1, 2^k + 1) is needed')
        reflectance = np.ones_like(height) if albedo is None else albedo[k]
        levels.append(_grid_level(height, reflectance, cell_sizes_m[k]))
    if micro is None:
        micro = torch.tensor([0.0, 0.0, 1.0]).repeat(8, 8, 1)
    return Terrain(tuple(levels), micro)


def make_terrain(
    config: TerrainConfig,
    relief: Callable[[int], FloatGrid] | None = None,
    rock_edge_m: float = EDGE_M,
) -> Terrain:
    """Return the terrain that follows from a configuration (the same for the same seed).

    Args:
        config: What is random.
        relief: Gives the vertex heights (N + 1, N + 1) of grid k, metres, on which everything
            else is put; None is flat.
        rock_edge_m: Length of the edges of rocks' triangles near the rover, metres; coarser
            meshes are for tools that cannot bear as many triangles.
    """
    rng = np.random.default_rng([config.seed, 0x7E44A1])
    if config.rock_form == 'mesh':
        check_tracer()
    heights: list[FloatGrid] = []
    albedo: list[FloatGrid] = []
    craters = sample_craters(config, rng)
    rocks = sample_rocks(config, rng)
    shapes = _rock_shapes(config, rocks) if config.rock_form == 'mesh' else None
    ground: FloatGrid | None = None
    bright: FloatGrid | None = None
    for k in reversed(range(len(config.cells))):
        cell = config.cell_sizes_m[k]
        waves, detail = fractal_ground(config, k, rng)
        ground = _inherit(ground, config, k) + waves
        bright = _inherit(bright, config, k) + albedo_noise(config, k, rng)
        if k == len(config.cells) - 1:
            ground = ground + tilt(config, rng, ground.shape[0], cell)
        draw_home_craters(ground, bright, craters, config, k)
        height = ground.copy() if detail is None else ground + detail
        if relief is not None:
            height += relief(k)
        reflectance = 1.0 + bright
        draw_small_craters(height, craters, config, k)
        if shapes is None:
            draw_rocks(height, reflectance, rocks, cell, config.rock_wear)
        else:
            _draw_banks(height, shapes, cell, config.rock_wear)
        if heights:
            _join(height, heights[0], config, k)
            _join(reflectance, albedo[0], config, k)
        heights.insert(0, height)
        albedo.insert(0, np.clip(reflectance, 0.3, 2.5).astype(np.float32))
    terrain = terrain_from_heights(
        heights, list(config.cell_sizes_m), albedo, micro_texture(config, rng)
    )
    if shapes is None:
        return terrain
    return _with_rocks(terrain, shapes, config.rock_wear, rock_edge_m)


def _bilinear(level: GridLevel, x_m: torch.Tensor, y_m: torch.Tensor) -> torch.Tensor:
    gx = ((x_m - level.origin_m) / level.cell_m).clamp(0, level.cells)
    gy = ((y_m - level.origin_m) / level.cell_m).clamp(0, level.cells)
    ix = gx.long().clamp(max=level.cells - 1)
    iy = gy.long().clamp(max=level.cells - 1)
    fx, fy = gx - ix, gy - iy
    row = level.cells + 1
    at = iy * row + ix
    h = level.heights
    low = h[at] * (1 - fx) + h[at + 1] * fx
    high = h[at + row] * (1 - fx) + h[at + row + 1] * fx
    return low * (1 - fy) + high * fy


def _grid_level(height: FloatGrid, albedo: FloatGrid, cell_m: float) -> GridLevel:
    cells = height.shape[0] - 1
    heights = torch.from_numpy(np.ascontiguousarray(height, dtype=np.float32))
    slope_y, slope_x = torch.gradient(heights, spacing=cell_m)
    surface = torch.stack(
        [heights, slope_x, slope_y, torch.from_numpy(albedo.astype(np.float32))], dim=-1
    )
    tops = nnf.max_pool2d(heights[None, None], 2, stride=1)[0, 0]
    pyramid, offsets, total = [], [], 0
    while True:
        offsets.append(total)
        pyramid.append(tops.reshape(-1))
        total += tops.numel()
        if tops.shape[0] == 1:
            break
        tops = nnf.max_pool2d(tops[None, None], 2)[0, 0]
    return GridLevel(
        cells,
        cell_m,
        -0.5 * cells * cell_m,
        heights.reshape(-1).contiguous(),
        surface.reshape(-1, 4).contiguous(),
        torch.cat(pyramid),
        torch.tensor(offsets),
    )


def _inherit(coarse: FloatGrid | None, config: TerrainConfig, k: int) -> FloatGrid:
    """Return the coarser grid interpolated smoothly onto grid k; zeros for the last grid."""
    side = config.cells[k] + 1
    if coarse is None:
        return np.zeros((side, side), np.float32)
    fine = _resample(coarse, config, k, 'bicubic')
    # Bicubic surfaces bend at the coarse cells' borders, which low sun shows as ripples; a mean
    # over one coarse cell has its zero exactly at their period.
    ratio = round(config.cell_sizes_m[k + 1] / config.cell_sizes_m[k])
    kernel = np.full(ratio + 1, 1.0 / ratio)
    kernel[[0, -1]] /= 2
    return cv2.sepFilter2D(fine, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def _resample(coarse: FloatGrid, config: TerrainConfig, k: int, mode: str) -> FloatGrid:
    side = config.cells[k] + 1
    ratio = round(config.cell_sizes_m[k + 1] / config.cell_sizes_m[k])
    inner = config.cells[k] // ratio
    start = (config.cells[k + 1] - inner) // 2
    part = torch.from_numpy(coarse[start : start + inner + 1, start : start + inner + 1])
    fine = nnf.interpolate(part[None, None], size=(side, side), mode=mode, align_corners=True)
    return fine[0, 0].numpy()


def _join(fine: FloatGrid, coarse: FloatGrid, config: TerrainConfig, k: int) -> None:
    """Blend the outer ring of `fine` into the coarser grid's bilinear surface, in place."""
    side = fine.shape[0]
    index = np.arange(side)
    inset = np.minimum(index, side - 1 - index)
    band = min(_BLEND_CELLS, side // 4)
    edge = np.clip(np.minimum(inset[:, None], inset[None, :]) / band, 0.0, 1.0)
    weight = (edge * edge * (3 - 2 * edge)).astype(np.float32)
    outer = _resample(coarse, config, k, 'bilinear')
    fine[:] = outer + weight * (fine - outer)


def _rock_shapes(config: TerrainConfig, rocks: NDArray[np.float64]) -> RockShapes:
    """Return the shapes of the rocks that are on the terrain."""
    half = 0.5 * config.cells[-1] * config.cell_sizes_m[-1]
    inside = (np.abs(rocks[:, :2]) < half).all(axis=1)
    # From a generator of their own, so that the rest of the ground is the same in both forms.
    rng = np.random.default_rng([config.seed, 0x40C5])
    return sample_shapes(rocks[inside][:, [0, 1, 2, 4]], rng)


def _draw_banks(height: FloatGrid, shapes: RockShapes, cell_m: float, wear: float) -> None:
    """Put the soil that lies against rocks which this grid resolves onto the surface, in place."""
    for number in np.flatnonzero(shapes.place[:, 2] >= 2 * MIN_RADIUS_CELLS * cell_m):
        x, y, diameter = shapes.place[number, :3]
        patch = patch_around(height.shape[0], cell_m, x, y, 1.1 * diameter)
        if patch is not None:
            rows, columns, dx, dy = patch
            height[rows, columns] += shapes.bank(int(number), dx, dy, wear)


def _with_rocks(terrain: Terrain, shapes: RockShapes, wear: float, edge_m: float) -> Terrain:
    """Return the terrain with rocks as meshes, which lie in the soil that is banked at them."""
    x, y = (torch.from_numpy(shapes.place[:, k]).float() for k in (0, 1))
    ground = terrain.ground_at(x, y).double().numpy() - bank_height(shapes.place[:, 2], wear)
    reach = terrain.levels[0].half_size_m
    return replace(terrain, rocks=make_rock_meshes(shapes, ground, wear, reach, edge_m))
