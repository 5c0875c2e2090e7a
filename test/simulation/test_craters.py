"""How many craters there are, of which age, and how each shapes the ground."""

from __future__ import annotations

import numpy as np
import pytest

from lunar_stereo_recon.simulation.craters import draw_crater, sample_craters
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig


def crater_rows(**changes) -> np.ndarray:
    wide = {'cells': (1024, 512, 256), 'cell_sizes_m': (0.02, 0.16, 1.28), **changes}
    return sample_craters(TerrainConfig(0, **wide), np.random.default_rng(0))


def test_craters_follow_their_size_frequency():
    """Larger than D on a square metre: a density times 0.0724 D^-1.83."""
    craters = crater_rows(crater_density=0.8)
    near = craters[(np.abs(craters[:, :2]) < 10.24).all(1)]
    for diameter in (0.1, 0.3, 0.8):
        expected = 0.8 * 0.0724 * diameter**-1.83 * 20.48**2
        assert (2 * near[:, 2] > diameter).sum() == pytest.approx(expected, rel=0.3)
    assert 2 * craters[:, 2].max() <= 120


def test_old_craters_are_shallow_and_fresh_ones_bright():
    craters = crater_rows(crater_density=1.0, crater_depth=0.2)
    radius, depth, rim, width, bright = craters[:, [2, 3, 4, 5, 7]].T
    ratio = depth / (2 * radius)
    # None deeper than fresh ones; the metre-sized of the Moon are mostly old.
    small = radius < 2
    assert 0.15 < ratio[small].max() <= 0.2 + 0.02 and 0.03 < np.median(ratio[small]) < 0.1
    fresh = ratio > np.quantile(ratio[small], 0.95)
    old = ratio < np.quantile(ratio[small], 0.3)
    # Rims of a tenth to a quarter of the depth: sharper, higher and brighter where fresh.
    assert (rim / depth).min() >= 0.099 and (rim / depth).max() <= 0.251
    assert (rim / depth)[fresh & small].mean() > 1.4 * (rim / depth)[old & small].mean()
    assert width[fresh & small].mean() < width[old & small].mean()
    assert bright[fresh & small].mean() > 10 * bright[old & small].mean()


def test_a_crater_has_its_depth_and_a_rim_that_fades():
    ground = np.zeros((401, 401), np.float32)
    bright = np.zeros_like(ground)
    draw_crater(ground, np.array([0.0, 0.0, 1.0, 0.4, 0.08, 0.3, 0.0, 0.1]), 0.01, bright)
    assert ground[200, 200] == pytest.approx(-0.4, abs=0.01)
    profile = ground[200, 200:]
    assert 0.07 < profile.max() < 0.09 and 0.8 < profile.argmax() * 0.01 < 1.2
    # Ejecta thin out beyond the rim, and brighten the ground around.
    assert (np.diff(profile[profile.argmax() :]) <= 1e-6).all()
    assert abs(profile[-1]) < 0.03 * profile.max()
    assert bright[200, 200] > 0.09 and bright[200, 320] > 0.02 > bright[200, 399]
