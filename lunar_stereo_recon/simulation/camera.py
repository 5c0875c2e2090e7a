"""Stereo rig geometry and a sensor model: from radiance to 8-bit images.

Everything that a sensor does happens after the geometry is fixed, so that the disparity of the
left image stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import cv2
import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.renderer import View

FloatImage = NDArray[np.float32]


@dataclass(frozen=True)
class Sensor:
    """One camera's sensor and electronics.

    Attributes:
        gain: Digital numbers (0..255) per unit of radiance.
        response: 'linear', 'gamma' (exponent 1/2.2) or 'log'.
        shot_noise_dn: Standard deviation of the photon noise at 200 DN before the response.
        read_noise_dn: Standard deviation of the noise in the dark, DN.
        pattern_noise: Relative standard deviation of the pixels' sensitivity.
        black_level_dn: Offset added before quantisation, DN.
        vignetting: Loss of light in the corner of the whole frame, 0..1.
        psf_sigma_px: Gaussian blur of optics and pixel, pixels.
        defocus_px: Further blur on one side of the image, pixels (0 at one border).
        defocus_side: -1: grows to the left, +1: grows to the right.
        dust: (N, 4) spots on the lens: column and row as a fraction of the whole frame,
            radius as a fraction of its width, loss of light.
        bits: Bits of the converter; 12-bit images are stored with 8 bits as well.
    """

    gain: float
    response: str = 'linear'
    shot_noise_dn: float = 1.2
    read_noise_dn: float = 0.4
    pattern_noise: float = 0.0
    black_level_dn: float = 0.0
    vignetting: float = 0.08
    psf_sigma_px: float = 0.45
    defocus_px: float = 0.0
    defocus_side: int = 1
    dust: tuple[tuple[float, float, float, float], ...] = ()
    bits: int = 8

    def __post_init__(self) -> None:
        if self.response not in RESPONSES:
            raise InputError(
                f'sensor response is {self.response!r}; one of {sorted(RESPONSES)} is needed'
            )


@dataclass(frozen=True)
class Window:
    """Part of a whole frame that is rendered: offsets and size, and the frame's size, pixels."""

    left: int
    top: int
    width: int
    height: int
    frame_width: int
    frame_height: int


RESPONSES = {
    'linear': lambda x: x,
    'gamma': lambda x: x ** (1 / 2.2),
    'log': lambda x: np.log1p(20.0 * x) / math.log(21.0),
}


def camera_rotation(heading_rad: float, pitch_rad: float, roll_rad: float) -> torch.Tensor:
    """Return the 3x3 rotation world from camera (camera: x right, y down, z forward).

    Args:
        heading_rad: Direction of view around z, counterclockwise from world x.
        pitch_rad: Angle of the optical axis above the horizon; negative looks down.
        roll_rad: Turn around the optical axis, clockwise as seen by the camera.
    """
    ch, sh = math.cos(heading_rad), math.sin(heading_rad)
    cp, sp = math.cos(pitch_rad), math.sin(pitch_rad)
    forward = np.array([ch * cp, sh * cp, sp])
    right = np.array([sh, -ch, 0.0])
    down = np.cross(forward, right)
    cr, sr = math.cos(roll_rad), math.sin(roll_rad)
    turned_right = cr * right + sr * down
    turned_down = cr * down - sr * right
    return torch.from_numpy(np.stack([turned_right, turned_down, forward], axis=1)).float()


def right_view(
    left: View, baseline_m: float, shift_y_px: float = 0.0, roll_rad: float = 0.0
) -> View:
    """Return the right camera of a rig, with a small error of its rectification.

    Args:
        left: The left camera.
        baseline_m: Distance along the left camera's x axis, metres.
        shift_y_px: Rows by which the right image is shifted down.
        roll_rad: Turn of the right camera around its optical axis.
    """
    cos, sin = math.cos(roll_rad), math.sin(roll_rad)
    turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return View(
        left.position_m + baseline_m * left.rotation[:, 0],
        left.rotation @ turn,
        left.fx,
        left.fy,
        left.cx,
        left.cy + shift_y_px,
        left.width,
        left.height,
    )


def expose(
    radiance: FloatImage, sensor: Sensor, window: Window, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the 8-bit image that a sensor makes of radiance.

    Args:
        radiance: (H, W) as rendered.
        sensor: The camera.
        window: Where the image lies in the whole frame (vignetting and dust belong to it).
        rng: Source of the noise.

    Raises:
        InputError: The image is not of the window's size.
    """
    if radiance.shape != (window.height, window.width):
        raise InputError(
            f'radiance is {radiance.shape[1]}x{radiance.shape[0]}; the window is '
            f'{window.width}x{window.height}'
        )
    image = _blurred(radiance.astype(np.float32), sensor, window)
    image = image * _transmission(sensor, window) * sensor.gain
    if sensor.pattern_noise > 0:
        image = image * (1 + sensor.pattern_noise * rng.standard_normal(image.shape, np.float32))
    variance = sensor.read_noise_dn**2 + sensor.shot_noise_dn**2 * np.clip(image, 0, None) / 200
    noise = np.sqrt(variance) * rng.standard_normal(image.shape, np.float32)
    image = np.clip((image + noise + sensor.black_level_dn) / 255.0, 0.0, 1.0)
    steps = 2**sensor.bits - 1
    image = np.round(image * steps) / steps
    return np.round(RESPONSES[sensor.response](image) * 255.0).astype(np.uint8)


def _blurred(image: FloatImage, sensor: Sensor, window: Window) -> FloatImage:
    if sensor.psf_sigma_px > 0.05:
        image = cv2.GaussianBlur(
            image, (0, 0), sensor.psf_sigma_px, borderType=cv2.BORDER_REPLICATE
        )
    if sensor.defocus_px <= 0.05:
        return image
    soft = cv2.GaussianBlur(image, (0, 0), sensor.defocus_px, borderType=cv2.BORDER_REPLICATE)
    across = (window.left + np.arange(window.width)) / window.frame_width
    weight = across if sensor.defocus_side > 0 else 1 - across
    return image + weight.astype(np.float32)[None, :] * (soft - image)


def _transmission(sensor: Sensor, window: Window) -> FloatImage:
    """Return (H, W) the fraction of light that lens and dust let through."""
    width, height = window.frame_width, window.frame_height
    columns = (window.left + np.arange(window.width) + 0.5)[None, :]
    rows = (window.top + np.arange(window.height) + 0.5)[:, None]
    radius2 = (columns - width / 2) ** 2 + (rows - height / 2) ** 2
    corner2 = (width**2 + height**2) / 4
    light = 1 - sensor.vignetting * radius2 / corner2
    for x, y, radius, loss in sensor.dust:
        distance2 = (columns - x * width) ** 2 + (rows - y * height) ** 2
        light = light * (1 - loss * np.exp(-distance2 / (radius * width) ** 2))
    return light.astype(np.float32)
