"""`python -m training halve PAIRS --out DIR`: pairs at half their size, for `flight_small`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lunar_stereo_recon.backends.student_file import SIZE_MULTIPLE
from lunar_stereo_recon.files.arrays import load_arrays
from training.data.batches import ARRAYS, list_samples, OPTIONAL_ARRAYS, zoom

# What has no size, where a file has it.
KEPT = ('baseline_m', 'meta')


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('halve', help='write pairs at half their size')
    parser.add_argument('pairs', type=Path, help='folder of pairs (.npz)')
    parser.add_argument(
        '--out', type=Path, required=True, help='folder to write; existing pairs are kept'
    )
    parser.add_argument(
        '--whole',
        action='store_true',
        help=f'cut sides to multiples of {SIZE_MULTIPLE} px, as whole frames for validation are',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write what is missing, below the same names.

    Raises:
        InputError: The folder has no pairs, or one cannot be read.
    """
    paths = list_samples([args.pairs])
    args.out.mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, unit='pair'):
        target = args.out / path.name
        if target.exists():
            continue
        arrays = load_arrays(path, 'rendered pair', ARRAYS, (*OPTIONAL_ARRAYS, *KEPT))
        kept = {name: arrays.pop(name) for name in KEPT if name in arrays}
        halved = zoom(arrays, 0.5)
        if args.whole:
            halved = {
                name: array if name == 'intrinsics' else array[_whole(array.shape)]
                for name, array in halved.items()
            }
        partial = args.out / f'.{path.stem}.{os.getpid()}.npz'
        content: dict[str, Any] = halved | kept
        np.savez(partial, **content)
        os.replace(partial, target)
    return 0


def _whole(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the largest part from the upper left corner with sides of whole multiples."""
    height, width = (side // SIZE_MULTIPLE * SIZE_MULTIPLE for side in shape)
    return slice(height), slice(width)
