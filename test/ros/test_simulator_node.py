"""The built-in simulator as a process: what it publishes agrees with itself and obeys cmd_vel."""

from __future__ import annotations

from dataclasses import replace
import math
import random
import re
import signal

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
torch = pytest.importorskip('torch')
pytest.importorskip('numba')
pytestmark = [pytest.mark.ros, pytest.mark.slow]

from lunar_stereo_recon.bags.reader import StereoBagReader  # noqa: E402
from lunar_stereo_recon.cli import main  # noqa: E402
from lunar_stereo_recon.messages import stamp_ns  # noqa: E402
from lunar_stereo_recon.ros.parameters import SimulatorParameters  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class  # noqa: E402
from lunar_stereo_recon.ros.simulator_node import simulation_of  # noqa: E402
from lunar_stereo_recon.simulation import renderer  # noqa: E402
from lunar_stereo_recon.simulation.sunlit import sunlit_ground  # noqa: E402
from lunar_stereo_recon.simulation.terrain import make_terrain  # noqa: E402
from lunar_stereo_recon.simulation.traverse import render_frame, RoverPose  # noqa: E402

PATIENCE_S = 240.0
SMALL = {'width': 160, 'height': 120, 'preset': 'mare', 'seed': 3, 'shadow_cache': False}
TOPICS = {
    'left/image_rect': 'sensor_msgs/msg/Image',
    'right/image_rect': 'sensor_msgs/msg/Image',
    'left/camera_info': 'sensor_msgs/msg/CameraInfo',
    'right/camera_info': 'sensor_msgs/msg/CameraInfo',
    'ground_truth/depth': 'sensor_msgs/msg/Image',
    'ground_truth/pose': 'geometry_msgs/msg/PoseStamped',
    'odom': 'nav_msgs/msg/Odometry',
    '/clock': 'rosgraph_msgs/msg/Clock',
}


@pytest.fixture
def heard(cameras):
    """Return lists of the messages on each topic, filled while the test spins."""
    messages = {topic: [] for topic in TOPICS}
    for topic, kind in TOPICS.items():
        cameras.node.create_subscription(message_class(kind), topic, messages[topic].append, 100)
    return messages


def picture(message, kind=np.uint8):
    return np.frombuffer(message.data, kind).reshape(message.height, message.width)


def places(messages):
    return np.array([(m.pose.pose.position.x, m.pose.pose.position.y) for m in messages['odom']])


def test_pictures_truth_and_calibration_agree(processes, cameras, heard):
    # Four rays a pixel: at this size a single one takes other grains in the two views.
    simulator = processes.start('simulator_node', **SMALL, rate=5.0, speed=0.5, samples=4)
    cameras.spin_until(lambda: all(len(found) >= 3 for found in heard.values()), PATIENCE_S)
    stamps = {
        topic: [stamp_ns(message) for message in found]
        for topic, found in heard.items()
        if topic != '/clock'
    }
    common = sorted(set.intersection(*(set(found) for found in stamps.values())))
    assert len(common) >= 2
    assert common[1] - common[0] == pytest.approx(2e8, abs=1e3)
    clocks = {1_000_000_000 * m.clock.sec + m.clock.nanosec for m in heard['/clock']}
    assert set(common) <= clocks

    def at(topic):
        return heard[topic][stamps[topic].index(common[0])]

    left, right = (
        picture(at(f'{side}/image_rect')).astype(np.float32) for side in ('left', 'right')
    )
    info = at('right/camera_info')
    focal, baseline = info.p[0], -info.p[3] / info.p[0]
    assert (focal, baseline) == (pytest.approx(0.72 * 160), pytest.approx(0.3))
    depth = picture(at('ground_truth/depth'), np.float32)
    ground = (depth > 0) & (depth < 15)
    disparity = np.where(ground, focal * baseline / np.where(ground, depth, 1), 0)
    columns = np.arange(160, dtype=np.float32)[None] - disparity.astype(np.float32)
    rows = np.repeat(np.arange(120, dtype=np.float32)[:, None], 160, axis=1)
    warped = cv2.remap(right, columns, rows, cv2.INTER_LINEAR)
    seen = ground & (columns > 0)
    assert seen.mean() > 0.3
    # Moved by the true disparity the right view is the left one; by two pixels more it is not.
    wrong = cv2.remap(right, columns - 2, rows, cv2.INTER_LINEAR)
    alike, unlike = (np.corrcoef(left[seen], view[seen])[0, 1] for view in (warped, wrong))
    assert alike > 0.9, (alike, unlike)
    assert 1 - alike < 0.5 * (1 - unlike), (alike, unlike)
    # The built-in drive: half a metre a second.
    where = places(heard)
    assert np.linalg.norm(where[1] - where[0]) == pytest.approx(0.1, abs=0.01)
    simulator.send_signal(signal.SIGINT)
    assert simulator.wait(60) == 0


