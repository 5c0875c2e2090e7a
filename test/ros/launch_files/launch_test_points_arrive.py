"""launch_testing of the launch files: stereo images go in, a metric cloud comes out, all end well.

By hand, in a sourced workspace: `launch_test test/ros/launch_test_points_arrive.py`.
"""

from dataclasses import dataclass, field
import os
from pathlib import Path
import tempfile
import time
import unittest
import uuid

import cv2
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription, SetLaunchConfiguration
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare
import launch_testing
from launch_testing.actions import ReadyToTest
import launch_testing.asserts
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor

from lunar_stereo_recon.bags.writer import BagWriter
from lunar_stereo_recon.bags.writer import make_message as make_recorded_message
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.result_messages import camera_info_message, header, image_message
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class

PATIENCE_S = 240.0
PERIOD_S = 0.2
DISPARITY_PX = 8
FRAME_ID = 'the_left_optical_frame'
SMALL = StereoCalibration(80.0, 80.0, 63.5, 47.5, 63.5, 0.2, 128, 96)
# Channels of a grey image in an encoding.
CHANNELS = {'mono8': 1, 'rgb8': 3, 'bgra8': 4}


@dataclass(frozen=True)
class Case:
    """A launch file, what its source publishes, and what must come out.

    Attributes:
        launch_file: Name of the file.
        left, right: Topics of the images; '' where the launch file brings its own source.
        infos: Topics of the camera_infos, left and right; none where the source has none.
        encoding: Of the images; 'jpeg' is a CompressedImage.
        calibration: Of the images.
        arguments: Of the launch file.
        frame_id: Expected of the cloud; '' does not look.
    """

    launch_file: str
    left: str = ''
    right: str = ''
    infos: tuple[str, ...] = ()
    encoding: str = 'mono8'
    calibration: StereoCalibration = SMALL
    arguments: dict[str, str] = field(default_factory=dict)
    frame_id: str = FRAME_ID


LUNARSIM = StereoCalibration(
    504.761904762, 502.105263158, 640.0, 360.0, 640.0, 60.5714285714 / 504.761904762, 1280, 720
)
CASES = [
    Case(
        'rover.launch.py',
        'mast/port/image_rect',
        'mast/starboard/image_rect',
        ('mast/port/camera_info', 'mast/starboard/camera_info'),
        arguments={'left_namespace': 'mast/port', 'right_namespace': 'mast/starboard'},
    ),
    Case(
        'rover.launch.py',
        '/photos/a',
        '/photos/b',
        ('/photos/a_info', '/photos/b_info'),
        arguments={
            **{'left_image': '/photos/a', 'right_image': '/photos/b'},
            **{'left_info': '/photos/a_info', 'right_info': '/photos/b_info'},
        },
    ),
    Case(
        'rover.launch.py',
        'left/image_raw',
        'right/image_raw',
        ('left/camera_info', 'right/camera_info'),
        arguments={'rectify': 'true'},
    ),
    Case(
        'lunarsim.launch.py',
        '/lunarsim/camera_left/raw',
        '/lunarsim/camera_right/raw',
        encoding='rgb8',
        calibration=LUNARSIM,
    ),
    Case(
        'lunarsim.launch.py',
        '/lunarsim/camera_left/compressed',
        '/lunarsim/camera_right/compressed',
        encoding='jpeg',
        calibration=LUNARSIM,
        arguments={'input_transport': 'compressed'},
    ),
    Case(
        'omnilrs.launch.py',
        '/stereo/left/rgb',
        '/stereo/right/rgb',
        ('/stereo/left/camera_info', '/stereo/right/camera_info'),
        'rgb8',
    ),
    Case(
        'isaac_sim.launch.py',
        '/front_stereo_camera/left/image_rect_color',
        '/front_stereo_camera/right/image_rect_color',
        ('/front_stereo_camera/left/camera_info', '/front_stereo_camera/right/camera_info'),
        'rgb8',
    ),
    Case(
        'zed.launch.py',
        '/zed/zed_node/left/color/rect/image',
        '/zed/zed_node/right/color/rect/image',
        (
            '/zed/zed_node/left/color/rect/camera_info',
            '/zed/zed_node/right/color/rect/camera_info',
        ),
        'bgra8',
    ),
    Case(
        'zed.launch.py',
        '/mast/zed_node/left/image_rect_color',
        '/mast/zed_node/right/image_rect_color',
        ('/mast/zed_node/left/camera_info', '/mast/zed_node/right/camera_info'),
        'bgra8',
        arguments={'camera_preset': 'zed_5_0', 'camera_namespace': '/mast/zed_node'},
    ),
    Case('replay.launch.py', arguments={'player': 'replay_node', 'rate': '2.0', 'loop': 'true'}),
    Case(
        'replay.launch.py',
        calibration=LUNARSIM,
        arguments={'camera_preset': 'lunarsim', 'player': 'replay_node', 'loop': 'true'},
    ),
    Case(
        'sim.launch.py',
        arguments={'width': '160', 'height': '120', 'rate': '5.0'},
        frame_id='left_camera_optical_frame',
    ),
]


def wall(calibration: StereoCalibration) -> tuple[np.ndarray, np.ndarray]:
    """Return left and right (H, W) uint8 of a textured wall with one disparity everywhere."""
    size = (calibration.height, calibration.width + DISPARITY_PX)
    noise = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    texture = np.clip(128 + 90 * cv2.GaussianBlur(noise, (0, 0), 1.2), 0, 255).astype(np.uint8)
    return texture[:, : calibration.width], texture[:, DISPARITY_PX:]


