"""Boulder fields and rover parts in view: masks, truth and files."""

from dataclasses import replace
import json

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('numba')
pytest.importorskip('embreex')

from lunar_stereo_recon.benchmark.pairs import load_sample  # noqa: E402
from lunar_stereo_recon.cli import main  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import added_strata  # noqa: E402
from lunar_stereo_recon.simulation.terrain import make_terrain  # noqa: E402

SMALL = {'cells': (256, 256, 128), 'cell_sizes_m': (0.08, 0.16, 0.64), 'rock_density': 1.0}


@pytest.fixture(scope='module')
def terrains():
    """Return small ground of each stratum."""
    rng = np.random.default_rng(0)
    return {
        stratum: make_terrain(replace(added_strata.sample_ground(stratum, rng), **SMALL))
        for stratum in added_strata.STRATA
    }


@pytest.mark.parametrize('stratum', ['boulders', 'rover'])
def test_pair_has_masks_and_true_disparity(terrains, stratum, tmp_path):
    sample = added_strata.make_pair(terrains[stratum], stratum, 1, 'train', 0, samples=1)
    assert sample.rock.any() and sample.meta['stratum'] == stratum
    if stratum == 'rover':
        assert 0.01 <= sample.parts.mean() <= 0.4 and not (sample.parts & sample.rock).any()
        # They stand nearer than the ground of their columns does anywhere above them.
        assert np.nanmedian(sample.disparity[sample.parts]) > np.nanmedian(sample.disparity)
    else:
        assert sample.parts is None
    sample.save(tmp_path / 'a.npz')
    pair, truth = load_sample(tmp_path / 'a.npz')
    np.testing.assert_array_equal(truth.subset('rocks'), sample.rock & truth.valid)
    assert truth.subset('rover parts').any() == (stratum == 'rover')
    # Through the true disparity the two images agree where both see the surface.
    rows, columns = np.nonzero(truth.subset('noc') & ~truth.subset('edges') & ~truth.shadow)
    there = np.rint(columns - truth.disparity[rows, columns]).astype(int).clip(0)
    seen = np.corrcoef(pair.left[rows, columns], pair.right[rows, there])[0, 1]
    assert seen > 0.7


def test_pair_follows_from_its_number(terrains):
    one, again = (
        added_strata.make_pair(terrains['boulders'], 'boulders', 1, 'train', 3, samples=1)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.left, again.left)
    np.testing.assert_array_equal(one.disparity, again.disparity)


def test_pairs_are_written_under_the_given_names(terrains, tmp_path, monkeypatch):
    monkeypatch.setattr(added_strata, 'make_terrain', lambda config: terrains['boulders'])
    paths = [tmp_path / 'new' / f'boulders_{index:06d}.npz' for index in (0, 9)]
    written = added_strata.write_stratum(paths, 'boulders', (0, 9), 1, 'test', samples=1)
    assert list(written) == [1, 1]  # of two terrains
    with np.load(paths[1]) as stored:
        assert json.loads(str(stored['meta']))['stratum'] == 'boulders'
        assert stored['rock'].dtype == bool and 'parts' not in stored.files


def test_dataset_of_a_stratum_goes_on_and_refuses_others(terrains, tmp_path, monkeypatch):
    monkeypatch.setattr(added_strata, 'make_terrain', lambda config: terrains['boulders'])
    out = tmp_path / 'fields'
    command = ['dataset', '--out', str(out), '--stratum', 'boulders', '--samples', '1']
    assert main([*command, '--count', '1']) == 0
    first = (out / '000000.npz').stat().st_mtime_ns
    assert main([*command, '--count', '2']) == 0
    assert (out / '000000.npz').stat().st_mtime_ns == first
    assert json.loads((out / 'dataset.json').read_text())['count'] == 2
    with np.load(out / '000001.npz') as stored:
        pair = added_strata.make_pair(terrains['boulders'], 'boulders', 1, 'train', 1, samples=1)
        np.testing.assert_array_equal(stored['left'], pair.left)
    assert main([*command, '--count', '1']) == 0
    assert json.loads((out / 'dataset.json').read_text())['count'] == 2
    with pytest.raises(InputError, match=r"'seed': 1.*'seed': 2"):
        list(added_strata.write_stratum_dataset(out, 2, 'boulders', 2, samples=1))
    (out / 'dataset.json').write_text('[]')
    with pytest.raises(InputError, match='dataset.json: not a readable manifest'):
        list(added_strata.write_stratum_dataset(out, 2, 'boulders', 1, samples=1))


def test_nothing_is_written_for_a_wrong_dataset_of_a_stratum(tmp_path):
    out = tmp_path / 'fields'
    for stratum, count, said in (('craters', 1, "'craters'"), ('rover', 0, '0 pairs asked for')):
        with pytest.raises(InputError, match=said):
            list(added_strata.write_stratum_dataset(out, count, stratum, 1))
    assert not out.exists()


def test_options_that_a_stratum_does_not_have(tmp_path, capsys):
    command = ['dataset', '--out', str(tmp_path / 'a'), '--stratum', 'rover', '--count', '1']
    assert main([*command, '--form', 'bags']) != 0
    assert '--form bags' in capsys.readouterr().err
    assert not (tmp_path / 'a').exists()


def test_unknown_stratum_and_split(tmp_path):
    with pytest.raises(InputError, match="'craters'"):
        list(added_strata.write_stratum([tmp_path / 'a.npz'], 'craters', [0], 1, 'test'))
    with pytest.raises(InputError, match="'final'"):
        list(added_strata.write_stratum([tmp_path / 'a.npz'], 'rover', [0], 1, 'final'))
