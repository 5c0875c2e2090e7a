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
import threading
import time
from typing import Any

import cv2
import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import CalibrationError, ReconError
from lunar_stereo_recon.files.calibrations import CameraInfo
from lunar_stereo_recon.files.results import write_pcd, write_ply
from lunar_stereo_recon.messages import (
    BASELINE_AGREEMENT,
    baseline_of_camera_infos,
    pair_from_messages,
)
from lunar_stereo_recon.pairing import Side
from lunar_stereo_recon.pipeline import StereoReconstructor
from lunar_stereo_recon.ros.camera_info_files import camera_infos_from_files
from lunar_stereo_recon.ros.core_logs import log_core_to, stop_logging_core
from lunar_stereo_recon.ros.diagnostics import FrameStatistics, NodeReport
from lunar_stereo_recon.ros.newest_item_worker import NewestItemWorker
from lunar_stereo_recon.ros.node_main import EXIT_ERROR, run_node, serve
from lunar_stereo_recon.ros.parameters import (
    changed_parameters,
    declare_parameters,
    named,
    ReconstructionParameters,
)
from lunar_stereo_recon.ros.rclpy_messages import (
    diagnostic_array,
    ERROR,
    message_class,
    OK,
    WARN,
)
from lunar_stereo_recon.ros.result_outputs import LOG_THROTTLE_S, ResultOutputs
from lunar_stereo_recon.ros.stereo_inputs import PairStamps, source_names, StereoInputs
from lunar_stereo_recon.ros.stereo_sync import StereoMessages

NAME = 'reconstruction_node'
CLOUD_WRITERS = {'ply': write_ply, 'pcd': write_pcd}
DIAGNOSTICS_PERIOD_S = 1.0
SUBSCRIPTION_CHECK_S = 0.1
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
        super().__init__(NAME, **kwargs)
        self.parameters = declare_parameters(self, ReconstructionParameters)
        self._core_logs = log_core_to(self.get_logger())
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._engine: StereoReconstructor | None = None
        self._file_infos: dict[Side, CameraInfo] = {}
        self._newest: Reconstruction | None = None
        self._enabled = True
        self.topics = source_names(self, self.parameters)
        self._outputs = ResultOutputs(self, lambda: self.parameters)
        # There from `activate` to `deactivate`.
        self._inputs: StereoInputs | None = None
        self._worker: NewestItemWorker[Job] | None = None
        self._periodic: list[Any] = []
        self._begin_statistics()
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
        self._outputs.open()
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
            parameters.model_key or None,
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
        self._begin_statistics()
        self._worker = NewestItemWorker(self._work)
        self._inputs = StereoInputs(self, self.parameters, self._file_infos, self._on_pair)
        self._refresh()
        # With use_sim_time the node's own clock stands still until somebody plays.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._periodic = [
            self.create_timer(SUBSCRIPTION_CHECK_S, self._refresh, clock=steady),
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

    # Pairs on their way to the worker

    def _refresh(self) -> None:
        """Subscribe to what is published; when lazy, only while somebody wants a result."""
        if self._inputs is None:
            return
        self._outputs.refresh()
        lazy = self.parameters.lazy
        wanted = self._enabled and (not lazy or self._outputs.demand_settled(self._inputs.idle))
        self._inputs.refresh(wanted)

    def _on_pair(self, messages: StereoMessages) -> None:
        """Hand a pair to the worker unless nobody wants it; answer for each one that is not."""
        if self._worker is None:  # A callback that was already under way when the node stopped.
            return
        if self._stamps.jumped_back(messages.stamp_ns):
            self._outputs.forget_motion()
        if not self._enabled:
            self._answer_drop(messages, 'disabled')
            return
        if self.parameters.lazy and not self._outputs.wanted():
            self._answer_drop(messages, 'no_subscriber')
            return
        if self._stamps.too_soon(messages.stamp_ns, self.parameters.target_rate):
            self._answer_drop(messages, 'target_rate')
            return
        replaced = self._worker.submit(Job(messages, time.monotonic()))
        if replaced is not None:
            self._answer_drop(replaced.messages, 'superseded')

    def _answer_drop(self, messages: StereoMessages, reason: str) -> None:
        self._frames.count_drop(reason)
        self._outputs.answer(messages, WARN, reason, {})

    # The work, in the worker's thread

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
            self._outputs.answer(messages, ERROR, f'invalid: {error}', {})
            return
        self._newest = result
        done = time.monotonic()
        withheld = self._frames.withheld = self._outputs.publish(result, parameters)
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
        self._outputs.answer(messages, WARN if withheld else OK, 'published', values)

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
        if self._worker is None or self._inputs is None or self._engine is None:
            return
        self._worker.check()
        sync, frames, idle = self._inputs.statistics, self._frames.snapshot(), self._inputs.idle
        self._report.publishers = self._inputs.publishers
        self._report.conflicts = self._inputs.conflicts
        self._report.refused = self._outputs.refused
        limit_s = self.parameters.silence_warning
        reason = self._report.silence(sync, frames, limit_s, idle)
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
            sync, frames, engine, backend.provider_fallback, idle, self._enabled
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

    def _begin_statistics(self) -> None:
        self._frames = FrameStatistics()
        self._report = NodeReport(self.get_name(), self.topics, self.parameters.tolerance_ns)
        self._stamps = PairStamps()

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        for timer in self._periodic:
            self.destroy_timer(timer)
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        self._outputs.stop_listening()
        self._periodic = []

    def _release(self) -> None:
        self._outputs.close()
        self._engine, self._newest = None, None


def _blank_pair() -> StereoPair:
    height, width = WARM_UP_SIZE
    image = np.zeros(WARM_UP_SIZE, np.float32)
    center = ((width - 1) / 2, (height - 1) / 2)
    calibration = StereoCalibration(width, width, *center, center[0], 0.1, width, height)
    return StereoPair(image, image, calibration)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is interrupted; return 1 where it cannot start."""
    return run_node(NAME, lambda interrupted: ReconstructionNode(), _start_and_serve, argv)


def _start_and_serve(node: ReconstructionNode, interrupted: threading.Event) -> int:
    if node.parameters.autostart:
        for start in (node.trigger_configure, node.trigger_activate):
            if start() != TransitionCallbackReturn.SUCCESS:
                return EXIT_ERROR
    return serve(node, interrupted)


if __name__ == '__main__':
    sys.exit(main())
