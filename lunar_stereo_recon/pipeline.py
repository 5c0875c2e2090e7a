"""The whole journey of a stereo pair, free of ROS and of any network runtime.

Reading order: ros/stereo_sync (or bags/reader) -> messages (message to StereoPair) ->
geometry/rectify (raw images) -> preprocess -> backends -> geometry/residual ->
geometry/refine -> geometry/confidence -> geometry/fill -> geometry/temporal (where it is asked
for) -> geometry/disparity, geometry/camera -> result_messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
import math
import time

import cv2
import numpy as np

from lunar_stereo_recon.backends import load_chooser
from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.datatypes import (
    DisparityPrediction,
    FloatImage,
    Reconstruction,
    Region,
    StereoCalibration,
    StereoPair,
)
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.confidence import (
    blindness,
    calibrated_confidence,
    confidence_features,
    ConfidenceCalibration,
    DEFAULT_CALIBRATION,
    FEATURES,
)
from lunar_stereo_recon.geometry.disparity import depth_from_disparity, disparity_from_columns
from lunar_stereo_recon.geometry.fill import follow_surroundings
from lunar_stereo_recon.geometry.pose_track import Pose
from lunar_stereo_recon.geometry.rectify import confidence_where_seen
from lunar_stereo_recon.geometry.refine import refine_disparity, RefineOptions
from lunar_stereo_recon.geometry.residual import Chooser, match_around
from lunar_stereo_recon.geometry.row_alignment import (
    estimate_row_alignment,
    RowMonitor,
    with_rows_aligned,
)
from lunar_stereo_recon.geometry.self_mask import SelfMask, without_rover
from lunar_stereo_recon.geometry.sigma import depth_sigma, disparity_sigma, SigmaCalibration
from lunar_stereo_recon.geometry.temporal import EarlierFrame, steadied
from lunar_stereo_recon.limits import MAX_DEPTH_M, MIN_DISPARITY_PX
from lunar_stereo_recon.network_width import widest_within
from lunar_stereo_recon.preprocess import (
    aligned_principal_points,
    content_size,
    full_size_prediction,
    network_pair,
)

ROW_CHANGE_PX = 0.1
SIGMA_STAGE = 'sigma'


@dataclass(frozen=True)
class ReconstructionOptions:
    """What a user may choose about the result.

    Attributes:
        confidence_threshold: Pixels below it become NaN, in [0, 1].
        min_range_m, max_range_m: Depths outside become NaN, metres.
        dense: Keep every estimate: neither threshold nor range is applied.
        refine: Match the images around the network's disparity: for what it has lost, and for
            sub-pixel precision.
        refinement: Settings of that.
        align_rows: Watch the rows of the right view over the frames and correct up to 2 px.
        region: Pixels of the left image outside become NaN; None keeps all.
        target_ms: Milliseconds for a pair: on the first one the network's width is chosen so that
            it takes no longer (see `network_width`). 0 leaves the backend's own.
        sigma: Give the standard deviations of disparity and depth, where the model can.
        temporal: Steady each frame by the one before, where poses are given and the model has a
            calibration of sigma.

    Raises:
        InputError: A value is outside its range.
    """

    confidence_threshold: float = 0.5
    min_range_m: float = 0.0
    max_range_m: float = math.inf
    dense: bool = False
    refine: bool = True
    refinement: RefineOptions = field(default_factory=RefineOptions)
    align_rows: bool = True
    region: Region | None = None
    target_ms: float = 0.0
    sigma: bool = True
    temporal: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.confidence_threshold <= 1.0:
            raise InputError(
                f'confidence_threshold is {self.confidence_threshold}; it must be in [0, 1]'
            )
        if not 0.0 <= self.min_range_m < self.max_range_m:
            raise InputError(
                f'min_range_m is {self.min_range_m} and max_range_m {self.max_range_m}; '
                '0 <= min_range_m < max_range_m is needed'
            )
        if not 0.0 <= self.target_ms < math.inf:
            raise InputError(f'target_ms is {self.target_ms}; 0 or more is needed')


@dataclass(frozen=True)
class Matched:
    """Disparity of a pair before anything is rejected.

    Attributes:
        disparity: (H, W) float32, pixels. NaN where the backend has no estimate.
        features: (K, H, W) float32, see `geometry.confidence`.
        searched_px: Smallest and largest disparity that the backend searched, pixels.
    """

    disparity: FloatImage
    features: FloatImage
    searched_px: tuple[float, float]


class StereoReconstructor:
    """Turns stereo pairs into metric reconstructions; see `reconstruct`.

    The pairs are frames of one rig: what is learnt of its row alignment serves the next ones. A
    pair with another calibration starts again.

    Attributes:
        backend: The matcher. Others may use it too: nothing of it is changed here.
        options: What is wanted; may be changed between pairs.
        network_width_px: Wider images are scaled down for the backend; None takes any size. The
            backend's own width, or what `options.target_ms` chose.
        self_mask: Parts of the rover in the views; None where the pairs bring their own, or show
            none.
    """

    def __init__(
        self,
        backend: Backend,
        options: ReconstructionOptions | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        """Take a matcher; `chooser` decides where matching corrects it, None for the shipped one.

        Raises:
            ModelError: The shipped one is missing or corrupted.
        """
        self.backend = backend
        # A backend that takes any size has matched at the images' own size already.
        self._chooser = None
        if backend.max_width_px is not None:
            self._chooser = chooser or load_chooser(cv2.getNumThreads())
        self.options = options or ReconstructionOptions()
        self.self_mask: SelfMask | None = None
        self._rows = RowMonitor()
        self._rig: StereoCalibration | None = None
        self._earlier: EarlierFrame | None = None
        self.network_width_px = backend.max_width_px
        self._timed: tuple[float, int, int] | None = None
        stored = backend.confidence_calibration
        self._calibration = (
            ConfidenceCalibration.from_metadata(stored) if stored else DEFAULT_CALIBRATION
        )
        self._sigma = SigmaCalibration.from_metadata(stored)

    @property
    def knows_sigma(self) -> bool:
        """Return whether the model has a calibration of sigma."""
        return self._sigma is not None

    def reconstruct(
        self, pair: StereoPair, pose: Callable[[], Pose | None] | None = None
    ) -> Reconstruction:
        """Return disparity, depth, confidence and points of one pair, at the pair's size.

        Args:
            pair: The pair.
            pose: For `options.temporal`: returns the pose of the left optical frame in a fixed
                frame, None where it is unknown. Called once the pair is matched, so that poses
                that come a little later than the images are there.

        Raises:
            InputError: The region of interest lies outside of the image, or the self-mask does
                not fit it.
        """
        if self.self_mask is not None:
            pair = without_rover(pair, self.self_mask)
        self._keep_to_time(pair)
        stages, options = StageTimer(), self.options
        region = options.region
        if region is not None:
            region = region.within(pair.calibration.width, pair.calibration.height)
        matched = self.match(pair, stages)
        with stages('confidence'):
            confidence = calibrated_confidence(matched.features, self._calibration)
            confidence = confidence_where_seen(confidence, matched.disparity, pair)
        with stages('fill'):
            dense = filled_disparity(matched, confidence, pair.left)
        sigma_px = depth_sigma_m = None
        if (options.sigma or options.temporal) and self._sigma is not None:
            with stages(SIGMA_STAGE):
                moved_px = np.abs(dense - matched.disparity)
                sigma_px = disparity_sigma(matched.features, moved_px, self._sigma)
        earlier = ''
        if options.temporal:
            with stages('temporal'):
                found = None if pose is None else pose()
                dense, earlier = self._steadied(dense, sigma_px, confidence, pair, found)
        with stages('geometry'):
            disparity = self._accepted(dense, confidence, pair)
            if pair.own_mask is not None:
                disparity[pair.own_mask] = np.nan
            if region is not None:
                disparity = _cut(disparity, region)
            depth = depth_from_disparity(disparity, pair.calibration)
            points = points_from_depth(depth, pair.calibration)
        if not options.sigma:
            sigma_px = None
        if sigma_px is not None:
            with stages(SIGMA_STAGE):
                sigma_px[np.isnan(disparity)] = np.nan
                depth_sigma_m = depth_sigma(sigma_px, depth, pair.calibration)
        return Reconstruction(
            disparity,
            depth,
            confidence,
            points,
            pair.color if pair.color is not None else _grey_color(pair.left),
            pair.calibration,
            pair.stamp_ns,
            pair.frame_id,
            stages.milliseconds,
            self._rows.alignment,
            region,
            matched.searched_px,
            sigma_px,
            depth_sigma_m,
            matched.disparity,
            earlier,
        )

    def match(self, pair: StereoPair, stages: StageTimer | None = None) -> Matched:
        """Return every disparity, refined, and what its confidence follows from."""
        options, stages = self.options, stages or StageTimer()
        aligned, prior = self.prior(pair, stages)
        match = None
        if options.refine and self._chooser is not None:
            with stages('match'):
                match = match_around(aligned.left, aligned.right, prior.disparity, self._chooser)
        start = match.disparity if match else prior.disparity
        with stages('refine'):
            refinement = refine_disparity(
                aligned.left, aligned.right, start, options.refinement, options.refine
            )
            disparity = disparity_from_columns(refinement.disparity, aligned.calibration)
        with stages('confidence'):
            features = confidence_features(
                aligned.left, prior.confidence, prior.disparity, refinement, match
            )
        return Matched(disparity, features, self._searched_px(aligned))

    def prior(
        self, pair: StereoPair, stages: StageTimer | None = None
    ) -> tuple[StereoPair, DisparityPrediction]:
        """Return the pair as it is matched, rows aligned, and the backend's answer at its size."""
        backend, stages = self.backend, stages or StageTimer()
        with stages('preprocess'):
            given = aligned_principal_points(pair)
        with stages('rows'):
            aligned = self._rows_aligned(given)
        with stages('preprocess'):
            network = network_pair(aligned, backend.size_multiple, self.network_width_px)
        with stages('inference'):
            prediction = _believable(backend.predict(network.left, network.right), network)
        with stages('preprocess'):
            prior = full_size_prediction(prediction, aligned, self.network_width_px)
        with stages('rows'):
            aligned = self._rows_learnt(given, aligned, prior.disparity)
        return aligned, prior

    def _steadied(
        self,
        disparity: FloatImage,
        sigma_px: FloatImage | None,
        confidence: FloatImage,
        pair: StereoPair,
        pose: Pose | None,
    ) -> tuple[FloatImage, str]:
        """Return the disparity with what the frame before knows, and what became of that frame."""
        if sigma_px is None:
            return disparity, 'left out: the model has no calibration of sigma'
        if pose is None:
            return disparity, 'left out: no pose'
        before, reason = self._earlier, 'there is none'
        # Sigma gets NaN where the result is rejected; the next frame wants all of it.
        now = EarlierFrame(disparity, sigma_px.copy(), pair.calibration, pair.stamp_ns, pose)
        if before is not None:
            disparity, reason = steadied(now, confidence, before)
        kept = disparity
        if pair.own_mask is not None:  # what moves along is no ground
            kept = np.where(pair.own_mask, np.float32(np.nan), disparity)
        self._earlier = replace(now, disparity=kept)
        return disparity, f'left out: {reason}' if reason else 'used'

    def check_chooser(self) -> None:
        """Let the chooser answer its self-test again, where it has one.

        Raises:
            ModelError: It fails, or answers otherwise than when its file was made.
        """
        check_answer = getattr(self._chooser, 'check_answer', None)
        if check_answer is not None:
            check_answer()

    def reset_rows(self) -> None:
        """Forget the row alignment: the next pair is of another rig."""
        self._rows.reset()

    def _keep_to_time(self, pair: StereoPair) -> None:
        """Choose the network's width where target and image size were not seen together yet."""
        target_ms = self.options.target_ms
        asked = (target_ms, pair.calibration.width, pair.calibration.height)
        own_width = self.backend.max_width_px
        if own_width is None or asked == self._timed or not (target_ms or self._timed):
            return
        self._timed = asked if target_ms else None
        self.network_width_px = own_width
        if not target_ms:
            return
        probe = StereoReconstructor(
            self.backend, replace(self.options, target_ms=0.0), self._chooser
        )

        def reconstruct(width: int) -> None:
            probe.network_width_px = width
            probe.reconstruct(pair)

        self.network_width_px = widest_within(
            target_ms, pair.calibration.width, reconstruct, own_width
        )

    def _searched_px(self, aligned: StereoPair) -> tuple[float, float]:
        """Return the smallest and largest disparity that the backend searches, pixels.

        Args:
            aligned: The pair as it is matched, less than a column between its principal points.
        """
        network_width, _ = content_size(aligned, self.network_width_px)
        largest = self.backend.max_disparity_px * aligned.calibration.width / network_width
        offset = aligned.calibration.disparity_offset_px
        return 0.0 - offset, largest - offset

    def _rows_aligned(self, given: StereoPair) -> StereoPair:
        if given.calibration != self._rig:
            self._rig = given.calibration
            self._rows.reset()
        if not self.options.align_rows:
            return given
        return with_rows_aligned(given, self._rows.alignment)

    def _rows_learnt(
        self, given: StereoPair, aligned: StereoPair, disparity: FloatImage
    ) -> StereoPair:
        """Learn from a matched frame; return it with its rows as they are known to be now."""
        if not self.options.align_rows or not self._rows.due():
            return aligned
        before = self._rows.alignment
        self._rows.update(estimate_row_alignment(given.left, given.right, disparity, before))
        change = self._rows.alignment.minus(before)
        # What the network matched will do for the refinement unless the rows were unknown so far.
        if change.largest_px(given.calibration.width) < ROW_CHANGE_PX:
            return aligned
        return with_rows_aligned(given, self._rows.alignment)

    def _accepted(
        self, disparity: FloatImage, confidence: FloatImage, pair: StereoPair
    ) -> FloatImage:
        """Return the disparity with NaN wherever the options reject the estimate."""
        focal_times_baseline = pair.calibration.fx * pair.calibration.baseline_m
        if self.options.dense:
            # What the backend takes for infinitely far gets a depth too. NaN stays NaN.
            smallest = max(MIN_DISPARITY_PX, focal_times_baseline / MAX_DEPTH_M)
            return np.maximum(disparity, np.float32(smallest))
        max_range_m = min(self.options.max_range_m, MAX_DEPTH_M)
        keep = disparity >= max(MIN_DISPARITY_PX, focal_times_baseline / max_range_m)
        keep &= confidence >= self.options.confidence_threshold
        keep &= disparity * self.options.min_range_m <= focal_times_baseline
        return np.where(keep, disparity, np.float32(np.nan))


