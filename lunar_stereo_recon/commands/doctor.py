"""`lunar-stereo doctor`: why depth is bad on a rig, on one page with pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lunar_stereo_recon.commands.replay import add_bag_arguments, check_bag_numbers, given_topics
from lunar_stereo_recon.commands.run import add_self_mask_argument, given_self_mask
from lunar_stereo_recon.errors import InputError

if TYPE_CHECKING:
    from lunar_stereo_recon.doctor.collect import Subject
    from lunar_stereo_recon.doctor.depths import KnownDistance

PAGE = 'doctor.html'
EXIT_FAULT = 1
_DESCRIPTION = """Look at a recording, or at two image files, and say what is wrong with the rig:
topics, stamps, calibration, rows, exposure, texture, disparity range, scale, time. Prints the
findings, the worst first, and writes them with pictures to one HTML file. The exit status is 1 if
there is a fault."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'doctor',
        help='say why depth is bad on a rig',
        description=_DESCRIPTION,
        usage='%(prog)s [options] (BAG | LEFT RIGHT)',
    )
    parser.add_argument(
        'paths',
        nargs='+',
        type=Path,
        metavar='BAG | LEFT RIGHT',
        help='a rosbag2 recording, or two image files',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('out/doctor'),
        help='folder for the page (default: %(default)s)',
    )
    parser.add_argument(
        '--known-distance',
        type=float,
        metavar='M',
        help='distance to a point that you measured, metres',
    )
    parser.add_argument(
        '--at',
        nargs=2,
        type=int,
        metavar=('U', 'V'),
        help='column and row of the measured point in the left image of the first pair',
    )
    parser.add_argument('--frames', type=int, default=5, help='number of pairs to examine')
    parser.add_argument(
        '--backend', default='onnx', help='matcher: onnx, openvino, sgbm, sgbm_hh or bm'
    )
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.add_argument(
        '--threads', type=int, default=0, help='CPU threads; 0 leaves the number to the runtime'
    )
    add_bag_arguments(parser)
    add_self_mask_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine, print the findings, write the page."""
    from tqdm import tqdm

    from lunar_stereo_recon.backends import load_backend
    from lunar_stereo_recon.doctor.examination import examine
    from lunar_stereo_recon.doctor.findings import Severity
    from lunar_stereo_recon.doctor.page import as_html, as_text
    from lunar_stereo_recon.files.html_page import write_page

    known = _known_distance(args)
    if args.frames < 1:
        raise InputError(f'--frames is {args.frames}; at least 1 is needed')
    check_bag_numbers(args)
    mask = given_self_mask(args)
    with tqdm(bar_format='{desc}', leave=False, disable=None) as bar:
        subject = _subject(args, bar.set_description_str)
        backend = load_backend(args.backend, args.model, None, args.threads)
        report = examine(subject, backend, known, bar.set_description_str, mask)
    print(as_text(report))
    page = args.out / PAGE
    write_page(page, as_html(report))
    print(f'\nWith pictures: {page}')
    return EXIT_FAULT if report.worst is Severity.FAULT else 0


def _subject(args: argparse.Namespace, progress: Callable[[str], object]) -> Subject:
    from lunar_stereo_recon.doctor import collect

    if len(args.paths) == 1:
        settings = collect.BagSettings(
            given_topics(args),
            args.tolerance,
            args.baseline,
            args.white_level,
            args.rectify,
            args.frames,
            tuple(args.calibration or ()),
        )
        return collect.subject_of_bag(args.paths[0], settings, progress)
    if len(args.paths) != 2:
        raise InputError(f'{len(args.paths)} paths given; a bag, or LEFT and RIGHT, is needed')
    if args.left_image:
        raise InputError('--left-image is of a bag; two image files are given')
    if args.rectify and not args.calibration:
        raise InputError('--rectify needs --calibration LEFT.yaml RIGHT.yaml')
    left, right = args.paths
    return collect.subject_of_files(
        left,
        right,
        args.calibration or (),
        args.baseline or None,
        args.white_level,
        args.rectify,
    )


def _known_distance(args: argparse.Namespace) -> KnownDistance | None:
    from lunar_stereo_recon.doctor.depths import KnownDistance

    if (args.known_distance is None) != (args.at is None):
        raise InputError('--known-distance M and --at U V go together')
    return None if args.at is None else KnownDistance(args.known_distance, *args.at)
