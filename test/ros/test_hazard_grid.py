"""Where the cells of the hazard grid are, and what tells gravity."""

import math

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.geometry.camera import points_from_depth  # noqa: E402
from lunar_stereo_recon.geometry.hazard import HazardOptions  # noqa: E402
from lunar_stereo_recon.geometry.rotation import (  # noqa: E402
    BODY_FROM_OPTICAL,
    quaternion_from_rotation,
    rotation_from_quaternion,
    rotation_from_rpy,
)
from lunar_stereo_recon.geometry.terrain import TerrainMap, TerrainOptions  # noqa: E402
from lunar_stereo_recon.result_messages import header  # noqa: E402
from lunar_stereo_recon.ros.hazard_grid import (  # noqa: E402
    Attitudes,
    frame_of_attitude,
    frame_of_transform,
)
from lunar_stereo_recon.ros.rclpy_messages import make_message  # noqa: E402

CALIBRATION = StereoCalibration(150.0, 150.0, 119.5, 89.5, 119.5, 0.2, 240, 180)
CAMERA_HEIGHT_M, PITCH_DEG = 1.2, -25.0
OPTIONS = HazardOptions(clearance_m=0.3, max_slope_deg=20.0)


def level_from_optical(roll_deg=0.0, pitch_deg=PITCH_DEG, yaw_deg=0.0):
    rpy = map(math.radians, (roll_deg, -pitch_deg, yaw_deg))
    return rotation_from_rpy(*rpy) @ BODY_FROM_OPTICAL


def view_of(rotation, rock=False):
    """Return the reconstruction of level ground with a cube of 0.5 m, 4 m ahead, 1 m to the left.

    Args:
        rotation: (3, 3), axes with z up from the optical frame.
        rock: Whether the cube is there.
    """
    rays = points_from_depth(np.ones((180, 240), np.float32), CALIBRATION) @ rotation.T
    with np.errstate(divide='ignore', invalid='ignore'):
        depth = np.where(rays[..., 2] < -0.02, -CAMERA_HEIGHT_M / rays[..., 2], np.nan)
        if rock:
            front = 4.0 / rays[..., 0]
            y, z = front * rays[..., 1], front * rays[..., 2] + CAMERA_HEIGHT_M
            hit = (rays[..., 0] > 0) & (np.abs(y - 1.0) < 0.25) & (z > 0) & (z < 0.5)
            depth[hit] = front[hit]
    depth = depth.astype(np.float32)
    confidence = np.full(depth.shape, 0.9, np.float32)
    return Reconstruction(
        24.0 / depth,
        depth,
        confidence,
        points_from_depth(depth, CALIBRATION),
        np.zeros((180, 240, 3), np.uint8),
        CALIBRATION,
        stamp_ns=7_000_000_000,
        frame_id='left_optical',
    )


def grid_of(message):
    return np.array(message.data, np.int8).reshape(message.info.height, message.info.width)


def cell_centers(message):
    """Return (rows, columns, 3), the cells' centres in the message's frame."""
    info = message.info
    rows, columns = np.mgrid[0 : info.height, 0 : info.width]
    local = np.stack(
        [(columns + 0.5) * info.resolution, (rows + 0.5) * info.resolution, 0.0 * rows], axis=-1
    )
    q, t = info.origin.orientation, info.origin.position
    rotation = rotation_from_quaternion(np.array([q.x, q.y, q.z, q.w]))
    return local @ rotation.T + [t.x, t.y, t.z]


def test_grid_of_a_known_pitch_lies_on_the_ground_in_the_optical_frame():
    frame = frame_of_attitude(np.eye(3), PITCH_DEG, 'left_optical', 8.0, 0.2)
    result = view_of(level_from_optical(), rock=True)
    message = frame.message(make_message, result, OPTIONS, 0.5)
    assert message.header.frame_id == 'left_optical'
    assert message.header.stamp.sec == 7
    assert (message.info.width, message.info.height) == (40, 80)
    assert message.info.resolution == pytest.approx(0.2)
    grid = grid_of(message)
    lethal, flat = grid == 100, grid == 0
    level = cell_centers(message) @ level_from_optical().T
    np.testing.assert_allclose(level[..., 2], -CAMERA_HEIGHT_M, atol=0.01)
    assert flat.sum() > 200
    assert lethal.any()
    assert np.abs(level[lethal][:, 0] - 4.0).max() < 0.5
    assert np.abs(level[lethal][:, 1] - 1.0).max() < 0.7
    behind = level[..., 0] < 0.5
    assert (grid[behind] == -1).all()


def test_ground_behind_a_rock_is_unknown():
    """The camera sees over the rock of 0.5 m again from 6.9 m on."""
    frame = frame_of_attitude(np.eye(3), PITCH_DEG, 'left_optical', 8.0, 0.2)
    message = frame.message(make_message, view_of(level_from_optical(), rock=True), OPTIONS, 0.5)
    x, y, _ = np.moveaxis(cell_centers(message) @ level_from_optical().T, -1, 0)
    hidden = (x > 4.6) & (x < 6.4) & (np.abs(y - x / 4) < 0.15)
    assert hidden.sum() > 5
    assert (grid_of(message)[hidden] == -1).all()
    terrain = TerrainMap(TerrainOptions(max_range_m=8.0, cell_m=0.2))
    result = view_of(level_from_optical(), rock=True)
    points = result.points.reshape(-1, 3)
    place = np.array([0.0, 0.0, CAMERA_HEIGHT_M])
    sure = np.full(len(points), 0.95, np.float32)
    terrain.add(points, 0.01 * sure, sure, level_from_optical(), place, 0.0)
    layers = terrain.layers()
    column, row = (
        np.floor((values[hidden] - corner) / 0.2).astype(int)
        for values, corner in ((x, layers.x_m), (y, layers.y_m))
    )
    assert (layers.cost[row, column] == -1).all()
    assert (layers.cost >= 0).sum() > 200


