"""Small terrains with known shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.simulation import camera, scene, terrain, terrain_config  # noqa: E402

CELLS, CELL_M = 64, 0.125


@pytest.fixture
def shaped_terrain() -> Callable[..., terrain.Terrain]:
    """Return a function that makes an 8 m square terrain from a height function of x and y."""

    def make(height) -> terrain.Terrain:
        along = (np.arange(CELLS + 1) - CELLS / 2) * CELL_M
        x, y = np.meshgrid(along, along)
        values = np.broadcast_to(height(x, y), x.shape).astype(np.float32)
        return terrain.terrain_from_heights([values], [CELL_M])

    return make


@pytest.fixture
def view_from() -> Callable[..., scene.View]:
    """Return a function that places a 64x48 camera; heading along +x, 30 degrees down."""

    def make(position=(-2.0, 0.0, 1.5), pitch_deg=-30.0, heading_deg=0.0, size=(64, 48)):
        width, height = size
        rotation = camera.camera_rotation(np.radians(heading_deg), np.radians(pitch_deg), 0.0)
        focal = 50.0 * width / 64
        center = ((width - 1) / 2, (height - 1) / 2)
        return scene.View(torch.tensor(position), rotation, focal, focal, *center, width, height)

    return make


@pytest.fixture(scope='session')
def small_terrain() -> terrain.Terrain:
    """Return a random terrain of three small grids: 5 m, 20 m and 82 m wide."""
    return terrain.make_terrain(small_config(5))


def small_config(seed: int, **changes) -> terrain_config.TerrainConfig:
    values = {'cells': (256, 256, 128), 'cell_sizes_m': (0.02, 0.08, 0.64), 'rock_density': 0.4}
    return terrain_config.TerrainConfig(seed, **{**values, **changes})
