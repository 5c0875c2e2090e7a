"""Ray-traced images of a lunar heightfield: exact depth, sun shadows, Hapke reflectance.

What happens to one ray is in `compiled.py`, compiled with numba: in loops over the rays here on
CPUs, in `kernels.py` on CUDA. Depth is the exact intersection with the bilinear surface of a cell
and has no step size. World frame: x east, y north, z up; camera frame: x right, y down, z
forward; a ray's parameter is the depth along the camera's z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import math
from types import ModuleType
from typing import Any

import numpy as np
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.scene import (
    Box,
    Hapke,
    Hits,
    Lighting,
    Rendering,
    SunlitGround,
    UNDISTORT_STEPS,
    View,
)
from lunar_stereo_recon.simulation.terrain import check_mesh_device, Terrain

# Shadow rays start this far (cells) from the ground, measured at right angles to it.
SHADOW_LIFT_CELLS = 0.2
# Rays from a rock start this part of the depth before it.
_ROCK_LIFT = 2e-4
_SUN_RADIUS_RAD = math.radians(0.266)
# Where pictures can be rendered.
DEVICES = ('cpu', 'cuda')


def rendering_device(name: str, rock_form: str = 'heightfield') -> torch.device:
    """Return the device of a name, after a look at whether it is there and serves.

    Args:
        name: 'cpu' or 'cuda'.
        rock_form: `TerrainConfig.rock_form` of the ground that it has to render.

    Raises:
        InputError: The name is unknown, there is no CUDA device or no compiler for it, numba is
            missing, or the rocks need a CPU.
    """
    if name not in DEVICES:
        raise InputError(f"device is '{name}'; one of {', '.join(DEVICES)} is needed")
    if rock_form == 'mesh':
        check_mesh_device(name)
    if name == 'cpu':
        _loops()
        return torch.device(name)
    build = torch.version.cuda
    if not torch.cuda.is_available():
        reason = f'(CUDA {build}) finds none' if build else 'is built without CUDA'
        raise InputError(
            f"device is 'cuda', but PyTorch {torch.__version__} {reason}; device 'cpu' needs none"
        )
    _kernels().check_compiler()
    return torch.device(name)


def _loops() -> ModuleType:
    """Return the compiled loops for CPUs.

    Raises:
        InputError: numba is missing or does not work.
    """
    try:
        from lunar_stereo_recon.simulation import compiled
    except ImportError as error:
        raise InputError(f'rendering needs numba (extra [sim]): {error}') from error
    return compiled


def _kernels() -> ModuleType:
    """Return the kernels for CUDA.

    Raises:
        InputError: numba or its CUDA target is missing or does not work.
    """
    _loops()
    try:
        from lunar_stereo_recon.simulation import kernels
    except ImportError as error:
        raise InputError(
            f'rendering on CUDA needs numba-cuda (extra [cuda12] or [cuda13]): {error}'
        ) from error
    return kernels


def trace(
    terrain: Terrain,
    origin: torch.Tensor,
    direction: torch.Tensor,
    limit: torch.Tensor | None = None,
    from_surface: bool = False,
) -> Hits:
    """Return the first intersection of rays with the terrain.

    Args:
        terrain: The heightfield and its rocks.
        origin: (N, 3) or (3,) ray starts, world, metres.
        direction: (N, 3) ray directions, world; any length, which is the unit of the depth.
        limit: (N,) largest ray parameter to look at; None for the whole terrain.
        from_surface: The rays start at the ground; only a hint for speed.
    """
    origin = origin.expand_as(direction)
    ground = _trace_ground(terrain, origin, direction, limit, from_surface)
    if terrain.rocks is None:
        return ground
    farthest = ground.depth if limit is None else torch.minimum(ground.depth, limit)
    arrays = [array.contiguous().numpy() for array in (origin, direction, farthest)]
    near, triangle = (torch.from_numpy(found) for found in terrain.rocks.intersect(*arrays))
    struck = triangle >= 0
    depth = torch.where(struck, near, ground.depth)
    return Hits(depth, torch.where(struck, -1, ground.level), triangle)


def _trace_ground(
    terrain: Terrain,
    origin: torch.Tensor,
    direction: torch.Tensor,
    limit: torch.Tensor | None,
    from_surface: bool,
) -> Hits:
    """Return the first intersection with the heightfield alone; see `trace`."""
    if limit is None:
        limit = torch.full((direction.shape[0],), math.inf, device=direction.device)
    rays = [array.contiguous() for array in (origin, direction, limit)]
    depth = torch.empty_like(rays[2])
    level = torch.empty_like(depth, dtype=torch.int64)
    if _is_on_cpu(terrain):
        compiled = _loops()
        mip = compiled.FROM_GROUND_MIP if from_surface else compiled.FROM_CAMERA_MIP
        grids = _grids(terrain, torch.Tensor.numpy)
        starts, ways, limits, depths, levels = (array.numpy() for array in (*rays, depth, level))

        def trace_part(first: int, last: int) -> None:
            part = slice(first, last)
            rays_of_part = starts[part], ways[part], limits[part]
            compiled.trace_rays(grids, *rays_of_part, mip, depths[part], levels[part])

        _in_threads(trace_part, len(direction))
    else:
        kernels = _kernels()
        grids = _grids(terrain, kernels.device_array)
        kernels.trace(grids, *rays, from_surface, depth, level)
    return Hits(depth, level)


def render(
    terrain: Terrain,
    view: View,
    lighting: Lighting,
    samples: int = 4,
    rover: tuple[Box, ...] = (),
    rover_pose: torch.Tensor | None = None,
    sunlit: SunlitGround | None = None,
) -> Rendering:
    """Return the image of one view.

    Args:
        terrain: The heightfield; on the device that renders.
        view: Camera, at the finest grid's place; on any device.
        lighting: Sun, ambient light and reflectance.
        samples: Rays a pixel for the radiance (1, 2 or 4); depth is always the centre's.
        rover: Boxes that cast a shadow (they are not seen themselves).
        rover_pose: (4, 4) world from rover frame; needed with `rover`.
        sunlit: What `sunlit_ground` found for this terrain and sun; saves shadow rays.

    Raises:
        InputError: The camera is outside the finest grid or below the ground, the number of
            samples is not offered, a rover has no pose, `sunlit` is another sun's, or numba is
            not installed.
    """
    _check_view(terrain, view, samples, rover, rover_pose)
    if sunlit is not None and sunlit.lighting.direction() != lighting.direction():
        raise InputError(
            'the sunlit ground was found for a sun at elevation '
            f'{sunlit.lighting.sun_elevation_deg:g} and azimuth '
            f'{sunlit.lighting.sun_azimuth_deg:g} degrees, not for '
            f'{lighting.sun_elevation_deg:g} and {lighting.sun_azimuth_deg:g}'
        )
    shape = (view.height, view.width)
    place = tuple(view.position_m.cpu().tolist())
    camera = (*place, float(view.fx), float(view.fy), float(view.cx), float(view.cy))
    bending = tuple(float(v) for v in view.distortion or (0.0,) * 5)
    sun = torch.tensor(lighting.direction())
    suns = [_jittered_sun(sun, number, samples) for number in range(samples)] + [sun]
    # Light comes from the samples; depth and shadow from the pixel's centre, the last ray.
    rays_of_pixel = [(offset, True) for offset in _SAMPLE_OFFSETS[samples]]
    if samples > 1:
        rays_of_pixel.append(((0.0, 0.0), False))
    ways = torch.tensor(
        [
            (*offset, *direction.tolist(), float(with_light))
            for (offset, with_light), direction in zip(rays_of_pixel, suns, strict=False)
        ],
        dtype=torch.float64,
    )
    stand = torch.eye(4) if rover_pose is None else rover_pose
    boxes = torch.tensor([(*box.center_m, *box.half_m) for box in rover], dtype=torch.float64)
    tables = _gathered(
        terrain.device,
        view.rotation,
        ways,
        torch.tensor(_MICRO_LAYERS, dtype=torch.float64),
        boxes.reshape(-1, 6),
        stand,
    )
    if _is_on_cpu(terrain):
        return _render_on_cpu(terrain, view, lighting, sunlit, camera, bending, tables)
    kernels = _kernels()
    rotation, ways, *rest = (kernels.device_array(table) for table in tables)
    scene = _scene(terrain, view, lighting, rest, sunlit, kernels.device_array)
    radiance, depth = torch.empty((2, *shape), device=terrain.device)
    shadow = torch.empty(shape, dtype=torch.bool, device=terrain.device)
    kernels.render(
        scene, camera, bending, UNDISTORT_STEPS, rotation, ways, samples, radiance, depth, shadow
    )
    return Rendering(radiance, depth, shadow)


def hidden_from(
    terrain: Terrain, view: View, depth: torch.Tensor, other_center_m: torch.Tensor
) -> torch.Tensor:
    """Return (H, W) bool: the surface point of a pixel is not seen from another point.

    Args:
        terrain: The heightfield.
        view: The camera that `depth` belongs to; on any device, as is the other one.
        depth: (H, W) metres along the optical axis, NaN in the sky (reported as not hidden).
        other_center_m: (3,) optical centre of the other camera, world, metres.
    """
    view, other_center_m = view.to(depth.device), other_center_m.to(depth.device)
    flat = depth.reshape(-1)
    known = torch.isfinite(flat)
    points = view.position_m + view.rays()[known] * flat[known, None]
    lift = 0.02 * _cell_size_at(terrain, points)
    points[:, 2] += lift
    towards = other_center_m - points
    limit = torch.full((points.shape[0],), 1.0, device=points.device)
    behind = torch.isfinite(_trace_ground(terrain, points, towards, limit, True).depth)
    if terrain.rocks is not None:
        # Not lifted, which could be into the rock, but back along the ray.
        start = view.position_m + view.rays()[known] * (flat[known, None] * (1 - _ROCK_LIFT))
        arrays = (v.contiguous().numpy() for v in (start, other_center_m - start, limit))
        behind |= torch.from_numpy(terrain.rocks.blocks(*arrays))
    hidden = torch.zeros_like(known)
    hidden[known] = behind
    return hidden.reshape(depth.shape)


_SAMPLE_OFFSETS: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.0, 0.0),),
    2: ((0.25, -0.25), (-0.25, 0.25)),
    # Rotated grid: four distinct rows and columns, which suits thin, nearly level edges.
    4: ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375)),
}


def check_camera(terrain: Terrain, view: View) -> None:
    """Refuse a camera that has no fine ground around it.

    Raises:
        InputError: It is outside the finest grid or below the ground.
    """
    position = view.position_m.cpu()
    x, y, z = position.tolist()
    reach = terrain.levels[0].half_size_m
    if not (abs(x) < reach and abs(y) < reach):
        raise InputError(
            f'camera is at x {x:.2f} m, y {y:.2f} m; the finest grid ends at {reach:.2f} m'
        )
    ground = float(terrain.height_at(position[:1], position[1:2])[0])
    if z <= ground:
        raise InputError(f'camera is at z {z:.2f} m, below the ground at {ground:.2f} m')


def _check_view(terrain: Terrain, view: View, samples: int, rover: Any, rover_pose: Any) -> None:
    check_camera(terrain, view)
    if samples not in _SAMPLE_OFFSETS:
        raise InputError(f'{samples} samples a pixel; one of {sorted(_SAMPLE_OFFSETS)} is needed')
    if rover and rover_pose is None:
        raise InputError('a rover that casts a shadow needs its pose')


def _jittered_sun(sun: torch.Tensor, number: int, samples: int) -> torch.Tensor:
    """Return a direction inside the sun's disc: a different one per sample softens shadows."""
    if samples == 1:
        return sun
    angle = 2 * math.pi * (number + 0.3) / samples
    side = torch.linalg.cross(sun, sun.new_tensor([0.0, 0.0, 1.0]))
    side = side / side.norm().clamp(min=1e-6)
    up = torch.linalg.cross(side, sun)
    radius = 0.6 * _SUN_RADIUS_RAD
    shifted = sun + radius * (math.cos(angle) * side + math.sin(angle) * up)
    return shifted / shifted.norm()


