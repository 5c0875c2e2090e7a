"""`lunar-stereo dataset`: rendered stereo pairs with exact truth, resumable, in parallel."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from pathlib import Path
import time

from lunar_stereo_recon.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'dataset', help='render stereo pairs of random lunar ground with exact ground truth'
    )
    parser.add_argument(
        '--out', type=Path, required=True, help='folder to write; existing pairs are kept'
    )
    parser.add_argument('--count', type=int, required=True, help='number of pairs')
    parser.add_argument('--seed', type=int, default=1, help='seed of everything random')
    parser.add_argument(
        '--split', default='train', help='train, calibration or test; they share no terrain'
    )
    parser.add_argument(
        '--form',
        default='pairs',
        help='pairs (NNNNNN.npz), stereolunar (folders of .jpg, .exr, .npz with a pair '
        'index) or bags (mcap, one for each terrain); default: pairs',
    )
    parser.add_argument(
        '--size',
        type=_size,
        default=(384, 256),
        help='part of the 640x480 frame that is rendered (default: 384x256)',
    )
    parser.add_argument(
        '--full', action='store_const', const=None, dest='size', help='render whole 640x480 frames'
    )
    parser.add_argument(
        '--faults', type=Path, help='YAML file of camera faults (docs/simulation.md)'
    )
    parser.add_argument(
        '--rocks',
        default='heightfield',
        help='form of the rocks: heightfield, or mesh, which has overhangs and is '
        'about a sixth slower (default: heightfield)',
    )
    parser.add_argument(
        '--stratum',
        help='only boulders (fields of mesh rocks) or rover (its own parts in view): whole frames '
        'with mesh rocks, as the strata of the benchmark that have these names',
    )
    parser.add_argument('--workers', type=int, default=1, help='number of processes (default: 1)')
    parser.add_argument(
        '--device',
        default='cpu',
        help='device that renders: cpu, or cuda, which the processes share',
    )
    parser.add_argument(
        '--samples',
        type=int,
        choices=(1, 2, 4),
        default=2,
        help='rays for each pixel (default: 2)',
    )
    parser.add_argument(
        '--minutes', type=float, help='stop after this many minutes; call again to continue'
    )
    parser.set_defaults(run=run, work=work)


def run(args: argparse.Namespace) -> int:
    """Write what is missing and say how far it is."""
    work(args)
    return 0


def work(args: argparse.Namespace) -> bool:
    """Write what is missing; return whether all pairs are there."""
    from tqdm import tqdm

    from lunar_stereo_recon.simulation.added_strata import write_stratum_dataset
    from lunar_stereo_recon.simulation.camera_faults import read_camera_faults
    from lunar_stereo_recon.simulation.dataset import DatasetOptions, MANIFEST, write_dataset
    from lunar_stereo_recon.simulation.sample import NO_FAULTS

    progress: Generator[int, None, None]
    if args.stratum is None:
        options = DatasetOptions(
            args.seed,
            args.split,
            args.size,
            args.samples,
            args.form,
            read_camera_faults(args.faults) if args.faults else NO_FAULTS,
            args.rocks,
            args.device,
        )
        progress = write_dataset(args.out, args.count, options, args.workers)
    else:
        _refuse_what_strata_have_not(args)
        progress = write_stratum_dataset(
            args.out,
            args.count,
            args.stratum,
            args.seed,
            args.split,
            args.samples,
            args.workers,
        )
    written, started, finished = 0, time.monotonic(), True
    with tqdm(total=args.count, unit='pair') as bar:
        for number in progress:
            written += number
            bar.update(number)
            # A look at what is there costs nothing: only a group that was made uses up time.
            if number and args.minutes is not None:
                finished = time.monotonic() - started < 60 * args.minutes
                if not finished:
                    break
    progress.close()
    if not finished:
        print(f'{args.out}: {written} pairs written, the time is over; call again to continue')
        return False
    print(f'{args.out}: {written} pairs written, {args.count - written} existed already')
    print(f'seeds and parameters: {args.out / MANIFEST}')
    return True


def _refuse_what_strata_have_not(args: argparse.Namespace) -> None:
    """Refuse options of other data sets beside `--stratum`.

    Raises:
        InputError: One is given.
    """
    for option, given, only in (
        ('--form', args.form, 'pairs'),
        ('--faults', args.faults, None),
        ('--device', args.device, 'cpu'),
    ):
        if given != only:
            raise InputError(
                f'--stratum {args.stratum} with {option} {given}; without {option} is needed'
            )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f'is {text!r}; WIDTHxHEIGHT is needed, like 384x256')
    return int(width), int(height)
