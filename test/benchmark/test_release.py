"""`lunar-stereo bench --against`: which changes count, and the line that says so."""

import json

import numpy as np
import pytest

from lunar_stereo_recon.benchmark.pairs import BenchmarkPair, BenchmarkSet, with_variants
from lunar_stereo_recon.benchmark.release import (
    change_table,
    compare,
    may_be_released,
    release_line,
)
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.evaluation.scores import PairScore, reliability

HEIGHT, WIDTH = 64, 96
PIXELS = 2000


def score(bad1, rocks_bad1=10.0, flying=0.0):
    """Return the score of a pair with dense estimates, of which so many are wrong."""

    def sums(bad):
        return np.array(
            [PIXELS, PIXELS, PIXELS / 5, bad, bad, bad, 0, PIXELS, 0, 0, PIXELS, flying, 0], float
        )

    bins = reliability(np.full(PIXELS, 0.9), np.arange(PIXELS) >= bad1)
    every = {'all': sums(bad1), 'rocks': sums(rocks_bad1)}
    return PairScore('', every, 0.3, dict.fromkeys(every, bins), 10.0, None)


@pytest.fixture
def pairs():
    """Return the scores of a model on pairs of unlike difficulty."""
    return [score(bad) for bad in np.random.default_rng(0).integers(100, 800, 12)]


def worsened(pairs, by, where='all'):
    key = {'all': 0, 'rocks': 1}[where]
    amounts = [(p.sums['all'][4], p.sums['rocks'][4]) for p in pairs]
    changed = [list(amount) for amount in amounts]
    for amount, more in zip(changed, by, strict=True):
        amount[key] += more
    return [score(*amount) for amount in changed]


def test_the_same_model_may_be_released(pairs):
    changes = {'old': compare('set', pairs, pairs)}
    assert may_be_released(changes)
    assert release_line(changes).startswith('May be released: yes, because it is nowhere worse')
    assert {change.verdict for change in changes['old']} == {'equal'}


def test_harm_on_every_pair_vetoes_however_unlike_the_pairs_are(pairs):
    changes = {'old': compare('moon', pairs, worsened(pairs, [4] * 12))}
    assert not may_be_released(changes)
    line = release_line(changes)
    assert line.startswith('May be released: no, because it is worse than old at moon: all ')
    assert 'moon: all bad-1 % +0.20 (+0.20 to +0.20)' in line and line.count('\n') == 0


def test_harm_within_the_interval_does_not_veto(pairs):
    up_and_down = [30, -28] * 6
    changes = {'old': compare('moon', pairs, worsened(pairs, up_and_down))}
    assert may_be_released(changes)
    change = next(c for c in changes['old'] if (c.subset, c.figure) == ('all', 'bad1_all'))
    low, high = change.interval
    assert low < change.change < high and change.change == pytest.approx(0.0005)


def test_gain_on_the_whole_does_not_pay_for_rocks(pairs):
    after = worsened(worsened(pairs, [-50] * 12), [5] * 12, 'rocks')
    changes = compare('moon', pairs, after)
    assert not may_be_released({'old': changes})
    assert 'rocks bad-1 % +0.25' in release_line({'old': changes})
    assert '(!)' in change_table(changes) and '(+)' in change_table(changes)


def test_a_change_below_the_last_digit_is_none(pairs):
    wide = [
        PairScore(p.tag, {k: s * 1000 for k, s in p.sums.items()}, reliability=p.reliability)
        for p in pairs
    ]
    after = [
        PairScore(p.tag, {k: s + 10 * (np.arange(13) == 4) for k, s in p.sums.items()})
        for p in wide
    ]
    change = next(c for c in compare('a', wide, after) if c.figure == 'bad1_all')
    assert change.interval[0] > 0 and change.verdict == 'equal'


