"""`lunar-stereo run`: image files to clouds, depth and confidence."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
import time
from typing import TYPE_CHECKING

from lunar_stereo_recon.commands.viewer_arguments import add_viewer_arguments
from lunar_stereo_recon.errors import InputError

if TYPE_CHECKING:
    from lunar_stereo_recon.datatypes import Reconstruction, StereoPair
    from lunar_stereo_recon.files.manifests import ManifestEntry
    from lunar_stereo_recon.geometry.self_mask import SelfMask
    from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'run',
        help='reconstruct stereo image files',
        description='Reconstruct one pair, or every rectified pair of a manifest.',
    )
    parser.add_argument('left', nargs='?', type=Path, help='left image')
    parser.add_argument('right', nargs='?', type=Path, help='right image')
    parser.add_argument(
        '--manifest', type=Path, help='manifest.json with many pairs, instead of two images'
    )
    parser.add_argument(
        '--calibration',
        nargs='+',
        type=Path,
        metavar='YAML',
        help='YAML file: fx fy cx cy baseline, a camera_info (files of both cameras, or '
        "that of the right one), OpenCV's stereo_calib, or Kalibr's camchain",
    )
    parser.add_argument(
        '--baseline',
        type=float,
        metavar='M',
        help='distance between the cameras instead of that of the calibration, metres',
    )
    parser.add_argument(
        '--rectify',
        action=argparse.BooleanOptionalAction,
        help='rectify LEFT and RIGHT by K, D, R and P of the calibration (default: only if it '
        'has distortion and the images are not called rectified)',
    )
    parser.add_argument('--out', type=Path, default=Path('out/run'), help='folder for the results')
    parser.add_argument('--npz', action='store_true', help='write the arrays as .npz too')
    parser.add_argument(
        '--arrays-only', action='store_true', help='write only the .npz (implies --npz)'
    )
    parser.add_argument(
        '--white-level', type=float, help='pixel value of white, e.g. 4095 for 12-bit data'
    )
    add_viewer_arguments(parser)
    add_reconstruction_arguments(parser)
    add_self_mask_argument(parser)
    parser.set_defaults(run=run)


def add_reconstruction_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments from which `reconstructor` builds; for every command that has one."""
    group = parser.add_argument_group('reconstruction')
    group.add_argument(
        '--backend',
        default='onnx',
        help='matcher: onnx or openvino runs the student (openvino is faster on CPUs '
        'with AVX512-BF16 or AMX); sgbm, sgbm_hh, bm and bm_padded are classical '
        'matchers',
    )
    group.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    group.add_argument(
        '--provider',
        action='append',
        help='execution provider of the backend onnx: cpu, cuda or tensorrt; may be '
        'repeated, the first one that works is used',
    )
    group.add_argument(
        '--threads', type=int, default=0, help='CPU threads; 0 leaves the number to the runtime'
    )
    group.add_argument(
        '--dense', action='store_true', help='keep all estimates, whatever their confidence'
    )
    group.add_argument(
        '--confidence',
        type=float,
        default=0.5,
        help='smallest confidence of the points that are kept, in [0, 1]',
    )
    group.add_argument(
        '--min-range',
        type=float,
        default=0.0,
        metavar='M',
        help='smallest depth of the points that are kept, metres',
    )
    group.add_argument(
        '--max-range',
        type=float,
        default=float('inf'),
        metavar='M',
        help='largest depth of the points that are kept, metres',
    )
    group.add_argument(
        '--no-refine',
        dest='refine',
        action='store_false',
        help='leave out the sub-pixel refinement',
    )
    group.add_argument(
        '--target-ms',
        type=float,
        default=0.0,
        metavar='MS',
        help="time that a pair may take; the network's width is chosen by it (default: "
        'no limit, 640 px)',
    )


