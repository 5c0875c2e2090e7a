"""`lunar-stereo bench`: student, refinement and classical matchers side by side in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lunar_stereo_recon.evaluation import PairScore
    from lunar_stereo_recon.manifest import ManifestEntry

# Backend, refinement, holes filled from the background.
METHODS = {
    'student': ('onnx', False, False),
    'student + refinement': ('onnx', True, False),
    'SGBM 3WAY': ('sgbm', False, False),
    'SGBM 3WAY + fill': ('sgbm', False, True),
    'SGBM HH + fill': ('sgbm_hh', False, True),
    'BM + fill': ('bm', False, True),
    'BM padded + fill': ('bm_padded', False, True),
}
WARM_UPS = 2


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'bench',
        help='accuracy and speed beside the classical matchers',
        description='Score the student and the classical matchers on the pairs of a manifest '
        'that have ground truth, in one run on this machine.',
    )
    parser.add_argument('manifest', type=Path, help='manifest.json')
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads for every method')
    parser.add_argument('--method', action='append', choices=METHODS, help='only this one')
    parser.add_argument('--tags', action='store_true', help='also print a table for each method')
    parser.add_argument('--json', type=Path, help='write all figures to this file')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one table; figures are pooled over the pixels of all pairs."""
    import json

    import cv2

    from lunar_stereo_recon.errors import InputError
    from lunar_stereo_recon.evaluation import format_table, summarise
    from lunar_stereo_recon.machine import describe_machine
    from lunar_stereo_recon.manifest import load_manifest

    entries = [entry for entry in load_manifest(args.manifest) if entry.ground_truth is not None]
    if not entries:
        raise InputError(f'no pair of {args.manifest} has ground truth ("gt")')
    cv2.setNumThreads(args.threads)
    machine = describe_machine()
    sizes = sorted({(e.calibration.width, e.calibration.height) for e in entries})
    print(f'{machine["processor"]}, {args.threads} threads, {machine["system"]}')
    print(f'{len(entries)} pairs, {", ".join(f"{w}x{h}" for w, h in sizes)}')
    results = {name: summarise(_scores(name, entries, args)) for name in args.method or METHODS}
    print()
    print(_comparison(results))
    if args.tags:
        for name, summary in results.items():
            print(f'\n{format_table(name, summary)}')
    if args.json:
        document = {'machine': machine, 'threads': args.threads, 'results': results}
        args.json.write_text(json.dumps(document, indent=1), encoding='utf-8')
    return 0


def _scores(
    method: str, entries: list[ManifestEntry], args: argparse.Namespace
) -> list[PairScore]:
    import time

    import numpy as np
    from tqdm import tqdm

    from lunar_stereo_recon.evaluation import load_ground_truth, score_pair
    from lunar_stereo_recon.geometry.disparity import fill_from_background

    estimate = _estimator(method, args)
    scores = []
    for number, entry in enumerate(tqdm(entries, desc=method, unit='pair', leave=False)):
        pair = entry.load_pair()
        for _ in range(0 if number else WARM_UPS):
            estimate(pair)
        start = time.perf_counter()
        disparity, confidence = estimate(pair)
        if METHODS[method][2]:
            disparity, confidence = fill_from_background(disparity), None
        milliseconds = 1e3 * (time.perf_counter() - start)
        truth = load_ground_truth(entry.ground_truth, *pair.left.shape)
        scores.append(
            score_pair(
                np.asarray(disparity),
                truth,
                pair.calibration.fx * pair.calibration.baseline_m,
                confidence,
                entry.tag,
                milliseconds,
            )
        )
    return scores


def _estimator(method: str, args: argparse.Namespace) -> Callable:
    """Return a function of a pair that gives disparity and confidence (None without)."""
    from lunar_stereo_recon.backends import load_backend
    from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor

    name, refine, _ = METHODS[method]
    backend = load_backend(name, args.model, threads=args.threads)
    if name != 'onnx':  # the matcher itself, without the stages around it
        return lambda pair: (backend.predict(pair.left, pair.right).disparity, None)
    engine = StereoReconstructor(backend, ReconstructionOptions(dense=True, refine=refine))

    def reconstructed(pair):
        result = engine.reconstruct(pair)
        return result.disparity, result.confidence

    return reconstructed


def _comparison(results: dict[str, dict]) -> str:
    """Return a Markdown table with one line a method, overall figures."""
    lines = [
        '| method | density % | EPE px | bad-0.5 % | bad-1 % | bad-2-all % | shadow bad-2-all % '
        '| AbsRel % | delta<1.05 % | AUSE | ECE | ms p50 |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name, summary in results.items():
        figures = summary['overall']
        every = figures['all']
        cells = [
            name,
            f'{100 * every["density"]:.2f}',
            f'{every["epe_px"]:.3f}',
            *(f'{100 * every[key]:.2f}' for key in ('bad05', 'bad1', 'bad2_all')),
            f'{100 * figures["shadow"]["bad2_all"]:.2f}',
            *(f'{100 * every[key]:.2f}' for key in ('absrel', 'delta105')),
            *('' if figures[key] is None else f'{figures[key]:.3f}' for key in ('ause', 'ece')),
            f'{figures["ms_median"]:.0f}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)