def _is_on_cpu(terrain: Terrain) -> bool:
    return terrain.device.type == 'cpu'


def _gathered(device: torch.device, *tables: torch.Tensor) -> list[torch.Tensor]:
    """Return small tables as float64 on a device; it takes one transfer for all of them."""
    flat = torch.cat([table.double().cpu().reshape(-1) for table in tables]).to(device)
    parts = flat.split([table.numel() for table in tables])
    return [part.reshape(table.shape) for part, table in zip(parts, tables, strict=True)]


def _grids(terrain: Terrain, as_array: Callable[[torch.Tensor], Any]) -> tuple[Any, ...]:
    """Return the terrain as `compiled.py` takes it, its tensors as arrays of NumPy or of CUDA."""
    levels = terrain.levels
    return (
        tuple(as_array(level.heights) for level in levels),
        tuple(as_array(level.maxima) for level in levels),
        tuple(as_array(level.offsets) for level in levels),
        tuple(level.cells for level in levels),
        tuple(level.origin_m for level in levels),
        tuple(level.cell_m for level in levels),
    )


def _scene(
    terrain: Terrain,
    view: View,
    lighting: Lighting,
    small: Sequence[Any],
    sunlit: SunlitGround | None,
    as_array: Callable[[torch.Tensor], Any],
) -> tuple[Any, ...]:
    """Return a scene as `compiled.shade_rows` takes it.

    Args:
        terrain, view, lighting, sunlit: What is rendered.
        small: Arrays of the fine texture's layers, the rover's boxes and its pose.
        as_array: See `_grids`.
    """
    hapke = lighting.hapke
    layers, boxes, pose = small
    if sunlit is not None:
        cells = sunlit.cells
    else:
        cells = (torch.zeros(1, dtype=torch.uint8, device=terrain.device),) * len(terrain.levels)
    return (
        _grids(terrain, as_array),
        tuple(as_array(level.surface) for level in terrain.levels),
        as_array(terrain.micro),
        terrain.micro_texel_m,
        layers,
        boxes,
        pose,
        (hapke.w, hapke.b, hapke.c, hapke.B0, hapke.h, hapke.theta_bar_deg),
        lighting.ambient,
        lighting.bounce,
        SHADOW_LIFT_CELLS,
        view.fx,
        tuple(as_array(table) for table in _rock_tables(terrain)),
        tuple(as_array(states) for states in cells),
    )


