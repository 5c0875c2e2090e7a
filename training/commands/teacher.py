"""`python -m training teacher`: reconstruct one rectified pair with a teacher or paper student."""

from __future__ import annotations

import argparse
from pathlib import Path
import time

import numpy as np

from lunar_stereo_recon.datatypes import Reconstruction
from lunar_stereo_recon.files.calibrations import load_calibration
from lunar_stereo_recon.files.images import read_image
from lunar_stereo_recon.files.results import write_reconstruction
from training.models.checkpoints import load_pointmap_model
from training.models.pair_reconstruction import LONG_SIDE, reconstruct_pair


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'teacher',
        help='reconstruct a pair with a MASt3R teacher or a student of the paper',
        description='Reconstruct a rectified pair; writes a PLY cloud and PNG maps.',
    )
    parser.add_argument('left', type=Path, help='left image')
    parser.add_argument('right', type=Path, help='right image')
    parser.add_argument(
        '--checkpoint', type=Path, required=True, help='.pth file as published, or .safetensors'
    )
    parser.add_argument(
        '--student', metavar='NAME', help='student of the paper in the .pth: S1, S2, S3 or S4'
    )
    parser.add_argument(
        '--calibration',
        nargs='+',
        type=Path,
        metavar='YAML',
        help="calibration that makes the result metric; without it the prediction's "
        'own unit and camera are used',
    )
    parser.add_argument(
        '--baseline',
        type=float,
        metavar='M',
        help='distance between the cameras instead of that of the calibration, metres',
    )
    parser.add_argument(
        '--confidence',
        type=float,
        default=0.0,
        help='smallest confidence of the points that are kept, in [0, 1)',
    )
    parser.add_argument(
        '--size', type=int, default=LONG_SIDE, help='long side of the network input, pixels'
    )
    parser.add_argument(
        '--white-level', type=float, help='pixel value of white, e.g. 4095 for 12-bit data'
    )
    parser.add_argument('--device', default='cpu', help='torch device, e.g. cuda')
    parser.add_argument(
        '--out', type=Path, default=Path('out/teacher'), help='folder for the results'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reconstruct the pair, write the files, print a summary."""
    left, right = read_image(args.left), read_image(args.right)
    calibration = None
    if args.calibration:
        height, width = left.shape[:2]
        calibration = load_calibration(args.calibration, width, height, args.baseline)
    model = load_pointmap_model(args.checkpoint, args.student).to(args.device)
    start = time.perf_counter()
    result = reconstruct_pair(
        model, left, right, calibration, args.confidence, args.size, args.white_level
    )
    seconds = time.perf_counter() - start
    paths = write_reconstruction(args.out, args.left.stem, result, arrays=True)
    _print_summary(result, seconds, metric=calibration is not None)
    print('\n'.join(str(path) for path in paths))
    return 0


def _print_summary(result: Reconstruction, seconds: float, metric: bool) -> None:
    valid, rig = result.valid_mask, result.calibration
    unit = 'm' if metric else "(prediction's unit)"
    print(f'{rig.width}x{rig.height}, {100 * valid.mean():.1f} % valid, {seconds:.2f} s')
    print(f'focal length {rig.fx:.1f} px, baseline {rig.baseline_m:.4g} {unit}')
    if valid.any():
        near, middle, far = np.percentile(result.depth[valid], [1, 50, 99])
        print(f'depth 1 % {near:.3g}, median {middle:.3g}, 99 % {far:.3g} {unit}')
