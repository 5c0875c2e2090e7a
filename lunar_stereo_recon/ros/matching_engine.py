"""The matcher of the node: loads and tests it, and replaces it by a simpler one if it fails.

A matcher that fails several times in a row, or does not return, is replaced: its execution
provider by the CPU, then the student by semi-global matching. `~/set_model` brings it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
import dataclasses
from dataclasses import dataclass, field
import threading
import time

import cv2
import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger

from lunar_stereo_recon.backends import (
    forget_choosers,
    load_backend,
    model_file,
    STUDENT_BACKENDS,
)
from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.backends.self_test import check_answer
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import CalibrationError, InputError, ModelError
from lunar_stereo_recon.geometry.pose_track import Pose
from lunar_stereo_recon.pipeline import StereoReconstructor
from lunar_stereo_recon.ros.diagnostics import MatcherState
from lunar_stereo_recon.ros.load_control import LoadControl
from lunar_stereo_recon.ros.parameters import named, ReconstructionParameters

CPU = 'CPUExecutionProvider'
LAST_RESORT = 'sgbm'
TRIAL_SIZE = (640, 480)
TRIAL_DISPARITY_PX = 8
# How long somebody else than the worker waits for the pair in work.
TURN_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Matcher:
    """A loaded matcher.

    Attributes:
        reconstructor: It, in the pipeline.
        backend_name: As the parameter has it.
        providers: Execution providers that it was loaded with.
        model: File of the student, or the name of a shipped one; '' for the default.
        turn: Held by whoever matches a pair: not every runtime serves two threads at once.
    """

    reconstructor: StereoReconstructor
    backend_name: str
    providers: tuple[str, ...] = ()
    model: str = ''
    turn: threading.Lock = field(default_factory=threading.Lock)


class MatchingEngine:
    """A reconstructor that can be replaced while it works; every method may be called anywhere.

    Loading takes long and holds up nobody: only when a matcher is loaded and tried, it takes the
    place of the old one, which finishes the pair in work.

    Attributes:
        fallback: Why it is not what the parameters ask for; '' where it is.
        load: How much of the work is done under pressure.
        warming_up: The pair in work is the first of its size or network width, or brought
            another matcher: a runtime may compile the network meanwhile.
    """

    def __init__(self, parameters: ReconstructionParameters, logger: RcutilsLogger) -> None:
        """Load what the parameters name and try it on a pair.

        Raises:
            ModelError: It cannot be used.
        """
        self._logger = logger
        self._failures = 0
        self._size = TRIAL_SIZE
        self._load_is_for: tuple[object, ...] = ()
        self.load = LoadControl(None)
        self.fallback = ''
        self.warming_up = False
        self._warm_for: tuple[object, ...] = ()
        self._tested_s = time.monotonic()
        # Held for the moment in which the matcher or the count of its failures changes.
        self._changing = threading.Lock()
        self._matcher = self._loaded(parameters, parameters.backend, named(parameters.providers))

    @property
    def reconstructor(self) -> StereoReconstructor:
        """Return the one in use."""
        return self._matcher.reconstructor

    def lend(self) -> tuple[Backend, Callable[[], AbstractContextManager[None]]]:
        """Return the backend in use, and what is to be entered around each pair it matches.

        Entering waits for the pair in work.

        Raises:
            ModelError: On entering, where that pair takes longer than `TURN_PATIENCE_S`.
        """
        matcher = self._matcher

        @contextmanager
        def turn() -> Iterator[None]:
            if not matcher.turn.acquire(timeout=TURN_PATIENCE_S):
                name = matcher.reconstructor.backend.name
                raise ModelError(f'{name} has not returned from a pair for {TURN_PATIENCE_S:g} s')
            try:
                yield
            finally:
                matcher.turn.release()

        return matcher.reconstructor.backend, turn

    def replace(self, parameters: ReconstructionParameters) -> None:
        """Change to what the parameters name now, once it has matched a pair of the camera's size.

        The pair in work is finished by the old one.

        Raises:
            ModelError: It cannot be used; the old one stays.
        """
        loaded = self._loaded(parameters, parameters.backend, named(parameters.providers))
        with self._changing:
            self._matcher = loaded
            self._failures, self.fallback = 0, ''

    def reconstruct(
        self,
        pair: StereoPair,
        parameters: ReconstructionParameters,
        sigma: bool = False,
        pose: Callable[[], Pose | None] | None = None,
    ) -> Reconstruction:
        """Return the result of a pair.

        Args:
            pair: The pair.
            parameters: Parameters of the node.
            sigma: Give the standard deviations too, where the model can.
            pose: See `StereoReconstructor.reconstruct`.

        Raises:
            InputError, CalibrationError: The pair cannot be used.
            Exception: Whatever else the matcher raised; it counts as a failure, and enough of them
                in a row replace the matcher for the next pair.
        """
        self._test_again(parameters)
        matcher = self._matcher
        reconstructor = matcher.reconstructor
        self._size = pair.calibration.width, pair.calibration.height
        self.warming_up = self._warm_for != self._compiled_for(reconstructor)
        try:
            with matcher.turn:
                reconstructor.options = dataclasses.replace(parameters.options, sigma=sigma)
                result = reconstructor.reconstruct(pair, pose)
        except (InputError, CalibrationError):
            raise
        except Exception as error:
            failures = self._count_failure(matcher)
            if 0 < parameters.fallback_after <= failures:
                self.warming_up = True  # loading another one may take long, too
                self.fall_back(parameters, f'{failures} failures, the last: {error}')
            raise
        with self._changing:
            if matcher is not self._matcher:
                return result
            self._failures = 0
        self._warm_for = self._compiled_for(reconstructor)
        self.warming_up = False
        self._mind_the_load(result, parameters.target_ms)
        return result

    def _test_again(self, parameters: ReconstructionParameters) -> None:
        """Replace the matcher where it has forgotten its known answers; asked once a period."""
        period_s, now_s = parameters.self_test_period, time.monotonic()
        if not 0 < period_s <= now_s - self._tested_s:
            return
        self._tested_s = now_s
        matcher = self._matcher
        try:
            with matcher.turn:
                matcher.reconstructor.check_chooser()
                backend = matcher.reconstructor.backend
                # OpenVINO would compile it for the test's size, and for the cameras' again.
                is_openvino = backend.provider.startswith('OpenVINO')
                if matcher.backend_name in STUDENT_BACKENDS and not is_openvino:
                    check_answer(backend, model_file(matcher.model or None))
        except ModelError as error:
            self.warming_up = True  # loading takes longer than a pair
            self._logger.error(f'{error}: it has changed in memory, and is loaded anew')
            forget_choosers()
            self._load_anew(matcher, parameters, str(error))

    def _load_anew(
        self, damaged: Matcher, parameters: ReconstructionParameters, reason: str
    ) -> None:
        """Take the same matcher from its file, or a simpler one where that fails."""
        asked = dataclasses.replace(parameters, model=damaged.model)
        try:
            loaded = self._loaded(asked, damaged.backend_name, list(damaged.providers))
        except ModelError as error:
            self.fall_back(asked, f'{reason}; {error}')
            return
        with self._changing:
            if self._matcher is damaged:
                self._matcher = loaded
                self._failures = 0

    def _count_failure(self, matcher: Matcher) -> int:
        """Return how often in a row the matcher has failed; 0 where it is no longer in use."""
        with self._changing:
            if matcher is not self._matcher:
                return 0
            self._failures += 1
            return self._failures

    def fall_back(self, parameters: ReconstructionParameters, reason: str) -> bool:
        """Replace a matcher that does not work by a simpler one; return False where none is left.

        Where it is replaced from elsewhere meanwhile, that one stays.

        Args:
            parameters: Parameters of the node.
            reason: What is wrong with it, for log and diagnostics.
        """
        failed = self._matcher
        backend = failed.reconstructor.backend
        before = f'{backend.name} on {backend.provider}'
        for name, providers in _simpler(failed):
            try:
                loaded = self._loaded(parameters, name, providers)
            except ModelError as error:
                reason = f'{reason}; {error}'
                continue
            now = loaded.reconstructor.backend
            text = (
                f'{now.name} on {now.provider} instead of {before} ({reason}); ~/set_model goes '
                'back'
            )
            with self._changing:
                if self._matcher is not failed:
                    return True
                self._matcher = loaded
                self._failures, self.fallback = 0, text
            self._logger.error(text)
            return True
        self._logger.error(f'there is no simpler matcher than {before}: {reason}')
        return False

    def state(self, parameters: ReconstructionParameters) -> MatcherState:
        """Return what is used, for diagnostics."""
        reconstructor, effort = self.reconstructor, self.load.effort
        backend = reconstructor.backend
        warning = backend.provider_fallback
        if self.load.reduced:
            warning = f'under pressure: {effort}; target_ms is {parameters.target_ms:g}'
        facts = {
            'model': backend.name,
            'provider': backend.provider,
            **({'chosen by auto': backend.choice} if backend.choice else {}),
            'weights sha256': backend.metadata.get('weights_sha256', ''),
            'network width, px': str(reconstructor.network_width_px or 'any'),
            'one pair in': str(effort.one_in),
        }
        return MatcherState(facts, self.fallback, warning)

    def _compiled_for(self, reconstructor: StereoReconstructor) -> tuple[object, ...]:
        """Return what a runtime may have compiled the network for."""
        return reconstructor, reconstructor.network_width_px, *self._size

    def _mind_the_load(self, result: Reconstruction, target_ms: float) -> None:
        reconstructor = self.reconstructor
        asked = (reconstructor, target_ms, *self._size)
        if asked != self._load_is_for:
            self._load_is_for = asked
            self.load = LoadControl(reconstructor.network_width_px)
        times = result.timings_ms
        if target_ms > 0 and self.load.note(sum(times.values()), times['inference'], target_ms):
            reconstructor.network_width_px = self.load.effort.width_px
            self._logger.warning(
                f'pairs take {sum(times.values()):.0f} ms, target_ms is {target_ms:g}: '
                f'{self.load.effort} from now on'
            )

    def _loaded(
        self, parameters: ReconstructionParameters, name: str, providers: list[str]
    ) -> Matcher:
        """Load a matcher and match a textured wall with it.

        Raises:
            ModelError: It cannot be loaded, or fails; the message has its reason.
        """
        options = dataclasses.replace(parameters.options, region=None)
        start = time.perf_counter()
        try:
            backend = load_backend(
                name,
                parameters.model or None,
                providers or None,
                parameters.threads,
                parameters.model_key or None,
            )
            reconstructor = StereoReconstructor(backend, options)
            reconstructor.reconstruct(trial_pair(*self._size))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f'{name} fails on a trial pair of {self._size[0]}x{self._size[1]}: '
                f'{type(error).__name__}: {error}'
            ) from error
        self._logger.info(
            f'{backend.name} on {backend.provider}, loaded and first pair '
            f'{1e3 * (time.perf_counter() - start):.0f} ms'
        )
        if backend.provider_fallback:
            self._logger.warning(backend.provider_fallback)
        if not reconstructor.knows_sigma:
            self._logger.info(f'{backend.name} has no calibration of sigma: there is none')
        return Matcher(reconstructor, name, tuple(providers), parameters.model)


def _simpler(matcher: Matcher) -> list[tuple[str, list[str]]]:
    """Return what is left to fall back to, as backend and providers."""
    if matcher.backend_name not in STUDENT_BACKENDS:
        return []
    on_cpu = matcher.backend_name == 'onnx' and matcher.reconstructor.backend.provider == CPU
    return [*([] if on_cpu else [('onnx', ['cpu'])]), (LAST_RESORT, [])]


def trial_pair(width: int, height: int) -> StereoPair:
    """Return views of a textured wall of `TRIAL_DISPARITY_PX`.

    Args:
        width, height: Width and height of the images, pixels.
    """
    noise = np.random.default_rng(0).standard_normal((height, width + TRIAL_DISPARITY_PX))
    texture = 0.5 + 0.5 * cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.5)
    grey = np.clip(texture, 0.0, 1.0)
    left, right = grey[:, :width].copy(), grey[:, TRIAL_DISPARITY_PX:].copy()
    center = ((width - 1) / 2, (height - 1) / 2)
    calibration = StereoCalibration(width, width, *center, center[0], 0.1, width, height)
    return StereoPair(left, right, calibration)
