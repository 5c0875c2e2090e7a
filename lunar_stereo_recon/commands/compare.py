"""`lunar-stereo compare`: two models, backends or versions side by side on the same pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lunar_stereo_recon.commands.demo import DEMO_BAG
from lunar_stereo_recon.commands.evaluate import (
    about_model,
    add_evaluation_arguments,
    CLASSICAL,
    evaluated,
    opened_source,
    prepare,
)
from lunar_stereo_recon.commands.replay import add_bag_arguments
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_json, write_text

if TYPE_CHECKING:
    from lunar_stereo_recon.benchmark.methods import Estimator
    from lunar_stereo_recon.report.comparison import Side

COMPARISON, PAGE, MARKDOWN = 'comparison.json', 'comparison.html', 'comparison.md'


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'compare',
        help='two models, backends or earlier results, pair by pair',
        description='Compare B with A on the same pairs: differences with 95 %% intervals over '
        'pairs, and the pairs that changed most. Each is a backend, a model file or name (then '
        'both run on --data), or the results of `lunar-stereo evaluate` (then both are). Writes '
        'comparison.json, comparison.md and comparison.html (extra [report]).',
    )
    parser.add_argument('a', metavar='A', help='backend, model, or results: before')
    parser.add_argument('b', metavar='B', help='backend, model, or results: after')
    parser.add_argument(
        '--data',
        type=Path,
        default=DEMO_BAG,
        help='what both run on: bag, manifest or folder of pairs (default: the demo drive)',
    )
    parser.add_argument(
        '--backend', default='onnx', help="runtime of the models: 'onnx' or 'openvino'"
    )
    add_evaluation_arguments(parser, Path('out/compare'))
    add_bag_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, write the files, print the sentence and the tables."""
    from lunar_stereo_recon.files.html_page import write_page
    from lunar_stereo_recon.report.comparison import (
        as_html,
        as_markdown,
        compared,
        headline,
        tables,
    )

    prepare(args, (COMPARISON, PAGE, MARKDOWN))
    stored = [_is_results(name) for name in (args.a, args.b)]
    if stored[0] != stored[1]:
        raise InputError(
            f'{args.a} and {args.b}: one is a folder or file of results, the other is not; '
            'evaluate both, or give two models'
        )
    sides = _stored(args) if stored[0] else _evaluated(args)
    comparison = compared(*sides)
    write_json(args.out / COMPARISON, comparison.document())
    write_text(args.out / MARKDOWN, as_markdown(comparison))
    for title, table in tables(comparison):
        print(f'{title}\n\n{table}\n')
    print(headline(comparison))
    names = [COMPARISON, MARKDOWN]
    if not args.no_page:
        write_page(args.out / PAGE, as_html(comparison))
        names.append(PAGE)
    for name in names:
        print(f'  {args.out / name}')
    return 0


def _is_results(name: str) -> bool:
    return Path(name).is_dir() or Path(name).suffix == '.json'


def _stored(args: argparse.Namespace) -> tuple[Side, Side]:
    from lunar_stereo_recon.report.comparison import Side
    from lunar_stereo_recon.report.results import load_results

    sides = []
    for name in (args.a, args.b):
        path = Path(name)
        results = load_results(path)
        folder = path if path.is_dir() else path.parent
        sides.append(Side(name, results, results.methods[0], folder))
    return sides[0], sides[1]


def _evaluated(args: argparse.Namespace) -> tuple[Side, Side]:
    from lunar_stereo_recon.report.comparison import Side
    from lunar_stereo_recon.report.results import RESULTS

    if args.a == args.b:
        raise InputError(f'A and B are both {args.a}; two different ones are needed')
    source = opened_source(args, args.data)
    made = {name: _estimator(args, name, source.one_rig) for name in (args.a, args.b)}
    estimators = {name: estimator for name, (estimator, _) in made.items()}
    models = {name: about for name, (_, about) in made.items() if about}
    results, _ = evaluated(args, source, estimators, list(made), models, with_clouds=False)
    results.write(args.out / RESULTS)
    before, after = (Side(name, results, name, args.out) for name in made)
    return before, after


def _estimator(args: argparse.Namespace, name: str, one_rig: bool) -> tuple[Estimator, str]:
    """Return what A or B names, and for a student what it is."""
    from lunar_stereo_recon.backends import STUDENT_BACKENDS
    from lunar_stereo_recon.benchmark.methods import load_estimator, SHIPPED

    if name in CLASSICAL:
        return load_estimator(CLASSICAL[name], None, args.threads), ''
    backend, model = (name, None) if name in STUDENT_BACKENDS else (args.backend, Path(name))
    if backend not in STUDENT_BACKENDS:
        raise InputError(f'--backend is {backend}; {" or ".join(STUDENT_BACKENDS)} is needed')
    estimator = load_estimator(SHIPPED, model, args.threads, backend, one_rig)
    return estimator, about_model(model, backend)
