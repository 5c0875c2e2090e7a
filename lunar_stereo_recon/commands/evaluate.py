"""`lunar-stereo evaluate`: score predicted disparity maps against a manifest's ground truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TYPE_CHECKING

from lunar_stereo_recon.files.atomic import write_json

if TYPE_CHECKING:
    from lunar_stereo_recon.evaluation.scores import PairScore
    from lunar_stereo_recon.files.manifests import ManifestEntry


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'evaluate',
        help='score predictions against ground truth',
        description='Score a folder of <id>.npz (disparity, and optionally confidence and ms), '
        'such as `lunar-stereo run --manifest ... --dense --npz` writes.',
    )
    parser.add_argument('predictions', type=Path, help='folder with one <id>.npz for each pair')
    parser.add_argument(
        '--manifest',
        type=Path,
        required=True,
        help='manifest.json with the pairs and their ground truth',
    )
    parser.add_argument('--name', default='prediction', help='title of the table')
    parser.add_argument(
        '--filled', action='store_true', help='score the predictions with filled holes too'
    )
    parser.add_argument('--json', type=Path, help='write the figures to this file')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; a pair without prediction counts as missing everywhere."""
    from lunar_stereo_recon.errors import InputError
    from lunar_stereo_recon.evaluation.scores import format_table, summarise
    from lunar_stereo_recon.files.manifests import load_manifest

    entries = [entry for entry in load_manifest(args.manifest) if entry.ground_truth is not None]
    if not entries:
        raise InputError(f'no pair of {args.manifest} has ground truth ("gt")')
    results = {args.name: summarise(_scores(args.predictions, entries, filled=False))}
    if args.filled:
        filled = summarise(_scores(args.predictions, entries, filled=True))
        results[f'{args.name} + fill'] = filled
    for name, summary in results.items():
        print(format_table(name, summary), end='\n\n')
    if args.json:
        write_json(args.json, results, indent=1)
    return 0


def _scores(directory: Path, entries: list[Any], filled: bool) -> list[Any]:
    import sys

    import numpy as np

    from lunar_stereo_recon.errors import InputError
    from lunar_stereo_recon.evaluation.scores import load_ground_truth
    from lunar_stereo_recon.files.arrays import load_arrays

    if not directory.is_dir():
        raise InputError(f'no folder {directory}')
    paths = {entry.id: directory / f'{entry.id}.npz' for entry in entries}
    if not any(path.is_file() for path in paths.values()):
        raise InputError(
            f'{directory} has no prediction of any pair of the manifest; <id>.npz is needed, '
            f'such as {entries[0].id}.npz'
        )
    scores = []
    for entry in entries:
        size = (entry.calibration.height, entry.calibration.width)
        factor = entry.calibration.fx * entry.calibration.baseline_m
        truth = load_ground_truth(entry.ground_truth, *size, factor)
        path = paths[entry.id]
        arrays = {'disparity': np.full(size, np.nan, np.float32)}
        if path.is_file():
            arrays = load_arrays(path, 'prediction')
        else:
            print(f'WARNING: no {path}; the pair counts as missing', file=sys.stderr)
        if 'disparity' not in arrays:
            raise InputError(f'{path} has no array disparity; it has {", ".join(arrays)}')
        try:
            scores.append(_score(arrays, truth, entry, filled))
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f'{path}: {error}') from error
    return scores


def _score(arrays: dict[str, Any], truth: Any, entry: ManifestEntry, filled: bool) -> PairScore:
    from lunar_stereo_recon.evaluation.scores import score_pair
    from lunar_stereo_recon.geometry.disparity import fill_from_background

    disparity = arrays['disparity']
    return score_pair(
        fill_from_background(disparity) if filled else disparity,
        truth,
        entry.calibration.fx * entry.calibration.baseline_m,
        None if filled else arrays.get('confidence'),
        entry.tag,
        float(arrays['ms']) if 'ms' in arrays else None,
    )
