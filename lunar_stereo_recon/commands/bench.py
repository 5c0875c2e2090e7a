"""`lunar-stereo bench`: student, refinement and classical matchers side by side in one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
    from lunar_stereo_recon.benchmark.methods import Estimator, MethodScores
    from lunar_stereo_recon.benchmark.pairs import BenchmarkPair
    from lunar_stereo_recon.benchmark.report import BenchmarkRun

ALL = 'all'


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'bench',
        help='accuracy and speed beside the classical matchers',
        description='Score the student and the classical matchers on pairs with ground truth, in '
        'one run on this machine. Without --data the pairs are those of the benchmark, rendered '
        'on the first run (extra [sim]) and kept.',
    )
    parser.add_argument(
        '--data',
        type=Path,
        action='append',
        help='manifest, or folder of pairs (manifest.json or .npz files); several with --json',
    )
    parser.add_argument(
        '--json',
        type=Path,
        metavar='FILE',
        help='only one compact table of all sets and their subsets; its figures go to this file',
    )
    parser.add_argument('--pairs', type=int, help='only so many pairs of each stratum')
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.add_argument(
        '--backend', default='onnx', help="what runs the student: 'onnx' or 'openvino'"
    )
    parser.add_argument('--threads', type=int, default=2, help='CPU threads for every method')
    parser.add_argument(
        '--method', action='append', metavar='NAME', help='only this one; may be repeated'
    )
    parser.add_argument(
        '--degrade',
        action='append',
        default=[],
        metavar='NAME',
        help=f"also score degraded images: one of them or '{ALL}'; may be repeated",
    )
    parser.add_argument(
        '--speed', action='store_true', help='also time the network against pixels and a roofline'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('out/bench'), help='folder for tables and pictures'
    )
    parser.add_argument('--cache', type=Path, help='folder for rendered pairs')
    parser.add_argument('--workers', type=int, default=1, help='processes that render')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every table; write bench.json, bench.md and the pictures."""
    import json

    import cv2

    from lunar_stereo_recon.backends import STUDENT_BACKENDS
    from lunar_stereo_recon.benchmark.methods import load_estimator, METHODS, runs_of
    from lunar_stereo_recon.benchmark.report import BenchmarkRun
    from lunar_stereo_recon.errors import InputError

    _chosen('backend', [args.backend], STUDENT_BACKENDS)
    methods = _chosen('method', args.method or list(METHODS), METHODS)
    variants = _variants(args.degrade)
    _check_positive(args)
    if args.json is None and args.data and len(args.data) > 1:
        raise InputError(f'{len(args.data)} times --data; the full report takes one, --json more')
    cv2.setNumThreads(args.threads)
    estimators = {
        name: load_estimator(name, args.model, args.threads, args.backend)
        for name in runs_of(methods)
    }
    if args.json is not None:
        return _compact(args, methods, estimators)
    pairs = _pairs(args)
    result = BenchmarkRun(
        _setting(args, pairs, estimators), pairs, _scores(pairs, methods, estimators, variants)
    )
    result.memory_mb = _memory_mb(methods, args, pairs[0])
    _measure_speed(args, result)
    summaries = result.summaries()
    report = result.markdown(summaries)
    print(report)
    args.out.mkdir(parents=True, exist_ok=True)
    document = json.dumps(result.document(summaries), indent=1)
    (args.out / 'bench.json').write_text(document, encoding='utf-8')
    (args.out / 'bench.md').write_text(report, encoding='utf-8')
    _write_pictures(args.out, result, methods[-1], estimators)
    print(f'Written to {args.out}: bench.md, bench.json, contact sheets and plots.')
    return 0


def _compact(
    args: argparse.Namespace, methods: Sequence[str], estimators: dict[str, Estimator]
) -> int:
    """Print one table of all sets; write the figures, of the undisturbed pairs alone."""
    from dataclasses import replace
    import json

    from lunar_stereo_recon.benchmark.pairs import BenchmarkSet, first_of_each, sets_at
    from lunar_stereo_recon.benchmark.report import UNDISTURBED
    from lunar_stereo_recon.benchmark.tables import compact_table
    from lunar_stereo_recon.evaluation.scores import summarise

    if args.data:
        sets = [each for path in args.data for each in sets_at(path)]
        if args.pairs:
            sets = [replace(s, pairs=first_of_each(s.pairs, args.pairs)) for s in sets]
    else:
        sets = [BenchmarkSet('rendered', _pairs(args))]
    found: list[dict[str, Any]] = []
    for each in sets:
        scores = _scores(each.pairs, methods, estimators, [])[UNDISTURBED]
        found.append(
            {
                'name': each.name,
                'reference': each.reference,
                'mean_of_pairs': each.mean_of_pairs,
                'pairs': [pair.id for pair in each.pairs],
                'unscored': each.unscored,
                'results': {
                    method: summarise(of_method.pairs, each.mean_of_pairs)
                    for method, of_method in scores.items()
                },
            }
        )
    print(compact_table([(each['name'], each['results']) for each in found]))
    document = {'setting': _setting(args, sets[0].pairs, estimators), 'sets': found}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(document, indent=1), encoding='utf-8')
    return 0


