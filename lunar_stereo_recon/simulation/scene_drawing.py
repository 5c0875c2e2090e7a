"""Random scenes: ground, camera, light, the rover's shadow and the sensor, drawn for a stratum."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

from lunar_stereo_recon.simulation.camera import Sensor
from lunar_stereo_recon.simulation.scene import Box, Hapke, Lighting
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig

STRATA = ('nominal', 'lowsun', 'opposition', 'smooth')
# Width and height of the whole camera frame, pixels.
FRAME = (640, 480)


@dataclass(frozen=True)
class SceneConfig:
    """What one pair shows and how it is taken.

    Attributes:
        stratum: One of STRATA.
        frame_width, frame_height: The whole camera frame, pixels.
        focal: Focal length as a fraction of the frame width.
        baseline_m: Distance of the cameras, metres.
        height_m: Height of the cameras over the ground, metres.
        pitch_deg, roll_deg: Attitude relative to the ground below the rover.
        heading_deg: Direction of view in the world.
        distance_m: Distance of the rover from the terrain's centre, behind it.
        lateral_m: Sideways offset from the terrain's centre.
        lighting: Sun, ambient light, reflectance.
        rover: Boxes that cast the rover's shadow.
        shift_y_px, roll_right_deg: Errors of the right camera's rectification.
    """

    stratum: str
    frame_width: int
    frame_height: int
    focal: float
    baseline_m: float
    height_m: float
    pitch_deg: float
    roll_deg: float
    heading_deg: float
    distance_m: float
    lateral_m: float
    lighting: Lighting
    rover: tuple[Box, ...]
    shift_y_px: float
    roll_right_deg: float


def sample_terrain_config(stratum: str, rng: np.random.Generator) -> TerrainConfig:
    """Return a random kind of ground for a stratum."""
    seed = int(rng.integers(0, 2**62))
    if stratum == 'smooth':
        return TerrainConfig(
            seed,
            hurst=rng.uniform(0.75, 0.95),
            roughness_m=log_uniform(rng, 0.004, 0.03),
            crater_density=log_uniform(rng, 0.01, 0.4),
            crater_depth=rng.uniform(0.06, 0.16),
            rock_density=log_uniform(rng, 0.003, 0.08),
            rock_exponent=rng.uniform(1.8, 2.6),
            rock_max_m=rng.uniform(0.4, 1.5),
            rock_brightness=rng.uniform(0.9, 1.4),
            albedo_noise=log_uniform(rng, 0.01, 0.06),
            tilt_deg=abs(rng.normal(0, 3)),
        )
    return TerrainConfig(
        seed,
        hurst=rng.uniform(0.6, 0.95),
        roughness_m=log_uniform(rng, 0.012, 0.1),
        crater_density=log_uniform(rng, 0.05, 1.0),
        crater_depth=rng.uniform(0.08, 0.2),
        rock_density=log_uniform(rng, 0.03, 1.5),
        rock_exponent=rng.uniform(1.7, 2.7),
        rock_max_m=log_uniform(rng, 0.4, 2.5),
        rock_brightness=rng.uniform(0.9, 1.7),
        albedo_noise=log_uniform(rng, 0.02, 0.15),
        tilt_deg=abs(rng.normal(0, 4)),
    )


def sample_scene_config(stratum: str, rng: np.random.Generator) -> SceneConfig:
    """Return a random camera, light and pose for a stratum."""
    width, height = FRAME
    focal = rng.uniform(0.6, 1.0) if rng.random() < 0.75 else log_uniform(rng, 0.5, 2.0)
    camera_height = rng.uniform(0.7, 2.0) if rng.random() < 0.75 else log_uniform(rng, 0.3, 3.0)
    elevation, away = _sample_sun(stratum, rng)
    heading = rng.uniform(0, 360)
    rover: tuple[Box, ...] = ()
    if rng.random() < (0.85 if stratum == 'opposition' else 0.5):
        rover = sample_rover(camera_height, rng)
    return SceneConfig(
        stratum=stratum,
        frame_width=width,
        frame_height=height,
        focal=focal,
        baseline_m=log_uniform(rng, 0.05, 0.6),
        height_m=camera_height,
        pitch_deg=rng.uniform(-28, -5) if rng.random() < 0.8 else rng.uniform(-38, 0),
        roll_deg=rng.normal(0, 2.0),
        heading_deg=heading,
        distance_m=rng.uniform(1.0, 6.0),
        lateral_m=rng.uniform(-4.0, 4.0),
        lighting=Lighting(
            elevation,
            heading + away,
            ambient=log_uniform(rng, 0.001, 0.02),
            bounce=log_uniform(rng, 0.001, 0.02),
            hapke=_sample_hapke(rng),
        ),
        rover=rover,
        shift_y_px=_often_zero(rng, 0.5, 0.25, 1.0),
        roll_right_deg=_often_zero(rng, 0.7, 0.01, 0.03),
    )


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _often_zero(rng: np.random.Generator, zero: float, sigma: float, limit: float) -> float:
    """Return 0 with a probability, else a normal number cut at a limit."""
    if rng.random() < zero:
        return 0.0
    return float(np.clip(rng.normal(0, sigma), -limit, limit))


def _sample_sun(stratum: str, rng: np.random.Generator) -> tuple[float, float]:
    """Return the sun's elevation and its azimuth relative to the heading, degrees."""
    if stratum == 'lowsun':
        return rng.uniform(2, 13), rng.uniform(0, 360)
    if stratum == 'opposition':
        return log_uniform(rng, 6, 40), 180 + rng.normal(0, 22)
    if stratum == 'smooth':
        return rng.uniform(8, 75), rng.uniform(0, 360)
    return (rng.uniform(13, 55) if rng.random() < 0.8 else rng.uniform(1, 80)), rng.uniform(0, 360)


