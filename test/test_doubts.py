"""What is probably not meant is said, with the parameter that helps; what is usual is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.bags.writer import make_message
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.doubts import (
    baseline_doubt,
    called_rectified,
    looks_raw,
    white_level_doubt,
)
from lunar_stereo_recon.files.calibrations import CameraInfo
from lunar_stereo_recon.messages import pair_from_messages, StereoTopics
from lunar_stereo_recon.result_messages import camera_info_message, header, image_message

RIG = StereoCalibration(60.0, 60.0, 31.5, 23.5, 31.5, 0.2, 64, 48)


def info(*distortion):
    return CameraInfo(64, 48, (60.0, 0, 31.5, 0, 0, 60.0, 23.5, 0, 0, 0, 1, 0), d=distortion)


@pytest.mark.parametrize(
    ('left', 'right', 'distortion', 'raw'),
    [
        ('/cam/left/image_raw', '/cam/right/image_raw', (-0.2, 0.0), True),
        ('/cam/left/image', '/cam/right/image', (-0.2, 0.0), True),
        ('/cam/left/image_raw', '/cam/right/image_raw', (0.0,) * 5, False),
        ('/cam/left/image_raw', '/cam/right/image_raw', (), False),
        # Drivers keep D in the camera_info of images that they have rectified.
        ('/cam/left/image_rect', '/cam/right/image_rect', (-0.2, 0.0), False),
        ('/camera/infra1/image_rect_raw', '/camera/infra2/image_rect_raw', (-0.2,), False),
    ],
)
def test_distortion_of_what_is_not_called_rectified_means_raw(left, right, distortion, raw):
    topics = StereoTopics(left, right)
    assert looks_raw(topics, info(*distortion), info()) is raw
    assert looks_raw(topics, info(), info(*distortion)) is raw


@pytest.mark.parametrize('baseline_m', [0.01, 0.12, 0.42, 1.0, 3.0])
def test_usual_baselines_are_no_doubt(baseline_m):
    assert baseline_doubt(baseline_m, 'right/camera_info') == ''


@pytest.mark.parametrize('baseline_m', [0.0001, 0.00012, 8.95, 60.0])
def test_baseline_in_other_units_is_doubted(baseline_m):
    text = baseline_doubt(baseline_m, 'right/camera_info')
    assert f'{baseline_m:g} m' in text and "parameter 'baseline'" in text
    assert text.startswith('right/camera_info')


def views(brightest):
    ramp = np.linspace(0, brightest, 64).astype(np.uint16)
    return np.tile(ramp, (48, 1))


def raw_message(values):
    return image_message(make_message, values, 'mono16', 1, 'left')


def png_message(values):
    return make_message(
        'sensor_msgs/msg/CompressedImage',
        header=header(make_message, 1, 'left'),
        format='mono16; png compressed ',
        data=np.frombuffer(cv2.imencode('.png', values)[1].tobytes(), np.uint8),
    )


def doubt(message, white_level=None):
    infos = (
        camera_info_message(make_message, RIG, 1, 'left', right=right) for right in (False, True)
    )
    pair = pair_from_messages(message, message, *infos, white_level=white_level)
    return white_level_doubt(message, pair, white_level, 'left/image_rect')


@pytest.mark.parametrize('make', [raw_message, png_message])
@pytest.mark.parametrize(('brightest', 'white'), [(1023, 1023), (4095, 4095), (9000, 16383)])
def test_few_bits_in_sixteen_are_doubted(make, brightest, white):
    text = doubt(make(views(brightest)))
    assert f"parameter 'white_level' to {white}" in text


@pytest.mark.parametrize('make', [raw_message, png_message])
def test_all_bits_black_or_a_given_white_are_no_doubt(make):
    assert doubt(make(views(40000))) == ''
    assert doubt(make(views(0))) == ''
    assert doubt(make(views(4000)), white_level=4095.0) == ''


def test_eight_bits_are_no_doubt():
    assert doubt(image_message(make_message, views(10).astype(np.uint8), 'mono8', 1, 'left')) == ''


def test_rows_that_do_not_fit_are_doubted():
    from lunar_stereo_recon.datatypes import RowAlignment
    from lunar_stereo_recon.doubts import rows_doubt

    assert rows_doubt(RowAlignment(), 640, 'p1') == ''
    assert rows_doubt(RowAlignment(0.1, 0.0, 0.02), 640, 'p1') == ''
    text = rows_doubt(RowAlignment(1.5, 0.0, 0.02), 640, 'p1')
    assert text.startswith('p1: ') and text.endswith('Are the images raw?')


def test_names_of_files_and_folders_say_whether_they_are_raw():
    from pathlib import Path

    from lunar_stereo_recon.doubts import files_look_raw
    from lunar_stereo_recon.files.calibrations import CameraInfo

    info = CameraInfo(4, 3, (1.0,) * 12, d=(0.1, 0.0, 0.0, 0.0, 0.0))
    plain = CameraInfo(4, 3, (1.0,) * 12)
    raw = [Path('/direct/drive/left.png'), Path('/direct/drive/right.png')]
    assert files_look_raw(raw, (info, info))
    assert not files_look_raw(raw, (plain, plain)) and not files_look_raw(raw, ())
    assert not files_look_raw([Path('rectified/l.png'), Path('rectified/r.png')], (info, info))


@pytest.mark.parametrize(
    'name, rectified',
    [
        ('/left/image_rect', True),
        ('/stereo/leftRect/image', True),
        ('rectified/left.png', True),
        ('/left/image_raw', False),
        ('direct/left.png', False),
        ('unrectified/left.png', False),
        ('/corrected/image', False),
    ],
)
def test_names_of_rectified_images(name, rectified):
    assert called_rectified(name) == rectified
