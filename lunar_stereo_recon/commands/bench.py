"""`lunar-stereo bench`: student, refinement and classical matchers side by side in one run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

from lunar_stereo_recon.files.atomic import write_text

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
        help='manifest, or folder of pairs (manifest.json or .npz files); several with --json '
        'or --against',
    )
    parser.add_argument(
        '--rendered',
        action='store_true',
        help='score the pairs of the benchmark too, beside those of --data (with '
        '--json or --against)',
    )
    parser.add_argument(
        '--against',
        action='append',
        metavar='MODEL',
        help='older model file or name: is --model better or equal on every set? Exit status 1 '
        'says no; may be repeated',
    )
    parser.add_argument(
        '--upside-down',
        action='store_true',
        help='score each set mirrored top to bottom too (with --json or --against)',
    )
    parser.add_argument(
        '--json',
        type=Path,
        metavar='FILE',
        help='print one compact table of all sets and their subsets, and write its '
        'figures to this file',
    )
    parser.add_argument(
        '--stratum',
        action='append',
        metavar='NAME',
        help='score only this stratum of the benchmark; may be repeated (default: the '
        'four old ones; all of them with --json or --against)',
    )
    parser.add_argument('--pairs', type=int, help='score at most this many pairs of each stratum')
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.add_argument(
        '--backend', default='onnx', help="runtime of the student: 'onnx' or 'openvino'"
    )
    parser.add_argument('--threads', type=int, default=2, help='CPU threads for every method')
    parser.add_argument(
        '--method', action='append', metavar='NAME', help='run only this method; may be repeated'
    )
    parser.add_argument(
        '--degrade',
        action='append',
        default=[],
        metavar='NAME',
        help=f"also score degraded images: one of them or '{ALL}'; may be repeated",
    )
    parser.add_argument(
        '--hazards',
        action='store_true',
        help="instead, grade the hazard grid against the simulator's true ground: pairs of every "
        'kind of ground under a typical and a low sun (--pairs of each, else 2), rendered on the '
        'first run',
    )
    parser.add_argument(
        '--speed',
        action='store_true',
        help='measure where the time goes too: a pair beside filled SGBM, stages, operations, the '
        'network against the number of pixels, and a roofline',
    )
    parser.add_argument(
        '--peer',
        type=Path,
        action='append',
        default=[],
        metavar='FILE',
        help='ONNX file of another network that takes two images: time it too (with --speed); '
        'may be repeated',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('out/bench'), help='folder for tables and pictures'
    )
    parser.add_argument('--cache', type=Path, help='folder for rendered pairs')
    parser.add_argument('--workers', type=int, default=1, help='number of processes that render')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every table; write bench.json, bench.md and the pictures."""
    import json

    import cv2

    from lunar_stereo_recon.backends import RUNTIMES
    from lunar_stereo_recon.benchmark.methods import load_estimator, METHODS, runs_of
    from lunar_stereo_recon.benchmark.report import BenchmarkRun
    from lunar_stereo_recon.errors import InputError

    _chosen('backend', [args.backend], RUNTIMES)
    methods = _chosen('method', args.method or list(METHODS), METHODS)
    variants = _variants(args.degrade)
    _check_positive(args)
    several = args.json is not None or bool(args.against)
    if not several and (args.rendered or args.upside_down or len(args.data or ()) > 1):
        raise InputError(
            'the full report takes one --data, neither --rendered nor --upside-down; '
            'add --json FILE or --against MODEL'
        )
    if args.hazards:
        return _hazards(args, several)
    if args.against and (args.method or args.speed):
        raise InputError('--against has methods of its own; neither --method nor --speed fits')
    if args.peer and (several or not args.speed):
        raise InputError('--peer is timed with --speed, in the full report')
    cv2.setNumThreads(args.threads)
    if several:
        return _several_sets(args, methods, variants)
    estimators = {
        name: load_estimator(name, args.model, args.threads, args.backend)
        for name in runs_of(methods)
    }
    pairs = _pairs(args)
    result = BenchmarkRun(
        _setting(args, pairs, _with_student(estimators)),
        pairs,
        _scores(pairs, methods, estimators, variants),
    )
    result.memory_mb = _memory_mb(methods, args, pairs[0])
    _measure_speed(args, result)
    summaries = result.summaries()
    report = result.markdown(summaries)
    print(report)
    args.out.mkdir(parents=True, exist_ok=True)
    document = json.dumps(result.document(summaries), indent=1)
    write_text(args.out / 'bench.json', document)
    write_text(args.out / 'bench.md', report)
    _write_pictures(args.out, result, methods[-1], estimators)
    print(f'Written to {args.out}: bench.md, bench.json, contact sheets and plots.')
    return 0


