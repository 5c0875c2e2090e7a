"""`python -m training ablate`: the students of a recipe against each other, over several seeds.

The students of a run see the same batches and the same lessons, so what differs between them is
what the recipe says. Seeds vary initial weights, crops and order; the table gives their mean and
standard deviation, at parts of the run too: a start that is better early may not be at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch

from lunar_stereo_recon.errors import InputError
from training.curves import read_curves
from training.recipe import load_recipe, Recipe
from training.train import recipe_path
from training.trainer import Trainer

PARTS = (0.25, 0.5, 1.0)


def train_seeds(
    recipe: Recipe, folder: Path, seeds: int, device: str, minutes: float | None = None
) -> list[Path]:
    """Train a recipe with several seeds, each in its folder, going on where one was stopped.

    Raises:
        InputError: The recipe has one student only, or no validation frames.
    """
    if len(recipe.students) < 2:
        raise InputError(f'{recipe.name} has one student; an ablation compares at least two')
    if not recipe.data.validation:
        raise InputError('data.validation is empty; students are compared on frames in it')
    folders = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        run_folder = folder / f'seed_{seed}'
        run_recipe = dataclasses.replace(recipe, seed=seed)
        trainer = Trainer(run_recipe, run_folder, device, resume=True)
        if trainer.step < recipe.optimizer.total_steps:
            trainer.run(minutes)
        folders.append(run_folder)
    return folders


def compare(
    folders: Sequence[Path], students: Sequence[str], figure: str, total_steps: int
) -> dict[str, list[tuple[float, float]]]:
    """Return (mean, standard deviation over seeds) of a figure by student, at each of `PARTS`.

    Of each part the last validation at or before it counts; the deviation of one seed is NaN.

    Raises:
        InputError: A run has no such figure, or none so early.
    """
    table = {}
    for student in students:
        cells = []
        for part in PARTS:
            values = [_value(folder, student, figure, part * total_steps) for folder in folders]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')
            cells.append((float(np.mean(values)), spread))
        table[student] = cells
    return table


def _value(folder: Path, student: str, figure: str, step: float) -> float:
    curves = read_curves(folder)
    name = f'{student}/validation/{figure}'
    points = [value for at, value in curves.get(name, []) if at <= step]
    if not points:
        known = sorted(key for key in curves if key.startswith(f'{student}/validation/'))
        raise InputError(
            f'{folder} has no {name} up to step {step:.0f}; it has {", ".join(known) or "none"}; '
            'a smaller validate_every gives earlier ones'
        )
    return points[-1]


def format_table(table: dict[str, list[tuple[float, float]]], figure: str, seeds: int) -> str:
    """Return the comparison as Markdown, in the order of the figure at the end."""
    heads = [f'after {100 * part:.0f} %' for part in PARTS]
    lines = [
        f'`{figure}`, mean ± standard deviation of {seeds} seeds',
        '',
        f'| student | {" | ".join(heads)} |',
        f'|---|{"---|" * len(heads)}',
    ]
    for student, cells in sorted(table.items(), key=lambda row: row[1][-1][0]):
        texts = [f'{mean:.3g} ± {spread:.2g}' for mean, spread in cells]
        lines.append(f'| {student} | {" | ".join(texts)} |')
    return '\n'.join(lines)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'ablate', help='compare the students of a recipe over several seeds'
    )
    parser.add_argument('recipe', nargs='?', default='ablate', help='with two students or more')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--figure', default='epe', help='of the validation, e.g. epe, bad1')
    parser.add_argument('--out', type=Path, default=Path('runs/ablate'))
    parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', dest='overrides')
    parser.add_argument('--minutes', type=float, help='of each seed; call again to go on')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, then print and write the table."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    recipe = load_recipe(recipe_path(args.recipe), args.overrides)
    folders = train_seeds(recipe, args.out, args.seeds, args.device, args.minutes)
    total = recipe.optimizer.total_steps
    table = compare(folders, list(recipe.students), args.figure, total)
    text = format_table(table, args.figure, args.seeds)
    (args.out / 'table.md').write_text(text + '\n', encoding='utf-8')
    print(text)
    return 0
