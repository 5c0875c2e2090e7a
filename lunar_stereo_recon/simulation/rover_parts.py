"""Parts of a rover that its own cameras see: deck, wheels, poles and an arm, as triangles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.simulation.rock_mesh import RockMeshes

# Paint and markings change from vertex to vertex: the edges of triangles, metres.
_EDGE_M = 0.02
_AROUND = 24
# Nothing is nearer to the cameras than this along the ground, metres.
_NEAREST_M = 0.2

# Vertices (V, 3), unit normals (V, 3), triangles (T, 3).
Mesh = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def sample_rover_parts(height_m: float, rng: np.random.Generator) -> RockMeshes:
    """Return random parts ahead of cameras on a mast.

    Args:
        height_m: Height of the cameras over the ground, metres.
        rng: Source of everything random.

    Returns:
        Triangles in the rover's frame: x ahead, y left, z up from the ground below the cameras.
    """
    length, half_width = rng.uniform(0.4, 1.0), rng.uniform(0.2, 0.45)
    deck = height_m * rng.uniform(0.3, 0.6)
    meshes = []
    if rng.random() < 0.85:
        size = (length - _NEAREST_M) / 2, half_width, rng.uniform(0.02, 0.08)
        meshes.append(_moved(_box(*size), ((length + _NEAREST_M) / 2, 0, deck - size[2])))
        for _ in range(int(rng.integers(0, 4))):  # what is mounted on the deck
            x, y, z = rng.uniform(0.02, 0.1, 3)
            ahead, aside = rng.uniform(_NEAREST_M + 0.1, length), rng.uniform(-1, 1) * half_width
            meshes.append(_moved(_box(x, y, z), (ahead, aside, deck + z)))
    radius, half = rng.uniform(0.08, 0.2), rng.uniform(0.03, 0.09)
    for side in (-1, 1):
        wheel = _moved(_cylinder(radius, half), (0, 0, radius), _turned(0, math.pi / 2))
        ahead, aside = length + rng.uniform(0, 0.3), side * (half_width + 2 * half)
        meshes.append(_moved(wheel, (ahead, aside, 0)))
    for _ in range(int(rng.integers(0, 3))):  # antennas, poles, masts of lamps
        half = height_m * rng.uniform(0.1, 0.35)
        ahead, aside = rng.uniform(0.35, length), rng.uniform(-1, 1) * half_width
        lean = _turned(rng.uniform(0, 2 * math.pi), abs(rng.normal(0, 0.1)))
        pole = _cylinder(rng.uniform(0.005, 0.025), half)
        meshes.append(_moved(pole, (ahead, aside, deck + half), lean))
    if rng.random() < 0.5:
        meshes += _arm(length, half_width, deck, rng)
    return _painted(meshes, rng)


def _arm(length: float, half_width: float, deck: float, rng: np.random.Generator) -> list[Mesh]:
    """Return two links and a tool ahead of the deck."""
    joint = np.array([length, rng.uniform(-0.8, 0.8) * half_width, deck])
    thickness = rng.uniform(0.015, 0.05)
    meshes = []
    for _ in range(2):
        half, turn = rng.uniform(0.12, 0.3), rng.uniform(-0.7, 0.7)
        # From upright to pointing down, ahead.
        tilt = rng.uniform(0.2, 2.2)
        pose = _turned(turn + math.pi / 2, tilt)
        along = pose @ np.array([0.0, 0.0, 1.0])
        meshes.append(_moved(_cylinder(thickness, half), joint + half * along, pose))
        joint = joint + 2 * half * along
        joint[2] = max(joint[2], 0.1)
    meshes.append(_moved(_box(*rng.uniform(0.03, 0.09, 3)), joint))
    return meshes


def _painted(meshes: list[Mesh], rng: np.random.Generator) -> RockMeshes:
    """Return one mesh of all, each part with a paint of its own."""
    first, triangles, albedo = 0, [], []
    for vertices, _, faces in meshes:
        tone = math.exp(rng.uniform(math.log(0.35), math.log(3.0)))
        paint = np.full(len(vertices), tone) * rng.normal(1, rng.uniform(0.0, 0.06), len(vertices))
        if rng.random() < 0.5:  # stripes, as of markings, treads or a calibration target
            period, axis = rng.uniform(0.05, 0.2), vertices[:, int(rng.integers(3))]
            paint[np.sin(2 * math.pi * axis / period) > 0.3] *= rng.uniform(0.3, 1.0)
        albedo.append(np.clip(paint, 0.1, 4.0))
        triangles.append(faces + first)
        first += len(vertices)
    return RockMeshes(
        np.concatenate([mesh[0] for mesh in meshes]).astype(np.float32),
        np.concatenate([mesh[1] for mesh in meshes]).astype(np.float32),
        np.concatenate(albedo).astype(np.float32),
        np.concatenate(triangles).astype(np.int32),
    )


def _box(x: float, y: float, z: float) -> Mesh:
    """Return a box about the origin of half sizes x, y, z."""
    half = np.array([x, y, z])
    faces = []
    for axis in range(3):
        across, up = (axis + 1) % 3, (axis + 2) % 3
        u, v = _grid(*(max(math.ceil(2 * half[k] / _EDGE_M), 1) for k in (across, up)))
        for side in (-1, 1):
            points = np.empty((*u.shape, 3))
            points[..., axis] = side * half[axis]
            # Mirrored on one side, so that triangles are counterclockwise from outside.
            points[..., across], points[..., up] = side * half[across] * u, half[up] * v
            normal = np.zeros(3)
            normal[axis] = side
            faces.append(_sheet(points, normal))
    return _joined(faces)


def _cylinder(radius: float, half: float) -> Mesh:
    """Return a closed cylinder about the z axis."""
    u, v = _grid(_AROUND, max(math.ceil(2 * half / _EDGE_M), 1))
    wall = np.stack([np.cos(math.pi * u), np.sin(math.pi * u), half * v], axis=-1)
    outwards = wall * (1, 1, 0)
    sheets = [_sheet(wall * (radius, radius, 1), outwards)]
    u, v = _grid(_AROUND, 3)
    for side in (-1, 1):
        share = radius * (1 - side * v) / 2
        cap = (share * np.cos(math.pi * u), share * np.sin(math.pi * u), side * half + 0 * u)
        sheets.append(_sheet(np.stack(cap, axis=-1), np.array([0.0, 0.0, side])))
    return _joined(sheets)


def _grid(columns: int, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return u, v (columns + 1, rows + 1), both from -1 to 1."""
    u, v = np.meshgrid(
        np.linspace(-1, 1, columns + 1), np.linspace(-1, 1, rows + 1), indexing='ij'
    )
    return u, v