def test_a_single_pair_and_a_few_pixels_do_not_decide(pairs):
    one = {'old': compare('single', pairs[:1], worsened(pairs, [300] * 12)[:1])}
    assert {change.verdict for change in one['old']} == {'undecided'}
    assert 'nothing decides against old' in release_line(one) and not may_be_released(one)
    fine = compare('moon', pairs, pairs)
    assert may_be_released({'old': [*fine, *one['old']]})
    few = [PairScore('', {'all': p.sums['all'], 'rocks': p.sums['rocks'] / 100}) for p in pairs]
    assert not any(c.decisive for c in compare('moon', few, few) if c.subset == 'rocks')


def test_every_older_model_must_be_reached(pairs):
    changes = {
        'older': compare('moon', worsened(pairs, [40] * 12), pairs),
        'old': compare('moon', worsened(pairs, [-40] * 12), pairs),
    }
    line = release_line(changes)
    assert line.startswith('May be released: no') and 'older' not in line


@pytest.fixture
def samples(tmp_path, slope_pair, slope_disparity):
    """Return a folder with two pairs as the renderer writes them."""
    folder = tmp_path / 'samples'
    folder.mkdir()
    for number in range(2):
        np.savez(
            folder / f'{number}.npz',
            left=np.rint(slope_pair.left * 255).astype(np.uint8),
            right=np.rint(slope_pair.right * 255).astype(np.uint8),
            disparity=slope_disparity,
            shadow=np.zeros(slope_disparity.shape, bool),
            occlusion=np.zeros(slope_disparity.shape, np.uint8),
            intrinsics=slope_pair.calibration.intrinsics,
            baseline_m=np.float64(slope_pair.calibration.baseline_m),
            meta=np.array(json.dumps({'stratum': 'smooth'})),
        )
    return folder


def test_bench_against_an_older_file(samples, model_maker, tmp_path, capsys):
    model = model_maker(metadata={'max_disparity_px': '16'})
    old = tmp_path / 'old.onnx'
    old.write_bytes(model.read_bytes())
    out = tmp_path / 'out'
    options = ['--data', str(samples), '--model', str(model), '--against', str(old)]
    options += ['--threads', '1', '--out', str(out), '--upside-down', '--degrade', 'jpeg_40']
    assert main(['bench', *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count('May be released: yes') == 1
    document = json.loads((out / 'against.json').read_text())
    names = ['samples', 'samples, upside down', 'samples, jpeg_40']
    assert [each['name'] for each in document['sets']] == names
    results = document['sets'][0]['results']
    assert list(results) == ['SGBM 3WAY + fill', 'BM + fill', 'old', 'new']
    assert results['old']['overall']['all'] == results['new']['overall']['all']
    assert {c['verdict'] for c in document['changes']['old']} == {'equal'}
    calibration = results['new']['overall']['calibration']
    assert len(calibration['equal_mass']) == 15 and '## Calibration' in printed
    assert calibration['below']['share'] + calibration['above']['share'] == pytest.approx(1)
    assert results['BM + fill']['overall']['calibration'] is None
    assert (out / 'against.md').read_text().strip() in printed


def test_full_report_has_no_several_sets(samples, capsys):
    assert main(['bench', '--data', str(samples), '--upside-down']) == 2
    assert '--json FILE or --against MODEL' in capsys.readouterr().err
    options = ['--against', 'flight', '--method', 'BM']
    assert main(['bench', '--data', str(samples), *options]) == 2
    assert '--method' in capsys.readouterr().err


def test_upside_down_is_the_same_matching_problem(samples, slope_disparity):
    pair = BenchmarkPair('0', 'smooth', samples / '0.npz')
    turned = with_variants([BenchmarkSet('a', [pair])], True, [])[1].pairs[0]
    images, truth = turned.load()
    np.testing.assert_array_equal(truth.disparity, slope_disparity[::-1])
    # What the left view sees at x the right one sees at x - disparity, in the same row.
    upright, _ = pair.load()
    np.testing.assert_array_equal(images.right, upright.right[::-1])
    assert images.calibration.cy == HEIGHT - 1 - upright.calibration.cy
