"""A rover on simulated lunar ground: stereo images, their truth, and a rover to drive.

Publishes rectified images (raw ones where `faults` names a distortion) and camera_info,
ground-truth depth and pose, odometry and /clock (and /tf where tf2_msgs is installed). The rover
follows cmd_vel; until somebody publishes that, it drives along arcs and turns where the fine
ground ends. Simulated time never runs
ahead of the wall's, and behind it where rendering takes longer: nodes with use_sim_time see a
steady world on any machine.

Exit status: 0 ended as asked; 1 a parameter cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
from dataclasses import replace
import math
import os
from pathlib import Path
import sys
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rclpy.node import Node
from rclpy.qos import QoSProfile

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.rotation import quaternion_from_rotation
from lunar_stereo_recon.result_messages import camera_info_message, header, image_message
from lunar_stereo_recon.ros.node_main import EXIT_DONE, run_node, run_spun
from lunar_stereo_recon.ros.node_parameters import declare_parameters
from lunar_stereo_recon.ros.parameters import SimulatorParameters
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class
from lunar_stereo_recon.simulation.camera import Sensor
from lunar_stereo_recon.simulation.camera_faults import CameraFaults, read_camera_faults
from lunar_stereo_recon.simulation.driver import Driver
from lunar_stereo_recon.simulation.presets import PRESETS
from lunar_stereo_recon.simulation.renderer import rendering_device
from lunar_stereo_recon.simulation.scene import Hapke, Lighting
from lunar_stereo_recon.simulation.sunlit import sunlit_ground
from lunar_stereo_recon.simulation.terrain import make_terrain
from lunar_stereo_recon.simulation.traverse import (
    CAMERA_FRAMES,
    ground_plane,
    MAP_FRAME,
    render_frame,
    Rig,
    RoverPose,
    SIDES,
    TraverseConfig,
    TraverseFrame,
)

BASE_FRAME = 'base_link'
# Making the ground takes up to half a minute; somebody who waits hears of it this often.
NEWS_PERIOD_S = 5.0
INTERRUPT_CHECK_S = 0.2
TOPICS = {
    'left/camera_info': 'sensor_msgs/msg/CameraInfo',
    'right/camera_info': 'sensor_msgs/msg/CameraInfo',
    'ground_truth/depth': 'sensor_msgs/msg/Image',
    'ground_truth/pose': 'geometry_msgs/msg/PoseStamped',
    'odom': 'nav_msgs/msg/Odometry',
    '/clock': 'rosgraph_msgs/msg/Clock',
    '/tf': 'tf2_msgs/msg/TFMessage',
}


def simulation_of(settings: SimulatorParameters) -> TraverseConfig:
    """Return the simulation that the parameters describe.

    Raises:
        InputError: The preset is unknown, the file of faults cannot be read, or another value
            cannot be used.
    """
    if settings.preset not in PRESETS:
        raise InputError(f"preset is '{settings.preset}'; known are {', '.join(sorted(PRESETS))}")
    preset = PRESETS[settings.preset]
    focal = settings.focal_length * settings.width
    cx, cy = (settings.width - 1) / 2, (settings.height - 1) / 2
    calibration = StereoCalibration(
        focal, focal, cx, cy, cx, settings.baseline, settings.width, settings.height
    )
    elevation = settings.sun_elevation or preset.sun_elevation_deg
    config = TraverseConfig(
        terrain=replace(preset.terrain_config(settings.seed), rock_form=settings.rocks),
        rig=Rig(calibration, settings.camera_height, settings.camera_pitch),
        lighting=Lighting(
            elevation, settings.sun_azimuth, ambient=0.004, bounce=0.004, hapke=Hapke()
        ),
        sensor=Sensor(gain=0.0, shot_noise_dn=1.0, read_noise_dn=0.35, psf_sigma_px=0.45),
        samples=settings.samples,
        faults=read_camera_faults(Path(settings.faults)) if settings.faults else CameraFaults(),
    )
    return config if settings.rover_shadow else replace(config, rover=())


class SimulatorNode(Node):
    """See the module. `run` renders; an executor spins the node in another thread."""

    def __init__(self, interrupted: threading.Event, **kwargs: Any) -> None:
        """Make the ground and the publishers.

        Args:
            interrupted: Set by somebody else to end.
            kwargs: Of rclpy's Node.

        Raises:
            InputError: A parameter cannot be used.
        """
        super().__init__('simulator_node', **kwargs)
        self._interrupted = interrupted
        self.settings = declare_parameters(self, SimulatorParameters)
        self._config = simulation_of(self.settings)
        self._image = 'image_raw' if self._config.faults.distortion else 'image_rect'
        device = rendering_device(self.settings.device, self.settings.rocks)
        self._outputs = self._make_publishers()
        ground = f'{self.settings.preset}, seed {self.settings.seed}'
        with self._told(f'making the ground ({ground})'):
            self._terrain = make_terrain(self._config.terrain).to(device)
        self._sunlit = None
        if self.settings.shadow_cache:
            with self._told('finding where the sun reaches the ground'):
                self._sunlit = sunlit_ground(self._terrain, self._config.lighting)
        start = RoverPose(0.0, *self._config.start_m, math.radians(self._config.heading_deg))
        self._driver = Driver(self._config, self._terrain, start)
        self._command = (self.settings.speed, math.radians(self.settings.turn_rate))
        self._commanded_s: float | None = None
        self.create_subscription(
            message_class('geometry_msgs/msg/Twist'),
            'cmd_vel',
            self._on_command,
            QoSProfile(depth=1),
        )

    def run(self) -> int:
        """Render and publish until interrupted or `frames` are done; return the exit status."""
        step_s, gain, number = 1.0 / self.settings.rate, 0.0, 0
        due = started = first_s = time.monotonic()
        while not self._interrupted.is_set():
            speed, turn = self._command
            moving = replace(self._config, speed_m_s=speed, turn_deg_s=math.degrees(turn))
            first = number == 0
            with self._told('rendering the first pair') if first else contextlib.nullcontext():
                frame, gain = render_frame(
                    moving, self._terrain, self._driver.pose, gain, number, self._sunlit
                )
            # The wall may be behind, but simulated time does not run ahead of it.
            self._interrupted.wait(max(due - time.monotonic(), 0.0))
            due = max(due, time.monotonic() - step_s) + step_s
            self._publish(frame)
            number += 1
            if number == 1:
                first_s = time.monotonic()
                self.get_logger().info('publishing; the rover follows cmd_vel')
            if number == self.settings.frames:
                break
            self._drive(step_s)
        now = time.monotonic()
        # The first pair also compiles what renders, which takes seconds on CUDA.
        rate = (number - 1) / (now - first_s) if number > 1 else number / (now - started)
        self.get_logger().info(f'{number} pairs in {now - started:.1f} s, {rate:.1f} Hz')
        return EXIT_DONE

    def _told(self, what: str) -> contextlib.AbstractContextManager[None]:
        return told(self.get_logger(), what, self._interrupted)

    def _make_publishers(self) -> dict[str, Any]:
        publishers = {}
        images = {f'{side}/{self._image}': 'sensor_msgs/msg/Image' for side in SIDES}
        for topic, type_name in {**images, **TOPICS}.items():
            try:
                kind = message_class(type_name)
            except ModuleNotFoundError:
                self.get_logger().info(f'{topic} is left out: {type_name} is not installed')
                continue
            publishers[topic] = self.create_publisher(kind, topic, QoSProfile(depth=10))
        return publishers

    def _on_command(self, message: Any) -> None:
        self._command = (message.linear.x, message.angular.z)
        self._commanded_s = self._driver.pose.time_s

    def _drive(self, seconds: float) -> None:
        """Move the rover; where the fine ground ends it turns by itself, or stays as commanded."""
        since = self._commanded_s
        if since is None:
            self._driver.roam(seconds, *self._command)
            return
        if self._driver.pose.time_s - since > self.settings.cmd_vel_timeout:
            self._command = (0.0, 0.0)
        self._driver.obey(seconds, *self._command)
        if self._driver.obstacle:
            self.get_logger().warning(
                f'the rover does not move; turn it: {self._driver.obstacle}',
                throttle_duration_sec=10.0,
            )

    def _publish(self, frame: TraverseFrame) -> None:
        """Publish a frame, its clock first and its images last."""
        stamp, calibration = frame.stamp_ns, self._config.rig.calibration
        faults = self._config.faults
        seconds, nanoseconds = divmod(stamp, 1_000_000_000)
        now = make_message('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
        messages = {'/clock': make_message('rosgraph_msgs/msg/Clock', clock=now)}
        messages |= self._pose_messages(frame)
        for side, name in zip(SIDES, CAMERA_FRAMES, strict=True):
            info = camera_info_message(
                make_message, calibration, stamp, name, right=side == 'right'
            )
            if faults.distortion:
                info.d = [float(value) for value in faults.distortion]
            messages[f'{side}/camera_info'] = info
        depth = np.nan_to_num(frame.depth, nan=0.0)
        messages['ground_truth/depth'] = image_message(
            make_message, depth, '32FC1', stamp, CAMERA_FRAMES[0]
        )
        for side, image, name in zip(SIDES, (frame.left, frame.right), CAMERA_FRAMES, strict=True):
            messages[f'{side}/{self._image}'] = image_message(
                make_message, image, faults.encoding, stamp, name
            )
        for topic, message in messages.items():
            if topic in self._outputs:
                self._outputs[topic].publish(message)

    def _pose_messages(self, frame: TraverseFrame) -> dict[str, Any]:
        """Return pose of the left camera, odometry of the rover, and both as transforms."""
        pose, stamp = self._driver.pose, frame.stamp_ns
        height, ahead, left = ground_plane(self._terrain, pose.x_m, pose.y_m, pose.heading_rad)
        x_axis = _unit(math.cos(pose.heading_rad), math.sin(pose.heading_rad), ahead)
        y_axis = _unit(-math.sin(pose.heading_rad), math.cos(pose.heading_rad), left)
        z_axis = _unit(*np.cross(x_axis, y_axis))
        rotation = np.column_stack([x_axis, np.cross(z_axis, x_axis), z_axis])
        position = np.array([pose.x_m, pose.y_m, height])
        found = header(make_message, stamp, MAP_FRAME)
        speed, turn = self._command
        messages = {
            'ground_truth/pose': make_message(
                'geometry_msgs/msg/PoseStamped',
                header=found,
                pose=_pose(frame.position_m, frame.rotation),
            ),
            'odom': make_message(
                'nav_msgs/msg/Odometry',
                header=found,
                child_frame_id=BASE_FRAME,
                pose=make_message(
                    'geometry_msgs/msg/PoseWithCovariance', pose=_pose(position, rotation)
                ),
                twist=make_message(
                    'geometry_msgs/msg/TwistWithCovariance',
                    twist=make_message(
                        'geometry_msgs/msg/Twist',
                        linear=_vector('Vector3', (speed, 0.0, 0.0)),
                        angular=_vector('Vector3', (0.0, 0.0, turn)),
                    ),
                ),
            ),
        }
        if '/tf' in self._outputs:
            to_camera = rotation.T @ (frame.position_m - position)
            messages['/tf'] = make_message(
                'tf2_msgs/msg/TFMessage',
                transforms=[
                    _transform(found, BASE_FRAME, position, rotation),
                    _transform(
                        header(make_message, stamp, BASE_FRAME),
                        CAMERA_FRAMES[0],
                        to_camera,
                        rotation.T @ frame.rotation,
                    ),
                ],
            )
        return messages


@contextlib.contextmanager
def told(logger: Any, what: str, interrupted: threading.Event) -> Iterator[None]:
    """Say in the log what is being done, that it still is, and how long it took.

    Where the node is interrupted meanwhile, the process ends at once: what is being made is of no
    use then, and it cannot be stopped otherwise.

    Args:
        logger: Logger of the node.
        what: 'making the ground'.
        interrupted: Set to end.
    """
    started, done = time.monotonic(), threading.Event()

    def elapsed() -> str:
        return f'{time.monotonic() - started:.0f} s'

    def watch() -> None:
        next_news = NEWS_PERIOD_S
        while not done.wait(INTERRUPT_CHECK_S):
            if interrupted.is_set():
                logger.info(f'interrupted while {what}')
                sys.stdout.flush()
                os._exit(EXIT_DONE)
            if time.monotonic() - started >= next_news:
                next_news += NEWS_PERIOD_S
                logger.info(f'still {what}, for {elapsed()}')

    logger.info(f'{what} ...')
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    logger.info(f'{what}: {elapsed()}')


def _unit(x: float, y: float, z: float) -> np.ndarray:
    vector = np.array([x, y, z])
    return vector / np.linalg.norm(vector)


def _vector(kind: str, values: ArrayLike) -> Any:
    x, y, z = np.asarray(values, np.float64).tolist()
    return make_message(f'geometry_msgs/msg/{kind}', x=x, y=y, z=z)


def _quaternion(rotation: np.ndarray) -> Any:
    x, y, z, w = quaternion_from_rotation(rotation).tolist()
    return make_message('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w)


def _pose(position: np.ndarray, rotation: np.ndarray) -> Any:
    return make_message(
        'geometry_msgs/msg/Pose',
        position=_vector('Point', position),
        orientation=_quaternion(rotation),
    )


def _transform(stamped: Any, child: str, position: np.ndarray, rotation: np.ndarray) -> Any:
    return make_message(
        'geometry_msgs/msg/TransformStamped',
        header=stamped,
        child_frame_id=child,
        transform=make_message(
            'geometry_msgs/msg/Transform',
            translation=_vector('Vector3', position),
            rotation=_quaternion(rotation),
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate until interrupted; return the exit status that the module lists."""
    return run_node('simulator_node', SimulatorNode, run_spun, argv)


if __name__ == '__main__':
    sys.exit(main())
