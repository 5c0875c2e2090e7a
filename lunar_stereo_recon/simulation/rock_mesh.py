"""Rocks as closed triangle meshes, with the overhangs that a heightfield cannot have.

A rock is an ellipsoid broken by random planes, with chipped corners and rough faces, turned and
sunk into the ground. All rocks of a terrain are one mesh, which Intel's Embree traces (through
the wheels of `embreex`): exact intersections, on CPUs only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError

try:
    from embreex import mesh_construction, rtcore_scene
except ImportError:  # it has no wheels but for x86-64
    mesh_construction = rtcore_scene = None

FloatArray = NDArray[np.float32]

# Large faces of a rock, and planes that chip its corners.
_FACES, _CHIPS = 10, 16
# Edges of triangles: their length near the rover, and as a part of the distance farther away,
# metres: two pixels of a camera with a focal length of 500 pixels.
EDGE_M, _EDGE_PER_M = 0.014, 1 / 250
# An icosahedron's edge, of a diameter; each subdivision halves it.
_ICOSAHEDRON_EDGE = 0.526
_SUBDIVISIONS = 1, 6
# Waves of the roughness per octave and the Hurst exponent of their heights.
_WAVES, _ROUGHNESS_HURST = 8, 0.75
# Numbers that are worked on at a time: vertices of all rocks of a block. It bounds the memory.
_BLOCK_VERTICES = 60_000


@dataclass(frozen=True)
class RockShapes:
    """The random part of R rocks; unit length is the diameter.

    Attributes:
        place: (R, 4) x, y, diameter, reflectance relative to the soil.
        half_axes: (R, 3) of the ellipsoid before it is broken.
        rise: (R,) height of the middle over the ground.
        turn: (R, 3, 3) world from rock axes.
        normals: (R, P, 3) of the breaking planes, rock axes.
        reach: (R, P) of the planes from the middle.
        waves: (R, O * W, 4) wave vectors (radians a diameter) and phases, octave by octave.
    """

    place: NDArray[np.float64]
    half_axes: NDArray[np.float64]
    rise: NDArray[np.float64]
    turn: NDArray[np.float64]
    normals: FloatArray
    reach: FloatArray
    waves: FloatArray

    def __getitem__(self, chosen: NDArray[Any] | slice) -> RockShapes:
        return RockShapes(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def bank(self, number: int, dx: FloatArray, dy: FloatArray, wear: float) -> FloatArray:
        """Return the height of the soil that has gathered at a rock, metres.

        Args:
            number: Number of the rock.
            dx, dy: (1, W), (H, 1) places relative to its middle, metres.
            wear: See `TerrainConfig`.
        """
        diameter = self.place[number, 2]
        # Outline on the ground: the ellipsoid as it is turned, cut at the ground's height.
        a, b, _ = self.half_axes[number]
        cut = 1 - min((self.rise[number] / self.half_axes[number, 2]) ** 2, 0.9)
        east, north = self.turn[number, :2, 0], self.turn[number, :2, 1]
        along = (dx * east[0] + dy * east[1]) / (a * diameter * math.sqrt(cut))
        across = (dx * north[0] + dy * north[1]) / (b * diameter * math.sqrt(cut))
        beyond = np.clip(np.sqrt(along**2 + across**2) - 0.9, 0, None)
        return (bank_height(diameter, wear) * np.exp(-((beyond / 0.35) ** 2))).astype(np.float32)


def bank_height(diameter: Any, wear: float) -> Any:
    """Return the largest height of the soil that has gathered at a rock, metres."""
    return (0.01 + 0.04 * wear) * diameter


@dataclass(frozen=True)
class RockMeshes:
    """All rocks of a terrain as triangles; world frame, metres.

    Attributes:
        vertices: (V, 3) float32.
        normals: (V, 3) float32 unit normals that shade; those of depth are the triangles'.
        albedo: (V,) float32 reflectance relative to the soil.
        triangles: (T, 3) int32, counterclockwise seen from outside.
    """

    vertices: FloatArray
    normals: FloatArray
    albedo: FloatArray
    triangles: NDArray[np.int32]

    def moved(self, pose: NDArray[np.floating]) -> RockMeshes:
        """Return the mesh at a pose (4, 4), new frame from old."""
        turn, place = (np.asarray(part, np.float32) for part in (pose[:3, :3], pose[:3, 3]))
        vertices, normals = self.vertices @ turn.T + place, self.normals @ turn.T
        return RockMeshes(vertices, normals, self.albedo, self.triangles)

    @cached_property
    def _scene(self) -> Any:
        scene = rtcore_scene.EmbreeScene()
        if len(self.triangles):
            mesh_construction.TriangleMesh(scene, self.vertices, self.triangles)
        # The first query builds the tree, which must not happen in two threads at once.
        scene.run(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
        return scene

    def intersect(
        self, origin: FloatArray, direction: FloatArray, limit: FloatArray
    ) -> tuple[FloatArray, NDArray[np.int32]]:
        """Return where rays first meet a rock, and which triangle; (limit, -1) for none.

        Args:
            origin, direction: (N, 3) float32, world, metres; a direction's length is the unit.
            limit: (N,) float32 largest ray parameter.
        """
        # Embree writes over the limits.
        found = self._scene.run(origin, direction, dists=limit.copy(), output=1)
        return found['tfar'], found['primID']

    def blocks(
        self, origin: FloatArray, direction: FloatArray, limit: FloatArray
    ) -> NDArray[np.bool_]:
        """Return whether rocks are in the way of rays up to a limit; see `intersect`."""
        return self._scene.run(origin, direction, dists=limit.copy(), query='OCCLUDED') == 0

    def tops(self, x_m: FloatArray, y_m: FloatArray) -> FloatArray:
        """Return the height of the highest rock above points (N,), -inf where there is none."""
        if not len(self.vertices):
            return np.full(len(x_m), -np.inf, np.float32)
        sky = float(self.vertices[:, 2].max()) + 1.0
        origin = np.column_stack([x_m, y_m, np.full(len(x_m), sky)]).astype(np.float32)
        down = np.array([[0.0, 0.0, -1.0]], np.float32)
        far = np.full(len(x_m), np.float32(1e30))
        depth, triangle = self.intersect(origin, np.repeat(down, len(x_m), 0), far)
        return np.where(triangle >= 0, sky - depth, -np.inf).astype(np.float32)

    def surface(
        self, points: FloatArray, triangle: NDArray[np.integer]
    ) -> tuple[FloatArray, FloatArray]:
        """Return unit normals (N, 3) that shade and reflectance (N,) at points of triangles."""
        corners = self.triangles[triangle]
        one, two, three = (self.vertices[corners[:, k]] for k in range(3))
        u, v = two - one, three - one
        w = points - one
        uu, uv, vv = (u * u).sum(1), (u * v).sum(1), (v * v).sum(1)
        wu, wv = (w * u).sum(1), (w * v).sum(1)
        area = np.maximum(uu * vv - uv * uv, 1e-30)
        second, third = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
        shares = np.stack([1 - second - third, second, third], axis=1).astype(np.float32)
        normals = (self.normals[corners] * shares[..., None]).sum(1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        return normals, (self.albedo[corners] * shares).sum(1)


def joined(meshes: Sequence[RockMeshes | None]) -> RockMeshes:
    """Return one mesh of several, their triangles in turn; None is an empty one."""
    there = [mesh for mesh in meshes if mesh is not None]
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in there)])
    return RockMeshes(
        np.concatenate([mesh.vertices for mesh in there]),
        np.concatenate([mesh.normals for mesh in there]),
        np.concatenate([mesh.albedo for mesh in there]),
        np.concatenate(
            [mesh.triangles + start for mesh, start in zip(there, starts, strict=False)]
        ).astype(np.int32),
    )


def check_tracer() -> None:
    """Raise InputError where meshes cannot be traced."""
    if rtcore_scene is None:
        raise InputError(
            'rocks as meshes need embreex (extra [sim], x86-64 only), which is not installed; '
            "rock_form 'heightfield' does not"
        )


def sample_shapes(place: NDArray[np.float64], rng: np.random.Generator) -> RockShapes:
    """Return random shapes for rocks.

    Args:
        place: See `RockShapes`.
        rng: Source of the shapes.
    """
    count = len(place)
    half = 0.5 * np.column_stack(
        [np.ones(count), rng.uniform(0.55, 1.0, count), rng.uniform(0.4, 0.9, count)]
    )
    turn = _turns(rng, count)
    planes = _FACES + _CHIPS
    normals = rng.standard_normal((count, planes, 3))
    # Faces on all sides: directions far from each other, moved at random.
    normals[:, :_FACES] *= 0.22
    normals[:, :_FACES] += _spread(_FACES) @ _turns(rng, count, np.inf).transpose(0, 2, 1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    # Distance of a plane from the middle: where it would touch the ellipsoid, or deeper.
    reach = np.linalg.norm(normals * half[:, None], axis=-1)
    reach[:, :_FACES] *= rng.uniform(0.62, 0.98, (count, _FACES))
    reach[:, _FACES:] *= rng.uniform(0.84, 1.06, (count, _CHIPS))
    octaves = _SUBDIVISIONS[1]
    waves = rng.standard_normal((count, octaves, _WAVES, 4))
    length = np.linalg.norm(waves[..., :3], axis=-1, keepdims=True)
    period = 0.5 ** np.arange(1, octaves + 1)[:, None, None] * rng.uniform(
        0.75, 1.35, (count, octaves, _WAVES, 1)
    )
    waves[..., :3] *= 2 * math.pi / (length * period)
    waves[..., 3] = rng.uniform(0, 2 * math.pi, (count, octaves, _WAVES))
    return RockShapes(
        place=place,
        half_axes=half,
        rise=half[:, 2] * rng.uniform(-0.35, 0.55, count),
        turn=turn,
        normals=normals.astype(np.float32),
        reach=reach.astype(np.float32),
        waves=waves.reshape(count, octaves * _WAVES, 4).astype(np.float32),
    )


def make_rock_meshes(
    shapes: RockShapes,
    ground_m: NDArray[np.floating],
    wear: float,
    fine_reach_m: float,
    edge_m: float = EDGE_M,
) -> RockMeshes:
    """Return the triangles of all rocks.

    Args:
        shapes: The rocks.
        ground_m: (R,) height of the ground below their middles, metres.
        wear: See `TerrainConfig`.
        fine_reach_m: Half of the side of the square around the origin where the rover drives;
            rocks outside have coarser triangles.
        edge_m: Length of the triangles' edges inside it, metres.
    """
    x, y, diameter = shapes.place[:, 0], shapes.place[:, 1], shapes.place[:, 2]
    distance = np.clip(np.maximum(np.abs(x), np.abs(y)) - fine_reach_m, 0, None)
    edge = np.maximum(edge_m, _EDGE_PER_M * distance)
    fineness = np.rint(np.log2(_ICOSAHEDRON_EDGE * diameter / edge)).clip(*_SUBDIVISIONS)
    vertices: list[FloatArray] = []
    normals: list[FloatArray] = []
    albedo: list[FloatArray] = []
    triangles: list[NDArray[np.int64]] = []
    total = 0
    for level in range(_SUBDIVISIONS[0], _SUBDIVISIONS[1] + 1):
        chosen = np.flatnonzero(fineness == level)
        sphere, faces, _ = _icosphere(level)
        step = max(_BLOCK_VERTICES // len(sphere), 1)
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            block = _rock_block(shapes[part], ground_m[part], wear, level)
            for store, values in zip((vertices, normals, albedo), block, strict=True):
                store.append(values.reshape(-1, *values.shape[2:]))
            first = total + len(sphere) * np.arange(len(part))
            triangles.append((first[:, None, None] + faces).reshape(-1, 3))
            total += len(part) * len(sphere)
    empty = np.zeros((0, 3), np.float32)
    return RockMeshes(
        np.concatenate([empty, *vertices]),
        np.concatenate([empty, *normals]),
        np.concatenate([empty[:, 0], *albedo]),
        np.concatenate([np.zeros((0, 3), np.int32), *triangles]).astype(np.int32),
    )


def _rock_block(
    shapes: RockShapes, ground_m: NDArray[Any], wear: float, level: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return vertices, normals (R, V, 3) and albedo (R, V) of rocks of one fineness."""
    sphere, faces, around = _icosphere(level)
    # A smooth maximum over the planes that are in the way rounds the edges, worn ones more.
    sharpness = 80.0 * 0.15**wear
    facing = np.clip(sphere @ (shapes.normals / shapes.reach[..., None]).transpose(0, 2, 1), 0, 9)
    nearest = facing.max(axis=-1)
    softened = ((facing / nearest[..., None]) ** sharpness).sum(-1) ** (1 / sharpness)
    radius = 1 / (nearest * softened)
    body = sphere * radius[..., None]
    rough, mottle = _roughness(shapes, body, wear, level)
    body *= (1 + rough / radius)[..., None]
    world = body @ shapes.turn.transpose(0, 2, 1).astype(np.float32)
    normals = _vertex_normals(world, faces, around)
    diameter, bright = shapes.place[:, 2, None], shapes.place[:, 3, None]
    # Dust lies on what faces up, and on old rocks: there they differ less from the soil.
    dust = wear * (0.35 + 0.5 * np.clip(normals[..., 2], 0, 1))
    albedo = (1 + (1 - dust) * (bright - 1)) * mottle
    world[..., 2] += shapes.rise[:, None]
    world *= diameter[..., None]
    world += np.stack([shapes.place[:, 0], shapes.place[:, 1], ground_m], axis=1)[:, None]
    return world.astype(np.float32), normals, albedo.astype(np.float32)


