"""`python -m training general-scenes --out DIR --count 3000`: scenes of random things."""

from __future__ import annotations

import argparse
from pathlib import Path
import time

from tqdm import tqdm

from training.data.general_scenes import SPLITS, write_scenes


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('general-scenes', help='write scenes of random things')
    parser.add_argument(
        '--out', type=Path, required=True, help='folder to write; existing scenes are kept'
    )
    parser.add_argument('--count', type=int, required=True, help='number of scenes')
    parser.add_argument('--seed', type=int, default=1, help='seed of everything random')
    parser.add_argument('--split', default='train', choices=tuple(SPLITS))
    parser.add_argument('--photos', type=Path, help='folder of photographs to use as textures')
    parser.add_argument('--workers', type=int, default=1, help='number of processes (default: 1)')
    parser.add_argument(
        '--minutes', type=float, help='stop after this many minutes; call again to continue'
    )
    parser.set_defaults(run=run, work=work)


def run(args: argparse.Namespace) -> int:
    """Write what is missing."""
    work(args)
    return 0


def work(args: argparse.Namespace) -> bool:
    """Write what is missing; return whether all scenes are there."""
    started, written = time.monotonic(), 0
    scenes = write_scenes(args.out, args.count, args.seed, args.photos, args.split, args.workers)
    for _ in tqdm(scenes, total=args.count, unit='scene'):
        written += 1
        if args.minutes is not None and time.monotonic() - started > 60 * args.minutes:
            break
    scenes.close()
    return written == args.count
