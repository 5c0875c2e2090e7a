"""`lunar-stereo demo`: a recorded drive through the nodes, over DDS, to a cloud and a table."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
import importlib.util
import json
import os
from pathlib import Path
import shutil
import time
from typing import Any, TYPE_CHECKING

from lunar_stereo_recon.commands.replay import (
    add_bag_arguments,
    check_bag_numbers,
    check_numbers,
    given_topics,
    opened_bag,
    print_doubts,
)
from lunar_stereo_recon.commands.run import add_self_mask_argument, given_self_mask
from lunar_stereo_recon.commands.viewer_arguments import add_viewer_arguments
from lunar_stereo_recon.errors import InputError, ReconError
from lunar_stereo_recon.files.atomic import write_json

if TYPE_CHECKING:
    from lunar_stereo_recon.messages import StereoTopics

DEMO_BAG = Path(__file__).resolve().parent.parent / 'data' / 'demo_traverse'
NODES = ('recorder_node', 'reconstruction_node', 'replay_node')
LEFT_RAW, RIGHT_RAW = '/left/image_raw', '/right/image_raw'
# Long enough for a slow machine to load the model; then something is wrong.
LAST_NEWS_S = 1.0
STALL_LIMIT_S = 60.0
# What the parameter `backend` of the node takes.
NODE_BACKENDS = ('onnx', 'openvino', 'auto', 'sgbm', 'sgbm_hh', 'bm')


@dataclass(frozen=True)
class DemoRig:
    """The rig of a recording, and what the nodes need to know about it.

    Attributes:
        topics: Its topics in the bag.
        count: Stereo frames.
        compressed: The images are CompressedImages.
        raw: The images must be rectified.
        baseline_m: Overrides that of the camera_infos where positive, metres.
    """

    topics: StereoTopics
    count: int
    compressed: bool
    raw: bool
    baseline_m: float


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'demo',
        help='replay a drive through the ROS 2 nodes and show what comes out',
        description='Replay node, reconstruction node and recorder as three processes over DDS; '
        'then a fused cloud, a contact sheet and a table of figures.',
    )
    parser.add_argument(
        '--bag', type=Path, default=DEMO_BAG, help='recording to use instead of the shipped one'
    )
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='folder for results')
    parser.add_argument(
        '--backend', default='onnx', help='matcher: onnx, openvino, auto, sgbm, sgbm_hh or bm'
    )
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.add_argument(
        '--rate',
        type=float,
        default=0.0,
        help='speed relative to the recording; 0 sends each frame when the one before is done',
    )
    parser.add_argument(
        '--fusion-range',
        type=float,
        default=12.0,
        metavar='M',
        help='largest depth of the points in the fused cloud, metres (default: 12)',
    )
    add_bag_arguments(parser)
    add_self_mask_argument(parser)
    add_viewer_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the nodes, write the results, print the table."""
    from lunar_stereo_recon.backends import check_backend
    from lunar_stereo_recon.evaluation.machine import describe_machine
    from lunar_stereo_recon.evaluation.recordings import ReportSettings, write_report
    from lunar_stereo_recon.evaluation.summary_table import format_summary
    from lunar_stereo_recon.viewer import opened_viewer

    check_ros()
    check_backend(args.backend, args.model)
    if args.backend not in NODE_BACKENDS:
        raise InputError(
            f'--backend is {args.backend}, which the node has not; it has '
            f'{", ".join(NODE_BACKENDS)}'
        )
    check_bag_numbers(args)
    check_numbers(('--rate', args.rate, False), ('--fusion-range', args.fusion_range, True))
    given_self_mask(args)  # what cannot be read is said before any node starts
    rig = find_rig(args)
    count = rig.count
    _clear(args.out)
    print(f'{count} stereo frames of {args.bag}')
    run_nodes(args, rig)
    recorded = json.loads((args.out / 'recording.json').read_text(encoding='utf-8'))
    bar = _progress_bar(count, 'looking at the results')
    with bar, opened_viewer(args) as viewer:
        settings = ReportSettings(
            max_range_m=args.fusion_range,
            topics=given_topics(args),
            calibration=tuple(args.calibration or ()),
            tolerance_s=args.tolerance,
            baseline_m=rig.baseline_m,
            white_level=args.white_level,
            rectify=rig.raw,
        )
        figures = write_report(
            args.bag,
            args.out / 'result',
            args.out,
            settings,
            bar.update,
            None if viewer is None else viewer.show,
        )
    summary = {
        'bag': str(args.bag),
        'backend': args.backend,
        'frames': frame_counts(recorded, count, figures['frames_with_cloud']),
        'rate_hz': received_rate_hz(recorded),
        **latencies(recorded),
        **figures,
        'machine': describe_machine(),
    }
    path = args.out / 'summary.json'
    write_json(path, summary)
    print(format_summary(summary))
    for name in (
        'fused.ply',
        'cloud.png',
        'map.png',
        'contact_sheet.png',
        'summary.json',
        'result',
    ):
        if (args.out / name).exists():
            print(f'  {args.out / name}')
    return 0


