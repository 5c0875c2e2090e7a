"""Frames of a rig from its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.rigs import read_rig_frames
from lunar_stereo_recon.simulation.gazebo_rover import read_rig

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / 'config' / 'rig.yaml'


def rig_file(tmp_path, **changes):
    entries = {**yaml.safe_load(SHIPPED.read_text()), **changes}
    path = tmp_path / 'rig.yaml'
    path.write_text(yaml.safe_dump({k: v for k, v in entries.items() if v is not None}))
    return path


def test_shipped_rig_is_that_of_the_gazebo_rover():
    frames = read_rig_frames(SHIPPED)
    rover = read_rig(ROOT / 'config' / 'gazebo' / 'lunar_rover' / 'model.sdf')
    for ours, theirs in ((frames.left, rover.left), (frames.right, rover.right)):
        assert (ours.parent, ours.child) == (theirs.parent, theirs.child)
        assert ours.xyz_m == pytest.approx(theirs.xyz_m)
        assert ours.xyzw == pytest.approx(theirs.xyzw)


def test_right_camera_is_a_baseline_to_the_right_of_a_turned_left_one(tmp_path):
    path = rig_file(tmp_path, position=[1, 2, 3], rotation_deg=[0, 0, 90], baseline=0.5)
    frames = read_rig_frames(path)
    assert frames.left.xyz_m == pytest.approx((1, 2, 3))
    # Looking to the left of the rover, the right camera is ahead.
    assert frames.right.xyz_m == pytest.approx((1.5, 2, 3))
    assert frames.right.xyzw == frames.left.xyzw


def test_straight_ahead_is_the_optical_rotation_of_rep_103(tmp_path):
    left = read_rig_frames(rig_file(tmp_path, rotation_deg=[0, 0, 0])).left
    assert left.xyzw == pytest.approx((-0.5, 0.5, -0.5, 0.5))
    assert dataclasses.astuple(left)[:2] == ('base_link', 'left_camera_optical_frame')


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'baseline': None}, 'baseline'),
        ({'tilt': 3}, 'tilt'),
        ({'position': [1, 2]}, 'position is .1, 2.; 3 finite numbers'),
        ({'rotation_deg': 'down'}, "rotation_deg is 'down'"),
        ({'baseline': -0.3}, 'baseline is -0.3 m'),
        ({'base_frame': ''}, "base_frame is ''"),
    ],
)
def test_unusable_rig_is_refused_with_the_entry(tmp_path, changes, text):
    with pytest.raises(InputError, match=text) as error:
        read_rig_frames(rig_file(tmp_path, **changes))
    assert 'rig.yaml' in str(error.value)


def test_missing_rig_is_named(tmp_path):
    with pytest.raises(InputError, match='nowhere.yaml: No such file'):
        read_rig_frames(tmp_path / 'nowhere.yaml')
