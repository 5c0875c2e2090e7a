"""Pairs at half their size."""

import numpy as np
import pytest

from lunar_stereo_recon.files.arrays import load_arrays
from training.cli import main


def write_pair(path, disparity, **more):
    """Write a pair of a ramp of grey."""
    height, width = disparity.shape
    grey = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    none = np.zeros(disparity.shape, np.uint8)
    intrinsics = np.array([[100.0, 0, 49.5], [0, 100.0, 33.5], [0, 0, 1]])
    arrays = {'left': grey, 'right': grey, 'disparity': disparity, 'shadow': none == 1}
    np.savez(path, **arrays, occlusion=none, intrinsics=intrinsics, **more)


def test_sizes_disparities_and_intrinsics_are_halved(tmp_path):
    source, out = tmp_path / 'whole', tmp_path / 'half'
    source.mkdir()
    # Grows by 0.1 px a row; beyond column 60 another surface, beyond row 40 the sky.
    disparity = np.tile(0.1 * np.arange(68, dtype=np.float32)[:, None], (1, 100))
    disparity[:, 61:] += 20
    disparity[41:] = np.nan
    write_pair(source / '000007.npz', disparity, baseline_m=0.3)
    assert main(['halve', str(source), '--out', str(out)]) == 0
    half = load_arrays(out / '000007.npz', 'pair')
    assert half['left'].shape == half['disparity'].shape == half['occlusion'].shape == (34, 50)
    # A pixel is the mean of four: its rows are those between, its disparity half of theirs.
    rows = 2 * np.arange(20) + 0.5
    np.testing.assert_allclose(half['disparity'][:20, 4], 0.05 * rows, atol=1e-5)
    # Where two surfaces meet it has one of them, never what is between.
    beside = half['disparity'][:20, 30] - 0.05 * rows
    assert (np.minimum(np.abs(beside), np.abs(beside - 10)) < 0.06).all()
    assert np.isnan(half['disparity'][21:]).all()
    np.testing.assert_allclose(half['intrinsics'], [[50, 0, 24.5], [0, 50, 16.5], [0, 0, 1]])
    assert half['baseline_m'] == 0.3
    np.testing.assert_allclose(half['left'][0, :3], [0.5, 2.5, 4.5], atol=0.51)


def test_whole_frames_have_sides_of_whole_multiples(tmp_path):
    source, out = tmp_path / 'whole', tmp_path / 'half'
    source.mkdir()
    write_pair(source / 'g0.npz', np.ones((140, 200), np.float32))
    assert main(['halve', str(source), '--out', str(out), '--whole']) == 0
    half = load_arrays(out / 'g0.npz', 'pair')
    assert half['right'].shape == half['shadow'].shape == (64, 96)


@pytest.mark.parametrize('there', [True, False])
def test_folder_without_pairs_is_named(tmp_path, capsys, there):
    folder = tmp_path if there else tmp_path / 'nowhere'
    assert main(['halve', str(folder), '--out', str(tmp_path / 'out')]) == 2
    assert f'{folder}: no .npz pairs found' in capsys.readouterr().err


def test_how_sure_labels_are_stays_with_them(tmp_path):
    source, out = tmp_path / 'whole', tmp_path / 'half'
    source.mkdir()
    sure = np.where(np.arange(100) < 50, 0.9, 0.3).astype(np.float16)
    disparity = np.ones((68, 100), np.float32)
    write_pair(source / '000000.npz', disparity, confidence=np.tile(sure, (68, 1)))
    assert main(['halve', str(source), '--out', str(out)]) == 0
    half = load_arrays(out / '000000.npz', 'pair')
    np.testing.assert_array_equal(half['confidence'], np.tile(sure[::2], (34, 1)))


def test_files_that_are_not_finished_are_left_alone(tmp_path):
    source, out = tmp_path / 'whole', tmp_path / 'half'
    source.mkdir()
    write_pair(source / '000000.npz', np.ones((68, 100), np.float32))
    (source / '.000001.77.npz').write_bytes(b'cut')
    assert main(['halve', str(source), '--out', str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ['000000.npz']
