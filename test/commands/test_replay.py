"""`lunar-stereo replay`: a bag offline, end to end with the classical matcher."""

import json

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from lunar_stereo_recon.cli import main

REPLAY = ['--backend', 'sgbm', '--threads', '1']


def topics_in(path):
    with AnyReader([path]) as reader:
        return {topic: info.msgcount for topic, info in reader.topics.items()}


def test_every_frame_is_reconstructed_and_reported(make_bag, tmp_path, capsys):
    out = tmp_path / 'out'
    assert main(['replay', str(make_bag(frames=4)), '--out', str(out), *REPLAY]) == 0
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['frames']['in'] == summary['frames']['out'] == 4
    assert summary['frames']['dropped'] == 0
    assert topics_in(out / 'result') == dict.fromkeys(
        ['/points2', '/confidence', '/disparity', '/depth/image', '/depth/camera_info'], 4
    )
    # A wall at 2 m with one disparity is no difficulty.
    assert summary['accuracy']['published']['absrel'] < 0.01
    assert summary['cloud']['frames'] == 4
    for name in ('fused.ply', 'contact_sheet.png', 'cloud.png'):
        assert (out / name).stat().st_size > 100
    assert '4 in, 4 out, 0 dropped' in capsys.readouterr().out


def test_depth_in_the_result_bag_is_metric(make_bag, tmp_path):
    out = tmp_path / 'out'
    arguments = ['replay', str(make_bag(frames=1)), '--out', str(out), '--no-report', *REPLAY]
    assert main([*arguments, '--outputs', 'depth']) == 0
    assert set(topics_in(out / 'result')) == {'/depth/image', '/depth/camera_info'}
    with AnyReader([out / 'result']) as reader:
        connection = next(c for c in reader.connections if c.topic == '/depth/image')
        _, stamp, raw = next(reader.messages(connections=[connection]))
        message = reader.deserialize(raw, connection.msgtype)
    depth = message.data.view('<f4').reshape(message.height, message.width)
    assert np.nanmedian(depth) == pytest.approx(2.0, rel=0.01)
    assert stamp == 1_700_000_000_000_000_000


def test_raw_images_are_rectified(make_bag, tmp_path):
    bag = make_bag(frames=1, right_rows_low=4)
    densities = []
    for name, option in (('raw', []), ('rectified', ['--rectify'])):
        out = tmp_path / name
        assert main(['replay', str(bag), '--out', str(out), *option, *REPLAY]) == 0
        summary = json.loads((out / 'summary.json').read_text())
        densities.append(summary['accuracy']['published']['density'])
    assert densities[1] > 0.5 > densities[0]


def test_baseline_argument_scales_the_cloud(make_bag, tmp_path, capsys):
    bag = make_bag(frames=2, right_tx=0.0)
    assert main(['replay', str(bag), '--out', str(tmp_path / 'a'), *REPLAY]) == 2
    error = capsys.readouterr().err
    assert 'none of 2 frames can be used' in error
    assert "'baseline'" in error
    out = tmp_path / 'b'
    assert main(['replay', str(bag), '--out', str(out), '--baseline', '0.4', *REPLAY]) == 0
    assert json.loads((out / 'summary.json').read_text())['frames']['out'] == 2


def test_frames_that_cannot_be_used_are_counted(make_bag, tmp_path, capsys):
    bag = make_bag(frames=3, encoding='mono9')
    assert main(['replay', str(bag), '--out', str(tmp_path / 'out'), *REPLAY]) == 2
    assert "3 of them: /rig/left/image_rect: unknown image encoding 'mono9'" in (
        capsys.readouterr().err
    )


def test_unmatched_stamps_are_explained_and_a_tolerance_helps(make_bag, tmp_path, capsys):
    bag = make_bag(frames=3, right_offset_ns=2_000_000)
    arguments = ['replay', str(bag), '--out', str(tmp_path / 'out'), '--no-report', *REPLAY]
    assert main(arguments) == 2
    assert 'no left and right image with matching stamps' in capsys.readouterr().err
    assert main([*arguments, '--tolerance', '0.005']) == 0
    assert '3 frames in, 3 out' in capsys.readouterr().out


def test_lost_images_are_told(make_bag, tmp_path, capsys):
    bag = make_bag(frames=3, skip_right=(1,))
    arguments = ['replay', str(bag), '--out', str(tmp_path / 'out'), '--no-report', *REPLAY]
    assert main(arguments) == 0
    assert '1 images without a partner: left unmatched' in capsys.readouterr().out


def test_topics_are_all_given_or_none(make_bag, tmp_path, capsys):
    arguments = ['replay', str(make_bag()), '--out', str(tmp_path / 'out'), *REPLAY]
    assert main([*arguments, '--left-image', '/rig/left/image_rect']) == 2
    assert 'all four or none' in capsys.readouterr().err


def test_missing_bag(tmp_path, capsys):
    assert main(['replay', str(tmp_path / 'nowhere'), '--out', str(tmp_path / 'out')]) == 2
    assert 'nowhere: no such bag' in capsys.readouterr().err


def camera_info_file(path, right):
    tx = -12.0 if right else 0.0
    path.write_text(
        'image_width: 96\nimage_height: 64\n'
        f'projection_matrix: {{rows: 3, cols: 4, data: [60, 0, 47.5, {tx}, 0, 60, 31.5, 0, '
        '0, 0, 1, 0]}\n'
    )
    return str(path)


def test_calibration_files_serve_a_bag_without_camera_infos(make_bag, tmp_path, capsys):
    bag = make_bag(frames=2, infos=False)
    out = ['--out', str(tmp_path / 'out'), *REPLAY]
    assert main(['replay', str(bag), *out]) == 2
    assert '--calibration LEFT.yaml RIGHT.yaml' in capsys.readouterr().err
    files = [camera_info_file(tmp_path / f'{s}.yaml', s == 'right') for s in ('left', 'right')]
    assert main(['replay', str(bag), *out, '--calibration', *files]) == 0
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['frames']['out'] == 2
    assert summary['accuracy']['published']['absrel'] < 0.01
    images = ['--left-image', '/rig/left/image_rect', '--right-image', '/rig/right/image_rect']
    assert main(['replay', str(bag), *out, '--calibration', *files, *images]) == 0
    capsys.readouterr()
    assert main(['replay', str(bag), *out, '--calibration', files[0]]) == 2
    assert 'is of one camera' in capsys.readouterr().err
    assert main(['doctor', str(bag), *out[:4], '--calibration', *files, '--frames', '1']) in (0, 1)
    assert 'baseline                0.2 m' in capsys.readouterr().out


@pytest.mark.parametrize('command', ['replay', 'fuse'])
def test_baseline_in_other_units_is_doubted(make_bag, tmp_path, capsys, command):
    if command == 'fuse':
        pytest.importorskip('rasterio')
        pytest.importorskip('laspy')
    bag = make_bag(frames=1, right_tx=-600.0)
    main([command, str(bag), '--out', str(tmp_path / 'out'), '--backend', 'sgbm'])
    out = capsys.readouterr().out
    assert 'the baseline is 10 m' in out and "parameter 'baseline'" in out
