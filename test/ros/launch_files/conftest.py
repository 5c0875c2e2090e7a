"""Launch files in processes of their own, with the package's nodes or with stand-ins for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import importlib.util
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = 'lunar_stereo_recon'
NODES = (
    *('reconstruction_node', 'terrain_node', 'replay_node', 'simulator_node'),
    'camera_info_relay',
)
# What a launch file may start, by package.
PROGRAMS = {
    PACKAGE: (*NODES, 'recorder_node', 'lunar-stereo'),
    'ros_gz_sim': ('create',),
    'ros_gz_bridge': ('parameter_bridge',),
    'tf2_ros': ('static_transform_publisher',),
    'rviz2': ('rviz2',),
    'foxglove_bridge': ('foxglove_bridge',),
    'ros2bag': (),
}
PATIENCE_S = 60.0
END_PATIENCE_S = 120.0
# As `ros2 launch` does it.
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService()
arguments = [tuple(word.split(':=', 1)) for word in sys.argv[2:]]
source = PythonLaunchDescriptionSource(sys.argv[1])
include = IncludeLaunchDescription(source, launch_arguments=arguments)
service.include_launch_description(LaunchDescription([include]))
sys.exit(service.run())
"""
# Notes its arguments and the parameter files among them, then waits to be stopped.
STAND_IN = """#!/bin/sh
out="$STAND_IN_LOG/{name}.$$"
for word in "$@"; do
  printf '%s\\n' "$word" >> "$out.words"
  case "$word" in /*params*) cat "$word" >> "$out.yaml" ;; esac
done
env > "$out.env"
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


class ParameterLoader(yaml.SafeLoader):
    """Reads the files that launch_ros writes: lists are tuples of Python there."""


ParameterLoader.add_constructor(
    'tag:yaml.org,2002:python/tuple', ParameterLoader.construct_sequence
)


class Launched:
    """A launch file that runs, and its output."""

    def __init__(
        self,
        launch_file: str,
        arguments: dict[str, str],
        output: Path,
        environment: dict[str, str],
    ) -> None:
        self.output = output
        words = [f'{name}:={value}' for name, value in arguments.items()]
        path = ROOT / 'launch' / launch_file
        with output.open('wb') as file:
            self.process = subprocess.Popen(
                [sys.executable, '-c', RUN, str(path), *words],
                env={**os.environ, **environment, 'PYTHONUNBUFFERED': '1'},
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait(self, patience_s: float = PATIENCE_S) -> str:
        """Wait for the launch to end by itself and return its output."""
        self.process.wait(patience_s)
        return self.output.read_text()

    def end(self) -> int:
        """Interrupt the launch where it still runs, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(END_PATIENCE_S)


