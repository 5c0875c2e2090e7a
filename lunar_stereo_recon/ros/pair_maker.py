"""Makes a pair of synchronized messages: baseline, raw or rectified, doubts about the input.

The parameters decide where they say something. Elsewhere the messages do, and what was taken for
granted is logged once and kept for the diagnostics.
"""

from __future__ import annotations

import math
import time

from rclpy.node import Node

from lunar_stereo_recon.datatypes import StereoPair
from lunar_stereo_recon.doubts import baseline_doubt, looks_raw, white_level_doubt
from lunar_stereo_recon.errors import CalibrationError, InputError, quoted
from lunar_stereo_recon.messages import (
    BASELINE_AGREEMENT,
    baseline_of_camera_infos,
    pair_from_messages,
    StereoTopics,
)
from lunar_stereo_recon.ros.parameters import ReconstructionParameters
from lunar_stereo_recon.ros.static_frames import StaticFrames
from lunar_stereo_recon.ros.stereo_sync import StereoMessages

# A kind of doubt is logged so often at most.
LOG_THROTTLE_S = 5.0


class PairMaker:
    """Makes pairs in the worker's thread; `refresh` is called where the node is spun.

    Attributes:
        doubts: What is probably wrong with the newest pair, by kind.
        static_baseline_m: Baseline of the newest pair where it comes from /tf_static, metres;
            else 0.
    """

    def __init__(self, node: Node, topics: StereoTopics) -> None:
        """Begin without doubts.

        Args:
            node: Owner.
            topics: Where images and infos come from, for texts.
        """
        self.doubts: dict[str, str] = {}
        self.static_baseline_m = 0.0
        self._node = node
        self._topics = topics
        self._frames = StaticFrames(node)
        # Last text of each kind in the log, and when: with numbers in it, each pair may have
        # another one.
        self._told: dict[str, tuple[str, float]] = {}

    def refresh(self) -> None:
        """Listen to /tf_static where a pair needs it."""
        self._frames.refresh()

    def close(self) -> None:
        """Unsubscribe."""
        self._frames.close()

    def pair(self, messages: StereoMessages, parameters: ReconstructionParameters) -> StereoPair:
        """Return the pair of a synchronized set.

        Raises:
            InputError: An image cannot be used.
            CalibrationError: A camera_info cannot be used, or nothing tells the baseline.
        """
        raw = parameters.detect_raw and looks_raw(
            self._topics, messages.left_info, messages.right_info
        )
        baseline_m = self._baseline_m(messages, parameters)
        white_level = parameters.white_level or None
        pair = pair_from_messages(
            messages.left,
            messages.right,
            messages.left_info,
            messages.right_info,
            baseline_m=baseline_m,
            white_level=white_level,
            rectify=parameters.rectify or raw,
            topics=self._topics,
        )
        self._doubt('raw images', self._raw_text() if raw and not parameters.rectify else '')
        self._doubt(
            'baseline size',
            ''
            if parameters.baseline > 0
            else baseline_doubt(pair.calibration.baseline_m, self._topics.right_info),
        )
        self._doubt(
            'white level',
            white_level_doubt(messages.left, pair, white_level, self._topics.left_image),
        )
        return pair

    def _baseline_m(self, messages: StereoMessages, parameters: ReconstructionParameters) -> float:
        """Return what overrides the baseline in P, metres; 0 where nothing does."""
        self._doubt('baseline', '')
        self.static_baseline_m = 0.0
        infos = messages.left_info, messages.right_info
        try:
            from_info = baseline_of_camera_infos(*infos, topics=self._topics)
        except CalibrationError as error:
            # With the parameter there is nothing to compare with: it is there for just this case.
            return parameters.baseline or self._baseline_of_frames(messages, error)
        given = parameters.baseline
        if given > 0 and abs(from_info - given) > BASELINE_AGREEMENT * given:
            self._doubt(
                'baseline',
                f"the parameter 'baseline' is {given:g} m, but P[3] of "
                f'{self._topics.right_info} says {from_info:g} m; the parameter is used',
            )
        return given

    def _baseline_of_frames(self, messages: StereoMessages, missing: CalibrationError) -> float:
        """Return the distance of the cameras' frames, metres.

        Raises:
            CalibrationError: It is not known; `missing` with the reason.
        """
        left, right = messages.left.header.frame_id, messages.right.header.frame_id
        if left == right:
            raise CalibrationError(
                f'{missing} (/tf_static cannot help: both cameras have the frame {quoted(left)})'
            ) from missing
        try:
            found_m = self._frames.distance_m(left, right)
        except InputError as error:
            raise CalibrationError(f'{missing} ({error})') from error
        if not found_m > 0:
            raise CalibrationError(
                f'{missing} (on /tf_static {quoted(left)} and {quoted(right)} are in one place)'
            ) from missing
        self._doubt(
            'baseline',
            f'P[3] of {self._topics.right_info} gives no baseline; {found_m:g} m is used, the '
            f'distance of {quoted(left)} and {quoted(right)} on /tf_static. The parameter '
            "'baseline' (m) overrides it",
        )
        self.static_baseline_m = found_m
        return found_m

    def _raw_text(self) -> str:
        return (
            f'{self._topics.left_image} has raw images (D of its camera_info is not 0): they are '
            "rectified. Set the parameter 'rectify' to get the rectified image too, or "
            "'detect_raw' to false where they are rectified already"
        )

    def _doubt(self, kind: str, text: str) -> None:
        """Keep a doubt, or drop it where the text is empty; log another one, not too often."""
        if not text:
            self.doubts.pop(kind, None)
            return
        self.doubts[kind] = text
        told, at_s = self._told.get(kind, ('', -math.inf))
        if text != told and time.monotonic() - at_s >= LOG_THROTTLE_S:
            self._told[kind] = text, time.monotonic()
            self._node.get_logger().warning(text)
