"""Poses of the left camera by all that a recording has: PoseStamped, Odometry, transforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import yaml

from lunar_stereo_recon.bags.poses import read_camera_poses
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter, make_message, pose_message, transform_message
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.moving_frames import MovingFrames, RecordedPoses
from lunar_stereo_recon.geometry.rotation import quaternion_from_rotation, rotation_from_rpy
from lunar_stereo_recon.result_messages import camera_info_message, header, image_message

START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 500_000_000
CALIBRATION = StereoCalibration(60.0, 60.0, 31.5, 23.5, 31.5, 0.2, 64, 48)
FRAMES = 5
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
MAST = np.array([0.3, 0.1, 1.2])
# The camera looks along x of the rover.
OPTICAL = np.array([-0.5, 0.5, -0.5, 0.5])


def rover_pose(stamp_ns):
    """Return position and quaternion of the rover: 0.2 m/s along x while it turns left."""
    seconds = (stamp_ns - START_NS) * 1e-9
    turn = quaternion_from_rotation(rotation_from_rpy(0.0, 0.0, 0.1 * seconds))
    return np.array([0.2 * seconds, 1.0, 0.0]), turn


def camera_pose(stamp_ns):
    position, turn = rover_pose(stamp_ns)
    return matrix(position, turn) @ matrix(MAST, OPTICAL)


def matrix(position, quaternion):
    track = RecordedPoses()
    track.add(0, position, quaternion)
    return track.at(0)


def odometry(stamp_ns, child='base_link'):
    position, turn = rover_pose(stamp_ns)
    pose = pose_message(position, turn, stamp_ns).pose
    zero = make_message('geometry_msgs/msg/Vector3', x=0.0, y=0.0, z=0.0)
    return make_message(
        'nav_msgs/msg/Odometry',
        header=header(make_message, stamp_ns, 'odom'),
        child_frame_id=child,
        pose=make_message(
            'geometry_msgs/msg/PoseWithCovariance', pose=pose, covariance=np.zeros(36)
        ),
        twist=make_message(
            'geometry_msgs/msg/TwistWithCovariance',
            twist=make_message('geometry_msgs/msg/Twist', linear=zero, angular=zero),
            covariance=np.zeros(36),
        ),
    )


@pytest.fixture
def drive(tmp_path):
    """Return a function that writes a drive with poses of the wanted kinds, between the frames."""

    def write(*kinds, static=True):
        path = tmp_path / 'drive'
        with BagWriter(path) as bag:
            if static:
                mount = transform_message(MAST, OPTICAL, START_NS, 'base_link', 'camera')
                bag.write('/tf_static', mount, START_NS)
            for step in range(-1, 4 * FRAMES):
                stamp = START_NS + step * PERIOD_NS // 4 + 10_000_000
                position, turn = rover_pose(stamp)
                if 'tf' in kinds:
                    moved = transform_message(position, turn, stamp, 'map', 'base_link')
                    bag.write('/tf', moved, stamp)
                if 'odometry' in kinds:
                    bag.write('/odom', odometry(stamp), stamp)
                if 'pose' in kinds:
                    bag.write('/rover/pose', pose_message(position, turn, stamp, 'site'), stamp)
            for index in range(FRAMES):
                stamp = START_NS + index * PERIOD_NS
                for side in ('left', 'right'):
                    image = image_message(
                        make_message, np.zeros((48, 64), np.uint8), 'mono8', stamp, 'camera'
                    )
                    info = camera_info_message(
                        make_message, CALIBRATION, stamp, 'camera', right=side == 'right'
                    )
                    bag.write(f'/rig/{side}/image_rect', image, stamp)
                    bag.write(f'/rig/{side}/camera_info', info, stamp)
        return path

    return write


def errors_m(reader, poses):
    frames = list(reader.frames())
    assert len(frames) == FRAMES
    return [np.abs(poses.of(f) - camera_pose(f.stamp_ns)).max() for f in frames]


@pytest.mark.parametrize(
    'kinds, arguments, source, frame_id',
    [
        (('tf',), (), 'tf', 'map'),
        (('odometry',), (), '/odom', 'odom'),
        (('tf', 'odometry'), (), '/odom', 'odom'),
        (('tf', 'odometry'), ('tf',), 'tf', 'map'),
        (('pose',), ('/rover/pose', '', 'base_link'), '/rover/pose', 'site'),
    ],
)
def test_every_source_gives_the_camera_between_its_stamps(
    drive, kinds, arguments, source, frame_id
):
    with StereoBagReader(drive(*kinds)) as reader:
        poses = read_camera_poses(reader, *arguments)
        assert (poses.source, poses.frame_id) == (source, frame_id)
        assert max(errors_m(reader, poses)) < 1e-4


def test_ground_truth_and_transforms_agree(make_bag):
    with StereoBagReader(make_bag()) as reader:
        truth, tf = read_camera_poses(reader), read_camera_poses(reader, 'tf')
        assert (truth.source, tf.source) == ('/ground_truth/pose', 'tf')
        for frame in reader.frames():
            np.testing.assert_allclose(truth.of(frame), frame.pose.matrix)
            np.testing.assert_allclose(tf.of(frame), frame.pose.matrix)


def test_no_poses_are_said_with_the_frame_of_the_camera(drive):
    with StereoBagReader(drive()) as reader:
        with pytest.raises(InputError, match=r"no poses .* that move 'camera'"):
            read_camera_poses(reader)
        with pytest.raises(InputError, match=r'pose topic /nowhere is not in the bag'):
            read_camera_poses(reader, '/nowhere')
        with pytest.raises(InputError, match=r'left/image_rect is sensor_msgs/msg/Image'):
            read_camera_poses(reader, '/rig/left/image_rect')


def test_odometry_that_nothing_connects_with_the_camera(drive):
    with StereoBagReader(drive('odometry', static=False)) as reader:
        with pytest.raises(InputError, match='no poses'):
            read_camera_poses(reader)
        poses = read_camera_poses(reader, '/odom')
        with pytest.raises(InputError, match="no transform from 'camera' to 'base_link'"):
            poses.of(next(reader.frames()))


def test_a_map_frame_that_is_not_above_the_camera(drive):
    with StereoBagReader(drive('tf')) as reader:
        with pytest.raises(InputError, match="in 'mars'"):
            read_camera_poses(reader, 'tf', 'mars')


def test_nothing_is_known_before_after_and_in_gaps():
    track = RecordedPoses()
    for stamp_ns in (0, 1_000_000_000, 5_000_000_000):
        track.add(stamp_ns, np.array([stamp_ns * 1e-9, 0.0, 0.0]), UPRIGHT)
    assert track.at(500_000_000)[0, 3] == pytest.approx(0.5)
    assert track.at(5_000_000_000)[0, 3] == pytest.approx(5.0)
    assert [track.at(t) for t in (-1, 3_000_000_000, 5_000_000_001)] == [None] * 3


def test_turns_go_the_short_way_at_constant_speed():
    frames = MovingFrames()
    for stamp_ns, angle in ((0, 0.0), (1_000_000_000, 0.8)):
        half = 0.5 * angle
        turn = np.array([0.0, 0.0, math.sin(half), math.cos(half)])
        frames.add('map', 'rover', stamp_ns, np.zeros(3), -turn if stamp_ns else turn)
    pose = frames.lookup('map', 'rover', 250_000_000)
    np.testing.assert_allclose(pose[:3, :3], rotation_from_rpy(0.0, 0.0, 0.2), atol=1e-12)


def test_what_is_no_rotation_is_refused_and_a_circle_ends():
    frames = MovingFrames()
    with pytest.raises(InputError, match='quaternion'):
        frames.add('map', 'rover', 0, np.zeros(3), np.zeros(4))
    frames.add('a', 'b', 0, np.zeros(3), UPRIGHT)
    frames.add('b', 'a', 0, np.zeros(3), UPRIGHT)
    assert frames.root('a') == 'b'


def test_the_reference_system_comes_from_the_metadata(drive):
    bag = drive('tf')
    document = yaml.safe_load((bag / 'metadata.yaml').read_text())
    document['rosbag2_bagfile_information']['custom_data'] = {'crs': 'IAU_2015:30135'}
    (bag / 'metadata.yaml').write_text(yaml.safe_dump(document))
    with StereoBagReader(bag) as reader:
        assert reader.custom_data == {'crs': 'IAU_2015:30135'}
