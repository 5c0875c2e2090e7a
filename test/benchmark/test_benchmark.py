"""`lunar-stereo bench`: where pairs come from, what is done to them, and what is said of them."""

import json

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import DEFAULT_MODEL
from lunar_stereo_recon.backends.onnx_backend import node_shapes, NodeShapes
from lunar_stereo_recon.benchmark.bootstrap import GROUP, intervals, paired_differences
from lunar_stereo_recon.benchmark.degradations import DEGRADATIONS, degrade
from lunar_stereo_recon.benchmark.methods import FILL, METHODS, runs_of
from lunar_stereo_recon.benchmark.pairs import (
    first_of_each,
    load_definition,
    load_sample,
    pairs_at,
    rendered_pairs,
    rendered_sets,
    sets_at,
)
from lunar_stereo_recon.benchmark.profile import operation_times, peer_times
from lunar_stereo_recon.benchmark.speed import count_flops, fit_throughput
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.evaluation.scores import PairScore, reliability, summarise

HEIGHT, WIDTH = 64, 96
CLASSICAL = ['--method', 'SGBM 3WAY', '--method', 'SGBM 3WAY + fill']


def write_sample(path, pair, disparity, stratum='smooth', **changes):
    """Write a pair in the renderer's form, sky above the fourth row."""
    disparity = disparity.copy()
    disparity[:4] = np.nan
    shadow = np.zeros(disparity.shape, bool)
    shadow[40:50] = True
    arrays = {
        'left': np.rint(pair.left * 255).astype(np.uint8),
        'right': np.rint(pair.right * 255).astype(np.uint8),
        'disparity': disparity,
        'shadow': shadow,
        'occlusion': np.where(np.arange(WIDTH) < np.nan_to_num(disparity), 2, 0).astype(np.uint8),
        'intrinsics': pair.calibration.intrinsics,
        'baseline_m': np.float64(pair.calibration.baseline_m),
        'meta': np.array(json.dumps({'stratum': stratum})),
    }
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.fixture
def samples(tmp_path, slope_pair, slope_disparity):
    """Return a folder with three rendered pairs of two strata."""
    folder = tmp_path / 'samples'
    folder.mkdir()
    for number, stratum in enumerate(('smooth', 'lowsun', 'smooth')):
        write_sample(folder / f'{number}.npz', slope_pair, slope_disparity, stratum)
    return folder


def bench(samples, *options):
    out = samples.parent / 'out'
    arguments = ['--data', str(samples), '--threads', '1', '--out', str(out), *options]
    assert main(['bench', *arguments]) == 0
    return json.loads((out / 'bench.json').read_text())


