"""`python -m training COMMAND`: the offline half of the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import importlib
import sys

from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.extras import missing_extra

# Modules of training.commands, in the order of `python -m training --help`.
COMMANDS = (
    'train',
    'adapt',
    'export',
    'choice',
    'calibrate',
    'known_answer',
    'quantize',
    'curves',
    'ablate',
    'label_study',
    'fused_labels',
    'campaign',
    'evaluate',
    'teacher',
    'teacher_time',
    'convert',
    'general_scenes',
    'texture_pairs',
    'svd_study',
    'smoke',
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command."""
    parser = argparse.ArgumentParser(prog='python -m training', description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar='COMMAND')
    for name in COMMANDS:
        importlib.import_module(f'training.commands.{name}').add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a known error is one line and exit status 2."""
    try:
        args = build_parser().parse_args(argv)
        return args.run(args)
    except ReconError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        text = missing_extra(error, 'train')
        if not text:
            raise
        print(f'error: {text}', file=sys.stderr)
        return 2
