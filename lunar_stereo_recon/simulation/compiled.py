"""The renderer's rules for one ray, compiled with numba, and the loops over rays for CPUs.

`kernels.py` calls the same functions for one ray per CUDA thread. Rays walk through a pyramid of
maximum heights and end on the exact intersection with the bilinear surface of a cell. All
arithmetic is in float64, on CUDA too: see docs/simulation.md. Grids come as tuples with one entry
per terrain level, finest first.
"""

from __future__ import annotations

import math

import numba
import numpy as np

# A ray is pushed over cell borders by this much (cells), so that it cannot stay on one.
_NUDGE_CELLS = 1e-4
# Levels of the pyramids that rays begin with: those that start at the ground, and all others.
FROM_GROUND_MIP, FROM_CAMERA_MIP = 1, 5


@numba.njit(cache=True, nogil=True)
def _walk(heights, maxima, offsets, cells, origin_m, cell_m, ray, t, stop, mip):
    """Return the ray parameter of the first hit in (t, stop) inside one grid; inf for none."""
    wx, wy, oz, dirx, diry, dz = ray
    if not t < stop or oz + (stop if dz < 0 else t) * dz > maxima[-1]:
        return np.inf
    top = len(offsets) - 1
    row = cells + 1
    ox, oy = (wx - origin_m) / cell_m, (wy - origin_m) / cell_m
    dx, dy = dirx / cell_m, diry / cell_m
    if abs(dx) < 1e-9:
        dx = 1e-9
    if abs(dy) < 1e-9:
        dy = 1e-9
    right, up = (1 if dx > 0 else 0), (1 if dy > 0 else 0)
    nudge_x = _NUDGE_CELLS if right else -_NUDGE_CELLS
    nudge_y = _NUDGE_CELLS if up else -_NUDGE_CELLS
    inverse_x, inverse_y = 1.0 / dx, 1.0 / dy
    mip = min(mip, top)
    while t < stop:
        px, py = ox + t * dx + nudge_x, oy + t * dy + nudge_y
        if px < 0 or py < 0 or px >= cells or py >= cells:
            break
        cx, cy = int(px) >> mip, int(py) >> mip
        tx = (((cx + right) << mip) - ox) * inverse_x
        ty = (((cy + up) << mip) - oy) * inverse_y
        leave = max(min(tx, ty, stop), t)
        lowest = oz + (leave if dz < 0 else t) * dz
        if lowest > maxima[offsets[mip] + cy * (cells >> mip) + cx]:
            t = leave
            at_parent = (cx & 1) == right if tx < ty else (cy & 1) == up
            if at_parent and mip < top:
                mip += 1
            continue
        if mip > 0:
            mip -= 1
            continue
        corner = cy * row + cx
        h00, h10 = float(heights[corner]), float(heights[corner + 1])
        h01, h11 = float(heights[corner + row]), float(heights[corner + row + 1])
        u, v = ox + t * dx - cx, oy + t * dy - cy
        slope_u, slope_v, twist = h10 - h00, h01 - h00, h00 - h10 - h01 + h11
        # Height above the bilinear patch along the ray: a s^2 + b s + c.
        c = oz + t * dz - h00 - slope_u * u - slope_v * v - twist * u * v
        if c <= 0:
            return t
        a = -twist * dx * dy
        b = dz - slope_u * dx - slope_v * dy - twist * (u * dy + v * dx)
        inside = b * b - 4 * a * c
        if inside >= 0:
            root = math.sqrt(inside)
            if root > b and 2 * c <= (root - b) * ((leave - t) * (1 + 1e-6) + 1e-9):
                return t + 2 * c / (root - b)
        t = leave
    return np.inf


