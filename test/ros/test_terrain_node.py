"""The terrain node: its map over clouds and poses, what clears it, what it misses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

import rclpy  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import (  # noqa: E402
    DurabilityPolicy,
    qos_check_compatible,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
)
from std_srvs.srv import Trigger  # noqa: E402

from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.geometry.camera import points_from_depth  # noqa: E402
from lunar_stereo_recon.geometry.rotation import (  # noqa: E402
    BODY_FROM_OPTICAL,
    quaternion_from_rotation,
    rotation_from_rpy,
)
from lunar_stereo_recon.result_messages import (  # noqa: E402
    camera_info_message,
    header,
    moved_points,
    point_cloud_message,
)
from lunar_stereo_recon.ros import result_outputs, terrain_node  # noqa: E402
from lunar_stereo_recon.ros.parameters import TerrainParameters  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class  # noqa: E402
from lunar_stereo_recon.ros.terrain_node import TerrainNode  # noqa: E402
from lunar_stereo_recon.terrain_messages import points_of_cloud  # noqa: E402

CAMERA = StereoCalibration(80.0, 80.0, 63.5, 47.5, 63.5, 0.3, 128, 96)
FRAME = 'left_camera_optical_frame'
START_NS, STEP_NS = 1_800_000_000 * 10**9, 500_000_000
PITCH = rotation_from_rpy(0.0, math.radians(30), 0.0)
MOUNTING = PITCH @ BODY_FROM_OPTICAL
HEIGHT_M = 1.4
GROUND_M = 0.25
SMALL = {'length': 8.0, 'cell': 0.1, 'range': 6.0}
RIG = """
base_frame: base_link
left_optical_frame: left_camera_optical_frame
right_optical_frame: right_camera_optical_frame
position: [0.0, 0.0, 1.4]
rotation_deg: [0.0, 30.0, 0.0]
baseline: 0.3
"""


def reconstruction(number: int) -> Reconstruction:
    """Return level ground 1.4 m below a camera that looks 30 degrees down."""
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width].astype(np.float32)
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u)])
    down = np.tensordot(MOUNTING[2], rays, axes=1)
    depth = np.where(down < -0.05, -HEIGHT_M / down, np.nan).astype(np.float32)
    grey = np.zeros((*depth.shape, 3), np.uint8)
    return Reconstruction(
        depth, depth, np.full_like(depth, 0.9), points_from_depth(depth, CAMERA), grey, CAMERA,
        START_NS + number * STEP_NS, FRAME,
    )  # fmt: skip


def cloud(number: int):
    return point_cloud_message(make_message, reconstruction(number))


def pose_of(position, rotation):
    x, y, z, w = quaternion_from_rotation(rotation).tolist()
    px, py, pz = map(float, position)
    return make_message(
        'geometry_msgs/msg/Pose',
        position=make_message('geometry_msgs/msg/Point', x=px, y=py, z=pz),
        orientation=make_message('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w),
    )


def odometry(number: float, x_m: float, frame: str = 'odom', child: str = 'base_link'):
    """Return the pose of a rover on ground that is 0.25 m high."""
    return make_message(
        'nav_msgs/msg/Odometry',
        header=header(make_message, START_NS + round(number * STEP_NS), frame),
        child_frame_id=child,
        pose=make_message(
            'geometry_msgs/msg/PoseWithCovariance', pose=pose_of((x_m, 0, GROUND_M), np.eye(3))
        ),
    )


def camera_pose(number: float, x_m: float):
    return make_message(
        'geometry_msgs/msg/PoseStamped',
        header=header(make_message, START_NS + round(number * STEP_NS), 'map'),
        pose=pose_of((x_m, 0, GROUND_M + HEIGHT_M), MOUNTING),
    )


@pytest.fixture
def made(tmp_path):
    """Return a function that makes an active node in this process; nothing spins it."""
    context = rclpy.Context()
    rclpy.init(context=context)
    nodes = []
    rig = tmp_path / 'rig.yaml'
    rig.write_text(RIG)

    def make(**parameters):
        values = {'rig': str(rig), 'focal_baseline': 24.0, 'publish_rate': 0.0} | SMALL
        values |= parameters
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = TerrainNode(context=context, parameter_overrides=overrides)
        nodes.append(node)
        node.trigger_configure()
        node.trigger_activate()
        return node

    yield make
    for node in nodes:
        node.trigger_shutdown()
        node.destroy_node()
    context.try_shutdown()


def drive(node, numbers, speed_m=0.2):
    for number in numbers:
        node._on_cloud(cloud(number))
        node._poses._on_odometry(odometry(number - 0.5, speed_m * (number - 0.5)))
        node._poses._on_odometry(odometry(number + 0.5, speed_m * (number + 0.5)))


def test_clouds_become_a_map_of_the_ground_by_interpolated_poses(made):
    node = made()
    drive(node, range(4))
    assert node._counts['mapped'] == 4 and node._frame_id == 'odom'
    layers = node._map.layers()
    known = np.isfinite(layers.height)
    assert known.sum() > 500
    assert layers.height[known] == pytest.approx(GROUND_M, abs=0.01)
    assert (layers.cost[known & np.isfinite(layers.slope)] <= 5).all()
    middle = layers.x_m + 0.5 * layers.height.shape[1] * layers.cell_m
    assert middle == pytest.approx(0.2 * 3, abs=0.11)


def test_the_pose_of_the_camera_itself_needs_no_rig(made):
    node = made(pose_source='pose', rig='')
    for number in range(2):
        node._on_cloud(cloud(number))
        node._poses._on_pose_stamped(camera_pose(number, 0.1 * number))
    height = node._map.layers().height
    assert node._frame_id == 'map'
    assert height[np.isfinite(height)] == pytest.approx(GROUND_M, abs=0.01)


def test_a_cloud_waits_for_its_pose_and_no_longer_than_it_may(made, monkeypatch):
    node = made()
    node._on_cloud(cloud(0))
    assert len(node._waiting) == 1 and not node._counts
    now = [0.0]
    monkeypatch.setattr('time.monotonic', lambda: now[0])
    node._waiting.clear()
    node._on_cloud(cloud(1))
    now[0] = 0.4
    node._work_off()
    assert len(node._waiting) == 1
    now[0] = 0.6
    node._work_off()
    assert not node._waiting and node._counts['no pose'] == 1
    assert node._silence().startswith('nobody publishes /odom (pose_source: odometry)')


def test_jumps_of_pose_and_time_clear_the_map(made):
    node = made()
    drive(node, range(3))
    node._poses._on_odometry(odometry(3.0, 40.0))
    assert node._map.empty and node._counts['cleared'] == 1
    node._on_cloud(cloud(3))
    assert not node._map.empty
    node._on_cloud(cloud(0))
    assert node._map.empty and node._counts['cleared'] == 2
    drive(node, range(2))
    assert not node._map.empty
    node._poses._on_odometry(odometry(2.0, 0.4, frame='another'))
    assert node._map.empty and node._counts['cleared'] == 3


def test_the_map_of_a_bag_that_begins_again_is_that_of_its_second_round(made):
    node = made()
    drive(node, range(4))
    drive(node, range(4))
    assert node._counts['mapped'] == 8 and node._counts['cleared'] == 1
    height = node._map.layers().height
    assert height[np.isfinite(height)] == pytest.approx(GROUND_M, abs=0.01)


@pytest.mark.parametrize(
    'parameters, child, text',
    [
        ({'rig': ''}, 'base_link', "the pose of 'base_link', the cloud is in"),
        ({}, 'chassis', "the poses are of 'chassis'"),
        ({'focal_baseline': 0.0}, 'base_link', 'no P[3] below 0 on /right/camera_info'),
    ],
)
def test_what_is_missing_is_named(made, parameters, child, text):
    node = made(**parameters)
    for number in (0, 1):
        node._poses._on_odometry(odometry(number, 0.0, child=child))
    node._on_cloud(cloud(0))
    assert node._map.empty and text in node._reason


def test_a_cloud_in_another_frame_than_the_optical_one_is_refused(made):
    """Its z is no depth: neither range nor error would be right."""
    node = made()
    for number in (0, 1):
        node._poses._on_odometry(odometry(number, 0.0))
    moved = moved_points(reconstruction(0), MOUNTING, np.array([0.0, 0.0, 1.2]), 'base_link')
    node._on_cloud(point_cloud_message(make_message, moved))
    assert node._map.empty
    assert "100% of the points in 'base_link' are behind the camera" in node._reason


def test_poses_too_far_apart_and_poses_of_nothing_are_not_used(made):
    node = made()
    node._poses._on_odometry(odometry(0, 0.0))
    node._poses._on_odometry(odometry(6, 0.1))
    node._on_cloud(cloud(3))
    assert 'are 3.00 s apart; at most 1 s' in node._reason
    broken = odometry(7, math.nan)
    node._poses._on_odometry(broken)
    assert node._poses._track.newest_ns == START_NS + 6 * STEP_NS


def test_the_error_follows_from_the_right_camera_info(made):
    node = made(focal_baseline=0.0)
    node._on_right_info(camera_info_message(make_message, CAMERA, START_NS, FRAME, right=True))
    drive(node, range(2))
    assert node._counts['mapped'] == 2


@pytest.mark.parametrize('sigma_m, cells', [(0.02, 300), (0.0, 0), (1e3, 0)])
def test_the_sigma_of_the_cloud_counts_where_it_has_one(made, monkeypatch, sigma_m, cells):
    def with_sigma(message, max_depth_m):
        found = points_of_cloud(message, max_depth_m)
        return dataclasses.replace(found, sigma_m=np.full(len(found.points), sigma_m, np.float32))

    monkeypatch.setattr('lunar_stereo_recon.ros.terrain_node.points_of_cloud', with_sigma)
    node = made(focal_baseline=0.0)
    drive(node, range(2))
    assert (np.isfinite(node._map.layers().height).sum() > cells) == (cells > 0)
    assert node._counts['mapped'] == (2 if sigma_m else 0)
    if not sigma_m:
        assert node._counts['nothing to map'] == 2
        assert 'no point of the cloud up to 6 m has a confidence of 0.5' in node._silence()


def test_a_map_larger_than_memory_is_refused():
    with pytest.raises(InputError, match='take another size of the cells or of the map'):
        TerrainParameters(length=1000.0, cell=0.01).options  # noqa: B018


@pytest.mark.parametrize('published', [terrain_node.LATCHED, result_outputs.LATCHED])
@pytest.mark.parametrize(
    'durability', [DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE]
)
def test_a_static_layer_of_nav2_can_listen(published, durability):
    """As Nav2 subscribes: reliable, the last ten, with `map_subscribe_transient_local` or not."""
    asked = QoSProfile(
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=durability,
    )
    # Both leave the liveliness to the middleware, of which rclpy warns.
    assert qos_check_compatible(published, asked)[0] != QoSCompatibility.ERROR
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    assert qos_check_compatible(best_effort, asked)[0] == QoSCompatibility.ERROR


def test_over_dds_costs_cells_reset_and_the_log(processes, cameras, tmp_path):
    rig = tmp_path / 'rig.yaml'
    rig.write_text(RIG)
    processes.start('terrain_node', rig=str(rig), publish_rate=0.0, silence_warning=1.0, **SMALL)
    kinds = {
        'points2': 'sensor_msgs/msg/PointCloud2',
        'odom': 'nav_msgs/msg/Odometry',
        'right/camera_info': 'sensor_msgs/msg/CameraInfo',
    }
    cameras.spin_until(lambda: 'nobody publishes' in processes.log('terrain_node'))
    send = {
        topic: cameras.node.create_publisher(message_class(kind), topic, 10)
        for topic, kind in kinds.items()
    }
    received = {'terrain/cost': [], 'terrain/cells': []}
    for topic, kind in (
        ('terrain/cost', 'nav_msgs/msg/OccupancyGrid'),
        ('terrain/cells', 'sensor_msgs/msg/PointCloud2'),
    ):
        cameras.node.create_subscription(message_class(kind), topic, received[topic].append, 10)
    info = camera_info_message(make_message, CAMERA, START_NS, FRAME, right=True)
    sent = [0]

    def step():
        send['right/camera_info'].publish(info)
        send['odom'].publish(odometry(sent[0], 0.02 * sent[0]))
        send['points2'].publish(cloud(sent[0]))
        sent[0] += 1
        return all(received.values())

    cameras.spin_until(step)
    grid, cells = received['terrain/cost'][-1], points_of_cloud(received['terrain/cells'][-1])
    assert grid.header.frame_id == 'odom'
    assert (grid.info.width, grid.info.height) == (80, 80)
    costs = np.array(grid.data)
    assert (costs == -1).any() and ((costs >= 0) & (costs < 20)).sum() > 200
    assert cells.points[:, 2] == pytest.approx(GROUND_M, abs=0.02)
    client = cameras.node.create_client(Trigger, 'terrain_node/reset')
    assert client.wait_for_service(60.0)
    answer = client.call_async(Trigger.Request())
    cameras.spin_until(answer.done)
    assert answer.result().success
    assert 'the map is cleared: ~/reset was called' in processes.log('terrain_node')
