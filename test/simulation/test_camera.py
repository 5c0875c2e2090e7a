"""The rig's geometry and the statistics of the sensor model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation.camera import (  # noqa: E402
    camera_rotation,
    expose,
    right_view,
    Sensor,
    Window,
)

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
