"""Elevation models: true to the file, smooth between its cells, and clear about bad files."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation.dem import Dem, dem_terrain, read_dem  # noqa: E402
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig  # noqa: E402

CELL_M = 2.0
GRIDS = {'cells': (256, 128, 64), 'cell_sizes_m': (0.04, 0.16, 1.28)}
BARE = TerrainConfig(
    1, roughness_m=1e-6, crater_density=0.0, rock_density=0.0, tilt_deg=9.0, **GRIDS
)
POLAR = (
    'PROJCS["Moon south",GEOGCS["Moon",DATUM["Moon",SPHEROID["Moon",1737400,0]],'
    'PRIMEM["Reference meridian",0],UNIT["degree",0.0174532925199433]],'
    'PROJECTION["Polar_Stereographic"],PARAMETER["latitude_of_origin",-90],'
    'PARAMETER["central_meridian",0],PARAMETER["scale_factor",1],PARAMETER["false_easting",0],'
    'PARAMETER["false_northing",0],UNIT["metre",1]]'
)


def height(x, y):
    return 1000.0 + 3 * np.sin(x / 25) + 2 * np.cos(y / 18) + 0.02 * x


@pytest.fixture
def model() -> np.ndarray:
    """(301, 301) heights, 600 m wide, row 0 in the north."""
    along = (np.arange(301) - 150) * CELL_M
    return height(along[None, :], -along[:, None]).astype(np.float32)


@pytest.fixture
def write_raster(tmp_path):
    """Return a function that writes a GeoTIFF whose middle is at easting 40 km, northing 30 km."""
    rasterio = pytest.importorskip('rasterio')

    def write(heights, crs=POLAR, step=(CELL_M, CELL_M), **profile):
        left, top = 40_000 - 0.5 * heights.shape[1] * step[0], 30_000 + 150.5 * step[1]
        path = tmp_path / 'dem.tif'
        shape = {'height': heights.shape[0], 'width': heights.shape[1], 'count': 1}
        place = rasterio.Affine(step[0], 0, left, 0, -step[1], top)
        options = {'driver': 'GTiff', 'dtype': heights.dtype, 'crs': crs, 'transform': place}
        with rasterio.open(path, 'w', **shape, **{**options, **profile}) as raster:
            raster.write(heights, 1)
        return path

    return write


def test_terrain_has_the_shape_of_the_model(model):
    terrain = dem_terrain(Dem(model, CELL_M), BARE)
    # The three grids, and coarser ones as far as the model reaches: 8 * 1.28 m does not fit.
    assert [level.cell_m for level in terrain.levels] == [0.04, 0.16, 1.28]
    rng = np.random.default_rng(0)
    for reach, error in ((5.0, 2e-3), (10.0, 3e-3), (40.0, 1e-2)):
        x, y = rng.uniform(-reach, reach, (2, 500))
        got = terrain.height_at(torch.from_numpy(x).float(), torch.from_numpy(y).float())
        np.testing.assert_allclose(got, height(x, y) - height(0, 0), atol=error)


def test_no_ripple_with_the_period_of_the_models_cells():
    """Curvature that jumps at the model's heights is what low sun shows as ripples."""
    heights = np.random.default_rng(0).normal(0, 0.3, (301, 301)).astype(np.float32)
    terrain = dem_terrain(Dem(heights, CELL_M), BARE)
    side = terrain.levels[0].cells + 1
    rows = terrain.levels[0].heights.reshape(side, side)[40:-40:8, 40:-40].double().numpy()
    curvature = (rows[:, 4:] - 2 * rows[:, 2:-2] + rows[:, :-4]) / 0.08**2
    assert np.abs(curvature).max() > 0.3
    assert np.abs(np.diff(curvature)).max() < 0.1 * np.abs(curvature).max()


def test_grids_reach_as_far_as_the_model():
    heights = np.zeros((400, 400), np.float32)
    terrain = dem_terrain(Dem(heights, 40.0), BARE)
    assert [level.cell_m for level in terrain.levels] == [0.04, 0.16, 1.28, 10.24]
    assert terrain.levels[-1].half_size_m == pytest.approx(2621.44)
    # Level ground follows the Moon's sphere: 2358 m away is the horizon of eyes at 1.6 m.
    far = float(terrain.height_at(torch.tensor([2358.0]), torch.tensor([0.0]))[0])
    assert far == pytest.approx(-1.6, abs=0.01)


