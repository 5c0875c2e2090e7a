"""The map of the ground around the rover: clouds and poses in; costs, cells and grid_map out.

A managed (lifecycle) node that starts by itself unless `autostart` is false. Each cloud waits,
for a bounded time, for the pose of its own stamp.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
import sys
import time
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, qos_profile_sensor_data, QoSProfile
from rclpy.timer import Timer
from std_srvs.srv import Trigger

from lunar_stereo_recon.errors import InputError, quoted
from lunar_stereo_recon.geometry.terrain import depth_deviation_m, TerrainMap
from lunar_stereo_recon.messages import stamp_ns
from lunar_stereo_recon.pairing import RESTART_NS
from lunar_stereo_recon.ros.callbacks import answered, transition
from lunar_stereo_recon.ros.image_subscription import ImageSubscription
from lunar_stereo_recon.ros.node_main import run_node
from lunar_stereo_recon.ros.node_parameters import declare_parameters
from lunar_stereo_recon.ros.parameters import TerrainParameters
from lunar_stereo_recon.ros.pose_source import CameraPose, PoseSource, TopicPoses, TransformPoses
from lunar_stereo_recon.ros.rclpy_messages import (
    diagnostic_array,
    diagnostic_status,
    make_message,
    message_class,
    OK,
    WARN,
)
from lunar_stereo_recon.ros.working_node import start_and_serve, WorkingNode
from lunar_stereo_recon.terrain_messages import (
    cells_message,
    cost_message,
    grid_map_message,
    GRID_MAP_TYPE,
    points_of_cloud,
)

NAME = 'terrain_node'
CHECK_S = 0.05
HEALTH_PERIOD_S = 1.0
# More clouds than that do not wait for their poses: the oldest one gives way.
MOST_WAITING = 3
# Share of a cloud's points that may be behind the camera: in the optical frame none is.
MOST_BEHIND = 0.01
# Topic: message type, what makes the message.
OUTPUTS = {
    'terrain/cost': ('nav_msgs/msg/OccupancyGrid', cost_message),
    'terrain/cells': ('sensor_msgs/msg/PointCloud2', cells_message),
    'terrain/grid_map': (GRID_MAP_TYPE, grid_map_message),
}
# A costmap asks for the newest grid when it starts, as for any map.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TerrainNode(WorkingNode):
    """See the module."""

    _last_ns: int | None
    _published_ns: int | None
    _start_ns: int
    _frame_id: str
    _warned_s: float

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters; `configure` does the rest.

        Raises:
            InputError: A parameter has a value that is not allowed.
        """
        super().__init__(NAME, **kwargs)
        self.parameters = declare_parameters(self, TerrainParameters)
        self._map = TerrainMap(self.parameters.options)
        self._outputs: dict[str, Any] = {}
        # There from `activate` to `deactivate`.
        self._poses: PoseSource | None = None
        self._clouds: ImageSubscription | None = None
        self._periodic: list[Timer] = []
        self._begin()
        self._diagnostics = self.create_publisher(
            message_class('diagnostic_msgs/msg/DiagnosticArray'), '/diagnostics', 1
        )
        self.create_service(Trigger, '~/reset', self._on_reset)

    # Lifecycle

    @transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make the publishers."""
        for topic, (kind, _) in OUTPUTS.items():
            try:
                message_type = message_class(kind)
            except ModuleNotFoundError:
                package = kind.split('/', 1)[0]
                self.get_logger().info(f'{topic} is not published: {package} is not installed')
                continue
            self._outputs[topic] = self.create_lifecycle_publisher(message_type, topic, LATCHED)
        return super().on_configure(state)

    @transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to clouds and poses."""
        self._begin()
        if self.parameters.pose_source == 'tf':
            self._poses = TransformPoses(self, self.parameters, self._clear)
        else:
            self._poses = TopicPoses(self, self.parameters, self._work_off, self._clear)
        self._clouds = ImageSubscription(
            self, message_class('sensor_msgs/msg/PointCloud2'), 'points2', self._on_cloud, depth=2
        )
        self._info = self.create_subscription(
            message_class('sensor_msgs/msg/CameraInfo'),
            'right/camera_info',
            self._on_right_info,
            qos_profile_sensor_data,
        )
        # With use_sim_time the node's own clock stands still until somebody plays.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._periodic = [
            self.create_timer(CHECK_S, self._work_off, clock=steady),
            self.create_timer(2 * CHECK_S, self._clouds.refresh, clock=steady),
            self.create_timer(HEALTH_PERIOD_S, self._report_health, clock=steady),
        ]
        self.get_logger().info(
            f'maps {self.resolve_topic_name("points2")} by {self.parameters.pose_source}; '
            f'publishes {", ".join(map(self.resolve_topic_name, self._outputs))}'
        )
        return super().on_activate(state)

    # Clouds on their way into the map

    def _on_cloud(self, message: Any) -> None:
        at_ns = stamp_ns(message)
        if self._last_ns is not None and at_ns < self._last_ns - RESTART_NS:
            back_s = 1e-9 * (self._last_ns - at_ns)
            self._clear(f'points2: time went back by {back_s:.3f} s')
            if self._poses is not None:
                self._poses.restart(at_ns)
            self._waiting.clear()
        self._last_ns = at_ns
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft()
            self._drop('superseded', 'it waited for its pose while others came')
        self._waiting.append((message, time.monotonic()))
        self._work_off()

    def _work_off(self) -> None:
        """Add the clouds whose poses are known, oldest first; let those go that wait too long."""
        while self._waiting and self._poses is not None:
            message, since_s = self._waiting[0]
            frame_id = message.header.frame_id.lstrip('/')
            try:
                found = self._poses.camera_pose(frame_id, stamp_ns(message))
                if found is None:
                    if time.monotonic() - since_s < self.parameters.pose_patience:
                        return
                    raise InputError(self._poses.missing(frame_id))
            except InputError as error:
                self._waiting.popleft()
                self._drop('no pose', str(error))
                continue
            self._waiting.popleft()
            try:
                self._add(message, found)
            except InputError as error:
                self._drop('invalid', str(error))

    def _add(self, message: Any, found: CameraPose) -> None:
        """Add a cloud and publish the map where it is due.

        Raises:
            InputError: The cloud or its pose cannot be used.
        """
        if found.frame_id != self._frame_id and not self._map.empty:
            self._clear(f'the frame of the map is {quoted(found.frame_id)} now')
        cloud = points_of_cloud(message, self.parameters.options.max_range_m)
        depth = cloud.points[:, 2]
        behind = (depth < 0).sum() / max(np.isfinite(depth).sum(), 1)
        if behind > MOST_BEHIND:
            raise InputError(
                f'{behind:.0%} of the points in {quoted(message.header.frame_id)} are behind the '
                'camera (z < 0); a cloud in the optical frame (z forward) is needed: leave the '
                "parameter 'cloud_frame' of the reconstruction empty"
            )
        sigma_m = cloud.sigma_m
        if sigma_m is None:
            sigma_m = depth_deviation_m(cloud.confidence, depth, self._focal_baseline())
        at_ns = stamp_ns(message)
        # Seconds since the first cloud: those since the epoch leave few digits.
        start_ns = at_ns if self._map.empty else self._start_ns
        measured = self._map.add(
            cloud.points,
            sigma_m,
            cloud.confidence,
            found.pose.rotation,
            found.pose.position,
            1e-9 * (at_ns - start_ns),
        )
        self._start_ns, self._frame_id = start_ns, found.frame_id
        if measured:
            self._counts['mapped'] += 1
            self._mapped_s, self._reason = time.monotonic(), ''
        else:
            options = self.parameters.options
            self._drop(
                'nothing to map',
                f'no point of the cloud up to {options.max_range_m:g} m has a confidence of '
                f'{options.min_confidence:g} or more and a sigma above 0',
            )
        self._publish(at_ns)

    def _focal_baseline(self) -> float:
        value = self.parameters.focal_baseline or self._info_focal_baseline
        if not value > 0:
            raise InputError(
                'the cloud has no usable field sigma, and what its error follows from is not '
                f'known: no P[3] below 0 on {self.resolve_topic_name("right/camera_info")}; set '
                "the parameter 'focal_baseline' (pixels times metres)"
            )
        return value

    def _on_right_info(self, info: Any) -> None:
        self._info_focal_baseline = max(-float(info.p[3]), 0.0)

    def _publish(self, at_ns: int) -> None:
        """Publish the map to whoever listens, at most as often as is wanted."""
        rate = self.parameters.publish_rate
        last = self._published_ns
        if rate > 0 and last is not None and 0 <= at_ns - last < 0.95e9 / rate:
            return
        self._published_ns = at_ns
        layers = None
        for topic, publisher in self._outputs.items():
            if publisher.get_subscription_count() > 0:
                layers = layers or self._map.layers()
                make = OUTPUTS[topic][1]
                publisher.publish(make(make_message, layers, at_ns, self._frame_id))

    def _clear(self, reason: str) -> None:
        """Begin the map anew."""
        if not self._map.empty:
            self.get_logger().warning(f'the map is cleared: {reason}')
            self._counts['cleared'] += 1
        self._map.reset()
        self._published_ns = None

    def _drop(self, kind: str, reason: str) -> None:
        self._counts[kind] += 1
        self._reason = reason

    # Service and health

    @answered
    async def _on_reset(self, request: Any, response: Any) -> Any:
        """Clear the map."""
        self._clear('~/reset was called')
        response.success, response.message = True, 'the map is empty'
        return response

    def _report_health(self) -> None:
        """Publish diagnostics, and say it in the log when nothing comes into the map."""
        silent_s = time.monotonic() - self._mapped_s
        limit_s = self.parameters.silence_warning
        text = f'{self._counts["mapped"]} clouds in the map'
        level = OK
        if limit_s > 0 and silent_s > limit_s:
            level, text = WARN, f'no cloud in the map for {silent_s:.0f} s: {self._silence()}'
            if time.monotonic() - self._warned_s > limit_s:
                self._warned_s = time.monotonic()
                self.get_logger().warning(text)
        status = diagnostic_status(
            level, f'{self.get_name()}: map', text, self._counts, self.get_fully_qualified_name()
        )
        now_ns = self.get_clock().now().nanoseconds
        self._diagnostics.publish(diagnostic_array(now_ns, '', [status]))

    def _silence(self) -> str:
        """Return why nothing is mapped."""
        if self._reason:
            return self._reason
        topic = self.resolve_topic_name('points2')
        if not self.count_publishers(topic):
            return f'nobody publishes {topic}'
        if self._last_ns is None:
            return f'no cloud has come on {topic}'
        return f'no cloud comes on {topic} any more'

    def _begin(self) -> None:
        self._map.reset()
        self._waiting: deque[tuple[Any, float]] = deque()
        self._counts: Counter[str] = Counter()
        self._frame_id, self._reason = '', ''
        self._last_ns = None
        self._published_ns = None
        self._start_ns = 0
        self._info_focal_baseline = 0.0
        self._mapped_s = self._warned_s = time.monotonic()

    def _stop(self) -> None:
        for timer in self._periodic:
            self.destroy_timer(timer)
        self._periodic = []
        if self._poses is not None:
            self._poses.close()
            self._poses = None
        if self._clouds is not None:
            self._clouds.close()
            self.destroy_subscription(self._info)
            self._clouds = None
        self._waiting.clear()

    def _release(self) -> None:
        for publisher in self._outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        self._outputs = {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is interrupted; return 1 where it cannot start."""
    return run_node(NAME, lambda interrupted: TerrainNode(), start_and_serve, argv)


if __name__ == '__main__':
    sys.exit(main())
