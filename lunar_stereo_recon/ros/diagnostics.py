"""What the reconstruction node says about itself: counts, latencies, and rules for WARN.

Statuses have the form of diagnostic_updater: named '<node>: <task>', on /diagnostics, 1 Hz.
"""

from __future__ import annotations

from collections import Counter, deque
import copy
import dataclasses
from dataclasses import dataclass, field
import math
import threading
import time
from typing import Any

import numpy as np

from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration
from lunar_stereo_recon.messages import StereoTopics
from lunar_stereo_recon.ros.rclpy_messages import diagnostic_status, ERROR, OK, WARN
from lunar_stereo_recon.ros.stereo_sync import DROP_REASONS, explain_no_pairs, SyncStatistics

LATENCY_WINDOW = 100
# Below this the result is hardly of use.
LOW_CONFIDENCE = 0.15
# A stream whose last two messages were so far apart may be silent for twice that, up to this.
LONGEST_REST_S = 10.0
# Why a pair has no result although one was wanted, as it reads in a sentence.
BAD_PAIRS = {'failed': 'failed', 'stuck': 'were stuck', 'invalid': 'were refused'}
# Share of the images of a second that may stay without a partner.
FEW_PAIRS = 0.2


@dataclass
class FrameStatistics:
    """What became of the synchronized pairs; filled from two threads.

    Attributes:
        published: Reconstructions published.
        drops: Pairs not reconstructed, by reason.
        last_error: Text of the newest pair that was invalid or failed; '' where there was none.
        latencies_ms: Last times from the pair being complete to its results being published.
        mean_confidence: Mean confidence of the newest reconstruction; NaN before the first.
        rows: How the rows are aligned, in words; '' before the first reconstruction.
        rows_poor: Whether the rig needs calibrating again.
        calibration: Calibration of the newest reconstruction; None before the first.
        doubts: What is probably wrong with the newest pair, by kind.
        withheld: Why a result of the newest pair was not published, by topic.
    """

    published: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    last_error: str = ''
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_WINDOW))
    mean_confidence: float = float('nan')
    rows: str = ''
    rows_poor: bool = False
    calibration: StereoCalibration | None = None
    doubts: dict[str, str] = field(default_factory=dict)
    withheld: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count_drop(self, reason: str, error: str = '') -> None:
        """Count a pair that was not reconstructed."""
        with self.lock:
            self.drops[reason] += 1
            self.last_error = error or self.last_error

    def count_published(self, latency_ms: float, result: Reconstruction) -> None:
        """Count a published reconstruction."""
        width = result.calibration.width
        with self.lock:
            self.published += 1
            self.latencies_ms.append(latency_ms)
            self.mean_confidence = float(result.confidence.mean())
            self.rows = result.row_alignment.describe(width)
            self.rows_poor = result.row_alignment.poor(width)
            self.calibration = result.calibration

    def snapshot(self) -> FrameStatistics:
        """Return a copy that no thread changes."""
        with self.lock:
            return dataclasses.replace(
                self, drops=Counter(self.drops), latencies_ms=self.latencies_ms.copy()
            )


@dataclass(frozen=True)
class MatcherState:
    """What the matcher is.

    Attributes:
        facts: About model and provider, shown as they are.
        error: Why the matcher is not the one that was asked for; '' where it is.
        warning: A lasting problem such as a fallback provider; '' where there is none.
    """

    facts: dict[str, str]
    error: str = ''
    warning: str = ''


class Pulse:
    """Tells a slow stream from one that has stopped, by its count."""

    def __init__(self) -> None:
        """Begin with a stream that never began."""
        self._count = 0
        self._last_s = -math.inf
        self._rest_s = 0.0

    def beats(self, count: int, now_s: float) -> bool:
        """Say whether the stream runs; `count` is of all that came so far."""
        if count > self._count:
            self._rest_s = min(2 * (now_s - self._last_s), LONGEST_REST_S)
            self._count, self._last_s = count, now_s
        return now_s - self._last_s <= self._rest_s


