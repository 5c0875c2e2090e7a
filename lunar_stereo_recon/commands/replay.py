"""`lunar-stereo replay`: every frame of a recording, offline, in one process and without ROS."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
import time
from typing import Any, TYPE_CHECKING

from lunar_stereo_recon.commands.run import (
    add_reconstruction_arguments,
    add_self_mask_argument,
    reconstructor,
)
from lunar_stereo_recon.commands.viewer_arguments import add_viewer_arguments
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_json

if TYPE_CHECKING:
    from lunar_stereo_recon.bags.reader import BagFrame, StereoBagReader
    from lunar_stereo_recon.bags.writer import BagWriter
    from lunar_stereo_recon.datatypes import StereoPair
    from lunar_stereo_recon.messages import StereoTopics
    from lunar_stereo_recon.offline import PairOptions
    from lunar_stereo_recon.pipeline import StereoReconstructor
    from lunar_stereo_recon.viewer import RerunViewer


OUTPUTS = ('points2', 'confidence', 'disparity', 'depth')
RESULT_BAG = 'result'


@dataclass
class ReplayCounts:
    """What became of the frames.

    Attributes:
        frames: Synchronized frames read.
        latencies_ms: From the undecoded frame to its reconstruction, one for each that worked.
        stages_ms: Milliseconds of each stage, one for each frame that worked.
        errors: Frames that could not be used, by message.
    """

    frames: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'replay',
        help='reconstruct a recorded bag, offline',
        description='Reconstruct every frame of a rosbag2 recording in one process, without ROS; '
        'write a bag of results, a fused cloud, a contact sheet and a summary.',
    )
    parser.add_argument('bag', type=Path, help='Recording: a rosbag2 folder, .mcap or .db3')
    parser.add_argument('--out', type=Path, default=Path('out/replay'), help='folder for results')
    parser.add_argument(
        '--outputs',
        nargs='+',
        choices=OUTPUTS,
        default=list(OUTPUTS),
        help='results to write to the bag; points2 is needed for the fused cloud and the figures',
    )
    add_bag_arguments(parser)
    parser.add_argument(
        '--fusion-range',
        type=float,
        default=12.0,
        metavar='M',
        help='largest depth of the points in the fused cloud, metres (default: 12)',
    )
    parser.add_argument(
        '--no-report', action='store_true', help='write only the bag and the summary'
    )
    add_viewer_arguments(parser)
    add_reconstruction_arguments(parser)
    add_self_mask_argument(parser)
    parser.set_defaults(run=run)


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the stereo frames of a bag are read."""
    parser.add_argument(
        '--baseline',
        type=float,
        default=0.0,
        metavar='M',
        help='distance between the cameras instead of that of the calibration, metres',
    )
    parser.add_argument(
        '--white-level', type=float, help='pixel value of white, e.g. 4095 for 12-bit data'
    )
    parser.add_argument(
        '--rectify',
        action=argparse.BooleanOptionalAction,
        help='rectify the images by D, K, R and P of their camera_infos (default: only '
        'if they have distortion and their topics are not called rectified)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=0.0,
        metavar='S',
        help='largest difference between left and right stamps, seconds; 0 needs equal stamps',
    )
    parser.add_argument(
        '--calibration',
        nargs='+',
        type=Path,
        metavar='YAML',
        help='camera_info files of the left and the right camera, or one file of both (Kalibr, '
        'OpenCV), for a bag without camera_infos',
    )
    for name in ('left-image', 'right-image', 'left-info', 'right-info'):
        parser.add_argument(
            f'--{name}', metavar='TOPIC', help='topic in the bag (default: found by its name)'
        )


