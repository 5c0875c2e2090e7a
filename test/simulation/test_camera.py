"""The rig's geometry and the statistics of the sensor model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation.camera import (  # noqa: E402
    automatic_gain,
    camera_rotation,
    expose,
    Motion,
    RigError,
    right_view,
    Sensor,
    Window,
)
from lunar_stereo_recon.simulation.scene import Rendering  # noqa: E402

FRAME = Window(0, 0, 200, 150, 200, 150)
QUIET = Sensor(gain=1.0, shot_noise_dn=0.0, read_noise_dn=0.0, vignetting=0.0, psf_sigma_px=0.0)


def even(value: float) -> np.ndarray:
    return np.full((150, 200), value, np.float32)


def picture(value: float, seed: int = 0, **changes) -> np.ndarray:
    sensor = dataclasses.replace(QUIET, **changes)
    return expose(even(value), sensor, FRAME, np.random.default_rng(seed)).astype(float)


def test_noise_of_light_and_of_the_dark():
    bright = picture(200.0, shot_noise_dn=3.0, read_noise_dn=1.5)
    assert bright.mean() == pytest.approx(200.0, abs=0.1)
    # Rounding to whole numbers adds a variance of 1/12.
    assert bright.std() == pytest.approx(np.sqrt(9.0 + 2.25 + 1 / 12), rel=0.03)
    dark = picture(0.0, read_noise_dn=1.5, shot_noise_dn=3.0, black_level_dn=10.0)
    assert dark.mean() == pytest.approx(10.0, abs=0.05)
    assert dark.std() == pytest.approx(np.sqrt(2.25 + 1 / 12), rel=0.03)
    half = picture(50.0, shot_noise_dn=3.0)
    assert half.std() == pytest.approx(np.sqrt(9.0 / 4 + 1 / 12), rel=0.03)


def test_noise_depends_on_the_seed_only():
    noisy = {'shot_noise_dn': 2.0}
    assert np.array_equal(picture(99.0, 1, **noisy), picture(99.0, 1, **noisy))
    assert not np.array_equal(picture(99.0, 1, **noisy), picture(99.0, 2, **noisy))


def test_saturation_and_response():
    assert (picture(400.0) == 255).all()
    assert (picture(0.25 * 255, response='gamma') == round(255 * 0.25 ** (1 / 2.2))).all()
    assert (picture(51.0) == 51).all()
    assert (picture(51.0, response='log') > 51).all()


def test_vignetting_dust_and_blur():
    dim = picture(200.0, vignetting=0.3)
    assert dim[75, 100] == 200 and dim[0, 0] == pytest.approx(140, abs=2)
    spot = picture(200.0, dust=((0.25, 0.5, 0.05, 0.4),))
    assert spot[75, 50] == pytest.approx(120, abs=3) and spot[75, 150] == 200
    step = even(0.0)
    step[:, 100:] = 200.0
    edge = expose(
        step, dataclasses.replace(QUIET, psf_sigma_px=0.8), FRAME, np.random.default_rng(0)
    )
    assert 10 < edge[75, 99] < 90 and edge[75, 90] == 0
    soft = dataclasses.replace(QUIET, defocus_px=2.0, defocus_side=1)
    wide = np.zeros((150, 200), np.float32)
    wide[:, [20, 180]] = 200.0
    lines = expose(wide, soft, FRAME, np.random.default_rng(0))
    assert lines[75, 20] > lines[75, 180]


def test_window_shows_its_part_of_the_frame():
    part = Window(100, 75, 60, 40, 200, 150)
    sensor = dataclasses.replace(QUIET, vignetting=0.3)
    rng = np.random.default_rng(0)
    whole = expose(even(200.0), sensor, FRAME, rng)
    cut = expose(np.full((40, 60), 200.0, np.float32), sensor, part, rng)
    assert np.array_equal(cut, whole[75:115, 100:160])


def test_wrong_sensor_input():
    with pytest.raises(InputError, match='200x150; the window is 60x40'):
        expose(even(1.0), QUIET, Window(0, 0, 60, 40, 200, 150), np.random.default_rng(0))
    with pytest.raises(InputError, match="'cubic'"):
        dataclasses.replace(QUIET, response='cubic')


def test_rotation_conventions():
    ahead = camera_rotation(0.0, 0.0, 0.0)
    np.testing.assert_allclose(ahead[:, 0], [0, -1, 0], atol=1e-7)
    np.testing.assert_allclose(ahead[:, 1], [0, 0, -1], atol=1e-7)
    np.testing.assert_allclose(ahead[:, 2], [1, 0, 0], atol=1e-7)
    down = camera_rotation(0.0, -0.3, 0.0)
    assert float(down[2, 2]) == pytest.approx(-np.sin(0.3))
    # Rolled clockwise, the camera's right side is lower.
    assert float(camera_rotation(0.0, 0.0, 0.1)[2, 0]) < 0
    turned = camera_rotation(1.1, -0.4, 0.2)
    torch.testing.assert_close(turned.T @ turned, torch.eye(3), atol=1e-6, rtol=0)
    assert float(torch.linalg.det(turned)) == pytest.approx(1.0, abs=1e-6)


def test_right_camera(view_from):
    left = view_from()
    right = right_view(left, 0.25, shift_y_px=0.5)
    torch.testing.assert_close(right.position_m - left.position_m, 0.25 * left.rotation[:, 0])
    point = left.position_m + 2.0 * left.rays()[1000]
    for view, row, column in ((left, 1000 // 64, 1000 % 64), (right, 15.5, 40 - 50 * 0.25 / 2)):
        local = (point - view.position_m) @ view.rotation
        assert float(view.fx * local[0] / local[2] + view.cx) == pytest.approx(column, abs=1e-3)
        assert float(view.fy * local[1] / local[2] + view.cy) == pytest.approx(row, abs=1e-3)


def test_calibration_error_moves_the_image(view_from):
    view = view_from()
    point = view.position_m + 3.0 * view.rays()[1000]

    def pixel(camera) -> np.ndarray:
        x, y, z = ((point - camera.position_m) @ camera.rotation).tolist()
        return np.array([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy])

    was = pixel(view)
    turned = pixel(RigError(yaw_deg=0.5).applied_to(view))
    # Turned to the right, the camera sees things farther to the left: f * tan(0.5 deg).
    assert turned[0] - was[0] == pytest.approx(-50 * np.radians(0.5), rel=0.15)
    raised = pixel(RigError(pitch_deg=0.5).applied_to(view))
    assert raised[1] - was[1] == pytest.approx(50 * np.radians(0.5), rel=0.15)
    np.testing.assert_allclose(
        pixel(RigError(shift_x_px=0.7, shift_y_px=-0.3).applied_to(view)) - was,
        [0.7, -0.3],
        atol=1e-5,
    )
    longer = pixel(RigError(focal=0.01).applied_to(view)) - [view.cx, view.cy]
    np.testing.assert_allclose(longer, 1.01 * (was - [view.cx, view.cy]), atol=1e-4)
    same = RigError().applied_to(view)
    assert torch.equal(same.rotation, view.rotation) and same.cx == view.cx


def test_motion(view_from):
    view = view_from(pitch_deg=0.0)
    ahead = Motion(velocity_m_s=(0.0, 0.0, 0.2)).after(view, 0.5)
    torch.testing.assert_close(ahead.position_m - view.position_m, torch.tensor([0.1, 0.0, 0.0]))
    # A rotation vector along y (down) turns the camera to its right.
    turned = Motion(turn_deg_s=(0.0, 10.0, 0.0)).after(view, 1.0)
    assert float(turned.rotation[1, 2]) == pytest.approx(-np.sin(np.radians(10.0)), abs=1e-6)
    views = Motion(velocity_m_s=(0.3, 0.0, 0.0)).during(view, 0.1, 4)
    middle = torch.stack([v.position_m for v in views])
    torch.testing.assert_close(middle.mean(0), view.position_m)
    assert float((middle[-1] - middle[0]).norm()) == pytest.approx(0.3 * 0.1 * 0.75, rel=1e-4)


def test_blooming_runs_along_the_columns():
    spot = even(10.0)
    spot[70:80, 100] = 1000.0
    plain = expose(spot, QUIET, FRAME, np.random.default_rng(0)).astype(int)
    bloomed = expose(
        spot, dataclasses.replace(QUIET, bloom_px=6.0), FRAME, np.random.default_rng(0)
    ).astype(int)
    assert plain[65, 100] == 10 and bloomed[65, 100] > 100
    assert bloomed[75, 99] == bloomed[75, 101] == 10
    assert bloomed[20, 100] == 10


def test_defect_pixels_stay_where_they_are():
    sensor = dataclasses.replace(QUIET, dead_pixels=0.01, hot_pixels=0.005, defect_seed=3)
    whole = expose(even(100.0), sensor, FRAME, np.random.default_rng(0))
    assert (whole == 0).mean() == pytest.approx(0.01, abs=0.002)
    assert (whole == 255).mean() == pytest.approx(0.005, abs=0.002)
    again = expose(even(80.0), sensor, FRAME, np.random.default_rng(9))
    assert np.array_equal(whole == 0, again == 0)
    part = Window(50, 40, 60, 40, 200, 150)
    cut = expose(np.full((40, 60), 100.0, np.float32), sensor, part, np.random.default_rng(0))
    assert np.array_equal(cut, whole[40:80, 50:110])
    assert (expose(even(100.0), QUIET, FRAME, np.random.default_rng(0)) == 100).all()


def test_images_of_more_bits():
    for bits in (12, 16):
        sensor = dataclasses.replace(QUIET, bits=bits, stored_bits=bits)
        image = expose(even(100.3), sensor, FRAME, np.random.default_rng(0))
        assert image.dtype == np.uint16
        assert image[0, 0] == round(100.3 / 255 * (2**bits - 1))
    with pytest.raises(InputError, match='20 bits'):
        dataclasses.replace(QUIET, stored_bits=20)


def test_colour():
    sensor = dataclasses.replace(QUIET, colour='rgb')
    image = expose(even(100.0), sensor, FRAME, np.random.default_rng(0))
    assert image.shape == (150, 200, 3)
    assert image[5, 5].tolist() == [108, 100, 91]
    raw = dataclasses.replace(QUIET, colour='bayer_rggb')
    mosaic = expose(even(100.0), raw, FRAME, np.random.default_rng(0))
    assert mosaic[:2, :2].tolist() == [[108, 100], [100, 91]]
    # A window that begins at an odd column begins with green.
    cut = Window(1, 0, 60, 40, 200, 150)
    part = expose(np.full((40, 60), 100.0, np.float32), raw, cut, np.random.default_rng(0))
    assert part[0, :2].tolist() == [100, 108]
    with pytest.raises(InputError, match="'cmyk'"):
        dataclasses.replace(QUIET, colour='cmyk')


def test_exposure_needs_lit_ground():
    sky = Rendering(torch.zeros(4, 4), torch.full((4, 4), torch.nan), torch.zeros(4, 4).bool())
    with pytest.raises(InputError, match='no ground is in view'):
        automatic_gain(sky)
    dark = dataclasses.replace(sky, depth=torch.ones(4, 4))
    with pytest.raises(InputError, match='no lit ground'):
        automatic_gain(dark)
    lit = dataclasses.replace(dark, radiance=torch.full((4, 4), 0.1))
    assert automatic_gain(lit) == pytest.approx(2040.0)
