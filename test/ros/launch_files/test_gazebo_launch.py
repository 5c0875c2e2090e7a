"""gazebo.launch.py, run by the real launch system with stand-ins for the programs it starts."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from lunar_stereo_recon.simulation.gazebo_rover import read_rig

ROOT = Path(__file__).resolve().parents[3]
ROVER = ROOT / 'config' / 'gazebo' / 'lunar_rover' / 'model.sdf'


@pytest.fixture
def world(tmp_path) -> Path:
    folder = tmp_path / 'moon'
    folder.mkdir()
    spawn = {'x': 1.5, 'y': -2.0, 'z': 0.31, 'yaw': 0.25}
    description = {'world': 'world.sdf', 'name': 'lunar', 'spawn': spawn}
    (folder / 'world.json').write_text(json.dumps(description))
    position = np.arange(-8, 9) * 0.25
    highest = position[:, None] * np.ones(17) + 10
    np.savez(folder / 'start_heights.npz', position_m=position, highest_m=highest)
    return folder


@pytest.fixture
def launched(stand_ins):
    return functools.partial(stand_ins, 'gazebo.launch.py')


def test_everything_starts_with_what_the_model_and_the_world_say(launched, world):
    launch = launched(world=str(world), gui='false', backend='sgbm', namespace='moon')
    [(gazebo, _)] = launch.started('gazebo')
    assert gazebo == [f'-r -s --headless-rendering {world}/world.sdf']
    [(_, spawn)] = launch.started('create')
    assert spawn['world'] == 'lunar'
    assert Path(spawn['file']).resolve() == ROVER
    assert (spawn['x'], spawn['y'], spawn['z'], spawn['Y']) == (1.5, -2.0, 0.31, 0.25)
    [(words, bridge)] = launch.started('parameter_bridge')
    assert Path(bridge['config_file']).resolve() == ROOT / 'config' / 'gz_bridge.yaml'
    profile = launch.environment('parameter_bridge')['FASTRTPS_DEFAULT_PROFILES_FILE']
    assert Path(profile).name == 'fastdds_large_messages.xml'
    assert '__ns:=/moon' in words
    [(words, relay)] = launch.started('camera_info_relay')
    rig = read_rig(ROVER)
    assert relay['baseline'] == pytest.approx(rig.baseline_m)
    assert relay['pixel_offset'] == 0.5
    assert '__ns:=/moon' in words
    [(words, node)] = launch.started('reconstruction_node')
    assert node['backend'] == 'sgbm' and node['use_sim_time'] is True
    assert '__ns:=/moon' in words
    frames = {}
    for words, _ in launch.started('static_transform_publisher', 3):
        values = dict(zip(words[0:-1:2], words[1::2], strict=False))
        frames[values['--child-frame-id']] = values
    assert frames['odom']['--frame-id'] == 'map'
    for camera in (rig.left, rig.right):
        values = frames[camera.child]
        assert values['--frame-id'] == 'base_link'
        pose = [float(values[f'--{name}']) for name in ('x', 'y', 'z', 'qx', 'qy', 'qz', 'qw')]
        assert pose == pytest.approx([*camera.xyz_m, *camera.xyzw], abs=1e-8)


def test_start_elsewhere_stands_on_the_ground_there(launched, world):
    launch = launched(world=str(world), x='0.5', y='1.0')
    [(_, spawn)] = launch.started('create')
    # The ground of this world is 10 m + y.
    assert (spawn['x'], spawn['y'], spawn['z']) == pytest.approx((0.5, 1.0, 11.02))
    [(gazebo, _)] = launch.started('gazebo')
    assert gazebo == [f'-r {world}/world.sdf']


def test_world_is_made_first_where_none_is_given(launched, world, tmp_path):
    made = tmp_path / '.ros' / 'lunar_stereo_recon' / 'gazebo_smooth_7_mesh'
    made.parent.mkdir(parents=True)
    world.rename(made)
    launch = launched(preset='smooth', seed='7', rocks='mesh')
    [(words, _)] = launch.started('lunar-stereo')
    assert words == [
        *('export-gazebo', '--reuse', '--preset', 'smooth', '--seed', '7'),
        *('--rocks', 'mesh', '--out', str(made)),
    ]
    [(gazebo, _)] = launch.started('gazebo')
    assert gazebo == [f'-r {made}/world.sdf']


@pytest.mark.parametrize('missing', ['ros_gz_sim', 'ros_gz_bridge', 'tf2_ros'])
def test_a_missing_package_is_said_before_the_world_is_made(launched, missing):
    launch = launched(missing=(missing,))
    assert f'this launch file needs the package {missing}' in launch.wait()
    assert launch.has_started() == set()


def test_launch_ends_where_the_world_cannot_be_made(launched, monkeypatch):
    monkeypatch.setenv('EXPORT_STATUS', '2')
    output = launched().wait()
    assert 'lunar-stereo export-gazebo failed with status 2' in output


def test_folder_without_a_world_is_named(launched, tmp_path):
    output = launched(world=str(tmp_path / 'nowhere')).wait()
    assert 'nowhere holds no world' in output
