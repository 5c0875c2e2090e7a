"""Camchains of Kalibr: raw views of a known scene become a rectified pair with the true depth."""

import cv2
import numpy as np
import pytest
import yaml

from lunar_stereo_recon.errors import CalibrationError
from lunar_stereo_recon.files.calibrations import (
    load_calibration,
    load_camera_infos,
    load_file_calibration,
)
from lunar_stereo_recon.geometry.rectify import rectified_image
from lunar_stereo_recon.messages import raw_cameras_of_infos

WIDTH, HEIGHT = 320, 240
BASELINE_M = 0.12
ROTATION = cv2.Rodrigues(np.array([0.01, -0.02, 0.015]))[0]
# cam1 stands 0.12 m to the right of cam0, and a little off.
TRANSLATION = -ROTATION @ np.array([BASELINE_M, 0.002, -0.001])


def chain(model='radtan', swapped=False):
    """Return a camchain as Kalibr writes it."""
    coefficients = {'radtan': [-0.2, 0.05, 0.001, -0.0005], 'equidistant': [0.01, -0.02, 0, 0]}
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = ROTATION, TRANSLATION
    if swapped:
        matrix = np.linalg.inv(matrix)
    camera = {
        'camera_model': 'pinhole',
        'distortion_model': model,
        'distortion_coeffs': coefficients.get(model, []),
        'resolution': [WIDTH, HEIGHT],
        'rostopic': '/cam/image_raw',
    }
    first = {**camera, 'cam_overlaps': [1], 'intrinsics': [250.0, 251.0, 158.0, 121.0]}
    second = {**camera, 'cam_overlaps': [0], 'intrinsics': [248.0, 248.5, 162.0, 118.0]}
    if swapped:
        first, second = second, first
    return {'cam0': first, 'cam1': {**second, 'T_cn_cnm1': matrix.tolist()}}


@pytest.fixture
def write(tmp_path):
    def write(document, name='camchain.yaml'):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def raw_pixels(points, camera, model, rotation=None, translation=None):
    """Return where a camera of a chain sees points (N, 3) of cam0, pixels (N, 2)."""
    fx, fy, cx, cy = camera['intrinsics']
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    turn = np.zeros(3) if rotation is None else cv2.Rodrigues(rotation)[0]
    move = np.zeros(3) if translation is None else translation
    points = points.reshape(-1, 1, 3)
    coefficients = np.array(camera['distortion_coeffs'], float)
    if model == 'equidistant':
        return cv2.fisheye.projectPoints(points, turn, move, matrix, coefficients)[0][:, 0]
    return cv2.projectPoints(points, turn, move, matrix, coefficients)[0][:, 0]


def rectified_pixel(camera, pixel):
    """Return where a dot at a raw pixel is in the rectified image."""
    column, row = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    dot = np.exp(-((column - pixel[0]) ** 2 + (row - pixel[1]) ** 2) / 4).astype(np.float32)
    seen = np.clip(rectified_image(dot, camera), 0, None) ** 2
    return (seen * column).sum() / seen.sum(), (seen * row).sum() / seen.sum()


@pytest.mark.parametrize('model', ['radtan', 'equidistant', 'none'])
@pytest.mark.parametrize('swapped', [False, True])
def test_points_come_out_where_they_are(write, model, swapped):
    document = chain(model, swapped)
    files = load_file_calibration([write(document)], WIDTH, HEIGHT)
    rig = files.rectified
    expected = np.linalg.norm(TRANSLATION)
    assert rig.baseline_m == pytest.approx(expected, rel=1e-6)
    assert files.distorted == (model != 'none')
    cameras = raw_cameras_of_infos(*files.infos, rig)
    left, right = document['cam0'], document['cam1']
    if swapped:
        left, right = right, left
    points = np.array([[0.1, 0.05, 2.0], [-0.4, 0.3, 3.0], [0.3, -0.25, 1.5]])
    seen_left = raw_pixels(points, left, model)
    seen_right = raw_pixels(points, right, model, ROTATION, TRANSLATION)
    for point, at_left, at_right in zip(points, seen_left, seen_right, strict=True):
        u, v = rectified_pixel(cameras[0], at_left)
        u_right, v_right = rectified_pixel(cameras[1], at_right)
        assert v == pytest.approx(v_right, abs=0.1)
        depth = rig.fx * rig.baseline_m / (u - u_right - rig.cx + rig.cx_right)
        # Of the rectified camera, whose axis is a little off that of the raw one.
        axis = np.array(files.infos[0].r).reshape(3, 3)
        assert depth == pytest.approx((axis @ point)[2], rel=0.01)


def test_camchain_is_taken_wherever_two_files_are(write):
    path = write(chain())
    left, right = load_camera_infos([path])
    assert (left, right) == load_camera_infos([path, path])
    assert left.distortion_model == 'plumb_bob' and right.p[3] < 0 == left.p[3]
    assert load_calibration([path], WIDTH, HEIGHT, 0.2).baseline_m == 0.2


def changed(**changes):
    document = chain()
    for name, value in changes.items():
        camera, _, entry = name.partition('_')
        if value is None:
            del document[camera][entry]
        else:
            document[camera][entry] = value
    return document


UPRIGHT = [[1, 0, 0, 0], [0, 1, 0, -0.1], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ('document', 'text'),
    [
        ({'cam0': chain()['cam0']}, 'without cam1'),
        (changed(cam0_camera_model='omni'), "camera_model is 'omni'; pinhole"),
        (changed(cam1_distortion_model='fov'), "'fov'; one of none, radtan, equidistant"),
        (changed(cam0_intrinsics=[1, 2, 3]), r'intrinsics has the shape \(3,\)'),
        (changed(cam0_intrinsics=[0, 250, 160, 120]), 'focal lengths are 0 and 250'),
        (changed(cam0_intrinsics=['a', 2, 3, 4]), 'not made of numbers'),
        (changed(cam1_resolution=[64, 48]), 'both views must have one size'),
        (changed(cam0_resolution=[64.5, 48]), 'pixels are needed'),
        (changed(cam1_T_cn_cnm1=None), 'has no T_cn_cnm1'),
        (changed(cam1_T_cn_cnm1=[[2, 0, 0, 1]] * 4), 'a rotation is needed'),
        (changed(cam1_T_cn_cnm1=UPRIGHT), 'side by side'),
        (
            changed(cam1_distortion_model='equidistant'),
            "the left camera is 'radtan' and the right 'equidistant'",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(write, document, text):
    with pytest.raises(CalibrationError, match=text):
        load_calibration([write(document)], WIDTH, HEIGHT)


def test_size_of_other_images_and_one_camera_alone_are_refused(write):
    with pytest.raises(CalibrationError, match='image_width 320'):
        load_calibration([write(chain())], 640, 480)
    info = {'image_width': 4, 'image_height': 3, 'projection_matrix': {'data': [1.0] * 12}}
    with pytest.raises(CalibrationError, match='of one camera'):
        load_camera_infos([write(info)])