def test_averaging_keeps_its_place():
    """Of a model finer than a grid, blocks are averaged; a slope must stay where it is."""
    along = np.arange(700) * 0.5
    heights = np.broadcast_to((0.1 * along)[None, :], (701, 700)).astype(np.float32)
    terrain = dem_terrain(Dem(heights, 0.5), BARE)
    x = torch.tensor([3.0, 9.0, 35.0])
    got = terrain.height_at(x, torch.zeros(3))
    np.testing.assert_allclose(got, 0.1 * x, atol=3e-3)


def test_synthetic_detail_is_below_the_resolution(model):
    config = TerrainConfig(1, roughness_m=0.05, rock_density=0.3, tilt_deg=9.0, **GRIDS)
    plain, rough = (dem_terrain(Dem(model, CELL_M), c) for c in (BARE, config))
    side = plain.levels[1].cells + 1
    added = (rough.levels[1].heights - plain.levels[1].heights).reshape(side, side)
    assert 0.01 < float(added.std()) < 0.3
    # Averaged over more than the resolution (6 m) hardly anything is left.
    means = torch.nn.functional.avg_pool2d(added[None, None], 60)
    assert float(means.abs().max()) < 0.1
    assert rough.levels[0].surface[:, 3].std() > 0


def test_raster_is_read_with_its_place_on_the_moon(model, write_raster):
    scaled = np.round((model - 900) * 100).astype(np.uint16)
    path = write_raster(scaled)
    import rasterio

    with rasterio.open(path, 'r+') as raster:
        raster.scales, raster.offsets = (0.01,), (900.0,)
    dem = read_dem(path)
    assert dem.cell_m == CELL_M and dem.heights.shape == model.shape
    np.testing.assert_allclose(dem.heights, model, atol=6e-3)
    # 50 km from the south pole on the sphere; the projection's grid points to longitude 0.
    assert dem.latitude_deg == pytest.approx(-90 + np.degrees(50_000 / 1_737_400), abs=1e-3)
    assert dem.longitude_deg == pytest.approx(np.degrees(np.arctan2(40, 30)), abs=0.01)
    assert dem.north_deg == pytest.approx(np.degrees(np.arctan2(30, 40)), abs=0.1)
    part = read_dem(path, center_m=(100.0, -60.0), reach_m=50.0)
    assert part.heights.shape == (51, 51)
    np.testing.assert_allclose(part.heights[25, 25], height(100, -60), atol=0.02)


def test_numpy_needs_a_scale(model, tmp_path):
    path = tmp_path / 'dem.npy'
    np.save(path, model)
    with pytest.raises(InputError, match='dem.npy has no scale; metres per cell'):
        read_dem(path)
    np.testing.assert_array_equal(read_dem(path, CELL_M).heights, model)
    with pytest.raises(InputError, match='0.0 metres per cell'):
        Dem(model, 0.0)
    np.save(path, np.zeros((3, 4, 5)))
    with pytest.raises(InputError, match=r'\(3, 4, 5\)'):
        read_dem(path, 1.0)


def test_bad_rasters(model, write_raster, tmp_path):
    with pytest.raises(InputError, match='in degrees, not projected'):
        read_dem(write_raster(model, 'GEOGCS["Moon",DATUM["D",SPHEROID["S",1737400,0]]]'))
    with pytest.raises(InputError, match='has no scale'):
        read_dem(write_raster(model, None))
    with pytest.raises(InputError, match='cells of 2 by 3'):
        read_dem(write_raster(model, step=(2.0, 3.0)))
    with pytest.raises(InputError, match='no elevation model at'):
        read_dem(tmp_path / 'none.tif')
    (tmp_path / 'text.tif').write_text('not a raster')
    with pytest.raises(InputError, match='GDAL cannot read it'):
        read_dem(tmp_path / 'text.tif')
    with pytest.raises(InputError, match='9000 m east'):
        read_dem(write_raster(model), center_m=(9000.0, 0.0))


def test_holes_and_small_models(model, write_raster):
    model[152, 147] = -32768
    dem = read_dem(write_raster(model, nodata=-32768.0))
    with pytest.raises(InputError, match='1 of .* holes, -6 m east and -4 m north'):
        dem_terrain(dem, BARE)
    with pytest.raises(InputError, match='reaches 3 m .* needs 5.12 m'):
        dem_terrain(Dem(np.zeros((4, 4), np.float32), CELL_M), BARE)