def _sheet(points: NDArray[np.float64], normals: NDArray[np.float64]) -> Mesh:
    """Return a surface over a grid (U, V, 3), counterclockwise seen from where u x v points."""
    columns, rows = points.shape[0] - 1, points.shape[1] - 1
    number = np.arange((columns + 1) * (rows + 1)).reshape(columns + 1, rows + 1)
    a, b, c, d = (
        number[i : i + columns, j : j + rows].ravel() for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))
    )
    triangles = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    directions = np.broadcast_to(normals, points.shape).reshape(-1, 3)
    return points.reshape(-1, 3), directions, triangles


def _joined(meshes: list[Mesh]) -> Mesh:
    starts = np.cumsum([0, *(len(mesh[0]) for mesh in meshes)])
    return (
        np.concatenate([mesh[0] for mesh in meshes]),
        np.concatenate([mesh[1] for mesh in meshes]),
        np.concatenate([mesh[2] + start for mesh, start in zip(meshes, starts, strict=False)]),
    )


def _moved(mesh: Mesh, place: Any, turn: NDArray[np.float64] | None = None) -> Mesh:
    turn = np.eye(3) if turn is None else turn
    return mesh[0] @ turn.T + np.asarray(place, float), mesh[1] @ turn.T, mesh[2]


def _turned(direction: float, tilt: float) -> NDArray[np.float64]:
    """Return the rotation that tilts the z axis; `direction` is that of the axis of the tilt."""
    c, s = math.cos(direction), math.sin(direction)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    c, s = math.cos(tilt), math.sin(tilt)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return about_z @ about_x @ about_z.T
