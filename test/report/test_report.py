"""What `lunar-stereo evaluate` and `compare` say of recordings and pairs, and on which page."""

import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.benchmark.bootstrap import mean_difference
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.scores import ause, CURVE_POINTS, score_pair
from lunar_stereo_recon.report.page import as_markdown
from lunar_stereo_recon.report.results import load_results

RIG = {'fx': 90.0, 'fy': 91.0, 'cx': 47.5, 'cy': 31.5, 'baseline_m': 0.2}
SIZE = {'width': 96, 'height': 64}
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


def evaluate(*arguments):
    return main(['evaluate', *map(str, arguments), '--threads', '1'])


def failure(capsys, *arguments):
    """Return the one line that a refused command prints."""
    assert main([str(argument) for argument in arguments]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith('lunar-stereo: err')]
    return line


@pytest.fixture
def pairs(tmp_path, slope_pair, slope_disparity):
    """Return the manifest of one pair with truth, one without, and one that cannot be read."""
    for name in ('left', 'right'):
        grey = np.rint(getattr(slope_pair, name) * 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f'{name}.png'), grey)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    np.savez(tmp_path / 'gt.npz', disparity=slope_disparity)
    both = {'left': 'left.png', 'right': 'right.png'}
    document = [
        {'id': 'known', 'tag': 'easy', **both, **RIG, **SIZE, 'gt': 'gt.npz'},
        {'id': 'unknown', 'tag': 'field', **both, **RIG, **SIZE},
        {'id': 'damaged', **both, **RIG, **SIZE, 'left': 'broken.png', 'gt': 'gt.npz'},
    ]
    path = tmp_path / 'manifest.json'
    path.write_text(json.dumps({'pairs': document}))
    return path


def test_a_bag_with_truth_is_scored(make_bag, model_maker, tmp_path, capsys):
    out = tmp_path / 'out'
    options = ('--model', model_maker(), '--rival', 'sgbm', '--no-page', '--out', out)
    assert evaluate(make_bag(frames=3), *options) == 0
    results = load_results(out)
    assert results.methods == ['student', 'sgbm', 'sgbm + fill']
    assert [pair.id for pair in results.pairs] == ['000000', '000001', '000002']
    document = json.loads((out / 'results.json').read_text())
    # The wall is at 2 m; of a texture without noise SGBM is right.
    sgbm = document['summaries']['sgbm']['overall']
    assert sgbm['2-5 m']['pixels'] == 3 * 60 * 96 and sgbm['all']['bad1'] < 0.02
    assert document['summaries']['student']['overall']['ece'] is not None
    assert document['setting']['machine']['cores'] >= 1
    text = (out / 'report.md').read_text()
    assert '## At 2-5 m' in text and '| sgbm + fill | 100.00 |' in text
    assert 'Command: `lunar-stereo' in text
    for pair in results.pairs:
        assert cv2.imread(str(out / pair.panel)).shape[1] > 1000


def test_the_map_of_a_drive_is_drawn_and_graded(make_bag, model_maker, tmp_path, capsys):
    out = tmp_path / 'out'
    options = ('--model', model_maker(), '--rival', 'sgbm', '--no-page', '--out', out)
    assert evaluate(make_bag(frames=2), *options) == 0
    results = load_results(out)
    assert cv2.imread(str(out / results.map_picture)).shape[1] > 1000
    assert list(results.maps) == results.methods
    # The wall stays 2 m off while the rover drives 0.1 m: 12 / 2.1 px were to be expected.
    assert results.flicker['sgbm']['median_px'] == pytest.approx((6 - 12 / 2.1) / 2**0.5, 0.02)
    assert results.flicker['sgbm']['frame_pairs'] == 1
    assert '## Flicker' in (out / 'report.md').read_text()
    assert '(map.jpg)' in (out / 'report.md').read_text()
    assert str(out / 'map.jpg') in capsys.readouterr().out
    # A wall has no height: of such a map nothing can be compared.
    assert results.maps['sgbm']['map_height_error'] == {'cells': 0.0}
    assert 'Hazards of the map' not in as_markdown(results, {})
    kinds = {'steps': 8.0, 'found': 0.75, 'unknown': 0.0, 'missed': 0.25, 'free': 90.0}
    names = ('cells', 'median_m', 'mean_m', 'p95_m', 'within_1_sigma', 'within_2_sigma')
    results.maps['sgbm'] = {
        'map_height_error': dict(zip(names, (99.0, 0.01, 0.02, 0.03, 0.6, 0.9), strict=True)),
        'map_hazards': {'0.3 m': {**kinds, 'false': 0.1}},
    }
    results.write(out / 'results.json')
    text = as_markdown(load_results(out), {})
    assert '| sgbm | 99 | 1.00 | 2.00 | 3.00 | 60.0 | 90.0 |' in text
    assert '| sgbm | 0.3 m | 8 | 75.0 | 0.0 | 25.0 | 90 | 10.0 |' in text


