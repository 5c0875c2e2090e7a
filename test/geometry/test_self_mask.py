"""The self-mask: no results on the rover's own parts, sizes that fit, files and polygons."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.self_masks import read_self_mask
from lunar_stereo_recon.geometry.self_mask import fitted, SelfMask, without_rover
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor

CAMERA = StereoCalibration(200.0, 200.0, 95.5, 63.5, 95.5, 0.2, 192, 128)
WALL_PX = 8


@pytest.fixture
def wall():
    """Return a textured wall whose disparity is 8 px."""
    noise = np.random.default_rng(0).standard_normal((128, 192 + WALL_PX)).astype(np.float32)
    texture = np.clip(0.5 + 0.4 * cv2.GaussianBlur(noise, (0, 0), 1.0), 0, 1)
    left, right = texture[:, :192], texture[:, WALL_PX:]
    return StereoPair(np.ascontiguousarray(left), np.ascontiguousarray(right), CAMERA)


def box(x, y, width, height, shape=(128, 192)):
    mask = np.zeros(shape, bool)
    mask[y : y + height, x : x + width] = True
    return mask


@pytest.mark.parametrize('dense', [False, True])
def test_masked_pixels_have_no_result_and_the_others_keep_theirs(wall, dense):
    engine = StereoReconstructor(load_backend('sgbm'), ReconstructionOptions(dense=dense))
    plain = engine.reconstruct(wall)
    engine.self_mask = SelfMask(box(60, 40, 50, 60))
    masked = engine.reconstruct(wall)
    own = engine.self_mask.left
    assert plain.valid_mask[own].mean() > 0.9
    assert not masked.valid_mask[own].any()
    assert np.isnan(masked.points[own]).all() and np.isnan(masked.disparity[own]).all()
    assert (masked.valid_mask == plain.valid_mask)[~own].all()


def test_what_is_matched_with_the_rover_in_the_right_view_has_no_result(wall):
    engine = StereoReconstructor(load_backend('sgbm'))
    engine.self_mask = SelfMask(None, box(60, 40, 50, 60))
    valid = engine.reconstruct(wall).valid_mask
    assert not valid[45:95, 60 + WALL_PX + 2 : 110 + WALL_PX - 2].any()
    assert valid[45:95, 125:180].mean() > 0.9 and valid[5:35, 60:180].mean() > 0.9


def test_pixels_that_a_rectified_view_lacks_stay_unseen(wall):
    lacking = StereoPair(
        wall.left, wall.right, CAMERA, left_mask=~box(0, 0, 10, 128), right_mask=~box(0, 0, 5, 128)
    )
    pair = without_rover(lacking, SelfMask(box(60, 40, 50, 60)))
    assert not pair.left_mask[:, :10].any() and not pair.left_mask[40:100, 60:110].any()
    assert pair.right_mask[:, 5:].all() and not pair.right_mask[:, :5].any()


def test_a_mask_of_the_same_ratio_is_scaled_and_another_refused():
    mask = fitted(box(30, 20, 25, 30, (64, 96)), 192, 128, 'mask.png')
    assert (mask == box(60, 40, 50, 60)).all()
    with pytest.raises(InputError, match='mask.png is 128x128, but the camera_info says 192x128'):
        fitted(np.zeros((128, 128), bool), 192, 128, 'mask.png')


def test_masks_come_from_images_and_polygons(tmp_path):
    path = tmp_path / 'mask.png'
    cv2.imwrite(str(path), box(60, 40, 50, 60).astype(np.uint8) * 255)
    found = read_self_mask(str(path), '[[60, 40], [109, 40], [109, 99], [60, 99]]')
    assert (found.left == box(60, 40, 50, 60)).all()
    # A polygon is in pixels of the image, whatever part of it its corners reach.
    assert (fitted(found.right, 192, 128, '') == box(60, 40, 50, 60)).all()
    assert (fitted(found.right, 640, 480, '') == box(60, 40, 50, 60, (480, 640))).all()
    assert found.left_name == str(path)


@pytest.mark.parametrize(
    'text, said',
    [
        ('/nowhere/mask.png', 'no image at /nowhere/mask.png'),
        ('[[1, 2], [3, 4]]', 'is no polygon; between 3'),
        ('[[1, 2], [3, 4], [5, 1e9]]', 'within 16384 px'),
        ('[[1, 2], [3, 4], [5', 'is no polygon'),
        ('[1, 2, 3]', 'is no polygon'),
        ('[[1, 2], [3, 4], ["a", 1]]', 'is no polygon'),
    ],
)
def test_what_is_no_mask_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        read_self_mask(text)


@pytest.mark.parametrize('name', ['x' * 5000, '~/\0', f'[[0, 0], [9, 0], [{"9" * 400}, 9]]'])
def test_a_text_that_is_neither_file_nor_polygon_is_refused(name):
    with pytest.raises(InputError, match='image|polygon|is no path'):
        read_self_mask(name)
