"""A rover that drives by itself for ever, or as it is told, always where it can be rendered."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.camera_faults import CameraFaults
from lunar_stereo_recon.simulation.driver import Driver
from lunar_stereo_recon.simulation.scene import Lighting
from lunar_stereo_recon.simulation.terrain import make_terrain
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig
from lunar_stereo_recon.simulation.traverse import (
    check_pose,
    render_frame,
    Rig,
    RoverPose,
    TraverseConfig,
)

HALF_M = 5.12
START = RoverPose(0.0, -2.0, 0.0, 0.0)


@pytest.fixture(scope='module')
def config():
    ground = TerrainConfig(3, cells=(256, 256), cell_sizes_m=(0.04, 0.16), rock_density=0.05)
    calibration = StereoCalibration(40.0, 40.0, 31.5, 23.5, 31.5, 0.3, 64, 48)
    return TraverseConfig(ground, Rig(calibration), Lighting(25.0, 115.0), samples=1)


@pytest.fixture(scope='module')
def terrain(config):
    return make_terrain(config.terrain)


def places(driver, steps, move):
    """Return (steps, 2) positions; each pose can be rendered."""
    found = []
    for _ in range(steps):
        move()
        check_pose(driver._config, driver._terrain, driver.pose)
        found.append((driver.pose.x_m, driver.pose.y_m))
    return np.array(found)


@pytest.mark.parametrize(
    ('speed', 'turn_deg'), [(0.3, 1.5), (2.0, 0.0), (2.0, -20.0), (-0.5, 3.0)]
)
def test_hours_of_roaming_stay_on_the_ground_and_go_on(config, terrain, speed, turn_deg):
    driver = Driver(config, terrain, START)
    turn = math.radians(turn_deg)
    found = places(driver, 2000, lambda: driver.roam(0.5, speed, turn))
    assert driver.pose.time_s == pytest.approx(1000.0)
    assert np.abs(found).max() < HALF_M
    steps = np.linalg.norm(np.diff(found, axis=0), axis=1)
    # It turns on the spot now and then, and never stands for long.
    standing = np.convolve(steps < 1e-6, np.ones(60), 'valid')
    assert (steps > 1e-6).mean() > 0.2 and standing.max() < 60
    # Not for ever in one corner: it comes to all sides.
    if speed == 2.0 and turn_deg == 0.0:
        assert (found.max(0) > 1.0).all() and (found.min(0) < -1.0).all()


def test_commanded_rover_stays_at_the_end_and_can_be_turned_away(config, terrain):
    driver = Driver(config, terrain, START)
    places(driver, 100, lambda: driver.obey(0.5, 1.0, 0.0))
    assert 'the fine ground ends' in driver.obstacle
    there = driver.pose.x_m
    assert HALF_M - 1.0 < there < HALF_M
    places(driver, 20, lambda: driver.obey(0.5, 1.0, math.radians(18.0)))
    driver.obey(0.5, 1.0, 0.0)
    assert driver.obstacle == '' and driver.pose.x_m < there


def test_last_pose_before_the_end_is_rendered_with_all_faults(config, terrain):
    faults = CameraFaults(exposure_s=0.1, time_offset_s=0.05)
    faulty = TraverseConfig(
        config.terrain, config.rig, config.lighting, speed_m_s=2.0, samples=1, faults=faults
    )
    driver = Driver(faulty, terrain, START)
    places(driver, 100, lambda: driver.obey(0.1, 2.0, 0.0))
    frame, _ = render_frame(faulty, terrain, driver.pose, 0.0, 1)
    assert frame.left.shape == (48, 64)


def test_start_off_the_ground_is_refused(config, terrain):
    with pytest.raises(InputError, match='the fine ground ends at 4.67 m'):
        Driver(config, terrain, RoverPose(0.0, 20.0, 0.0, 0.0))