def add_self_mask_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the parts of the rover that are in view."""
    parser.add_argument(
        '--self-mask',
        nargs='+',
        default=[],
        metavar='MASK',
        help='image in which the parts of the rover are not black, or a polygon '
        '[[x,y],[x,y],...]; of the left view, and of the right one as a second MASK',
    )


def check_reconstruction_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that do not go together.

    Raises:
        InputError: They do not, or the number of threads is negative.
    """
    from lunar_stereo_recon.backends import STUDENT_BACKENDS

    if args.threads < 0:
        raise InputError(f'--threads is {args.threads}; 0 or more is needed')
    if args.model and args.backend not in STUDENT_BACKENDS:
        raise InputError(
            f'--model is of the backends {" and ".join(STUDENT_BACKENDS)}; '
            f'--backend is {args.backend}'
        )
    if args.provider and args.backend != 'onnx':
        raise InputError(f'--provider is of the backend onnx; --backend is {args.backend}')


def reconstruction_options(args: argparse.Namespace) -> ReconstructionOptions:
    """Return what the arguments want of the reconstructions."""
    from lunar_stereo_recon.pipeline import ReconstructionOptions

    return ReconstructionOptions(
        confidence_threshold=args.confidence,
        min_range_m=args.min_range,
        max_range_m=args.max_range,
        dense=args.dense,
        refine=args.refine,
        target_ms=args.target_ms,
    )


def reconstructor(args: argparse.Namespace) -> StereoReconstructor:
    """Return the StereoReconstructor that the arguments describe."""
    from lunar_stereo_recon.backends import load_backend
    from lunar_stereo_recon.pipeline import StereoReconstructor

    check_reconstruction_arguments(args)
    if args.threads > 0:
        import cv2

        cv2.setNumThreads(args.threads)
    options = reconstruction_options(args)
    backend = load_backend(args.backend, args.model, args.provider, args.threads)
    engine = StereoReconstructor(backend, options)
    engine.self_mask = given_self_mask(args)
    return engine


def given_self_mask(args: argparse.Namespace) -> SelfMask | None:
    """Return what `--self-mask` names; None where it is not given.

    Raises:
        InputError: There are more than two, or one is none.
    """
    from lunar_stereo_recon.files.self_masks import read_self_mask

    if len(args.self_mask) > 2:
        raise InputError(f'--self-mask has {len(args.self_mask)} masks; one or two are needed')
    return read_self_mask(*args.self_mask) if args.self_mask else None


def run(args: argparse.Namespace) -> int:
    """Reconstruct, write the files, print a summary."""
    from tqdm import tqdm

    from lunar_stereo_recon.doubts import rows_doubt
    from lunar_stereo_recon.files.results import write_arrays, write_reconstruction
    from lunar_stereo_recon.viewer import opened_viewer

    doubts = _Doubts()
    pairs, count = _pairs(args, doubts)
    engine = reconstructor(args)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f'{engine.backend.name} on {engine.backend.provider}')
    start = time.perf_counter()
    with opened_viewer(args) as viewer:
        for name, pair in tqdm(pairs, total=count, unit='pair', disable=count == 1):
            result = engine.reconstruct(pair)
            doubts.add('rows', rows_doubt(result.row_alignment, pair.calibration.width, name))
            if args.arrays_only:
                write_arrays(args.out / f'{name}.npz', result)
            else:
                write_reconstruction(args.out, name, result, arrays=args.npz)
            if viewer is not None:
                viewer.show(pair, result)
            if count == 1:
                _print_summary(result)
    doubts.print_rest()
    print(f'{count} pairs in {time.perf_counter() - start:.1f} s, results in {args.out}')
    return 0


