"""The node: stereo images in; cloud, confidence, disparity and depth out.

A managed (lifecycle) node that starts by itself unless `autostart` is false. `configure` loads
and warms the model, `activate` subscribes. Callbacks only collect messages; the reconstruction
runs in a thread of its own, always on the newest pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import functools
import os
from pathlib import Path
import sys
import time
from typing import Any

import cv2
import numpy as np
from rcl_interfaces.msg import SetParametersResult
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import (
    DurabilityPolicy,
    qos_policy_name_from_kind,
    qos_profile_sensor_data,
    QoSProfile,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import SetBool, Trigger

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import CalibrationError, InputError, ReconError
from lunar_stereo_recon.files.calibrations import CameraInfo
from lunar_stereo_recon.files.results import write_pcd, write_ply
from lunar_stereo_recon.messages import baseline_of_camera_infos, pair_from_messages, StereoTopics
from lunar_stereo_recon.pairing import OTHER, RESTART_NS, Side
from lunar_stereo_recon.pipeline import StereoReconstructor
from lunar_stereo_recon.result_messages import (
    confidence_message,
    confidence_view_message,
    depth_info_message,
    depth_message,
    disparity_message,
    left_image_message,
    moved_points,
    point_cloud_message,
)
from lunar_stereo_recon.ros.camera_info_files import camera_infos_from_files
from lunar_stereo_recon.ros.core_logs import log_core_to, stop_logging_core
from lunar_stereo_recon.ros.diagnostics import FrameStatistics, NodeReport
from lunar_stereo_recon.ros.hazard_grid import (
    Attitudes,
    frame_of_attitude,
    frame_of_transform,
)
from lunar_stereo_recon.ros.image_subscription import ImageSubscription
from lunar_stereo_recon.ros.interruption import on_interruption
from lunar_stereo_recon.ros.newest_item_worker import NewestItemWorker
from lunar_stereo_recon.ros.parameters import (
    changed_parameters,
    declare_parameters,
    named,
    ReconstructionParameters,
)
from lunar_stereo_recon.ros.rclpy_messages import (
    diagnostic_array,
    diagnostic_status,
    ERROR,
    make_message,
    message_class,
    MessageBuffer,
    OK,
    WARN,
)
from lunar_stereo_recon.ros.stereo_sync import StereoMessages, StereoSynchronizer
from lunar_stereo_recon.ros.transforms import TransformListener

# Topic: message type, and the entry of the parameter `outputs` that it belongs to.
OUTPUT_TOPICS = {
    'points2': ('sensor_msgs/msg/PointCloud2', 'points2'),
    'confidence': ('sensor_msgs/msg/Image', 'confidence'),
    'confidence/image_mono8': ('sensor_msgs/msg/Image', 'confidence'),
    'disparity': ('stereo_msgs/msg/DisparityImage', 'disparity'),
    'depth/image': ('sensor_msgs/msg/Image', 'depth'),
    'depth/camera_info': ('sensor_msgs/msg/CameraInfo', 'depth'),
    'hazard': ('nav_msgs/msg/OccupancyGrid', 'hazard'),
}
# Where the node rectifies, nobody else may publish the rectified image and its calibration.
RECTIFIED_TOPICS = {'left/image_rect': ('sensor_msgs/msg/Image', 'image')}
# A costmap asks for the newest grid when it starts, as for any map.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CLOUD_WRITERS = {'ply': write_ply, 'pcd': write_pcd}
# Fast DDS sends a lost fragment again after up to three seconds; until then the message must still
# be there. Ten clouds of 640x480 are 61 MB.
OUTPUT_DEPTH = 10
DIAGNOSTICS_PERIOD_S = 1.0
SUBSCRIPTION_CHECK_S = 0.1
SIGNAL_CHECK_S = 0.2
DEMAND_SETTLE_S = 0.4
LOG_THROTTLE_S = 5.0
# P[3] and the `baseline` parameter may differ by this share before it is worth a warning.
BASELINE_AGREEMENT = 0.01
WARM_UP_SIZE = (480, 640)


@dataclass(frozen=True)
class Job:
    """A synchronized set on its way to the worker, and when it was complete (monotonic, s)."""

    messages: StereoMessages
    received_s: float


def transition(
    callback: Callable[[Any, LifecycleState], TransitionCallbackReturn],
) -> Callable[[Any, LifecycleState], TransitionCallbackReturn]:
    """Log what a transition raises: rclpy turns every exception into a silent return code."""

    @functools.wraps(callback)
    def logged(node: Any, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return callback(node, state)
        except ReconError as error:
            node.get_logger().error(f'{callback.__name__}: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            node.get_logger().fatal(f'{callback.__name__}: {type(error).__name__}: {error}')
            raise

    return logged


class ReconstructionNode(LifecycleNode):
    """See the module."""

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters; `configure` does the rest.

        Raises:
            InputError: A parameter has a value that is not allowed.
        """
        super().__init__('reconstruction_node', **kwargs)
        self.parameters = declare_parameters(self, ReconstructionParameters)
        self._core_logs = log_core_to(self.get_logger())
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._engine: StereoReconstructor | None = None
        self._worker: NewestItemWorker[Job] | None = None
        self._inputs: list[ImageSubscription] = []
        self._info_inputs: dict[Side, ImageSubscription] = {}
        self._file_infos: dict[Side, CameraInfo] = {}
        self._periodic: list[Any] = []
        self._output: dict[str, Any] = {}
        self._last_stamp_ns: int | None = None
        self._refused: dict[str, str] = {}
        self._tf: TransformListener | InputError | None = None
        self._imu: Any = None
        self._attitudes = Attitudes(self.resolve_topic_name('imu'))
        self._cloud_buffer = MessageBuffer()
        self._newest: Reconstruction | None = None
        self._enabled = True
        self._idle = True
        self._demand: list[str] = []
        self._demand_since_s = 0.0
        self.topics = self._source_names()
        self._output_topics = {
            **OUTPUT_TOPICS,
            **(RECTIFIED_TOPICS if self.parameters.rectify else {}),
        }
        self._reset_statistics()
        self._diagnostics = self.create_publisher(
            message_class('diagnostic_msgs/msg/DiagnosticArray'), '/diagnostics', 1
        )
        self.create_service(SetBool, '~/enable', self._on_enable)
        self.create_service(Trigger, '~/save_cloud', self._on_save_cloud)
        self.create_service(Trigger, '~/set_model', self._on_set_model)

    # Lifecycle

    @transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm the model, make the publishers."""
        parameters = self.parameters
        if parameters.threads > 0:
            cv2.setNumThreads(parameters.threads)
        self._file_infos = camera_infos_from_files(
            parameters.left_camera_info_url, parameters.right_camera_info_url
        )
        self._engine = self._loaded_engine(parameters)
        for topic, (type_name, _) in self._output_topics.items():
            qos = LATCHED if topic == 'hazard' else QoSProfile(depth=OUTPUT_DEPTH)
            self._output[topic] = self._output_publisher(type_name, topic, qos)
        self._output['frame_status'] = self._output_publisher(
            'diagnostic_msgs/msg/DiagnosticArray', 'frame_status', QoSProfile(depth=OUTPUT_DEPTH)
        )
        return super().on_configure(state)

    def _loaded_engine(self, parameters: ReconstructionParameters) -> StereoReconstructor:
        """Load the model that the parameters name and warm it up.

        Raises:
            ModelError: It cannot be used.
        """
        backend = load_backend(
            parameters.backend,
            parameters.model or None,
            named(parameters.providers) or None,
            parameters.threads,
        )
        engine = StereoReconstructor(backend, parameters.options)
        start = time.perf_counter()
        engine.reconstruct(_blank_pair())
        self.get_logger().info(
            f'{backend.name} on {backend.provider}, '
            f'first pair {1e3 * (time.perf_counter() - start):.0f} ms'
        )
        if backend.provider_fallback:
            self.get_logger().warning(backend.provider_fallback)
        return engine

    @transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""
        self._reset_statistics()
        self._idle = True
        self._worker = NewestItemWorker(self._work)
        self._inputs = self._make_inputs()
        self._refresh_inputs()
        # With use_sim_time the node's own clock stands still until somebody plays.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._periodic = [
            self.create_timer(SUBSCRIPTION_CHECK_S, self._refresh_inputs, clock=steady),
            self.create_timer(DIAGNOSTICS_PERIOD_S, self._report_health, clock=steady),
        ]
        return super().on_activate(state)

    @transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and let the pair in work finish."""
        self._stop()
        return super().on_deactivate(state)

    @transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let the model and the publishers go."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop whatever runs."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after a failed transition."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Stop the worker before its publishers go."""
        self._stop()
        stop_logging_core(self._core_logs)
        super().destroy_node()

    # Messages in

    def _image_topic(self, side: Side) -> str:
        name = 'image_raw' if self.parameters.rectify else 'image_rect'
        suffix = '/compressed' if self.parameters.input_transport == 'compressed' else ''
        return f'{side}/{name}{suffix}'

    def _source_names(self) -> StereoTopics:
        """Return where images and infos come from, for texts: resolved topics, or files."""
        topics = StereoTopics()
        return StereoTopics(
            self.resolve_topic_name(self._image_topic('left')),
            self.resolve_topic_name(self._image_topic('right')),
            self.parameters.left_camera_info_url or self.resolve_topic_name(topics.left_info),
            self.parameters.right_camera_info_url or self.resolve_topic_name(topics.right_info),
        )

    def _make_inputs(self) -> list[ImageSubscription]:
        compressed = self.parameters.input_transport == 'compressed'
        image_type = 'CompressedImage' if compressed else 'Image'
        images = [
            self._make_input(
                f'sensor_msgs/msg/{image_type}',
                self._image_topic(side),
                functools.partial(self._on_image, side),
            )
            for side in OTHER
        ]
        self._info_inputs = {
            side: self._make_input(
                'sensor_msgs/msg/CameraInfo',
                f'{side}/camera_info',
                functools.partial(self._on_info, side),
            )
            for side in OTHER
            if side not in self._file_infos
        }
        return [*images, *self._info_inputs.values()]

    def _make_input(
        self, type_name: str, topic: str, callback: Callable[[Any], None]
    ) -> ImageSubscription:
        return ImageSubscription(
            self,
            message_class(type_name),
            topic,
            callback,
            self.parameters.input_reliability,
            self.parameters.queue_size,
        )

    def _refresh_inputs(self) -> None:
        """Subscribe to what is published; when lazy, only while somebody wants a result."""
        self._listen_to_attitude()
        if not self._enabled or (self.parameters.lazy and not self._settled_demand()):
            if not self._idle:
                self._idle = True
                self._sync.clear()
                for subscription in self._inputs:
                    subscription.close()
            return
        self._idle = False
        settled = [self._info_inputs.get(side) for side in self._sync.settled_infos]
        for subscription in self._inputs:
            if subscription in settled:
                subscription.close()
            else:
                subscription.refresh()

    def _settled_demand(self) -> bool:
        """Say whether results are wanted, and by everybody who is going to want them at first.

        The subscriptions of one program are discovered one after the other; starting at the first
        would leave the others without the first frame.
        """
        wanted, now = self._wanted_outputs(), time.monotonic()
        if wanted != self._demand:
            self._demand, self._demand_since_s = wanted, now
        return bool(wanted) and (not self._idle or now - self._demand_since_s >= DEMAND_SETTLE_S)

    def _on_image(self, side: Any, message: Any) -> None:
        for messages in self._sync.add_image(side, message):
            self._on_pair(messages)

    def _on_info(self, side: Any, message: Any) -> None:
        for messages in self._sync.add_info(side, message):
            self._on_pair(messages)

    def _on_pair(self, messages: StereoMessages) -> None:
        """Hand a pair to the worker unless nobody wants it; answer for each one that is not."""
        if self._worker is None:  # A callback that was already under way when the node stopped.
            return
        self._forget_the_future(messages.stamp_ns)
        if not self._enabled:
            self._answer_drop(messages, 'disabled')
            return
        if self.parameters.lazy and not self._wanted_outputs():
            self._answer_drop(messages, 'no_subscriber')
            return
        if self._too_soon(messages.stamp_ns):
            self._answer_drop(messages, 'target_rate')
            return
        replaced = self._worker.submit(Job(messages, time.monotonic()))
        if replaced is not None:
            self._answer_drop(replaced.messages, 'superseded')

    def _forget_the_future(self, stamp_ns: int) -> None:
        """Where stamps jumped back (bag loop, simulation reset), drop what else has a time."""
        if self._last_stamp_ns is None or stamp_ns >= self._last_stamp_ns - RESTART_NS:
            return
        self._last_stamp_ns = stamp_ns
        self._attitudes.clear()
        if isinstance(self._tf, TransformListener):
            self._tf.clear()

    def _too_soon(self, stamp_ns: int) -> bool:
        """Say whether a pair comes faster than `target_rate`; half a period of jitter is kept."""
        rate, last = self.parameters.target_rate, self._last_stamp_ns
        if rate > 0 and last is not None and 0 <= stamp_ns - last < 0.95e9 / rate:
            return True
        self._last_stamp_ns = stamp_ns
        return False

    # Results out; from here on in the worker's thread

    def _work(self, job: Job) -> None:
        parameters, messages = self.parameters, job.messages
        engine = self._engine  # ~/set_model may put another one in its place meanwhile
        start = time.monotonic()
        try:
            pair = self._pair(messages, parameters)
            decoded = time.monotonic()
            engine.options = parameters.options
            result = engine.reconstruct(pair)
        except ReconError as error:
            self._frames.count_drop('invalid', str(error))
            self.get_logger().error(str(error), throttle_duration_sec=LOG_THROTTLE_S)
            self._answer(messages, ERROR, f'invalid: {error}', {})
            return
        self._newest = result
        done = time.monotonic()
        withheld = self._publish(result, parameters)
        end = time.monotonic()
        self._frames.count_published(1e3 * (end - job.received_s), result)
        stages = {
            'wait': 1e3 * (start - job.received_s),
            'decode': 1e3 * (decoded - start),
            **result.timings_ms,
            'publish': 1e3 * (end - done),
            'latency': 1e3 * (end - job.received_s),
        }
        values = {f'{stage} [ms]': value for stage, value in stages.items()}
        values['valid share'] = float(result.valid_mask.mean())
        values['mean confidence'] = float(result.confidence.mean())
        values.update({f'withheld {topic}': reason for topic, reason in withheld.items()})
        self._answer(messages, WARN if withheld else OK, 'published', values)

    def _pair(self, messages: StereoMessages, parameters: ReconstructionParameters) -> StereoPair:
        self._frames.baseline_conflict = ''
        if parameters.baseline > 0:
            self._compare_baseline(messages, parameters.baseline)
        return pair_from_messages(
            messages.left,
            messages.right,
            messages.left_info,
            messages.right_info,
            baseline_m=parameters.baseline,
            white_level=parameters.white_level or None,
            rectify=parameters.rectify,
            topics=self.topics,
        )

    def _compare_baseline(self, messages: StereoMessages, baseline_m: float) -> None:
        try:
            from_info = baseline_of_camera_infos(
                messages.left_info, messages.right_info, topics=self.topics
            )
        except CalibrationError:
            return  # Nothing to compare with: the parameter is there for just this case.
        if abs(from_info - baseline_m) > BASELINE_AGREEMENT * baseline_m:
            conflict = (
                f"the parameter 'baseline' is {baseline_m:g} m, but P[3] of "
                f'{self.topics.right_info} says {from_info:g} m; the parameter is used'
            )
            self.get_logger().warning(conflict, throttle_duration_sec=60.0)
            self._frames.baseline_conflict = conflict

    def _publish(
        self, result: Reconstruction, parameters: ReconstructionParameters
    ) -> dict[str, str]:
        """Publish what is selected and, when lazy, subscribed to.

        Returns:
            Why a result could not be published, by topic.
        """
        makers = {
            'points2': functools.partial(self._cloud_message, parameters),
            'confidence': confidence_message,
            'confidence/image_mono8': confidence_view_message,
            'disparity': disparity_message,
            'depth/image': functools.partial(_depth_message, parameters),
            'depth/camera_info': depth_info_message,
            'left/image_rect': left_image_message,
            'hazard': functools.partial(self._hazard_message, parameters),
        }
        withheld = {}
        for topic in self._topics_to_publish():
            try:
                message = makers[topic](make_message, result)
            except InputError as error:
                withheld[topic] = str(error)
                self.get_logger().warning(
                    f'{topic} is not published: {error}', throttle_duration_sec=LOG_THROTTLE_S
                )
                continue
            self._output[topic].publish(message)
        self._frames.withheld = withheld
        return withheld

    def _cloud_message(
        self, parameters: ReconstructionParameters, make: Any, result: Reconstruction
    ) -> Any:
        """Return the cloud in the frame and form that are wanted.

        Raises:
            InputError: There is no transform to that frame.
        """
        frame = parameters.cloud_frame
        if frame and frame != result.frame_id:
            rotation, translation = self._transforms().lookup(
                frame, result.frame_id, result.stamp_ns
            )
            result = moved_points(result, rotation, translation, frame)
        return point_cloud_message(make, result, parameters.cloud_form, self._cloud_buffer.floats)

    def _transforms(self) -> TransformListener:
        """Return the listener to /tf.

        Raises:
            InputError: tf2_ros is not installed, or the listener is only about to be made.
        """
        if isinstance(self._tf, InputError):
            raise self._tf
        if self._tf is None:
            raise InputError('listening to /tf begins only now')
        return self._tf

    def _hazard_message(
        self, parameters: ReconstructionParameters, make: Any, result: Reconstruction
    ) -> Any:
        """Return the hazard grid.

        Raises:
            InputError: Nothing tells where gravity points.
        """
        extent = parameters.hazard_range, parameters.hazard_cell
        if parameters.hazard_gravity == 'tf':
            target = parameters.hazard_frame
            transform = self._transforms().lookup(target, result.frame_id, result.stamp_ns)
            frame = frame_of_transform(*transform, target, *extent)
        else:
            attitude = np.eye(3)
            if parameters.hazard_gravity == 'imu':
                attitude = self._attitudes.level_from_body(result.stamp_ns)
            pitch = parameters.camera_pitch
            frame = frame_of_attitude(attitude, pitch, result.frame_id, *extent)
        return frame.message(make, result, parameters.hazard_options, parameters.hazard_confidence)

    def _listen_to_attitude(self) -> None:
        """Listen to /tf and the Imu while a wanted result needs them; called with the inputs."""
        parameters = self.parameters
        gravity = parameters.hazard_gravity if 'hazard' in self._topics_to_publish() else ''
        if self._tf is None and (parameters.cloud_frame or gravity == 'tf'):
            try:
                self._tf = TransformListener(self)
            except InputError as error:
                self._tf = error
                self.get_logger().error(str(error))
        if gravity == 'imu' and self._imu is None:
            self._imu = self.create_subscription(
                message_class('sensor_msgs/msg/Imu'),
                'imu',
                self._attitudes.add,
                qos_profile_sensor_data,
            )
        elif gravity != 'imu' and self._imu is not None:
            self.destroy_subscription(self._imu)
            self._imu = None

    def _answer_drop(self, messages: StereoMessages, reason: str) -> None:
        self._frames.count_drop(reason)
        self._answer(messages, WARN, reason, {})

    def _answer(
        self, messages: StereoMessages, level: bytes, text: str, values: dict[str, Any]
    ) -> None:
        """Say on frame_status what became of a pair, under its stamp."""
        status = diagnostic_status(level, self.get_name(), text, values)
        header = messages.left.header
        self._output['frame_status'].publish(
            diagnostic_array(messages.stamp_ns, header.frame_id, [status])
        )

    def _selected_outputs(self) -> list[str]:
        selected = self.parameters.outputs
        return [topic for topic, (_, name) in self._output_topics.items() if name in selected]

    def _topics_to_publish(self) -> list[str]:
        return self._wanted_outputs() if self.parameters.lazy else self._selected_outputs()

    def _wanted_outputs(self) -> list[str]:
        return [
            topic
            for topic in self._selected_outputs()
            if self._output[topic].get_subscription_count() > 0
        ]

    # Services, health and parameters

    def _on_enable(self, request: Any, response: Any) -> Any:
        """Stop or resume the work; a paused node does not even receive images."""
        self._enabled = request.data
        response.success = True
        response.message = 'enabled' if request.data else 'disabled: no images are received'
        return response

    def _on_save_cloud(self, request: Any, response: Any) -> Any:
        """Write the newest cloud; the answer says where, or why not."""
        result = self._newest
        if result is None:
            response.message = 'there is no cloud yet'
            return response
        save_format = self.parameters.save_format
        folder = Path(os.path.expanduser(self.parameters.save_directory))
        path = folder / f'cloud_{result.stamp_ns}.{save_format}'
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            count = CLOUD_WRITERS[save_format](path, result)
        except OSError as error:
            response.message = f'cannot write {path}: {error}'
            return response
        response.success = True
        response.message = f'{count} points in {path.resolve()}'
        return response

    def _on_set_model(self, request: Any, response: Any) -> Any:
        """Change to the model of the parameters; the subscriptions stay, and so does a good model.

        The pair in work is finished by the old one.
        """
        if self._engine is None:
            response.message = 'the node is not configured; configuring loads the model'
            return response
        try:
            self._engine = self._loaded_engine(self.parameters)
        except ReconError as error:
            response.message = f'{error}; {self._engine.backend.name} goes on'
            return response
        backend = self._engine.backend
        response.success = True
        response.message = f'{backend.name} on {backend.provider}'
        return response

    def _report_health(self) -> None:
        """Publish diagnostics, and say it in the log when nothing comes out."""
        if self._worker is None or self._engine is None:
            return
        self._worker.check()
        sync, frames = self._sync.statistics, self._frames.snapshot()
        for item in self._inputs:
            if item.lost:
                sync.drops[f'lost on the way: {item.topic}'] = item.lost
        self._report.publishers = {item.resolved: item.publisher_count for item in self._inputs}
        self._report.conflicts = {
            item.resolved: item.conflict for item in self._inputs if item.conflict
        }
        self._report.refused = self._refused
        limit_s = self.parameters.silence_warning
        reason = self._report.silence(sync, frames, limit_s, self._idle)
        if reason:
            self.get_logger().warning(f'no result for {limit_s:g} s: {reason}')
        backend = self._engine.backend
        engine = {
            'model': backend.name,
            'provider': backend.provider,
            'weights sha256': backend.metadata.get('weights_sha256', ''),
            'network width, px': str(self._engine.network_width_px or 'any'),
        }
        statuses = self._report.statuses(
            sync, frames, engine, backend.provider_fallback, self._idle, self._enabled
        )
        for status in statuses:  # names are alike where a rover has two rigs
            status.hardware_id = self.get_fully_qualified_name()
        now_ns = self.get_clock().now().nanoseconds
        self._diagnostics.publish(diagnostic_array(now_ns, '', statuses))

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            self.parameters = changed_parameters(self.parameters, changes)
        except ReconError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _reset_statistics(self) -> None:
        tolerance_ns = self.parameters.tolerance_ns
        self._sync = StereoSynchronizer(
            tolerance_ns,
            self.parameters.queue_size,
            self._file_infos,
            self.parameters.cache_camera_info,
        )
        self._frames = FrameStatistics()
        self._report = NodeReport(self.get_name(), self.topics, tolerance_ns)
        self._last_stamp_ns = None

    def _output_publisher(self, type_name: str, topic: str, qos: QoSProfile) -> Any:
        return self.create_lifecycle_publisher(
            message_class(type_name),
            topic,
            qos,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            event_callbacks=PublisherEventCallbacks(
                incompatible_qos=functools.partial(self._on_refused, topic)
            ),
        )

    def _on_refused(self, topic: str, event: Any) -> None:
        """Say that a subscriber asks for more than the publisher offers: it gets nothing."""
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self._refused[topic] = policy
        self.get_logger().warning(
            f'a subscriber of {self.resolve_topic_name(topic)} asks for a {policy} that is not '
            'offered: nothing is sent to it'
        )

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        if self._imu is not None:
            self.destroy_subscription(self._imu)
            self._imu = None
        if isinstance(self._tf, TransformListener):
            self._tf.close()
            self._tf = None
        for timer in self._periodic:
            self.destroy_timer(timer)
        for subscription in self._inputs:
            subscription.close()
        self._periodic, self._inputs = [], []

    def _release(self) -> None:
        for publisher in self._output.values():
            self.destroy_lifecycle_publisher(publisher)
        self._output, self._engine, self._newest = {}, None, None
        self._refused = {}


def _depth_message(parameters: ReconstructionParameters, make: Any, result: Reconstruction) -> Any:
    return depth_message(make, result, parameters.depth_encoding)


def _blank_pair() -> StereoPair:
    height, width = WARM_UP_SIZE
    image = np.zeros(WARM_UP_SIZE, np.float32)
    center = ((width - 1) / 2, (height - 1) / 2)
    calibration = StereoCalibration(width, width, *center, center[0], 0.1, width, height)
    return StereoPair(image, image, calibration)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is interrupted; return 1 where it cannot start."""
    interrupted = on_interruption()
    rclpy.init(
        args=sys.argv if argv is None else list(argv),
        signal_handler_options=SignalHandlerOptions.NO,
    )
    node = None
    try:
        node = ReconstructionNode()
        if node.parameters.autostart:
            for start in (node.trigger_configure, node.trigger_activate):
                if start() != TransitionCallbackReturn.SUCCESS:
                    return 1
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not interrupted.is_set():
            executor.spin_once(timeout_sec=SIGNAL_CHECK_S)
        return 0
    except ReconError as error:
        rclpy.logging.get_logger('reconstruction_node').fatal(str(error))
        return 1
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