def test_definition_has_enough_pairs_of_each_stratum(tmp_path):
    definition = load_definition()
    assert definition.split == 'test'
    pairs = rendered_pairs(definition, tmp_path)
    assert len({pair.source for pair in pairs}) == len(pairs)
    assert all(len(indices) >= 25 for indices in definition.strata.values())
    assert [len(each.pairs) for each in rendered_sets(definition, pairs)] == [112, 14, 14]
    pytest.importorskip('torch')
    from lunar_stereo_recon.simulation import added_strata
    from lunar_stereo_recon.simulation.dataset import STRATA, VIEWS_PER_TERRAIN

    assert set(definition.added) == set(added_strata.STRATA)
    for indices in definition.added.values():
        assert len({i // added_strata.VIEWS_PER_TERRAIN for i in indices[:7]}) == 7
    assert set(definition.strata) == set(STRATA)
    for stratum, indices in definition.strata.items():
        terrains = {index // VIEWS_PER_TERRAIN for index in indices}
        assert {STRATA[terrain % len(STRATA)] for terrain in terrains} == {stratum}
        # A quick run on the first pairs must not see one piece of ground only.
        assert len({index // VIEWS_PER_TERRAIN for index in indices[:7]}) == len(terrains) == 7


def test_rendered_sample_becomes_pair_and_truth(samples, slope_disparity):
    pair, truth = load_sample(samples / '0.npz')
    assert pair.calibration.fx == 90.0 and pair.calibration.baseline_m == 0.2
    assert not truth.valid[:4].any() and truth.valid[4:].all()
    np.testing.assert_allclose(truth.depth[4:], 18.0 / slope_disparity[4:], rtol=1e-6)
    assert truth.shadow[40:50].all() and (truth.occlusion[60, :8] == 2).all()


def test_sample_says_what_is_known_of_it(tmp_path, slope_pair, slope_disparity):
    rock = np.zeros(slope_disparity.shape, bool)
    rock[20:30, 20:30] = True
    meta = {'stratum': 'general', 'depth_limited': False, 'shadow_known': False}
    far = np.where(slope_disparity < 5, 0.1, slope_disparity)  # 180 m
    write_sample(tmp_path / 'a.npz', slope_pair, far, meta=np.array(json.dumps(meta)), rock=rock)
    _, truth = load_sample(tmp_path / 'a.npz')
    assert truth.valid[4:].all() and truth.shadow is None and truth.parts is None
    assert truth.subset('rocks').sum() == 100 and not truth.subset('lit').any()
    assert pairs_at(tmp_path)[0].stratum == 'general'


def test_bench_refuses_an_unknown_stratum(capsys):
    assert main(['bench', '--stratum', 'craters', '--method', 'BM']) == 2
    assert 'boulders' in capsys.readouterr().err


def test_ground_beyond_forty_metres_does_not_count(tmp_path, slope_pair, slope_disparity):
    disparity = slope_disparity.copy()
    disparity[:10] = 0.44  # 40.9 m
    write_sample(tmp_path / 'far.npz', slope_pair, disparity)
    _, truth = load_sample(tmp_path / 'far.npz')
    assert not truth.valid[:10].any() and truth.valid[10:].all()
    # It is a surface all the same.
    assert (truth.disparity[5:9] == np.float32(0.44)).all()


def test_pairs_by_stratum_and_what_is_missing(samples, tmp_path, slope_pair, slope_disparity):
    pairs = pairs_at(samples)
    assert [pair.stratum for pair in pairs] == ['smooth', 'lowsun', 'smooth']
    assert [pair.id for pair in first_of_each(pairs, 1)] == ['0', '1']
    assert pairs[0].size() == (WIDTH, HEIGHT)
    with pytest.raises(InputError, match='neither'):
        pairs_at(tmp_path / 'nowhere')
    write_sample(samples / 'bad.npz', slope_pair, slope_disparity, intrinsics=None)
    with pytest.raises(InputError, match='bad.npz'):
        load_sample(samples / 'bad.npz')


def test_bench_needs_no_student_for_the_matchers(samples, capsys):
    document = bench(samples, *CLASSICAL, '--degrade', 'jpeg_40')
    results = document['results']['none']
    assert set(results) == {'SGBM 3WAY', 'SGBM 3WAY + fill'}
    filled = results['SGBM 3WAY + fill']
    assert set(filled) == {'overall', 'smooth', 'lowsun'}
    assert filled['smooth']['pairs'] == 2
    everything = filled['overall']['all']
    assert everything['density'] == 1.0 and everything['epe_px'] < 1.0
    assert everything['bad2'] == everything['bad2_all']
    assert filled['overall']['shadow']['pixels'] == 3 * 10 * WIDTH
    # 18 / 12.45 is 1.45 m in the last row, 18 / 3.6 is 5 m in the fifth.
    ranges = filled['overall']
    assert ranges['2-5 m']['pixels'] == 3 * WIDTH * int(
        np.sum(18 / (3 + 0.15 * np.arange(5, 64)) >= 2)
    )
    answers = results['SGBM 3WAY']['overall']['where SGBM 3WAY answers']
    assert answers['density'] == 1.0
    assert answers['pixels'] == round(
        results['SGBM 3WAY']['overall']['all']['density'] * everything['pixels']
    )
    low, high = filled['overall']['intervals']['all']['epe_px']
    # Three times the same pair: nothing to be unsure of.
    assert low == pytest.approx(high) == pytest.approx(everything['epe_px'], abs=1e-4)
    assert filled['overall']['slope_deg'] < 20 and filled['overall']['ece'] is None
    degraded = document['results']['jpeg_40']['SGBM 3WAY + fill']['overall']['all']
    assert degraded['epe_px'] != everything['epe_px']
    assert 20 < document['memory_mb']['SGBM 3WAY'] < 2000
    assert document['setting']['threads'] == 1
    printed = capsys.readouterr().out
    assert '3 pairs, 96x64' in printed and '## Stratum lowsun' in printed
    assert '| jpeg_40 |' in printed and '## In shadow' in printed
    out = samples.parent / 'out'
    assert (out / 'bench.md').read_text() in printed
    sheet = cv2.imread(str(out / 'sheet_smooth.png'))
    assert sheet is not None and sheet.shape[1] > 4 * 400
    assert not (out / 'reliability.png').exists()  # no method with a confidence


def test_bench_of_a_student(samples, model_maker, capsys):
    model = str(model_maker(metadata={'max_disparity_px': '16'}))
    methods = ['--method', 'student', '--method', 'student + refinement', '--method', 'BM']
    document = bench(samples, *methods, '--model', model, '--pairs', '1')
    results = document['results']['none']
    assert list(results) == ['BM', 'student', 'student + refinement']
    assert [pair['id'] for pair in document['pairs']] == ['0', '1']
    student = results['student']['overall']
    assert 0 <= student['ece'] <= 1 and student['ause'] is not None
    low, high = student['intervals']['ece']
    assert low <= student['ece'] + 1e-9 and high >= student['ece'] - 1e-9
    assert set(document['stages_ms']['student']) >= {'preprocess', 'inference', 'confidence'}
    assert document['setting']['model']['name'] == 'tiny'
    printed = capsys.readouterr().out
    assert 'What refinement changes' in printed
    assert (samples.parent / 'out' / 'reliability.png').is_file()


def test_bench_of_a_student_in_another_runtime(samples, model_maker, capsys):
    pytest.importorskip('openvino')
    model = str(model_maker(metadata={'max_disparity_px': '16'}))
    options = ('--method', 'student', '--model', model, '--backend', 'openvino', '--pairs', '1')
    document = bench(samples, *options)
    assert document['setting']['model']['runs on'].startswith('OpenVINO')
    assert document['setting']['model']['runs on'] in capsys.readouterr().out
    assert document['results']['none']['student']['overall']['all']['density'] == 1.0


def test_speed_of_a_student(samples, model_maker, monkeypatch, capsys):
    from lunar_stereo_recon.benchmark import matrix_product, profile, speed

    monkeypatch.setattr(speed, 'ROOFLINE_SIZE', (64, 32))
    monkeypatch.setattr(speed.measure_speed, '__defaults__', ('onnx', ((64, 32), (128, 64))))
    monkeypatch.setattr(matrix_product.gflops_reached, '__defaults__', (64,))
    monkeypatch.setattr(profile, 'ROUNDS', 2)
    monkeypatch.setattr(profile.pair_times, '__defaults__', (2,))
    monkeypatch.setattr(profile.terrain_times, '__defaults__', (2,))
    monkeypatch.setattr(profile, 'PEER_SIZE', (64, 32))
    monkeypatch.setattr(profile, 'PAIR_SIZES', ((64, 32), (128, 64)))
    model = str(model_maker())
    peer = model_maker(name='peer.onnx', channels=3, inputs=('image1', 'image2'))
    document = bench(
        samples, '--method', 'student', '--model', model, '--speed', '--peer', str(peer)
    )
    found = document['profile']
    assert found['pair']['ratio'] == pytest.approx(
        found['pair']['pair_ms'] / found['pair']['sgbm_ms']
    )
    assert found['pair']['core_seconds_a_megapixel'] > 0
    assert {'inference', 'match', 'refine'} <= set(found['pair']['stages_ms'])
    assert found['sizes']['sizes'] == [[64, 32], [128, 64]]
    assert 0 < found['sizes']['milliseconds'][0] < found['sizes']['milliseconds'][1]
    assert found['operations']['nodes'] == {'ReduceMean': 2, 'Mul': 1}
    assert found['operations']['over_products'] == 0  # it has none
    assert found['peers'][0]['file'] == 'peer.onnx'
    assert (found['peers'][0]['width'], found['peers'][0]['height']) == (64, 32)
    assert all(peer['milliseconds'] > 0 for peer in found['peers'])
    parts = ('read_ms', 'add_ms', 'layers_ms', 'message_ms')
    assert all(0 < found['terrain'][part] < found['terrain']['frame_ms'] for part in parts)
    assert found['terrain']['known'] > 0.6
    assert document['throughput']['sizes'] == [[64, 32], [128, 64]]
    assert document['throughput']['explained'] == pytest.approx(1.0)  # a line through two points
    assert document['roofline']['gflop'] == 0.0  # nothing but a mean and a factor
    assert document['roofline']['gflops_of_matrix_product'] > 0
    text = capsys.readouterr().out
    assert 'GFLOP/s' in text and 'ms of the processor in terrain_node' in text
    assert (samples.parent / 'out' / 'throughput.png').is_file()


@pytest.mark.parametrize(
    'options, message',
    [
        (['--method', 'magic'], "'magic'"),
        (['--degrade', 'rain'], "'rain'"),
        (['--pairs', '0'], '--pairs is 0'),
        (['--model', 'none.onnx'], 'none.onnx'),
        (['--peer', 'peer.onnx'], '--peer is timed with --speed'),
    ],
)
def test_bench_explains_its_errors(samples, capsys, options, message):
    assert main(['bench', '--data', str(samples), *options]) == 2
    assert message in capsys.readouterr().err


def test_every_degradation_changes_the_pair_and_repeats_itself(slope_pair):
    for name in DEGRADATIONS:
        degraded = degrade(slope_pair, name, 'a')
        np.testing.assert_array_equal(degraded.right, degrade(slope_pair, name, 'a').right)
        assert np.abs(degraded.right - slope_pair.right).mean() > 2e-3, name
        assert degraded.left.min() >= 0 and degraded.right.max() <= 1
        levels = degraded.right * 255
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    with pytest.raises(InputError, match='roll_0.1deg'):
        degrade(slope_pair, 'fog', 'a')


@pytest.mark.parametrize('offset_px', [0.3, 0.6, 1.0])
def test_rows_are_misaligned_by_what_the_name_says(slope_pair, offset_px):
    shifted = degrade(slope_pair, f'rows_{offset_px}px', 'a').right
    candidates = np.linspace(-1.2, 1.2, 49)
    gaps = [np.abs(moved_rows(slope_pair.right, by) - shifted)[4:-4].mean() for by in candidates]
    assert abs(candidates[np.argmin(gaps)]) == pytest.approx(offset_px, abs=0.026)


def moved_rows(image, rows_px):
    matrix = np.array([[1, 0, 0], [0, 1, rows_px]])
    return cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)


def test_only_the_right_view_is_moved_blurred_or_regraded(slope_pair):
    untouched = np.rint(slope_pair.left * 255) / 255
    for name in ('rows_1.0px', 'roll_0.1deg', 'one_sided_blur', 'gamma_mismatch', 'gain_mismatch'):
        np.testing.assert_allclose(degrade(slope_pair, name, 'a').left, untouched, atol=1e-6)


def score(error_sum, bad2, pixels=100.0, tag='easy', confidence=0.5):
    """Return the score of a pair with dense estimates."""
    sums = np.array([pixels, pixels, error_sum, bad2, bad2, bad2, 0, pixels, 0, 0, pixels, 0, 0])
    correct = np.arange(int(pixels)) >= bad2
    bins = reliability(np.full(int(pixels), confidence), correct)
    return PairScore(tag, {'all': sums}, 0.3, {'all': bins}, 10.0, np.array([4.0, 8.0]))


def test_intervals_hold_the_figure_and_shrink_with_pairs():
    rng = np.random.default_rng(0)
    few, many = ([score(*rng.uniform(0, 50, 2)) for _ in range(count)] for count in (5, 80))
    widths = []
    for scores in (few, many):
        figures = summarise(scores)['overall']
        spread = intervals(scores)
        for key in ('epe_px', 'bad2_all'):
            low, high = spread['all'][key]
            assert low < figures['all'][key] < high
        low, high = spread['ece']
        assert low - 1e-9 <= figures['ece'] <= high + 0.05
        assert spread['slope_deg'] == pytest.approx((2.0, 2.0))
        assert spread['ause'] == pytest.approx((0.3, 0.3))
        widths.append(np.diff(spread['all']['epe_px'])[0])
    assert widths[1] < 0.5 * widths[0]
    assert intervals(few[:1]) == {}


def test_interval_of_a_mean_is_that_of_its_standard_error():
    errors = np.random.default_rng(1).normal(50, 10, 200)
    low, high = intervals([score(error, 0) for error in errors])['all']['epe_px']
    expected = 2 * 1.96 * errors.std() / np.sqrt(200) / 100
    assert high - low == pytest.approx(expected, rel=0.15)


def test_difference_is_paired():
    hard = np.random.default_rng(2).uniform(0, 80, 30)
    before = [score(error, 0) for error in hard]
    after = [score(error + 1, 0) for error in hard]
    changes = paired_differences(before, after)
    change, (low, high) = changes['all']['epe_px']
    assert change == pytest.approx(0.01)
    # The pairs differ by far more than this, but alike for both.
    assert low == pytest.approx(0.01) and high == pytest.approx(0.01)
    assert changes[GROUP]['ause'] == (0.0, (0.0, 0.0))
    assert paired_differences(before[:1], after[:1])['all']['epe_px'] == (
        pytest.approx(0.01),
        None,
    )


def test_filled_methods_share_the_matcher():
    assert runs_of(['BM' + FILL, 'BM', 'student']) == ['BM', 'student']
    assert len(METHODS) == 11 and 'student' + FILL not in METHODS


def test_flops_are_those_of_the_textbook():
    nodes = [
        NodeShapes('Conv', [(1, 8, 10, 10), (16, 8, 3, 3), (16,)], [(1, 16, 10, 10)]),
        NodeShapes('Conv', [(1, 16, 10, 10), (16, 1, 3, 3)], [(1, 16, 5, 5)]),  # one a channel
        NodeShapes('ConvTranspose', [(1, 4, 5, 5), (4, 2, 2, 2)], [(1, 2, 10, 10)]),
        NodeShapes('MatMul', [(2, 3, 5), (2, 5, 7)], [(2, 3, 7)]),
        NodeShapes('Gemm', [(5, 3), (5, 7)], [(3, 7)]),  # the first factor transposed
        NodeShapes('QLinearConv', [(1, 8, 4, 4), (), (), (2, 8, 1, 1)], [(1, 2, 4, 4)]),
        NodeShapes('Relu', [(1, 8, 4, 4)], [(1, 8, 4, 4)]),
        NodeShapes('Einsum', [(3, 4)], [(4, 3)]),
    ]
    work, uncounted = count_flops(nodes)
    assert work['Conv'] == 2 * (16 * 100 * 8 * 9 + 16 * 25 * 9)
    assert work['ConvTranspose'] == 2 * 4 * 25 * 2 * 4
    assert work['MatMul'] == 2 * 2 * 3 * 5 * 7 and work['Gemm'] == 2 * 3 * 5 * 7
    assert work['QLinearConv'] == 2 * 2 * 16 * 8
    assert 'Relu' not in work and uncounted == ['Einsum']


def test_shapes_of_a_model_as_it_runs(model_maker):
    nodes = node_shapes(model_maker(), 32, 64)
    by_operator = {node.operator: node for node in nodes}
    assert sorted(node.operator for node in nodes) == ['Mul', 'ReduceMean', 'ReduceMean']
    assert by_operator['ReduceMean'].inputs[0] == (1, 1, 32, 64)
    assert by_operator['Mul'].outputs == [(1, 32, 64)]


def test_throughput_is_a_line_through_the_times():
    sizes = [(100, 100), (200, 100), (400, 100)]
    found = fit_throughput(sizes, [3.0, 5.0, 9.0])
    assert found.offset_ms == pytest.approx(1.0)
    assert found.ms_per_megapixel == pytest.approx(200.0)
    assert found.explained == pytest.approx(1.0)


def test_manifest_that_says_its_references_is_a_set_for_each(tmp_path):
    pair = {'left': 'l.png', 'right': 'r.png', 'fx': 90, 'fy': 90, 'cx': 47.5, 'cy': 31.5}
    pair |= {'baseline_m': 0.2, 'width': WIDTH, 'height': HEIGHT, 'gt': 'gt.npz'}
    kinds = {
        'a': {'reference': 'ground truth'},
        'b': {'reference': 'silver'},
        'c': {'reference': 'ground truth', 'gt_kind': 'approximate: shifted'},
        'd': {'reference': 'none', 'gt': None},
    }
    manifest = tmp_path / 'manifest.json'
    manifest.write_text(json.dumps({'pairs': [{'id': i, **pair, **k} for i, k in kinds.items()]}))
    sets = sets_at(tmp_path)
    assert [(each.reference, [p.id for p in each.pairs]) for each in sets] == [
        ('ground truth', ['a']),
        ('silver', ['b']),
        ('approximate', ['c']),
    ]
    assert all(each.mean_of_pairs for each in sets) and sets[0].unscored == ('d',)
    manifest.write_text(json.dumps({'pairs': [{'id': 'a', **pair, 'reference': 'gold'}]}))
    with pytest.raises(InputError, match="'gold'"):
        sets_at(tmp_path)


def test_compact_table_of_several_sets(samples, tmp_path, capsys):
    out = tmp_path / 'quick.json'
    data = ['--data', str(samples), '--data', str(samples)]
    options = [*data, '--method', 'SGBM 3WAY + fill', '--threads', '1', '--json', str(out)]
    assert main(['bench', *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count('| samples | all |') == 2 and '| samples | shadow |' in printed
    sets = json.loads(out.read_text())['sets']
    figures = sets[0]['results']['SGBM 3WAY + fill']['overall']['all']
    assert figures['epe_px'] < 1 and f'{figures["epe_px"]:.3f}' in printed
    assert main(['bench', *data]) == 2
    assert '--json' in capsys.readouterr().err


def test_operations_are_summed_and_compared_with_the_products():
    nodes = [('Slice', 1.0), ('Conv', 2.0), ('Slice', 4.0), ('MatMul', 0.5)]
    found = operation_times(nodes)
    assert list(found.milliseconds.items()) == [('Slice', 5.0), ('Conv', 2.0), ('MatMul', 0.5)]
    assert found.nodes['Slice'] == 2
    assert found.over_products == pytest.approx(3.0)


def test_a_peer_that_takes_no_two_images_is_refused(model_maker, tmp_path):
    with pytest.raises(ModelError, match='no model file'):
        peer_times(tmp_path / 'none.onnx', 1)
    with pytest.raises(ModelError, match='two float32 images are needed'):
        peer_times(DEFAULT_MODEL.with_name('choice.onnx'), 1)
