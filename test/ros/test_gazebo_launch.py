"""gazebo.launch.py, run by the real launch system with stand-ins for the programs it starts."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from lunar_stereo_recon.simulation.gazebo_rover import read_rig

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILE = ROOT / 'launch' / 'gazebo.launch.py'
ROVER = ROOT / 'config' / 'gazebo' / 'lunar_rover' / 'model.sdf'
HAS_LAUNCH = importlib.util.find_spec('launch') and importlib.util.find_spec('launch_ros')
needs_launch = pytest.mark.skipif(not HAS_LAUNCH, reason='launch and launch_ros are not installed')
PATIENCE_S = 60.0
PROGRAMS = {
    'lunar_stereo_recon': ('reconstruction_node', 'camera_info_relay', 'lunar-stereo'),
    'ros_gz_sim': ('create',),
    'ros_gz_bridge': ('parameter_bridge',),
    'tf2_ros': ('static_transform_publisher',),
    'rviz2': ('rviz2',),
}
# Notes its arguments and the parameter files among them, then waits to be stopped.
STAND_IN = """#!/bin/sh
out="$STAND_IN_LOG/{name}.$$"
for word in "$@"; do
  printf '%s\\n' "$word" >> "$out.words"
  case "$word" in *launch_params*) cat "$word" >> "$out.yaml" ;; esac
done
mv "$out.words" "$out.args"
{then}
"""
GZ_SIM_LAUNCH = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration

def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument('gz_args'),
        DeclareLaunchArgument('on_exit_shutdown'),
        ExecuteProcess(cmd=[{program!r}, LaunchConfiguration('gz_args')]),
    ])
"""
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription, SetLaunchConfiguration
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService()
arguments = [tuple(word.split(':=', 1)) for word in sys.argv[2:]]
source = PythonLaunchDescriptionSource(sys.argv[1])
# Stand-ins may be deaf to SIGINT, as everything is that a shell started in the background.
quick = SetLaunchConfiguration('sigterm_timeout', '0.2')
service.include_launch_description(
    LaunchDescription([quick, IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


class Launched:
    """A launch in a process of its own, with what the stand-ins noted."""

    def __init__(self, folder: Path, arguments: dict[str, str]) -> None:
        self._log = folder / 'log'
        self._log.mkdir()
        self.output = folder / 'output.txt'
        environment = {
            **os.environ,
            'AMENT_PREFIX_PATH': str(_prefix(folder / 'prefix')),
            'STAND_IN_LOG': str(self._log),
            'HOME': str(folder),
            'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        }
        words = [f'{name}:={value}' for name, value in arguments.items()]
        with self.output.open('wb') as output:
            self._process = subprocess.Popen(
                [sys.executable, '-c', RUN, str(LAUNCH_FILE), *words],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def started(self, program: str, count: int = 1) -> list[tuple[list[str], dict]]:
        """Wait for `count` starts of a program; return their arguments and their parameters."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := sorted(self._log.glob(f'{program}.*.args'))) < count:
            assert time.monotonic() < deadline and self._process.poll() is None, (
                f'{program} was not started: {self.output.read_text()}'
            )
            time.sleep(0.05)
        return [(_lines(path), _parameters(path.with_suffix('.yaml'))) for path in found]

    def wait(self) -> str:
        """Wait for the launch to end by itself and return its output."""
        self._process.wait(PATIENCE_S)
        return self.output.read_text()

    def stop(self) -> None:
        """End the launch, once it has started everything."""
        if self._process.poll() is None:
            self.started('reconstruction_node')
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE_S)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _parameters(path: Path) -> dict:
    values: dict = {}
    if path.is_file():
        for document in yaml.safe_load_all(path.read_text().replace('/**:', '---\n/**:')):
            for node in (document or {}).values():
                values.update(node['ros__parameters'])
    return values


def _prefix(folder: Path) -> Path:
    """Return an install prefix with the package's own shares and stand-ins for programs."""
    for package, programs in PROGRAMS.items():
        index = folder / 'share' / 'ament_index' / 'resource_index' / 'packages'
        index.mkdir(parents=True, exist_ok=True)
        (index / package).touch()
        (folder / 'share' / package).mkdir()
        for program in programs:
            _stand_in(folder / 'lib' / package / program)
    for name in ('launch', 'config'):
        (folder / 'share' / 'lunar_stereo_recon' / name).symlink_to(ROOT / name)
    gazebo = _stand_in(folder / 'bin' / 'gazebo')
    gz_launch = folder / 'share' / 'ros_gz_sim' / 'launch' / 'gz_sim.launch.py'
    gz_launch.parent.mkdir()
    gz_launch.write_text(GZ_SIM_LAUNCH.format(program=str(gazebo)))
    return folder


def _stand_in(path: Path) -> Path:
    # The exporter is the one program that ends; it finds its world made, or fails.
    path.parent.mkdir(parents=True, exist_ok=True)
    then = 'exit "${EXPORT_STATUS:-0}"' if path.name == 'lunar-stereo' else 'exec sleep 600'
    path.write_text(STAND_IN.format(name=path.name, then=then))
    path.chmod(0o755)
    return path


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
def launched(tmp_path):
    started = []

    def start(**arguments: str) -> Launched:
        started.append(Launched(tmp_path, arguments))
        return started[-1]

    yield start
    for launch in started:
        launch.stop()


def test_file_is_python():
    compile(LAUNCH_FILE.read_text(encoding='utf-8'), str(LAUNCH_FILE), 'exec')


@needs_launch
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


@needs_launch
def test_start_elsewhere_stands_on_the_ground_there(launched, world):
    launch = launched(world=str(world), x='0.5', y='1.0')
    [(_, spawn)] = launch.started('create')
    # The ground of this world is 10 m + y.
    assert (spawn['x'], spawn['y'], spawn['z']) == pytest.approx((0.5, 1.0, 11.02))
    [(gazebo, _)] = launch.started('gazebo')
    assert gazebo == [f'-r {world}/world.sdf']


@needs_launch
def test_world_is_made_first_where_none_is_given(launched, world, tmp_path):
    made = tmp_path / '.ros' / 'lunar_stereo_recon' / 'gazebo_smooth_7'
    made.parent.mkdir(parents=True)
    world.rename(made)
    launch = launched(preset='smooth', seed='7')
    [(words, _)] = launch.started('lunar-stereo')
    assert words == [
        *('export-gazebo', '--reuse', '--preset', 'smooth', '--seed', '7', '--out', str(made))
    ]
    [(gazebo, _)] = launch.started('gazebo')
    assert gazebo == [f'-r {made}/world.sdf']


@needs_launch
def test_launch_ends_where_the_world_cannot_be_made(launched, monkeypatch):
    monkeypatch.setenv('EXPORT_STATUS', '2')
    output = launched().wait()
    assert 'lunar-stereo export-gazebo failed with status 2' in output


@needs_launch
def test_folder_without_a_world_is_named(launched, tmp_path):
    output = launched(world=str(tmp_path / 'nowhere')).wait()
    assert 'nowhere holds no world' in output