def test_stored_scores_are_the_same(make_bag, model_maker, tmp_path):
    out = tmp_path / 'out'
    assert evaluate(make_bag(), '--model', model_maker(), '--no-page', '--out', out) == 0
    stored = json.loads((out / 'results.json').read_text())['summaries']
    again = json.loads(json.dumps(load_results(out).summaries()))
    assert again == stored


def test_pairs_without_truth_and_damaged_ones_are_told_apart(pairs, model_maker, tmp_path, capsys):
    out = tmp_path / 'out'
    assert evaluate(pairs, '--model', model_maker(), '--no-page', '--out', out) == 0
    results = load_results(out)
    assert [bool(pair.scores) for pair in results.pairs] == [True, False]
    assert list(results.left_out) == ['damaged'] and 'broken.png' in results.left_out['damaged']
    assert 'WARNING: damaged: ' in capsys.readouterr().err
    text = (out / 'report.md').read_text()
    assert '2 pairs, 1 of them with a known truth' in text and '- damaged: ' in text


def test_without_any_truth_there_are_no_errors(pairs, model_maker, tmp_path):
    document = json.loads(pairs.read_text())
    document['pairs'] = document['pairs'][1:2]
    pairs.write_text(json.dumps(document))
    out = tmp_path / 'out'
    assert evaluate(pairs, '--model', model_maker(), '--no-page', '--out', out) == 0
    text = (out / 'report.md').read_text()
    assert 'No pair has a known truth' in text and 'EPE' not in text


def test_sizes_may_differ_from_pair_to_pair(pairs, model_maker, tmp_path):
    document = json.loads(pairs.read_text())
    document['pairs'] = document['pairs'][:2]
    for side in ('left', 'right'):
        small = cv2.resize(cv2.imread(str(tmp_path / f'{side}.png')), (48, 32))
        cv2.imwrite(str(tmp_path / f'small_{side}.png'), small)
        document['pairs'][1][side] = f'small_{side}.png'
    document['pairs'][1] |= {'width': 48, 'height': 32}
    pairs.write_text(json.dumps(document))
    out = tmp_path / 'out'
    assert evaluate(pairs, '--model', model_maker(), '--no-page', '--out', out) == 0
    assert [pair.size for pair in load_results(out).pairs] == [(96, 64), (48, 32)]


def test_of_a_cut_bag_the_rest_is_used_and_the_loss_is_said(
    make_bag, model_maker, tmp_path, capsys
):
    bag = make_bag(frames=60)
    [file] = bag.glob('*.mcap')
    content = file.read_bytes()
    cut = tmp_path / 'cut.mcap'
    cut.write_bytes(content[: int(0.8 * len(content))])
    out = tmp_path / 'out'
    assert evaluate(cut, '--model', model_maker(), '--no-page', '--out', out) == 0
    results = load_results(out)
    assert 1 <= len(results.pairs) < 60 and results.losses
    assert f'WARNING: {results.losses[0]}' in capsys.readouterr().err


def test_results_of_another_run_are_kept(make_bag, model_maker, tmp_path, capsys):
    bag, out = make_bag(), tmp_path / 'out'
    options = ('--model', model_maker(), '--no-page', '--out', out)
    assert evaluate(bag, *options) == 0
    before = (out / 'results.json').read_bytes()
    line = failure(capsys, 'evaluate', bag, *options)
    assert 'holds results.json, report.md, map.jpg, panels of another run' in line
    assert (out / 'results.json').read_bytes() == before
    assert evaluate(bag, *options, '--overwrite', '--panels', '1') == 0
    assert len(list((out / 'panels').iterdir())) == 1