def _in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Call work(first, last) for parts of 0..count on as many threads as torch uses."""
    threads = torch.get_num_threads()
    # More parts than threads: sky rows cost nothing, near ground costs most.
    bounds = np.linspace(0, count, min(8 * threads, count) + 1).astype(int)
    if threads == 1:
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            work(first, last)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


def _render_on_cpu(
    terrain: Terrain,
    view: View,
    lighting: Lighting,
    sunlit: SunlitGround | None,
    camera: tuple[Any, ...],
    bending: tuple[Any, ...],
    tables: Sequence[torch.Tensor],
) -> Rendering:
    """Return the image of one view.

    Args:
        terrain, view, lighting, sunlit: See `render`.
        camera, bending: See `compiled.ray_through`.
        tables: Rotation and ways as in `kernels.render`, and the small arrays of `_scene`.
    """
    shape = (view.height, view.width)
    rotation, ways, *rest = (table.numpy() for table in tables)
    scene = _scene(terrain, view, lighting, rest, sunlit, torch.Tensor.numpy)
    compiled = _loops()
    samples = int(ways[:, 5].sum())
    radiance = np.zeros(shape, np.float32)
    depth = np.full_like(radiance, np.inf)
    shadow = np.zeros(shape, np.bool_)
    triangles = np.full(shape, -1, np.int32)

    def render_part(first: int, last: int) -> None:
        part = (last - first, shape[1])
        light, rays = np.zeros(part), np.empty((*part, 3))
        ground = np.empty(part), np.empty(part, np.int64)
        for dx, dy, *to_sun, with_light in ways.tolist():
            compiled.trace_rows(
                scene[0], camera, bending, UNDISTORT_STEPS, rotation, (dx, dy), first, rays, ground
            )
            sun = tuple(to_sun)
            triangle, blocked = _rocks_in_view(terrain, camera[:3], rays, ground[0], sun)
            compiled.shade_rows(
                scene,
                camera,
                rays,
                (*ground, triangle),
                blocked,
                sun,
                with_light > 0,
                light,
                shadow[first:last],
            )
        radiance[first:last] = light / samples
        depth[first:last], triangles[first:last] = ground[0], triangle

    _in_threads(render_part, shape[0])
    depth[~np.isfinite(depth)] = np.nan
    return Rendering(
        torch.from_numpy(radiance),
        torch.from_numpy(depth),
        torch.from_numpy(shadow),
        None if terrain.rocks is None else torch.from_numpy(triangles),
    )


def _rock_tables(terrain: Terrain) -> tuple[torch.Tensor, ...]:
    """Return vertices, normals, reflectance and triangles of the rocks; none is a single zero."""
    if terrain.rocks is None:
        none = torch.zeros((1, 3), device=terrain.device)
        return none, none, none[:, 0], none.int()
    rocks = terrain.rocks
    tables = (rocks.vertices, rocks.normals, rocks.albedo, rocks.triangles)
    return tuple(torch.from_numpy(table) for table in tables)


def _rocks_in_view(
    terrain: Terrain,
    place: tuple[Any, ...],
    rays: np.ndarray,
    depth: np.ndarray,
    sun: tuple[Any, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Return which triangle of a rock each ray meets, and whether rocks hide its end from the sun.

    Args:
        terrain: The ground.
        place: x, y, z of the camera.
        rays: (R, W, 3) directions.
        depth: (R, W) ray parameters on the ground; those of rocks take their place.
        sun: Direction to the sun.

    Returns:
        (R, W) int32, -1 for none, and (R, W) bool.
    """
    triangle = np.full(depth.shape, -1, np.int32)
    blocked = np.zeros(depth.shape, np.bool_)
    if terrain.rocks is None:
        return triangle, blocked
    ways = rays.reshape(-1, 3).astype(np.float32)
    origin = np.broadcast_to(np.array(place, np.float32), ways.shape)
    near, found = terrain.rocks.intersect(origin, ways, depth.reshape(-1).astype(np.float32))
    triangle[:] = found.reshape(depth.shape)
    struck = triangle >= 0
    depth[struck] = near.reshape(depth.shape)[struck]
    seen = np.isfinite(depth)
    # Back along the ray a little: a triangle must not hide itself.
    length = np.where(struck, depth * (1 - _ROCK_LIFT), depth)[seen]
    points = np.array(place) + rays[seen] * length[:, None]
    towards = np.array([sun], np.float32)
    far = np.full(len(points), np.float32(np.inf))
    blocked[seen] = terrain.rocks.blocks(points.astype(np.float32), towards, far)
    return triangle, blocked


