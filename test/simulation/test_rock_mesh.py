"""Rocks as meshes: closed shapes, exact rays, shadows, and one truth for all who ask."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import rock_mesh  # noqa: E402
from lunar_stereo_recon.simulation.renderer import hidden_from, render, trace  # noqa: E402
from lunar_stereo_recon.simulation.scene import DARK, Lighting  # noqa: E402
from lunar_stereo_recon.simulation.secondary_light import (  # noqa: E402
    Lamp,
    with_ground_light,
    with_lamps,
)
from lunar_stereo_recon.simulation.sunlit import sunlit_ground  # noqa: E402
from lunar_stereo_recon.simulation.terrain import make_terrain, Terrain, terrain_from_heights  # noqa: E402
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig  # noqa: E402

if rock_mesh.rtcore_scene is None:
    pytest.skip('embreex is not installed', allow_module_level=True)

RADIUS, HEIGHT = 0.5, 0.6


def ball(level: int = 5) -> rock_mesh.RockMeshes:
    """Return a ball that hangs over the ground: all of its lower half is an overhang."""
    sphere, faces, _ = rock_mesh._icosphere(level)
    vertices = (RADIUS * sphere + np.array([0, 0, HEIGHT])).astype(np.float32)
    return rock_mesh.RockMeshes(vertices, sphere, np.full(len(sphere), 1.2, np.float32), faces)


@pytest.fixture(scope='module')
def ground_with_ball() -> Terrain:
    flat = terrain_from_heights([np.zeros((65, 65), np.float32)], [0.125])
    return dataclasses.replace(flat, rocks=ball())


@pytest.fixture(scope='module')
def rocky() -> Terrain:
    return make_terrain(rocky_config())


def rocky_config(**changes) -> TerrainConfig:
    grids = {'cells': (256, 128), 'cell_sizes_m': (0.02, 0.08)}
    return TerrainConfig(
        7, **{'rock_density': 3.0, 'rock_wear': 0.3, 'rock_form': 'mesh', **grids, **changes}
    )


def ball_depth(view) -> np.ndarray:
    """Return the depth (H, W) of the exact ball, inf beside it."""
    ray = view.rays().double().numpy()
    offset = view.position_m.double().numpy() - [0, 0, HEIGHT]
    a, b, c = (ray * ray).sum(1), 2 * ray @ offset, offset @ offset - RADIUS**2
    root = b * b - 4 * a * c
    depth = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / (2 * a), np.inf)
    return depth.reshape(view.height, view.width)


def test_rays_meet_ball_and_ground(ground_with_ball, view_from):
    view = view_from((-3.0, 0.0, 1.2), pitch_deg=-15.0, size=(160, 120))
    seen = render(ground_with_ball, view, Lighting(60.0, 90.0), samples=1)
    exact = ball_depth(view)
    rays = view.rays().double()
    plane = (-view.position_m[2] / rays[:, 2]).reshape(120, 160).numpy()
    struck = seen.triangle.numpy() >= 0
    assert struck.sum() > 800
    # The mesh is a polyhedron inside the ball; only its outline may differ from the ball's.
    assert (struck != np.isfinite(exact)).mean() < 0.004
    inside = struck & np.isfinite(exact)
    assert np.quantile(np.abs(seen.depth.numpy() - exact)[inside], 0.95) < 2e-3
    on_ground = ~struck & np.isfinite(seen.depth.numpy())
    np.testing.assert_allclose(seen.depth.numpy()[on_ground], plane[on_ground], rtol=2e-5)
    # `trace` says the same as `render`, and depth is on the triangle's plane.
    hits = trace(ground_with_ball, view.position_m, view.rays())
    np.testing.assert_array_equal(hits.triangle.reshape(120, 160), seen.triangle)
    known = torch.isfinite(seen.depth)
    np.testing.assert_allclose(hits.depth.reshape(120, 160)[known], seen.depth[known], rtol=1e-6)
    rocks, triangle = ground_with_ball.rocks, hits.triangle[hits.triangle >= 0].numpy()
    points = view.position_m + rays * hits.depth[:, None]
    corners = rocks.vertices[rocks.triangles[triangle]].astype(float)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    away = ((points.numpy()[hits.triangle.numpy() >= 0] - corners[:, 0]) * normals).sum(1)
    assert np.abs(away).max() < 5e-6


def test_ground_is_seen_and_shaded_below_an_overhang(ground_with_ball, view_from):
    """A low camera sees the ground below the ball; the ball's shadow lies there."""
    view = view_from((-2.0, 0.0, 0.3), pitch_deg=-4.0, size=(160, 120))
    sun = Lighting(70.0, 0.0)
    seen = render(ground_with_ball, view, sun, samples=1)
    depth = seen.depth.reshape(-1, 1)
    points = (view.position_m + view.rays() * depth).reshape(120, 160, 3).numpy()
    ground = (seen.triangle.numpy() < 0) & np.isfinite(seen.depth.numpy())
    below = ground & (np.hypot(points[..., 0], points[..., 1]) < 0.4 * RADIUS)
    assert below.sum() > 20
    # The shadow of a ball on level ground is an ellipse, shifted away from the sun.
    to_sun = np.array(sun.direction())
    offset = points - [0, 0, HEIGHT]
    gap = np.linalg.norm(np.cross(offset, to_sun), axis=-1)
    clear = ground & (np.abs(gap - RADIUS) > 0.02)
    np.testing.assert_array_equal(seen.shadow.numpy()[clear], (gap < RADIUS)[clear])
    assert seen.shadow.numpy()[below].mean() > 0.5
    # The ball: dark where it faces away from the sun, lit elsewhere, brighter than the ground.
    on_ball = seen.triangle.numpy() >= 0
    facing = (points - [0, 0, HEIGHT]) @ to_sun / RADIUS
    assert seen.shadow.numpy()[on_ball & (facing < -0.05)].all()
    assert not seen.shadow.numpy()[on_ball & (facing > 0.05)].any()


