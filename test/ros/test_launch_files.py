"""The launch files, run by the real launch where it can be imported; the parameters file."""

import ast
import dataclasses
import importlib.util
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.ros.parameters import (  # noqa: E402
    ReconstructionParameters,
    RecorderParameters,
    ReplayParameters,
)

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
needs_launch = pytest.mark.skipif(
    importlib.util.find_spec('launch_ros') is None, reason='launch_ros comes with ROS, not PyPI'
)


def test_parameters_file_lists_every_parameter_with_its_default():
    file = yaml.safe_load((ROOT / 'config' / 'reconstruction.yaml').read_text())
    assert file['/**']['ros__parameters'] == dataclasses.asdict(ReconstructionParameters())


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
def test_every_launch_argument_is_described(path):
    """Holds without ROS as well: the file is read, not run."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'DeclareLaunchArgument'
    ]
    assert calls
    for call in calls:
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        assert len(keywords['description'].value) > 10, call.args[0].value


@pytest.fixture
def install_tree(tmp_path):
    """Lay the package out as an installation does, without building it."""
    prefix = tmp_path / 'install'
    share = prefix / 'share' / 'lunar_stereo_recon'
    index = prefix / 'share' / 'ament_index' / 'resource_index' / 'packages'
    index.mkdir(parents=True)
    (index / 'lunar_stereo_recon').touch()
    for folder in ('launch', 'config'):
        shutil.copytree(ROOT / folder, share / folder)
    scripts = prefix / 'lib' / 'lunar_stereo_recon'
    scripts.mkdir(parents=True)
    for name in ('reconstruction_node', 'replay_node', 'recorder_node', 'simulator_node'):
        script = scripts / name
        script.write_text(
            f'#!{sys.executable}\n'
            'import sys\n'
            f'from lunar_stereo_recon.ros.{name} import main\n'
            'sys.exit(main())\n'
        )
        script.chmod(0o755)
    return prefix


def environment(install_tree):
    paths = [str(install_tree), *os.environ.get('AMENT_PREFIX_PATH', sys.prefix).split(':')]
    python_path = [str(ROOT), *filter(None, os.environ.get('PYTHONPATH', '').split(':'))]
    return {
        **os.environ,
        'AMENT_PREFIX_PATH': ':'.join(paths),
        'PYTHONPATH': ':'.join(python_path),
        'PYTHONUNBUFFERED': '1',
    }


def launch(install_tree, name, log, **arguments):
    """Start a launch file in a process of its own, as `ros2 launch` does."""
    program = (
        'import sys\n'
        'from launch import LaunchDescription, LaunchService\n'
        'from launch.actions import IncludeLaunchDescription\n'
        'from launch.launch_description_sources import PythonLaunchDescriptionSource\n'
        'given = [tuple(a.split(":=", 1)) for a in sys.argv[2:]]\n'
        'service = LaunchService()\n'
        'source = PythonLaunchDescriptionSource(sys.argv[1])\n'
        'include = IncludeLaunchDescription(source, launch_arguments=given)\n'
        'service.include_launch_description(LaunchDescription([include]))\n'
        'sys.exit(service.run())\n'
    )
    path = install_tree / 'share' / 'lunar_stereo_recon' / 'launch' / name
    given = [f'{key}:={value}' for key, value in arguments.items()]
    with log.open('wb') as file:
        return subprocess.Popen(
            [sys.executable, '-c', program, str(path), *given],
            env=environment(install_tree),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    return process.wait(120)


@needs_launch
def test_rover_launch_starts_a_node_under_the_given_names(install_tree, cameras, tmp_path):
    log = tmp_path / 'rover.log'
    cameras.listen('points2', 'frame_status')
    process = launch(
        install_tree,
        'rover.launch.py',
        log,
        namespace=cameras.node.get_namespace(),
        left_namespace='mast/port',
        right_namespace='mast/starboard',
        backend='sgbm',
        baseline='0.4',
    )
    try:
        cameras.advertise(names={'left': 'mast/port', 'right': 'mast/starboard'})
        cameras.wait_until_heard()
        cloud = cameras.result('points2', cameras.publish(right_tx=0.0))
        assert cloud.header.frame_id == 'left_optical'
        tasks = Path(f'/proc/{process.pid}/task').iterdir()
        (node,) = [pid for task in tasks for pid in (task / 'children').read_text().split()]
        assert b'fastdds_large_messages.xml' in Path(f'/proc/{node}/environ').read_bytes()
    except AssertionError as error:
        raise AssertionError(log.read_text()) from error
    finally:
        assert end(process) == 0


@needs_launch
def test_replay_launch_plays_a_bag_and_ends(install_tree, cameras, make_bag, tmp_path):
    log = tmp_path / 'replay.log'
    cameras.listen('points2', 'frame_status')
    process = launch(
        install_tree,
        'replay.launch.py',
        log,
        namespace=cameras.node.get_namespace(),
        bag=make_bag(frames=4),
        rate='0',
        flow_control='true',
        wait_for_subscribers='120.0',
        backend='sgbm',
    )
    try:
        cameras.spin_until(lambda: process.poll() is not None)
    finally:
        assert end(process) == 0, log.read_text()
    assert [s.status[0].message for s in cameras.received['frame_status']] == ['published'] * 4
    assert '4 frames' in log.read_text()


@needs_launch
def test_sim_launch_reconstructs_what_it_simulates(install_tree, cameras, tmp_path):
    pytest.importorskip('numba')
    log = tmp_path / 'sim.log'
    cameras.listen('points2')
    process = launch(
        install_tree,
        'sim.launch.py',
        log,
        namespace=cameras.node.get_namespace(),
        width='160',
        height='120',
        rate='5.0',
        backend='sgbm',
    )
    try:
        cameras.spin_until(lambda: len(cameras.received['points2']) >= 3)
        assert cameras.received['points2'][0].header.frame_id == 'left_camera_optical_frame'
    except AssertionError as error:
        raise AssertionError(log.read_text()) from error
    finally:
        assert end(process) == 0, log.read_text()


@needs_launch
def test_rover_launch_shows_its_arguments(install_tree):
    program = (
        'import sys\n'
        'from launch import LaunchContext\n'
        'from launch.launch_description_sources import PythonLaunchDescriptionSource\n'
        'source = PythonLaunchDescriptionSource(sys.argv[1])\n'
        'description = source.get_launch_description(LaunchContext())\n'
        'print(*sorted(a.name for a in description.get_launch_arguments()))\n'
    )
    path = install_tree / 'share' / 'lunar_stereo_recon' / 'launch' / 'rover.launch.py'
    listed = subprocess.run(
        [sys.executable, '-c', program, str(path)],
        env=environment(install_tree),
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    ).stdout.split()
    expected = {'namespace', 'left_namespace', 'right_namespace', 'params_file', 'use_sim_time'}
    assert expected <= set(listed)


@pytest.mark.parametrize('section', ['replay_node', 'recorder_node'])
def test_manual_lists_the_parameters_of_the_other_nodes(section):
    kind = {'replay_node': ReplayParameters, 'recorder_node': RecorderParameters}[section]
    text = (ROOT / 'docs' / 'ros.md').read_text().split(f'\n## {section}')[1].split('\n## ')[0]
    rows = [line.split('|')[1] for line in text.splitlines() if line.startswith('| `')]
    documented = {name for row in rows for name in re.findall(r'`(\w+)`', row)}
    assert documented == {item.name for item in dataclasses.fields(kind)}
