"""Train the students of a recipe: `python -m training train RECIPE --minutes 30 --resume`."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
from pathlib import Path

import torch

from training.recipe import load_recipe
from training.trainer import Trainer


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('train', help='train the students of a recipe')
    parser.add_argument('recipe', help='YAML file, or the name of one in training/recipes/')
    parser.add_argument('--out', type=Path, help='folder of the run (default: runs/NAME)')
    parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', dest='overrides')
    parser.add_argument(
        '--minutes', type=float, help='stop with a checkpoint after this many minutes'
    )
    parser.add_argument(
        '--finish-in',
        type=float,
        metavar='MINUTES',
        help='time from now at which the learning rate reaches its end, in this call '
        "or a later one (default: at the recipe's last step)",
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue from the checkpoint of the run; refused if its recipe differs',
    )
    parser.add_argument(
        '--accept-changes',
        action='store_true',
        help='continue even if the recipe differs from that of the checkpoint',
    )
    parser.add_argument(
        '--anew', action='store_true', help='start again and discard the existing run'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, help='CPU threads (default: all cores)')
    parser.add_argument('--dry-run', action='store_true', help='do two steps and save nothing')
    parser.set_defaults(run=run, work=work)


def recipe_path(name: str) -> Path:
    """Return a recipe's file from its path or bare name."""
    path = Path(name)
    return path if path.suffix else Path(__file__).parents[1] / 'recipes' / f'{name}.yaml'


def run(args: argparse.Namespace) -> int:
    """Train; under `torchrun`, one process of several."""
    work(args)
    return 0


def work(args: argparse.Namespace) -> bool:
    """Train; return whether the run came to its last step."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    if args.threads:
        torch.set_num_threads(args.threads)
    device = join_processes(args.device)
    # All crops of a run have one size: the fastest kernels for it are worth a search.
    torch.backends.cudnn.benchmark = True
    recipe = load_recipe(recipe_path(args.recipe), args.overrides)
    folder = args.out or Path('runs') / recipe.name
    resume = args.resume and not args.anew
    trainer = Trainer(recipe, folder, device, resume, args.accept_changes)
    if args.dry_run:
        for step in range(2):
            print({k: round(v, 4) for k, v in trainer.train_step([trainer.data[step]]).items()})
        return True
    return trainer.run(args.minutes, args.finish_in)


def join_processes(device: str) -> str:
    """Join the other processes of a `torchrun`; return this process's device."""
    if 'RANK' not in os.environ:
        return device
    on_gpu = device.startswith('cuda')
    torch.distributed.init_process_group('nccl' if on_gpu else 'gloo')
    atexit.register(torch.distributed.destroy_process_group)
    if not on_gpu:
        return device
    number = int(os.environ['LOCAL_RANK'])
    torch.cuda.set_device(number)
    return f'cuda:{number}'
