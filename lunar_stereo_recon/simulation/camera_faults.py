"""Faults of real cameras as one set of options; all are off by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.yaml_files import read_yaml
from lunar_stereo_recon.simulation.camera import Motion, RigError, Sensor
from lunar_stereo_recon.simulation.renderer import render
from lunar_stereo_recon.simulation.scene import Box, Lighting, Rendering, SunlitGround, View
from lunar_stereo_recon.simulation.secondary_light import (
    headlamps,
    with_ground_light,
    with_lamps,
)
from lunar_stereo_recon.simulation.terrain import Terrain

# Views that are averaged for the blur of a motion.
_SHUTTER_VIEWS = 5


@dataclass(frozen=True)
class CameraFaults:
    """How a pair differs from two ideal cameras at one instant.

    Ground truth stays that of the left camera in the middle of its exposure, and the calibration
    that goes with the pair knows nothing of the errors, except of the distortion.

    Attributes:
        distortion: k1, k2, p1, p2, k3 of both lenses (ROS's plumb_bob): raw images.
        right_error: How the right camera differs from its calibration.
        motion: How each camera moves.
        exposure_s: Time over which motion blurs an image, seconds.
        time_offset_s: By which the right camera exposes later, seconds.
        bloom_px, dead_pixels, hot_pixels, stored_bits, colour: See `Sensor`.
        lamp_strength: Irradiance of two lamps beside the left camera one metre ahead, relative to
            the sun's.
        ground_light_rays: Rays for light from the ground around instead of a constant; 0 is off.
    """

    distortion: tuple[float, ...] = ()
    right_error: RigError = field(default_factory=RigError)
    motion: Motion = field(default_factory=Motion)
    exposure_s: float = 0.0
    time_offset_s: float = 0.0
    bloom_px: float = 0.0
    dead_pixels: float = 0.0
    hot_pixels: float = 0.0
    stored_bits: int = 8
    colour: str = 'mono'
    lamp_strength: float = 0.0
    ground_light_rays: int = 0

    def __post_init__(self) -> None:
        if self.exposure_s < 0:
            raise InputError(f'exposure is {self.exposure_s} s; 0 or more is needed')
        self.sensor(Sensor(gain=1.0))

    @property
    def encoding(self) -> str:
        """Return ROS's name of the images' encoding."""
        return self.colour + ('8' if self.stored_bits == 8 else '16')

    def sensor(self, sensor: Sensor) -> Sensor:
        """Return a sensor with these faults."""
        return replace(
            sensor,
            bloom_px=self.bloom_px,
            dead_pixels=self.dead_pixels,
            hot_pixels=self.hot_pixels,
            stored_bits=self.stored_bits,
            bits=max(sensor.bits, self.stored_bits),
            colour=self.colour,
        )

    def right(self, view: View) -> View:
        """Return the right camera as it really is when it exposes."""
        return self.motion.after(self.right_error.applied_to(view), self.time_offset_s)

    def render(
        self,
        terrain: Terrain,
        view: View,
        lighting: Lighting,
        samples: int,
        rover: tuple[Box, ...] = (),
        rover_pose: torch.Tensor | None = None,
        sunlit: SunlitGround | None = None,
    ) -> Rendering:
        """Return what a camera sees during its exposure; depth and shadow are of its middle."""
        if self.ground_light_rays:
            lighting = replace(lighting, bounce=0.0)
        seen = render(terrain, view, lighting, samples, rover, rover_pose, sunlit)
        if self.exposure_s > 0 and self.motion != Motion():
            views = self.motion.during(view, self.exposure_s, _SHUTTER_VIEWS)
            radiance = [
                render(terrain, each, lighting, samples, rover, rover_pose, sunlit).radiance
                for each in views
            ]
            seen = replace(seen, radiance=torch.stack(radiance).mean(0))
        if self.ground_light_rays:
            seen = with_ground_light(seen, terrain, view, lighting, self.ground_light_rays)
        return seen

    def lit_by_lamps(
        self, seen: Rendering, terrain: Terrain, view: View, left: View, lighting: Lighting
    ) -> Rendering:
        """Return what a camera sees with the lamps beside the left one switched on."""
        if self.lamp_strength == 0:
            return seen
        lamps = headlamps(left, 0.15, self.lamp_strength)
        return with_lamps(seen, terrain, view, lamps, lighting.hapke)


def read_camera_faults(path: Path) -> CameraFaults:
    """Return the faults that a YAML file lists under the names of `CameraFaults`.

    Raises:
        InputError: The file cannot be read, or names or values are wrong.
    """
    try:
        document = read_yaml(path)
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror}') from error
    except yaml.YAMLError as error:
        raise InputError(f'{path} is not YAML: {error}') from error
    parts = {'right_error': RigError, 'motion': Motion}
    values = _known(document, CameraFaults, path)
    for name, kind in parts.items():
        if name in values:
            values[name] = kind(**_known(values[name], kind, path))
    try:
        return CameraFaults(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f'{path}: {error}') from error


def _known(values: Any, kind: type, path: Path) -> dict[str, Any]:
    """Return the values of a mapping, lists as tuples; refuse names that `kind` does not have."""
    names = [entry.name for entry in fields(kind)]
    if not isinstance(values, Mapping):
        raise InputError(f'{path}: {values!r} is no mapping; there are {", ".join(names)}')
    unknown = [str(name) for name in values if name not in names]
    if unknown:
        raise InputError(
            f'{path}: {", ".join(unknown)!r} is not known; there are {", ".join(names)}'
        )
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
