"""Where the left camera was when the newest pairs were taken, for the parameter `temporal`.

Poses are looked up where the node is spun, and read in the worker's thread.
"""

from __future__ import annotations

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.pose_track import Pose
from lunar_stereo_recon.ros.parameters import TerrainParameters
from lunar_stereo_recon.ros.pose_source import PoseSource, TopicPoses, TransformPoses

# A pair is asked for while it is matched; the ones before are done or given up.
MOST_PAIRS = 8
TRANSFORMS_CHECK_S = 0.02


class PairPoses:
    """See the module."""

    def __init__(self, node: Node, source: str) -> None:
        """Listen to a source of poses: 'odometry', 'pose' or 'tf', as `terrain_node` does.

        Raises:
            InputError: tf2_ros is not installed.
        """
        parameters = TerrainParameters(pose_source=source)
        self._asked: dict[int, str] = {}
        self._found: dict[int, Pose] = {}
        self._node, self._timer = node, None
        self._source: PoseSource
        if source == 'tf':
            self._source = TransformPoses(node, parameters, self._forget)
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._timer = node.create_timer(TRANSFORMS_CHECK_S, self._look_up, clock=steady)
        else:
            self._source = TopicPoses(node, parameters, self._look_up, self._forget)

    def ask(self, frame_id: str, stamp_ns: int) -> None:
        """Look the pose of a pair up, now or as soon as it comes."""
        self._asked[stamp_ns] = frame_id.lstrip('/')
        while len(self._asked) > MOST_PAIRS:
            del self._asked[next(iter(self._asked))]
        self._look_up()

    def at(self, stamp_ns: int) -> Pose | None:
        """Return the pose of a pair that was asked for; None where it is not known yet."""
        return self._found.get(stamp_ns)

    def restart(self, stamp_ns: int) -> None:
        """Forget all poses: time went back to `stamp_ns`."""
        self._source.restart(stamp_ns)
        self._forget('')

    def close(self) -> None:
        """Unsubscribe."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        self._source.close()

    def _look_up(self) -> None:
        for stamp_ns, frame_id in list(self._asked.items()):
            try:
                found = self._source.camera_pose(frame_id, stamp_ns)
            except InputError as error:  # it will not come
                self._node.get_logger().warning(
                    f'temporal: no pose of a pair: {error}', throttle_duration_sec=5.0
                )
            else:
                if found is None:
                    continue
                self._found[stamp_ns] = found.pose
            del self._asked[stamp_ns]
        while len(self._found) > MOST_PAIRS:
            del self._found[next(iter(self._found))]

    def _forget(self, reason: str) -> None:
        self._asked.clear()
        self._found.clear()
