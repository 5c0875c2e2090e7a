"""The gallery: what a user gets, and what he is told when it cannot be."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.cli import main  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import gallery, presets, terrain, terrain_config  # noqa: E402

SMALL = {'cells': (256, 128, 64), 'cell_sizes_m': (0.04, 0.16, 1.28)}


@pytest.fixture
def small_grids(monkeypatch):
    """Make the terrains small; what is on them stays as it is."""
    real = terrain.make_terrain

    def make(config, relief=None):
        return real(config if relief else dataclasses.replace(config, **SMALL), relief)

    monkeypatch.setattr(terrain, 'make_terrain', make)


def test_sheet_of_presets_and_suns(small_grids, tmp_path, capsys):
    arguments = ['--presets', 'mare', 'boulder_field', '--elevations', '6', '40', '--width', '96']
    assert main(['gallery', '--out', str(tmp_path), *arguments]) == 0
    assert 'gallery.jpg: 4 pictures' in capsys.readouterr().out
    pictures = {
        path.stem: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in tmp_path.glob('*.png')
    }
    assert set(pictures) == {
        f'{name}_sun_{sun}_deg' for name in ('mare', 'boulder_field') for sun in (6, 40)
    }
    low, high = (pictures[f'boulder_field_sun_{sun}_deg'][32:] for sun in (6, 40))
    assert low.shape == (32, 96)
    # A low sun makes contrast: more of the ground is dark.
    assert (low < 50).mean() > (high < 50).mean()
    sheet = cv2.imread(str(tmp_path / 'gallery.jpg'), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape[0] > 2 * 64 and sheet.shape[1] > 2 * 96


def test_rocks_as_meshes_look_different(small_grids, tmp_path):
    pytest.importorskip('embreex')
    arguments = ['--presets', 'boulder_field', '--elevations', '20', '--width', '96']
    for form in terrain_config.ROCK_FORMS:
        out = ['--out', str(tmp_path / form), '--rocks', form]
        assert main(['gallery', *out, *arguments]) == 0
    one, two = (
        cv2.imread(str(tmp_path / form / 'boulder_field_sun_20_deg.png'), cv2.IMREAD_GRAYSCALE)
        for form in terrain_config.ROCK_FORMS
    )
    apart = np.abs(one.astype(int) - two) > 8
    assert 0.01 < apart[32:].mean() < 0.6
    assert main(['gallery', '--out', str(tmp_path), '--rocks', 'cubes', *arguments]) == 2


def test_elevation_model_under_the_sun_of_a_site(tmp_path, capsys):
    along = np.arange(121) - 60.0
    hill = 3.0 * np.exp(-((along[:, None] + 20) ** 2 + (along[None, :] - 15) ** 2) / 80)
    np.save(tmp_path / 'hill.npy', hill.astype(np.float32))
    small = ['--out', str(tmp_path / 'out'), '--width', '64', '--presets', 'smooth']
    site = ['--site', '0.6875', '23.4333', '--utc', '1969-07-20T20:17:39Z']
    model = ['--dem', str(tmp_path / 'hill.npy')]
    assert main(['gallery', *small, *model, *site]) == 2
    assert 'has no scale' in capsys.readouterr().err
    assert main(['gallery', *small, *model, '--cell-m', '1', *site]) == 0
    assert 'sun 10.6' in capsys.readouterr().err
    assert main(['gallery', *small, *model, '--cell-m', '1', *site[3:]]) == 2
    assert '--utc needs --site' in capsys.readouterr().err
    night = ['--site', '0', '-77', *site[3:]]
    assert main(['gallery', *small, *night]) == 2
    assert 'above 0 (the horizon)' in capsys.readouterr().err


def test_unknown_preset(tmp_path, capsys):
    assert main(['gallery', '--out', str(tmp_path), '--presets', 'beach']) == 2
    assert 'boulder_field, highland, mare, smooth, south_pole' in capsys.readouterr().err


@pytest.mark.parametrize('name', sorted(presets.PRESETS))
def test_presets_differ_as_they_say(name):
    config = dataclasses.replace(presets.site_preset(name).terrain_config(4), **SMALL)
    level = terrain.make_terrain(config).levels[0]
    spread = float(level.heights.std())
    smooth = dataclasses.replace(presets.site_preset('smooth').terrain_config(4), **SMALL)
    even = float(terrain.make_terrain(smooth).levels[0].heights.std())
    assert name == 'smooth' or spread > 1.5 * even
    assert config.seed == 4


def test_soil_is_banked_around_worn_rocks():
    ground = {'roughness_m': 1e-6, 'crater_density': 0.0, 'tilt_deg': 0.0, 'albedo_noise': 1e-6}
    banked = []
    for wear in (0.0, 1.0):
        config = terrain_config.TerrainConfig(
            3, rock_wear=wear, rock_density=1.0, rock_brightness=1.6, **ground, **SMALL
        )
        level = terrain.make_terrain(config).levels[0]
        soil = (level.surface[:, 3] - 1).abs() < 1e-4
        assert 0.005 < float((~soil).float().mean()) < 0.2
        banked.append(float((level.heights[soil] > 2e-3).float().mean()))
    assert banked[0] < 1e-4 < 1e-3 < banked[1]
    with pytest.raises(InputError, match='rock wear is 2'):
        terrain_config.TerrainConfig(1, rock_wear=2)


def test_labels_must_fit():
    image = np.zeros((4, 6), np.uint8)
    with pytest.raises(InputError, match='1 by 2 labels'):
        gallery.contact_sheet([[image]], ['mare'], ['low', 'high'])
