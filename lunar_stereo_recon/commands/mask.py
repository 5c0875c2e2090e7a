"""`lunar-stereo mask`: learns from a drive which pixels show the rover itself."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from lunar_stereo_recon.commands.replay import add_bag_arguments, check_bag_numbers, opened_bag
from lunar_stereo_recon.commands.run import add_reconstruction_arguments, reconstructor
from lunar_stereo_recon.errors import InputError, ReconError

# Below this, the two halves of the drive tell different masks.
GOOD_AGREEMENT = 0.8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'mask',
        help='learn which pixels show the rover itself',
        description='Find what stays still in image and depth while the rover drives: '
        'mask.png and mask_right.png (white is the rover) for the parameters self_mask and '
        'self_mask_right, and mask_view.png to look at. A recording in which nothing moves is '
        'refused.',
    )
    parser.add_argument('bag', type=Path, help='Recording: a rosbag2 folder, .mcap or .db3')
    parser.add_argument('--out', type=Path, default=Path('out/mask'), help='folder for results')
    parser.add_argument(
        '--within',
        type=float,
        default=3.0,
        metavar='M',
        help='largest distance of parts of the rover from the camera, metres',
    )
    parser.add_argument(
        '--most-frames', type=int, default=40, metavar='N', help='frames that are looked at'
    )
    add_bag_arguments(parser)
    add_reconstruction_arguments(parser)
    parser.set_defaults(run=run, self_mask=[])


def run(args: argparse.Namespace) -> int:
    """Look at the frames, write the masks and the picture, say how sure they are."""
    import numpy as np
    from tqdm import tqdm

    from lunar_stereo_recon.evaluation.self_mask_learning import SelfMaskLearner
    from lunar_stereo_recon.files.results import write_png

    check_bag_numbers(args)
    if args.most_frames < 2:
        raise InputError(f'--most-frames is {args.most_frames}; 2 or more are needed')
    learner, left_out, picture = SelfMaskLearner(args.within), Counter[str](), None
    with opened_bag(args) as reader:
        engine = reconstructor(args)
        # Every n-th: frames that follow each other show less of what moves.
        every = max(1, reader.frame_count // args.most_frames)
        for frame in tqdm(reader.frames(), total=reader.frame_count, unit='frame'):
            if frame.index % every:
                continue
            try:
                pair = frame.pair(
                    baseline_m=args.baseline, white_level=args.white_level, rectify=args.rectify
                )
                result = engine.reconstruct(pair)
                learner.add(pair, result)
            except ReconError as error:
                left_out[str(error)] += 1
                continue
            picture = result.color
    for text, count in left_out.items():
        print(f'{count} frames are left out: {text}')
    learnt = learner.learn()
    print(f'{learnt.frames} frames; {100 * learnt.moving:.0f} % of the lit pixels move')
    if picture is None or not learnt.left.any():
        print(f'No part of the rover is within {args.within:g} m in view: no mask is needed')
        return 0
    print(
        f'{100 * learnt.share:.1f} % of the left image shows the rover; its disparity stays in '
        f'{100 * learnt.persistence:.0f} % of the frames; the masks of every other frame and of '
        f'those between agree in {100 * learnt.agreement:.0f} %'
    )
    if learnt.agreement < GOOD_AGREEMENT:
        print('That is little: look at mask_view.png, or take a longer drive with turns')
    args.out.mkdir(parents=True, exist_ok=True)
    view = picture.copy()
    view[learnt.left] = (0.5 * view[learnt.left] + [127, 30, 0]).astype(np.uint8)
    for name, image in (
        ('mask.png', learnt.left.astype(np.uint8) * 255),
        ('mask_right.png', learnt.right.astype(np.uint8) * 255),
        ('mask_view.png', view),
    ):
        write_png(args.out / name, image)
        print(f'  {args.out / name}')
    return 0
