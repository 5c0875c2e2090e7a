"""What `lunar-stereo bench` does with several sets: one compact table, and the release verdict."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lunar_stereo_recon.backends import model_file
from lunar_stereo_recon.benchmark.methods import (
    Estimator,
    FILL,
    load_estimator,
    MethodScores,
    runs_of,
    score_methods,
    SHIPPED,
)
from lunar_stereo_recon.benchmark.pairs import (
    BenchmarkSet,
    first_of_each,
    sets_at,
    with_variants,
)
from lunar_stereo_recon.benchmark.release import (
    Change,
    change_document,
    change_table,
    compare,
    group_change_table,
    may_be_released,
    release_line,
)
from lunar_stereo_recon.benchmark.tables import (
    calibration_table,
    compact_table,
    sigma_table,
)
from lunar_stereo_recon.evaluation.scores import summarise
from lunar_stereo_recon.files.atomic import write_json, write_text

NEW = 'new'
# Beside the students in every comparison.
RIVALS = ('SGBM 3WAY' + FILL, 'BM' + FILL)
# Their truth is another method's, or shifted by an unknown amount: shown, but nothing to veto by.
DECIDING_REFERENCES = ('ground truth', 'silver')


def chosen_sets(
    args: argparse.Namespace,
    rendered: Sequence[BenchmarkSet],
    degradations: Sequence[str],
) -> list[BenchmarkSet]:
    """Return the sets that the arguments ask for.

    Args:
        args: `data`, `pairs` and `upside_down` of the command.
        rendered: The sets of rendered pairs that are wanted.
        degradations: Each makes a further set of each.
    """
    sets = [*rendered]
    sets += [each for path in args.data or () for each in sets_at(path)]
    if args.pairs:
        sets = [replace(each, pairs=first_of_each(each.pairs, args.pairs)) for each in sets]
    return with_variants(sets, args.upside_down, degradations)


def compact(
    sets: Sequence[BenchmarkSet],
    methods: Sequence[str],
    estimators: Mapping[str, Estimator],
    setting: dict[str, Any],
    out: Path,
) -> None:
    """Print one table of all sets and their subsets; write the figures."""
    scores = _scores(sets, methods, estimators)
    document = {'setting': setting, 'sets': _documents(sets, scores)}
    print(_tables(document))
    _write(out, document)


def against(
    args: argparse.Namespace, sets: Sequence[BenchmarkSet], setting: dict[str, Any]
) -> bool:
    """Compare a model with older ones on all sets; return whether it may be released.

    Prints and writes the figures of all, the changes with their intervals, and the verdict.

    Args:
        args: `model`, `against`, `threads`, `backend`, `out` and `json` of the command.
        sets: What to compare on.
        setting: What the figures depend on; goes with them.
    """
    files = {NEW: model_file(args.model)}
    for path in args.against:
        stem = Path(path).stem
        files[stem if stem not in files else str(path)] = model_file(path)
    estimators = {
        name: load_estimator(SHIPPED, path, args.threads, args.backend)
        for name, path in files.items()
    }
    estimators |= {name: load_estimator(name, None, args.threads) for name in runs_of(RIVALS)}
    scores = _scores(sets, [*RIVALS, *reversed(files)], estimators)
    changes = {
        old: [
            change
            for each, of_set in zip(sets, scores, strict=True)
            for change in compare(
                each.name,
                of_set[old].pairs,
                of_set[NEW].pairs,
                each.mean_of_pairs,
                each.reference in DECIDING_REFERENCES,
            )
        ]
        for old in files
        if old != NEW
    }
    document = {
        'setting': setting | {'models': {name: str(path) for name, path in files.items()}},
        'sets': _documents(sets, scores),
        'changes': {old: change_document(found) for old, found in changes.items()},
        'may be released': may_be_released(changes),
        'verdict': release_line(changes),
    }
    report = _report(document, changes)
    print(report)
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / 'against.md', report + '\n')
    _write(args.json or args.out / 'against.json', document)
    return may_be_released(changes)


def _report(document: Mapping[str, Any], changes: Mapping[str, Sequence[Change]]) -> str:
    parts = ['# Figures', _tables(document)]
    for old, found in changes.items():
        parts += [
            f'# {NEW} minus {old}, with 95 % intervals over pairs (negative is better)',
            change_table(found),
            group_change_table(found),
        ]
    return '\n\n'.join([*parts, str(document['verdict'])])


def _scores(
    sets: Sequence[BenchmarkSet], methods: Sequence[str], estimators: Mapping[str, Estimator]
) -> list[dict[str, MethodScores]]:
    from tqdm import tqdm

    found = []
    with tqdm(total=sum(len(each.pairs) for each in sets), unit='pair') as bar:
        for each in sets:
            bar.set_description(each.name)
            found.append(
                score_methods(each.pairs, methods, estimators, each.degradation, bar.update)
            )
    return found


def _documents(
    sets: Sequence[BenchmarkSet], scores: Sequence[Mapping[str, MethodScores]]
) -> list[dict[str, Any]]:
    return [
        {
            'name': each.name,
            'reference': each.reference,
            'mean_of_pairs': each.mean_of_pairs,
            'pairs': [pair.id for pair in each.pairs],
            'unscored': each.unscored,
            'results': {
                method: summarise(of_method.pairs, each.mean_of_pairs)
                for method, of_method in of_set.items()
            },
        }
        for each, of_set in zip(sets, scores, strict=True)
    ]


def _tables(document: Mapping[str, Any]) -> str:
    results = [(each['name'], each['results']) for each in document['sets']]
    parts = [compact_table(results)]
    if any(
        summary['overall']['calibration'] for _, of_set in results for summary in of_set.values()
    ):
        parts += ['## Calibration of the confidence', calibration_table(results)]
    if any(summary['overall']['sigma'] for _, of_set in results for summary in of_set.values()):
        parts += ['## Calibration of sigma', sigma_table(results)]
    return '\n\n'.join(parts)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document, indent=1)
