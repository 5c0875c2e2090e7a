"""`python -m training label-study`: what a teacher is worth where labels are few.

The students of a recipe that learn from ground truth get N labelled pairs, for several N; the
others get the teacher's word on every pair and no label. All of a seed start from the same random
numbers and the labelled pairs of a small N are among those of a larger one, so that students are
compared seed by seed: the table holds means, and differences with their intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import csv
import dataclasses
import json
import logging
from pathlib import Path
import time

import torch

from lunar_stereo_recon.errors import InputError
from training.commands.ablate import add_study_arguments
from training.commands.train import recipe_path
from training.curves import read_curves
from training.frozen_teacher import load_frozen_teacher
from training.paired import difference, interval, verdict
from training.recipe import load_recipe, Recipe
from training.trainer import Trainer
from training.validation import validate_student

# Errors that are compared, of students that match rows and of those of the paper's form.
FIGURES = ('epe', 'bad1', 'bad2')
POINTMAP_FIGURES = ('abs_rel',)
ROW_MATCHING = ('flight', 'lunar_teacher')
UNLABELLED = 'unlabelled'
# A student's figure by (part, student): one value a seed.
Results = dict[tuple[str, str], list[float]]


def figures_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the figures in which a recipe's students are compared.

    Raises:
        InputError: There are students of both families.
    """
    flight = {student.kind in ROW_MATCHING for student in recipe.students.values()}
    if len(flight) > 1:
        raise InputError(
            f'{recipe.name} has students that match rows and others; they have no figure in common'
        )
    return FIGURES if flight == {True} else POINTMAP_FIGURES


def parts(recipe: Recipe, counts: Sequence[int]) -> Iterator[tuple[str, Recipe]]:
    """Yield the runs of one seed: name, and recipe with the students and pairs of that run.

    Raises:
        InputError: There are no students of one of the two kinds.
    """
    by_target = {
        target: {n: s for n, s in recipe.students.items() if s.target == target}
        for target in ('teacher', 'ground_truth')
    }
    for target, students in by_target.items():
        if not students:
            raise InputError(f'{recipe.name} has no student whose target is {target}')
    yield UNLABELLED, dataclasses.replace(recipe, students=by_target['teacher'])
    for count in counts:
        data = dataclasses.replace(recipe.data, max_pairs=count)
        yield (
            f'labels_{count}',
            dataclasses.replace(recipe, students=by_target['ground_truth'], data=data),
        )


def train_seed(
    recipe: Recipe,
    folder: Path,
    seed: int,
    counts: Sequence[int],
    device: str,
    deadline: float | None = None,
    anew: bool = False,
) -> bool:
    """Train every run of one seed, going on where an earlier call was stopped.

    Args:
        recipe: Its own seed has no part in this.
        folder: Folder of the runs' folders.
        seed: Of weights, batches and which pairs are labelled.
        counts: Labelled pairs of the students that learn from ground truth.
        device: Torch device.
        deadline: Time of `time.monotonic` at which to stop; None: at the end.
        anew: Forget what is there.

    Returns:
        Whether all are trained to the end.
    """
    for name, part in parts(recipe, counts):
        run = dataclasses.replace(part, seed=seed)
        trainer = Trainer(run, folder / f'seed_{seed}' / name, device, resume=not anew)
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if not trainer.run(left):
            return False
    return True


def results(
    recipe: Recipe, folder: Path, seeds: int, counts: Sequence[int], figure: str
) -> Results:
    """Return the last value of a validation figure of every student, one a seed.

    Raises:
        InputError: A run has no such figure.
    """
    found: Results = {}
    for number in range(seeds):
        for name, part in parts(recipe, counts):
            run = folder / f'seed_{recipe.seed + number}' / name
            curves = read_curves(run)
            for student in part.students:
                prefix = f'{student}/' if len(part.students) > 1 else ''
                points = curves.get(f'{prefix}validation/{figure}')
                if not points:
                    raise InputError(f'{run} has no validation/{figure} of {student}')
                found.setdefault((name, student), []).append(points[-1][1])
    return found


