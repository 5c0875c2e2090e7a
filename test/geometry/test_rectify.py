"""Raw images rectified by D, K, R and P, against the models written out."""

import dataclasses

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import CalibrationError
from lunar_stereo_recon.geometry.rectify import (
    confidence_where_seen,
    RawCamera,
    rectified_image,
    seen_mask,
)

WIDTH, HEIGHT = 80, 60
PLAIN = RawCamera(
    WIDTH,
    HEIGHT,
    intrinsics=(70.0, 72.0, 39.5, 29.5),
    distortion_model='plumb_bob',
    distortion=(),
    rotation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    rectified=(70.0, 72.0, 39.5, 29.5),
)
# About y, then x, by some degrees.
ROTATION = (
    cv2.Rodrigues(np.array([0.03, 0.0, 0.0]))[0] @ cv2.Rodrigues(np.array([0.0, 0.05, 0.0]))[0]
)


def polynomial(x, y, d):
    """Return distorted normalised coordinates: k1 k2 p1 p2 k3, and k4 k5 k6 of the rational."""
    k1, k2, p1, p2, k3, k4, k5, k6 = (*d, *[0.0] * (8 - len(d)))
    r2 = x * x + y * y
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def equidistant(x, y, d):
    radius = np.hypot(x, y)
    theta = np.arctan(radius)
    bent = theta * (1 + sum(k * theta ** (2 * power) for power, k in enumerate(d, start=1)))
    return x * bent / radius, y * bent / radius


@pytest.mark.parametrize(
    ('model', 'distortion', 'function'),
    [
        ('plumb_bob', (-0.28, 0.09, 0.001, -0.002, -0.01), polynomial),
        ('plumb_bob', (-0.1, 0.02, 0.001, -0.002), polynomial),
        ('rational_polynomial', (0.4, 0.1, 0.001, 0.0005, 0.01, 0.7, 0.2, 0.03), polynomial),
        ('equidistant', (-0.02, 0.01, -0.003, 0.001), equidistant),
        ('fisheye', (0.1, 0.0, 0.0, 0.0), equidistant),
    ],
)
def test_each_rectified_pixel_is_taken_from_where_its_ray_hits_the_sensor(
    model, distortion, function
):
    camera = dataclasses.replace(
        PLAIN,
        distortion_model=model,
        distortion=distortion,
        rotation=tuple(ROTATION.reshape(-1)),
        rectified=(60.0, 60.0, 41.2, 28.1),
    )
    columns, rows = camera.maps()
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = np.stack([(u - 41.2) / 60.0, (v - 28.1) / 60.0, np.ones(u.shape)], axis=-1)
    rays = rays @ ROTATION  # R takes raw axes to rectified ones; rows times R is the inverse
    x, y = function(rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2], distortion)
    np.testing.assert_allclose(columns, 70.0 * x + 39.5, atol=1e-3)
    np.testing.assert_allclose(rows, 72.0 * y + 29.5, atol=1e-3)
    assert np.abs(columns - u).max() > 1


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('channels', [(), (3,)])
def test_image_without_distortion_stays_what_it_is(dtype, channels):
    raw = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, *channels)).astype(dtype)
    np.testing.assert_array_equal(rectified_image(raw, PLAIN), raw)
    assert seen_mask(PLAIN).all()
    with pytest.raises(CalibrationError, match='raw image is 79x60, its calibration for 80x60'):
        rectified_image(raw[:, 1:], PLAIN)


def test_pixels_beyond_the_raw_image_are_not_seen():
    wide = dataclasses.replace(PLAIN, rectified=(35.0, 36.0, 39.5, 29.5))
    seen = seen_mask(wide)
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    inside = (np.abs(columns - 39.5) <= 39.5 / 2) & (np.abs(rows - 29.5) <= 29.5 / 2)
    np.testing.assert_array_equal(seen, inside)


def test_a_polynomial_that_bends_back_shows_nothing_twice():
    # r (1 - 0.4 r^2) grows up to r = 0.91 only; the rectified corners are at 1.7.
    folded = dataclasses.replace(
        PLAIN, distortion=(-0.4, 0.0, 0.0, 0.0, 0.0), rectified=(29.0, 29.0, 39.5, 29.5)
    )
    columns, rows = folded.maps()
    inside = (columns >= 0) & (columns <= WIDTH - 1) & (rows >= 0) & (rows <= HEIGHT - 1)
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    radius = np.hypot((u - 39.5) / 29.0, (v - 29.5) / 29.0)
    seen = seen_mask(folded)
    assert inside[radius > 1.2].any()
    assert not seen[radius > 0.95].any()
    np.testing.assert_array_equal(seen[radius < 0.87], inside[radius < 0.87])


def test_what_one_camera_does_not_see_has_no_confidence():
    calibration = StereoCalibration(50.0, 50.0, 9.5, 4.5, 7.5, 0.1, 20, 10)
    image = np.zeros((10, 20), np.float32)
    left_mask, right_mask = np.ones((10, 20), bool), np.ones((10, 20), bool)
    left_mask[:, 18:] = False
    right_mask[:, :5] = False
    pair = StereoPair(image, image, calibration, left_mask=left_mask, right_mask=right_mask)
    disparity = np.full((10, 20), 3.0, np.float32)
    disparity[0] = np.nan
    confidence = confidence_where_seen(np.ones((10, 20), np.float32), disparity, pair)
    # Column difference: 3 + (cx - cx_right) = 5. Columns up to 9 meet what the right does not see.
    np.testing.assert_array_equal(confidence[1:, :10], 0)
    np.testing.assert_array_equal(confidence[1:, 10:18], 1)
    np.testing.assert_array_equal(confidence[1:, 18:], 0)
    unmasked = dataclasses.replace(pair, left_mask=None, right_mask=None)
    assert confidence_where_seen(confidence, disparity, unmasked) is confidence


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'distortion_model': 'ftheta'}, "'ftheta'; one of plumb_bob"),
        ({'distortion': (0.1, 0.2)}, "'plumb_bob' has 2 coefficients; 0 or 4 or 5"),
        ({'distortion_model': 'equidistant'}, "'equidistant' has 0 coefficients; 4"),
        ({'intrinsics': (0.0, 0.0, 0.0, 0.0)}, 'in K are 0 and 0; positive'),
        ({'rotation': (0.0,) * 9}, 'a rotation is needed. Is the camera calibrated'),
        ({'rectified': (np.nan, 70.0, 39.5, 29.5)}, 'not finite'),
    ],
)
def test_unusable_calibrations_are_refused(changes, words):
    with pytest.raises(CalibrationError, match=words):
        dataclasses.replace(PLAIN, **changes)
