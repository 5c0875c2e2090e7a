"""The matcher of the node: loads and tests it, and replaces it by a simpler one if it fails.

A matcher that fails several times in a row, or does not return, is replaced: its execution
provider by the CPU, then the student by semi-global matching. `~/set_model` brings it back.
"""

from __future__ import annotations

import dataclasses
import time

import cv2
import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger

from lunar_stereo_recon.backends import load_backend, STUDENT_BACKENDS
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import CalibrationError, InputError, ModelError
from lunar_stereo_recon.pipeline import StereoReconstructor
from lunar_stereo_recon.ros.diagnostics import MatcherState
from lunar_stereo_recon.ros.load_control import LoadControl
from lunar_stereo_recon.ros.parameters import named, ReconstructionParameters

CPU = 'CPUExecutionProvider'
LAST_RESORT = 'sgbm'
TRIAL_SIZE = (640, 480)
TRIAL_DISPARITY_PX = 8


class MatchingEngine:
    """A reconstructor that can be replaced; used by the worker, replaced by either thread.

    Attributes:
        reconstructor: The one in use.
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
        self._backend_name = ''
        self.reconstructor = self._loaded(
            parameters, parameters.backend, named(parameters.providers)
        )

    def replace(self, parameters: ReconstructionParameters) -> None:
        """Change to what the parameters name now, once it has matched a pair of the camera's size.

        The pair in work is finished by the old one.

        Raises:
            ModelError: It cannot be used; the old one stays.
        """
        self.reconstructor = self._loaded(
            parameters, parameters.backend, named(parameters.providers)
        )
        self._failures, self.fallback = 0, ''

    def reconstruct(
        self, pair: StereoPair, parameters: ReconstructionParameters
    ) -> Reconstruction:
        """Return the result of a pair.

        Raises:
            InputError, CalibrationError: The pair cannot be used.
            Exception: Whatever else the matcher raised; it counts as a failure, and enough of them
                in a row replace the matcher for the next pair.
        """
        reconstructor = self.reconstructor
        self._size = pair.calibration.width, pair.calibration.height
        reconstructor.options = parameters.options
        self.warming_up = self._warm_for != self._compiled_for(reconstructor)
        try:
            result = reconstructor.reconstruct(pair)
        except (InputError, CalibrationError):
            raise
        except Exception as error:
            if reconstructor is self.reconstructor:
                self._failures += 1
                if 0 < parameters.fallback_after <= self._failures:
                    self.warming_up = True  # loading another one may take long, too
                    self.fall_back(parameters, f'{self._failures} failures, the last: {error}')
            raise
        if reconstructor is self.reconstructor:
            self._failures = 0
            self._warm_for = self._compiled_for(reconstructor)
            self.warming_up = False
            self._mind_the_load(result, parameters.target_ms)
        return result

    def fall_back(self, parameters: ReconstructionParameters, reason: str) -> bool:
        """Replace a matcher that does not work by a simpler one; return False where none is left.

        Args:
            parameters: Of the node.
            reason: What is wrong with it, for log and diagnostics.
        """
        self._failures = 0
        backend = self.reconstructor.backend
        before = f'{backend.name} on {backend.provider}'
        for name, providers in self._simpler(backend.provider):
            try:
                self.reconstructor = self._loaded(parameters, name, providers)
            except ModelError as error:
                reason = f'{reason}; {error}'
                continue
            now = self.reconstructor.backend
            self.fallback = (
                f'{now.name} on {now.provider} instead of {before} ({reason}); ~/set_model goes '
                'back'
            )
            self._logger.error(self.fallback)
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

    def _simpler(self, provider: str) -> list[tuple[str, list[str]]]:
        """Return what is left to fall back to, as backend and providers."""
        if self._backend_name not in STUDENT_BACKENDS:
            return []
        on_cpu = self._backend_name == 'onnx' and provider == CPU
        return [*([] if on_cpu else [('onnx', ['cpu'])]), (LAST_RESORT, [])]

    def _loaded(
        self, parameters: ReconstructionParameters, name: str, providers: list[str]
    ) -> StereoReconstructor:
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
        self._backend_name = name
        return reconstructor


def trial_pair(width: int, height: int) -> StereoPair:
    """Return views of a textured wall of `TRIAL_DISPARITY_PX`.

    Args:
        width, height: Of the images, pixels.
    """
    noise = np.random.default_rng(0).standard_normal((height, width + TRIAL_DISPARITY_PX))
    texture = 0.5 + 0.5 * cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.5)
    grey = np.clip(texture, 0.0, 1.0)
    left, right = grey[:, :width].copy(), grey[:, TRIAL_DISPARITY_PX:].copy()
    center = ((width - 1) / 2, (height - 1) / 2)
    calibration = StereoCalibration(width, width, *center, center[0], 0.1, width, height)
    return StereoPair(left, right, calibration)