class LaunchedStandIns(Launched):
    """A launch file whose programs are stand-ins that note how they were started."""

    def __init__(
        self,
        launch_file: str,
        arguments: dict[str, str],
        folder: Path,
        missing: tuple[str, ...] = (),
    ) -> None:
        self._log = folder / 'log'
        self._log.mkdir()
        self.prefix = stand_in_prefix(folder / 'prefix')
        for package in missing:
            index = self.prefix / 'share' / 'ament_index' / 'resource_index' / 'packages'
            (index / package).unlink()
        environment = {
            'AMENT_PREFIX_PATH': str(self.prefix),
            'STAND_IN_LOG': str(self._log),
            'HOME': str(folder.parent),
            'PATH': f'{self.prefix / "bin"}:{os.environ["PATH"]}',
            'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        }
        super().__init__(launch_file, arguments, folder / 'output.txt', environment)

    def started(self, program: str, count: int = 1) -> list[tuple[list[str], dict]]:
        """Wait for `count` starts of a program; return their arguments and their parameters."""
        deadline = time.monotonic() + PATIENCE_S
        while len(found := sorted(self._log.glob(f'{program}.*.args'))) < count:
            assert time.monotonic() < deadline and self.process.poll() is None, (
                f'{program} was not started: {self.output.read_text()}'
            )
            time.sleep(0.05)
        return [(_lines(path), _parameters(path.with_suffix('.yaml'))) for path in found]

    def environment(self, program: str) -> dict[str, str]:
        """Return the environment of the one start of a program."""
        self.started(program)
        [path] = self._log.glob(f'{program}.*.env')
        return dict(line.split('=', 1) for line in _lines(path) if '=' in line)

    def kill(self, program: str) -> None:
        """Kill the one start of a program; its process is the end of the file's name."""
        self.started(program)
        [path] = self._log.glob(f'{program}.*.args')
        os.kill(int(path.name.split('.')[-2]), signal.SIGKILL)

    def has_started(self) -> set[str]:
        """Return the programs that were started so far."""
        return {path.name.split('.')[0] for path in self._log.glob('*.args')}

    def stop(self) -> None:
        """Kill the launch and its stand-ins, which have nothing to end well."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _parameters(path: Path) -> dict:
    """Return the parameters of all files that a stand-in was given; the last one wins."""
    values: dict = {}
    if path.is_file():
        text = path.read_text().replace('/**:', '---\n/**:')
        for document in yaml.load_all(text, ParameterLoader):
            for node in (document or {}).values():
                values.update(node['ros__parameters'])
    return values


def _shares(prefix: Path, packages: tuple[str, ...]) -> None:
    """Enter packages in the index of an install prefix, and this package's own files."""
    index = prefix / 'share' / 'ament_index' / 'resource_index' / 'packages'
    index.mkdir(parents=True)
    for package in packages:
        (index / package).touch()
        (prefix / 'share' / package).mkdir()
    for name in ('launch', 'config'):
        (prefix / 'share' / PACKAGE / name).symlink_to(ROOT / name)


def stand_in_prefix(folder: Path) -> Path:
    """Return an install prefix with the package's own shares and stand-ins for programs."""
    _shares(folder, tuple(PROGRAMS))
    for package, programs in PROGRAMS.items():
        for program in programs:
            _stand_in(folder / 'lib' / package / program)
    gazebo, _ = (_stand_in(folder / 'bin' / name) for name in ('gazebo', 'ros2'))
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
def launch_system() -> None:
    """Skip the test where the launch system cannot be imported."""
    needed = ('launch', 'launch_ros', 'launch_testing')
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f'{", ".join(missing)} come with ROS, not from PyPI')


@pytest.fixture
def install_tree(tmp_path) -> Path:
    """Return an install prefix with the package's nodes, as an installation has them."""
    prefix = tmp_path / 'install'
    _shares(prefix, (PACKAGE,))
    scripts = prefix / 'lib' / PACKAGE
    scripts.mkdir(parents=True)
    for name in NODES:
        script = scripts / name
        script.write_text(
            f'#!{sys.executable}\n'
            'import sys\n'
            f'from {PACKAGE}.ros.{name} import main\n'
            'sys.exit(main())\n'
        )
        script.chmod(0o755)
    return prefix


@pytest.fixture
def install_environment(install_tree) -> dict[str, str]:
    """Return the environment in which the installed nodes are found."""
    prefixes = [str(install_tree), *os.environ.get('AMENT_PREFIX_PATH', sys.prefix).split(':')]
    python_path = [str(ROOT), *filter(None, os.environ.get('PYTHONPATH', '').split(':'))]
    return {'AMENT_PREFIX_PATH': ':'.join(prefixes), 'PYTHONPATH': ':'.join(python_path)}


@pytest.fixture
def launched(tmp_path, launch_system, install_environment) -> Iterator[Callable[..., Launched]]:
    """Return a function that starts a launch file with the package's nodes."""
    started: list[Launched] = []

    def start(launch_file: str, **arguments: str) -> Launched:
        output = tmp_path / f'{launch_file}_{len(started)}.log'
        started.append(Launched(launch_file, arguments, output, install_environment))
        return started[-1]

    yield start
    for launch in started:
        launch.end()


@pytest.fixture
def stand_ins(tmp_path, launch_system) -> Iterator[Callable[..., LaunchedStandIns]]:
    """Return a function that starts a launch file with stand-ins for all programs."""
    started: list[LaunchedStandIns] = []

    def start(
        launch_file: str, *, missing: tuple[str, ...] = (), **arguments: str
    ) -> LaunchedStandIns:
        folder = tmp_path / f'launch_{len(started)}'
        folder.mkdir()
        started.append(LaunchedStandIns(launch_file, arguments, folder, missing))
        return started[-1]

    yield start
    for launch in started:
        launch.stop()
