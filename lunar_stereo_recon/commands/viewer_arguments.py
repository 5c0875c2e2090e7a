"""The arguments of the commands that show frames in a viewer; see `lunar_stereo_recon.viewer`."""

from __future__ import annotations

import argparse
from pathlib import Path

VIEWERS = ('rerun',)


def add_viewer_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `viewer.opened_viewer`."""
    parser.add_argument(
        '--viewer',
        choices=VIEWERS,
        help='show every frame in this viewer: images, depth, confidence, cloud and poses '
        '(extra [viewer])',
    )
    parser.add_argument(
        '--viewer-file',
        type=Path,
        metavar='FILE.rrd',
        help='write what the viewer would show to this file instead; open it with `rerun FILE`',
    )
