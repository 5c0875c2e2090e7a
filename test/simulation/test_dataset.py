"""Random pairs: truth, reproducibility, and files that survive an interruption."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import dataset  # noqa: E402

SIZE = (96, 64)


@pytest.fixture
def small_grids(monkeypatch):
    """Make the terrains of a data set small; what is on them stays as it is."""
    real = dataset.make_terrain

    def make(config):
        grids = {'cells': (512, 256, 128), 'cell_sizes_m': (0.04, 0.16, 1.28)}
        return real(dataclasses.replace(config, **grids))

    monkeypatch.setattr(dataset, 'make_terrain', make)


def test_pair_is_complete_and_true(small_grids):
    sample = dataset.make_sample(3, 'train', 5, SIZE)
    assert sample.left.shape == sample.right.shape == (64, 96)
    assert sample.left.dtype == sample.right.dtype == np.uint8
    ground = np.isfinite(sample.disparity)
    assert ground.mean() > 0.7
    assert 0 < sample.disparity[ground].min() and sample.disparity[ground].max() <= 192
    column = np.arange(96)[None, :] - np.nan_to_num(sample.disparity)
    assert ((sample.occlusion == 2) == (column < 0)).all()
    assert not sample.shadow[~ground].any()
    assert sample.intrinsics.shape == (3, 3) and 0.03 < sample.baseline_m <= 0.6
    assert sample.meta['stratum'] == 'nominal'
    json.dumps(sample.meta)


def test_pair_follows_from_its_number(small_grids):
    one, two = (dataset.make_sample(3, 'train', 9, SIZE) for _ in range(2))
    assert np.array_equal(one.left, two.left) and np.array_equal(one.right, two.right)
    np.testing.assert_array_equal(one.disparity, two.disparity)
    for other in (('test', 9), ('train', 10)):
        different = dataset.make_sample(3, *other, SIZE)
        assert not np.array_equal(one.left, different.left)


def test_stopped_run_goes_on(small_grids, tmp_path):
    dataset.write_dataset(tmp_path, 3, seed=4, size=SIZE)
    names = ['000000.npz', '000001.npz', '000002.npz']
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    first = (tmp_path / names[0]).stat().st_mtime_ns
    before = np.load(tmp_path / names[1])['left']
    (tmp_path / names[1]).unlink()
    dataset.write_dataset(tmp_path, 4, seed=4, size=SIZE)
    assert (tmp_path / names[0]).stat().st_mtime_ns == first
    with np.load(tmp_path / names[1], allow_pickle=False) as again:
        assert np.array_equal(again['left'], before)
        assert set(again.files) == {
            'left',
            'right',
            'disparity',
            'shadow',
            'occlusion',
            'intrinsics',
            'baseline_m',
            'meta',
        }
        assert again['disparity'].dtype == np.float32 and again['occlusion'].dtype == np.uint8
        assert json.loads(str(again['meta']))['stratum'] == 'nominal'
    assert (tmp_path / '000003.npz').exists()


def test_stored_disparity_is_precise(small_grids, tmp_path):
    sample = dataset.make_sample(3, 'train', 5, SIZE)
    sample.save(tmp_path / 'pair.npz')
    with np.load(tmp_path / 'pair.npz') as stored:
        np.testing.assert_allclose(stored['disparity'], sample.disparity, rtol=2e-5)
    assert [p.name for p in tmp_path.iterdir()] == ['pair.npz']


@pytest.mark.parametrize('stratum', dataset.STRATA)
def test_scenes_of_a_stratum(stratum):
    rng = np.random.default_rng(0)
    scenes = [dataset.sample_scene_config(stratum, rng) for _ in range(300)]
    elevation = np.array([s.lighting.sun_elevation_deg for s in scenes])
    away = np.array([s.lighting.sun_azimuth_deg - s.heading_deg for s in scenes]) % 360
    focal = np.array([s.focal for s in scenes])
    assert elevation.min() >= 1 and elevation.max() <= 80
    assert focal.min() >= 0.5 and focal.max() <= 2.0 and (focal < 1.0).mean() > 0.7
    assert all(0.3 <= s.height_m <= 3.0 and 0.05 <= s.baseline_m <= 0.6 for s in scenes)
    assert all(abs(s.shift_y_px) <= 1.0 for s in scenes)
    if stratum == 'lowsun':
        assert elevation.max() <= 13
    if stratum == 'opposition':
        assert (np.abs(away - 180) < 60).mean() > 0.95
        assert np.mean([len(s.rover) > 0 for s in scenes]) > 0.7


def test_unknown_split_and_window(tmp_path, small_grids):
    with pytest.raises(InputError, match="'val'"):
        dataset.write_dataset(tmp_path, 1, seed=0, split='val')
    with pytest.raises(InputError, match='800x600 does not fit in 640x480'):
        dataset.make_sample(0, 'train', 0, (800, 600))


def test_command(small_grids, tmp_path, capsys):
    arguments = ['--out', str(tmp_path), '--count', '1', '--seed', '2', '--size', '64x32']
    assert dataset.main(arguments) == 0
    assert np.load(tmp_path / '000000.npz')['left'].shape == (32, 64)
    assert '1 pairs written' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        dataset.main([*arguments[:-1], 'big'])
