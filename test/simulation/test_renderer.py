"""Exact depth, shadows and reflectance of the renderer."""

from __future__ import annotations

import dataclasses
import math
import sys

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('numba')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import compiled  # noqa: E402
from lunar_stereo_recon.simulation.camera import right_view  # noqa: E402
from lunar_stereo_recon.simulation.renderer import (  # noqa: E402
    hapke_reflectance,
    hidden_from,
    render,
    rendering_device,
    trace,
)
from lunar_stereo_recon.simulation.scene import (  # noqa: E402
    Box,
    Hapke,
    Lighting,
    UNDISTORT_STEPS,
    undistorted,
)

NOON = Lighting(80.0, 40.0)


def plane_depth(view, slope_x: float, slope_y: float) -> np.ndarray:
    """Return the depth of the plane z = slope_x * x + slope_y * y, inf above it."""
    ray = view.rays().double()
    normal = torch.tensor([-slope_x, -slope_y, 1.0], dtype=torch.float64)
    depth = -(view.position_m.double() @ normal) / (ray @ normal)
    depth[depth <= 0] = math.inf
    return depth.reshape(view.height, view.width).numpy()


@pytest.mark.parametrize('slopes', [(0.0, 0.0), (0.2, 0.0), (-0.15, 0.25)])
def test_plane_depth_is_exact(shaped_terrain, view_from, slopes):
    ground = shaped_terrain(lambda x, y: slopes[0] * x + slopes[1] * y)
    view = view_from()
    depth = render(ground, view, NOON, samples=1).depth.numpy()
    expected = plane_depth(view, *slopes)
    points = view.position_m.numpy() + view.rays().numpy() * expected.reshape(-1, 1)
    inside = (np.abs(points[:, :2]) < 3.99).all(axis=1).reshape(expected.shape)
    outside = (np.abs(points[:, :2]) > 4.01).any(axis=1).reshape(expected.shape)
    assert inside.sum() > 1000
    np.testing.assert_allclose(depth[inside], expected[inside], rtol=2e-5)
    assert np.isnan(depth[outside]).all()


def test_rays_end_on_the_first_point_of_the_surface(shaped_terrain, view_from):
    """A bowl with waves: the end lies on the surface, and nothing before it does."""
    ground = shaped_terrain(
        lambda x, y: 0.1 * (x * x + y * y) + 0.2 * np.sin(3 * x) * np.cos(4 * y)
    )
    view = view_from((-3.0, 0.3, 2.2), pitch_deg=-15.0)
    rays = view.rays()
    hits = trace(ground, view.position_m, rays)
    seen = hits.level >= 0
    rays, depth = rays[seen], hits.depth[seen]
    assert len(depth) > 1500
    ends = view.position_m + rays * depth[:, None]
    height = ground.height_at(ends[:, 0], ends[:, 1])
    np.testing.assert_allclose(ends[:, 2], height, atol=2e-5)
    for part in torch.linspace(0.02, 0.995, 300):
        before = view.position_m + rays * (part * depth)[:, None]
        clearance = before[:, 2] - ground.height_at(before[:, 0], before[:, 1])
        assert float(clearance.min()) > -2e-5


def test_sky_is_a_mask(shaped_terrain, view_from):
    seen = render(shaped_terrain(lambda x, y: 0.0), view_from(pitch_deg=0.0), NOON, samples=4)
    sky = torch.isnan(seen.depth)
    assert sky[:23].all() and not sky[-1].any()
    assert (seen.radiance[:22] == 0).all()
    assert not seen.shadow[sky].any()
    assert (seen.radiance[~sky][64:] > 0).all()


def test_shadow_length(shaped_terrain, view_from):
    """A wall of 0.5 m across x = 0 with the sun at 30 degrees behind it."""
    ground = shaped_terrain(lambda x, y: np.where(np.abs(x) < 0.07, 0.5, 0.0))
    lighting = Lighting(30.0, 180.0)
    view = view_from((2.0, 0.0, 3.0), pitch_deg=-80.0, heading_deg=180.0)
    seen = render(ground, view, lighting, samples=1)
    points = view.position_m + view.rays() * seen.depth.reshape(-1, 1)
    x, dark = points[:, 0].numpy(), seen.shadow.reshape(-1).numpy()
    end = 0.5 / math.tan(math.radians(30.0))
    behind = points[:, 2].numpy() < 1e-3
    assert behind.sum() > 1000
    assert dark[behind & (x > 0.2) & (x < end - 0.15)].all()
    assert not dark[behind & (x > end + 0.15)].any()


def test_rover_casts_its_shadow(shaped_terrain, view_from):
    ground = shaped_terrain(lambda x, y: 0.0)
    box = (Box((-0.5, 0.0, 0.5), (0.2, 0.3, 0.1)),)
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([-1.0, 0.5, 0.0])
    view = view_from((-1.0, 0.5, 1.5), pitch_deg=-60.0)
    seen = render(ground, view, Lighting(45.0, 180.0), 1, box, pose)
    points = view.position_m + view.rays() * seen.depth.reshape(-1, 1)
    # The box spans x -1.7..-1.3 and z 0.4..0.6: at 45 degrees its shadow spans x -1.3..-0.7.
    expected = (points[:, 0] < -0.7) & (points[:, 0] > -1.3) & ((points[:, 1] - 0.5).abs() < 0.3)
    assert expected.sum() > 20
    assert (seen.shadow.reshape(-1) == expected).float().mean() > 0.995