def run(args: argparse.Namespace) -> int:
    """Reconstruct the bag, write the results, print the table."""
    from tqdm import tqdm

    from lunar_stereo_recon.bags.writer import BagWriter
    from lunar_stereo_recon.viewer import opened_viewer

    check_bag_numbers(args)
    check_numbers(('--fusion-range', args.fusion_range, True))
    with opened_bag(args) as reader:
        engine = reconstructor(args)
        print(
            f'{reader.frame_count} stereo frames of {args.bag} '
            f'({reader.topics.left_image}); {engine.backend.name} on {engine.backend.provider}'
        )
        with (
            opened_viewer(args) as viewer,
            BagWriter(args.out / RESULT_BAG, overwrite=True) as writer,
            tqdm(total=reader.frame_count, desc='reconstructing', unit='frame') as bar,
        ):
            start = time.perf_counter()
            counts = replay(reader, engine, writer, args, bar.update, viewer)
            elapsed_s = time.perf_counter() - start
        unpaired = Counter(f'{item.side} {item.reason}' for item in reader.unpaired)
    if not counts.latencies_ms:
        raise _nothing_worked(args.bag, counts, unpaired)
    summary = _summary(args, counts, unpaired, elapsed_s)
    report = 'points2' in args.outputs and not args.no_report
    if report:
        summary.update(_report(args, counts.frames))
    path = args.out / 'summary.json'
    write_json(path, summary)
    _print_results(args.out, summary, report)
    return 0


def check_bag_numbers(args: argparse.Namespace) -> None:
    """Refuse what would show only at the end, or not at all.

    Raises:
        InputError: A number is not allowed.
    """
    check_numbers(('--baseline', args.baseline, False), ('--tolerance', args.tolerance, False))
    if args.white_level is not None:
        check_numbers(('--white-level', args.white_level, True))


def check_numbers(*numbers: tuple[str, float, bool]) -> None:
    """Refuse (argument, value, whether it must be positive) that are not allowed."""
    for name, value, positive in numbers:
        if not (value > 0 or (value == 0 and not positive)) or value == float('inf'):
            needed = 'a number above 0' if positive else '0 or more'
            raise InputError(f'{name} is {value:g}; {needed} is needed')


def opened_bag(args: argparse.Namespace) -> StereoBagReader:
    """Return the bag of the arguments, opened.

    Raises:
        InputError: It cannot be read, or has no such rig.
    """
    from lunar_stereo_recon.bags.reader import StereoBagReader

    return StereoBagReader(
        args.bag,
        given_topics(args),
        tolerance_s=args.tolerance,
        calibration=args.calibration or (),
    )


def given_topics(args: argparse.Namespace) -> StereoTopics | None:
    """Return the topics of the arguments; None where they shall be found.

    Raises:
        InputError: Some are given, but not all four.
    """
    from lunar_stereo_recon.messages import StereoTopics

    given = (args.left_image, args.right_image, args.left_info, args.right_info)
    if not any(given):
        return None
    if args.calibration:
        if not all(given[:2]) or any(given[2:]):
            raise InputError(
                '--left-image and --right-image: both or none; --calibration stands for the infos'
            )
        return StereoTopics(args.left_image, args.right_image, '', '')
    if not all(given):
        raise InputError(
            '--left-image, --right-image, --left-info, --right-info: all four or none'
        )
    return StereoTopics(*given)


def replay(
    reader: StereoBagReader,
    engine: StereoReconstructor,
    writer: BagWriter,
    args: argparse.Namespace,
    progress: Any,
    viewer: RerunViewer | None = None,
) -> ReplayCounts:
    """Reconstruct each frame and write its results; a frame that cannot be used is counted."""
    from lunar_stereo_recon.offline import outcomes, write_result

    counts = ReplayCounts()
    for outcome in outcomes(reader.frames(), engine, pair_options(args)):
        counts.frames += 1
        if outcome.pair is None or outcome.result is None:
            counts.errors[outcome.error] += 1
        else:
            if not counts.latencies_ms:
                print_doubts(outcome.frame, outcome.pair, args)
            counts.latencies_ms.append(outcome.latency_ms)
            counts.stages_ms.append(outcome.result.timings_ms)
            write_result(writer, outcome.result, args.outputs)
            if viewer is not None:
                pose = outcome.frame.pose
                matrix = None if pose is None else pose.matrix
                viewer.show(outcome.pair, outcome.result, matrix)
        progress(1)
    return counts