def _cell_size_at(terrain: Terrain, points: torch.Tensor) -> torch.Tensor:
    reach = torch.maximum(points[:, 0].abs(), points[:, 1].abs())
    size = torch.full_like(reach, terrain.levels[-1].cell_m)
    for level in reversed(terrain.levels):
        size = torch.where(reach <= level.half_size_m, size.new_tensor(level.cell_m), size)
    return size


def surface_of(
    terrain: Terrain,
    points: torch.Tensor,
    footprint_m: torch.Tensor,
    triangle: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit normals (N, 3) and relative albedo (N,) at points of the surface.

    Args:
        terrain: The ground.
        points: (N, 3) world, metres.
        footprint_m: (N,) size of the ground that is looked at; finer detail fades out.
        triangle: (N,) triangles of rocks that the points belong to, -1 for the ground; None is
            ground everywhere. The finest detail of rocks is left out.
    """
    reach = torch.maximum(points[:, 0].abs(), points[:, 1].abs())
    grid = torch.zeros_like(reach, dtype=torch.int64)
    for level in terrain.levels[:-1]:
        grid += reach > level.half_size_m
    slopes, albedo = _surface_at(terrain, points, grid)
    slopes, grain = _add_micro(terrain, points, slopes, footprint_m)
    normals, albedo = _normals(slopes), albedo * grain
    if terrain.rocks is not None and triangle is not None:
        at = (triangle >= 0).nonzero()[:, 0]
        found = terrain.rocks.surface(points[at].numpy(), triangle[at].numpy())
        normals[at], albedo[at] = (torch.from_numpy(values) for values in found)
    return normals, albedo


def _normals(slopes: torch.Tensor) -> torch.Tensor:
    inverse = torch.rsqrt(1 + slopes.square().sum(dim=1))
    return torch.stack([-slopes[:, 0] * inverse, -slopes[:, 1] * inverse, inverse], dim=1)


def _surface_at(
    terrain: Terrain, points: torch.Tensor, grid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return slopes (N, 2) and relative albedo (N,) interpolated at surface points."""
    values = torch.empty((points.shape[0], 4), device=points.device)
    for index, level in enumerate(terrain.levels):
        at = (grid == index).nonzero()[:, 0]
        if at.numel() == 0:
            continue
        where = ((points[at, :2] - level.origin_m) / level.cell_m).clamp(0, level.cells)
        whole = where.long().clamp(max=level.cells - 1)
        part = where - whole
        row = level.cells + 1
        corner = whole[:, 1] * row + whole[:, 0]
        fx, fy = part[:, :1], part[:, 1:]
        table = level.surface
        low = torch.lerp(table[corner], table[corner + 1], fx)
        high = torch.lerp(table[corner + row], table[corner + row + 1], fx)
        values[at] = torch.lerp(low, high, fy)
    return values[:, 1:3], values[:, 3]


# Layers of the fine texture: texel scale, rotation (rad) and slope gain. The second one goes on
# where the first ends, for cameras close to the ground; rotation hides the periods.
_MICRO_LAYERS = ((1.0, 0.0, 1.0), (0.23, 0.63, 1.25))


def _add_micro(
    terrain: Terrain, points: torch.Tensor, slopes: torch.Tensor, footprint: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return slopes and albedo factor with the detail below the finest cell size.

    It fades out where a pixel covers more ground than the detail's own size.
    """
    side = terrain.micro.shape[0]
    albedo = torch.ones_like(footprint)
    table = terrain.micro.reshape(-1, 3)
    for scale, angle, gain in _MICRO_LAYERS:
        texel = terrain.micro_texel_m * scale
        weight = 1.0 / (1.0 + (footprint / (4 * texel)) ** 2)
        near = (weight > 0.05).nonzero()[:, 0]
        if near.numel() == 0:
            continue
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = points[near, 0] / texel, points[near, 1] / texel
        detail = _periodic_bilinear(table, side, cos * x + sin * y, cos * y - sin * x)
        strength = weight[near, None] * gain
        turned = torch.stack(
            [cos * detail[:, 0] - sin * detail[:, 1], sin * detail[:, 0] + cos * detail[:, 1]], 1
        )
        slopes = slopes.index_add(0, near, turned * strength)
        grain = 1 + strength[:, 0] * (detail[:, 2] - 1)
        albedo = albedo.index_put((near,), albedo[near] * grain)
    return slopes, albedo


def _periodic_bilinear(
    table: torch.Tensor, side: int, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    x0, y0 = torch.floor(x), torch.floor(y)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    ix, iy = x0.long() % side, y0.long() % side
    jx, jy = (ix + 1) % side, (iy + 1) % side
    low = torch.lerp(table[iy * side + ix], table[iy * side + jx], fx)
    high = torch.lerp(table[jy * side + ix], table[jy * side + jx], fx)
    return torch.lerp(low, high, fy)


def hapke_reflectance(
    cos_i: torch.Tensor, cos_e: torch.Tensor, cos_g: torch.Tensor, hapke: Hapke
) -> torch.Tensor:
    """Return Hapke's bidirectional reflectance with macroscopic roughness, per steradian * pi.

    Hapke 1981 (isotropic multiple scattering, opposition surge) with the roughness correction
    of Hapke 1984 and a double Henyey-Greenstein phase function.

    Args:
        cos_i, cos_e, cos_g: (N,) cosines of incidence, emission and phase angle.
        hapke: Parameters of the ground.
    """
    cos_i, cos_e = cos_i.clamp(min=1e-4), cos_e.clamp(min=1e-4)
    mu0, mu, shading = _rough_surface(cos_i, cos_e, cos_g, hapke.theta_bar_deg)
    half_tangent = torch.sqrt(((1 - cos_g) / (1 + cos_g).clamp(min=1e-6)).clamp(min=0.0))
    surge = hapke.B0 / (1 + half_tangent / hapke.h)
    b, c = hapke.b, hapke.c
    back = (1 - b * b) / (1 - 2 * b * cos_g + b * b).pow(1.5)
    front = (1 - b * b) / (1 + 2 * b * cos_g + b * b).pow(1.5)
    phase = 0.5 * (1 + c) * back + 0.5 * (1 - c) * front
    gamma = math.sqrt(1 - hapke.w)

    def multiple(x: torch.Tensor) -> torch.Tensor:
        return (1 + 2 * x) / (1 + 2 * x * gamma)

    scattered = (1 + surge) * phase + multiple(mu0) * multiple(mu) - 1
    return hapke.w / 4 * mu0 / (mu0 + mu) * scattered * shading


def _rough_surface(
    cos_i: torch.Tensor, cos_e: torch.Tensor, cos_g: torch.Tensor, theta_bar_deg: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return effective cosines of incidence and emission and the shadowing (Hapke 1984)."""
    if theta_bar_deg < 0.1:
        return cos_i, cos_e, torch.ones_like(cos_i)
    tangent = math.tan(math.radians(theta_bar_deg))
    chi = 1 / math.sqrt(1 + math.pi * tangent**2)
    sin_i = torch.sqrt((1 - cos_i**2).clamp(min=1e-8))
    sin_e = torch.sqrt((1 - cos_e**2).clamp(min=1e-8))
    cos_psi = ((cos_g - cos_i * cos_e) / (sin_i * sin_e)).clamp(-1.0, 1.0)
    psi = torch.acos(cos_psi)
    half_sine2 = 0.5 * (1 - cos_psi)
    far = torch.exp(-2 * torch.sqrt(half_sine2 / (1 - half_sine2).clamp(min=1e-6)))

    def e1(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return torch.exp(-2 / (math.pi * tangent) * cos / sin)

    def e2(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return torch.exp(-1 / (math.pi * tangent**2) * (cos / sin) ** 2)

    e1_i, e1_e = e1(cos_i, sin_i), e1(cos_e, sin_e)
    e2_i, e2_e = e2(cos_i, sin_i), e2(cos_e, sin_e)
    eta_i = chi * (cos_i + sin_i * tangent * e2_i / (2 - e1_i))
    eta_e = chi * (cos_e + sin_e * tangent * e2_e / (2 - e1_e))
    steeper_view = cos_i >= cos_e
    share = psi / math.pi
    first = 2 - e1_e - share * e1_i
    second = 2 - e1_i - share * e1_e
    mu0_a = cos_i + sin_i * tangent * (cos_psi * e2_e + half_sine2 * e2_i) / first
    mu_a = cos_e + sin_e * tangent * (e2_e - half_sine2 * e2_i) / first
    mu0_b = cos_i + sin_i * tangent * (e2_i - half_sine2 * e2_e) / second
    mu_b = cos_e + sin_e * tangent * (cos_psi * e2_i + half_sine2 * e2_e) / second
    mu0 = chi * torch.where(steeper_view, mu0_a, mu0_b)
    mu = chi * torch.where(steeper_view, mu_a, mu_b)
    ratio = torch.where(steeper_view, cos_i / eta_i, cos_e / eta_e)
    shading = mu / eta_e * cos_i / eta_i * chi / (1 - far + far * chi * ratio)
    return mu0.clamp(min=1e-4), mu.clamp(min=1e-4), shading