def test_hidden_points(shaped_terrain, view_from):
    """Behind a wall along y the other camera, far to the right, sees less or more."""
    ground = shaped_terrain(lambda x, y: np.where(np.abs(y + 0.5) < 0.07, 0.4, 0.0))
    view = view_from((-2.0, 0.4, 1.0))
    seen = render(ground, view, NOON, samples=1)
    other = view.position_m + 1.5 * view.rotation[:, 0]
    hidden = hidden_from(ground, view, seen.depth, other)
    points = (view.position_m + view.rays() * seen.depth.reshape(-1, 1)).reshape(48, 64, 3)
    # The line from the other camera (y = -1.1, z = 1) over the wall's top edge at y = -0.43.
    reach = -0.4375 + 0.4 * (1.5 - 0.4 - 0.4375) / 0.6
    flat = torch.isfinite(seen.depth) & (points[..., 2] < 1e-3)
    y = points[..., 1]
    assert hidden[flat & (y > -0.3) & (y < reach - 0.15)].all()
    assert not hidden[flat & (y > reach + 0.15)].any()
    assert not hidden[torch.isnan(seen.depth)].any()


def test_right_image_agrees_with_disparity(small_terrain, view_from):
    """The left radiance is found in the right image where the disparity says."""
    ground = float(small_terrain.height_at(torch.tensor([-1.5]), torch.tensor([0.0]))[0])
    view = view_from((-1.5, 0.0, ground + 1.2), pitch_deg=-25.0, size=(160, 120))
    lighting = Lighting(40.0, 110.0)
    left = render(small_terrain, view, lighting, samples=1)
    right_camera = right_view(view, 0.1)
    right = render(small_terrain, right_camera, lighting, samples=1)
    disparity = view.fx * 0.1 / left.depth.numpy()
    column = np.arange(160)[None, :] - disparity
    first = np.floor(column)
    usable = np.isfinite(column) & (column >= 0) & ~left.shadow.numpy()
    usable &= ~hidden_from(small_terrain, view, left.depth, right_camera.position_m).numpy()
    index = np.clip(np.nan_to_num(first), 0, 158).astype(int)
    rows = np.arange(120)[:, None]
    part = column - first
    warped = right.radiance.numpy()[rows, index] * (1 - part)
    warped += right.radiance.numpy()[rows, index + 1] * part
    error = np.abs(warped - left.radiance.numpy())[usable]
    contrast = left.radiance.numpy()[usable].std()
    assert usable.sum() > 8000
    assert np.median(error) < 0.25 * contrast
    # The same comparison one pixel off must be clearly worse, or it would show nothing.
    shifted = right.radiance.numpy()[rows, np.clip(index + 2, 0, 159)]
    assert np.median(np.abs(shifted - left.radiance.numpy())[usable]) > 1.5 * np.median(error)


def test_device_that_cannot_render_is_refused(monkeypatch):
    assert rendering_device('cpu', 'mesh') == torch.device('cpu')
    with pytest.raises(InputError, match="device is 'tpu'; one of cpu, cuda"):
        rendering_device('tpu')
    with pytest.raises(InputError, match='rocks as meshes are rendered on CPUs only, not on cuda'):
        rendering_device('cuda', 'mesh')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(InputError, match=r"device is 'cuda', but PyTorch \d.* (without|finds)"):
        rendering_device('cuda')


def test_cuda_without_its_compiler_is_refused(monkeypatch):
    """PyTorch has its device, but numba finds neither driver nor compiler."""
    kernels = pytest.importorskip('lunar_stereo_recon.simulation.kernels')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(kernels.cuda, 'is_available', lambda: False)
    with pytest.raises(InputError, match=r'compiler of CUDA; the extra \[cuda12\] or \[cuda13\]'):
        rendering_device('cuda')


