"""`python -m training adapt`: fit a flight student to a camera, from a recording without labels.

A teacher, or the whole drive by its poses, labels frames of the recording, and what it is sure of
becomes ground truth in the form of rendered pairs. The student then goes on training on those and
on pairs with exact truth, with the recipe `adapt`. The last frames and some of the exact pairs are
kept back: a student is written only if it is better on these than at the start, and training stops
when it gets no better.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lunar_stereo_recon.errors import InputError, ModelError
from training.adaptation import adapt_guarded, split_frames
from training.bag_labels import label_bag, label_drive
from training.checkpoint import trained_network
from training.commands.train import join_processes, recipe_path
from training.models.flight import FlightStudent
from training.recipe import load_recipe
from training.trainer import Trainer

SHIPPED = Path(__file__).parents[1] / 'weights'
# What is rendered to be replayed where no folder is named.
REPLAY_PAIRS, REPLAY_SIZE, REPLAY_SEED = 64, (384, 256), 17


def student_weights(name: str) -> Path:
    """Return the weights to start from: a file, or shipped ones by name.

    Raises:
        ModelError: There is no such file.
    """
    path = Path(name)
    if not path.suffix and len(path.parts) == 1:
        path = SHIPPED / f'{name}.safetensors'
    if not path.exists():
        raise ModelError(
            f'no weights to start from at {path}; give a checkpoint of a run or .safetensors'
        )
    return path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'adapt',
        help='fit a flight student to a camera from a bag without labels',
        description='A teacher labels the frames of a stereo bag; the student learns from them.',
    )
    parser.add_argument('--bag', type=Path, required=True, help='rosbag2 folder, .mcap or .db3')
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument(
        '--teacher',
        type=Path,
        help='network that labels the frames: checkpoint of a run, or a MASt3R .pth or '
        '.safetensors',
    )
    labels.add_argument(
        '--fused',
        action='store_true',
        help='no teacher: labels are what the frames of the drive agree on, by their poses',
    )
    parser.add_argument(
        '--student',
        default='flight',
        help='student to start from: checkpoint or .safetensors (default: the shipped one)',
    )
    parser.add_argument(
        '--frames', type=int, default=400, help='largest number of frames to label'
    )
    parser.add_argument(
        '--replay',
        type=Path,
        nargs='+',
        metavar='FOLDER',
        help='pairs with exact disparity that the student must not forget (default: some '
        'are rendered)',
    )
    parser.add_argument(
        '--patience',
        type=int,
        default=4,
        metavar='N',
        help='stop after this many validations without improvement (default: 4)',
    )
    parser.add_argument('--out', type=Path, default=Path('runs/adapt'), help='folder of the run')
    parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', dest='overrides')
    parser.add_argument(
        '--minutes', type=float, help='stop with a checkpoint after this many minutes'
    )
    parser.add_argument(
        '--resume', action='store_true', help='continue from the checkpoint of the run'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.set_defaults(run=run)


def replay_folders(args: argparse.Namespace) -> list[Path]:
    """Return the folders of pairs with exact truth; some are rendered where none is named."""
    if args.replay:
        return list(args.replay)
    # Needs the renderer (extra [sim]), which pairs on disk do not.
    from lunar_stereo_recon.simulation.dataset import DatasetOptions, write_dataset

    folder = args.out / 'replay'
    options = DatasetOptions(REPLAY_SEED, 'train', REPLAY_SIZE)
    # The pairs are written while one goes over their numbers.
    with tqdm(total=REPLAY_PAIRS, desc='rendering', unit='pair') as bar:
        for number in write_dataset(folder, REPLAY_PAIRS, options):
            bar.update(number)
    return [folder]


def run(args: argparse.Namespace) -> int:
    """Label the bag, train, and keep the student only where it is better."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    device = join_processes(args.device)
    start = student_weights(args.student)
    network = trained_network(start)
    if not isinstance(network, FlightStudent):
        raise InputError(
            f'--student {start} is a {type(network).__name__}; a flight one is needed'
        )
    labels = args.out / 'labels'
    if args.fused:
        shares = label_drive(args.bag, labels, args.frames)
    else:
        shares = label_bag(args.bag, args.teacher, labels, args.frames, device)
    print(f'{len(shares)} frames labelled; sure of {100 * np.mean(shares):.0f} % of the pixels')
    split = split_frames(args.out / 'split', labels, replay_folders(args))
    overrides = [
        f'data.train=["{split.train}"]',
        f'data.replay=["{split.replay}"]',
        f'students.flight.start.checkpoint="{start}"',
    ]
    recipe = load_recipe(recipe_path('adapt'), [*overrides, *args.overrides])
    trainer = Trainer(recipe, args.out / 'run', device, resume=args.resume)
    best = adapt_guarded(trainer, split, args.out, args.patience, args.minutes, args.resume)
    print(best.text())
    print(f'export it with: python -m training export {args.out / "checkpoint"} flight.onnx')
    return 0