def check_ros() -> None:
    """Raise where rclpy is missing.

    Raises:
        ReconError: It says how to get rclpy, and what works without.
    """
    if importlib.util.find_spec('rclpy') is None:
        raise ReconError(
            'the demo runs ROS 2 nodes, but rclpy is not installed: source your ROS, or '
            "`pip install 'lunar_stereo_recon[ros]'`; `lunar-stereo replay BAG` needs no ROS"
        )


def find_rig(args: argparse.Namespace) -> DemoRig:
    """Return the rig of the recording; say what is taken for granted about it.

    Raises:
        InputError: There is none, or no two of its images belong together.
        CalibrationError: Its camera_infos cannot be used.
    """
    with opened_bag(args) as reader:
        frame = next(reader.frames(), None)
        if frame is None:
            raise InputError(
                f'{args.bag}: no left and right image with matching stamps; --tolerance S allows '
                'a difference'
            )
        pair = frame.pair(
            baseline_m=args.baseline, white_level=args.white_level, rectify=args.rectify
        )
        print_doubts(frame, pair, args)
        kind = reader.all_topics[reader.topics.left_image]
        return DemoRig(
            reader.topics,
            reader.frame_count,
            kind.endswith('CompressedImage'),
            frame.looks_raw if args.rectify is None else args.rectify,
            args.baseline or frame.static_baseline_m,
        )


def run_nodes(args: argparse.Namespace, rig: DemoRig) -> None:
    """Replay the bag through the nodes until every frame is answered.

    Raises:
        ReconError: A node ended early, or nothing came for `STALL_LIMIT_S`.
    """
    from lunar_stereo_recon.ros.frame_progress import FrameProgress
    from lunar_stereo_recon.ros.node_processes import NodeProcesses, private_domain

    logs = args.out / 'logs'
    environment = private_domain()
    # The bar's own subscription is made in this process and must stay on this machine as well.
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = environment['ROS_AUTOMATIC_DISCOVERY_RANGE']
    with (
        NodeProcesses(environment, logs) as nodes,
        FrameProgress(int(environment['ROS_DOMAIN_ID'])) as progress,
        _progress_bar(rig.count, 'reconstructing') as bar,
    ):
        nodes.start(
            'recorder_node',
            {
                'bag': str(args.out / 'result'),
                'overwrite': True,
                'summary': str(args.out / 'recording.json'),
            },
            # The left image that the node takes tells the recorder when it was published.
            {'left/image_rect': LEFT_RAW} if rig.raw else None,
        )
        _wait_for_recorder(nodes, args.out / 'result')
        nodes.start(
            'reconstruction_node',
            {
                'backend': args.backend,
                'model': str(args.model or ''),
                'input_transport': 'compressed' if rig.compressed else 'raw',
                'rectify': rig.raw,
                'detect_raw': False,
                # The map of the drive is as certain as the points that it is made of.
                'sigma': True,
                'baseline': rig.baseline_m,
                'white_level': float(args.white_level or 0),
                **_calibration_urls(args),
                **dict(zip(('self_mask', 'self_mask_right'), args.self_mask, strict=False)),
                'approximate_sync': args.tolerance > 0,
                'approximate_sync_tolerance_seconds': args.tolerance or 0.01,
            },
            large_messages=True,
        )
        # Answers that are given before the bar listens would be missing in it.
        _wait_for_node(nodes, progress)
        remappings = _remappings(rig)
        nodes.start(
            'replay_node',
            {
                'bag': str(args.bag),
                'rate': args.rate,
                'flow_control': args.rate == 0,
                'wait_for_subscribers': STALL_LIMIT_S,
                # The recorder keeps uncompressed left images, to know when each was published.
                'min_subscribers': 1 if rig.compressed else 2,
                'topics': list(remappings),
                **dataclasses.asdict(rig.topics),
            },
            remappings,
            large_messages=True,
        )
        _follow(nodes, progress, bar)
        for name in ('recorder_node', 'reconstruction_node'):
            status = nodes.stop(name)
            if status != 0:
                raise nodes.failure(name, f'ended with status {status}')


def _follow(nodes: Any, progress: Any, bar: Any) -> None:
    """Advance the bar until the replay is over."""
    last_news = time.monotonic()
    while nodes.status('replay_node') is None:
        nodes.check_running(NODES[:2])
        new = progress.wait(0.1)
        now = time.monotonic()
        if new:
            bar.update(new)
            last_news = now
        elif now - last_news > STALL_LIMIT_S:
            raise nodes.failure('reconstruction_node', f'gave nothing for {STALL_LIMIT_S:g} s')
    if nodes.status('replay_node') != 0:
        status = nodes.status('replay_node')
        raise nodes.failure('replay_node', f'ended with status {status}')
    # The last answers may still be on their way here.
    last_news = time.monotonic()
    while bar.n < bar.total and time.monotonic() - last_news < LAST_NEWS_S:
        if new := progress.wait(0.1):
            bar.update(new)
            last_news = time.monotonic()