def _roughness(
    shapes: RockShapes, body: FloatArray, wear: float, level: int
) -> tuple[FloatArray, FloatArray]:
    """Return displacement (diameters) and reflectance factor (R, V) of rocks' faces."""
    rough = np.zeros(body.shape[:2], np.float32)
    mottle = np.ones_like(rough)
    edge = _ICOSAHEDRON_EDGE / 2**level
    for octave in range(_SUBDIVISIONS[1]):
        period = 0.5 ** (octave + 1)
        if period < 2.5 * edge:
            break
        waves = shapes.waves[:, octave * _WAVES : (octave + 1) * _WAVES]
        phase = body @ waves[..., :3].transpose(0, 2, 1) + waves[:, None, :, 3]
        height = np.sin(phase).sum(-1) / math.sqrt(_WAVES / 2)
        rough += (0.008 + 0.010 * wear) * (2 * period) ** _ROUGHNESS_HURST * height
        mottle += 0.035 * np.sin(1.3 * phase[..., ::2]).sum(-1)
    return rough, mottle


def _vertex_normals(
    vertices: FloatArray, faces: NDArray[np.int32], around: NDArray[np.int64]
) -> FloatArray:
    """Return unit normals (R, V, 3): means of the faces around a vertex by their area."""
    one, two, three = (vertices[:, faces[:, k]] for k in range(3))
    flat = np.cross(two - one, three - one)
    flat = np.concatenate([flat, np.zeros_like(flat[:, :1])], axis=1)
    normals = flat[:, around].sum(axis=2)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-30)
    return normals.astype(np.float32)