def test_ground_shades_rocks(view_from):
    """A wall of 1.5 m between a low sun and the ball."""
    along = (np.arange(65) - 32) * 0.125
    wall = np.where(np.abs(along - 2.0) < 0.1, 1.5, 0.0).astype(np.float32)
    flat = terrain_from_heights([np.repeat(wall[None, :], 65, axis=0)], [0.125])
    ground = dataclasses.replace(flat, rocks=ball(4))
    view = view_from((-2.5, 0.0, 0.8), pitch_deg=-5.0)
    lit, dark = (
        render(ground, view, Lighting(10.0, azimuth), samples=1) for azimuth in (180.0, 0.0)
    )
    on_ball = (lit.triangle >= 0).numpy()
    assert lit.shadow.numpy()[on_ball].mean() < 0.1
    assert dark.shadow.numpy()[on_ball].all()
    assert float(lit.radiance[lit.triangle >= 0].mean()) > 5 * float(
        dark.radiance[dark.triangle >= 0].mean()
    )


def test_rocks_hide_points_from_the_other_camera(ground_with_ball, view_from):
    view = view_from((-3.0, 0.0, 1.2), pitch_deg=-15.0, size=(160, 120))
    seen = render(ground_with_ball, view, Lighting(60.0, 90.0), samples=1)
    other = view.position_m + 0.8 * view.rotation[:, 0]
    hidden = hidden_from(ground_with_ball, view, seen.depth, other).numpy()
    points = (view.position_m + view.rays() * seen.depth.reshape(-1, 1)).double().numpy()
    # A point is hidden where the line to the other camera passes the ball closer than its radius.
    way = other.double().numpy() - points
    offset = points - [0, 0, HEIGHT]
    nearest = np.clip(-(offset * way).sum(1) / (way * way).sum(1), 0, 1)
    gap = np.linalg.norm(offset + nearest[:, None] * way, axis=1).reshape(120, 160)
    ground = (seen.triangle.numpy() < 0) & np.isfinite(seen.depth.numpy())
    clear = ground & (np.abs(gap - RADIUS) > 0.02)
    np.testing.assert_array_equal(hidden[clear], (gap < RADIUS)[clear])
    assert hidden[ground].sum() > 100
    # On the ball itself: what faces away from the other camera, and nothing that faces it.
    on_ball = seen.triangle.numpy() >= 0
    turned = ((offset * way).sum(1) / np.linalg.norm(way, axis=1) / RADIUS).reshape(120, 160)
    assert hidden[on_ball & (turned < -0.1)].all()
    assert not hidden[on_ball & (turned > 0.1)].any()


