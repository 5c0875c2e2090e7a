"""Poses between their stamps, poses that do not come, and motions that no rover makes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.pose_track import Pose, pose_of_arrays, PoseTrack
from lunar_stereo_recon.geometry.rotation import quaternion_from_rotation, rotation_from_rpy


def quaternion(yaw_deg):
    return quaternion_from_rotation(rotation_from_rpy(0.0, 0.0, math.radians(yaw_deg)))


@pytest.fixture
def track():
    """Return poses at 1.0, 1.5 and 4.0 s."""
    track = PoseTrack(max_gap_s=1.0)
    for stamp, x_m, yaw_deg in ((1_000, 0.0, 0.0), (1_500, 1.0, 10.0), (4_000, 2.0, 10.0)):
        track.add(stamp * 10**6, np.array([x_m, 0.0, 0.0]), quaternion(yaw_deg))
    return track


def test_a_pose_between_two_is_their_mean_by_time(track):
    pose = track.at(1_125_000_000)
    assert pose.position == pytest.approx([0.25, 0, 0])
    expected = rotation_from_rpy(0.0, 0.0, math.radians(2.5))
    assert pose.rotation == pytest.approx(expected, abs=1e-4)
    assert track.at(1_500_000_000).position == pytest.approx([1.0, 0, 0])


def test_both_signs_of_a_quaternion_are_one_rotation():
    track = PoseTrack()
    track.add(0, np.zeros(3), quaternion(10.0))
    track.add(100, np.zeros(3), -quaternion(12.0))
    expected = rotation_from_rpy(0.0, 0.0, math.radians(11.0))
    assert track.at(50).rotation == pytest.approx(expected, abs=1e-6)


def test_a_pose_that_may_still_come_is_none_and_one_that_will_not_is_an_error(track):
    assert track.at(4_000_000_001) is None
    assert PoseTrack().at(0) is None
    with pytest.raises(InputError, match='poses begin 0.100 s after'):
        track.at(900_000_000)
    with pytest.raises(InputError, match='2.50 s apart; at most 1 s'):
        track.at(2_000_000_000)


def test_late_poses_are_left_out_and_impossible_ones_refused(track):
    track.add(1_200_000_000, np.array([9.0, 0, 0]), quaternion(0))
    assert track.newest_ns == 4_000_000_000
    for position, turn in (
        ([math.nan, 0, 0], quaternion(0)),
        ([1e9, 0, 0], quaternion(0)),
        ([0, 0, 0], np.zeros(4)),
    ):
        with pytest.raises(InputError):
            track.add(5_000_000_000, np.array(position, float), turn)


@pytest.mark.parametrize(
    'x_m, yaw_deg, seconds, text',
    [
        (0.4, 0.0, 0.01, ''),
        (0.6, 0.0, 0.1, 'moved 0.60 m in 0.10 s'),
        (2.0, 0.0, 1.0, ''),
        (0.0, 15.0, 0.01, ''),
        (0.0, 90.0, 0.1, 'turned 90 degrees in 0.10 s'),
    ],
)
def test_a_jump_is_farther_and_faster_than_a_rover_drives(x_m, yaw_deg, seconds, text):
    start = Pose(np.eye(3), np.zeros(3))
    end = pose_of_arrays(np.array([x_m, 0, 0]), quaternion(yaw_deg))
    found = start.jump_to(end, seconds, 3.0)
    assert text in found and bool(text) == bool(found)


def test_poses_are_chained_and_inverted():
    base = pose_of_arrays(np.array([1.0, 2.0, 0.0]), quaternion(90.0))
    camera = base.of(Pose(np.eye(3), np.array([0.5, 0.0, 1.0])))
    assert camera.position == pytest.approx([1.0, 2.5, 1.0])
    assert base.inverse().of(camera).position == pytest.approx([0.5, 0.0, 1.0])