class StageTimer:
    """Milliseconds of each named stage, in the order they ran."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of a `with` statement."""
        start = time.perf_counter()
        yield
        elapsed = 1e3 * (time.perf_counter() - start)
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + elapsed


def filled_disparity(matched: Matched, confidence: FloatImage, left: FloatImage) -> FloatImage:
    """Return (H, W) pixels: the disparity, that of the surroundings where nothing is seen.

    Args:
        matched: What was found.
        confidence: (H, W) in [0, 1].
        left: (H, W) in [0, 1].
    """
    return follow_surroundings(
        matched.disparity,
        confidence,
        matched.features[FEATURES.index('outside')],
        matched.features[FEATURES.index('dark')],
        blindness(matched.features, left),
    )


def _believable(prediction: DisparityPrediction, network: StereoPair) -> DisparityPrediction:
    """Return the prediction with NaN where a disparity is infinite or wider than the image.

    Raises:
        ModelError: It is of another size than the images.
    """
    disparity = prediction.disparity
    if disparity.shape != network.left.shape:
        raise ModelError(
            f'the matcher answers {disparity.shape} to images of {network.left.shape}; one size '
            'is needed'
        )
    believable = np.abs(disparity) <= disparity.shape[1]
    believable |= np.isnan(disparity)
    if believable.all():
        return prediction
    unknown = np.float32(np.nan)
    return DisparityPrediction(
        np.where(believable, disparity, unknown),
        np.where(believable, prediction.confidence, unknown),
    )


def _cut(disparity: FloatImage, region: Region) -> FloatImage:
    """Return the disparity with NaN outside of the region."""
    cut = np.full_like(disparity, np.nan)
    rows, columns = region.slices()
    cut[rows, columns] = disparity[rows, columns]
    return cut


def _grey_color(image: FloatImage) -> np.ndarray:
    grey = np.asarray(cv2.multiply(image, 255.0, dtype=cv2.CV_8U))
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))