class StereoSource:
    """Publishes pairs of a case and collects the clouds."""

    def __init__(self, case: Case, namespace: str) -> None:
        self._case = case
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node('source', namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self.clouds: list = []
        cloud = message_class('sensor_msgs/msg/PointCloud2')
        self._node.create_subscription(cloud, 'points2', self.clouds.append, 10)
        kind = 'CompressedImage' if case.encoding == 'jpeg' else 'Image'
        self._images = [
            self._node.create_publisher(message_class(f'sensor_msgs/msg/{kind}'), topic, 10)
            for topic in (case.left, case.right)
            if topic
        ]
        info = message_class('sensor_msgs/msg/CameraInfo')
        self._infos = [self._node.create_publisher(info, topic, 10) for topic in case.infos]
        self._views = wall(case.calibration)

    def __enter__(self) -> 'StereoSource':
        return self

    def __exit__(self, *error) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def first_cloud(self):
        """Publish pairs until a cloud comes, and return it; None when patience ends."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.clouds and time.monotonic() < deadline:
            stamp = time.time_ns()
            for side, publisher in enumerate(self._infos):
                publisher.publish(
                    camera_info_message(
                        make_message, self._case.calibration, stamp, FRAME_ID, right=side == 1
                    )
                )
            for publisher, view in zip(self._images, self._views, strict=False):
                publisher.publish(self._image(view, stamp))
            until = time.monotonic() + PERIOD_S
            while time.monotonic() < until:
                self._executor.spin_once(timeout_sec=0.05)
        return self.clouds[0] if self.clouds else None

    def _image(self, view: np.ndarray, stamp: int):
        encoding = self._case.encoding
        if encoding == 'jpeg':
            return make_message(
                'sensor_msgs/msg/CompressedImage',
                header=header(make_message, stamp, FRAME_ID),
                format='jpeg',
                data=cv2.imencode('.jpg', view)[1].reshape(-1),
            )
        channels = CHANNELS[encoding]
        values = view if channels == 1 else np.repeat(view[:, :, None], channels, axis=2)
        return image_message(make_message, values, encoding, stamp, FRAME_ID)


def recording(folder: Path, case: Case) -> str:
    """Write a bag of two seconds: of LunarSim, or with topics of its own and old results."""
    views = dict(zip(('left', 'right'), wall(case.calibration), strict=True))
    lunarsim = case.calibration is LUNARSIM
    with BagWriter(folder / 'drive') as writer:
        for stamp in range(10**18, 10**18 + 2 * 10**9, 2 * 10**8):
            for side, view in views.items():
                image = image_message(make_recorded_message, view, 'mono8', stamp, FRAME_ID)
                if lunarsim:
                    writer.write(f'/lunarsim/camera_{side}/raw', image, stamp)
                    continue
                info = camera_info_message(
                    make_recorded_message, SMALL, stamp, FRAME_ID, right=side == 'right'
                )
                writer.write(f'/front/{side}/camera_info', info, stamp)
                writer.write(f'/front/{side}/image_rect', image, stamp)
                writer.write('/confidence', image, stamp)
    return str(folder / 'drive')


@launch_testing.parametrize('case', CASES)
def generate_test_description(case: Case):
    """Launch a case's file in a namespace of its own, with the quickest matcher."""
    namespace = f'test_{uuid.uuid4().hex[:10]}'
    arguments = {'namespace': namespace, 'backend': 'sgbm', **case.arguments}
    if case.launch_file == 'replay.launch.py':
        folder = Path(tempfile.mkdtemp(dir=os.environ.get('TEST_TMPDIR')))
        arguments['bag'] = recording(folder, case)
    path = PathJoinSubstitution(
        [FindPackageShare('lunar_stereo_recon'), 'launch', case.launch_file]
    )
    launched = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(path), launch_arguments=list(arguments.items())
    )
    # A busy machine may take longer than launch's five seconds to end a simulator.
    patience = SetLaunchConfiguration('sigterm_timeout', str(PATIENCE_S))
    context = {'case': case, 'namespace': namespace}
    return LaunchDescription([patience, launched, ReadyToTest()]), context


class PointsArrive(unittest.TestCase):
    """While it runs."""

    def test_cloud_is_metric_and_in_the_frame_of_the_left_image(self, case, namespace):
        with StereoSource(case, f'/{namespace}') as source:
            cloud = source.first_cloud()
        self.assertIsNotNone(cloud, f'no cloud from {case.launch_file} in {PATIENCE_S} s')
        values = np.frombuffer(cloud.data, np.float32)
        depth = values.reshape(cloud.height * cloud.width, -1)[:, 2]
        self.assertGreater(np.isfinite(depth).mean(), 0.5)
        self.assertEqual(cloud.header.frame_id, case.frame_id)
        if case.launch_file != 'sim.launch.py':
            calibration = case.calibration
            expected = calibration.fx * calibration.baseline_m / DISPARITY_PX
            self.assertAlmostEqual(float(np.nanmedian(depth)), expected, delta=0.05 * expected)
        print(f'{case.launch_file} {case.arguments}: {cloud.width}x{cloud.height} points2')


@launch_testing.post_shutdown_test()
class EverythingEndsWell(unittest.TestCase):
    """After it was interrupted."""

    def test_exit_codes(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
