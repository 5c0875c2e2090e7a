"""`python -m training ablate`: the students of a recipe against each other, over several seeds.

The students of a run see the same batches and the same lessons, so what differs between them is
what the recipe says. Seeds vary initial weights, crops and order; tables and curves give mean and
standard deviation over them, at parts of the run too: a start that is better early may not be at
the end. Differences are taken seed by seed, with their 95 % intervals. `comparisons` of the recipe
groups students by the question that they answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import itertools
import logging
from pathlib import Path
import time

import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon.errors import InputError
from training.commands.train import recipe_path
from training.curves import read_curves
from training.paired import difference, verdict
from training.recipe import load_recipe, Recipe
from training.trainer import Trainer

PARTS = (0.25, 0.5, 1.0)
# Curves that span a larger factor are drawn on a logarithmic axis.
LOGARITHMIC_FROM = 5
Table = dict[str, list[tuple[float, float]]]


def train_seeds(
    recipe: Recipe,
    folder: Path,
    seeds: int,
    device: str,
    minutes: float | None = None,
    anew: bool = False,
) -> list[Path]:
    """Train a recipe with several seeds, each in its folder, going on where one was stopped.

    Args:
        recipe: Its seed is the first.
        folder: Folder of the runs' folders.
        seeds: How many.
        device: Torch device.
        minutes: For all seeds together; None: to the end.
        anew: Forget the runs that are there.

    Returns:
        The folders of the seeds that are trained to the end.

    Raises:
        InputError: No seed is asked for, the recipe has one student only or no validation
            frames, or is not the one that the runs in the folder were trained with.
    """
    if seeds < 1:
        raise InputError(f'--seeds is {seeds}; 1 or more is needed')
    if len(recipe.students) < 2:
        raise InputError(f'{recipe.name} has one student; an ablation compares at least two')
    if not recipe.data.validation:
        raise InputError('data.validation is empty; students are compared on frames in it')
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    folders = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        run_folder = folder / f'seed_{seed}'
        trainer = Trainer(dataclasses.replace(recipe, seed=seed), run_folder, device, not anew)
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if not trainer.run(left):
            break
        folders.append(run_folder)
    return folders


def curves_of(
    folders: Sequence[Path], student: str, figure: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return steps (N,) and a figure at them by run (runs, N).

    Args:
        folders: Folders of the runs.
        student: Name of the student.
        figure: Figure of the validation (`epe`) or a logged loss (`loss`, `pointmap/error1`).

    Raises:
        InputError: A run has no such figure, or the runs logged it at different steps.
    """
    runs = []
    for folder in folders:
        curves = read_curves(folder)
        names = f'{student}/validation/{figure}', f'{student}/{figure}'
        name = next((name for name in names if name in curves), None)
        if name is None:
            known = sorted(key for key in curves if key.startswith(f'{student}/'))
            raise InputError(f'{folder} has no {names[0]}; it has {", ".join(known) or "none"}')
        runs.append(curves[name])
    steps = [[step for step, _ in run] for run in runs]
    if any(other != steps[0] for other in steps):
        raise InputError(f'{student}/{figure} was logged at different steps in {len(runs)} runs')
    return np.array(steps[0]), np.array([[value for _, value in run] for run in runs])


def compare(
    folders: Sequence[Path], students: Sequence[str], figure: str, total_steps: int
) -> Table:
    """Return (mean, standard deviation over seeds) of a figure by student, at each of `PARTS`.

    Of each part the last value at or before it counts; the deviation of one seed is NaN.

    Raises:
        InputError: A run has no such figure, or none so early.
    """
    table = {}
    for student in students:
        steps, values = curves_of(folders, student, figure)
        cells = []
        for part in PARTS:
            places = np.flatnonzero(steps <= part * total_steps)
            if not len(places):
                raise InputError(
                    f'{student}/{figure} begins at step {steps[0]}, after {part:.0%} of '
                    f'{total_steps}; a smaller validate_every gives earlier ones'
                )
            at = values[:, places[-1]]
            spread = float(np.std(at, ddof=1)) if len(at) > 1 else float('nan')
            cells.append((float(np.mean(at)), spread))
        table[student] = cells
    return table


def format_table(table: Table, figure: str, seeds: int) -> str:
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


