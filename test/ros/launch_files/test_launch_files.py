"""The launch files, run by the real launch where it can be imported; presets and views."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
from pathlib import Path
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.files.calibrations import load_camera_infos  # noqa: E402
from lunar_stereo_recon.files.rigs import read_rig_frames  # noqa: E402
from lunar_stereo_recon.ros.camera_presets import CameraPreset, read_preset  # noqa: E402
from lunar_stereo_recon.ros.node_processes import large_message_environment  # noqa: E402
from lunar_stereo_recon.ros.parameters import (  # noqa: E402
    ReconstructionParameters,
    SimulatorParameters,
)

ROOT = Path(__file__).resolve().parents[3]
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
ARGUMENTS = ROOT / 'lunar_stereo_recon' / 'ros' / 'launch_arguments.py'
PRESETS = sorted((ROOT / 'config' / 'presets').glob('*.yaml'))
PARAMETERS = {item.name for item in dataclasses.fields(ReconstructionParameters)}
SHOW_ARGUMENTS = """
import sys
from launch import LaunchContext
from launch.launch_description_sources import PythonLaunchDescriptionSource
for path in sys.argv[1:]:
    source = PythonLaunchDescriptionSource(path)
    for argument in source.get_launch_description(LaunchContext()).get_launch_arguments():
        print(path, argument.name, argument.description, sep='|')
