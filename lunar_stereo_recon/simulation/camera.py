"""Stereo rig geometry and a sensor model: from radiance to images.

Everything that a sensor does happens after the geometry is fixed, so that the disparity of the
left image stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
import math

import cv2
import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.scene import Rendering, View

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
        bits: Bits of the converter.
        stored_bits: Bits of the image that comes out: 8 gives uint8, up to 16 gives uint16 with
            2^bits - 1 as white.
        colour: 'mono', 'rgb' (three channels) or 'bayer_rggb' (one, as the colour filters of a
            sensor give it, red at the frame's first pixel).
        bloom_px: Charge above full scale runs this far along the columns (standard deviation,
            pixels), as in a CCD; 0 lets it vanish.
        dead_pixels, hot_pixels: Fractions of pixels that are always black or white.
        defect_seed: Where these are; the same pixels in every image.
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
    stored_bits: int = 8
    colour: str = 'mono'
    bloom_px: float = 0.0
    dead_pixels: float = 0.0
    hot_pixels: float = 0.0
    defect_seed: int = 0

    def __post_init__(self) -> None:
        if self.colour not in ('mono', 'rgb', 'bayer_rggb'):
            raise InputError(
                f"sensor colour is {self.colour!r}; 'mono', 'rgb' or 'bayer_rggb' is needed"
            )
        if not 8 <= self.stored_bits <= 16:
            raise InputError(f'images of {self.stored_bits} bits; 8 to 16 are needed')
        if not 0 <= self.dead_pixels + self.hot_pixels <= 1:
            raise InputError(
                f'{self.dead_pixels} dead and {self.hot_pixels} hot pixels; fractions are needed'
            )
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


# What red, green and blue pixels see of mature soil, relative to green: the Moon is a little red.
# The slope is our choice after the spectra of mature mare soil, not a fit to one.
SOIL_COLOUR = np.array([1.08, 1.0, 0.91], np.float32)

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


@dataclass(frozen=True)
class RigError:
    """How a camera differs from what its calibration says.

    Attributes:
        yaw_deg, pitch_deg, roll_deg: Turn around its own y (down), x (right) and z (forward).
        focal: Relative error of the focal length.
        shift_x_px, shift_y_px: By which the principal point is moved.
    """

    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    focal: float = 0.0
    shift_x_px: float = 0.0
    shift_y_px: float = 0.0

    def applied_to(self, view: View) -> View:
        """Return the view as it really is."""
        yaw, pitch, roll = (math.radians(v) for v in (self.yaw_deg, self.pitch_deg, self.roll_deg))
        turn = _turn((0.0, 0.0, roll)) @ _turn((pitch, 0.0, 0.0)) @ _turn((0.0, yaw, 0.0))
        return replace(
            view,
            rotation=view.rotation @ turn,
            fx=view.fx * (1 + self.focal),
            fy=view.fy * (1 + self.focal),
            cx=view.cx + self.shift_x_px,
            cy=view.cy + self.shift_y_px,
        )


@dataclass(frozen=True)
class Motion:
    """How a camera moves, in its own axes (x right, y down, z forward).

    Attributes:
        velocity_m_s: Metres a second.
        turn_deg_s: Rotation vector, degrees a second.
    """

    velocity_m_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_deg_s: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def after(self, view: View, seconds: float) -> View:
        """Return where the camera is later (or earlier, with negative seconds)."""
        step = torch.tensor(self.velocity_m_s) * seconds
        turn = _turn(tuple(math.radians(v) * seconds for v in self.turn_deg_s))
        return replace(
            view,
            position_m=view.position_m + view.rotation @ step.to(view.rotation),
            rotation=view.rotation @ turn.to(view.rotation),
        )

    def during(self, view: View, exposure_s: float, count: int) -> list[View]:
        """Return `count` views spread evenly over an exposure whose middle is the given view."""
        times = (np.arange(count) + 0.5) / count - 0.5
        return [self.after(view, float(time) * exposure_s) for time in times]


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
    beside = replace(left, position_m=left.position_m + baseline_m * left.rotation[:, 0])
    return RigError(roll_deg=math.degrees(roll_rad), shift_y_px=shift_y_px).applied_to(beside)


def automatic_gain(seen: Rendering, target: float = 0.8, quantile: float = 0.95) -> float:
    """Return the gain that puts a quantile of the ground's radiance at a part of full scale.

    Raises:
        InputError: No ground is in view, or none of it is lit.
    """
    ground = seen.radiance[torch.isfinite(seen.depth)].cpu().numpy()
    if ground.size == 0:
        raise InputError('no ground is in view; an exposure needs some')
    level = float(np.quantile(ground, quantile))
    if level <= 0:
        raise InputError('no lit ground is in view; an exposure needs some')
    return target * 255.0 / level


def expose(
    radiance: FloatImage, sensor: Sensor, window: Window, rng: np.random.Generator
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the image that a sensor makes of radiance.

    Args:
        radiance: (H, W) as rendered.
        sensor: The camera.
        window: Where the image lies in the whole frame (vignetting and dust belong to it).
        rng: Source of the noise.

    Returns:
        (H, W), or (H, W, 3) for 'rgb'; uint8, or uint16 where more than 8 bits are stored.

    Raises:
        InputError: The image is not of the window's size.
    """
    if radiance.shape != (window.height, window.width):
        raise InputError(
            f'radiance is {radiance.shape[1]}x{radiance.shape[0]}; the window is '
            f'{window.width}x{window.height}'
        )
    image = _blurred(radiance.astype(np.float32), sensor, window)
    image = image * _transmission(sensor.vignetting, sensor.dust, window) * sensor.gain
    if sensor.colour == 'rgb':
        image = image[..., None] * SOIL_COLOUR
    elif sensor.colour == 'bayer_rggb':
        image = image * _bayer_filter(window)
    if sensor.bloom_px > 0:
        image = _bloomed(image, sensor)
    if sensor.pattern_noise > 0:
        image = image * (1 + sensor.pattern_noise * rng.standard_normal(image.shape, np.float32))
    variance = sensor.read_noise_dn**2 + sensor.shot_noise_dn**2 * np.clip(image, 0, None) / 200
    noise = np.sqrt(variance) * rng.standard_normal(image.shape, np.float32)
    image = np.clip((image + noise + sensor.black_level_dn) / 255.0, 0.0, 1.0)
    if sensor.dead_pixels or sensor.hot_pixels:
        image = _with_defects(image, sensor, window)
    steps = 2**sensor.bits - 1
    image = np.round(image * steps) / steps
    white = 2**sensor.stored_bits - 1
    stored = np.round(RESPONSES[sensor.response](image) * float(white))
    return stored.astype(np.uint8 if sensor.stored_bits == 8 else np.uint16)