class _Doubts:
    """Prints the first doubt of a kind, and at the end how many pairs more it holds for."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, text: str) -> None:
        """Take a doubt; an empty text is none."""
        if not text:
            return
        self._counts[kind] += 1
        if self._counts[kind] == 1:
            from tqdm import tqdm

            tqdm.write(text)

    def print_rest(self) -> None:
        """Say what was not printed."""
        for kind, count in self._counts.items():
            if count > 1:
                print(f'{kind}: the same of {count - 1} pairs more')


def _pairs(
    args: argparse.Namespace, doubts: _Doubts
) -> tuple[Iterator[tuple[str, StereoPair]], int]:
    """Return (name, pair) one after the other and how many there are."""
    from lunar_stereo_recon.files.manifests import load_manifest

    if args.manifest is not None:
        if args.left is not None or args.calibration or args.rectify:
            raise InputError('--manifest brings rectified images and calibration; give it alone')
        entries = load_manifest(args.manifest)
        return ((entry.id, _pair_of_entry(entry, args, doubts)) for entry in entries), len(entries)
    if args.left is None or args.right is None or not args.calibration:
        raise InputError('LEFT, RIGHT and --calibration are needed, or --manifest')
    return iter([(args.left.stem, _single_pair(args, doubts))]), 1


def _pair_of_entry(entry: ManifestEntry, args: argparse.Namespace, doubts: _Doubts) -> StereoPair:
    from lunar_stereo_recon.doubts import baseline_doubt, few_bits_doubt
    from lunar_stereo_recon.files.images import pair_from_images, read_image

    left, right = read_image(entry.left), read_image(entry.right)
    doubts.add('white level', few_bits_doubt(left, args.white_level, str(entry.left)))
    source = f'{args.manifest} pair {entry.id}'
    doubts.add('baseline', baseline_doubt(entry.calibration.baseline_m, source))
    names = (str(entry.left), str(entry.right))
    return pair_from_images(left, right, entry.calibration, args.white_level, names)


def _single_pair(args: argparse.Namespace, doubts: _Doubts) -> StereoPair:
    from lunar_stereo_recon.doubts import baseline_doubt, few_bits_doubt, files_look_raw
    from lunar_stereo_recon.files.calibrations import load_file_calibration
    from lunar_stereo_recon.files.images import pair_from_images, read_image
    from lunar_stereo_recon.messages import raw_cameras_of_infos, StereoTopics

    left, right = read_image(args.left), read_image(args.right)
    height, width = left.shape[:2]
    files = load_file_calibration(args.calibration, width, height, args.baseline)
    doubts.add('white level', few_bits_doubt(left, args.white_level, str(args.left)))
    if args.baseline is None:
        doubts.add('baseline', baseline_doubt(files.rectified.baseline_m, files.sources[1]))
    if args.rectify and files.infos is None:
        raise InputError(
            f'{files.sources[1]} has no camera_infos of both cameras (K, D, R, P); --rectify '
            'needs them'
        )
    raw = None
    looks_raw = files_look_raw((args.left, args.right), files.infos or ())
    if files.infos is not None and (looks_raw if args.rectify is None else args.rectify):
        if args.rectify is None:
            doubts.add(
                'raw images',
                f'{args.left} is taken as raw (D of its calibration is not 0) and rectified; '
                '--no-rectify where it is rectified already',
            )
        topics = StereoTopics(left_info=files.sources[0], right_info=files.sources[1])
        raw = raw_cameras_of_infos(*files.infos, files.rectified, topics)
    elif files.distorted and files.infos is None:
        doubts.add(
            'raw images',
            f'{files.sources[1]} has distortion, and {args.left} is taken as rectified already; '
            'raw images are rectified with the calibration of both cameras',
        )
    names = (str(args.left), str(args.right))
    return pair_from_images(left, right, files.rectified, args.white_level, names, raw)


def _print_summary(result: Reconstruction) -> None:
    import numpy as np

    valid = result.valid_mask
    print(f'valid pixels    {100 * valid.mean():.1f} %')
    print(f'mean confidence {result.confidence.mean():.3f}')
    if valid.any():
        near, middle, far = np.percentile(result.depth[valid], [1, 50, 99])
        print(f'depth           1 % {near:.2f} m, median {middle:.2f} m, 99 % {far:.2f} m')
    total = sum(result.timings_ms.values())
    stages = ', '.join(f'{name} {ms:.0f}' for name, ms in result.timings_ms.items())
    print(f'time            {total:.0f} ms ({stages})')
