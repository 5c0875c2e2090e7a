"""`python -m training convert`: an official checkpoint to .safetensors, which opens at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from lunar_stereo_recon.errors import InputError
from training.models.checkpoints import convert_checkpoint


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'convert',
        help='convert a MASt3R or paper-student .pth to .safetensors',
        description='The configuration goes into the metadata; nothing in the file is executed.',
    )
    parser.add_argument('source', type=Path, help='.pth file as published')
    parser.add_argument('target', type=Path, help='.safetensors file to write')
    parser.add_argument(
        '--student', metavar='NAME', help='student of the paper in the .pth: S1, S2, S3 or S4'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert and print what the file holds."""
    if args.target.suffix != '.safetensors':
        raise InputError(f'target is {args.target}; a name ending in .safetensors is needed')
    model = convert_checkpoint(args.source, args.target, args.student)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f'{args.target}: {type(model).__name__}, {count:,} parameters')
    return 0
