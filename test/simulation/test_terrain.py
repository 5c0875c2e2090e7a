"""Shape and statistics of the random terrain."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import terrain as terrain_module  # noqa: E402
from lunar_stereo_recon.simulation.terrain import make_terrain, terrain_from_heights  # noqa: E402
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig  # noqa: E402


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


def test_slope_of_the_site():
    flat = {'crater_density': 0.0, 'rock_density': 0.0, 'roughness_m': 1e-5}
    ground = heights(make_terrain(config(4, tilt_deg=7.5, **flat)), 2)
    step_y, step_x = np.gradient(ground, 0.64)
    slope = np.degrees(np.arctan(np.hypot(step_x.mean(), step_y.mean())))
    assert slope == pytest.approx(7.5, abs=0.05)