def test_what_is_no_source_is_said(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    out = ('--no-page', '--out', tmp_path / 'out')
    assert 'neither a bag' in failure(capsys, 'evaluate', tmp_path / 'empty', *out)
    assert 'does not exist' in failure(capsys, 'evaluate', tmp_path / 'none', *out)
    assert '--threads is 0' in failure(capsys, 'evaluate', '--threads', '0', *out)
    assert '--backend is sgbm' in failure(capsys, 'evaluate', '--backend', 'sgbm', *out)


@pytest.mark.parametrize(
    'text, message',
    [
        ('{', 'not JSON'),
        ('[]', 'format None'),
        ('{"format": 7}', 'format 7'),
        ('{"format": 1, "methods": []}', 'damaged'),
    ],
)
def test_damaged_results_are_refused(tmp_path, text, message):
    (tmp_path / 'results.json').write_text(text)
    with pytest.raises(InputError, match=message):
        load_results(tmp_path)


def test_compare_of_two_methods_counts_and_shows_what_changed(make_bag, tmp_path, capsys):
    out = tmp_path / 'out'
    arguments = ('bm', 'sgbm', '--data', make_bag(frames=4), '--no-page', '--out', out)
    assert main(['compare', *map(str, arguments)]) == 0
    document = json.loads((out / 'comparison.json').read_text())
    changes = {(c['set_name'], c['subset'], c['figure']): c for c in document['changes']}
    change = changes['all pairs', 'all', 'bad1_all']
    # Of this wall block matching misses a wider border than SGBM does.
    assert change['before'] > change['after'] and change['verdict'] == 'better'
    assert change['change'] == pytest.approx(change['after'] - change['before'], abs=1e-4)
    assert ('at 2-5 m', 'all', 'epe_px') in changes
    assert (document['better'], document['worse']) == (4, 0)
    assert 'sgbm against bm: 4 pairs better, 0 worse' in capsys.readouterr().out
    assert '## Pairs that changed most' in (out / 'comparison.md').read_text()


def test_compare_of_stored_results(make_bag, model_maker, tmp_path, capsys):
    bag, model = make_bag(), model_maker()
    for name in ('a', 'b'):
        options = ('--model', model, '--no-page', '--out', tmp_path / name)
        assert evaluate(bag, *options) == 0
    out = ('--no-page', '--out', tmp_path / 'out')
    assert main(['compare', *map(str, (tmp_path / 'a', tmp_path / 'b', *out))]) == 0
    assert '0 pairs better, 0 worse, 3 the same' in capsys.readouterr().out
    assert 'one is a folder or file of results' in failure(
        capsys, 'compare', tmp_path / 'a', 'sgbm', '--overwrite', *out
    )


def test_other_data_cannot_be_compared(make_bag, pairs, model_maker, tmp_path, capsys):
    for name, source in (('a', make_bag()), ('b', pairs)):
        options = ('--model', model_maker(), '--no-page', '--out', tmp_path / name)
        assert evaluate(source, *options) == 0
    out = ('--no-page', '--out', tmp_path / 'out')
    line = failure(capsys, 'compare', tmp_path / 'a', tmp_path / 'b', *out)
    assert 'have no pair in common' in line


def test_the_sparsification_curves_are_those_of_the_area():
    rng = np.random.default_rng(3)
    truth_px = np.full((40, 50), 10.0)
    error = rng.exponential(1.0, truth_px.shape)
    confidence = np.clip(np.exp(-error) + 0.1 * rng.standard_normal(error.shape), 0, 1)
    from lunar_stereo_recon.evaluation.scores import GroundTruth

    truth = GroundTruth(truth_px, 18.0 / truth_px, np.ones(truth_px.shape, bool))
    score = score_pair(truth_px + error, truth, 18.0, confidence)
    by_confidence, oracle = score.sparsification
    assert len(oracle) == CURVE_POINTS and (by_confidence >= oracle - 1e-9).all()
    assert by_confidence[0] == pytest.approx(error.mean())
    area, whole = (np.trapezoid(curve - oracle) for curve in (by_confidence, error.mean()))
    assert score.ause == pytest.approx(area / whole, rel=0.01)
    # Rounded: adding ten to the errors and taking it off loses their last digits.
    assert score.ause == pytest.approx(ause(error.reshape(-1), confidence.reshape(-1)))


def test_mean_difference_is_of_the_same_pairs():
    before = [1.0, 5.0, 9.0, 13.0]
    change, (low, high) = mean_difference(before, [value - 0.5 for value in before])
    assert change == low == high == -0.5


@pytest.mark.skipif(CHROMIUM is None, reason='needs chromium')
def test_the_page_opens_without_network_in_a_browser(make_bag, model_maker, tmp_path):
    pytest.importorskip('plotly')
    out = tmp_path / 'out'
    options = ('--model', model_maker(), '--rival', 'sgbm', '--out', out)
    assert evaluate(make_bag(), *options) == 0
    page = out / 'report.html'
    text = page.read_text()
    # Nothing is loaded from elsewhere; links inside the script are only words.
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', text)
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-dev-shm-usage', '--no-first-run']
    command += ['--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']
    # Every host is unknown: the page has to do without.
    command += ['--host-resolver-rules=MAP * ~NOTFOUND', '--enable-logging=stderr']
    command += [f'--user-data-dir={tmp_path / "profile"}', '--virtual-time-budget=20000']
    ended = subprocess.run(
        [*command, '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=300
    )
    said = [line for line in ended.stderr.splitlines() if 'CONSOLE' in line]
    # The browser's own advice about speed is no error.
    hints = ('willReadFrequently', 'GPU stall')
    assert [line for line in said if not any(hint in line for hint in hints)] == []
    # Each chart has drawn itself: plotly puts its pictures into the elements that the page names.
    assert ended.stdout.count('class="main-svg"') >= 5
    assert re.search(r'<div class="gl-container">.*?<canvas', ended.stdout, re.DOTALL)