def _hazards(args: argparse.Namespace, several: bool) -> int:
    """Grade the hazard grid.

    Raises:
        InputError: An option is given that belongs to the other reports.
    """
    import cv2

    from lunar_stereo_recon.commands.bench_hazards import run_hazards
    from lunar_stereo_recon.errors import InputError

    others = (args.data, args.stratum, args.method, args.degrade, args.rendered, args.speed)
    if several or any(others) or args.upside_down:
        raise InputError(
            '--hazards has pairs and methods of its own; it goes with --pairs, --model, '
            '--backend, --threads, --cache and --out'
        )
    cv2.setNumThreads(args.threads)
    run_hazards(args, _setting(args, [], with_model=True))
    return 0


def _several_sets(
    args: argparse.Namespace, methods: Sequence[str], variants: Sequence[str]
) -> int:
    """Print one table of all sets, or compare models on them."""
    from lunar_stereo_recon.benchmark.methods import load_estimator, runs_of
    from lunar_stereo_recon.benchmark.pairs import load_definition, rendered_sets
    from lunar_stereo_recon.commands import bench_sets

    rendered = []
    if args.rendered or not args.data:
        definition = load_definition()
        strata = args.stratum or [*definition.strata, *definition.added]
        rendered = rendered_sets(definition, _rendered(args, strata))
    sets = bench_sets.chosen_sets(args, rendered, variants)
    pairs = [pair for each in sets for pair in each.pairs]
    if args.against:
        return 0 if bench_sets.against(args, sets, _setting(args, pairs, with_model=True)) else 1
    estimators = {
        name: load_estimator(name, args.model, args.threads, args.backend)
        for name in runs_of(methods)
    }
    setting = _setting(args, pairs, _with_student(estimators))
    bench_sets.compact(sets, methods, estimators, setting, args.json)
    return 0


def _with_student(names: Iterable[str]) -> bool:
    return any(name.startswith('student') for name in names)


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
    """Return the pairs of the full report."""
    from lunar_stereo_recon.benchmark.pairs import first_of_each, load_definition, pairs_at

    if not args.data:
        return _rendered(args, args.stratum or list(load_definition().strata))
    pairs = pairs_at(args.data[0])
    return first_of_each(pairs, args.pairs) if args.pairs else pairs


def _rendered(args: argparse.Namespace, strata: Sequence[str]) -> list[BenchmarkPair]:
    """Return the pairs of strata of the benchmark, rendered where they have to be."""
    from tqdm import tqdm

    from lunar_stereo_recon.benchmark import pairs as sources

    definition = sources.load_definition()
    strata = _chosen('stratum', strata, [*definition.strata, *definition.added])
    pairs = sources.rendered_pairs(definition, args.cache or sources.default_cache())
    pairs = [pair for pair in pairs if pair.stratum in strata]
    pairs = sources.first_of_each(pairs, args.pairs) if args.pairs else pairs
    missing = sum(not pair.source.exists() for pair in pairs if isinstance(pair.source, Path))
    with tqdm(total=missing, desc='rendering', unit='pair', disable=not missing) as bar:
        for written in sources.render_missing(definition, pairs, args.workers):
            bar.update(written)
    return pairs


def _setting(
    args: argparse.Namespace, pairs: Sequence[BenchmarkPair], with_model: bool
) -> dict[str, Any]:
    """Return what the figures depend on; printed with them."""
    import cv2
    import numpy as np

    from lunar_stereo_recon import __version__
    from lunar_stereo_recon.backends.onnx_backend import RUNTIME_VERSION
    from lunar_stereo_recon.benchmark.pairs import load_definition
    from lunar_stereo_recon.evaluation.machine import describe_machine

    data = [str(path) for path in args.data or ()]
    if args.rendered or not data:
        data.insert(0, f'benchmark definition {load_definition().version}')
    return {
        'data': ', '.join(data),
        'sizes': sorted({f'{width}x{height}' for width, height in (p.size() for p in pairs)}),
        'machine': describe_machine(),
        'threads': args.threads,
        'versions': {
            'lunar_stereo_recon': __version__,
            'onnxruntime': RUNTIME_VERSION,
            'OpenCV': cv2.__version__,
            'NumPy': np.__version__,
        },
        'model': _model(args) if with_model else None,
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
    from lunar_stereo_recon.benchmark.profile import measure_profile
    from lunar_stereo_recon.benchmark.speed import measure_speed

    model, pair = model_file(args.model), result.pairs[0].load()[0]
    if args.speed:
        result.speed = measure_speed(model, args.threads, pair, args.backend)
        result.profile = measure_profile(model, args.threads, pair, args.backend, args.peer)


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
