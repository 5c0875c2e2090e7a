"""Sizes of the rocks of a heightfield."""

from __future__ import annotations

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.heightfield_rocks import sample_rocks
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig


def test_rock_sizes_follow_the_power_law():
    made = sample_rocks(TerrainConfig(0, rock_density=0.5), np.random.default_rng(0))
    near = made[(np.abs(made[:, 0]) < 10.24) & (np.abs(made[:, 1]) < 10.24), 2]
    area = 20.48**2
    for diameter in (0.05, 0.1, 0.2):
        expected = 0.5 * (diameter / 0.1) ** -2.3 * area
        assert (near > diameter).sum() == pytest.approx(expected, rel=0.25)


def test_rocks_cover_the_ground_as_golombek_says():
    area = 0.08
    grids = {'cells': (512, 256), 'cell_sizes_m': (0.02, 0.08)}
    fields = [
        sample_rocks(TerrainConfig(seed, rock_area=area, **grids), np.random.default_rng(seed))
        for seed in range(20)
    ]
    steepness = 1.79 + 0.152 / area
    for low, high in ((0.1, 0.3), (0.4, 1.0)):
        # The finest grid resolves all of them, on its 10.24 m; the coarser one from 0.32 m on.
        covered = []
        for rocks in fields:
            half = 5.12 if high < 0.32 else 10.24
            inside = (np.abs(rocks[:, :2]) < half).all(1)
            sizes = rocks[inside & (rocks[:, 2] >= low) & (rocks[:, 2] < high), 2]
            covered.append((0.25 * np.pi * sizes**2).sum() / (2 * half) ** 2)
        expected = area * (np.exp(-steepness * low) - np.exp(-steepness * high))
        assert np.mean(covered) == pytest.approx(expected, rel=0.15)
    with pytest.raises(InputError, match='rocks cover 0.7'):
        TerrainConfig(1, rock_area=0.7)