@numba.njit(cache=True, nogil=True)
def first_hit(grids, ray, limit, mip):
    """Return the parameter and the level of a ray's first hit; (inf, -1) for none.

    Args:
        grids: See `trace_rays`.
        ray: x, y, z of the start and of the direction, world, metres.
        limit: Largest parameter.
        mip: Pyramid level to begin with.
    """
    heights, maxima, offsets, cells, origins, sizes = grids
    start = 0.0
    for level in range(len(heights)):
        half = 0.5 * cells[level] * sizes[level]
        enter, leave = start, limit
        for axis in range(2):
            along = ray[3 + axis]
            if abs(along) < 1e-12:
                along = 1e-12
            one, two = (-half - ray[axis]) / along, (half - ray[axis]) / along
            enter = max(enter, min(one, two))
            leave = min(leave, max(one, two))
        if enter < leave:
            t = _walk(
                heights[level],
                maxima[level],
                offsets[level],
                cells[level],
                origins[level],
                sizes[level],
                ray,
                enter,
                leave,
                mip,
            )
            if t < np.inf:
                return t, level
            start = leave
    return np.inf, -1


@numba.njit(cache=True, nogil=True)
def ray_of_row(origin, direction, i):
    """Return ray i of (N, 3) starts and directions as `first_hit` takes it."""
    return (
        float(origin[i, 0]),
        float(origin[i, 1]),
        float(origin[i, 2]),
        float(direction[i, 0]),
        float(direction[i, 1]),
        float(direction[i, 2]),
    )


@numba.njit(cache=True, nogil=True)
def trace_rays(grids, origin, direction, limit, mip, depth, hit_level):
    """Write the ray parameters and levels of first hits.

    Args:
        grids: Heights, maxima, pyramid offsets, cells, origins and cell sizes per level.
        origin, direction: (N, 3) float32 rays, world, metres.
        limit: (N,) float32 largest parameter.
        mip: Pyramid level to begin with.
        depth: (N,) float32 output, inf for no hit.
        hit_level: (N,) int64 output, -1 for no hit.
    """
    for i in range(direction.shape[0]):
        ray = ray_of_row(origin, direction, i)
        depth[i], hit_level[i] = first_hit(grids, ray, float(limit[i]), mip)


@numba.njit(cache=True, nogil=True)
def _surface(table, cells, origin_m, cell_m, x, y):
    """Return slopes and albedo of one grid, interpolated."""
    gx = min(max((x - origin_m) / cell_m, 0.0), float(cells))
    gy = min(max((y - origin_m) / cell_m, 0.0), float(cells))
    ix, iy = min(int(gx), cells - 1), min(int(gy), cells - 1)
    fx, fy = gx - ix, gy - iy
    at = iy * (cells + 1) + ix
    over = at + cells + 1
    low, high = (1 - fx) * (1 - fy), fx * (1 - fy)
    low_next, high_next = (1 - fx) * fy, fx * fy
    slope_x = low * table[at, 1] + high * table[at + 1, 1]
    slope_x += low_next * table[over, 1] + high_next * table[over + 1, 1]
    slope_y = low * table[at, 2] + high * table[at + 1, 2]
    slope_y += low_next * table[over, 2] + high_next * table[over + 1, 2]
    albedo = low * table[at, 3] + high * table[at + 1, 3]
    albedo += low_next * table[over, 3] + high_next * table[over + 1, 3]
    return slope_x, slope_y, albedo


@numba.njit(cache=True, nogil=True)
def _cell_state(states, cells, origin_m, cell_m, x, y):
    """Return what is known about sunlight in the cell of a point."""
    ix = min(max(int((x - origin_m) / cell_m), 0), cells - 1)
    iy = min(max(int((y - origin_m) / cell_m), 0), cells - 1)
    return int(states[iy * cells + ix])


