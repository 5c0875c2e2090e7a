"""The doctor's round on a running node, behind its service ~/doctor.

The page is that of `lunar-stereo doctor`, with what only a running node knows: what DDS has lost.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.bags.reader import BagFrame
from lunar_stereo_recon.doctor.collect import BagSettings, Subject, take_frames
from lunar_stereo_recon.doctor.examination import examine
from lunar_stereo_recon.doctor.findings import Finding, Report, Severity
from lunar_stereo_recon.doctor.streams import check_streams, Stream
from lunar_stereo_recon.files.self_masks import read_self_mask
from lunar_stereo_recon.messages import StereoTopics
from lunar_stereo_recon.pairing import OTHER
from lunar_stereo_recon.ros.parameters import ReconstructionParameters
from lunar_stereo_recon.ros.recent_inputs import RecentInputs
from lunar_stereo_recon.ros.stereo_sync import SyncStatistics


def examine_node(
    source: str,
    recent: RecentInputs,
    topics: StereoTopics,
    parameters: ReconstructionParameters,
    statistics: SyncStatistics,
    backend: Backend,
    turn: Callable[[], AbstractContextManager[None]],
    why_no_pair: str,
    static_baseline_m: float = 0.0,
    static_baseline_text: str = '',
) -> Report:
    """Return everything that is found about the rig of a running node.

    May be called in any thread, with copies of what the node's callbacks change.

    Args:
        source: Name of the node, for the title.
        recent: What it received last.
        topics: Where that came from.
        parameters: Parameters of the node.
        statistics: What became of its inputs.
        backend: The matcher.
        turn: Entered around each pair that it matches.
        why_no_pair: Serves where no pair came.
        static_baseline_m: Distance of the cameras on /tf_static, where it is used; else 0.
        static_baseline_text: What is said about it.
    """
    subject = Subject(source)
    streams = {
        name: Stream(getattr(topics, name), *recent.times_ns(name))
        for name in ('left_image', 'right_image', 'left_info', 'right_info')
    }
    subject.left, subject.right = streams['left_image'], streams['right_image']
    left_info, right_info = (
        _of_file(streams[f'{side}_info'], statistics.infos[side]) for side in OTHER
    )
    tolerance_s = parameters.tolerance_ns * 1e-9
    subject.findings += check_streams(
        subject.left, subject.right, left_info, right_info, tolerance_s
    )
    subject.findings.append(_losses(statistics))
    if recent.pairs:
        frames = [
            BagFrame(
                index,
                messages.stamp_ns,
                messages.left,
                messages.right,
                messages.left_info,
                messages.right_info,
                topics,
                static_baseline_m=static_baseline_m,
                static_baseline_text=static_baseline_text,
            )
            for index, messages in enumerate(recent.pairs)
        ]
        take_frames(frames, _settings(parameters, topics), subject)
    else:
        advice = 'see docs/ros.md, "When something is wrong"'
        subject.findings.append(Finding('pairs', Severity.FAULT, why_no_pair, advice))
    masks = parameters.self_mask, parameters.self_mask_right
    self_mask = read_self_mask(*masks) if any(masks) else None
    return examine(subject, backend, self_mask=self_mask, turn=turn)


def _settings(parameters: ReconstructionParameters, topics: StereoTopics) -> BagSettings:
    raw = True if parameters.rectify else None if parameters.detect_raw else False
    return BagSettings(
        topics=topics,
        baseline_m=parameters.baseline,
        white_level=parameters.white_level or None,
        rectify=raw,
    )


def _of_file(stream: Stream, count: int) -> Stream:
    """Return the stream of a camera_info; one from a file counts as having come once."""
    if stream.stamps_ns.size or not count:
        return stream
    once = np.ones(1, np.int64)
    return Stream(stream.topic, once, once)


def _losses(statistics: SyncStatistics) -> Finding:
    """Return what DDS says it has lost."""
    lost = {
        reason: count for reason, count in statistics.drops.items() if reason.startswith('lost')
    }
    name = 'transport'
    if not lost:
        return Finding(name, Severity.GOOD, 'nothing was lost on the way, as far as DDS knows')
    text = ', '.join(f'{count} messages {reason}' for reason, count in lost.items())
    return Finding(
        name,
        Severity.WARNING,
        text,
        'give the camera driver the memory that large messages need: docs/ros.md, "Memory of the '
        'transport"',
    )
