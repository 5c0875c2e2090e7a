"""`lunar-stereo demo` as a user runs it: three processes over DDS, without torch."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter, make_message, pose_message
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.commands import demo
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.result_messages import camera_info_message, image_message

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT, FRAMES = 160, 96, 5
DEPTH_M, STEP_M = 3.0, 0.05
needs_ros = pytest.mark.skipif(
    importlib.util.find_spec('rclpy') is None, reason='needs rclpy, extra [ros]'
)


@pytest.fixture
def drive_bag(tmp_path):
    """Return a bag of a textured wall, seen by a camera that moves along it."""
    calibration = StereoCalibration(120.0, 120.0, 79.5, 47.5, 79.5, 0.2, WIDTH, HEIGHT)
    disparity = round(calibration.fx * calibration.baseline_m / DEPTH_M)
    step_px = round(calibration.fx * STEP_M / DEPTH_M)
    noise = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH + 60)).astype(np.uint8)
    wall = cv2.GaussianBlur(noise, (0, 0), 1.2)
    depth = np.full((HEIGHT, WIDTH), DEPTH_M, np.float32)
    path = tmp_path / 'drive'
    with BagWriter(path) as bag:
        for index in range(FRAMES):
            at = 1_000_000_000 + index * 100_000_000
            for side, shift in (('left', 0), ('right', disparity)):
                start = index * step_px + shift
                image = wall[:, start : start + WIDTH]
                bag.write(
                    f'/rig/{side}/image_rect',
                    image_message(make_message, image, 'mono8', at, 'optical'),
                    at,
                )
                info = camera_info_message(
                    make_message, calibration, at, 'optical', right=side == 'right'
                )
                bag.write(f'/rig/{side}/camera_info', info, at)
            truth = image_message(make_message, depth, '32FC1', at, 'optical')
            bag.write('/ground_truth/depth', truth, at)
            position = np.array([0.0, -index * step_px * DEPTH_M / calibration.fx, 1.0])
            pose = pose_message(position, np.array([-0.5, 0.5, -0.5, 0.5]), at)
            bag.write('/ground_truth/pose', pose, at)
    return path


@pytest.fixture
def no_torch(tmp_path):
    """Return an environment in which importing torch fails."""
    folder = tmp_path / 'blocked'
    folder.mkdir()
    (folder / 'torch.py').write_text("raise ImportError('torch is not to be used here')\n")
    # A sourced ROS is found by PYTHONPATH, too.
    paths = [str(folder), str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


def run_demo(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'lunar_stereo_recon.cli', 'demo', *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


@needs_ros
@pytest.mark.ros
@pytest.mark.slow
def test_every_frame_comes_back_over_dds_and_agrees_with_the_truth(drive_bag, no_torch, tmp_path):
    out = tmp_path / 'out'
    arguments = ('--bag', str(drive_bag), '--out', str(out), '--backend', 'sgbm')
    done = run_demo(*arguments, env=no_torch)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['frames'] == {'in': FRAMES, 'out': FRAMES, 'dropped': 0, 'reasons': {}}
    assert summary['rate_hz'] > 0
    assert 0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p95']
    published = summary['accuracy']['published']
    assert published['density'] > 0.8
    assert published['epe_px'] < 0.2
    assert summary['cloud']['frames'] == FRAMES
    assert f'{FRAMES} in, {FRAMES} out, 0 dropped' in done.stdout
    for name in ('contact_sheet.png', 'cloud.png'):
        assert cv2.imread(str(out / name)) is not None
    assert (out / 'fused.ply').stat().st_size > 1000
    # A second run replaces the first one's results.
    again = run_demo(*arguments, env=no_torch)
    assert again.returncode == 0, again.stderr


@needs_ros
@pytest.mark.ros
def test_a_node_that_cannot_start_ends_the_demo_with_its_own_words(drive_bag, no_torch, tmp_path):
    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    done = run_demo(
        *('--bag', str(drive_bag), '--out', str(tmp_path / 'out')),
        *('--model', str(tmp_path / 'broken.onnx')),
        env=no_torch,
    )
    assert done.returncode == 2
    assert 'reconstruction_node ended with status 1' in done.stderr
    assert 'broken.onnx' in done.stderr


@needs_ros
def test_a_bag_that_is_not_there_is_named(no_torch, tmp_path):
    done = run_demo('--bag', str(tmp_path / 'nothing'), '--out', str(tmp_path), env=no_torch)
    assert done.returncode == 2
    assert str(tmp_path / 'nothing') in done.stderr


def test_without_rclpy_the_error_says_what_to_install_and_what_works_without(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ReconError, match=r"pip install 'lunar_stereo_recon\[ros\]'.*replay BAG"):
        demo.check_ros()


def test_only_results_of_an_earlier_demo_are_deleted(tmp_path):
    (tmp_path / 'result').mkdir()
    (tmp_path / 'result' / 'old.mcap').touch()
    (tmp_path / 'fused.ply').touch()
    (tmp_path / 'notes.txt').write_text('mine')
    demo._clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


@needs_ros
@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--backend', 'bm_padded'], '--backend is bm_padded, which the node has not'),
        (['--backend', 'sgmb'], "unknown backend 'sgmb'; known are onnx"),
        (['--model', 'nowhere.onnx'], 'no model file at nowhere.onnx'),
        (['--rate', '-1'], '--rate is -1; 0 or more is needed'),
        (['--white-level', '0'], '--white-level is 0; a number above 0 is needed'),
        (['--self-mask', 'nowhere.png'], 'no image at nowhere.png'),
        (['--left-image', '/rig/left/image_rect'], 'all four or none'),
    ],
)
def test_bad_arguments_are_refused_before_any_process_starts(
    drive_bag, tmp_path, capsys, monkeypatch, arguments, text
):
    monkeypatch.setattr(demo, 'run_nodes', lambda *given: pytest.fail('nodes were started'))
    out = tmp_path / 'out'
    assert main(['demo', '--bag', str(drive_bag), '--out', str(out), *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not out.exists()


def test_wrong_types_name_the_argument(capsys):
    with pytest.raises(SystemExit):
        main(['demo', '--rate', 'fast'])
    assert "argument --rate: invalid float value: 'fast'" in capsys.readouterr().err


@needs_ros
@pytest.mark.ros
@pytest.mark.slow
def test_raw_twelve_bit_images_of_given_topics_are_rectified(tmp_path, no_torch):
    """Right rows are 4 px low in the raw images, as K says; without `rectify` nothing matches."""
    calibration = StereoCalibration(120.0, 120.0, 79.5, 47.5, 79.5, 0.2, WIDTH, HEIGHT)
    noise = np.random.default_rng(1).integers(0, 4095, (HEIGHT, WIDTH + 60)).astype(np.uint16)
    wall = cv2.GaussianBlur(noise, (0, 0), 1.2)
    path = tmp_path / 'raw'
    with BagWriter(path) as bag:
        for index in range(FRAMES):
            at = 1_000_000_000 + index * 100_000_000
            for side, shift, low in (('left', 0, 0), ('right', 8, 4)):
                view = np.roll(wall[:, shift : shift + WIDTH], low, axis=0)
                image = image_message(make_message, view, 'mono16', at, 'optical')
                bag.write(f'/{side[0]}cam/picture', image, at)
                info = camera_info_message(
                    make_message, calibration, at, 'optical', right=side == 'right'
                )
                info.k[5] += low
                bag.write(f'/{side[0]}cam/about', info, at)
            depth = np.full((HEIGHT, WIDTH), DEPTH_M, np.float32)
            truth = image_message(make_message, depth, '32FC1', at, 'optical')
            bag.write('/ground_truth/depth', truth, at)
    topics = [
        *('--left-image', '/lcam/picture', '--right-image', '/rcam/picture'),
        *('--left-info', '/lcam/about', '--right-info', '/rcam/about'),
    ]
    out = tmp_path / 'out'
    done = run_demo(
        *('--bag', str(path), '--out', str(out), '--backend', 'sgbm', *topics),
        *('--rectify', '--white-level', '4095'),
        env=no_torch,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['frames']['out'] == FRAMES
    assert summary['latency_ms']['p50'] > 0
    published = summary['accuracy']['published']
    assert published['density'] > 0.7 and published['epe_px'] < 0.3


@needs_ros
@pytest.mark.ros
@pytest.mark.slow
def test_calibration_files_serve_a_bag_without_camera_infos(drive_bag, no_torch, tmp_path):
    bare = tmp_path / 'bare'
    with StereoBagReader(drive_bag) as reader, BagWriter(bare) as writer:
        for connection, time_ns, data in reader.raw_messages():
            if not connection.topic.endswith('camera_info'):
                writer.write_raw(connection.topic, connection.msgtype, data, time_ns)
    files = []
    for side, tx in (('left', 0.0), ('right', -24.0)):
        file = tmp_path / f'{side}.yaml'
        file.write_text(
            f'image_width: {WIDTH}\nimage_height: {HEIGHT}\n'
            'projection_matrix: {rows: 3, cols: 4, '
            f'data: [120, 0, 79.5, {tx}, 0, 120, 47.5, 0, 0, 0, 1, 0]}}\n'
        )
        files.append(str(file))
    out = tmp_path / 'out'
    done = run_demo(
        *('--bag', str(bare), '--out', str(out), '--backend', 'sgbm', '--calibration', *files),
        env=no_torch,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['frames']['out'] == FRAMES
    assert summary['accuracy']['published']['epe_px'] < 0.2


def test_the_matchers_of_the_demo_are_those_of_the_node():
    from lunar_stereo_recon.commands.demo import NODE_BACKENDS
    from lunar_stereo_recon.ros.parameters import ReconstructionParameters

    about = ReconstructionParameters.__dataclass_fields__['backend'].metadata
    assert NODE_BACKENDS == tuple(about['choices'])
