"""Shape and statistics of the random terrain."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import terrain as terrain_module  # noqa: E402
from lunar_stereo_recon.simulation.terrain import (  # noqa: E402
    make_terrain,
    terrain_from_heights,
    TerrainConfig,
)


def config(seed: int, **changes) -> TerrainConfig:
    values = {'cells': (256, 256, 128), 'cell_sizes_m': (0.02, 0.08, 0.64)}
    return TerrainConfig(seed, **{**values, **changes})


def bare(seed: int, **changes) -> TerrainConfig:
    """Return ground without craters, rocks and tilt."""
    return config(seed, crater_density=0.0, rock_density=0.0, tilt_deg=0.0, **changes)


def heights(terrain, level: int) -> np.ndarray:
    side = terrain.levels[level].cells + 1
    return terrain.levels[level].heights.reshape(side, side).numpy()


def test_same_seed_same_ground(small_terrain):
    again = make_terrain(config(5, rock_density=0.4))
    other = make_terrain(config(6, rock_density=0.4))
    assert torch.equal(small_terrain.levels[0].surface, again.levels[0].surface)
    assert torch.equal(small_terrain.micro, again.micro)
    assert not torch.allclose(small_terrain.levels[0].heights, other.levels[0].heights)


def test_grids_meet_without_cracks(small_terrain):
    for fine, coarse in zip(small_terrain.levels, small_terrain.levels[1:], strict=False):
        edge = torch.linspace(-fine.half_size_m, fine.half_size_m, 501)
        side = torch.full_like(edge, fine.half_size_m)
        for x, y in ((edge, side), (edge, -side), (side, edge), (-side, edge)):
            inner = small_terrain.height_at(x, y)
            index = ((x - coarse.origin_m) / coarse.cell_m, (y - coarse.origin_m) / coarse.cell_m)
            values = coarse.heights.reshape(coarse.cells + 1, -1)
            ix, iy = (i.long().clamp(max=coarse.cells - 1) for i in index)
            fx, fy = index[0] - ix, index[1] - iy
            low = values[iy, ix] * (1 - fx) + values[iy, ix + 1] * fx
            high = values[iy + 1, ix] * (1 - fx) + values[iy + 1, ix + 1] * fx
            torch.testing.assert_close(inner, low * (1 - fy) + high * fy, atol=2e-5, rtol=0)


def test_pyramid_is_never_below_the_ground(small_terrain):
    for number, level in enumerate(small_terrain.levels):
        ground = heights(small_terrain, number)
        for mip, offset in enumerate(level.offsets):
            count = level.cells >> mip
            tops = level.maxima[offset : offset + count * count].reshape(count, count).numpy()
            step = 1 << mip
            for row, column in ((0, 0), (count // 2, count // 3), (count - 1, count - 1)):
                block = ground[
                    row * step : (row + 1) * step + 1, column * step : (column + 1) * step + 1
                ]
                assert tops[row, column] == block.max()


@pytest.mark.parametrize('roughness', [0.02, 0.06])
def test_roughness_is_the_height_difference_at_one_metre(roughness):
    found = []
    for seed in range(3):
        ground = heights(make_terrain(bare(seed, roughness_m=roughness)), 1)
        step = round(1.0 / 0.08)
        across, along = ground[:, step:] - ground[:, :-step], ground[step:] - ground[:-step]
        found += [np.mean(across**2), np.mean(along**2)]
    assert np.sqrt(np.mean(found)) == pytest.approx(roughness, rel=0.3)


def test_hurst_exponent_sets_how_slopes_grow():
    """Rougher at small scale for a smaller exponent, with the same relief at one metre."""
    rough, smooth = (make_terrain(bare(1, hurst=hurst)) for hurst in (0.6, 0.9))
    slopes = [np.diff(heights(ground, 0), axis=1).std() for ground in (rough, smooth)]
    assert slopes[0] > 1.5 * slopes[1]


def test_rocks_and_craters_change_the_ground():
    flat = {'roughness_m': 1e-4, 'tilt_deg': 0.0}
    rocky = make_terrain(config(3, rock_density=2.0, crater_density=0.0, **flat))
    cratered = make_terrain(config(3, rock_density=0.0, crater_density=1.0, **flat))
    stones = heights(rocky, 0)
    assert stones.max() > 0.04 and stones.min() > -0.01
    bright = rocky.levels[0].surface[:, 3].reshape(stones.shape).numpy()
    assert bright[stones > 0.03].mean() > 1.1 * bright[stones < 0.001].mean()
    pits = heights(cratered, 0)
    assert pits.min() < -0.01 and abs(pits.min()) > pits.max()


def test_rock_sizes_follow_the_power_law():
    made = terrain_module._sample_rocks(
        TerrainConfig(0, rock_density=0.5), np.random.default_rng(0)
    )
    near = made[(np.abs(made[:, 0]) < 10.24) & (np.abs(made[:, 1]) < 10.24), 2]
    area = 20.48**2
    for diameter in (0.05, 0.1, 0.2):
        expected = 0.5 * (diameter / 0.1) ** -2.3 * area
        assert (near > diameter).sum() == pytest.approx(expected, rel=0.25)


def test_wrong_grids_are_refused():
    with pytest.raises(InputError, match='power of two'):
        TerrainConfig(0, cells=(100,), cell_sizes_m=(0.1,))
    with pytest.raises(InputError, match='does not nest'):
        TerrainConfig(0, cells=(64, 64), cell_sizes_m=(0.1, 0.1))
    with pytest.raises(InputError, match='one of each'):
        TerrainConfig(0, cells=(64, 64), cell_sizes_m=(0.1,))
    with pytest.raises(InputError, match=r'\(5, 6\)'):
        terrain_from_heights([np.zeros((5, 6), np.float32)], [0.1])


def test_no_ripple_with_the_period_of_the_coarser_cells():
    """Low sun would show it on smooth ground."""
    grids = config(0)
    x = np.arange(257) - 128.0
    coarse = np.repeat(np.sin(2 * np.pi * x / 9.3)[None, :], 257, axis=0).astype(np.float32)

    def ripple(fine: np.ndarray) -> float:
        """Return the power of slopes at waves of 0.7 to 1.4 coarse cells, of all power."""
        slopes = np.diff(fine[128, 16:-16].astype(float))
        power = np.abs(np.fft.rfft(slopes * np.blackman(len(slopes)))) ** 2
        waves = 1.0 / np.maximum(np.fft.rfftfreq(len(slopes), 0.25), 1e-9)
        return power[(waves > 0.7) & (waves < 1.4)].sum() / power.sum()

    plain = terrain_module._resample(coarse, grids, 0, 'bicubic')
    smooth = terrain_module._inherit(coarse, grids, 0)
    assert ripple(smooth) < 0.1 * ripple(plain)
    exact = np.sin(2 * np.pi * (np.arange(257) - 128.0) / 4 / 9.3)
    assert np.abs(smooth[128] - exact)[8:-8].max() < 0.05


def test_rocks_cover_the_ground_as_golombek_says():
    area = 0.08
    grids = {'cells': (512, 256), 'cell_sizes_m': (0.02, 0.08)}
    fields = [
        terrain_module._sample_rocks(
            config(seed, rock_area=area, **grids), np.random.default_rng(seed)
        )
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
        config(1, rock_area=0.7)


def crater_rows(**changes) -> np.ndarray:
    wide = {'cells': (1024, 512, 256), 'cell_sizes_m': (0.02, 0.16, 1.28), **changes}
    return terrain_module._sample_craters(config(0, **wide), np.random.default_rng(0))


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
    terrain_module._draw_crater(
        ground, np.array([0.0, 0.0, 1.0, 0.4, 0.08, 0.3, 0.0, 0.1]), 0.01, bright
    )
    assert ground[200, 200] == pytest.approx(-0.4, abs=0.01)
    profile = ground[200, 200:]
    assert 0.07 < profile.max() < 0.09 and 0.8 < profile.argmax() * 0.01 < 1.2
    # Ejecta thin out beyond the rim, and brighten the ground around.
    assert (np.diff(profile[profile.argmax() :]) <= 1e-6).all()
    assert abs(profile[-1]) < 0.03 * profile.max()
    assert bright[200, 200] > 0.09 and bright[200, 320] > 0.02 > bright[200, 399]


def test_slope_of_the_site():
    flat = {'crater_density': 0.0, 'rock_density': 0.0, 'roughness_m': 1e-5}
    ground = heights(make_terrain(config(4, tilt_deg=7.5, **flat)), 2)
    step_y, step_x = np.gradient(ground, 0.64)
    slope = np.degrees(np.arctan(np.hypot(step_x.mean(), step_y.mean())))
    assert slope == pytest.approx(7.5, abs=0.05)
