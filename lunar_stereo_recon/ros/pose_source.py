"""Where the camera was when a cloud was seen: from a pose topic, or from TF.

Both sources are asked with `camera_pose`, and are called where the node is spun.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import time
from typing import Any, Protocol

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data

from lunar_stereo_recon.errors import InputError, quoted
from lunar_stereo_recon.files.bounded import user_path
from lunar_stereo_recon.files.rigs import read_rig_frames
from lunar_stereo_recon.geometry.pose_track import Pose, pose_of_arrays, PoseTrack
from lunar_stereo_recon.messages import stamp_ns
from lunar_stereo_recon.pairing import RESTART_NS
from lunar_stereo_recon.ros.parameters import TerrainParameters
from lunar_stereo_recon.ros.rclpy_messages import message_class
from lunar_stereo_recon.ros.static_frames import StaticFrames
from lunar_stereo_recon.ros.transforms import TransformListener


@dataclass(frozen=True)
class CameraPose:
    """The camera in the map.

    Attributes:
        frame_id: Frame of the map.
        pose: Of the camera's optical frame in it.
    """

    frame_id: str
    pose: Pose


class PoseSource(Protocol):
    """Gives poses by time."""

    def camera_pose(self, frame_id: str, at_ns: int) -> CameraPose | None:
        """Return the pose of a frame at a time, None while it may still come.

        Raises:
            InputError: It will not come.
        """

    def missing(self, frame_id: str) -> str:
        """Return what has to come before there can be a pose, and for how long it has not."""

    def restart(self, at_ns: int) -> None:
        """Forget the poses of the time before: time went back to `at_ns`."""

    def close(self) -> None:
        """Unsubscribe."""


class TopicPoses:
    """Poses of an Odometry or a PoseStamped topic, interpolated."""

    def __init__(
        self,
        node: Node,
        parameters: TerrainParameters,
        on_pose: Callable[[], None],
        on_jump: Callable[[str], None],
    ) -> None:
        """Subscribe.

        Args:
            node: Owner.
            parameters: Which topic, and how its poses are understood.
            on_pose: Called after each pose.
            on_jump: Called with what happened where the poses do not go on from those before.

        Raises:
            InputError: The rig file cannot be used.
        """
        odometry = parameters.pose_source == 'odometry'
        self._node, self._parameters = node, parameters
        self._on_pose, self._on_jump = on_pose, on_jump
        self._track = PoseTrack(parameters.pose_gap)
        self._rig = read_rig_frames(user_path(parameters.rig)) if parameters.rig else None
        self._static = StaticFrames(node)
        self._frame_id = self._child = ''
        self._last: tuple[int, Pose] | None = None
        self._since_s = time.monotonic()
        kind = 'nav_msgs/msg/Odometry' if odometry else 'geometry_msgs/msg/PoseStamped'
        self._subscription = node.create_subscription(
            message_class(kind),
            'odom' if odometry else 'pose',
            self._on_odometry if odometry else self._on_pose_stamped,
            # Best effort listens to every publisher, reliable ones too.
            qos_profile_sensor_data,
        )
        self.topic = self._subscription.topic_name

    def camera_pose(self, frame_id: str, at_ns: int) -> CameraPose | None:
        """See `PoseSource`."""
        found = self._track.at(at_ns)
        if found is None:
            return None
        return CameraPose(self._frame_id, found.of(self._mounting(frame_id)))

    def missing(self, frame_id: str) -> str:
        """See `PoseSource`."""
        waited_s = time.monotonic() - self._since_s
        publishers = self._node.count_publishers(self.topic)
        if not publishers:
            return f'nobody publishes {self.topic} (pose_source: {self._parameters.pose_source})'
        return f'no pose on {self.topic} for {waited_s:.1f} s'

    def restart(self, at_ns: int) -> None:
        """See `PoseSource`; where the poses have begun again already, they stay."""
        if self._last is not None and self._last[0] > at_ns + RESTART_NS:
            self._track.clear()
            self._last = None

    def close(self) -> None:
        """See `PoseSource`."""
        self._node.destroy_subscription(self._subscription)
        self._static.close()

    def _mounting(self, frame_id: str) -> Pose:
        """Return the cloud's frame in the frame whose pose the topic gives.

        Raises:
            InputError: Nothing tells it, or not yet.
        """
        if self._child in ('', frame_id):
            return Pose(np.eye(3), np.zeros(3))
        if self._rig is not None:
            left = self._rig.left
            if (left.parent, left.child) != (self._child, frame_id):
                raise InputError(
                    f'the rig file {self._parameters.rig} has {left.child!r} in {left.parent!r}, '
                    f'but the cloud is in {quoted(frame_id)} and the poses are of {self._child!r}'
                )
            return pose_of_arrays(np.array(left.xyz_m), np.array(left.xyzw))
        try:
            matrix = self._static.pose(self._child, frame_id)
        except InputError as error:
            self._static.refresh()
            raise InputError(
                f'{self.topic} has the pose of {self._child!r}, the cloud is in '
                f'{quoted(frame_id)}, and where that is on the rover is not known: {error}. The '
                "parameter 'rig' names a file that says it"
            ) from error
        return Pose(matrix[:3, :3], matrix[:3, 3])

    def _on_odometry(self, message: Any) -> None:
        self._add(message, message.pose.pose, message.child_frame_id.lstrip('/'))

    def _on_pose_stamped(self, message: Any) -> None:
        self._add(message, message.pose, self._parameters.pose_child_frame)

    def _add(self, message: Any, pose: Any, child: str) -> None:
        at_ns, frame_id = stamp_ns(message), message.header.frame_id.lstrip('/')
        place, turn = pose.position, pose.orientation
        position = np.array([place.x, place.y, place.z], np.float64)
        quaternion = np.array([turn.x, turn.y, turn.z, turn.w], np.float64)
        jump = ''
        try:
            now = pose_of_arrays(position, quaternion)
            if self._last is not None:
                before_ns, before = self._last
                if at_ns < before_ns - RESTART_NS:
                    jump = f'time went back by {1e-9 * (before_ns - at_ns):.3f} s'
                elif at_ns > before_ns:
                    seconds = 1e-9 * (at_ns - before_ns)
                    jump = before.jump_to(now, seconds, self._parameters.max_speed)
            if (frame_id, child) != (self._frame_id, self._child):
                jump = f'the frames of the poses are {quoted(frame_id)} and {quoted(child)} now'
            if jump:
                self._track.clear()
                self._frame_id, self._child = frame_id, child
                if self._last is not None:
                    self._on_jump(f'{self.topic}: {jump}')
            self._track.add(at_ns, position, quaternion)
        except InputError as error:
            self._node.get_logger().error(
                f'{self.topic}: {error}: the pose is left out', throttle_duration_sec=5.0
            )
            return
        self._last = at_ns, now
        self._since_s = time.monotonic()
        self._on_pose()


class TransformPoses:
    """Poses from TF."""

    def __init__(
        self, node: Node, parameters: TerrainParameters, on_jump: Callable[[str], None]
    ) -> None:
        """Listen to /tf and /tf_static.

        Raises:
            InputError: tf2_ros is not installed.
        """
        self._frame_id, self._max_speed = parameters.map_frame, parameters.max_speed
        self._on_jump = on_jump
        self._listener = TransformListener(node)
        self._last: tuple[int, Pose] | None = None
        self._since_s = time.monotonic()
        self._reason = ''

    def camera_pose(self, frame_id: str, at_ns: int) -> CameraPose | None:
        """See `PoseSource`; a transform that is not there may always still come."""
        try:
            found = self._listener.lookup(self._frame_id, frame_id, at_ns, patience_s=0.0)
        except InputError as error:
            self._reason = str(error)
            return None
        now = Pose(*found)
        if self._last is not None and at_ns > self._last[0]:
            jump = self._last[1].jump_to(now, 1e-9 * (at_ns - self._last[0]), self._max_speed)
            if jump:
                self._on_jump(f'/tf: {jump}')
        self._last, self._since_s = (at_ns, now), time.monotonic()
        return CameraPose(self._frame_id, now)

    def missing(self, frame_id: str) -> str:
        """See `PoseSource`."""
        waited_s = time.monotonic() - self._since_s
        reason = self._reason or f'no transform from {quoted(frame_id)} to {self._frame_id!r}'
        return f'{reason} (for {waited_s:.1f} s)'

    def restart(self, at_ns: int) -> None:
        """See `PoseSource`."""
        self._listener.clear()
        self._last = None

    def close(self) -> None:
        """See `PoseSource`."""
        self._listener.close()
