import dataclasses

import numpy as np
import pytest

from lunar_stereo_recon.datatypes import DisparityPrediction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.preprocess import (
    aligned_principal_points,
    full_size_prediction,
    grey_from_array,
    network_pair,
)


@pytest.mark.parametrize(
    'image, white_level, expected',
    [
        (np.array([[0, 255]], np.uint8), None, [0, 1]),
        (np.array([[0, 65535]], np.uint16), None, [0, 1]),
        (np.array([[1024, 4095]], np.uint16), 4095, [1024 / 4095, 1]),
        (np.array([[0.25, np.nan]]), None, [0.25, 0]),
        (np.array([[-1.0, 7.0]]), None, [0, 1]),
        (np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8), None, [0.299, 1]),
    ],
)
def test_grey_values(image, white_level, expected):
    grey = grey_from_array(image, white_level)
    assert grey.dtype == np.float32 and grey.shape == (1, 2)
    np.testing.assert_allclose(grey[0], expected, atol=2e-3)


@pytest.mark.parametrize(
    'image, message',
    [
        (np.zeros((2, 2), np.int32), 'type int32'),
        (np.zeros((2, 2, 5), np.uint8), 'shape'),
        (np.zeros((2, 2, 2), np.uint8), 'channels'),
        (np.zeros((0, 3), np.uint8), 'shape'),
        (np.zeros(4, np.uint8), 'shape'),
    ],
)
def test_unusable_images_are_refused(image, message):
    with pytest.raises(InputError, match=message):
        grey_from_array(image)


def test_white_level_must_be_positive():
    with pytest.raises(InputError, match='white level'):
        grey_from_array(np.zeros((2, 2), np.uint8), 0)


def test_small_pair_is_padded_but_not_scaled(slope_pair):
    network = network_pair(slope_pair, 50, 640)
    assert network.left.shape == (100, 100)
    np.testing.assert_array_equal(network.left[:64, :96], slope_pair.left)
    np.testing.assert_array_equal(network.left[64:, :96], np.tile(slope_pair.left[-1], (36, 1)))
    assert network.calibration.fx == slope_pair.calibration.fx
    assert network.calibration.cx == slope_pair.calibration.cx


def test_fitting_pair_is_not_copied(slope_pair):
    assert network_pair(slope_pair, 32, 640).left is slope_pair.left


def test_wide_pair_and_its_calibration_are_scaled_together():
    calibration = StereoCalibration(800.0, 800.0, 639.5, 359.5, 639.5, 0.1, 1280, 720)
    image = np.zeros((720, 1280), np.float32)
    network = network_pair(StereoPair(image, image, calibration), 32, 640)
    assert network.left.shape == (384, 640)  # 360 rows, padded
    assert network.calibration.fx == 400.0
    assert network.calibration.cx == pytest.approx(319.5)


def test_prediction_returns_at_the_pair_s_size_with_scaled_disparity():
    calibration = StereoCalibration(800.0, 800.0, 639.5, 359.5, 639.5, 0.1, 1280, 720)
    image = np.zeros((720, 1280), np.float32)
    pair = StereoPair(image, image, calibration)
    raw = DisparityPrediction(
        np.full((384, 640), 12.0, np.float32), np.full((384, 640), 0.75, np.float32)
    )
    full = full_size_prediction(raw, pair, 640)
    assert full.disparity.shape == (720, 1280)
    np.testing.assert_allclose(full.disparity, 24.0)
    np.testing.assert_allclose(full.confidence, 0.75)


@pytest.mark.parametrize('offset', [5.25, -3.4])
def test_different_principal_points_are_aligned(slope_pair, offset):
    rig = dataclasses.replace(
        slope_pair.calibration, cx_right=slope_pair.calibration.cx_right - offset
    )
    aligned = aligned_principal_points(dataclasses.replace(slope_pair, calibration=rig))
    assert 0 <= aligned.calibration.disparity_offset_px < 1
    shift = round(rig.disparity_offset_px - aligned.calibration.disparity_offset_px)
    inside = slice(max(shift, 0), 96 + min(shift, 0))
    source = slice(max(-shift, 0), 96 - max(shift, 0))
    np.testing.assert_array_equal(aligned.right[:, inside], slope_pair.right[:, source])
    np.testing.assert_array_equal(aligned.left, slope_pair.left)


def test_equal_principal_points_need_nothing(slope_pair):
    assert aligned_principal_points(slope_pair) is slope_pair


@pytest.mark.parametrize('width, scaled', [(384, 640), (360, 640), (320, 320)])
def test_images_are_enlarged_unless_they_are_tiny(width, scaled):
    height = width * 3 // 4
    image = np.random.default_rng(0).random((height, width), np.float32).round()  # overshoots
    rig = StereoCalibration(300, 300, width / 2, height / 2, width / 2, 0.3, width, height)
    network = network_pair(StereoPair(image, image, rig), 1)
    assert network.left.shape == (scaled * 3 // 4, scaled)
    assert network.calibration.fx == pytest.approx(300 * scaled / width)
    assert 0 <= network.left.min() and network.left.max() <= 1
    ones = np.ones(network.left.shape, np.float32)
    found = full_size_prediction(
        DisparityPrediction(8 * ones, ones), StereoPair(image, image, rig)
    )
    assert found.disparity == pytest.approx(np.full((height, width), 8 * width / scaled))