def write_results(
    path: Path, recipe: Recipe, folder: Path, seeds: int, counts: Sequence[int]
) -> None:
    """Write a CSV with a row a seed and student, and its figures in columns."""
    names = figures_of(recipe)
    found = [results(recipe, folder, seeds, counts, figure) for figure in names]
    with path.open('w', newline='', encoding='utf-8') as file:
        rows = csv.writer(file)
        rows.writerow(['seed', 'pairs', 'student', *names])
        for part, student in found[0]:
            for number in range(seeds):
                values = [figure[part, student][number] for figure in found]
                rows.writerow([recipe.seed + number, part, student, *values])


def table(found: Results, figure: str, teacher: float) -> str:
    """Return Markdown: figures, and each unlabelled student against each that has labels.

    A difference is more than noise where its interval does not contain 0.
    """
    seeds = len(next(iter(found.values())))
    lines = [
        f'`{figure}`, mean ± half of the 95 % interval, {seeds} paired seeds; '
        f'the teacher has {teacher:.3g}.',
        '',
        '| pairs | student | ' + figure + ' |',
        '|---|---|---|',
    ]
    for (part, student), values in found.items():
        mean, half = interval(values)
        lines.append(f'| {part} | {student} | {mean:.3g} ± {half:.2g} |')
    lines += [
        '',
        '| without labels | against | difference | |',
        '|---|---|---|---|',
    ]
    for (part, student), values in found.items():
        if part != UNLABELLED:
            continue
        for (other_part, other), others in found.items():
            if other_part == UNLABELLED:
                continue
            mean, half = difference(values, others)
            lines.append(
                f'| {student} | {other_part}, {other} | {mean:+.3g} ± {half:.2g} | '
                f'{verdict(mean, half)} |'
            )
    return '\n'.join(lines)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'label-study', help="few labels against a teacher's word, over paired seeds"
    )
    parser.add_argument('recipe', nargs='?', default='scarce_labels')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--labels', type=int, nargs='+', default=[8, 32, 128], metavar='N')
    parser.add_argument('--out', type=Path, help='folder (default: runs/NAME of the recipe)')
    add_study_arguments(parser)
    parser.set_defaults(run=run, work=work)


def run(args: argparse.Namespace) -> int:
    """Train and compare."""
    work(args)
    return 0


def work(args: argparse.Namespace) -> bool:
    """Train and compare; return whether all seeds are trained."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = load_recipe(recipe_path(args.recipe), args.overrides)
    if not recipe.data.validation:
        raise InputError('data.validation is empty; students are compared on frames in it')
    figures_of(recipe)
    if args.seeds < 1:
        raise InputError(f'--seeds is {args.seeds}; 1 or more is needed')
    # None would mean all pairs; students without labels are those whose target is the teacher.
    if min(args.labels) < 1 or len(set(args.labels)) < len(args.labels):
        raise InputError(f'--labels is {args.labels}; different numbers from 1 on are needed')
    out = args.out or Path('runs') / recipe.name
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    if args.anew:
        (out / 'teacher.json').unlink(missing_ok=True)
    done = 0
    while done < args.seeds and train_seed(
        recipe, out, recipe.seed + done, args.labels, args.device, deadline, args.anew
    ):
        done += 1
        write_results(out / 'results.csv', recipe, out, done, args.labels)
    print(f'{done} of {args.seeds} seeds are trained')
    if done:
        text = report(recipe, out, done, args.labels, args.device)
        (out / 'table.md').write_text(text, encoding='utf-8')
        print(text)
    return done == args.seeds


def report(recipe: Recipe, out: Path, seeds: int, counts: Sequence[int], device: str) -> str:
    """Return the tables of all figures; the teacher is validated once and remembered."""
    path = out / 'teacher.json'
    if not path.exists():
        teacher = load_frozen_teacher(recipe.teacher, torch.device(device))
        if teacher is None:
            raise InputError('teacher.checkpoint is empty; the study is about a teacher')
        figures = validate_student(teacher.network, recipe.data, torch.device(device))
        path.write_text(json.dumps(figures), encoding='utf-8')
    teacher_figures = json.loads(path.read_text(encoding='utf-8'))
    texts = [
        table(results(recipe, out, seeds, counts, figure), figure, teacher_figures[figure])
        for figure in figures_of(recipe)
    ]
    return '\n\n'.join(texts) + '\n'