def format_differences(folders: Sequence[Path], students: Sequence[str], figure: str) -> str:
    """Return Markdown of each student against each later one of its group, at the end.

    The sign of a difference says better or worse where the figure is an error or a loss.

    Args:
        folders: Folders of the runs, one a seed.
        students: Of one comparison.
        figure: As in `curves_of`.

    Raises:
        InputError: A run has no such figure.
    """
    ends = {name: curves_of(folders, name, figure)[1][:, -1].tolist() for name in students}
    lines = [
        f'`{figure}` at the end, differences by seed: mean ± half of the 95 % interval',
        '',
        '| student | against | difference | |',
        '|---|---|---|---|',
    ]
    for name, other in itertools.combinations(students, 2):
        mean, half = difference(ends[name], ends[other])
        lines.append(f'| {name} | {other} | {mean:+.3g} ± {half:.2g} | {verdict(mean, half)} |')
    return '\n'.join(lines)


def draw_comparisons(
    folders: Sequence[Path], groups: dict[str, list[str]], figure: str, path: Path
) -> None:
    """Draw a figure against steps, a panel a group: the mean over the seeds, and its spread."""
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot

    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    sheet, axes = pyplot.subplots(
        rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False, layout='constrained'
    )
    for axis, (group, students) in zip(axes.flat, groups.items(), strict=False):
        for student in students:
            steps, values = curves_of(folders, student, figure)
            mean, spread = values.mean(axis=0), values.std(axis=0)
            (line,) = axis.plot(steps, mean, linewidth=1.4, label=student)
            axis.fill_between(
                steps, mean - spread, mean + spread, color=line.get_color(), alpha=0.15
            )
        low, high = axis.dataLim.ymin, axis.dataLim.ymax
        if low > 0 and high > LOGARITHMIC_FROM * low:
            axis.set_yscale('log')
        axis.set_title(group, fontsize=10)
        axis.set_xlabel('step', fontsize=8)
        axis.set_ylabel(figure, fontsize=8)
        axis.legend(fontsize=8)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path, dpi=80)
    pyplot.close(sheet)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'ablate', help='compare the students of a recipe over several seeds'
    )
    parser.add_argument(
        'recipe',
        nargs='?',
        default='ablate',
        help='recipe with two or more students: a YAML file, or the name of one in '
        'training/recipes/',
    )
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument(
        '--figure',
        default='epe',
        help='figure to compare: of the validation (epe, abs_rel), or a logged loss',
    )
    parser.add_argument(
        '--out', type=Path, help='folder to write (default: runs/NAME of the recipe)'
    )
    add_study_arguments(parser)
    parser.set_defaults(run=run, work=work)


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what every study over seeds takes."""
    parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', dest='overrides')
    parser.add_argument(
        '--minutes', type=float, help='stop after this many minutes; call again to continue'
    )
    parser.add_argument(
        '--anew', action='store_true', help='start again and discard the existing runs'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, help='CPU threads (default: all cores)')


def run(args: argparse.Namespace) -> int:
    """Train, then print and write the tables, and draw the curves."""
    work(args)
    return 0


def work(args: argparse.Namespace) -> bool:
    """Train and compare; return whether all seeds are trained."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = load_recipe(recipe_path(args.recipe), args.overrides)
    out = args.out or Path('runs') / recipe.name
    folders = train_seeds(recipe, out, args.seeds, args.device, args.minutes, args.anew)
    if len(folders) < args.seeds:
        print(f'{len(folders)} of {args.seeds} seeds are trained; call again to continue')
        return False
    groups = recipe.comparisons or {recipe.name: list(recipe.students)}
    texts = []
    for group, students in groups.items():
        table = compare(folders, students, args.figure, recipe.optimizer.total_steps)
        differences = format_differences(folders, students, args.figure)
        texts.append(
            f'## {group}\n\n{format_table(table, args.figure, args.seeds)}\n\n{differences}\n'
        )
    text = '\n'.join(texts)
    name = args.figure.replace('/', '_')
    (out / f'table_{name}.md').write_text(text, encoding='utf-8')
    draw_comparisons(folders, groups, args.figure, out / f'curves_{name}.png')
    print(f'{text}\n{out / f"curves_{name}.png"}')
    return True