def test_raw_images_of_ground_with_mesh_rocks(processes, cameras, tmp_path):
    pytest.importorskip('embreex')
    faults = tmp_path / 'faults.yaml'
    faults.write_text('distortion: [-0.2, 0.05, 0.001, 0, 0]\nstored_bits: 12\n')
    messages = {topic: [] for topic in ('left/image_raw', 'left/camera_info')}
    for topic, found in messages.items():
        kind = TOPICS[topic.replace('raw', 'rect')]
        cameras.node.create_subscription(message_class(kind), topic, found.append, 100)
    options = {'rocks': 'mesh', 'rover_shadow': False}
    processes.start('simulator_node', **{**SMALL, **options}, faults=str(faults))
    cameras.spin_until(lambda: all(messages.values()), PATIENCE_S)
    image, info = messages['left/image_raw'][0], messages['left/camera_info'][0]
    assert image.encoding == 'mono16'
    assert 500 < picture(image, np.uint16).max() <= 4095
    np.testing.assert_allclose(info.d, [-0.2, 0.05, 0.001, 0, 0])


def test_simulator_that_is_interrupted_while_it_makes_the_ground_ends(processes, cameras):
    simulator = processes.start('simulator_node', preset='boulder_field', seed=4)
    cameras.spin_until(lambda: 'making the ground' in processes.log('simulator_node'), PATIENCE_S)
    simulator.send_signal(signal.SIGINT)
    assert simulator.wait(15) == 0
    assert 'interrupted while making the ground' in processes.log('simulator_node')


def test_cmd_vel_drives_turns_and_stops_without_news(processes, cameras, heard):
    publisher = cameras.node.create_publisher(
        message_class('geometry_msgs/msg/Twist'), 'cmd_vel', 10
    )
    processes.start('simulator_node', **SMALL, rate=5.0, speed=0.0, turn_rate=0.0)
    cameras.spin_until(lambda: len(heard['odom']) >= 2, PATIENCE_S)
    np.testing.assert_array_equal(*places(heard)[:2])
    command = make_message('geometry_msgs/msg/Twist')
    command.linear.x, command.angular.z = 0.4, 0.5

    def turned():
        publisher.publish(command)
        cameras.spin_for(0.1)
        return len(heard['odom']) and np.ptp(places(heard), axis=0).max() > 0.3

    cameras.spin_until(turned, PATIENCE_S)
    heading = heard['odom'][-1].pose.pose.orientation
    assert abs(2 * math.atan2(heading.z, heading.w)) > 0.1
    # Silence for longer than cmd_vel_timeout (a second of simulated time): it stands.
    count = len(heard['odom'])
    cameras.spin_until(lambda: len(heard['odom']) >= count + 10, PATIENCE_S)
    np.testing.assert_array_equal(places(heard)[-1], places(heard)[-2])


@pytest.mark.gpu
def test_cuda_gives_the_pictures_of_the_cpu():
    """From the node's parameters to its images."""
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    config = simulation_of(SimulatorParameters(width=160, height=120, sun_elevation=12.0, seed=3))
    ground = replace(config.terrain, cells=(512, 256, 128), cell_sizes_m=(0.02, 0.08, 0.64))
    config = replace(config, terrain=ground)

    def frame(device):
        terrain = make_terrain(ground).to(renderer.rendering_device(device, ground.rock_form))
        sunlit = sunlit_ground(terrain, config.lighting)
        return render_frame(config, terrain, RoverPose(0.0, -2.0, 0.5, 0.3), 0.0, 0, sunlit)[0]

    one, two = frame('cpu'), frame('cuda')
    np.testing.assert_array_equal(np.isnan(one.depth), np.isnan(two.depth))
    both = np.isfinite(one.depth)
    assert both.mean() > 0.5
    assert (np.abs(one.depth - two.depth) < 1e-4 * two.depth)[both].mean() > 0.999
    assert 0.02 < one.shadow[both].mean() < 0.9
    assert (one.shadow == two.shadow).mean() > 0.998
    for image, same in ((one.left, two.left), (one.right, two.right)):
        assert image.std() > 10
        # A rounded radiance may fall on either side of a step.
        assert (np.abs(image.astype(int) - same.astype(int)) <= 1).mean() > 0.99


