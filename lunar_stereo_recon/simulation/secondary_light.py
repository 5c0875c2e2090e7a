"""Light that does not come straight from the sun: lamps, and sunlit ground that lights shadows.

Both are added to a rendering, for what its pixels' centres see; CPU and CUDA alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math

import torch
import torch.nn.functional as nnf

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.renderer import hapke_reflectance, surface_of, trace
from lunar_stereo_recon.simulation.scene import Hapke, Lighting, Rendering, View
from lunar_stereo_recon.simulation.terrain import Terrain

# Rays to other ground start this far above their own, metres: cells must not hit themselves.
_LIFT_M = 0.02
# Light from ground is soft: it is computed for every n-th pixel.
_STEP_PX = 4


@dataclass(frozen=True)
class Lamp:
    """A lamp of the rover.

    Attributes:
        position_m: x, y, z in the world, metres.
        direction: Axis of the beam in the world, any length.
        strength: Irradiance one metre ahead, relative to the sun's.
        beam_deg: Angle from the axis at which the light has fallen to a half.
    """

    position_m: tuple[float, float, float]
    direction: tuple[float, float, float]
    strength: float = 0.02
    beam_deg: float = 25.0

    def __post_init__(self) -> None:
        if not any(self.direction):
            raise InputError('a lamp shines in no direction; a vector is needed')
        if not (self.strength >= 0 and 0 < self.beam_deg < 90):
            raise InputError(
                f'a lamp has strength {self.strength} and beam {self.beam_deg} degrees; 0 or more '
                'and 0 to 90 are needed'
            )


def headlamps(view: View, aside_m: float, strength: float, beam_deg: float = 25.0) -> list[Lamp]:
    """Return two lamps on both sides of a camera that shine where it looks.

    Args:
        view: The camera.
        aside_m: Distance of each from the camera, metres.
        strength, beam_deg: See `Lamp`.
    """
    ahead = _triple(view.rotation[:, 2])
    places = [view.position_m + side * aside_m * view.rotation[:, 0] for side in (-1, 1)]
    return [Lamp(_triple(place), ahead, strength, beam_deg) for place in places]


def with_lamps(
    seen: Rendering, terrain: Terrain, view: View, lamps: Sequence[Lamp], hapke: Hapke
) -> Rendering:
    """Return a rendering with the light of lamps added; they cast shadows of the ground.

    `shadow` stays what the sun leaves dark.

    Args:
        seen: What the sun shows of the view.
        terrain, view: What was rendered.
        lamps: Lamps; none changes nothing.
        hapke: Reflectance of the ground.
    """
    view = view.to(terrain.device)
    points, known, to_camera = _points(seen, view)
    footprint = seen.depth.reshape(-1)[known] / view.fx
    normals, albedo = surface_of(terrain, points, footprint, _triangles(seen, known))
    light = torch.zeros(len(points), device=points.device)
    for lamp in lamps:
        place = points.new_tensor(lamp.position_m)
        way = place - points
        distance = way.norm(dim=1)
        towards = way / distance[:, None]
        axis = nnf.normalize(points.new_tensor(lamp.direction), dim=0)
        angle = torch.acos(-(towards @ axis).clamp(-1, 1))
        beam = torch.exp(-math.log(2.0) * (angle / math.radians(lamp.beam_deg)) ** 2)
        cos_i = (normals * towards).sum(1)
        start = points + _LIFT_M * normals
        hits = trace(terrain, start, place - start, torch.ones_like(distance), True)
        lit = (cos_i > 0) & ~torch.isfinite(hits.depth)
        cos_e = (normals * to_camera).sum(1).clamp(0.02, 1.0)
        cos_g = (towards * to_camera).sum(1).clamp(-1.0, 1.0)
        reflected = hapke_reflectance(cos_i.clamp(0, 1), cos_e, cos_g, hapke)
        light += lamp.strength * beam / distance**2 * reflected * albedo * lit
    return _brightened(seen, known, light)


def with_ground_light(
    seen: Rendering, terrain: Terrain, view: View, lighting: Lighting, rays: int = 16
) -> Rendering:
    """Return a rendering with the sunlight that other ground sends into it, once reflected.

    An approximation: Lambert's law at both ends with the ground's normal albedo, for every fourth
    pixel in both directions and smoothed; rays through half the sky, the same for a pixel each
    time. It takes the place of the constant `Lighting.bounce`, which should then be 0.

    Args:
        seen: What the sun shows of the view.
        terrain, view, lighting: What was rendered.
        rays: Directions per pixel.

    Raises:
        InputError: Fewer than one ray.
    """
    if rays < 1:
        raise InputError(f'{rays} rays to the ground around; 1 or more are needed')
    if lighting.night:
        return seen
    view = view.to(terrain.device)
    depth = seen.depth[::_STEP_PX, ::_STEP_PX]
    triangle = None if seen.triangle is None else seen.triangle[::_STEP_PX, ::_STEP_PX]
    part = replace(seen, depth=depth, triangle=triangle)
    grid = view.rays().reshape(view.height, view.width, 3)[::_STEP_PX, ::_STEP_PX].reshape(-1, 3)
    points, known, _ = _points(part, view, grid)
    sun = points.new_tensor(lighting.direction())
    footprint = depth.reshape(-1)[known] / view.fx * _STEP_PX
    normals, albedo = surface_of(terrain, points, footprint, _triangles(part, known))
    gathered = torch.zeros(len(points), device=points.device)
    random = torch.Generator().manual_seed(0)
    for number in range(rays):
        directions = _around(normals, number, rays, random)
        start = points + _LIFT_M * normals
        hits = trace(terrain, start, directions, None, True)
        struck = torch.isfinite(hits.depth).nonzero()[:, 0]
        if struck.numel() == 0:
            continue
        there = start[struck] + directions[struck] * hits.depth[struck, None]
        met = None if hits.triangle is None else hits.triangle[struck]
        other, other_albedo = surface_of(terrain, there, 0.1 * hits.depth[struck], met)
        cos_i = other @ sun
        lift = there + _LIFT_M * other
        dark = torch.isfinite(trace(terrain, lift, sun.expand_as(lift), None, True).depth)
        gathered[struck] += other_albedo * cos_i.clamp(min=0) * ~dark
    # A cosine-weighted mean of the radiance around is the irradiance over pi; the normal albedo
    # of the ground is what Hapke's law gives for light and camera overhead at 30 degrees.
    angle = points.new_tensor([math.cos(math.radians(30.0))])
    normal_albedo = float(hapke_reflectance(angle, angle, angle, lighting.hapke)) / float(angle)
    light = torch.zeros(depth.numel(), device=points.device)
    light[known] = normal_albedo**2 * albedo * gathered / rays
    image = light.reshape(1, 1, *depth.shape)
    weight = known.reshape(1, 1, *depth.shape).to(image)
    # Smoothed over ground alone: the sky has no part in it.
    total, share = (nnf.avg_pool2d(v, 3, 1, 1, count_include_pad=False) for v in (image, weight))
    full = nnf.interpolate(total / share.clamp(min=1e-6), scale_factor=_STEP_PX, mode='bilinear')
    full = full[0, 0, : view.height, : view.width]
    ground = torch.isfinite(seen.depth)
    return replace(seen, radiance=seen.radiance + torch.where(ground, full, 0.0))


def _points(
    seen: Rendering, view: View, rays: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the points seen (N, 3), which pixels see them, and the directions to the camera."""
    depth = seen.depth.reshape(-1)
    known = torch.isfinite(depth)
    rays = (view.rays() if rays is None else rays)[known]
    return view.position_m + rays * depth[known, None], known, -nnf.normalize(rays, dim=1)