def _turn(vector: tuple[float, ...]) -> torch.Tensor:
    """Return the (3, 3) rotation of a rotation vector, radians."""
    return torch.from_numpy(cv2.Rodrigues(np.array(vector, np.float64))[0]).float()


def _bayer_filter(window: Window) -> FloatImage:
    """Return (H, W) what each pixel's filter lets through: R G in even rows, G B in odd ones."""
    rows = (window.top + np.arange(window.height))[:, None] % 2
    columns = (window.left + np.arange(window.width))[None, :] % 2
    return SOIL_COLOUR[rows + columns]


def _bloomed(image: FloatImage, sensor: Sensor) -> FloatImage:
    """Return the image with the charge above full scale spilled along the columns."""
    excess = np.clip(image - 255.0, 0.0, None)
    spilled = cv2.GaussianBlur(
        excess, (1, 0), sigmaX=1e-6, sigmaY=sensor.bloom_px, borderType=cv2.BORDER_CONSTANT
    )
    return np.minimum(image, 255.0) + spilled


def _with_defects(image: FloatImage, sensor: Sensor, window: Window) -> FloatImage:
    """Return the image with the pixels that do not work, the same ones for every window."""
    chance = np.random.default_rng(sensor.defect_seed).random(
        (window.frame_height, window.frame_width), np.float32
    )
    rows, columns = slice(window.top, window.top + window.height), slice(window.left, None)
    part = chance[rows, columns][:, : window.width]
    image = image.copy()
    image[part < sensor.dead_pixels] = 0.0
    image[part > 1 - sensor.hot_pixels] = 1.0
    return image


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


# A camera of a drive keeps its lens: it would take a third of an image's time.
@lru_cache(maxsize=4)
def _transmission(
    vignetting: float, dust: tuple[tuple[float, float, float, float], ...], window: Window
) -> FloatImage:
    """Return (H, W) the fraction of light that lens and dust let through; see `Sensor`."""
    width, height = window.frame_width, window.frame_height
    columns = (window.left + np.arange(window.width) + 0.5)[None, :]
    rows = (window.top + np.arange(window.height) + 0.5)[:, None]
    radius2 = (columns - width / 2) ** 2 + (rows - height / 2) ** 2
    corner2 = (width**2 + height**2) / 4
    light = 1 - vignetting * radius2 / corner2
    for x, y, radius, loss in dust:
        distance2 = (columns - x * width) ** 2 + (rows - y * height) ** 2
        light = light * (1 - loss * np.exp(-distance2 / (radius * width) ** 2))
    part = light.astype(np.float32)
    part.setflags(write=False)
    return part