def _wait_for_recorder(nodes: Any, bag: Path) -> None:
    """Wait until the recorder has made its bag, which it does just before it subscribes.

    Results published before somebody subscribes would be lost.
    """
    deadline = time.monotonic() + STALL_LIMIT_S
    while not bag.exists():
        nodes.check_running(['recorder_node'])
        if time.monotonic() > deadline:
            raise nodes.failure('recorder_node', f'made no bag within {STALL_LIMIT_S:g} s')
        time.sleep(0.05)


def _wait_for_node(nodes: Any, progress: Any) -> None:
    """Wait until the reconstruction node can tell the bar what it has done."""
    deadline = time.monotonic() + STALL_LIMIT_S
    while not progress.wait_for_node(1.0):
        nodes.check_running(NODES[:2])
        if time.monotonic() > deadline:
            raise nodes.failure('reconstruction_node', f'did not start in {STALL_LIMIT_S:g} s')


def _remappings(rig: DemoRig) -> dict[str, str]:
    """Return the bag's topics to the node's, all in the root namespace."""
    topics, suffix = rig.topics, '/compressed' if rig.compressed else ''
    left, right = (LEFT_RAW, RIGHT_RAW) if rig.raw else ('/left/image_rect', '/right/image_rect')
    names = {
        topics.left_image: f'{left}{suffix}',
        topics.right_image: f'{right}{suffix}',
        topics.left_info: '/left/camera_info',
        topics.right_info: '/right/camera_info',
    }
    return {topic: name for topic, name in names.items() if topic}


def _calibration_urls(args: argparse.Namespace) -> dict[str, str]:
    """Return the node's parameters for camera_infos from files."""
    sides = zip(('left', 'right'), args.calibration or (), strict=False)
    return {f'{side}_camera_info_url': str(path.resolve()) for side, path in sides}


def _clear(directory: Path) -> None:
    """Make the folder and delete what an earlier demo left in it, nothing else.

    Raises:
        InputError: The path is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f'{directory} is a file; a folder for the results is needed')
    directory.mkdir(parents=True, exist_ok=True)
    for name in ('logs', 'result'):
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in (
        'contact_sheet.png',
        'cloud.png',
        'map.png',
        'fused.ply',
        'recording.json',
        'summary.json',
    ):
        (directory / name).unlink(missing_ok=True)


def frame_counts(recorded: dict[str, Any], sent: int, with_cloud: int) -> dict[str, Any]:
    """Return how many frames went in and came out, and why the others did not.

    Args:
        recorded: Summary of the recorder node.
        sent: Stereo frames of the bag.
        with_cloud: Frames whose cloud is in the result bag.
    """
    reasons = {
        name: number for name, number in recorded['outcomes'].items() if name != 'published'
    }
    unexplained = sent - with_cloud - sum(reasons.values())
    if unexplained > 0:
        reasons['lost on the way'] = unexplained
    return {'in': sent, 'out': with_cloud, 'dropped': sent - with_cloud, 'reasons': reasons}


def received_rate_hz(recorded: dict[str, Any]) -> float:
    """Return clouds a second from the first received to the last, 0 for fewer than two.

    Args:
        recorded: Summary of the recorder node.
    """
    times = [f['received_ns'] for f in recorded['frames'] if f['received_ns'] is not None]
    return 1e9 * (len(times) - 1) / (max(times) - min(times)) if len(times) > 1 else 0.0


def latencies(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return p50 and p95 of the latency, and the median of each stage inside the node, ms.

    The latency is from the left image being published to its cloud being received; where images
    were not recorded (compressed ones), from the pair being complete to its results being
    published.
    """
    import numpy as np

    frames = [frame for frame in recorded['frames'] if frame['outcome'] == 'published']
    whole = [f['latency_ms'] for f in frames if f['latency_ms'] is not None]
    inside = [f['latency [ms]'] for f in frames if 'latency [ms]' in f]
    figures: dict[str, Any] = {}
    for name, values in (('latency_ms', whole), ('node_latency_ms', inside)):
        if values:
            p50, p95 = np.percentile(values, [50, 95])
            figures[name] = {'p50': float(p50), 'p95': float(p95)}
    stages = [key for key in (frames[0] if frames else {}) if key.endswith(' [ms]')]
    figures['stages_ms_median'] = {
        key.removesuffix(' [ms]'): float(np.median([frame[key] for frame in frames]))
        for key in stages
    }
    return figures


def _progress_bar(count: int, what: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=count, desc=what, unit='frame')