def test_sunlit_ground_knows_rocks(ground_with_ball, view_from):
    view = view_from((-2.0, 0.0, 0.3), pitch_deg=-4.0, size=(160, 120))
    sun = Lighting(70.0, 0.0)
    sunlit = sunlit_ground(ground_with_ball, sun)
    assert (sunlit.cells[0] == DARK).sum() > 10
    traced = render(ground_with_ball, view, sun, samples=1)
    looked_up = render(ground_with_ball, view, sun, samples=1, sunlit=sunlit)
    assert torch.equal(traced.shadow, looked_up.shadow)


def test_lamps_and_ground_light_reach_rocks(ground_with_ball, view_from):
    view = view_from((-2.0, 0.0, 0.3), pitch_deg=-2.0)
    night = Lighting(1.0, 0.0, ambient=0.0, bounce=0.0, night=True)
    dark = render(ground_with_ball, view, night, samples=1)
    lamp = Lamp((-2.0, 0.0, 0.3), (1.0, 0.0, 0.1), strength=0.05, beam_deg=40.0)
    lit = with_lamps(dark, ground_with_ball, view, [lamp], night.hapke)
    on_ball = dark.triangle >= 0
    assert float(dark.radiance.max()) == 0
    # The lamp is at the camera: all that is seen is lit.
    assert (lit.radiance[on_ball] > 0).float().mean() > 0.97
    noon = Lighting(80.0, 0.0, ambient=0.0, bounce=0.0)
    seen = render(ground_with_ball, view, noon, samples=1)
    lifted = with_ground_light(seen, ground_with_ball, view, noon)
    below = on_ball & seen.shadow
    assert below.sum() > 50
    assert float(lifted.radiance[below].min()) > 5e-4
    assert float(seen.radiance[below].max()) == 0


def test_rocks_are_closed_angular_and_partly_buried(rocky):
    rocks = rocky.rocks
    # Closed: every edge belongs to two triangles, in opposite directions.
    edges = rocks.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2).astype(np.int64)
    forth = np.sort(edges[:, 0] << 32 | edges[:, 1])
    back = np.sort(edges[:, 1] << 32 | edges[:, 0])
    assert len(np.unique(forth)) == len(forth)
    np.testing.assert_array_equal(forth, back)
    corners = rocks.vertices[rocks.triangles].astype(float)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals * (corners[:, 0] - corners.mean((0, 1)))).sum() > 0
    x, y = (torch.from_numpy(rocks.vertices[:, k]) for k in (0, 1))
    above = rocks.vertices[:, 2] - rocky.ground_at(x, y).numpy()
    assert 0.25 < (above < 0).mean() < 0.85
    # Overhangs: faces above the ground that look down.
    middle = corners.mean(1)
    height = (
        middle[:, 2]
        - rocky.ground_at(*(torch.from_numpy(middle[:, k]).float() for k in (0, 1)))
        .double()
        .numpy()
    )
    area = 0.5 * np.linalg.norm(normals, axis=1)
    facing_down = normals[:, 2] < -0.2 * np.linalg.norm(normals, axis=1)
    share = area[(height > 0.01) & facing_down].sum() / area[height > 0.01].sum()
    assert 0.05 < share < 0.4


def test_each_rock_lies_in_the_ground():
    count = 40
    place = np.column_stack([np.zeros((count, 2)), np.full(count, 0.8), np.full(count, 1.3)])
    shapes = rock_mesh.sample_shapes(place, np.random.default_rng(3))
    edges = []
    for wear in (0.0, 1.0):
        bends = []
        for number in range(count):
            one = shapes[number : number + 1]
            rock = rock_mesh.make_rock_meshes(one, np.zeros(1), wear, 10.0)
            low, high = rock.vertices.min(0), rock.vertices.max(0)
            assert low[2] < -0.02 < 0.02 < high[2]
            assert 0.3 < (high - low)[:2].max() < 0.9
            corners = rock.vertices[rock.triangles].astype(float)
            flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            flat /= np.linalg.norm(flat, axis=1, keepdims=True)
            # How far the shading normals of a triangle are apart: large at sharp edges only.
            apart = (rock.normals[rock.triangles] * flat[:, None]).sum(-1).min(1)
            bends.append(np.degrees(np.arccos(apart.clip(-1, 1))))
            assert rock.albedo.mean() == pytest.approx(1.3 if wear == 0 else 1.15, abs=0.07)
        edges.append(np.mean([np.quantile(v, 0.97) / np.median(v) for v in bends]))
    assert edges[0] > 3 and edges[0] > 1.3 * edges[1]