def test_doubtful_points_do_not_count():
    frame = frame_of_attitude(np.eye(3), PITCH_DEG, 'left_optical', 8.0, 0.2)
    result = view_of(level_from_optical(), rock=True)
    result.confidence[:] = 0.6
    assert (grid_of(frame.message(make_message, result, OPTIONS, 0.5)) == 100).any()
    assert (grid_of(frame.message(make_message, result, OPTIONS, 0.7)) == -1).all()


def test_attitude_is_that_of_the_imu():
    # The body is rolled and pitched on level ground, with some heading; the camera is mounted.
    body = rotation_from_rpy(math.radians(8), math.radians(5), math.radians(70))
    mounting = rotation_from_rpy(0.0, -math.radians(PITCH_DEG), 0.0)
    result = view_of(body @ mounting @ BODY_FROM_OPTICAL)
    x, y, z, w = quaternion_from_rotation(body)
    attitudes = Attitudes('/imu')
    with pytest.raises(InputError, match='no Imu message has arrived on /imu'):
        attitudes.level_from_body(0)
    for stamp, own in ((6_800_000_000, 1.0), (7_010_000_000, w), (7_200_000_000, 1.0)):
        attitudes.add(imu(stamp, (x, y, z, own)))
    rotation = attitudes.level_from_body(7_000_000_000)
    np.testing.assert_allclose(rotation, body, atol=1e-9)
    frame = frame_of_attitude(rotation, PITCH_DEG, 'left_optical', 8.0, 0.2)
    grid = grid_of(frame.message(make_message, result, OPTIONS, 0.5))
    assert (grid == 0).sum() > 200
    assert grid.max() < 5
    tilted = frame_of_attitude(np.eye(3), PITCH_DEG, 'left_optical', 8.0, 0.2)
    wrong = grid_of(tilted.message(make_message, result, OPTIONS, 0.5))
    assert np.median(wrong[wrong >= 0]) > 30  # it takes the level ground for a slope of 9 degrees
    with pytest.raises(InputError, match='nearest Imu on /imu is 2.8 s from the image'):
        attitudes.level_from_body(10_000_000_000)


def test_imu_without_orientation_is_refused():
    attitudes = Attitudes('/imu')
    message = imu(1_000_000_000, (0.0, 0.0, 0.0, 1.0))
    message.orientation_covariance[0] = -1.0
    attitudes.add(message)
    with pytest.raises(InputError, match='no orientation'):
        attitudes.level_from_body(1_000_000_000)
    attitudes.add(imu(2_000_000_000, (0.0, 0.0, 0.0, 0.0)))
    with pytest.raises(InputError, match='Imu on /imu: quaternion is'):
        attitudes.level_from_body(2_000_000_000)
    attitudes.clear()
    with pytest.raises(InputError, match='no Imu message has arrived on /imu'):
        attitudes.level_from_body(2_000_000_000)


def imu(stamp_ns, quaternion):
    orientation = make_message(
        'geometry_msgs/msg/Quaternion', **dict(zip('xyzw', map(float, quaternion), strict=True))
    )
    return make_message(
        'sensor_msgs/msg/Imu',
        header=header(make_message, stamp_ns, 'imu'),
        orientation=orientation,
    )


def test_cells_of_a_fixed_frame_keep_their_places():
    rotation = level_from_optical(yaw_deg=30.0)
    result = view_of(rotation)
    grids = []
    for x in (10.03, 10.17, 10.23):
        position = np.array([x, -5.0, 21.2])
        frame = frame_of_transform(rotation, position, 'odom', 8.0, 0.2)
        message = frame.message(make_message, result, OPTIONS, 0.5)
        assert message.header.frame_id == 'odom'
        origin = message.info.origin
        assert origin.orientation.w == 1.0
        assert origin.position.z == pytest.approx(20.0, abs=0.01)
        assert origin.position.x / 0.2 == pytest.approx(round(origin.position.x / 0.2))
        assert origin.position.x + 8.0 == pytest.approx(x, abs=0.2)
        grids.append((origin.position.x, grid_of(message)))
    assert grids[0][0] == grids[1][0] != grids[2][0]
    seen = cell_centers(message)[grids[2][1] >= 0] - position
    seen = seen[np.hypot(seen[:, 0], seen[:, 1]) < 7.0]  # round, where the grid is square
    heading = np.degrees(np.arctan2(seen[:, 1], seen[:, 0]))
    assert np.median(heading) == pytest.approx(30.0, abs=3.0)
    assert grids[2][1].max() == 0


def test_grid_far_from_the_origin_is_as_good():
    rotation = level_from_optical()
    result = view_of(rotation, rock=True)
    grids = []
    for position in ([0.1, 0.1, 1.2], [500_000.1, -4_000_000.1, 1501.2]):
        frame = frame_of_transform(rotation, np.array(position), 'map', 8.0, 0.2)
        message = frame.message(make_message, result, OPTIONS, 0.5)
        assert message.info.origin.position.z == pytest.approx(position[2] - 1.2, abs=0.01)
        grids.append(grid_of(message))
    lethal = [(grid == 100).sum() for grid in grids]
    assert lethal[0] > 3
    assert abs(lethal[1] - lethal[0]) <= 2
    assert all((grid == 0).sum() > 200 for grid in grids)
