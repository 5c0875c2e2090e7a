"""How drivers name the topics of a rig, and which of them hold raw images."""

import numpy as np
import pytest

from lunar_stereo_recon.bags.reader import frame_doubts, StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter, make_message, transform_message
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import CalibrationError
from lunar_stereo_recon.result_messages import camera_info_message, image_message

RIG = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, 96, 64)


def write_rig(path, topics, distortion=0.0):
    """Write one frame; topics are left image, right image, left info, right info."""
    view = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    with BagWriter(path) as writer:
        for index, topic in enumerate(topics):
            if index < 2:
                message = image_message(make_message, view, 'mono8', 7, 'left')
            else:
                message = camera_info_message(make_message, RIG, 7, 'left', right=index == 3)
                message.d = np.array([distortion, 0.0, 0.0, 0.0, 0.0])
            writer.write(topic, message, 7)
    return path


@pytest.mark.parametrize(
    ('left', 'right', 'name'),
    [
        ('/camera/infra1', '/camera/infra2', 'image_rect_raw'),
        ('/oak/left', '/oak/right', 'image_rect'),
        ('/cam0', '/cam1', 'image_raw'),
        ('/Left', '/Right', 'image'),
        ('/navcam_l', '/navcam_r', 'image_raw'),
        ('/rig/left/left', '/rig/right/right', 'image_raw'),
    ],
)
def test_rig_is_found(tmp_path, left, right, name):
    topics = (f'{left}/{name}', f'{right}/{name}', f'{left}/camera_info', f'{right}/camera_info')
    with StereoBagReader(write_rig(tmp_path / 'drive', topics)) as reader:
        assert tuple(vars(reader.topics).values())[:4] == topics


def test_infos_in_one_namespace_keep_their_sides(tmp_path):
    topics = ('/s/left', '/s/right', '/s/left_camera_info', '/s/right_camera_info')
    with StereoBagReader(write_rig(tmp_path / 'drive', topics)) as reader:
        assert reader.topics.right_info == '/s/right_camera_info'


@pytest.mark.parametrize(
    ('name', 'distortion', 'raw'),
    [('image_raw', -0.2, True), ('image_raw', 0.0, False), ('image_rect', -0.2, False)],
)
def test_raw_images_are_rectified_without_being_told(tmp_path, name, distortion, raw):
    topics = (f'/left/{name}', f'/right/{name}', '/left/camera_info', '/right/camera_info')
    with StereoBagReader(write_rig(tmp_path / 'drive', topics, distortion)) as reader:
        frame = next(reader.frames())
        assert frame.looks_raw is raw
        same = np.array_equal(frame.pair().left, frame.pair(rectify=False).left, equal_nan=True)
        assert same is not raw


def write_extrinsics(path, frames, static, right_tx=0.0):
    """Write one frame without a baseline, and static transforms (parent, child, x)."""
    view = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    with BagWriter(path) as writer:
        for index, side in enumerate(('left', 'right')):
            image = image_message(make_message, view, 'mono8', 7, frames[index])
            writer.write(f'/{side}/image_rect', image, 7)
            info = camera_info_message(make_message, RIG, 7, frames[index], right=index == 1)
            info.p[3] = right_tx if index else 0.0
            writer.write(f'/{side}/camera_info', info, 7)
        # Latched: it may have been recorded after the images.
        for parent, child, x in static:
            turn = np.array([0.0, 0.0, 0.0, 1.0])
            message = transform_message(np.array([x, 0.0, 0.0]), turn, 9, parent, child)
            writer.write('/tf_static', message, 9)
    return path


TREE = [('mast', 'left_optical', 0.1), ('mast', 'bar', 0.3), ('bar', 'right_optical', 0.04)]


def test_baseline_of_static_transforms_serves_where_the_camera_info_has_none(tmp_path):
    bag = write_extrinsics(tmp_path / 'drive', ('left_optical', 'right_optical'), TREE)
    with StereoBagReader(bag) as reader:
        frame = next(reader.frames())
    assert frame.pair().calibration.baseline_m == pytest.approx(0.24)
    assert frame.pair(baseline_m=0.5).calibration.baseline_m == 0.5
    (text,) = frame_doubts(frame, frame.pair()).texts()
    assert '0.24 m is used' in text and '/tf_static' in text
    assert frame_doubts(frame, frame.pair(baseline_m=0.5), baseline_m=0.5).texts() == []


def test_baseline_of_the_camera_info_comes_first(tmp_path):
    bag = write_extrinsics(
        tmp_path / 'drive', ('left_optical', 'right_optical'), TREE, right_tx=-12.0
    )
    with StereoBagReader(bag) as reader:
        frame = next(reader.frames())
    assert frame.pair().calibration.baseline_m == pytest.approx(0.2)
    assert frame_doubts(frame, frame.pair()).texts() == []


@pytest.mark.parametrize(
    ('frames', 'static', 'reason'),
    [
        (('camera', 'camera'), TREE, "both cameras have the frame 'camera'"),
        (('left_optical', 'right_optical'), TREE[:1], 'no static transform'),
        (('left_optical', 'right_optical'), [], 'no static transform'),
        (
            ('left_optical', 'right_optical'),
            [('mast', 'left_optical', 0.0), ('mast', 'right_optical', 0.0)],
            'in one place',
        ),
    ],
)
def test_why_static_transforms_cannot_help(tmp_path, frames, static, reason):
    bag = write_extrinsics(tmp_path / 'drive', frames, static)
    with StereoBagReader(bag) as reader:
        frame = next(reader.frames())
    with pytest.raises(CalibrationError, match='P\\[3\\] is 0') as error:
        frame.pair()
    assert reason in str(error.value)


def test_replay_says_what_it_takes_for_granted(tmp_path, capsys):
    bag = write_extrinsics(tmp_path / 'drive', ('left_optical', 'right_optical'), TREE)
    out = ['--out', str(tmp_path / 'out'), '--backend', 'sgbm', '--no-report']
    assert main(['replay', str(bag), *out]) == 0
    assert '0.24 m is used' in capsys.readouterr().out
