"""The `lunar-stereo` commands that work on files."""

import json

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.cli import main

PLAIN_RIG = 'fx: 90.0\nfy: 91.0\ncx: 47.5\ncy: 31.5\nbaseline: 0.2\n'


def ros_camera_info(translation, fx=90.0, width=96):
    return (
        f'image_width: {width}\nimage_height: 64\ncamera_name: stereo\n'
        f'camera_matrix: {{rows: 3, cols: 3, data: [{fx}, 0, 47.5, 0, 91, 31.5, 0, 0, 1]}}\n'
        'distortion_model: plumb_bob\n'
        'distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n'
        f'projection_matrix: {{rows: 3, cols: 4, data: [{fx}, 0, 47.5, {translation}, '
        '0, 91, 31.5, 0, 0, 0, 1, 0]}\n'
    )


@pytest.fixture
def files(tmp_path, slope_pair, slope_disparity):
    """Return a folder with a pair of images, ground truth and calibrations."""
    for name in ('left', 'right'):
        grey = np.rint(getattr(slope_pair, name) * 65535).astype(np.uint16)
        cv2.imwrite(str(tmp_path / f'{name}.png'), grey)
    (tmp_path / 'rig.yaml').write_text(PLAIN_RIG)
    (tmp_path / 'left.yaml').write_text(ros_camera_info(0.0))
    (tmp_path / 'right.yaml').write_text(ros_camera_info(-18.0))
    valid = np.ones((64, 96), bool)
    np.savez(
        tmp_path / 'gt.npz',
        disparity=slope_disparity,
        depth=18.0 / slope_disparity,
        occlusion=np.zeros((64, 96), np.uint8),
        valid=np.packbits(valid),
        shadow=np.packbits(~valid),
    )
    pair = {'fx': 90.0, 'fy': 91.0, 'cx': 47.5, 'cy': 31.5, 'baseline_m': 0.2}
    pair |= {'width': 96, 'height': 64}
    pair |= {'left': 'left.png', 'right': 'right.png', 'gt': 'gt.npz'}
    pairs = [{'id': 'a', 'tag': 'easy', **pair}, {'id': 'b', 'tag': 'easy', **pair}]
    (tmp_path / 'manifest.json').write_text(json.dumps({'pairs': pairs}))
    return tmp_path


def run(files, *options, calibration=('rig.yaml',)):
    paths = [str(files / name) for name in calibration]
    images = [str(files / 'left.png'), str(files / 'right.png')]
    arguments = [*images, '--calibration', *paths, '--out', str(files / 'out')]
    return main(['run', *arguments, '--backend', 'sgbm', *options])


def run_pair(files, left):
    rig = ['--calibration', str(files / 'rig.yaml'), '--backend', 'sgbm']
    return main(['run', str(left), str(files / 'right.png'), *rig, '--out', str(files / 'out')])


