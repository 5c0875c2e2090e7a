"""`python -m training texture-pairs --out DIR --count 500`: pairs of warped textures, as files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.data.texture_pairs import HEIGHT, plane_pair, texture_pair, WIDTH


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('texture-pairs', help='write cheap pairs of warped textures')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--count', type=int, default=500)
    parser.add_argument('--seed', type=int, default=9)
    parser.add_argument(
        '--planes', action='store_true', help='warp by tilted planes in perspective'
    )
    parser.add_argument('--width', type=int, default=WIDTH, help='width of the images, pixels')
    parser.add_argument('--height', type=int, default=HEIGHT, help='height of the images, pixels')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the pairs as `NNNNN.npz`; existing pairs are kept."""
    args.out.mkdir(parents=True, exist_ok=True)
    make = plane_pair if args.planes else texture_pair
    for number in tqdm(range(args.count), unit='pair'):
        path = args.out / f'{number:05d}.npz'
        if path.exists():
            continue
        pair = make(args.seed, number, args.width, args.height)
        partial = args.out / f'.{number:05d}.{os.getpid()}.npz'
        np.savez(partial, **pair)
        os.replace(partial, path)
    return 0
