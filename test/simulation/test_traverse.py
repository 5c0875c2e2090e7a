"""A drive over the terrain and the bag made of it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')

import lunar_stereo_recon  # noqa: E402
from lunar_stereo_recon.bags.reader import StereoBagReader  # noqa: E402
from lunar_stereo_recon.datatypes import StereoCalibration  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import traverse  # noqa: E402
from lunar_stereo_recon.simulation.camera import camera_rotation, Sensor  # noqa: E402
from lunar_stereo_recon.simulation.camera_faults import CameraFaults  # noqa: E402
from lunar_stereo_recon.simulation.terrain import make_terrain  # noqa: E402
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig  # noqa: E402

CALIBRATION = StereoCalibration(70.0, 70.0, 47.5, 35.5, 47.5, 0.2, 96, 72)


@pytest.fixture
def short_drive() -> traverse.TraverseConfig:
    demo = traverse.demo_traverse(1)
    ground = TerrainConfig(
        1, cells=(512, 256, 128), cell_sizes_m=(0.02, 0.08, 0.64), rock_density=0.2
    )
    return dataclasses.replace(
        demo,
        terrain=ground,
        rig=traverse.Rig(CALIBRATION),
        frames=3,
        start_m=(-2.0, 0.5),
        samples=1,
    )


def test_drive_along_an_arc():
    config = dataclasses.replace(
        traverse.demo_traverse(0), frames=41, turn_deg_s=9.0, rate_hz=4.0, speed_m_s=0.4
    )
    poses = traverse.drive(config)
    steps = np.diff([[p.x_m, p.y_m] for p in poses], axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.1, rtol=1e-6)
    # 10 s at 9 degrees a second: a quarter of a circle of radius v / omega.
    assert math.degrees(poses[-1].heading_rad) == pytest.approx(90.0)
    radius = 0.4 / math.radians(9.0)
    moved = np.array([poses[-1].x_m, poses[-1].y_m]) - config.start_m
    np.testing.assert_allclose(moved, [radius, radius], rtol=1e-3)


def test_rover_stands_on_a_slope(shaped_terrain):
    ground = shaped_terrain(lambda x, y: 0.2 * x + 0.1 * y + 1.0)
    height, ahead, left = traverse.ground_plane(ground, 0.5, -0.5, 0.0)
    assert (height, ahead, left) == pytest.approx((1.05, 0.2, 0.1), abs=1e-5)
    _, sideways, back = traverse.ground_plane(ground, 0.5, -0.5, math.pi / 2)
    assert (sideways, back) == pytest.approx((0.1, -0.2), abs=1e-5)
    _, rotation = traverse.attitude_on_ground(ground, 0.5, -0.5, 0.0, 0.0)
    assert float(rotation[2, 2]) > 0.19  # looks uphill
    assert float(rotation[2, 0]) < -0.09  # its right side is lower


def test_quaternion():
    for angles in ((0.0, 0.0, 0.0), (2.5, -0.4, 0.1), (-3.0, 1.2, -2.0), (1.0, -1.5, 3.0)):
        rotation = camera_rotation(*angles).double().numpy()
        x, y, z, w = traverse.quaternion_from_rotation(rotation)
        assert w >= 0 and x * x + y * y + z * z + w * w == pytest.approx(1.0)
        again = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        np.testing.assert_allclose(again, rotation, atol=1e-6)


def test_frames_see_one_world(short_drive):
    """Points of the first frame lie on the surface that the last frame measures."""
    frames = list(traverse.render_traverse(short_drive))
    assert [f.stamp_ns - frames[0].stamp_ns for f in frames] == [0, 500_000_000, 1_000_000_000]
    first, last = frames[0], frames[-1]
    assert np.linalg.norm(last.position_m - first.position_m) == pytest.approx(0.3, abs=0.05)
    v, u = np.nonzero(np.isfinite(first.depth))
    z = first.depth[v, u]
    local = np.stack([(u - 47.5) / 70 * z, (v - 35.5) / 70 * z, z], axis=1)
    points = (local @ first.rotation.T + first.position_m - last.position_m) @ last.rotation
    column = np.round(70 * points[:, 0] / points[:, 2] + 47.5).astype(int)
    row = np.round(70 * points[:, 1] / points[:, 2] + 35.5).astype(int)
    inside = (column >= 0) & (column < 96) & (row >= 0) & (row < 72) & (z < 6)
    measured = last.depth[row[inside], column[inside]]
    assert inside.sum() > 1500
    error = np.abs(measured - points[inside, 2]) / points[inside, 2]
    assert np.nanmedian(error) < 0.01


def test_bag_holds_the_drive(short_drive, tmp_path):
    counts = traverse.write_bag(tmp_path / 'drive', short_drive, depth_every=2)
    assert counts == {
        '/stereo/left/image_rect': 3,
        '/stereo/left/camera_info': 3,
        '/stereo/right/image_rect': 3,
        '/stereo/right/camera_info': 3,
        '/ground_truth/pose': 3,
        '/tf': 3,
        '/ground_truth/depth': 2,
    }
    rendered = list(traverse.render_traverse(short_drive))
    with StereoBagReader(tmp_path / 'drive') as bag:
        frames = list(bag.frames())
        pairs = [frame.pair() for frame in frames]
    assert [frame.stamp_ns for frame in frames] == [frame.stamp_ns for frame in rendered]
    assert pairs[1].calibration == CALIBRATION
    np.testing.assert_allclose(pairs[1].left * 255, rendered[1].left, atol=0.01)
    assert frames[1].depth() is None
    depth = frames[2].depth()
    np.testing.assert_array_equal(np.isnan(depth), np.isnan(rendered[2].depth))
    np.testing.assert_allclose(depth, rendered[2].depth, rtol=1.3e-4)


def test_depth_needs_a_positive_step(short_drive, tmp_path):
    with pytest.raises(InputError, match='every 0-th'):
        traverse.write_bag(tmp_path / 'drive', short_drive, depth_every=0)
    assert not (tmp_path / 'drive').exists()


def test_rounding_keeps_what_it_promises():
    values = np.random.default_rng(0).uniform(0.1, 300, 1000).astype(np.float32)
    values[:3] = np.nan
    short = traverse.rounded(values, 12)
    np.testing.assert_allclose(short, values, rtol=2.0**-13)
    bits = short[3:].view(np.uint32)
    assert (bits & ((1 << 11) - 1) == 0).all() and np.isnan(short[:3]).all()


def test_demo_bag_in_the_package():
    """The bag that the demo replays is the drive that this module describes."""
    config = traverse.demo_traverse(10)
    path = Path(lunar_stereo_recon.__file__).parent / 'data' / 'demo_traverse'
    assert sum(p.stat().st_size for p in path.iterdir()) < 12e6
    with StereoBagReader(path) as bag:
        frames = list(bag.frames())
        first = frames[0].pair()
    assert len(frames) == config.frames
    assert first.calibration == config.rig.calibration
    step = np.linalg.norm(frames[1].pose.position - frames[0].pose.position)
    assert step == pytest.approx(config.speed_m_s / config.rate_hz, abs=0.05)
    assert sum(frame.depth_message is not None for frame in frames) == 6


def test_late_right_camera_is_carried_on_by_the_drive(short_drive):
    """It sees what the right camera of a rover half a second farther on sees."""
    ground = dataclasses.replace(
        short_drive.terrain, roughness_m=1e-3, crater_density=0.0, rock_density=0.0
    )
    ground = dataclasses.replace(ground, albedo_noise=0.15, tilt_deg=0.0)
    config = dataclasses.replace(
        short_drive,
        terrain=ground,
        rover=(),
        sensor=Sensor(gain=1500.0, shot_noise_dn=0.0, read_noise_dn=0.0),
        speed_m_s=0.4,
        turn_deg_s=6.0,
        samples=4,
    )
    late = dataclasses.replace(config, faults=CameraFaults(time_offset_s=0.5))
    made = make_terrain(ground)
    here = traverse.RoverPose(0.0, -2.0, 0.5, 0.3)
    there = traverse.moved(here, 0.5, 0.4, math.radians(6.0))
    seen = [
        traverse.render_frame(*job, 1500.0, 0)[0]
        for job in ((config, made, here), (late, made, here), (config, made, there))
    ]
    np.testing.assert_array_equal(seen[0].left, seen[1].left)
    right, delayed, farther = (frame.right[30:].astype(float).ravel() for frame in seen)
    alike, unlike = (np.corrcoef(delayed, image)[0, 1] for image in (farther, right))
    assert 1 - alike < 0.4 * (1 - unlike), (alike, unlike)


def test_bag_of_raw_images(short_drive, tmp_path):
    faults = CameraFaults(distortion=(-0.2, 0.05, 0.001, 0.0, 0.0), stored_bits=12)
    config = dataclasses.replace(short_drive, faults=faults, frames=1)
    counts = traverse.write_bag(tmp_path / 'raw', config, depth_every=1)
    assert counts['/stereo/left/image_raw'] == counts['/ground_truth/depth'] == 1
    assert '/stereo/left/image_rect' not in counts