@numba.njit(cache=True, nogil=True)
def _micro(table, texel_m, layers, x, y, footprint):
    """Return slopes and albedo factor of the fine texture at a point."""
    side = table.shape[0]
    slope_x, slope_y, factor = 0.0, 0.0, 1.0
    for layer in range(layers.shape[0]):
        texel = texel_m * layers[layer, 0]
        weight = 1.0 / (1.0 + (footprint / (4 * texel)) ** 2)
        if weight <= 0.05:
            continue
        cos, sin = math.cos(layers[layer, 1]), math.sin(layers[layer, 1])
        u, v = (cos * x + sin * y) / texel, (cos * y - sin * x) / texel
        floor_u, floor_v = math.floor(u), math.floor(v)
        fu, fv = u - floor_u, v - floor_v
        iu, iv = int(floor_u) % side, int(floor_v) % side
        ju, jv = (iu + 1) % side, (iv + 1) % side
        w00, w10, w01, w11 = (1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv
        a = w00 * table[iv, iu, 0] + w10 * table[iv, ju, 0]
        a += w01 * table[jv, iu, 0] + w11 * table[jv, ju, 0]
        b = w00 * table[iv, iu, 1] + w10 * table[iv, ju, 1]
        b += w01 * table[jv, iu, 1] + w11 * table[jv, ju, 1]
        grain = w00 * table[iv, iu, 2] + w10 * table[iv, ju, 2]
        grain += w01 * table[jv, iu, 2] + w11 * table[jv, ju, 2]
        strength = weight * layers[layer, 2]
        slope_x += strength * (cos * a - sin * b)
        slope_y += strength * (sin * a + cos * b)
        factor *= 1 + strength * (grain - 1)
    return slope_x, slope_y, factor


@numba.njit(cache=True, nogil=True)
def _in_box_shadow(boxes, pose, x, y, z, sun):
    """Return whether the way from a point to the sun goes through a box of the rover."""
    for box in range(boxes.shape[0]):
        enter, leave = 0.0, np.inf
        for axis in range(3):
            local = 0.0
            way = 0.0
            for k in range(3):
                offset = (x if k == 0 else (y if k == 1 else z)) - pose[k, 3]
                local += offset * pose[k, axis]
                way += sun[k] * pose[k, axis]
            if abs(way) < 1e-6:
                way = 1e-6
            one = (boxes[box, axis] - boxes[box, 3 + axis] - local) / way
            two = (boxes[box, axis] + boxes[box, 3 + axis] - local) / way
            enter = max(enter, min(one, two))
            leave = min(leave, max(one, two))
        if leave > enter:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def hapke(cos_i, cos_e, cos_g, model):
    """Return Hapke's reflectance; `renderer.hapke_reflectance` explains it."""
    w, b, c, surge_height, surge_width, theta_deg = model
    cos_i, cos_e = max(cos_i, 1e-4), max(cos_e, 1e-4)
    mu0, mu, shading = cos_i, cos_e, 1.0
    if theta_deg >= 0.1:
        tangent = math.tan(math.radians(theta_deg))
        chi = 1 / math.sqrt(1 + math.pi * tangent**2)
        sin_i = math.sqrt(max(1 - cos_i**2, 1e-8))
        sin_e = math.sqrt(max(1 - cos_e**2, 1e-8))
        cos_psi = min(max((cos_g - cos_i * cos_e) / (sin_i * sin_e), -1.0), 1.0)
        share = math.acos(cos_psi) / math.pi
        half_sine2 = 0.5 * (1 - cos_psi)
        far = math.exp(-2 * math.sqrt(half_sine2 / max(1 - half_sine2, 1e-6)))
        cot_i, cot_e = cos_i / sin_i, cos_e / sin_e
        e1_i = math.exp(-2 / math.pi / tangent * cot_i)
        e1_e = math.exp(-2 / math.pi / tangent * cot_e)
        e2_i = math.exp(-1 / math.pi / tangent**2 * cot_i**2)
        e2_e = math.exp(-1 / math.pi / tangent**2 * cot_e**2)
        eta_i = chi * (cos_i + sin_i * tangent * e2_i / (2 - e1_i))
        eta_e = chi * (cos_e + sin_e * tangent * e2_e / (2 - e1_e))
        if cos_i >= cos_e:
            below = 2 - e1_e - share * e1_i
            mu0 = chi * (cos_i + sin_i * tangent * (cos_psi * e2_e + half_sine2 * e2_i) / below)
            mu = chi * (cos_e + sin_e * tangent * (e2_e - half_sine2 * e2_i) / below)
            ratio = cos_i / eta_i
        else:
            below = 2 - e1_i - share * e1_e
            mu0 = chi * (cos_i + sin_i * tangent * (e2_i - half_sine2 * e2_e) / below)
            mu = chi * (cos_e + sin_e * tangent * (cos_psi * e2_i + half_sine2 * e2_e) / below)
            ratio = cos_e / eta_e
        shading = mu / eta_e * cos_i / eta_i * chi / (1 - far + far * chi * ratio)
        mu0, mu = max(mu0, 1e-4), max(mu, 1e-4)
    half_tangent = math.sqrt(max((1 - cos_g) / max(1 + cos_g, 1e-6), 0.0))
    surge = surge_height / (1 + half_tangent / surge_width)
    back = (1 - b * b) / (1 - 2 * b * cos_g + b * b) ** 1.5
    front = (1 - b * b) / (1 + 2 * b * cos_g + b * b) ** 1.5
    phase = 0.5 * (1 + c) * back + 0.5 * (1 - c) * front
    gamma = math.sqrt(1 - w)
    many = (1 + 2 * mu0) / (1 + 2 * mu0 * gamma) * (1 + 2 * mu) / (1 + 2 * mu * gamma)
    return w / 4 * mu0 / (mu0 + mu) * ((1 + surge) * phase + many - 1) * shading


@numba.njit(cache=True, nogil=True)
def _rock_surface(rocks, triangle, x, y, z):
    """Return the shading normal and the reflectance of a triangle at a point of it."""
    vertices, normals, albedo, corners = rocks
    a, b, c = corners[triangle, 0], corners[triangle, 1], corners[triangle, 2]
    uu = uv = vv = wu = wv = 0.0
    for axis in range(3):
        u = float(vertices[b, axis]) - vertices[a, axis]
        v = float(vertices[c, axis]) - vertices[a, axis]
        w = (x if axis == 0 else (y if axis == 1 else z)) - vertices[a, axis]
        uu, uv, vv = uu + u * u, uv + u * v, vv + v * v
        wu, wv = wu + w * u, wv + w * v
    area = max(uu * vv - uv * uv, 1e-30)
    second, third = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    first = 1 - second - third
    nx = first * normals[a, 0] + second * normals[b, 0] + third * normals[c, 0]
    ny = first * normals[a, 1] + second * normals[b, 1] + third * normals[c, 1]
    nz = first * normals[a, 2] + second * normals[b, 2] + third * normals[c, 2]
    length = max(math.sqrt(nx * nx + ny * ny + nz * nz), 1e-9)
    reflectance = first * albedo[a] + second * albedo[b] + third * albedo[c]
    return nx / length, ny / length, nz / length, reflectance


@numba.njit(cache=True, nogil=True)
def _grained(micro, texel_m, layers, nx, ny, nz, x, y, z, footprint):
    """Return a rock's normal with the fine texture, and the texture's albedo factor.

    The texture lies in the two axes across which the surface is steepest.
    """
    gx, gy, gz = 0.0, 0.0, 0.0
    if abs(nz) >= max(abs(nx), abs(ny)):
        gx, gy, grain = _micro(micro, texel_m, layers, x, y, footprint)
    elif abs(nx) >= abs(ny):
        gy, gz, grain = _micro(micro, texel_m, layers, y, z, footprint)
    else:
        gx, gz, grain = _micro(micro, texel_m, layers, x, z, footprint)
    along = gx * nx + gy * ny + gz * nz
    nx, ny, nz = nx - (gx - along * nx), ny - (gy - along * ny), nz - (gz - along * nz)
    inverse = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
    return nx * inverse, ny * inverse, nz * inverse, grain


@numba.njit(cache=True, nogil=True)
def _reflected(model, ambient, bounce, normal, to_camera, sun, lit):
    """Return the radiance of a surface of albedo 1."""
    nx, ny, nz = normal
    cx, cy, cz = to_camera
    light = 0.0
    if lit:
        cos_i = min(max(nx * sun[0] + ny * sun[1] + nz * sun[2], 0.0), 1.0)
        cos_e = min(max(nx * cx + ny * cy + nz * cz, 0.02), 1.0)
        cos_g = min(max(cx * sun[0] + cy * sun[1] + cz * sun[2], -1.0), 1.0)
        light = hapke(cos_i, cos_e, cos_g, model)
    side = 0.5 - 0.5 * (nx * sun[0] + ny * sun[1])
    around = ambient * (0.5 + 0.5 * nz) + bounce * min(max(side, 0.0), 1.0)
    return light + model[0] * 0.25 * around


# Inlined: passing the scene on costs a twentieth of a picture's time on a CPU.
@numba.njit(cache=True, nogil=True, inline='always')
def shade_point(scene, ray, depth, level, triangle, blocked, sun, with_radiance):
    """Return the radiance of a surface point and whether it gets no direct sunlight.

    Args:
        scene: See `shade_rows`.
        ray: See `first_hit`; from the camera to the point.
        depth: Ray parameter of the point.
        level: Grid of the point; not looked at where it belongs to a rock.
        triangle: Triangle of a rock; -1 for the ground.
        blocked: Rocks are between the point and the sun.
        sun: Direction to the sun.
        with_radiance: Whether light is asked for; without it is 0.
    """
    grids, surfaces, micro, texel_m, layers, boxes, pose = scene[:7]
    model, ambient, bounce, shadow_lift, focal, rocks, sunlit = scene[7:]
    x, y, z = ray[0] + depth * ray[3], ray[1] + depth * ray[4], ray[2] + depth * ray[5]
    slope_x, slope_y, albedo, lift = 0.0, 0.0, 0.0, 0.0
    nx, ny, nz = 0.0, 0.0, 1.0
    state = 2
    if triangle >= 0:
        nx, ny, nz, albedo = _rock_surface(rocks, triangle, x, y, z)
        lit = nx * sun[0] + ny * sun[1] + nz * sun[2] > 0
    else:
        slope_x, slope_y, albedo = _surface(
            surfaces[level], grids[3][level], grids[4][level], grids[5][level], x, y
        )
        lit = sun[2] - slope_x * sun[0] - slope_y * sun[1] > 0
        # Lifted a little, or the facets of the surface would shade themselves at low sun.
        lift = shadow_lift * grids[5][level] * math.sqrt(1 + slope_x**2 + slope_y**2)
        if len(sunlit[level]) > 1:
            state = _cell_state(
                sunlit[level], grids[3][level], grids[4][level], grids[5][level], x, y
            )
    lit = lit and not blocked and state != 0
    if lit and boxes.shape[0] > 0:
        lit = not _in_box_shadow(boxes, pose, x, y, z, sun)
    if lit and state == 2:
        up = (x, y, z + lift, sun[0], sun[1], sun[2])
        lit = first_hit(grids, up, np.inf, FROM_GROUND_MIP)[1] < 0
    if not with_radiance:
        return 0.0, not lit
    length = math.sqrt(ray[3] ** 2 + ray[4] ** 2 + ray[5] ** 2)
    cx, cy, cz = -ray[3] / length, -ray[4] / length, -ray[5] / length
    if triangle >= 0:
        footprint = depth / focal / math.sqrt(max(abs(nx * cx + ny * cy + nz * cz), 0.02))
        nx, ny, nz, grain = _grained(micro, texel_m, layers, nx, ny, nz, x, y, z, footprint)
    else:
        footprint = depth / focal / math.sqrt(max(abs(cz), 0.02))
        fine_x, fine_y, grain = _micro(micro, texel_m, layers, x, y, footprint)
        slope_x, slope_y = slope_x + fine_x, slope_y + fine_y
        inverse = 1.0 / math.sqrt(1 + slope_x**2 + slope_y**2)
        nx, ny, nz = -slope_x * inverse, -slope_y * inverse, inverse
    radiance = _reflected(model, ambient, bounce, (nx, ny, nz), (cx, cy, cz), sun, lit)
    return albedo * grain * radiance, not lit


@numba.njit(cache=True, nogil=True)
def undistorted(u, v, bending, steps):
    """Return ideal normalised coordinates; `scene.undistorted` explains it."""
    k1, k2, p1, p2, k3 = bending
    x, y = u, v
    for _ in range(steps):
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        bent_x = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        bent_y = p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        x, y = (u - bent_x) / radial, (v - bent_y) / radial
    return x, y


@numba.njit(cache=True, nogil=True)
def ray_through(camera, bending, undistort_steps, rotation, u, v):
    """Return the ray through a place in the image: x, y, z of its start and of its direction.

    Args:
        camera: x, y, z, fx, fy, cx, cy.
        bending: Distortion k1, k2, p1, p2, k3; zeros for a rectified camera.
        undistort_steps: Iterations that undo it.
        rotation: (3, 3) world from camera.
        u, v: Column and row, pixels.

    Returns:
        The direction is of length 1 along the camera's z.
    """
    wx, wy, wz, fx, fy, cx, cy = camera
    a, b = (u - cx) / fx, (v - cy) / fy
    bent = False
    for value in bending:
        bent = bent or value != 0.0
    if bent:
        a, b = undistorted(a, b, bending, undistort_steps)
    dx = rotation[0, 0] * a + rotation[0, 1] * b + rotation[0, 2]
    dy = rotation[1, 0] * a + rotation[1, 1] * b + rotation[1, 2]
    dz = rotation[2, 0] * a + rotation[2, 1] * b + rotation[2, 2]
    return wx, wy, wz, dx, dy, dz


@numba.njit(cache=True, nogil=True)
def trace_rows(grids, camera, bending, undistort_steps, rotation, offset, first_row, rays, hits):
    """Write the rays of some rows of a view, and where they meet the ground.

    Args:
        grids: See `trace_rays`.
        camera, bending, undistort_steps, rotation: See `ray_through`.
        offset: (2,) of the rays in their pixels.
        first_row: Image row of the first output row.
        rays: (R, W, 3) float64 output, directions in the world.
        hits: Outputs (R, W): float64 ray parameter, inf in the sky; int64 grid, -1 in the sky.
    """
    depth, level = hits
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            ray = ray_through(
                camera,
                bending,
                undistort_steps,
                rotation,
                u + offset[0],
                v + first_row + offset[1],
            )
            rays[v, u, 0], rays[v, u, 1], rays[v, u, 2] = ray[3], ray[4], ray[5]
            depth[v, u], level[v, u] = first_hit(grids, ray, np.inf, FROM_CAMERA_MIP)


@numba.njit(cache=True, nogil=True)
def shade_rows(scene, camera, rays, hits, blocked, sun, with_radiance, radiance, shadow):
    """Add the radiance of what rays have met, and write what the sun does not reach.

    Args:
        scene: Grids, surfaces, fine texture (table, texel, layers), rover boxes and pose, Hapke
            parameters, ambient light, bounced light, lift of shadow rays (cells), focal length of
            the view (pixels), rocks (vertices, normals, reflectance, triangles), and for every
            grid what is known about sunlight in its cells (0 dark, 1 lit, 2 trace it), or a
            single value where nothing is.
        camera: See `ray_through`.
        rays: (R, W, 3) directions.
        hits: (R, W) ray parameter, grid (-1: none) and triangle of a rock (-1: none).
        blocked: (R, W) rocks are between the points and the sun.
        sun: Direction to the sun.
        with_radiance: Whether light is asked for.
        radiance: (R, W) float64, added to.
        shadow: (R, W) output.
    """
    depth, level, triangle = hits
    x, y, z = camera[0], camera[1], camera[2]
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            shadow[v, u] = False
            if level[v, u] < 0 and triangle[v, u] < 0:
                continue
            ray = (x, y, z, rays[v, u, 0], rays[v, u, 1], rays[v, u, 2])
            light, dark = shade_point(
                scene,
                ray,
                depth[v, u],
                level[v, u],
                triangle[v, u],
                blocked[v, u],
                sun,
                with_radiance,
            )
            radiance[v, u] += light
            shadow[v, u] = dark
