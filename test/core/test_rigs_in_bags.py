"""How drivers name the topics of a rig, and which of them hold raw images."""

import numpy as np
import pytest

from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter, make_message
from lunar_stereo_recon.datatypes import StereoCalibration
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