"""


# Arguments


@pytest.mark.parametrize('path', [*LAUNCH_FILES, ARGUMENTS], ids=lambda path: path.name)
def test_launch_arguments_are_declared_in_one_way(path):
    """Holds without ROS as well: the file is read, not run."""
    calls = [
        (node.func.id, node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    names = [name for name, _ in calls]
    assert ('DeclareLaunchArgument' in names) == (path == ARGUMENTS)
    for name, call in calls:
        if name == 'argument' and isinstance(call.args[1], ast.Constant):
            assert len(call.args[1].value) > 10, call.args[0].value


@pytest.fixture(scope='module')
def shown_arguments(tmp_path_factory):
    """Return description by argument name, by launch file, as `--show-args` finds them."""
    pytest.importorskip('launch_ros')
    index = tmp_path_factory.mktemp('install') / 'share'
    (index / 'ament_index' / 'resource_index' / 'packages').mkdir(parents=True)
    (index / 'ament_index' / 'resource_index' / 'packages' / 'lunar_stereo_recon').touch()
    (index / 'lunar_stereo_recon').mkdir()
    (index / 'lunar_stereo_recon' / 'launch').symlink_to(ROOT / 'launch')
    shown = subprocess.run(
        [sys.executable, '-c', SHOW_ARGUMENTS, *map(str, LAUNCH_FILES)],
        env={
            **os.environ,
            'AMENT_PREFIX_PATH': f'{index.parent}:{os.environ.get("AMENT_PREFIX_PATH", "")}',
            'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        },
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    ).stdout
    arguments: dict[str, dict[str, str]] = {}
    for line in shown.splitlines():
        path, name, description = line.split('|')
        arguments.setdefault(Path(path).name, {})[name] = description
    return arguments


def test_every_parameter_of_the_node_is_an_argument_of_every_launch_file(shown_arguments):
    shared = {'namespace', 'params_file', 'rig', 'rviz', 'foxglove', 'use_sim_time', 'log_level'}
    assert set(shown_arguments) == {path.name for path in LAUNCH_FILES}
    for name, arguments in shown_arguments.items():
        assert PARAMETERS | shared <= set(arguments), name
        assert all(len(description) > 10 for description in arguments.values()), name


@pytest.mark.parametrize(
    'page, launch_file', [('launch', 'rover'), ('bags', 'replay'), ('../gazebo', 'gazebo')]
)
def test_pages_list_the_arguments_of_their_launch_file(shown_arguments, page, launch_file):
    shown = set(shown_arguments[f'{launch_file}.launch.py'])
    rover = set(shown_arguments['rover.launch.py'])
    own = shown - rover if launch_file != 'rover' else rover - PARAMETERS
    text = (ROOT / 'docs' / 'ros' / f'{page}.md').read_text()
    tables = re.findall(r'^\| argument \|.*\n((?:\|.*\n)+)', text, re.MULTILINE)
    rows = [line.split('|')[1] for line in ''.join(tables).splitlines()]
    documented = {name for row in rows for name in re.findall(r'`(\w+)`', row)}
    assert own <= documented <= shown, own ^ documented


def test_no_launch_file_gives_an_argument_of_rover_another_meaning(shown_arguments):
    """Arguments are also those of included files: a name of two meanings would set both."""
    rover = shown_arguments['rover.launch.py']
    meant = {'namespace', 'fixed_frame', 'hazard_frame', 'camera_preset', 'camera_namespace'}
    meant |= {'left_image', 'right_image', 'left_info', 'right_info'}
    meant |= {'terrain_pose', 'terrain_pose_source'}
    for name, arguments in shown_arguments.items():
        changed = {item for item in rover if arguments[item] != rover[item]}
        assert changed <= meant, name


def test_later_sources_of_a_parameter_win(stand_ins, tmp_path):
    preset, params_file = tmp_path / 'mine.yaml', tmp_path / 'params.yaml'
    preset.write_text(
        'left_image: /mine/a\n'
        'parameters: {min_range: 1.0, max_range: 20.0, decimation: 2, outputs: [points2]}\n'
    )
    params_file.write_text('/**: {ros__parameters: {max_range: 30.0, decimation: 3}}\n')
    launch = stand_ins(
        'rover.launch.py',
        camera_preset=str(preset),
        params_file=str(params_file),
        decimation='4',
        roi='[10, 20, 30, 40]',
        providers='[cuda, cpu]',
        lazy='false',
    )
    [(words, parameters)] = launch.started('reconstruction_node')
    assert parameters == {
        **{'min_range': 1.0, 'max_range': 30.0, 'decimation': 4, 'outputs': ['points2']},
        **{
            'roi': [10, 20, 30, 40],
            'providers': ['cuda', 'cpu'],
            'lazy': False,
            'use_sim_time': False,
        },
    }
    assert {'left/image_rect:=/mine/a', 'right/image_rect:=right/image_rect'} <= set(words)


def test_each_node_gets_its_own_enclave(stand_ins):
    launch = stand_ins('sim.launch.py', enclave='/lunar_stereo_recon')
    for node in ('reconstruction_node', 'simulator_node'):
        [(words, _)] = launch.started(node)
        assert words[words.index('--enclave') + 1] == f'/lunar_stereo_recon/{node}'


@pytest.mark.parametrize(
    'arguments, file, raw',
    [
        ({'rectify': 'true'}, '', True),
        ({}, '/**: {ros__parameters: {rectify: true}}', True),
        ({}, 'moon: {reconstruction_node: {ros__parameters: {rectify: true}}}', True),
        ({}, 'other_node: {ros__parameters: {rectify: true}}', False),
        ({'rectify': 'false'}, '/**: {ros__parameters: {rectify: true}}', False),
    ],
)
def test_names_of_raw_images_go_to_a_node_that_rectifies(
    stand_ins, tmp_path, arguments, file, raw
):
    if file:
        arguments = {**arguments, 'params_file': str(tmp_path / 'mine.yaml')}
        (tmp_path / 'mine.yaml').write_text(file)
    launch = stand_ins('rover.launch.py', left_image='/cam/a', **arguments)
    [(words, _)] = launch.started('reconstruction_node')
    name, other = ('image_raw', 'image_rect') if raw else ('image_rect', 'image_raw')
    assert f'left/{name}:=/cam/a' in words and f'right/{name}:=right/{name}' in words
    assert not any(word.startswith(f'left/{other}') for word in words)


@pytest.mark.parametrize(
    'arguments, text',
    [
        ({'params_file': '/nowhere/p.yaml'}, '/nowhere/p.yaml'),
        ({'backend': 'magic'}, 'magic'),
        ({'max_range': 'far'}, 'far'),
        ({'lazy': 'perhaps'}, 'perhaps'),
        (
            {'camera_preset': 'zed9'},
            'its folder has isaac_sim, lunarsim, oak, omnilrs, realsense, zed, zed_5_0',
        ),
        ({'rig': '/nowhere/rig.yaml'}, '/nowhere/rig.yaml'),
    ],
)
def test_bad_value_of_an_argument_ends_the_launch_with_the_reason(stand_ins, arguments, text):
    launch = stand_ins('rover.launch.py', **arguments)
    assert text in launch.wait()
    assert launch.process.returncode != 0


@pytest.mark.parametrize(
    'missing, arguments, text',
    [
        ('rviz2', {'rviz': 'true'}, 'rviz:=true needs the package rviz2'),
        ('foxglove_bridge', {'foxglove': 'true'}, 'foxglove:=true needs the package foxglove_br'),
        ('tf2_ros', {'rig': str(ROOT / 'config' / 'rig.yaml')}, 'needs the package tf2_ros'),
        ('', {'rig': '/nowhere/rig.yaml'}, '/nowhere/rig.yaml'),
        ('', {'backend': 'magic'}, 'magic'),
        ('', {'camera_preset': 'zed9'}, 'its folder has'),
    ],
)
@pytest.mark.parametrize('launch_file', ['rover', 'sim', 'replay', 'zed'])
def test_what_is_missing_is_said_before_anything_starts(
    stand_ins, make_bag, launch_file, missing, arguments, text
):
    if 'camera_preset' in arguments and launch_file == 'zed':
        pytest.skip('that file names the preset itself')
    given = {'bag': str(make_bag())} if launch_file == 'replay' else {}
    launch = stand_ins(
        f'{launch_file}.launch.py', missing=(missing,) * bool(missing), **given, **arguments
    )
    assert text in launch.wait()
    assert launch.process.returncode != 0
    assert launch.has_started() == set()


@pytest.mark.parametrize(
    'launch_file, arguments, program',
    [
        ('rover.launch.py', {}, 'reconstruction_node'),
        ('sim.launch.py', {}, 'simulator_node'),
        ('replay.launch.py', {'player': 'rosbag2'}, 'ros2'),
        ('replay.launch.py', {'player': 'replay_node'}, 'replay_node'),
        ('rover.launch.py', {'rviz': 'true'}, 'rviz2'),
    ],
)
def test_whoever_handles_images_or_clouds_has_memory_for_them(
    stand_ins, make_bag, launch_file, arguments, program
):
    if launch_file == 'replay.launch.py':
        arguments = {**arguments, 'bag': str(make_bag())}
    environment = stand_ins(launch_file, **arguments).environment(program)
    for variable in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        assert Path(environment[variable]).name == 'fastdds_large_messages.xml'


def test_zenoh_gets_shared_memory_unless_somebody_configured_it(monkeypatch):
    for name in ('RMW_IMPLEMENTATION', 'ZENOH_CONFIG_OVERRIDE', 'ZENOH_SESSION_CONFIG_URI'):
        monkeypatch.delenv(name, raising=False)
    assert 'ZENOH_CONFIG_OVERRIDE' not in large_message_environment()
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_zenoh_cpp')
    override = 'transport/shared_memory/enabled=true'
    assert large_message_environment()['ZENOH_CONFIG_OVERRIDE'] == override
    monkeypatch.setenv('ZENOH_SESSION_CONFIG_URI', '/etc/zenoh.json5')
    assert 'ZENOH_CONFIG_OVERRIDE' not in large_message_environment()


def test_simulation_ends_with_its_simulator(stand_ins):
    launch = stand_ins('sim.launch.py')
    launch.started('reconstruction_node')
    launch.started('simulator_node')
    launch.kill('simulator_node')
    assert 'The simulator has ended, and so does the launch' in launch.wait()


def test_a_simulated_drive_can_be_recorded_with_its_truth(stand_ins, tmp_path):
    bag = tmp_path / 'drive'
    launch = stand_ins('sim.launch.py', record=str(bag))
    [(_, parameters)] = launch.started('recorder_node')
    assert parameters['bag'] == str(bag)
    assert {'left/image_rect', 'ground_truth/depth', 'ground_truth/pose'} <= {
        *parameters['topics']
    }


@pytest.mark.parametrize(
    'faults, arguments, rectified',
    [
        ('distortion: [-0.2, 0.05, 0.001, 0, 0]', {}, True),
        ('distortion: [-0.2, 0.05, 0.001, 0, 0]', {'rectify': 'false'}, False),
        ('exposure_s: 0.01', {}, None),
    ],
)
def test_images_of_simulated_cameras_that_distort_are_rectified(
    stand_ins, tmp_path, faults, arguments, rectified
):
    (tmp_path / 'faults.yaml').write_text(faults)
    launch = stand_ins('sim.launch.py', faults=str(tmp_path / 'faults.yaml'), **arguments)
    [(_, parameters)] = launch.started('reconstruction_node')
    assert parameters.get('rectify') == rectified


def test_simulator_has_its_own_argument_for_every_parameter(shown_arguments):
    names = {item.name for item in dataclasses.fields(SimulatorParameters)}
    assert names & PARAMETERS == {'baseline', 'camera_pitch'}
    own = {f'sim_{name}' if name in PARAMETERS else name for name in names}
    assert own <= set(shown_arguments['sim.launch.py'])
    assert 'Default of the node: 0.3' in shown_arguments['sim.launch.py']['sim_baseline']


def test_rig_of_the_simulator_is_not_the_override_of_the_reconstruction(stand_ins):
    arguments = {'sim_baseline': '0.25', 'sim_camera_pitch': '-12', 'camera_pitch': '-11.5'}
    launch = stand_ins('sim.launch.py', **arguments, preset='mare')
    [(_, simulator)] = launch.started('simulator_node')
    assert simulator == {'baseline': 0.25, 'camera_pitch': -12.0, 'preset': 'mare'}
    [(_, reconstruction)] = launch.started('reconstruction_node')
    assert reconstruction['camera_pitch'] == -11.5 and 'baseline' not in reconstruction


# Map of the ground


def test_the_map_is_made_where_it_is_asked_for(stand_ins):
    launch = stand_ins(
        'rover.launch.py',
        terrain='true',
        terrain_pose='/wheel_odom',
        terrain_length='30.0',
        hazard_clearance='0.25',
        max_range='15.0',
        right_info='/cam/right_info',
        rig=str(ROOT / 'config' / 'rig.yaml'),
        enclave='/moon',
    )
    [(words, parameters)] = launch.started('terrain_node')
    assert {'odom:=/wheel_odom', 'right/camera_info:=/cam/right_info'} <= set(words)
    assert words[words.index('--enclave') + 1] == '/moon/terrain_node'
    assert parameters == {
        'use_sim_time': False,
        'rig': str(ROOT / 'config' / 'rig.yaml'),
        'length': 30.0,
        'hazard_clearance': 0.25,
    }
    [(_, reconstruction)] = launch.started('reconstruction_node')
    assert reconstruction['hazard_clearance'] == 0.25 and 'length' not in reconstruction


def test_both_nodes_and_the_frames_have_what_the_parameters_file_says(stand_ins, tmp_path):
    rig = ROOT / 'config' / 'rig.yaml'
    (tmp_path / 'params.yaml').write_text(
        '/**: {ros__parameters: {use_sim_time: true}}\n'
        f'terrain_node: {{ros__parameters: {{rig: {rig}}}}}\n'
    )
    # The launch has this folder for its home.
    launch = stand_ins(
        'rover.launch.py', terrain='true', params_file='~/params.yaml', rig=str(rig)
    )
    for node in ('reconstruction_node', 'terrain_node', 'static_transform_publisher'):
        for _, parameters in launch.started(node):
            assert parameters['use_sim_time'] is True, node
    launch = stand_ins('rover.launch.py', terrain='true', params_file='~/params.yaml')
    [(_, parameters)] = launch.started('terrain_node')
    assert parameters['rig'] == str(rig)


def test_the_map_is_not_made_of_clouds_in_another_frame(stand_ins):
    launch = stand_ins('rover.launch.py', terrain='true', cloud_frame='base_link')
    assert 'terrain:=true maps clouds in the optical frame' in launch.wait()
    assert not launch.has_started()


def test_simulator_and_recording_know_their_poses(stand_ins, make_bag):
    sim = stand_ins('sim.launch.py', terrain='true')
    [(words, parameters)] = sim.started('terrain_node')
    assert 'pose:=ground_truth/pose' in words and parameters['pose_source'] == 'pose'
    assert parameters['use_sim_time'] is True
    replay = stand_ins(
        'replay.launch.py', bag=str(make_bag()), terrain='true', terrain_pose='/odometry'
    )
    [(words, parameters)] = replay.started('terrain_node')
    assert 'odom:=/odometry' in words and 'pose_source' not in parameters
    assert 'terrain_node' not in stand_ins('rover.launch.py').has_started()


# Rig, views, replay


def test_rig_file_becomes_static_transforms(stand_ins):
    rig = ROOT / 'config' / 'rig.yaml'
    launch = stand_ins('rover.launch.py', rig=str(rig))
    frames = read_rig_frames(rig)
    started = launch.started('static_transform_publisher', 2)
    by_child = {words[words.index('--child-frame-id') + 1]: words for words, _ in started}
    for frame in (frames.left, frames.right):
        words = by_child[frame.child]
        numbers = [float(words[words.index(f'--{name}') + 1]) for name in ('x', 'y', 'z', 'qw')]
        assert numbers == pytest.approx([*frame.xyz_m, frame.xyzw[3]], abs=1e-8)
        assert words[words.index('--frame-id') + 1] == 'base_link'


@pytest.mark.parametrize(
    'launch_file, arguments, view, frame, sim_time',
    [
        ('rover.launch.py', {}, 'optical.rviz', '', False),
        (
            'rover.launch.py',
            {'rig': str(ROOT / 'config' / 'rig.yaml')},
            'reconstruction.rviz',
            'base_link',
            False,
        ),
        ('rover.launch.py', {'fixed_frame': 'odom'}, 'reconstruction.rviz', 'odom', False),
        ('rover.launch.py', {'optical_frame': 'mast_eye'}, 'optical.rviz', 'mast_eye', False),
        ('zed.launch.py', {}, 'optical.rviz', 'zed_left_camera_frame_optical', False),
        ('sim.launch.py', {}, 'reconstruction.rviz', 'map', True),
    ],
)
def test_views_start_with_the_frame_that_is_known(
    stand_ins, launch_file, arguments, view, frame, sim_time
):
    launch = stand_ins(launch_file, rviz='true', foxglove='true', namespace='moon', **arguments)
    [(words, parameters)] = launch.started('rviz2')
    assert Path(words[words.index('-d') + 1]).name == view
    assert Path(words[words.index('-d') + 1]).is_file()
    assert (words[words.index('-f') + 1] if '-f' in words else '') == frame
    assert '__ns:=/moon' in words and parameters['use_sim_time'] is sim_time
    [(node_words, _)] = launch.started('reconstruction_node')
    remappings = {word for word in node_words if word.startswith(('left/', 'right/'))}
    assert remappings and remappings <= set(words)
    [(_, parameters)] = launch.started('foxglove_bridge')
    assert parameters['port'] == 8765
    assert 'config/foxglove/reconstruction.json' in launch.output.read_text()


def test_replay_plays_a_bag_and_ends(launched, cameras, make_bag):
    cameras.listen('points2', 'frame_status')
    launch = launched(
        'replay.launch.py',
        namespace=cameras.node.get_namespace(),
        bag=str(make_bag(frames=4)),
        rate='0',
        flow_control='true',
        wait_for_subscribers='120.0',
        backend='sgbm',
    )
    cameras.spin_until(lambda: launch.process.poll() is not None)
    assert launch.end() == 0, launch.output.read_text()
    assert [s.status[0].message for s in cameras.received['frame_status']] == ['published'] * 4
    assert '4 frames' in launch.output.read_text()


@pytest.mark.parametrize('told', ['', 'false'])
def test_replay_of_raw_images_rectifies_unless_told_not_to(stand_ins, tmp_path, told):
    from lunar_stereo_recon.bags.writer import BagWriter, make_message
    from lunar_stereo_recon.datatypes import StereoCalibration
    from lunar_stereo_recon.result_messages import camera_info_message, image_message

    rig = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, 96, 64)
    with BagWriter(tmp_path / 'raw') as writer:
        for side in ('left', 'right'):
            info = camera_info_message(make_message, rig, 1, 'left', right=side == 'right')
            info.d[:] = -0.2
            writer.write(f'/rig/{side}/camera_info', info, 1)
            image = image_message(make_message, np.zeros((64, 96), np.uint8), 'mono8', 1, 'left')
            writer.write(f'/rig/{side}/image_raw', image, 1)
    arguments = {'rectify': told} if told else {}
    launch = stand_ins('replay.launch.py', bag=str(tmp_path / 'raw'), **arguments)
    [(words, parameters)] = launch.started('reconstruction_node')
    name = 'image_rect' if told else 'image_raw'
    assert f'left/{name}:=/rig/left/image_raw' in words
    assert parameters['rectify'] is (not told)
    # Said, so the node need not guess.
    assert parameters.get('detect_raw', True) is (not told)
    assert ('has raw images' in launch.output.read_text()) is (not told)


def test_replay_prefers_rosbag2_and_leaves_out_recorded_results(stand_ins, make_bag):
    bag = make_bag()
    launch = stand_ins(
        'replay.launch.py',
        bag=str(bag),
        rate='0.5',
        loop='true',
        start_offset='0.1',
        delay='2.5',
        rviz='true',
    )
    [(words, _)] = launch.started('ros2')
    assert words[:4] == ['bag', 'play', str(bag), '--clock']
    options = dict(zip(words[3:-1], words[4:], strict=True))
    assert options['--rate'] == '0.5' and options['--start-offset'] == '0.1'
    assert options['--delay'] == '2.5'
    assert '--loop' in words and '--topics' not in words
    [(words, parameters)] = launch.started('reconstruction_node')
    assert 'left/image_rect:=/rig/left/image_rect' in words
    assert 'right/camera_info:=/rig/right/camera_info' in words
    assert parameters['use_sim_time'] is True
    [(words, _)] = launch.started('rviz2')
    assert words[words.index('-f') + 1] == 'left_camera_optical_frame'


def test_replay_leaves_out_results_that_were_recorded(stand_ins, make_bag):
    bag = make_bag(result_topics=('/moon/confidence', '/moon/frame_status'))
    launch = stand_ins('replay.launch.py', bag=str(bag), namespace='/moon')
    [(words, _)] = launch.started('ros2')
    played = words[words.index('--topics') + 1 :]
    assert '/rig/left/image_rect' in played and '/tf' in played
    assert not {'/moon/confidence', '/moon/frame_status'} & set(played)


def test_replay_of_what_is_no_bag_ends_with_the_reason(stand_ins, tmp_path):
    launch = stand_ins('replay.launch.py', bag=str(tmp_path / 'nothing'))
    assert 'no such bag' in launch.wait()


def test_points_arrive_from_every_launch_file(install_environment, launch_system, tmp_path):
    """Runs the launch_testing file beside this one, as `launch_test` does."""
    file = Path(__file__).with_name('launch_test_points_arrive.py')
    done = subprocess.run(
        [sys.executable, '-m', 'launch_testing.launch_test', str(file)],
        env={**os.environ, **install_environment, 'TEST_TMPDIR': str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Presets


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_preset_is_complete(path):
    preset = read_preset(path)
    topics = dict(preset.remappings(rectify=False))
    left, right = (
        topics[f'{side}/image_rect'].replace(name, '')
        for side, name in (('left', 'infra1'), ('right', 'infra2'))
    )
    assert left.replace('left', 'right') == right
    assert all(topic.startswith('/') for topic in topics.values())
    urls = [preset.parameters.get(f'{side}_camera_info_url') for side in ('left', 'right')]
    assert all(urls) or {'left/camera_info', 'right/camera_info'} <= set(topics)
    start = 'package://lunar_stereo_recon/'
    if all(urls):
        assert all(url.startswith(start) for url in urls)
        load_camera_infos([ROOT / url.removeprefix(start) for url in urls])


def test_calibration_of_lunarsim_is_that_of_its_example():
    folder = ROOT / 'config' / 'presets' / 'calibration'
    left, right = load_camera_infos(
        [folder / f'lunarsim_{side}.yaml' for side in ('left', 'right')]
    )
    assert (left.width, left.height) == (right.width, right.height) == (1280, 720)
    assert left.p[3] == 0.0
    assert -right.p[3] / right.p[0] == pytest.approx(0.12, abs=1e-6)
    assert left.p[:3] == right.p[:3] == left.k[:3]


def test_topics_of_a_preset_follow_its_namespace():
    images = {'left_image': 'a', 'right_image': '/b', 'right_raw': '/r'}
    preset = CameraPreset('/mast/', **images, left_info='', right_info='c')
    assert dict(preset.remappings(rectify=False)) == {
        'left/image_rect': '/mast/a',
        'left/image_rect/compressed': '/mast/a/compressed',
        'right/image_rect': '/b',
        'right/image_rect/compressed': '/b/compressed',
        'right/camera_info': '/mast/c',
    }
    # The node publishes left/image_rect itself.
    assert dict(preset.remappings(rectify=True)) == {
        'left/image_raw': '/mast/a',
        'left/image_raw/compressed': '/mast/a/compressed',
        'right/image_raw': '/r',
        'right/image_raw/compressed': '/r/compressed',
        'right/camera_info': '/mast/c',
    }


def fenced(page: str, first_words: str) -> str:
    """Return the YAML of a page that begins with these words."""
    text = (ROOT / 'docs' / 'ros' / page).read_text()
    blocks = re.findall(r'```yaml\n(.*?)```', text, re.DOTALL)
    return next(block for block in blocks if block.lstrip().startswith(first_words))


def test_preset_and_rig_of_the_pages_are_such(tmp_path):
    preset, rig = tmp_path / 'mine.yaml', tmp_path / 'rig.yaml'
    preset.write_text(fenced('launch.md', '# mine.yaml'))
    rig.write_text(fenced('rover.md', 'base_frame:'))
    assert read_preset(preset).parameters == {'approximate_sync': True, 'baseline': 0.4}
    assert read_rig_frames(rig) == read_rig_frames(ROOT / 'config' / 'rig.yaml')


def test_costmaps_of_the_page_listen_to_the_node(published_topics):
    local = yaml.safe_load(fenced('rover.md', 'local_costmap'))['local_costmap']['local_costmap']
    hazard = local['ros__parameters']['hazard_layer']
    cloud = yaml.safe_load(fenced('rover.md', 'plugins: [voxel'))['voxel_layer']['stereo']
    assert published_topics[hazard['map_topic'].lstrip('/')] == 'nav_msgs/msg/OccupancyGrid'
    assert published_topics[cloud['topic'].lstrip('/')] == 'sensor_msgs/msg/PointCloud2'


@pytest.mark.parametrize(
    'text, reason',
    [
        ('left_imag: /a', "unknown entry 'left_imag'"),
        ('left_image: 3', 'left_image is 3; a str is needed'),
        ('use_sim_time: 1', 'use_sim_time is 1; a bool is needed'),
        ('parameters: {rate: 3}', 'no parameter rate'),
        ('- left', 'a mapping is needed'),
        ('a: [', 'is not YAML'),
    ],
)
def test_unusable_preset_is_refused_with_the_reason(tmp_path, text, reason):
    path = tmp_path / 'mine.yaml'
    path.write_text(text)
    with pytest.raises(InputError, match=reason) as error:
        read_preset(path)
    assert 'mine.yaml' in str(error.value)


# Views


@pytest.fixture(scope='module')
def published_topics():
    """Return type by name of what the node takes and gives, seen from its namespace."""
    from lunar_stereo_recon.ros.result_outputs import OUTPUT_TOPICS

    outputs = {name: kind for name, (kind, _) in OUTPUT_TOPICS.items()}
    inputs = dict.fromkeys(('left/image_rect', 'right/image_rect'), 'sensor_msgs/msg/Image')
    infos = dict.fromkeys(('left/camera_info', 'right/camera_info'), 'sensor_msgs/msg/CameraInfo')
    array = 'diagnostic_msgs/msg/DiagnosticArray'
    return {**outputs, **inputs, **infos, 'frame_status': array, 'diagnostics': array}


@pytest.mark.parametrize('name, up', [('reconstruction', 'Z'), ('optical', 'Y')])
def test_rviz_view_shows_topics_of_the_node(name, up, published_topics):
    view = yaml.safe_load((ROOT / 'config' / 'rviz' / f'{name}.rviz').read_text())
    displays = view['Visualization Manager']['Displays']
    shown = {display['Name']: display for display in displays if 'Topic' in display}
    types = {
        'PointCloud2': 'sensor_msgs/msg/PointCloud2',
        'Image': 'sensor_msgs/msg/Image',
        'Map': 'nav_msgs/msg/OccupancyGrid',
    }
    for display in shown.values():
        kind = types[display['Class'].removeprefix('rviz_default_plugins/')]
        assert published_topics[display['Topic']['Value']] == kind
    assert shown['Cloud by height']['Axis'] == up
    # The node keeps the newest grid for late subscribers.
    assert shown['Hazard grid']['Topic']['Durability Policy'] == 'Transient Local'
    assert shown['Cloud by confidence']['Channel Name'] == 'confidence'
    assert {'left/image_rect', 'confidence/image_mono8', 'depth/image', 'hazard'} <= {
        display['Topic']['Value'] for display in shown.values()
    }
    assert 'rviz_default_plugins/TF' in {display['Class'] for display in displays}


def test_rviz_views_show_the_same():
    views = [
        yaml.safe_load((ROOT / 'config' / 'rviz' / f'{name}.rviz').read_text())
        for name in ('reconstruction', 'optical')
    ]
    for view in views:
        manager = view['Visualization Manager']
        del manager['Global Options']['Fixed Frame'], manager['Views']
        for display in manager['Displays']:
            for frame_dependent in ('Axis', 'Plane'):
                display.pop(frame_dependent, None)
    assert views[0] == views[1]


def test_foxglove_layout_shows_topics_of_the_node(published_topics):
    layout = json.loads((ROOT / 'config' / 'foxglove' / 'reconstruction.json').read_text())
    panels = layout['configById']
    text = json.dumps(layout)
    topics = set(re.findall(r'"/([a-z0-9_/]+)', text))
    assert topics <= set(published_topics) and {'points2', 'hazard', 'diagnostics'} <= topics

    def placed(node):
        return [node] if isinstance(node, str) else placed(node['first']) + placed(node['second'])

    assert sorted(placed(layout['layout'])) == sorted(panels)
    clouds = [panel['topics']['/points2'] for name, panel in panels.items() if '3D' in name]
    assert {cloud['colorField'] for cloud in clouds} == {'y', 'confidence'}
