"""What a rendering is made from and of: reflectance, light, cameras, what rays meet.

World frame: x east, y north, z up; camera frame: x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
import math

import torch

from lunar_stereo_recon.errors import InputError

# Enough for lenses whose corners are displaced by a fifth of the image: 1e-6 of the focal length.
UNDISTORT_STEPS = 20
# States of the cells of a `SunlitGround`.
DARK, LIT, MIXED = 0, 1, 2


@dataclass(frozen=True)
class Hapke:
    """Parameters of Hapke's reflectance for lunar soil.

    Attributes:
        w: Single scattering albedo.
        b: Width of the double Henyey-Greenstein lobes.
        c: Weight of the backward lobe, -1..1.
        B0: Strength of the opposition surge.
        h: Angular width of the opposition surge (tangent of half the phase angle).
        theta_bar_deg: Mean slope of the unresolved roughness, degrees.
    """

    w: float = 0.25
    b: float = 0.25
    c: float = 0.4
    B0: float = 1.4
    h: float = 0.07
    theta_bar_deg: float = 12.0


@dataclass(frozen=True)
class Box:
    """A box of the rover that casts a shadow, in the rover frame (x forward, y left, z up).

    Attributes:
        center_m: Centre, metres, relative to the point on the ground below the camera.
        half_m: Half of the side lengths, metres.
    """

    center_m: tuple[float, float, float]
    half_m: tuple[float, float, float]


@dataclass(frozen=True)
class Lighting:
    """Sun and sky.

    Attributes:
        sun_elevation_deg: Height of the sun above the horizon, degrees.
        sun_azimuth_deg: Direction to the sun in the world, counterclockwise from +x, degrees.
        ambient: Light from everywhere relative to the sun's (earthshine, scattering).
        bounce: Light from sunlit ground relative to the sun's, for surfaces that face it.
        hapke: Reflectance of the ground.
        night: There is no sun, only ambient light (and lamps; see `secondary_light`).
    """

    sun_elevation_deg: float
    sun_azimuth_deg: float
    ambient: float = 0.003
    bounce: float = 0.003
    hapke: Hapke = field(default_factory=Hapke)
    night: bool = False

    def __post_init__(self) -> None:
        if not self.night and not 0 < self.sun_elevation_deg <= 90:
            raise InputError(
                f'sun elevation is {self.sun_elevation_deg:g} degrees; above 0 (the horizon), up '
                'to 90 is needed, or a scene at night'
            )

    def direction(self) -> tuple[float, float, float]:
        """Return the unit vector towards the sun in the world; at night straight down."""
        if self.night:
            return 0.0, 0.0, -1.0
        elevation = math.radians(self.sun_elevation_deg)
        azimuth = math.radians(self.sun_azimuth_deg)
        return (
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        )


@dataclass(frozen=True)
class View:
    """One pinhole camera (or a window of one) in the world.

    Attributes:
        position_m: (3,) optical centre, world, metres.
        rotation: (3, 3) camera axes as columns: world from camera.
        fx, fy, cx, cy: Intrinsics for the window, pixels; integer coordinates are centres.
        width, height: Window size, pixels.
        distortion: k1, k2, p1, p2, k3 of OpenCV's (and ROS's plumb_bob) model for a raw image;
            empty for a rectified one.
    """

    position_m: torch.Tensor
    rotation: torch.Tensor
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.distortion) not in (0, 5):
            raise InputError(
                f'distortion has {len(self.distortion)} numbers; 5 (k1, k2, p1, p2, k3) or none '
                'are needed'
            )

    def to(self, device: torch.device | str) -> View:
        """Return the same camera on another device."""
        return replace(
            self, position_m=self.position_m.to(device), rotation=self.rotation.to(device)
        )

    def rays(self, dx_px: float = 0.0, dy_px: float = 0.0) -> torch.Tensor:
        """Return (H * W, 3) ray directions in the world, of length 1 along the camera's z."""
        device = self.position_m.device
        columns = torch.arange(self.width, dtype=torch.float64, device=device)
        rows = torch.arange(self.height, dtype=torch.float64, device=device)
        u = (columns + dx_px - self.cx) / self.fx
        v = (rows + dy_px - self.cy) / self.fy
        v, u = torch.meshgrid(v, u, indexing='ij')
        if self.distortion:
            u, v = undistorted(u, v, self.distortion)
        camera = torch.stack([u, v, torch.ones_like(u)], dim=-1).reshape(-1, 3)
        return (camera @ self.rotation.T.double()).float()


def undistorted(
    u: torch.Tensor, v: torch.Tensor, distortion: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ideal normalised image coordinates for distorted ones, by fixed-point iteration.

    Args:
        u, v: Distorted (pixel - centre) / focal length, any shape.
        distortion: k1, k2, p1, p2, k3.
    """
    k1, k2, p1, p2, k3 = distortion
    x, y = u, v
    for _ in range(UNDISTORT_STEPS):
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        bent_x = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        bent_y = p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        x, y = (u - bent_x) / radial, (v - bent_y) / radial
    return x, y


@dataclass(frozen=True)
class SunlitGround:
    """Where the sun reaches the ground and where it does not.

    Attributes:
        lighting: The sun that this holds for.
        cells: For every grid (N^2,) uint8, row (y) major: 0 dark, 1 lit, 2 has to be traced; on
            the terrain's device.
    """

    lighting: Lighting
    cells: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Rendering:
    """What one view sees.

    Attributes:
        radiance: (H, W) reflected light relative to a white Lambert plate facing the sun; 0 in
            the sky.
        depth: (H, W) metres along the optical axis through the pixel centre; NaN in the sky.
        shadow: (H, W) bool, the surface at the pixel centre gets no direct sunlight.
        triangle: (H, W) int32 triangle of `Terrain.rocks` at the pixel centre, -1 for none; None
            where the terrain has no rocks as meshes.
    """

    radiance: torch.Tensor
    depth: torch.Tensor
    shadow: torch.Tensor
    triangle: torch.Tensor | None = None


@dataclass(frozen=True)
class Hits:
    """Where rays meet the terrain.

    Attributes:
        depth: (N,) ray parameter, inf where the ray leaves the terrain.
        level: (N,) int64 index of the grid that was hit, -1 for none.
        triangle: (N,) int32 triangle of `Terrain.rocks` that was hit instead, -1 for none; None
            where the terrain has no rocks as meshes.
    """

    depth: torch.Tensor
    level: torch.Tensor
    triangle: torch.Tensor | None = None
