"""The node: stereo images in; cloud, confidence, disparity and depth out.

A managed (lifecycle) node that starts by itself unless `autostart` is false. `configure` loads
and warms the model, `activate` subscribes. Callbacks only collect messages; the reconstruction
runs in a thread of its own, always on the newest pair, and so does what slow services do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import copy
from dataclasses import dataclass
import functools
from pathlib import Path
import sys
import time
import traceback
from typing import Any

import cv2
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.timer import Timer
from std_srvs.srv import SetBool, Trigger

from lunar_stereo_recon.datatypes import Reconstruction, StereoPair
from lunar_stereo_recon.errors import CalibrationError, InputError, ReconError
from lunar_stereo_recon.files.calibrations import CameraInfo
from lunar_stereo_recon.files.results import write_pcd, write_ply
from lunar_stereo_recon.files.self_masks import read_self_mask
from lunar_stereo_recon.geometry.self_mask import SelfMask, without_rover
from lunar_stereo_recon.limits import MAX_NAME
from lunar_stereo_recon.pairing import Side
from lunar_stereo_recon.ros.callbacks import answered, transition
from lunar_stereo_recon.ros.camera_info_files import camera_infos_from_files
from lunar_stereo_recon.ros.core_logs import log_core_to, stop_logging_core
from lunar_stereo_recon.ros.diagnostics import FrameStatistics, NodeReport
from lunar_stereo_recon.ros.frame_viewer import FrameViewer
from lunar_stereo_recon.ros.matching_engine import MatchingEngine
from lunar_stereo_recon.ros.newest_item_worker import NewestItemWorker
from lunar_stereo_recon.ros.node_main import CannotGoOnError, run_node
from lunar_stereo_recon.ros.node_parameters import changed_parameters, declare_parameters
from lunar_stereo_recon.ros.pair_maker import PairMaker
from lunar_stereo_recon.ros.pair_poses import PairPoses
from lunar_stereo_recon.ros.parameters import ReconstructionParameters
from lunar_stereo_recon.ros.rclpy_messages import (
    diagnostic_array,
    ERROR,
    message_class,
    OK,
    WARN,
)
from lunar_stereo_recon.ros.recent_inputs import RecentInputs
from lunar_stereo_recon.ros.result_outputs import LOG_THROTTLE_S, ResultOutputs
from lunar_stereo_recon.ros.saving import save_folder
from lunar_stereo_recon.ros.side_thread import SideThreads
from lunar_stereo_recon.ros.stereo_inputs import PairStamps, source_names, StereoInputs
from lunar_stereo_recon.ros.stereo_sync import StereoMessages
from lunar_stereo_recon.ros.watchdog import Watchdog
from lunar_stereo_recon.ros.working_node import start_and_serve, WorkingNode

NAME = 'reconstruction_node'
CLOUD_WRITERS = {'ply': write_ply, 'pcd': write_pcd}
DIAGNOSTICS_PERIOD_S = 1.0
SUBSCRIPTION_CHECK_S = 0.1
STAMPS_THROTTLE_S = 30.0
# How long the doctor makes a node listen while nobody wants its results.
DOCTOR_LISTENS_S = 30.0
# A simulator makes its world before its clock runs. Where nobody even offers images the wait ends
# sooner: their topics may have other names.
CLOCK_PATIENCE_S = 60.0
SIMULATOR_PATIENCE_S = 600.0
# How long a node that ends waits for the pair in work, and for services: together with the viewer
# less than the patience of `interruption`.
LAST_WAIT_S = 6.0


@dataclass
class Job:
    """A synchronized set on its way through the worker.

    Attributes:
        messages: The set.
        received_s: When it was complete (monotonic, seconds).
        given_up: It was answered already, while the matcher was stuck in it.
    """

    messages: StereoMessages
    received_s: float
    given_up: bool = False


class ReconstructionNode(WorkingNode):
    """See the module."""

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters; `configure` does the rest.

        Raises:
            InputError: A parameter has a value that is not allowed.
        """
        super().__init__(NAME, **kwargs)
        self._made = False
        self.parameters = declare_parameters(self, ReconstructionParameters)
        self._save_folder()
        self._core_logs = log_core_to(self.get_logger())
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._engine: MatchingEngine | None = None
        # With the size of the images that it was read for; polygons are drawn at their size.
        self._self_mask: SelfMask | None = None
        self._file_infos: dict[Side, CameraInfo] = {}
        self._newest: Reconstruction | None = None
        self._viewer: FrameViewer | None = None
        self._enabled = True
        self.topics = source_names(self, self.parameters)
        self._outputs = ResultOutputs(self, lambda: self.parameters)
        # There from `activate` to `deactivate`.
        self._inputs: StereoInputs | None = None
        self._worker: NewestItemWorker[Job] | None = None
        self._poses: PairPoses | None = None
        self._periodic: list[Timer] = []
        self._said: str | None = None
        self._told_failure = ''
        self._begin_statistics()
        self._diagnostics = self.create_publisher(
            message_class('diagnostic_msgs/msg/DiagnosticArray'), '/diagnostics', 1
        )
        self._side = SideThreads(self)
        self._serve(SetBool, '~/enable', self._on_enable)
        if self.parameters.allow_saving:
            self._serve(Trigger, '~/save_cloud', self._on_save_cloud)
        self._serve(Trigger, '~/set_model', self._on_set_model)
        self._serve(Trigger, '~/doctor', self._on_doctor)
        self._made = True

    def _serve(self, kind: Any, name: str, callback: Callable[[Any, Any], Any]) -> None:
        """Offer a service whose callback may wait while all else goes on."""
        group = MutuallyExclusiveCallbackGroup()
        self.create_service(kind, name, callback, callback_group=group)

    # Lifecycle

    @transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm the model, make the publishers."""
        try:
            self._prepare()
        except ReconError:
            self._release()
            raise
        return super().on_configure(state)

    def _prepare(self) -> None:
        """Do what `on_configure` says.

        Raises:
            ReconError: Something cannot be used; what was made by then has to be released.
        """
        parameters = self.parameters
        if parameters.threads > 0:
            cv2.setNumThreads(parameters.threads)
        # What cannot be read is said now, not with the first pair.
        masks = parameters.self_mask, parameters.self_mask_right
        self._self_mask = read_self_mask(*masks) if any(masks) else None
        self._file_infos = camera_infos_from_files(
            parameters.left_camera_info_url, parameters.right_camera_info_url
        )
        if parameters.viewer != 'none':
            file, logger = parameters.viewer_file, self.get_logger()
            self._viewer = FrameViewer(file, self._outputs.pose, logger)
        self._engine = MatchingEngine(parameters, self.get_logger())
        self._outputs.open()

    @transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""
        self._begin_statistics()
        if self.parameters.temporal != 'off':
            self._poses = PairPoses(self, self.parameters.temporal)
        self._worker = NewestItemWorker(self._work, self._on_failure)
        self._inputs = StereoInputs(
            self,
            self.parameters,
            self._file_infos,
            self._on_pair,
            self._on_unpaired,
            self._recent,
        )
        self._say_start()
        self._refresh()
        # With use_sim_time the node's own clock stands still until somebody plays.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._periodic = [
            self.create_timer(SUBSCRIPTION_CHECK_S, self._refresh, clock=steady),
            self.create_timer(DIAGNOSTICS_PERIOD_S, self._report_health, clock=steady),
        ]
        return super().on_activate(state)

    def destroy_node(self) -> None:
        """Stop the worker before its publishers go."""
        # Since Kilted the context destroys its nodes, also one that was refused while it was made.
        if self._made:
            patience_s = min(self.parameters.watchdog or LAST_WAIT_S, LAST_WAIT_S)
            self._stop(patience_s)
            self._close_viewer()
            self._side.wait(patience_s)
            stop_logging_core(self._core_logs)
        super().destroy_node()

    # Pairs on their way to the worker

    def _refresh(self) -> None:
        """Subscribe to what is published; when lazy, only while somebody wants a result."""
        if self._inputs is None:
            return
        self._outputs.refresh()
        self._pairs.refresh()
        lazy = self.parameters.lazy
        asked = not lazy or self._viewer is not None or time.monotonic() < self._listen_until_s
        wanted = self._enabled and (asked or self._outputs.demand_settled(self._inputs.idle))
        self._inputs.refresh(wanted)

    def _on_pair(self, messages: StereoMessages) -> None:
        """Hand a pair to the worker unless nobody wants it; answer for each one that is not."""
        if self._worker is None or self._engine is None:
            return  # The node stopped while this callback was already under way.
        if self._stamps.jumped_back(messages.stamp_ns):
            self._outputs.forget_motion()
            if self._poses is not None:
                self._poses.restart(messages.stamp_ns)
        if not self._enabled:
            self._answer_drop(messages, 'disabled')
            return
        if self.parameters.lazy and self._viewer is None and not self._outputs.wanted():
            self._answer_drop(messages, 'no_subscriber')
            return
        if self._stamps.too_soon(messages.stamp_ns, self.parameters.target_rate):
            self._answer_drop(messages, 'target_rate')
            return
        self._pairs_wanted += 1
        if self._pairs_wanted % self._engine.load.effort.one_in:
            self._answer_drop(messages, 'pressure')
            return
        if self._poses is not None:
            self._poses.ask(messages.left.header.frame_id, messages.stamp_ns)
        replaced = self._worker.submit(Job(messages, time.monotonic()))
        if replaced is not None:
            self._answer_drop(replaced.messages, 'superseded')

    def _answer_drop(self, messages: StereoMessages, reason: str) -> None:
        self._frames.count_drop(reason)
        self._answer(messages, WARN, reason)

    def _on_unpaired(self, stamp_ns: int, reason: str) -> None:
        """Answer for images of which there will be no pair."""
        self._outputs.answer(stamp_ns, '', WARN, reason)

    def _answer(
        self,
        messages: StereoMessages,
        level: bytes,
        text: str,
        values: dict[str, Any] | None = None,
    ) -> None:
        # A name that is none is refused; the answer does not repeat it.
        frame_id = messages.left.header.frame_id[:MAX_NAME]
        self._outputs.answer(messages.stamp_ns, frame_id, level, text, values)

    # The work, in the worker's thread

    def _work(self, job: Job) -> None:
        engine, parameters, messages = self._engine, self.parameters, job.messages
        if engine is None:
            return  # the node was shut down while the matcher was stuck
        start = time.monotonic()
        try:
            pair = self._masked(self._pairs.pair(messages, parameters))
            self._frames.doubts = dict(self._pairs.doubts)
            decoded = time.monotonic()
            poses, pose = self._poses, None
            if poses is not None:
                pose = functools.partial(poses.at, messages.stamp_ns)
            result = engine.reconstruct(pair, parameters, self._outputs.wants_sigma(), pose)
        except (InputError, CalibrationError) as error:
            self._refuse(job, 'invalid', str(error))
            return
        if job.given_up:
            return
        self._newest = result
        if self._viewer is not None:
            self._viewer.submit(pair, result)
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
        values: dict[str, float | str] = {
            f'{stage} [ms]': value for stage, value in stages.items()
        }
        values['valid share'] = float(result.valid_mask.mean())
        values['mean confidence'] = float(result.confidence.mean())
        if result.earlier_frame:
            values['frame before'] = result.earlier_frame
        values.update({f'withheld {topic}': reason for topic, reason in withheld.items()})
        self._answer(messages, WARN if withheld else OK, 'published', values)

    def _masked(self, pair: StereoPair) -> StereoPair:
        """Return the pair without the rover's own pixels.

        Raises:
            InputError: The self-mask does not fit the images.
        """
        return pair if self._self_mask is None else without_rover(pair, self._self_mask)

    def _on_failure(self, job: Job, error: Exception) -> None:
        """Answer for a pair that failed in a way that nobody foresaw; the next one is served."""
        text = f'{type(error).__name__}: {error}'
        if text != self._told_failure:
            self._told_failure = text
            trace = ''.join(traceback.format_exception(error))
            self.get_logger().error(
                f'a pair failed (the same error is not logged again):\n{trace}'
            )
        self._refuse(job, 'failed', text)

    def _refuse(self, job: Job, reason: str, text: str) -> None:
        """Count, log and answer a pair of which there is no result."""
        if job.given_up:
            return
        self._frames.count_drop(reason, text)
        if reason == 'invalid':
            self.get_logger().error(text, throttle_duration_sec=LOG_THROTTLE_S)
        self._answer(job.messages, ERROR, f'{reason}: {text}')

    # Services, health and parameters

    @answered
    async def _on_enable(self, request: Any, response: Any) -> Any:
        """Stop or resume the work; a paused node does not even receive images."""
        self._enabled = request.data
        response.success = True
        response.message = 'enabled' if request.data else 'disabled: no images are received'
        return response

    @answered
    async def _on_save_cloud(self, request: Any, response: Any) -> Any:
        """Write the newest cloud; the answer says where, or why not."""
        result = self._newest
        if result is None:
            response.message = 'there is no cloud yet'
            return response
        save_format = self.parameters.save_format
        name = f'cloud_{result.stamp_ns}.{save_format}'

        def write() -> str:
            path = self._save_folder() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            count = CLOUD_WRITERS[save_format](path, result)
            return f'{count} points in {path}'

        try:
            response.message = await self._side.run(write)
        except (InputError, OSError) as error:
            response.message = f'cannot write {name}: {error}'
            return response
        response.success = True
        return response

    @answered
    async def _on_set_model(self, request: Any, response: Any) -> Any:
        """Change to the model of the parameters; the subscriptions stay, and so does a good model.

        It is loaded and tried on a pair while the old one goes on.
        """
        engine, parameters = self._engine, self.parameters
        if engine is None:
            response.message = 'the node is not configured; configuring loads the model'
            return response
        before = engine.reconstructor.backend.name
        try:
            await self._side.run(lambda: engine.replace(parameters))
        except ReconError as error:
            response.message = f'{error}; {before} goes on'
            return response
        if engine is not self._engine:
            response.message = 'the node was cleaned up meanwhile; configuring loads the model'
            return response
        backend = engine.reconstructor.backend
        response.success = True
        response.message = f'{backend.name} on {backend.provider}'
        return response

    @answered
    async def _on_doctor(self, request: Any, response: Any) -> Any:
        """Say what is wrong with the rig; the answer is the page as text, and says where it is."""
        # Imported when it is asked for: a node that is well needs none of it.
        from lunar_stereo_recon.doctor.findings import Severity
        from lunar_stereo_recon.doctor.page import as_html, as_text
        from lunar_stereo_recon.files.html_page import write_page
        from lunar_stereo_recon.ros.doctor import examine_node

        if self._inputs is None or self._engine is None:
            response.message = 'the node is not active: it receives nothing'
            return response
        if not self._recent.pairs and self._inputs.idle and self._enabled:
            self._listen_until_s = time.monotonic() + DOCTOR_LISTENS_S
            response.message = (
                f'nothing was received yet ({self._resting()}). The node listens for '
                f'{DOCTOR_LISTENS_S:g} s now: call again'
            )
            return response
        parameters, statistics = self.parameters, copy.deepcopy(self._inputs.statistics)
        backend, turn = self._engine.lend()
        examine = functools.partial(
            examine_node,
            self.get_fully_qualified_name(),
            self._recent.copy(),
            self.topics,
            parameters,
            statistics,
            backend,
            turn,
            self._report.why_no_pair(statistics),
            self._pairs.static_baseline_m,
            self._pairs.doubts.get('baseline', ''),
        )
        report = await self._side.run(examine)
        response.success = report.worst is not Severity.FAULT
        response.message = as_text(report)
        if not parameters.allow_saving:
            return response
        name = f'doctor_{time.strftime("%Y%m%d_%H%M%S")}.html'

        def write() -> Path:
            page = self._save_folder() / name
            write_page(page, as_html(report))
            return page

        try:
            page = await self._side.run(write)
        except (InputError, OSError) as error:
            response.message += f'\n\nWithout pictures: cannot write {name}: {error}'
        else:
            response.message += f'\n\nWith pictures: {page}'
        return response

    def _save_folder(self) -> Path:
        return save_folder(self.parameters.save_root, self.parameters.save_directory)

    def _report_health(self) -> None:
        """Publish diagnostics, and say it in the log when nothing comes out."""
        if self._worker is None or self._inputs is None or self._engine is None:
            return
        self._watch()
        sync, frames, resting = self._inputs.statistics, self._frames.snapshot(), self._resting()
        self._say_state(resting)
        self._report.publishers = self._inputs.publishers
        self._report.conflicts = self._inputs.conflicts
        self._report.refused = self._outputs.refused
        limit_s = self.parameters.silence_warning
        reason = self._report.silence(sync, frames, limit_s, resting)
        if reason:
            self.get_logger().warning(f'no result for {limit_s:g} s: {reason}')
        matcher = self._engine.state(self.parameters)
        statuses = self._report.statuses(sync, frames, matcher, resting)
        if self._report.wrong_stamps:
            self.get_logger().warning(
                self._report.wrong_stamps, throttle_duration_sec=STAMPS_THROTTLE_S
            )
        for status in statuses:  # names are alike where a rover has two rigs
            status.hardware_id = self.get_fully_qualified_name()
        now_ns = self.get_clock().now().nanoseconds
        self._diagnostics.publish(diagnostic_array(now_ns, '', statuses))

    def _say_start(self) -> None:
        """Say what comes in and what goes out."""
        topics, logger = self.topics, self.get_logger()
        logger.info(
            f'listens to {topics.left_image} and {topics.right_image}, calibrated by '
            f'{topics.left_info} and {topics.right_info}'
        )
        logger.info(f'publishes {", ".join(self._outputs.offered)} and what became of each pair')

    def _say_state(self, resting: str) -> None:
        """Say it when the node begins to rest or to work."""
        if resting == self._said:
            return
        self._said = resting
        names = ', '.join(map(self.resolve_topic_name, self._outputs.wanted()))
        reason = 'works for the viewer' if self._viewer else 'works, as lazy is false'
        working = f'works for subscribers of {names}' if names else reason
        self.get_logger().info(resting or working)

    def _resting(self) -> str:
        """Return why nothing is done, on purpose; '' where there is work."""
        if not self._enabled:
            return 'disabled by ~/enable'
        if self._inputs is None or self._inputs.idle:
            offered = ', '.join(self._outputs.offered)
            return f'idle: nobody subscribes to {offered}; set lazy:=false to work anyway'
        clock = self.get_clock()
        stopped = clock.ros_time_is_active and clock.now().nanoseconds == 0
        waited_s = time.monotonic() - self._activated_s
        promised = any(self._inputs.publishers.values())
        patience_s = SIMULATOR_PATIENCE_S if promised else CLOCK_PATIENCE_S
        if stopped and waited_s < patience_s and not self._inputs.statistics.images:
            return (
                'waits for /clock, as use_sim_time is set: the simulator or the player has not '
                'begun'
            )
        return ''

    def _watch(self) -> None:
        """Where the matcher does not return from a pair, give up both.

        Raises:
            CannotGoOnError: There is no simpler matcher.
        """
        warming_up = self._engine is not None and self._engine.warming_up
        name = 'watchdog_first' if warming_up else 'watchdog'
        limit_s = getattr(self.parameters, name)
        if self._worker is None or self._engine is None:
            return
        busy_s = self._watchdog.seen_s(self._worker.busy_s)
        if limit_s <= 0 or busy_s < limit_s:
            return
        text = f'the matcher has not returned for {busy_s:.0f} s; {name} is {limit_s:g} s'
        for job in self._worker.stop(patience_s=0.0):
            self._refuse(job, 'stuck', text)
            job.given_up = True
        self._worker = NewestItemWorker(self._work, self._on_failure)
        if not self._engine.fall_back(self.parameters, text):
            raise CannotGoOnError(text)

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            changed = changed_parameters(self.parameters, changes)
            save_folder(changed.save_root, changed.save_directory)
            self.parameters = changed
        except ReconError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _begin_statistics(self) -> None:
        self._frames = FrameStatistics()
        self._report = NodeReport(self.get_name(), self.topics, self.parameters.tolerance_ns)
        self._stamps = PairStamps()
        self._watchdog = Watchdog()
        self._pairs = PairMaker(self, self.topics)
        self._pairs_wanted = 0
        self._activated_s = time.monotonic()
        self._recent = RecentInputs()
        self._listen_until_s = 0.0
        self._said, self._told_failure = None, ''

    def _stop(self, patience_s: float | None = None) -> None:
        if self._worker is not None:
            for job in self._worker.stop(patience_s or self.parameters.watchdog or None):
                self._refuse(job, 'stopped', 'the node was stopped before it was done')
                job.given_up = True
            self._worker = None
        for timer in self._periodic:
            self.destroy_timer(timer)
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._poses is not None:
            self._poses.close()
            self._poses = None
        self._outputs.stop_listening()
        self._pairs.close()
        self._periodic = []

    def _close_viewer(self) -> None:
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None

    def _release(self) -> None:
        self._close_viewer()
        self._outputs.close()
        self._engine, self._newest = None, None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is interrupted; return 1 where it cannot start."""
    return run_node(NAME, lambda interrupted: ReconstructionNode(), start_and_serve, argv)


if __name__ == '__main__':
    sys.exit(main())
