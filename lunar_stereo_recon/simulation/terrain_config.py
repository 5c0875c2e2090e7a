"""What a terrain is made of: its ground, craters, rocks and grids, as one set of options."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError

FloatGrid = NDArray[np.float32]
# How rocks are made: as part of the heightfield, or as meshes with overhangs.
ROCK_FORMS = ('heightfield', 'mesh')


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
