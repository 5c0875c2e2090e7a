"""`python -m training COMMAND`: the offline half of the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from lunar_stereo_recon.errors import ReconError
from training import (
    ablate,
    adapt,
    calibrate,
    campaign,
    convert,
    curves,
    export,
    quantize,
    smoke,
    svd_study,
    teacher,
    texture_pairs,
    train,
)

COMMANDS = (
    train,
    adapt,
    export,
    calibrate,
    quantize,
    curves,
    ablate,
    campaign,
    teacher,
    convert,
    texture_pairs,
    svd_study,
    smoke,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command."""
    parser = argparse.ArgumentParser(prog='python -m training', description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar='COMMAND')
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a known error is one line and exit status 2."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except ReconError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
