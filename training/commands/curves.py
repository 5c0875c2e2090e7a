"""`python -m training curves RUN ...`: a run's figures over time as PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.curves import draw_curves


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('curves', help='draw the loss curves of runs as PNG')
    parser.add_argument('runs', type=Path, nargs='+', help='folders of runs')
    parser.add_argument(
        '--out', type=Path, help='PNG file to write (default: curves.png in the first folder)'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw."""
    path = args.out or args.runs[0] / 'curves.png'
    draw_curves(args.runs, path)
    print(path)
    return 0