@pytest.mark.gpu
def test_cuda_renders_fifteen_pairs_a_second(processes):
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    simulator = processes.start(
        'simulator_node', device='cuda', width=640, height=480, rate=100.0, frames=150
    )
    assert simulator.wait(PATIENCE_S) == 0
    [(count, rate)] = re.findall(
        r'(\d+) pairs in .* s, ([\d.]+) Hz', processes.log('simulator_node')
    )
    assert count == '150' and float(rate) >= 15.0


@pytest.mark.parametrize(
    ('parameters', 'text'),
    [
        ({'preset': 'venus'}, "preset is 'venus'; known are boulder_field"),
        ({'sun_elevation': -5.0}, 'sun elevation is -5 degrees'),
        ({'samples': 3}, 'samples'),
        ({'rocks': 'cubes'}, "rocks is 'cubes'; one of heightfield, mesh"),
        ({'rocks': 'mesh', 'device': 'cuda'}, 'on CPUs only, not on cuda'),
        ({'faults': '/nowhere.yaml'}, 'cannot read /nowhere.yaml'),
    ],
)
def test_what_cannot_be_simulated_is_refused(processes, parameters, text):
    simulator = processes.start('simulator_node', **{**SMALL, **parameters})
    assert simulator.wait(PATIENCE_S) == 1
    assert text in processes.log('simulator_node')


def test_command_simulates_and_ends_after_its_frames(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(random.randint(1, 101)))
    size = ['--size', '160x120', '--rate', '10', '--logs', str(tmp_path)]
    bag = tmp_path / 'drive'
    options = ['--frames', '3', '--reconstruct', '--record', str(bag)]
    assert main(['sim', *options, *size]) == 0
    said = capsys.readouterr().out
    assert 'simulator_node and recorder_node and reconstruction_node started' in said
    assert f'lunar-stereo evaluate {bag}' in said
    with StereoBagReader(bag) as reader:
        frames = list(reader.frames())
    assert len(frames) == 3
    assert all(frame.pose is not None and frame.depth() is not None for frame in frames)
    assert main(['sim', *options, *size]) == 2
    assert 'is there already; name a new folder' in capsys.readouterr().err
    told = ['making the ground (mare', 'rendering the first pair', 'publishing; the rover']
    assert [said.find(text) for text in told] == sorted(said.find(text) for text in told)
    assert all(text in said for text in told)
    assert '3 pairs in' in (tmp_path / 'simulator_node.log').read_text()


def test_a_drive_of_raw_images_is_rectified_and_recorded(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(random.randint(1, 101)))
    faults, bag = tmp_path / 'faults.yaml', tmp_path / 'drive'
    faults.write_text('distortion: [-0.2, 0.05, 0.0, 0.0, 0.0]\n')
    size = ['--size', '160x120', '--rate', '10', '--logs', str(tmp_path), '--frames', '3']
    options = ['--faults', str(faults), '--reconstruct', '--record', str(bag)]
    assert main(['sim', *options, *size]) == 0
    with StereoBagReader(bag) as reader:
        frames = list(reader.frames())
        assert reader.topics.left_image == '/left/image_raw'
    assert len(frames) == 3 and all(frame.depth() is not None for frame in frames)
    log = (tmp_path / 'reconstruction_node.log').read_text()
    assert 'listens to /left/image_raw and /right/image_raw' in log


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--preset', 'venus'], "no terrain preset 'venus'; there are boulder_field"),
        (['--device', 'tpu'], "--device is 'tpu'; one of cpu, cuda is needed"),
        (['--rocks', 'meshes'], "--rocks is 'meshes'; one of heightfield, mesh is needed"),
        (['--size', 'big'], "--size is 'big'"),
        (['--size', '32x480'], '--size is 32; 64 to 4096 px is needed'),
        (['--rate', '0'], '--rate is 0; 0.1 to 100 Hz is needed'),
        (['--seed', '-1'], '--seed is -1'),
        (['--faults', '/nowhere.yaml'], 'cannot read'),
    ],
)
def test_command_refuses_bad_arguments_before_any_process_starts(
    tmp_path, capsys, arguments, text
):
    logs = tmp_path / 'logs'
    assert main(['sim', '--logs', str(logs), *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not logs.exists()
