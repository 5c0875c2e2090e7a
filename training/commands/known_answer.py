"""Give model files the answer that the self-test asks for, as they answer now.

`export` and `choice` do so by themselves. A file that `quantize` wrote keeps that of the float
model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.known_answer import write_known_answer


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'known-answer', help='write the answer of the self-test into model files'
    )
    parser.add_argument('models', type=Path, nargs='+', help='.onnx files, students or choosers')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Rewrite the files.

    Raises:
        ModelError: One is missing, damaged, or neither student nor chooser.
    """
    for path in args.models:
        write_known_answer(path)
        print(f'{path}: the known answer is in its metadata')
    return 0
