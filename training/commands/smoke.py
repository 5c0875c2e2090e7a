"""`python -m training smoke`: the whole chain at toy size, in under a minute on a CPU.

A tiny teacher learns textured planes, a tiny student starts from it and is distilled, and the
result is exported to ONNX and compared with torch. It shows that an installation works.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from training.commands.export import write_onnx
from training.commands.train import recipe_path
from training.recipe import load_recipe
from training.trainer import Trainer

PAIRS = 8
HEIGHT, WIDTH = 64, 128
DISPARITIES_PX = (4, 24)


def write_plane_pairs(folder: Path, count: int = PAIRS, seed: int = 0) -> None:
    """Write pairs of random texture at one disparity each, in the form of rendered pairs."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, disparity in enumerate(np.linspace(*DISPARITIES_PX, count).astype(int)):
        texture = rng.integers(0, 255, (HEIGHT, WIDTH + 32), np.uint8)
        occlusion = np.zeros((HEIGHT, WIDTH), np.uint8)
        occlusion[:, :disparity] = 2
        np.savez(
            folder / f'{number:06d}.npz',
            left=texture[:, 32 - disparity : 32 - disparity + WIDTH],
            right=texture[:, 32 : 32 + WIDTH],
            disparity=np.full((HEIGHT, WIDTH), disparity, np.float32),
            shadow=np.zeros((HEIGHT, WIDTH), bool),
            occlusion=occlusion,
            intrinsics=np.array([[100.0, 0, WIDTH / 2], [0, 100.0, HEIGHT / 2], [0, 0, 1]]),
            baseline_m=0.1,
        )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('smoke', help='teacher, distilled student, ONNX, at toy size')
    parser.add_argument('--out', type=Path, default=Path('runs/smoke'))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train the teacher, distil the student, export it."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    data, teacher, student = args.out / 'pairs', args.out / 'teacher', args.out / 'student'
    write_plane_pairs(data)
    places = [f'data.train=["{data}"]']
    Trainer(load_recipe(recipe_path('smoke_teacher'), places), teacher).run()
    checkpoint, cache = teacher / 'checkpoint', args.out / 'cache'
    places += [f'teacher.checkpoint="{checkpoint}"', f'teacher.cache="{cache}"']
    Trainer(load_recipe(recipe_path('smoke'), places), student).run()
    write_onnx(student / 'checkpoint', args.out / 'smoke.onnx')
    return 0
