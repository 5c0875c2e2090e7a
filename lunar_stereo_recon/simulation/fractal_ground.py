"""The fractal part of the ground, by spectra: height, albedo, and a texture finer than cells."""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
import torch
import torch.nn.functional as nnf

from lunar_stereo_recon.simulation.terrain_config import FloatGrid, TerrainConfig

# Shortest waves that a grid holds, and those that finer grids take over from it (cells).
_SHORTEST_WAVE_CELLS = 3.0
_INHERITED_WAVE_CELLS = 7.0
# Wavelength above which the fractal ground grows more slowly (metres).
_ROLL_OFF_M = 12.0
_MICRO_TEXELS = 1024
MICRO_TEXEL_M = 0.0025


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


def fractal_ground(
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


def albedo_noise(config: TerrainConfig, k: int, rng: np.random.Generator) -> FloatGrid:
    """Return reflectance noise with equal variance per octave from 1 cm to about 20 m."""
    shortest = _INHERITED_WAVE_CELLS if k else _SHORTEST_WAVE_CELLS
    low, high = _band(config, k, shortest, _INHERITED_WAVE_CELLS)
    per_octave = config.albedo_noise**2 / 11.0 / (2 * math.pi * math.log(2.0))

    def density(wavenumber: torch.Tensor) -> torch.Tensor:
        inside = (wavenumber > max(low, 0.3)) & (wavenumber <= high)
        return per_octave * wavenumber.clamp(min=1e-6) ** -2 * inside

    return _wrapped(_filtered_noise(config.cells[k], config.cell_sizes_m[k], rng, density))


def tilt(config: TerrainConfig, rng: np.random.Generator, side: int, cell_m: float) -> FloatGrid:
    """Return heights of a plane with the site's slope, in a random direction, metres."""
    azimuth = rng.uniform(0, 2 * math.pi)
    rise = math.tan(math.radians(config.tilt_deg))
    along = (np.arange(side, dtype=np.float32) - (side - 1) / 2) * cell_m
    return (
        rise * (math.cos(azimuth) * along[None, :] + math.sin(azimuth) * along[:, None])
    ).astype(np.float32)


def micro_texture(config: TerrainConfig, rng: np.random.Generator) -> torch.Tensor:
    """Return the periodic texture of slopes and albedo below the finest cell size."""
    low = 2 * math.pi / (_SHORTEST_WAVE_CELLS * config.cell_sizes_m[0])
    high = 2 * math.pi / (_SHORTEST_WAVE_CELLS * MICRO_TEXEL_M)

    def mottle(wavenumber: torch.Tensor) -> torch.Tensor:
        inside = (wavenumber > 0.5 * low) & (wavenumber <= high)
        variance = config.albedo_noise**2 / 11.0 / (2 * math.pi * math.log(2.0))
        return variance * wavenumber.clamp(min=1e-6) ** -2 * inside

    height = _filtered_noise(_MICRO_TEXELS, MICRO_TEXEL_M, rng, _relief_band(config, low, high))
    slope_x = (torch.roll(height, -1, 1) - torch.roll(height, 1, 1)) / (2 * MICRO_TEXEL_M)
    slope_y = (torch.roll(height, -1, 0) - torch.roll(height, 1, 0)) / (2 * MICRO_TEXEL_M)
    grain = 1.0 + _filtered_noise(_MICRO_TEXELS, MICRO_TEXEL_M, rng, mottle)
    return torch.stack([slope_x, slope_y, grain.clamp(0.5, 1.5)], dim=-1).contiguous()
