"""Rocks as part of a heightfield: how many of which size, and how each is drawn on a grid.

Rocks with overhangs are in `rock_mesh.py`; their places and sizes come from here, too.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.simulation.scatter import MIN_RADIUS_CELLS, patch_around, sample_field
from lunar_stereo_recon.simulation.splines import spline_weights
from lunar_stereo_recon.simulation.terrain_config import FloatGrid, TerrainConfig


def sample_rocks(config: TerrainConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (N, 5): x, y, diameter, seed, brightness."""

    def count_above(diameter: float) -> float:
        return config.rock_density * (diameter / 0.1) ** -config.rock_exponent

    if config.rock_area is None:
        field = sample_field(config, rng, count_above, config.rock_max_m, config.rock_exponent)
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
        smallest = 2 * MIN_RADIUS_CELLS * config.cell_sizes_m[k]
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


def draw_rocks(
    height: FloatGrid, albedo: FloatGrid, rocks: NDArray[np.float64], cell_m: float, wear: float
) -> None:
    """Put every rock that this grid resolves onto the surface, in place.

    A rock is an ellipsoid cut by random planes and sunk into the ground; its upper surface is
    the lowest of the planes, with a little roughness.
    """
    side = height.shape[0]
    half = 0.5 * (side - 1) * cell_m
    for x, y, diameter, seed, bright in rocks[rocks[:, 2] >= 2 * MIN_RADIUS_CELLS * cell_m]:
        patch = patch_around(side, cell_m, x, y, 0.9 * diameter)
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