def _triangles(seen: Rendering, known: torch.Tensor) -> torch.Tensor | None:
    return None if seen.triangle is None else seen.triangle.reshape(-1)[known]


def _around(
    normals: torch.Tensor, number: int, count: int, random: torch.Generator
) -> torch.Tensor:
    """Return unit directions (N, 3) about normals, cosine-weighted, ring `number` of `count`."""
    shift = torch.rand((2, len(normals)), generator=random).to(normals)
    sine2 = (number + shift[0]) / count
    turn = 2 * math.pi * (shift[1] + 0.618034 * number)
    side = nnf.normalize(
        torch.linalg.cross(normals, normals.new_tensor([1.0, 0.3, 0.0]).expand_as(normals)), dim=1
    )
    other = torch.linalg.cross(normals, side)
    sine, cosine = sine2.sqrt()[:, None], (1 - sine2).sqrt()[:, None]
    return cosine * normals + sine * (turn.cos()[:, None] * side + turn.sin()[:, None] * other)


def _brightened(seen: Rendering, known: torch.Tensor, light: torch.Tensor) -> Rendering:
    radiance = seen.radiance.reshape(-1).clone()
    radiance[known] += light
    return replace(seen, radiance=radiance.reshape(seen.radiance.shape))


def _triple(vector: torch.Tensor) -> tuple[float, float, float]:
    x, y, z = vector.tolist()
    return x, y, z
