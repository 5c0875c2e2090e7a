"""`python -m training fused-labels BAG`: is a whole drive a better teacher than a single pair?

Labels that are fused over a simulated drive by its poses (see `training.fused_labels`) are
compared with the single frame's own disparities, against the true depth of the recording: on all
pixels that have a label, on those where the single frame is sure, and on those where it is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.recordings import ground_truth_of
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor
from training.bag_labels import chosen_frames
from training.fused_labels import fused_disparity, PosedFrame, SURE

# Image values below are dark.
DARK = 0.05
FAR_M = 8.0
BAD_PX = (0.5, 1.0, 2.0)
# Frames with fewer pixels of a kind do not count in its interval.
MIN_PIXELS = 50
DRAWS = 2000


@dataclass(frozen=True)
class Comparison:
    """Errors of one frame on one kind of pixels, (N,) px each.

    Attributes:
        single: Of the frame's own disparities.
        fused: Of the labels, at the same pixels.
        known: Pixels of the frame with a true depth.
    """

    single: NDArray[np.floating]
    fused: NDArray[np.floating]
    known: int


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'fused-labels', help='whether labels fused over a simulated drive beat single frames'
    )
    parser.add_argument('bag', type=Path, help='recording with true depth and poses')
    parser.add_argument('--model', type=Path, help='student (default: the shipped one)')
    parser.add_argument('--frames', type=int, default=60, help='largest number, evenly spread')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reconstruct, fuse, print the table."""
    backend = load_backend('onnx', args.model)
    reconstructor = StereoReconstructor(backend, ReconstructionOptions(dense=True))
    frames, truths, views = [], [], []
    with StereoBagReader(args.bag) as reader:
        for frame in chosen_frames(reader, args.frames):
            if frame.pose is None:
                continue
            pair = frame.pair()
            frames.append(PosedFrame(reconstructor.reconstruct(pair), frame.pose.matrix))
            truths.append(ground_truth_of(frame, pair.calibration))
            views.append(pair.left)
    judged = sum(truth is not None for truth in truths)
    if len(frames) < 2 or not judged:
        raise InputError(
            f'{args.bag}: {len(frames)} frames with a pose, {judged} with true depth; at least 2 '
            'and 1 are needed'
        )
    kinds: dict[str, list[Comparison]] = {}
    for number, truth in enumerate(truths):
        if truth is None:
            continue
        target = frames[number]
        label = fused_disparity(target, frames[:number] + frames[number + 1 :])
        known = truth.valid & target.result.valid_mask
        sure = target.result.confidence >= SURE
        for kind, chosen in {
            'labelled': np.ones(known.shape, bool),
            f'the frame is sure (>= {SURE:g})': sure,
            'it is not': ~sure,
            'dark': views[number] < DARK,
            f'beyond {FAR_M:g} m': truth.depth > FAR_M,
        }.items():
            at = known & np.isfinite(label) & chosen
            single = np.abs(target.result.disparity - truth.disparity)[at]
            fused = np.abs(label - truth.disparity)[at]
            kinds.setdefault(kind, []).append(Comparison(single, fused, int(known.sum())))
    print(f'{len(frames)} frames, {judged} with true depth\n')
    print(table(kinds))
    return 0


def table(kinds: dict[str, list[Comparison]]) -> str:
    """Return Markdown: a row a kind of pixels, with both sides' errors and their difference."""
    head = ' | '.join(['EPE px', *(f'bad-{limit:g} %' for limit in BAD_PX)])
    lines = [
        f'| pixels | share % | single: {head} | fused: {head} | difference of EPE, by frame |',
        '|---' * (5 + 2 * len(BAD_PX)) + '|',
    ]
    for kind, frames in kinds.items():
        single, fused = (
            np.concatenate([getattr(frame, side) for frame in frames])
            for side in ('single', 'fused')
        )
        if not len(single):
            continue
        share = 100 * len(single) / sum(frame.known for frame in frames)
        low, high = interval(frames)
        cells = [kind, f'{share:.1f}', *_figures(single), *_figures(fused)]
        lines.append(f'| {" | ".join(cells)} | [{low:+.3f}, {high:+.3f}] |')
    return '\n'.join(lines)


def _figures(errors: NDArray[np.floating]) -> list[str]:
    bad = [f'{100 * (errors > limit).mean():.2f}' for limit in BAD_PX]
    return [f'{errors.mean():.3f}', *bad]


def interval(frames: Sequence[Comparison]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval, over frames, of fused minus single error; px."""
    differences = np.array(
        [f.fused.mean() - f.single.mean() for f in frames if len(f.single) >= MIN_PIXELS]
    )
    if len(differences) < 2:
        return float('nan'), float('nan')
    drawn = np.random.default_rng(0).choice(differences, (DRAWS, len(differences)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