class NodeReport:
    """Compares the statistics of one second with those of the last.

    Attributes:
        publishers: Number of publishers by input topic, set by the node; for texts.
        conflicts: QoS policy that does not fit, by input topic; set by the node.
        refused: QoS policies that subscribers of results asked for in vain, by topic; set by the
            node.
        wrong_stamps: What is wrong with the stamps of the images of the last second; '' where
            nothing is.
    """

    def __init__(self, node_name: str, topics: StereoTopics, tolerance_ns: int) -> None:
        """Start with empty statistics.

        Args:
            node_name: Prefix of the statuses' names.
            topics: Resolved topic names, for texts.
            tolerance_ns: Tolerance of the synchronizer, for texts.
        """
        self.publishers: dict[str, int] = {}
        self.conflicts: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.wrong_stamps = ''
        self._node_name = node_name
        self._topics = topics
        self._tolerance_ns = tolerance_ns
        self._sync = SyncStatistics()
        self._frames = FrameStatistics()
        self._pairs_pulse, self._results_pulse = Pulse(), Pulse()
        self._time = time.monotonic()
        self._silence_since = self._time
        self._sync_at_silence = SyncStatistics()
        self._frames_at_silence = FrameStatistics()

    def silence(
        self, sync: SyncStatistics, frames: FrameStatistics, limit_s: float, resting: str
    ) -> str | None:
        """Return why nothing came out for `limit_s` seconds; None where something did.

        Resting on purpose (see `statuses`) is no silence. The time starts again with each answer.
        """
        now = time.monotonic()
        spoke = (
            bool(resting) or limit_s == 0 or frames.published > self._frames_at_silence.published
        )
        if not spoke and now - self._silence_since < limit_s:
            return None
        reason = None if spoke else self._reason(sync, frames)
        self._silence_since = now
        self._sync_at_silence, self._frames_at_silence = copy.deepcopy(sync), frames.snapshot()
        return reason

    def statuses(
        self,
        sync: SyncStatistics,
        frames: FrameStatistics,
        matcher: MatcherState,
        resting: str,
    ) -> list[Any]:
        """Return the DiagnosticStatus messages of the second since the last call.

        Args:
            sync: Statistics of the synchronizer now.
            frames: Statistics of the pairs now.
            matcher: What matches now.
            resting: Why nothing is done, on purpose; '' where there is work.
        """
        now = time.monotonic()
        elapsed = max(now - self._time, 1e-3)
        pairs_come = self._pairs_pulse.beats(sync.pairs, now)
        results_come = self._results_pulse.beats(frames.published, now)
        statuses = [
            self._input_status(sync, elapsed, resting, pairs_come),
            self._output_status(sync, frames, elapsed, resting, results_come),
            self._calibration_status(frames),
            self._matcher_status(matcher),
        ]
        self._time, self._sync, self._frames = now, copy.deepcopy(sync), frames.snapshot()
        return statuses

    def _reason(self, sync: SyncStatistics, frames: FrameStatistics) -> str:
        before = self._frames_at_silence
        new = frames.drops - before.drops
        for reason, words in BAD_PAIRS.items():
            if new[reason]:
                return f'{new[reason]} pairs {words}: {frames.last_error}'
        if sync.pairs > self._sync_at_silence.pairs:
            return 'pairs are coming, but none is finished yet'
        return self.why_no_pair(sync)

    def why_no_pair(self, sync: SyncStatistics) -> str:
        """Return why no pair comes, from what came since the last silence, and what to do."""
        return explain_no_pairs(
            self._sync_at_silence,
            sync,
            self._topics,
            self._tolerance_ns,
            self.publishers,
            self.conflicts,
        )

    def _input_status(
        self, sync: SyncStatistics, elapsed: float, resting: str, pairs_come: bool
    ) -> Any:
        before = self._sync
        rates = {
            f'{side} image rate [Hz]': (sync.images[side] - before.images[side]) / elapsed
            for side in ('left', 'right')
        }
        pair_rate = (sync.pairs - before.pairs) / elapsed
        level, text = OK, f'{pair_rate:.1f} pairs per second'
        self.wrong_stamps = self._wrong_stamps(sync)
        if resting:
            text = resting
        elif self.wrong_stamps:
            level, text = WARN, self.wrong_stamps
        elif not pairs_come:
            level = WARN
            text = explain_no_pairs(
                before,
                sync,
                self._topics,
                self._tolerance_ns,
                self.publishers,
                self.conflicts,
            )
        elif few := self._few_pairs(sync):
            level, text = WARN, few
        values = {
            **rates,
            'pair rate [Hz]': pair_rate,
            'left images': sync.images['left'],
            'right images': sync.images['right'],
            'pairs': sync.pairs,
            **{f'QoS does not fit: {topic}': policy for topic, policy in self.conflicts.items()},
            **{f'dropped: {reason}': count for reason, count in sorted(sync.drops.items())},
        }
        return diagnostic_status(level, f'{self._node_name}: input', text, values)

    def _wrong_stamps(self, sync: SyncStatistics) -> str:
        """Return what is wrong with the stamps of this second's images; '' where nothing is."""
        topics = {'left': self._topics.left_image, 'right': self._topics.right_image}
        texts = []
        for side, topic in topics.items():
            back = sync.backward[side] - self._sync.backward[side]
            if back:
                texts.append(
                    f'{back} images of {topic} are older than the one before, the last by '
                    f'{sync.step_back_ns * 1e-6:.3g} ms: is the clock of the camera set back?'
                )
            same = sync.repeated[side] - self._sync.repeated[side]
            if same:
                texts.append(
                    f'{same} images of {topic} have the stamp of the one before: does the '
                    'driver stamp each image?'
                )
        return '; '.join(texts)

    def _few_pairs(self, sync: SyncStatistics) -> str:
        """Return why much fewer pairs than images came; '' where they are about as many."""
        before = self._sync
        images = min(sync.images[side] - before.images[side] for side in ('left', 'right'))
        pairs = sync.pairs - before.pairs
        # Some images wait for their partner when the second ends.
        if images - pairs <= max(2, FEW_PAIRS * images):
            return ''
        drops = sync.drops - before.drops
        reason, count = max(drops.items(), key=lambda item: item[1], default=('', 0))
        text = f'{images} images of each side, but {pairs} pairs'
        if not count:
            return text
        side, _, why = reason.partition(' ')
        if why not in DROP_REASONS:
            return f'{text}; {count} messages {reason}'
        what = 'pairs' if side == 'pair' else f'{side} images'
        return f'{text}; {count} {what} were given up: {DROP_REASONS[why]}'

    def _output_status(
        self,
        sync: SyncStatistics,
        frames: FrameStatistics,
        elapsed: float,
        resting: str,
        results_come: bool,
    ) -> Any:
        before = self._frames
        rate = (frames.published - before.published) / elapsed
        level, text = OK, f'{rate:.1f} reconstructions per second'
        new = frames.drops - before.drops
        if new['failed'] or new['stuck']:
            level, text = ERROR, f'pairs fail: {frames.last_error}'
        elif new['invalid']:
            level, text = ERROR, f'pairs are refused: {frames.last_error}'
        elif resting:
            text = resting
        elif sync.pairs > self._sync.pairs and not results_come:
            level, text = WARN, 'pairs come in, but no reconstruction came out'
        elif frames.withheld:
            level, (topic, why) = WARN, next(iter(frames.withheld.items()))
            text = f'{topic} is not published: {why}'
        elif frames.rows_poor:
            level, text = WARN, frames.rows
        elif frames.published > before.published and frames.mean_confidence < LOW_CONFIDENCE:
            level = WARN
            text = (
                f'mean confidence is {frames.mean_confidence:.2f}: are the images dark, blurred, '
                'not rectified, or left and right exchanged?'
            )
        elif new['superseded']:
            text = f'{text}; {new["superseded"]} pairs superseded by newer ones'
        latencies = list(frames.latencies_ms)
        p50, p95 = np.percentile(latencies, [50, 95]) if latencies else (0.0, 0.0)
        values = {
            'rate [Hz]': rate,
            'reconstructions': frames.published,
            'latency p50 [ms]': float(p50),
            'latency p95 [ms]': float(p95),
            'mean confidence': frames.mean_confidence,
            'row alignment': frames.rows,
            **{f'QoS not offered: {topic}': policy for topic, policy in self.refused.items()},
            **{f'dropped: {reason}': count for reason, count in sorted(frames.drops.items())},
        }
        return diagnostic_status(level, f'{self._node_name}: output', text, values)

    def _calibration_status(self, frames: FrameStatistics) -> Any:
        calibration = frames.calibration
        level, text, values = OK, 'no pair yet', {}
        if calibration is not None:
            text = (
                f'{calibration.width}x{calibration.height}, baseline {calibration.baseline_m:g} m'
            )
            values = dataclasses.asdict(calibration)
        if frames.doubts:
            level, text = WARN, '; '.join(frames.doubts.values())
        sources = {'left': self._topics.left_info, 'right': self._topics.right_info}
        values |= {f'{side} camera_info': source for side, source in sources.items()}
        return diagnostic_status(level, f'{self._node_name}: calibration', text, values)

    def _matcher_status(self, matcher: MatcherState) -> Any:
        level, text = (WARN, matcher.warning) if matcher.warning else (OK, 'ready')
        if matcher.error:
            level, text = ERROR, matcher.error
        return diagnostic_status(level, f'{self._node_name}: model', text, matcher.facts)
