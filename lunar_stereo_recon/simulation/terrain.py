"""Random lunar heightfields: nested grids, fractal regolith, craters and rocks.

World frame: x east, y north, z up, metres. The grids are centred on the origin; the finest one
holds the ground around the rover, each coarser one reaches farther, the last one the horizon.
Neighbouring grids agree exactly on their common border, so that the surface has no cracks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
import torch
import torch.nn.functional as nnf

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.rock_mesh import (
    bank_height,
    check_tracer,
    EDGE_M,
    make_rock_meshes,
    RockMeshes,
    RockShapes,
    sample_shapes,
)

FloatGrid = NDArray[np.float32]

# How rocks are made: as part of the heightfield, or as meshes with overhangs.
ROCK_FORMS = ('heightfield', 'mesh')
# Width of the ring in which a grid passes over to the next coarser one, cells.
_BLEND_CELLS = 24
# A crater is drawn on the coarsest grid where its radius has this many cells; finer grids
# inherit it by interpolation, which is far cheaper than drawing it again cell by cell.
_HOME_RADIUS_CELLS = 20.0
# Features below this radius (in cells of a grid) are left out there: they would only alias.
_MIN_RADIUS_CELLS = 2.0
# Shortest waves that a grid holds, and those that finer grids take over from it (cells).
_SHORTEST_WAVE_CELLS = 3.0
_INHERITED_WAVE_CELLS = 7.0
# Wavelength above which the fractal ground grows more slowly (metres).
_ROLL_OFF_M = 12.0
# A larger crater would swallow the whole site.
_LARGEST_CRATER_M = 120.0
_MICRO_TEXELS = 1024
_MICRO_TEXEL_M = 0.0025


@dataclass(frozen=True)
class TerrainConfig:
    """What a terrain is made of.

    Attributes:
        seed: Everything random follows from it.
        hurst: Hurst exponent of the fractal ground, 0..1; larger is smoother at small scale.
        roughness_m: Root mean square height difference of two points 1 m apart, metres.
        crater_density: Craters as a fraction of 0.0724 D^-1.83 larger than D metres on a square
            metre: Hartmann's exponent (Icarus 60, 56, 1984), and within a tenth of the
            equilibrium of metre-sized mare craters, 10^-1.1 D^-2 (Trask, JPL TR 32-800, 1966).
        crater_depth: Depth over diameter of the freshest craters: 0.2 where they are large (Pike,
            Geophys. Res. Lett. 1, 291, 1974), 0.1 to 0.2 below a kilometre (Sun et al., Icarus
            309, 61, 2018).
            By age it falls to an eighth of that, and most small craters are old. Rims are a
            quarter of the depth of fresh ones, 0.04 diameters with the default depth, and a tenth
            of old ones; they fade outwards as a Gaussian, within the bright ejecta of fresh
            craters. The quarter is our choice: fresh simple craters of kilometres have 0.036
            diameters (Pike, in Impact and Explosion Cratering, 489, 1977, as later works quote
            it), and of craters of metres we know no such measurement.
        rock_density: Rocks with a diameter above 0.1 m, per square metre.
        rock_exponent: Exponent of the cumulative rock size distribution.
        rock_max_m: Largest rock diameter, metres.
        rock_brightness: Mean reflectance of rocks relative to the soil.
        albedo_noise: Relative standard deviation of the soil's reflectance.
        tilt_deg: Slope of the whole site, degrees.
        rock_area: Fraction of the ground that rocks cover, after Golombek and Rapp (J. Geophys.
            Res. 102, 4117, 1997): rocks larger than D cover k exp(-(1.79 + 0.152 / k) D). It
            replaces `rock_density` and `rock_exponent`; None is the power law of these.
        rock_wear: How far rocks are worn, 0 to 1: 0 has sharp edges and even faces; worn rocks
            are rounder and rougher, with a bank of soil around them.
        rock_form: One of ROCK_FORMS. Places, sizes and reflectance are the same in both; meshes
            have overhangs and steep faces, and are rendered on CPUs only.
        detail_below_m: Only waves and craters smaller than this are made (metres); for ground
            whose larger shape is given.
        cells: Cells along one side of each grid, finest first; powers of two.
        cell_sizes_m: Cell size of each grid, finest first, metres. Each is an even multiple of
            the one before, and each grid must fit inside the next.
    """

    seed: int
    hurst: float = 0.8
    roughness_m: float = 0.05
    crater_density: float = 0.5
    crater_depth: float = 0.16
    rock_density: float = 0.2
    rock_exponent: float = 2.3
    rock_max_m: float = 1.5
    rock_brightness: float = 1.2
    albedo_noise: float = 0.06
    tilt_deg: float = 2.0
    rock_area: float | None = None
    rock_wear: float = 0.0
    rock_form: str = 'heightfield'
    detail_below_m: float = math.inf
    cells: tuple[int, ...] = (2048, 2048, 1024, 512)
    cell_sizes_m: tuple[float, ...] = (0.01, 0.04, 0.32, 2.56)

    def __post_init__(self) -> None:
        if self.rock_form not in ROCK_FORMS:
            raise InputError(
                f'rock form is {self.rock_form!r}; one of {", ".join(ROCK_FORMS)} is needed'
            )
        if not 0 <= self.rock_wear <= 1:
            raise InputError(f'rock wear is {self.rock_wear}; 0 to 1 is needed')
        if self.rock_area is not None and not 0 < self.rock_area < 0.5:
            raise InputError(f'rocks cover {self.rock_area} of the ground; 0 to 0.5 is needed')
        if len(self.cells) != len(self.cell_sizes_m) or not self.cells:
            raise InputError(
                f'terrain has {len(self.cells)} grid sizes and {len(self.cell_sizes_m)} cell '
                'sizes; one of each per grid is needed'
            )
        for cells in self.cells:
            if cells < 2 or cells & (cells - 1):
                raise InputError(f'terrain grid has {cells} cells; a power of two is needed')
        for k in range(len(self.cells) - 1):
            ratio = self.cell_sizes_m[k + 1] / self.cell_sizes_m[k]
            inner = self.cells[k] / ratio
            if abs(ratio - round(ratio)) > 1e-6 or inner % 2 or inner >= self.cells[k + 1]:
                raise InputError(
                    f'terrain grid {k} ({self.cells[k]} cells of {self.cell_sizes_m[k]} m) does '
                    f'not nest in grid {k + 1} ({self.cells[k + 1]} of {self.cell_sizes_m[k + 1]})'
                )


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
        on_cpu: Of a terrain on another device, the same one on the CPU, which knows heights
            without work for the device.
    """

    levels: tuple[GridLevel, ...]
    micro: torch.Tensor
    micro_texel_m: float = _MICRO_TEXEL_M
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
        relief: Gives the vertex heights (N + 1, N + 1) of grid k, metres, that all of it is put
            on; None is flat.
        rock_edge_m: Length of the edges of rocks' triangles near the rover, metres; coarser
            meshes are for tools that cannot bear as many triangles.
    """
    rng = np.random.default_rng([config.seed, 0x7E44A1])
    if config.rock_form == 'mesh':
        check_tracer()
    heights: list[FloatGrid] = []
    albedo: list[FloatGrid] = []
    craters = _sample_craters(config, rng)
    rocks = _sample_rocks(config, rng)
    shapes = _rock_shapes(config, rocks) if config.rock_form == 'mesh' else None
    ground: FloatGrid | None = None
    bright: FloatGrid | None = None
    for k in reversed(range(len(config.cells))):
        cell = config.cell_sizes_m[k]
        waves, detail = _fractal(config, k, rng)
        ground = _inherit(ground, config, k) + waves
        bright = _inherit(bright, config, k) + _albedo_noise(config, k, rng)
        if k == len(config.cells) - 1:
            ground = ground + _tilt(config, rng, ground.shape[0], cell)
        _draw_home_craters(ground, bright, craters, config, k)
        height = ground.copy() if detail is None else ground + detail
        if relief is not None:
            height += relief(k)
        reflectance = 1.0 + bright
        _draw_small_craters(height, craters, config, k)
        if shapes is None:
            _draw_rocks(height, reflectance, rocks, cell, config.rock_wear)
        else:
            _draw_banks(height, shapes, cell, config.rock_wear)
        if heights:
            _join(height, heights[0], config, k)
            _join(reflectance, albedo[0], config, k)
        heights.insert(0, height)
        albedo.insert(0, np.clip(reflectance, 0.3, 2.5).astype(np.float32))
    terrain = terrain_from_heights(heights, list(config.cell_sizes_m), albedo, _micro(config, rng))
    if shapes is None:
        return terrain
    return _with_rocks(terrain, shapes, config.rock_wear, rock_edge_m)


def spline_weights(at: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """Return (M, N) the weights of a cubic B-spline's N coefficients at M places (0..N - 1)."""
    weights = np.zeros((len(at), count))
    whole = np.clip(np.floor(at).astype(int), 0, count - 1)
    t = at - whole
    basis = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    for offset, values in zip((-1, 0, 1, 2), basis, strict=True):
        np.add.at(weights, (np.arange(len(at)), np.clip(whole + offset, 0, count - 1)), values)
    return weights


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