def test_run_writes_every_file(files, slope_disparity, capsys):
    assert run(files, '--npz') == 0
    out = files / 'out'
    arrays = np.load(out / 'left.npz')
    for name, shape in (('disparity', (64, 96)), ('depth', (64, 96)), ('points', (64, 96, 3))):
        assert arrays[name].shape == shape and arrays[name].dtype == np.float32
    depth = arrays['depth']
    valid = np.isfinite(depth)
    assert valid.mean() > 0.5
    assert np.median(np.abs(depth * slope_disparity / 18.0 - 1)[valid]) < 0.02
    millimetres = cv2.imread(str(out / 'left_depth.png'), cv2.IMREAD_UNCHANGED)
    assert millimetres.dtype == np.uint16
    np.testing.assert_allclose(millimetres[valid], depth[valid] * 1000, atol=0.6)
    assert (millimetres[~valid] == 0).all()
    confidence = cv2.imread(str(out / 'left_confidence.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(confidence / 65535, arrays['confidence'], atol=1e-4)
    for view in ('left_depth_view.png', 'left_confidence_view.png'):
        assert cv2.imread(str(out / view)).shape[1:] == (96, 3)
    header, _, body = (out / 'left.ply').read_bytes().partition(b'end_header\n')
    assert f'element vertex {valid.sum()}'.encode() in header
    assert len(body) == valid.sum() * (3 * 4 + 3 + 4)
    assert 'median' in capsys.readouterr().out


def test_ros_calibrations_give_the_same_depth(files):
    depths = []
    for calibration in (('rig.yaml',), ('left.yaml', 'right.yaml'), ('right.yaml',)):
        assert run(files, '--arrays-only', calibration=calibration) == 0
        depths.append(np.load(files / 'out' / 'left.npz')['depth'])
    np.testing.assert_allclose(depths[1], depths[0], rtol=1e-5)
    np.testing.assert_allclose(depths[2], depths[0], rtol=1e-5)


def test_baseline_can_be_overridden(files):
    run(files, '--arrays-only')
    depth = np.load(files / 'out' / 'left.npz')['depth']
    run(files, '--arrays-only', '--baseline', '0.4', calibration=('left.yaml', 'left.yaml'))
    doubled = np.load(files / 'out' / 'left.npz')['depth']
    np.testing.assert_allclose(doubled, 2 * depth, rtol=1e-5)


def test_manifest_and_evaluate(files, capsys):
    manifest = ['--manifest', str(files / 'manifest.json')]
    out = str(files / 'out')
    options = ['--out', out, '--arrays-only', '--dense', '--backend', 'sgbm']
    assert main(['run', *manifest, *options]) == 0
    capsys.readouterr()
    figures = files / 'figures.json'
    assert (
        main(['evaluate', '--predictions', out, manifest[1], '--filled', '--json', str(figures)])
        == 0
    )
    table = capsys.readouterr().out
    assert '### prediction + fill' in table and '| easy | all |' in table
    scores = json.loads(figures.read_text())
    plain, filled = scores['prediction']['overall'], scores['prediction + fill']['overall']
    assert plain['pairs'] == 2 and plain['ms_median'] > 0
    assert 0.5 < plain['all']['density'] < filled['all']['density'] == 1.0
    assert plain['all']['epe_px'] < 0.3


def test_pair_without_prediction_counts_as_missing(files, slope_disparity, capsys):
    (files / 'some').mkdir()
    np.savez(files / 'some' / 'a.npz', disparity=slope_disparity)
    manifest = str(files / 'manifest.json')
    assert main(['evaluate', '--predictions', str(files / 'some'), manifest]) == 0
    captured = capsys.readouterr()
    assert 'b.npz; the pair counts as missing' in captured.err
    assert '| easy | all | 50.00 | 0.000 |' in captured.out


def test_pairs_without_an_estimate_have_no_error(files, capsys):
    (files / 'none').mkdir()
    np.savez(files / 'none' / 'a.npz', disparity=np.full((64, 96), np.nan))
    manifest = str(files / 'manifest.json')
    assert main(['evaluate', '--predictions', str(files / 'none'), manifest]) == 0
    assert '| easy | all | 0.00 |  |  |  |  | 100.00 |  |' in capsys.readouterr().out


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'has no prediction of any pair'),
        (b'hello', 'a.npz is not a .npz file'),
        ({'depth': np.zeros((64, 96))}, 'a.npz has no array disparity; it has depth'),
        ({'disparity': np.array([{}], object)}, 'a.npz has arrays that cannot be read'),
        ({'disparity': np.zeros((3, 4))}, r'a.npz: disparity has shape (3, 4)'),
        (
            {'disparity': np.ones((64, 96)), 'confidence': np.ones((3, 3))},
            r'a.npz: confidence has shape (3, 3)',
        ),
    ],
)
def test_bad_predictions_are_one_clear_line(files, capsys, content, message):
    folder = files / 'predicted'
    folder.mkdir()
    if isinstance(content, bytes):
        (folder / 'a.npz').write_bytes(content)
    elif content:
        np.savez(folder / 'a.npz', **content)
    arguments = ('evaluate', '--predictions', folder, files / 'manifest.json')
    assert message in failure(capsys, *arguments)


