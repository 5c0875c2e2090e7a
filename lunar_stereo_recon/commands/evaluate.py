"""`lunar-stereo evaluate`: score predicted disparity maps against a manifest's ground truth."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'evaluate',
        help='score predictions against ground truth',
        description='Score a folder of <id>.npz (disparity, and optionally confidence and ms), '
        'such as `lunar-stereo run --manifest ... --dense --npz` writes.',
    )
    parser.add_argument('predictions', type=Path, help='folder with one <id>.npz a pair')
    parser.add_argument('--manifest', type=Path, required=True, help='manifest.json')
    parser.add_argument('--name', default='prediction', help='title of the table')
    parser.add_argument('--filled', action='store_true', help='also score with holes filled')
    parser.add_argument('--json', type=Path, help='write the figures to this file')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; a pair without prediction counts as missing everywhere."""
    import json

    from lunar_stereo_recon.errors import InputError
    from lunar_stereo_recon.evaluation import format_table, summarise
    from lunar_stereo_recon.manifest import load_manifest

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
        args.json.write_text(json.dumps(results, indent=1), encoding='utf-8')
    return 0


def _scores(directory: Path, entries: list, filled: bool) -> list:
    import sys

    import numpy as np

    from lunar_stereo_recon.errors import InputError
    from lunar_stereo_recon.evaluation import load_ground_truth, score_pair
    from lunar_stereo_recon.geometry.disparity import fill_from_background

    if not directory.is_dir():
        raise InputError(f'no folder {directory}')
    scores = []
    for entry in entries:
        size = (entry.calibration.height, entry.calibration.width)
        truth = load_ground_truth(entry.ground_truth, *size)
        focal_times_baseline = entry.calibration.fx * entry.calibration.baseline_m
        path = directory / f'{entry.id}.npz'
        arrays = {'disparity': np.full(size, np.nan, np.float32)}
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
        else:
            print(f'WARNING: no {path}; the pair counts as missing', file=sys.stderr)
        if 'disparity' not in arrays:
            raise InputError(f'{path} has no array disparity; it has {", ".join(arrays)}')
        disparity = arrays['disparity']
        scores.append(
            score_pair(
                fill_from_background(disparity) if filled else disparity,
                truth,
                focal_times_baseline,
                None if filled else arrays.get('confidence'),
                entry.tag,
                float(arrays['ms']) if 'ms' in arrays else None,
            )
        )
    return scores