def _turns(rng: np.random.Generator, count: int, tilt: float = 0.3) -> NDArray[np.float64]:
    """Return (count, 3, 3) rotations about the vertical, tilted by some random radians."""
    turn = rng.uniform(0, 2 * math.pi, count)
    toward = rng.uniform(0, 2 * math.pi, count)
    lean = (
        np.abs(rng.normal(0, tilt, count))
        if math.isfinite(tilt)
        else np.arccos(rng.uniform(-1, 1, count))
    )
    zero, one = np.zeros(count), np.ones(count)

    def matrix(*rows: tuple[Any, ...]) -> NDArray[np.float64]:
        return np.array(rows).transpose(2, 0, 1)

    def about_z(angle: NDArray[np.float64]) -> NDArray[np.float64]:
        c, s = np.cos(angle), np.sin(angle)
        return matrix((c, -s, zero), (s, c, zero), (zero, zero, one))

    c, s = np.cos(lean), np.sin(lean)
    about_x = matrix((one, zero, zero), (zero, c, -s), (zero, s, c))
    return about_z(toward) @ about_x @ about_z(turn)


def _spread(count: int) -> NDArray[np.float64]:
    """Return (count, 3) directions on a spiral, about as far from each other as they can be."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = math.pi * (3 - math.sqrt(5)) * np.arange(count)
    flat = np.sqrt(1 - z * z)
    return np.column_stack([flat * np.cos(turn), flat * np.sin(turn), z])


@lru_cache(maxsize=_SUBDIVISIONS[1] + 1)
def _icosphere(level: int) -> tuple[FloatArray, NDArray[np.int32], NDArray[np.int64]]:
    """Return unit vertices (V, 3), triangles (T, 3) and the triangles around a vertex (V, 6).

    Twelve vertices have only five; their sixth is T.
    """
    golden = (1 + math.sqrt(5)) / 2
    corners = [(s, t * golden, 0.0) for s in (-1, 1) for t in (-1, 1)]
    vertices = np.array([np.roll(corner, k) for k in range(3) for corner in corners])
    vertices /= np.linalg.norm(vertices[0])
    # The icosahedron's faces are the triples of corners that are all one edge apart.
    near = np.abs(vertices @ vertices.T - 1 / math.sqrt(5)) < 1e-6
    triples = [
        (i, j, k)
        for i in range(12)
        for j in range(i + 1, 12)
        for k in range(j + 1, 12)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    faces = np.array(triples)
    a, b, c = (vertices[faces[:, n]] for n in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    faces[inward] = faces[inward][:, ::-1]
    for _ in range(level):
        edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        unique, inverse = np.unique(edges, axis=0, return_inverse=True)
        middle = vertices[unique].sum(axis=1)
        middle /= np.linalg.norm(middle, axis=1, keepdims=True)
        ab, bc, ca = (len(vertices) + inverse.reshape(-1, 3)).T
        a, b, c = faces.T
        quarters = ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))
        faces = np.concatenate([np.column_stack(quarter) for quarter in quarters])
        vertices = np.concatenate([vertices, middle])
    around = np.full((len(vertices), 6), len(faces), np.int64)
    order = np.argsort(faces.reshape(-1), kind='stable')
    owner = faces.reshape(-1)[order]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    around[owner, rank] = order // 3
    return vertices.astype(np.float32), faces.astype(np.int32), around