def _spectrum(config: TerrainConfig, wavenumber: torch.Tensor) -> torch.Tensor:
    """Return the power spectral density of the fractal ground, m^4 (var = double integral)."""
    hurst = config.hurst
    integral = 2.0 ** (-2 * hurst - 1) * math.gamma(1 - hurst) / (hurst * math.gamma(1 + hurst))
    scale = config.roughness_m**2 / (4 * math.pi * integral)
    corner = 2 * math.pi / _ROLL_OFF_M
    k = wavenumber.clamp(min=1e-6)
    steep = scale * k ** (-2 * hurst - 2)
    # Beyond the corner wavelength real ground is flatter than the fractal law extrapolates.
    return steep * (1 + (corner / k) ** 2) ** -(hurst - 0.15)


def _filtered_noise(
    side: int,
    cell_m: float,
    rng: np.random.Generator,
    density: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return (side, side) Gaussian noise with a given spectral density (periodic)."""
    white = torch.from_numpy(rng.standard_normal((side, side), dtype=np.float32))
    kx = 2 * math.pi * torch.fft.rfftfreq(side, cell_m)
    ky = 2 * math.pi * torch.fft.fftfreq(side, cell_m)
    k = torch.sqrt(kx[None, :] ** 2 + ky[:, None] ** 2)
    gain = torch.sqrt(density(k)) * (2 * math.pi / cell_m)
    gain[0, 0] = 0.0
    return torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(side, side))


def _band(config: TerrainConfig, k: int, cells: float, above: float) -> tuple[float, float]:
    """Return the wavenumbers (1/m) that grid k adds: down to waves of `cells` of its cells.

    Longer waves than `above` cells of the next coarser grid come from there.
    """
    highest = 2 * math.pi / (cells * config.cell_sizes_m[k])
    longest = 2 * math.pi / config.detail_below_m
    if k == len(config.cells) - 1:
        return longest, highest
    return max(2 * math.pi / (above * config.cell_sizes_m[k + 1]), longest), highest


def _fractal(
    config: TerrainConfig, k: int, rng: np.random.Generator
) -> tuple[FloatGrid, FloatGrid | None]:
    """Return the waves that finer grids inherit from grid k, and the shorter ones it adds itself.

    Interpolation would turn waves near the grid's limit into a pattern aligned with its cells,
    so finer grids make these anew. The finest grid has no second part.
    """
    shortest = _SHORTEST_WAVE_CELLS
    low, high = _band(config, k, _INHERITED_WAVE_CELLS if k else shortest, _INHERITED_WAVE_CELLS)
    cell = config.cell_sizes_m[k]
    ground = _filtered_noise(config.cells[k], cell, rng, _relief_band(config, low, high))
    if k == 0:
        return _wrapped(ground), None
    end = 2 * math.pi / (shortest * cell)
    detail = _filtered_noise(config.cells[k], cell, rng, _relief_band(config, high, end))
    return _wrapped(ground), _wrapped(detail)


def _relief_band(
    config: TerrainConfig, low: float, high: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    def density(wavenumber: torch.Tensor) -> torch.Tensor:
        inside = (wavenumber > low) & (wavenumber <= high)
        return _spectrum(config, wavenumber) * inside

    return density


def _wrapped(noise: torch.Tensor) -> FloatGrid:
    """Return periodic cell values (N, N) as vertex values (N + 1, N + 1)."""
    return nnf.pad(noise[None, None], (0, 1, 0, 1), mode='circular')[0, 0].numpy()


def _albedo_noise(config: TerrainConfig, k: int, rng: np.random.Generator) -> FloatGrid:
    """Return reflectance noise with equal variance per octave from 1 cm to about 20 m."""
    shortest = _INHERITED_WAVE_CELLS if k else _SHORTEST_WAVE_CELLS
    low, high = _band(config, k, shortest, _INHERITED_WAVE_CELLS)
    per_octave = config.albedo_noise**2 / 11.0 / (2 * math.pi * math.log(2.0))

    def density(wavenumber: torch.Tensor) -> torch.Tensor:
        inside = (wavenumber > max(low, 0.3)) & (wavenumber <= high)
        return per_octave * wavenumber.clamp(min=1e-6) ** -2 * inside

    return _wrapped(_filtered_noise(config.cells[k], config.cell_sizes_m[k], rng, density))


def _tilt(config: TerrainConfig, rng: np.random.Generator, side: int, cell_m: float) -> FloatGrid:
    azimuth = rng.uniform(0, 2 * math.pi)
    rise = math.tan(math.radians(config.tilt_deg))
    along = (np.arange(side, dtype=np.float32) - (side - 1) / 2) * cell_m
    return (
        rise * (math.cos(azimuth) * along[None, :] + math.sin(azimuth) * along[:, None])
    ).astype(np.float32)


def _micro(config: TerrainConfig, rng: np.random.Generator) -> torch.Tensor:
    """Return the periodic texture of slopes and albedo below the finest cell size."""
    low = 2 * math.pi / (_SHORTEST_WAVE_CELLS * config.cell_sizes_m[0])
    high = 2 * math.pi / (_SHORTEST_WAVE_CELLS * _MICRO_TEXEL_M)

    def mottle(wavenumber: torch.Tensor) -> torch.Tensor:
        inside = (wavenumber > 0.5 * low) & (wavenumber <= high)
        variance = config.albedo_noise**2 / 11.0 / (2 * math.pi * math.log(2.0))
        return variance * wavenumber.clamp(min=1e-6) ** -2 * inside

    height = _filtered_noise(_MICRO_TEXELS, _MICRO_TEXEL_M, rng, _relief_band(config, low, high))
    slope_x = (torch.roll(height, -1, 1) - torch.roll(height, 1, 1)) / (2 * _MICRO_TEXEL_M)
    slope_y = (torch.roll(height, -1, 0) - torch.roll(height, 1, 0)) / (2 * _MICRO_TEXEL_M)
    grain = 1.0 + _filtered_noise(_MICRO_TEXELS, _MICRO_TEXEL_M, rng, mottle)
    return torch.stack([slope_x, slope_y, grain.clamp(0.5, 1.5)], dim=-1).contiguous()


def _sample_sizes(
    rng: np.random.Generator, count: int, smallest: float, largest: float, exponent: float
) -> NDArray[np.float64]:
    """Return sizes whose cumulative number falls as size^-exponent between two limits."""
    u = rng.random(count)
    low, high = smallest**-exponent, largest**-exponent
    return (low - u * (low - high)) ** (-1.0 / exponent)


def _sample_field(
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
        smallest = 2 * _MIN_RADIUS_CELLS * config.cell_sizes_m[k]
        if smallest >= upper:
            continue
        mean = (count_above(smallest) - count_above(upper)) * (2 * half) ** 2
        count = rng.poisson(max(mean, 0.0))
        sizes = _sample_sizes(rng, count, smallest, upper, exponent)
        fields.append(np.column_stack([rng.uniform(-half, half, (count, 2)), sizes]))
        upper = smallest
    return np.concatenate(fields) if fields else np.zeros((0, 3))


def _sample_craters(config: TerrainConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (N, 8): x, y, radius, depth, rim height, rim width, phase, brightening."""

    def count_above(diameter: float) -> float:
        return config.crater_density * 0.0724 * diameter**-1.83

    largest = min(_LARGEST_CRATER_M, config.detail_below_m)
    field = _sample_field(config, rng, count_above, largest, 1.83)
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


def _draw_home_craters(
    ground: FloatGrid,
    bright: FloatGrid,
    craters: NDArray[np.float64],
    config: TerrainConfig,
    k: int,
) -> None:
    """Draw the craters whose home is grid k, in place; finer grids inherit them."""
    cell = config.cell_sizes_m[k]
    last = k == len(config.cells) - 1
    low = _HOME_RADIUS_CELLS * cell if k > 0 else _MIN_RADIUS_CELLS * cell
    high = math.inf if last else _HOME_RADIUS_CELLS * config.cell_sizes_m[k + 1]
    radius = craters[:, 2]
    for crater in craters[(radius >= low) & (radius < high)]:
        _draw_crater(ground, crater, cell, bright)


def _draw_small_craters(
    height: FloatGrid, craters: NDArray[np.float64], config: TerrainConfig, k: int
) -> None:
    """Draw the craters that are resolved on grid k but belong to a finer grid, in place."""
    if k == 0:
        return
    cell = config.cell_sizes_m[k]
    radius = craters[:, 2]
    chosen = (radius >= _MIN_RADIUS_CELLS * cell) & (radius < _HOME_RADIUS_CELLS * cell)
    for crater in craters[chosen]:
        _draw_crater(height, crater, cell, None)


def _patch(side: int, cell_m: float, x: float, y: float, reach: float) -> tuple[Any, ...] | None:
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


def _draw_crater(
    height: FloatGrid, crater: NDArray[np.float64], cell_m: float, bright: FloatGrid | None
) -> None:
    x, y, radius, depth, rim, width, phase, glow = crater
    patch = _patch(height.shape[0], cell_m, x, y, 2.4 * radius)
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


def _sample_rocks(config: TerrainConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (N, 5): x, y, diameter, seed, brightness."""

    def count_above(diameter: float) -> float:
        return config.rock_density * (diameter / 0.1) ** -config.rock_exponent

    if config.rock_area is None:
        field = _sample_field(config, rng, count_above, config.rock_max_m, config.rock_exponent)
    else:
        field = _golombek_field(config, rng, config.rock_area)
    count = len(field)
    seeds = rng.integers(0, 2**31, count)
    bright = config.rock_brightness * rng.lognormal(0.0, 0.12, count)
    return np.column_stack([field, seeds, bright])


def _golombek_field(
    config: TerrainConfig, rng: np.random.Generator, area: float
) -> NDArray[np.float64]:
    """Return (N, 3) x, y, diameter of rocks that cover the ground as Golombek's law says."""
    steepness = 1.79 + 0.152 / area
    fields = []
    upper = config.rock_max_m
    for k in reversed(range(len(config.cells))):
        half = 0.5 * config.cells[k] * config.cell_sizes_m[k]
        smallest = 2 * _MIN_RADIUS_CELLS * config.cell_sizes_m[k]
        if smallest >= upper:
            continue
        # Number per area and diameter: the covered area's density over the area of one rock.
        edges = np.geomspace(smallest, upper, 257)
        middle = np.sqrt(edges[1:] * edges[:-1])
        covered = area * steepness * np.exp(-steepness * middle) * np.diff(edges)
        counts = rng.poisson(covered / (0.25 * math.pi * middle**2) * (2 * half) ** 2)
        sizes = np.repeat(middle, counts)
        places = rng.uniform(-half, half, (len(sizes), 2))
        fields.append(np.column_stack([places, sizes]))
        upper = smallest
    return np.concatenate(fields) if fields else np.zeros((0, 3))


def _draw_rocks(
    height: FloatGrid, albedo: FloatGrid, rocks: NDArray[np.float64], cell_m: float, wear: float
) -> None:
    """Put every rock that this grid resolves onto the surface, in place.

    A rock is an ellipsoid cut by random planes and sunk into the ground; its upper surface is
    the lowest of the planes, with a little roughness.
    """
    side = height.shape[0]
    half = 0.5 * (side - 1) * cell_m
    for x, y, diameter, seed, bright in rocks[rocks[:, 2] >= 2 * _MIN_RADIUS_CELLS * cell_m]:
        patch = _patch(side, cell_m, x, y, 0.9 * diameter)
        if patch is None or abs(x) > half or abs(y) > half:
            continue
        rows, columns, dx, dy = patch
        rng = np.random.default_rng(int(seed))
        base = height[round((y + half) / cell_m), round((x + half) / cell_m)]
        ground = height[rows, columns]
        if wear > 0:
            top, colour = _worn_rock(rng, diameter, dx, dy, cell_m, wear)
            top += base
            inside = top > ground
            bank = 0.07 * wear * diameter
            meeting = np.clip(bank - np.abs(top - ground), 0, None)
            ground[:] = np.maximum(top, ground) + meeting**2 / (4 * bank)
            # Dust lies on old rocks: they differ less from the soil.
            albedo[rows, columns][inside] = (1 + (1 - 0.5 * wear) * (bright - 1)) * colour[inside]
            continue
        top = np.full((dy.shape[0], dx.shape[1]), np.inf, np.float32)
        for px, py, offset in _rock_planes(rng, diameter, (6, 10), (4, 9)):
            np.minimum(top, offset + px * dx + py * dy, out=top)
        top += base + _rock_roughness(rng, diameter, dx, dy)
        inside = top > ground
        ground[inside] = top[inside]
        albedo[rows, columns][inside] = bright


def _rock_shapes(config: TerrainConfig, rocks: NDArray[np.float64]) -> RockShapes:
    """Return the shapes of the rocks that are on the terrain."""
    half = 0.5 * config.cells[-1] * config.cell_sizes_m[-1]
    inside = (np.abs(rocks[:, :2]) < half).all(axis=1)
    # From a generator of their own, so that the rest of the ground is the same in both forms.
    rng = np.random.default_rng([config.seed, 0x40C5])
    return sample_shapes(rocks[inside][:, [0, 1, 2, 4]], rng)


def _draw_banks(height: FloatGrid, shapes: RockShapes, cell_m: float, wear: float) -> None:
    """Put the soil that lies against rocks which this grid resolves onto the surface, in place."""
    for number in np.flatnonzero(shapes.place[:, 2] >= 2 * _MIN_RADIUS_CELLS * cell_m):
        x, y, diameter = shapes.place[number, :3]
        patch = _patch(height.shape[0], cell_m, x, y, 1.1 * diameter)
        if patch is not None:
            rows, columns, dx, dy = patch
            height[rows, columns] += shapes.bank(int(number), dx, dy, wear)


def _with_rocks(terrain: Terrain, shapes: RockShapes, wear: float, edge_m: float) -> Terrain:
    """Return the terrain with rocks as meshes, which lie in the soil that is banked at them."""
    x, y = (torch.from_numpy(shapes.place[:, k]).float() for k in (0, 1))
    ground = terrain.ground_at(x, y).double().numpy() - bank_height(shapes.place[:, 2], wear)
    reach = terrain.levels[0].half_size_m
    return replace(terrain, rocks=make_rock_meshes(shapes, ground, wear, reach, edge_m))


def _worn_rock(
    rng: np.random.Generator,
    diameter: float,
    dx: FloatGrid,
    dy: FloatGrid,
    cell_m: float,
    wear: float,
) -> tuple[FloatGrid, FloatGrid]:
    """Return height (metres, over the ground at its middle) and reflectance of a worn rock."""
    planes = np.array(_rock_planes(rng, diameter, (7, 12), (9, 16)), np.float32)
    faces = (
        planes[:, 2, None, None] + planes[:, 0, None, None] * dx + planes[:, 1, None, None] * dy
    )
    # A soft minimum rounds the edges.
    softness = np.float32(0.035 * wear * diameter)
    lowest = faces.min(axis=0)
    top = lowest - softness * np.log(np.exp((lowest - faces) / softness).sum(axis=0))
    colour = np.ones_like(top)
    # Waves from a third of the rock down to some cells, each octave lower than the one before.
    waves, amplitude = 6, 0.06 * diameter
    while 1.8 * diameter / waves > 2 * cell_m and waves <= 96:
        lattice = rng.standard_normal((2, waves, waves))
        at_x, at_y = ((v.ravel() / (1.8 * diameter) + 0.5) * (waves - 1) for v in (dx, dy))
        across, down = spline_weights(at_x, waves), spline_weights(at_y, waves)
        top += (amplitude * down @ lattice[0] @ across.T).astype(np.float32)
        colour += (0.1 * down @ lattice[1] @ across.T).astype(np.float32)
        waves, amplitude = 2 * waves, 0.6 * amplitude
    return top, colour


def _rock_planes(
    rng: np.random.Generator,
    diameter: float,
    flank_range: tuple[int, int],
    cap_range: tuple[int, int],
) -> list[tuple[float, float, float]]:
    """Return planes z = offset + px * dx + py * dy of a partly buried angular rock, metres.

    No face is steeper than about 72 degrees: a heightfield would show its cells there.
    """
    flanks, caps = int(rng.integers(*flank_range)), int(rng.integers(*cap_range))
    around = (np.arange(flanks) + rng.uniform(-0.4, 0.4, flanks)) * 2 * math.pi / flanks
    azimuths = np.concatenate([around, rng.uniform(0, 2 * math.pi, caps)])
    rises = np.radians(np.concatenate([rng.uniform(18, 45, flanks), rng.uniform(40, 88, caps)]))
    half = 0.5 * diameter * np.array([1.0, rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.05)])
    turn = rng.uniform(0, 2 * math.pi)
    center = half[2] * rng.uniform(-0.35, 0.45)
    normals = np.column_stack(
        [np.cos(rises) * np.cos(azimuths), np.cos(rises) * np.sin(azimuths), np.sin(rises)]
    )
    # Distance of a plane from the centre: where it would touch the ellipsoid, or a bit deeper.
    reach = np.linalg.norm(normals * half, axis=1) * rng.uniform(0.78, 1.0, len(normals))
    nx = normals[:, 0] * math.cos(turn) - normals[:, 1] * math.sin(turn)
    ny = normals[:, 0] * math.sin(turn) + normals[:, 1] * math.cos(turn)
    nz = normals[:, 2]
    return list(zip(-nx / nz, -ny / nz, reach / nz + center, strict=True))


def _rock_roughness(
    rng: np.random.Generator, diameter: float, dx: FloatGrid, dy: FloatGrid
) -> FloatGrid:
    """Return small undulations of a rock's faces, metres."""
    rough = np.zeros((dy.shape[0], dx.shape[1]), np.float32)
    for scale in (0.45, 0.22, 0.12):
        angle, phase = rng.uniform(0, 2 * math.pi, 2)
        k = 2 * math.pi / (scale * diameter * rng.uniform(0.7, 1.3))
        wave = np.sin(k * (math.cos(angle) * dx + math.sin(angle) * dy) + phase)
        rough += np.float32(0.014 * scale * diameter) * wave
    return rough
