"""The `lunar-stereo` command: finds the sub-command, reports errors in one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import importlib
import logging
import signal
import sys
import threading

from lunar_stereo_recon import __version__
from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.extras import missing_extra

# Modules of lunar_stereo_recon.commands, in the order of `lunar-stereo --help`.
COMMANDS = (
    'demo',
    'run',
    'replay',
    'batch',
    'fuse',
    'sim',
    'evaluate',
    'compare',
    'bench',
    'dataset',
    'gallery',
    'export_gazebo',
    'info',
    'doctor',
    'mask',
    'repair',
)

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every sub-command."""
    parser = argparse.ArgumentParser(
        prog='lunar-stereo',
        description='Metric point clouds and calibrated confidence from lunar stereo images.',
    )
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('--verbose', action='store_true', help='log at level INFO')
    subparsers = parser.add_subparsers(metavar='COMMAND', required=True)
    for name in COMMANDS:
        importlib.import_module(f'lunar_stereo_recon.commands.{name}').add_parser(subparsers)
    return parser


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; return its exit status, 2 for an error it explains."""
    args = build_parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        # As with Ctrl-C, what is being written is closed properly.
        signal.signal(signal.SIGTERM, _interrupt)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format='%(levelname)s %(name)s: %(message)s',
    )
    try:
        return args.run(args)
    except ReconError as error:
        print(f'lunar-stereo: error: {error}', file=sys.stderr)
        return EXIT_ERROR
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if not missing:
            raise
        print(f'lunar-stereo: error: {missing}', file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:  # a file that cannot be read or written: no permission, full disk
        text = f'{error.filename}: {error.strerror}' if error.filename else error
        print(f'lunar-stereo: error: {text}', file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == '__main__':
    sys.exit(main())