def _chosen(option: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the known names among those asked for, in their own order."""
    from lunar_stereo_recon.errors import InputError

    for name in names:
        if name not in known:
            raise InputError(f"--{option} is '{name}'; known are {', '.join(known)}")
    return [name for name in known if name in names]


def _variants(names: Sequence[str]) -> list[str]:
    from lunar_stereo_recon.benchmark.degradations import DEGRADATIONS

    return _chosen('degrade', list(DEGRADATIONS) if ALL in names else names, list(DEGRADATIONS))


def _check_positive(args: argparse.Namespace) -> None:
    from lunar_stereo_recon.errors import InputError

    for option in ('pairs', 'threads', 'workers'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f'--{option} is {value}; it must be at least 1')


def _pairs(args: argparse.Namespace) -> list[BenchmarkPair]:
    """Return the pairs, rendered where they have to be."""
    from tqdm import tqdm

    from lunar_stereo_recon.benchmark import pairs as sources

    if args.data:
        pairs = sources.pairs_at(args.data[0])
        return sources.first_of_each(pairs, args.pairs) if args.pairs else pairs
    definition = sources.load_definition()
    pairs = sources.rendered_pairs(definition, args.cache or sources.default_cache())
    pairs = sources.first_of_each(pairs, args.pairs) if args.pairs else pairs
    missing = sum(not pair.source.exists() for pair in pairs if isinstance(pair.source, Path))
    with tqdm(total=missing, desc='rendering', unit='pair', disable=not missing) as bar:
        for written in sources.render_missing(definition, pairs, args.workers):
            bar.update(written)
    return pairs


def _setting(
    args: argparse.Namespace, pairs: Sequence[BenchmarkPair], estimators: dict[str, Estimator]
) -> dict[str, Any]:
    """Return what the figures depend on; printed with them."""
    import cv2
    import numpy as np

    from lunar_stereo_recon import __version__
    from lunar_stereo_recon.backends.onnx_backend import RUNTIME_VERSION
    from lunar_stereo_recon.benchmark.pairs import load_definition
    from lunar_stereo_recon.evaluation.machine import describe_machine

    version = load_definition().version
    return {
        'data': str(args.data[0]) if args.data else f'benchmark definition {version}',
        'sizes': sorted({f'{width}x{height}' for width, height in (p.size() for p in pairs)}),
        'machine': describe_machine(),
        'threads': args.threads,
        'versions': {
            'lunar_stereo_recon': __version__,
            'onnxruntime': RUNTIME_VERSION,
            'OpenCV': cv2.__version__,
            'NumPy': np.__version__,
        },
        'model': _model(args) if any(name.startswith('student') for name in estimators) else None,
    }


def _model(args: argparse.Namespace) -> dict[str, Any]:
    from lunar_stereo_recon.backends import load_backend, model_file

    path = model_file(args.model)
    backend = load_backend(args.backend, path, threads=args.threads)
    return {
        'name': backend.name,
        'runs on': backend.provider,
        'megabytes': path.stat().st_size / 1e6,
        'weights_sha256': backend.metadata.get('weights_sha256', ''),
        'recipe': backend.metadata.get('recipe', ''),
    }


def _scores(
    pairs: Sequence[BenchmarkPair],
    methods: Sequence[str],
    estimators: dict[str, Estimator],
    variants: Sequence[str],
) -> dict[str, dict[str, MethodScores]]:
    from tqdm import tqdm

    from lunar_stereo_recon.benchmark.methods import score_methods
    from lunar_stereo_recon.benchmark.report import UNDISTURBED

    scores = {}
    with tqdm(total=len(pairs) * (1 + len(variants)), unit='pair') as bar:
        for variant in [UNDISTURBED, *variants]:
            bar.set_description(variant if variants else 'scoring')
            degradation = None if variant == UNDISTURBED else variant
            scores[variant] = score_methods(pairs, methods, estimators, degradation, bar.update)
    return scores


def _memory_mb(
    methods: Sequence[str], args: argparse.Namespace, pair: BenchmarkPair
) -> dict[str, float]:
    from lunar_stereo_recon.benchmark.methods import FILL, peak_memory_mb, runs_of

    images, _ = pair.load()
    by_run = {
        name: peak_memory_mb(name, args.model, args.threads, images, args.backend)
        for name in runs_of(methods)
    }
    return {method: by_run[method.removesuffix(FILL)] for method in methods}


def _measure_speed(args: argparse.Namespace, result: BenchmarkRun) -> None:
    from lunar_stereo_recon.backends import model_file
    from lunar_stereo_recon.benchmark.speed import measure_speed

    model, pair = model_file(args.model), result.pairs[0].load()[0]
    if args.speed:
        result.speed = measure_speed(model, args.threads, pair, args.backend)


def _write_pictures(
    out: Path, result: BenchmarkRun, method: str, estimators: dict[str, Estimator]
) -> None:
    from lunar_stereo_recon.benchmark.methods import FILL
    from lunar_stereo_recon.benchmark.report import contact_sheets, UNDISTURBED
    from lunar_stereo_recon.files.results import write_png

    scores = result.scores[UNDISTURBED][method].pairs
    estimator = estimators[method.removesuffix(FILL)]
    for stratum, sheet in contact_sheets(result.pairs, scores, method, estimator).items():
        write_png(out / f'sheet_{stratum}.png', sheet)
    for name, picture in result.plots().items():
        write_png(out / name, picture)