def test_rendering_without_numba_is_refused(shaped_terrain, view_from, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lunar_stereo_recon.simulation.compiled', None)
    monkeypatch.delattr('lunar_stereo_recon.simulation.compiled')
    ground, view = shaped_terrain(lambda x, y: 0.0), view_from()
    for ask in (
        lambda: rendering_device('cpu'),
        lambda: render(ground, view, NOON),
        lambda: trace(ground, view.position_m, view.rays()),
    ):
        with pytest.raises(InputError, match=r'rendering needs numba \(extra \[sim\]\)'):
            ask()


def test_raw_image_is_the_rectified_one_bent(shaped_terrain, view_from):
    ground = shaped_terrain(lambda x, y: 0.1 * np.sin(3 * x) + 0.1 * np.cos(2 * y))
    distortion = (-0.2, 0.05, 0.002, -0.001, 0.0)
    view = view_from(pitch_deg=-40.0)
    raw = dataclasses.replace(view, distortion=distortion)
    depth = render(ground, raw, NOON, samples=1).depth.numpy()
    # OpenCV projects the points that the raw rays hit back to the raw pixels.
    known = np.isfinite(depth).reshape(-1)
    assert known.mean() > 0.8
    rays = raw.rays()[known] * torch.from_numpy(depth.reshape(-1, 1)[known])
    matrix = np.array([[view.fx, 0, view.cx], [0, view.fy, view.cy], [0, 0, 1.0]])
    points = (rays @ view.rotation).numpy()
    pixels, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, np.array(distortion))
    rows, columns = np.indices((48, 64))
    np.testing.assert_allclose(pixels[:, 0, 0], columns.reshape(-1)[known], atol=2e-3)
    np.testing.assert_allclose(pixels[:, 0, 1], rows.reshape(-1)[known], atol=2e-3)
    # The points lie on the ground, also where the compiled loops bend the rays themselves.
    world = raw.position_m + rays
    heights = ground.height_at(world[:, 0], world[:, 1])
    assert float((world[:, 2] - heights).abs().max()) < 2e-3
    straight = render(ground, view, NOON, samples=1).depth.numpy()
    assert np.nanmax(np.abs(depth - straight)) > 0.02
    assert depth[24, 32] == pytest.approx(straight[24, 32], rel=1e-3)
    with pytest.raises(InputError, match='4 numbers'):
        dataclasses.replace(view, distortion=(0.1,) * 4)


def test_night_and_sun_below_the_horizon(shaped_terrain, view_from):
    with pytest.raises(InputError, match='sun elevation is -3 degrees'):
        Lighting(-3.0, 0.0)
    ground = shaped_terrain(lambda x, y: 0.1 * np.sin(3 * x))
    seen = render(ground, view_from(), Lighting(-3.0, 0.0, ambient=0.01, bounce=0.0, night=True))
    assert seen.shadow[torch.isfinite(seen.depth)].all()
    assert 0 < float(seen.radiance.max()) <= 0.01


def test_reflectance():
    """Brightest at zero phase; symmetric smooth limit; reciprocity without roughness."""
    cos_i = torch.full((40,), math.cos(math.radians(50.0)))
    phases = torch.linspace(0.0, 1.2, 40)
    values = hapke_reflectance(cos_i, cos_i, torch.cos(phases), Hapke())
    assert (values[1:] < values[:-1]).all()
    assert float(values[0] / values[8]) > 1.3
    smooth = Hapke(theta_bar_deg=0.0)
    a, b, g = torch.tensor([0.3]), torch.tensor([0.8]), torch.tensor([0.5])
    forth = hapke_reflectance(a, b, g, smooth) / a
    back = hapke_reflectance(b, a, g, smooth) / b
    torch.testing.assert_close(forth, back)
    rough = hapke_reflectance(a, b, g, Hapke(theta_bar_deg=0.2))
    torch.testing.assert_close(rough, forth * a, rtol=0.02, atol=0.0)
    assert hapke_reflectance(a, b, g, Hapke(theta_bar_deg=25.0)) < rough


def test_compiled_reflectance():
    rng = np.random.default_rng(0)
    # Three directions of real vectors, so that the angles are possible ones.
    vectors = rng.standard_normal((2, 200, 3))
    vectors[..., 2] = np.abs(vectors[..., 2])
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    cos_i, cos_e = vectors[0, :, 2], vectors[1, :, 2]
    cos_g = (vectors[0] * vectors[1]).sum(axis=-1)
    model = Hapke(0.3, 0.2, 0.5, 1.1, 0.05, 20.0)
    expected = hapke_reflectance(*(torch.from_numpy(v) for v in (cos_i, cos_e, cos_g)), model)
    parameters = (0.3, 0.2, 0.5, 1.1, 0.05, 20.0)
    got = [compiled.hapke(*angles, parameters) for angles in zip(cos_i, cos_e, cos_g, strict=True)]
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6)


def test_compiled_undistortion():
    u, v = np.random.default_rng(1).uniform(-0.6, 0.6, (2, 200))
    bending = (-0.2, 0.06, 1e-3, -2e-3, 0.01)
    expected = undistorted(torch.from_numpy(u), torch.from_numpy(v), bending)
    pixels = zip(u, v, strict=True)
    got = [compiled.undistorted(*pixel, bending, UNDISTORT_STEPS) for pixel in pixels]
    np.testing.assert_allclose(np.transpose(got), np.stack(expected), rtol=1e-9)


def test_impossible_views(shaped_terrain, view_from):
    ground = shaped_terrain(lambda x, y: 0.0)
    with pytest.raises(InputError, match='below the ground at 0.00'):
        render(ground, view_from((0.0, 0.0, -1.0)), NOON)
    with pytest.raises(InputError, match='finest grid ends at 4.00 m'):
        render(ground, view_from((9.0, 0.0, 1.0)), NOON)
    with pytest.raises(InputError, match='3 samples'):
        render(ground, view_from(), NOON, samples=3)
    with pytest.raises(InputError, match='pose'):
        render(ground, view_from(), NOON, rover=(Box((0, 0, 0), (1, 1, 1)),))