def test_both_forms_share_places_sizes_and_seed(rocky):
    again = make_terrain(rocky_config())
    np.testing.assert_array_equal(rocky.rocks.vertices, again.rocks.vertices)
    assert torch.equal(rocky.levels[0].surface, again.levels[0].surface)
    other = make_terrain(rocky_config(rock_form='heightfield'))
    assert other.rocks is None
    assert torch.equal(rocky.micro, other.micro)
    # The same rocks stand at the same places, so that both surfaces are high there.
    axis = torch.linspace(-2.4, 2.4, 200)
    y, x = (v.reshape(-1) for v in torch.meshgrid(axis, axis, indexing='ij'))
    mesh = rocky.height_at(x, y) - rocky.ground_at(x, y)
    field = other.height_at(x, y) - rocky.ground_at(x, y)
    tall = mesh > 0.08
    assert tall.sum() > 100
    assert float(field[tall].mean()) > 5 * float(field.abs().median())


def test_heights_are_those_that_rays_see(rocky, view_from):
    """The way down from above ends where `height_at` says."""
    view = view_from((0.1, 0.2, 6.0), pitch_deg=-89.0, size=(96, 72))
    seen = render(rocky, view, Lighting(45.0, 0.0), samples=1)
    points = view.position_m + view.rays() * seen.depth.reshape(-1, 1)
    heights = rocky.height_at(points[:, 0].contiguous(), points[:, 1].contiguous())
    below = heights - points[:, 2]
    assert float(below.min()) > -1e-5
    # Rays are not quite straight down: only some of them end below an overhang.
    assert (below < 1e-5).float().mean() > 0.95
    assert (seen.triangle >= 0).sum() > 200
    row, column = divmod(int(seen.triangle.reshape(-1).argmax()), 96)
    x, y, z = points.reshape(72, 96, 3)[row, column].tolist()
    with pytest.raises(InputError, match='below the ground'):
        render(rocky, view_from((x, y, z - 0.005)), Lighting(45.0, 0.0))


def test_depth_of_both_views_agrees(rocky, view_from):
    """A point that both cameras see has the depth in the right one that the left one says."""
    start = float(rocky.height_at(torch.tensor([-2.0]), torch.tensor([0.0]))[0])
    view = view_from((-2.0, 0.0, start + 0.8), pitch_deg=-25.0, size=(160, 120))
    left = render(rocky, view, Lighting(40.0, 100.0), samples=1)
    right = dataclasses.replace(view, position_m=view.position_m + 0.1 * view.rotation[:, 0])
    hidden = hidden_from(rocky, view, left.depth, right.position_m)
    asked = (left.triangle >= 0) & ~hidden
    points = (view.position_m + view.rays() * left.depth.reshape(-1, 1))[asked.reshape(-1)]
    way = points - right.position_m
    hits = trace(rocky, right.position_m, way)
    assert len(way) > 300
    assert ((hits.depth - 1).abs() < 1e-3).float().mean() > 0.995
    same = hits.triangle == left.triangle.reshape(-1)[asked.reshape(-1)]
    assert same.float().mean() > 0.97


def test_what_cannot_be_traced_is_refused(rocky, monkeypatch):
    with pytest.raises(InputError, match=r"rock form is 'cubes'; one of heightfield, mesh"):
        TerrainConfig(0, rock_form='cubes')
    with pytest.raises(InputError, match='on CPUs only, not on cuda'):
        rocky.to('cuda')
    assert rocky.to('cpu').rocks is rocky.rocks
    monkeypatch.setattr(rock_mesh, 'rtcore_scene', None)
    with pytest.raises(InputError, match='embreex'):
        make_terrain(rocky_config())


def test_ground_without_a_rock_takes_the_option():
    bare = make_terrain(rocky_config(rock_density=0.0))
    assert len(bare.rocks.triangles) == 0
    x = torch.linspace(-2.0, 2.0, 50)
    assert torch.equal(bare.height_at(x, x), bare.ground_at(x, x))
    assert math.isfinite(float(bare.height_at(x, x).sum()))