def failure(capsys, *arguments):
    """Return the one line that a refused command prints."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith('lunar-stereo: error: ') and captured.count('\n') == 1
    return captured


@pytest.mark.parametrize(
    'text, message',
    [
        ('fx: 90\nfy: 91\ncx: 47.5\ncy: 31.5\n', 'lacks baseline'),
        (PLAIN_RIG.replace('0.2', '-0.2'), 'baseline_m is -0.2'),
        (PLAIN_RIG.replace('90.0', 'wide'), 'wide'),
        (PLAIN_RIG + 'width: 640\n', 'width 640'),
        (PLAIN_RIG + 'k1: -0.2\n', 'k1'),
        (PLAIN_RIG.replace('90.0', '.nan'), 'fx is nan'),
        (ros_camera_info('.nan'), 'P is 90, 0, 47.5, nan'),
        (ros_camera_info(18.0), "'baseline'"),
        (ros_camera_info(-18.0, width=640), 'image_width 640'),
        ('image_width: 96\nprojection_matrix: {data: [1, 2]}\n', '12'),
        ('projection_matrix: none\n', 'projection_matrix.data'),
        ('[1, 2', 'not YAML'),
        ('just text', 'mapping'),
        ('', 'mapping'),
    ],
)
def test_bad_calibration_is_one_clear_line(files, capsys, text, message):
    (files / 'bad.yaml').write_text(text)
    images = (files / 'left.png', files / 'right.png')
    line = failure(capsys, 'run', *images, '--calibration', files / 'bad.yaml')
    assert message in line and 'bad.yaml' in line


def test_right_camera_with_another_focal_length(files, capsys):
    (files / 'other.yaml').write_text(ros_camera_info(-18.0, fx=80.0))
    images = (files / 'left.png', files / 'right.png')
    rig = (files / 'left.yaml', files / 'other.yaml')
    assert 'other.yaml' in failure(capsys, 'run', *images, '--calibration', *rig)


def test_bad_images_are_one_clear_line(files, capsys):
    rig = ('--calibration', files / 'rig.yaml', '--backend', 'sgbm')
    good = files / 'left.png'
    assert 'no image at' in failure(capsys, 'run', files / 'none.png', good, *rig)
    (files / 'broken.png').write_bytes(good.read_bytes()[:40])
    assert 'broken.png' in failure(capsys, 'run', files / 'broken.png', good, *rig)
    cv2.imwrite(str(files / 'small.png'), np.zeros((20, 30), np.uint8))
    line = failure(capsys, 'run', good, files / 'small.png', *rig)
    assert 'small.png is 30x20' in line and 'left.png is 96x64' in line
    cv2.imwrite(str(files / 'bright.tiff'), np.full((64, 96, 3), 200, np.float32))
    line = failure(capsys, 'run', files / 'bright.tiff', good, *rig)
    assert 'bright.tiff: floating point image with values up to 200' in line
    cv2.imwrite(str(files / 'colour.tiff'), np.full((64, 96, 3), 0.5, np.float32))
    assert run_pair(files, files / 'colour.tiff') == 0


def test_missing_arguments_and_files_are_told(files, capsys, tmp_path):
    assert '--manifest' in failure(capsys, 'run')
    images = (files / 'left.png', files / 'right.png')
    assert '--calibration' in failure(capsys, 'run', *images)
    rig = ('--calibration', files / 'rig.yaml')
    model = failure(capsys, 'run', *images, *rig, '--model', tmp_path / 'lost.onnx')
    assert 'lost.onnx' in model
    assert 'magic' in failure(capsys, 'run', *images, *rig, '--backend', 'magic')
    classical = failure(capsys, 'run', *images, *rig, '--backend', 'sgbm', '--model', 'x.onnx')
    assert '--backend is sgbm' in classical
    assert '--threads is -1' in failure(capsys, 'run', *images, *rig, '--threads', '-1')
    here = ('--out', images[0] / 'out', '--backend', 'sgbm')
    assert 'left.png/out' in failure(capsys, 'run', *images, *rig, *here)
    manifest = ('--manifest', files / 'manifest.json')
    assert 'alone' in failure(capsys, 'run', *images, *rig, *manifest)
    nowhere = ('--predictions', tmp_path / 'nowhere')
    assert 'no folder' in failure(capsys, 'evaluate', *nowhere, manifest[1])


@pytest.mark.parametrize(
    'document, message',
    [
        ('{', 'not JSON'),
        ('[]', '"pairs"'),
        ('{"pairs": []}', '"pairs"'),
        ('{"pairs": [3]}', 'mapping'),
        ('{"pairs": [{"id": "a"}]}', "lacks 'fx'"),
        ('{"pairs": [{"id": "../a"}]}', 'file name'),
    ],
)
def test_bad_manifest_is_one_clear_line(tmp_path, capsys, document, message):
    (tmp_path / 'manifest.json').write_text(document)
    assert message in failure(capsys, 'run', '--manifest', tmp_path / 'manifest.json')


def test_two_pairs_with_one_name_are_refused(files, capsys):
    document = json.loads((files / 'manifest.json').read_text())
    document['pairs'][1]['id'] = 'a'
    (files / 'manifest.json').write_text(json.dumps(document))
    assert 'more than one' in failure(capsys, 'run', '--manifest', files / 'manifest.json')


def test_info_describes_a_model(model_maker, capsys):
    assert main(['info', '--model', str(model_maker())]) == 0
    printed = capsys.readouterr().out
    assert 'tiny' in printed and 'CPUExecutionProvider' in printed


def test_run_with_a_model(files, model_maker):
    images = [str(files / 'left.png'), str(files / 'right.png')]
    options = ['--calibration', str(files / 'rig.yaml'), '--out', str(files / 'out')]
    assert main(['run', *images, *options, '--model', str(model_maker()), '--npz']) == 0
    assert np.isfinite(np.load(files / 'out' / 'left.npz')['confidence']).all()


def test_info_reads_well_and_has_json(capsys):
    assert main(['info']) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for word in ('lunar_stereo_recon', 'runs on', 'network width px', 'weights sha256'):
        assert word in text
    assert '{' not in text
    assert main(['info', '--json']) == 0
    described = json.loads(capsys.readouterr().out)
    assert described['model']['max_disparity_px'] > 0
    assert described['model']['recipe']['name']
    assert described['machine']['cores'] >= 1


@pytest.mark.parametrize(
    ('text', 'doubt'),
    [
        (PLAIN_RIG.replace('0.2', '0.0002'), 'the baseline is 0.0002 m'),
        (PLAIN_RIG.replace('0.2', '60.0'), 'the baseline is 60 m'),
        (PLAIN_RIG, ''),
    ],
)
def test_run_doubts_a_baseline_in_other_units(files, capsys, text, doubt):
    (files / 'odd.yaml').write_text(text)
    assert run(files, calibration=('odd.yaml',)) == 0
    out = capsys.readouterr().out
    assert doubt in out and ("parameter 'baseline'" in out) == bool(doubt)
    assert run(files, '--baseline', '0.2', calibration=('odd.yaml',)) == 0
    assert 'the baseline is' not in capsys.readouterr().out


def test_run_doubts_twelve_bits_without_a_white_level(files, capsys):
    for name in ('left', 'right'):
        grey = cv2.imread(str(files / f'{name}.png'), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(files / f'{name}.png'), grey // 16)
    assert run(files) == 0
    assert "'white_level' to 4095" in capsys.readouterr().out
    assert run(files, '--white-level', '4095') == 0
    assert 'white_level' not in capsys.readouterr().out


def opencv_matrix(name, rows, columns, values):
    data = ', '.join(f'{value:.8e}' if value % 1 else f'{value:.0f}.' for value in values)
    return (
        f'{name}: !!opencv-matrix\n   rows: {rows}\n   cols: {columns}\n   dt: d\n'
        f'   data: [ {data} ]\n'
    )


def test_calibrations_of_opencv_are_accepted(files, slope_disparity):
    """Header and matrices of FileStorage, as camera_info and as `stereo_calib` names them."""
    intrinsics = (90.0, 0.0, 47.5, 0.0, 91.0, 31.5, 0.0, 0.0, 1.0)
    p = [90.0, 0.0, 47.5, 0.0, 0.0, 91.0, 31.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    right = [*p[:3], -18.0, *p[4:]]
    header = '%YAML:1.0\n---\n'
    (files / 'info.yaml').write_text(
        header
        + 'image_width: 96\nimage_height: 64\n'
        + opencv_matrix('camera_matrix', 3, 3, intrinsics)
        + opencv_matrix('distortion_coefficients', 5, 1, (0.0,) * 5)
        + opencv_matrix('projection_matrix', 3, 4, right)
    )
    (files / 'intrinsics.yml').write_text(
        header + ''.join(opencv_matrix(f'M{n}', 3, 3, intrinsics) for n in (1, 2))
    )
    (files / 'extrinsics.yml').write_text(
        header + opencv_matrix('P1', 3, 4, p) + opencv_matrix('P2', 3, 4, right)
    )
    for calibration in (('info.yaml',), ('intrinsics.yml', 'extrinsics.yml'), ('extrinsics.yml',)):
        assert run(files, '--npz', calibration=calibration) == 0
        depth = np.load(files / 'out' / 'left.npz')['depth']
        assert np.nanmedian(depth * slope_disparity) == pytest.approx(18.0, rel=0.01)


def test_manifest_says_its_doubts(tmp_path, capsys):
    """Each kind once, and at the end for how many pairs more."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(3):
        texture = cv2.GaussianBlur(rng.uniform(0, 4000, (96, 172)), (0, 0), 1.2)
        texture = np.clip(4 * (texture - 2000) + 2000, 1, 4000).astype(np.uint16)
        for side, view in (('left', texture[:, :160]), ('right', texture[:, 12:])):
            cv2.imwrite(str(tmp_path / f'{side}{index}.png'), view)
        entry = {'fx': 150, 'fy': 150, 'cx': 80, 'cy': 48, 'width': 160, 'height': 96}
        sides = {side: f'{side}{index}.png' for side in ('left', 'right')}
        pairs.append({'id': f'p{index}', 'baseline_m': 12.0, **entry, **sides})
    manifest = tmp_path / 'manifest.json'
    manifest.write_text(json.dumps({'pairs': pairs}))
    arguments = ['run', '--manifest', str(manifest), '--backend', 'sgbm', '--arrays-only']
    arguments += ['--out', str(tmp_path / 'out')]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text.count("'white_level' to 4095") == 1
    assert text.count('p0: the baseline is 12 m') == 1
    assert 'white level: the same of 2 pairs more' in text
    assert 'baseline: the same of 2 pairs more' in text
    assert main([*arguments, '--white-level', '4095']) == 0
    assert 'white' not in capsys.readouterr().out