def pair_options(args: argparse.Namespace) -> PairOptions:
    """Return how the pairs of the bag are made."""
    from lunar_stereo_recon.offline import PairOptions

    return PairOptions(args.baseline, args.white_level, args.rectify)


def print_doubts(frame: BagFrame, pair: StereoPair, args: argparse.Namespace) -> None:
    """Say what was assumed about a frame, and what is probably wrong with it."""
    from lunar_stereo_recon.bags.reader import frame_doubts

    doubts = frame_doubts(
        frame, pair, args.white_level, baseline_m=args.baseline, rectify=args.rectify
    )
    for text in doubts.texts():
        print(text)


def _summary(
    args: argparse.Namespace, counts: ReplayCounts, unpaired: Counter[str], elapsed_s: float
) -> dict[str, Any]:
    """Return the summary in the demo's form."""
    import numpy as np

    from lunar_stereo_recon.evaluation.machine import describe_machine

    p50, p95 = np.percentile(counts.latencies_ms, [50, 95])
    return {
        'bag': str(args.bag),
        'backend': args.backend,
        'frames': {
            'in': counts.frames,
            'out': len(counts.latencies_ms),
            'dropped': sum(counts.errors.values()),
            'reasons': dict(counts.errors),
            'images_without_partner': dict(unpaired),
        },
        'rate_hz': len(counts.latencies_ms) / elapsed_s,
        'latency_ms': {'p50': float(p50), 'p95': float(p95)},
        'stages_ms_median': {
            stage: float(np.median([stages[stage] for stages in counts.stages_ms]))
            for stage in counts.stages_ms[0]
        },
        'machine': describe_machine(),
    }


def _report(args: argparse.Namespace, frames: int) -> dict[str, Any]:
    from tqdm import tqdm

    from lunar_stereo_recon.evaluation.recordings import ReportSettings, write_report

    settings = ReportSettings(
        max_range_m=args.fusion_range,
        topics=given_topics(args),
        calibration=tuple(args.calibration or ()),
        tolerance_s=args.tolerance,
        baseline_m=args.baseline,
        white_level=args.white_level,
        rectify=args.rectify,
    )
    with tqdm(total=frames, desc='looking at the results', unit='frame') as bar:
        return write_report(args.bag, args.out / RESULT_BAG, args.out, settings, bar.update)


def _nothing_worked(bag: Path, counts: ReplayCounts, unpaired: Counter[str]) -> InputError:
    """Return the error for a bag of which no frame could be used."""
    if counts.errors:
        text, number = counts.errors.most_common(1)[0]
        return InputError(
            f'{bag}: none of {counts.frames} frames can be used; {number} of them: {text}'
        )
    dropped = ', '.join(f'{number} {reason}' for reason, number in unpaired.items())
    return InputError(
        f'{bag}: no left and right image with matching stamps ({dropped}); --tolerance S allows '
        'a difference'
    )


def _print_results(out: Path, summary: dict[str, Any], report: bool) -> None:
    from lunar_stereo_recon.evaluation.summary_table import format_summary

    if report:
        print(format_summary(summary))
    else:
        frames, latency = summary['frames'], summary['latency_ms']
        print(
            f'{frames["in"]} frames in, {frames["out"]} out, {summary["rate_hz"]:.1f} Hz, '
            f'p50 {latency["p50"]:.0f} ms, p95 {latency["p95"]:.0f} ms'
        )
        for reason, number in frames['reasons'].items():
            print(f'  {number} frames cannot be used: {reason}')
    for reason, number in summary['frames']['images_without_partner'].items():
        print(f'  {number} images without a partner: {reason}')
    for name in ('fused.ply', 'cloud.png', 'contact_sheet.png', 'summary.json', RESULT_BAG):
        if (out / name).exists():
            print(f'  {out / name}')