def _sample_hapke(rng: np.random.Generator) -> Hapke:
    return Hapke(
        w=rng.uniform(0.15, 0.45),
        b=rng.uniform(0.15, 0.4),
        c=rng.uniform(0.1, 0.7),
        B0=rng.uniform(0.6, 1.8),
        h=rng.uniform(0.03, 0.12),
        theta_bar_deg=rng.uniform(5, 25),
    )


def sample_rover(height_m: float, rng: np.random.Generator) -> tuple[Box, ...]:
    """Return body, mast, camera bar and wheels of a random rover below the cameras."""
    length, width = rng.uniform(0.4, 1.1), rng.uniform(0.35, 0.8)
    deck = height_m * rng.uniform(0.3, 0.65)
    floor = deck * rng.uniform(0.3, 0.6)
    back = rng.uniform(0.1, 0.6) * length
    pole = rng.uniform(0.015, 0.06)
    bar = rng.uniform(0.1, 0.4)
    boxes = [
        Box((-back, 0.0, (deck + floor) / 2), (length / 2, width / 2, (deck - floor) / 2)),
        Box((-0.1, 0.0, (deck + height_m) / 2), (pole, pole, (height_m - deck) / 2)),
        Box((-0.12, 0.0, height_m), (0.06, bar, rng.uniform(0.03, 0.12))),
    ]
    wheel = rng.uniform(0.08, 0.2)
    for x in (-back - length / 2, -back + length / 2):
        for y in (-width / 2 - 0.06, width / 2 + 0.06):
            boxes.append(Box((x, y, wheel), (wheel, 0.06, wheel)))
    if rng.random() < 0.4:
        panel = rng.uniform(0.3, 0.9)
        boxes.append(Box((-back - 0.2, 0.0, deck + 0.05), (panel * 0.5, panel, 0.015)))
    return tuple(boxes)


def sample_sensor(gain: float, rng: np.random.Generator) -> Sensor:
    kind = rng.random()
    response = 'linear' if kind < 0.65 else ('gamma' if kind < 0.92 else 'log')
    if response != 'linear':
        # A response curve brightens; the exposure that a camera chooses makes up for it.
        gain *= rng.uniform(0.45, 0.9)
    return Sensor(
        gain=gain,
        response=response,
        shot_noise_dn=log_uniform(rng, 0.5, 4.0),
        read_noise_dn=log_uniform(rng, 0.15, 1.5 if response == 'linear' else 0.5),
        pattern_noise=log_uniform(rng, 0.0005, 0.01),
        black_level_dn=rng.uniform(0, 3) if rng.random() < 0.3 else 0.0,
        vignetting=rng.uniform(0.0, 0.3),
        psf_sigma_px=rng.uniform(0.3, 0.8),
        defocus_px=rng.uniform(0.5, 1.5) if rng.random() < 0.1 else 0.0,
        defocus_side=random_sign(rng),
        dust=sample_dust(rng),
        bits=8 if rng.random() < 0.7 else 12,
    )


def sample_dust(rng: np.random.Generator) -> tuple[tuple[float, float, float, float], ...]:
    if rng.random() < 0.8:
        return ()
    return tuple(
        (
            rng.random(),
            rng.random(),
            log_uniform(rng, 0.005, 0.06),
            rng.uniform(0.02, 0.25),
        )
        for _ in range(int(rng.integers(1, 6)))
    )


def random_sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1
