"""`lunar-stereo evaluate`: how good a model is on a bag, a folder or a manifest, on one page."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
import shlex
import sys
from typing import Any, TYPE_CHECKING

from lunar_stereo_recon.commands.demo import DEMO_BAG
from lunar_stereo_recon.commands.replay import (
    add_bag_arguments,
    check_bag_numbers,
    given_topics,
)
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_json, write_text

if TYPE_CHECKING:
    from lunar_stereo_recon.benchmark.methods import Estimate, Estimator
    from lunar_stereo_recon.datatypes import StereoPair
    from lunar_stereo_recon.evaluation.scores import GroundTruth, PairScore
    from lunar_stereo_recon.files.manifests import ManifestEntry
    from lunar_stereo_recon.report.clouds import ViewedCloud
    from lunar_stereo_recon.report.results import Results
    from lunar_stereo_recon.report.sources import Source, SourcePair

PAGE, MARKDOWN, PANELS, MAP = 'report.html', 'report.md', 'panels', 'map.jpg'
# The classical matchers, by the names of their backends.
CLASSICAL = {
    'sgbm': 'SGBM 3WAY',
    'sgbm_hh': 'SGBM HH',
    'bm': 'BM',
    'bm_padded': 'BM padded',
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'evaluate',
        help='how good a model is on a recording or on pairs, on one page',
        description='Run the student on a rosbag2 recording, a manifest or a folder of pairs, '
        'with ground truth or without; write results.json, report.md and one page, report.html, '
        'that opens without a network (extra [report]). With --predictions, score disparity maps '
        'that are there already.',
    )
    parser.add_argument(
        'source',
        nargs='?',
        type=Path,
        default=DEMO_BAG,
        help='rosbag2 folder or file, manifest.json, or folder with manifest.json or .npz pairs '
        '(default: the shipped demo drive)',
    )
    parser.add_argument(
        '--predictions',
        type=Path,
        metavar='DIR',
        help='score the <id>.npz (disparity, optionally confidence and ms) of this folder against '
        'the manifest SOURCE, and print a table; such as `lunar-stereo run --manifest ... '
        '--dense --npz` writes',
    )
    parser.add_argument('--name', default='prediction', help='title of the table of --predictions')
    parser.add_argument(
        '--filled',
        action='store_true',
        help='score the --predictions with filled holes too',
    )
    parser.add_argument(
        '--json', type=Path, help='write the figures of --predictions to this file'
    )
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.add_argument(
        '--backend', default='onnx', help="runtime of the student: 'onnx' or 'openvino'"
    )
    parser.add_argument(
        '--rival',
        action='append',
        choices=list(CLASSICAL),
        default=[],
        help='run this classical matcher too, as it is and with filled holes; may be repeated',
    )
    add_evaluation_arguments(parser, Path('out/evaluate'))
    add_bag_arguments(parser)
    parser.set_defaults(run=run)


def add_evaluation_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """Declare what `evaluate` and `compare` have in common."""
    parser.add_argument('--threads', type=int, default=2, help='CPU threads for every method')
    parser.add_argument('--out', type=Path, default=out, help='folder for the results')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the results of an earlier run in --out'
    )
    parser.add_argument(
        '--panels',
        type=int,
        default=200,
        metavar='N',
        help='draw at most this many pairs, evenly spread (default: 200)',
    )
    parser.add_argument(
        '--no-page',
        action='store_true',
        help='write JSON and Markdown only, which needs no extra',
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the files, print where they are."""
    if args.predictions is not None:
        return _score_predictions(args)
    from lunar_stereo_recon.backends import STUDENT_BACKENDS
    from lunar_stereo_recon.benchmark.methods import FILL, load_estimator, SHIPPED
    from lunar_stereo_recon.report.results import RESULTS

    if args.backend not in STUDENT_BACKENDS:
        raise InputError(f'--backend is {args.backend}; {" or ".join(STUDENT_BACKENDS)} is needed')
    prepare(args, (RESULTS, MARKDOWN, PAGE, MAP))
    source = opened_source(args, args.source)
    student = 'student'
    estimators = {
        student: load_estimator(SHIPPED, args.model, args.threads, args.backend, source.one_rig)
    }
    for backend in dict.fromkeys(args.rival):
        estimators[backend] = load_estimator(CLASSICAL[backend], None, args.threads)
    methods = [
        name for each in estimators for name in ([each] + [each + FILL] * (each != student))
    ]
    models = {student: about_model(args.model, args.backend)}
    results, clouds = evaluated(args, source, estimators, methods, models)
    write(args.out, results, clouds, not args.no_page)
    return 0


def prepare(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Check the arguments and make the folder of the results.

    Args:
        args: As parsed.
        names: Of the files that will be written into it.

    Raises:
        InputError: A number is not allowed, or the folder holds the results of another run.
        ReconError: A library for the page is missing.
    """
    import shutil

    import cv2

    from lunar_stereo_recon.extras import require
    from lunar_stereo_recon.report.results import RESULTS

    check_bag_numbers(args)
    for name, least in (('threads', 1), ('panels', 0)):
        if getattr(args, name) < least:
            raise InputError(f'--{name} is {getattr(args, name)}; at least {least} is needed')
    if not args.no_page:
        require('plotly')
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f'{args.out} is a file; a folder for the results is needed')
    named = dict.fromkeys((*names, RESULTS, PANELS))
    there = [name for name in named if (args.out / name).exists()]
    if there and not args.overwrite:
        raise InputError(
            f'{args.out} holds {", ".join(there)} of another run; name another --out, or replace '
            'them with --overwrite'
        )
    shutil.rmtree(args.out / PANELS, ignore_errors=True)
    for name in (*names, RESULTS):
        (args.out / name).unlink(missing_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(args.threads)


def opened_source(args: argparse.Namespace, path: Path) -> Source:
    """Return the pairs of a path, a bag read as the arguments say."""
    from lunar_stereo_recon.bags.reader import StereoBagReader
    from lunar_stereo_recon.report.sources import source_at

    def open_bag(bag: Path) -> StereoBagReader:
        return StereoBagReader(
            bag,
            given_topics(args),
            tolerance_s=args.tolerance,
            calibration=args.calibration or (),
        )

    return source_at(
        path,
        open_bag,
        lambda frame: frame.pair(
            baseline_m=args.baseline, white_level=args.white_level, rectify=args.rectify
        ),
    )


def about_model(model: Path | None, backend: str) -> str:
    """Return name, size and digest of a student's file, and what runs it."""
    from lunar_stereo_recon.backends import load_backend, model_file

    path = model_file(model)
    loaded = load_backend(backend, path)
    digest = loaded.metadata.get('weights_sha256', '')[:12]
    megabytes = path.stat().st_size / 1e6
    return f'{loaded.name} ({megabytes:.1f} MB, weights {digest}) on {loaded.provider}'


def evaluated(
    args: argparse.Namespace,
    source: Source,
    estimators: Mapping[str, Estimator],
    methods: list[str],
    models: Mapping[str, str],
    with_clouds: bool = True,
) -> tuple[Results, list[ViewedCloud]]:
    """Return the results of all methods, and the clouds of the first; pictures are written.

    Raises:
        InputError: No pair can be used.
    """
    from tqdm import tqdm

    from lunar_stereo_recon.files.atomic import write_bytes
    from lunar_stereo_recon.files.html_page import jpeg
    from lunar_stereo_recon.report.clouds import DriveCloud
    from lunar_stereo_recon.report.drives import FlickeringDrives, MappedDrives
    from lunar_stereo_recon.report.panels import panel
    from lunar_stereo_recon.report.results import evaluate

    drive, ground = DriveCloud(), MappedDrives(methods if with_clouds else ())
    flicker = FlickeringDrives(methods)
    step = max(-(-source.count // max(args.panels, 1)), 1)
    number = 0

    def seen(
        item: SourcePair,
        images: StereoPair,
        truth: GroundTruth | None,
        estimates: Mapping[str, Estimate],
    ) -> str:
        nonlocal number
        number += 1
        flicker.add(item, images, estimates)
        if with_clouds:
            drive.add(item, images, estimates[methods[0]])
            ground.add(item, images, truth, estimates)
        if args.panels == 0 or (number - 1) % step:
            return ''
        name = f'{PANELS}/{item.id}.jpg'
        (args.out / PANELS).mkdir(exist_ok=True)
        write_bytes(args.out / name, jpeg(panel(item.id, images, truth, estimates)))
        return name

    with tqdm(total=source.count, desc='evaluating', unit='pair') as bar:
        results = evaluate(
            source, estimators, methods, _setting(args, source, models), seen, bar.update
        )
    results.maps, picture = ground.figures(), ground.picture()
    results.flicker = flicker.figures()
    if picture is not None:
        results.map_picture = MAP
        write_bytes(args.out / MAP, jpeg(picture))
    if args.no_page or not with_clouds:
        return results, []
    whole = drive.cloud(with_confidence=True)
    if whole is not None:
        return results, [whole]
    return results, _clouds_of_pairs(source, results, estimators)


def _clouds_of_pairs(
    source: Source, results: Results, estimators: Mapping[str, Estimator]
) -> list[ViewedCloud]:
    """Return the clouds of the best, the median and the worst pair; they are matched again."""
    from tqdm import tqdm

    from lunar_stereo_recon.report.clouds import pair_cloud
    from lunar_stereo_recon.report.page import chosen_panels

    wanted = {pair.id: f'{place} pair, {pair.id}' for place, pair in chosen_panels(results)}
    found = {}
    with tqdm(total=len(wanted), desc='clouds', unit='pair') as bar:
        for item in source.pairs():
            if item.id in wanted:
                images, _ = item.load()
                estimate = estimators[results.methods[0]](images)
                found[item.id] = pair_cloud(wanted[item.id], images, estimate)
                bar.update()
            if len(found) == len(wanted):
                break
    views = [found.get(name) for name in wanted]
    return [view for view in views if view is not None]


def _setting(
    args: argparse.Namespace, source: Source, models: Mapping[str, str]
) -> dict[str, Any]:
    import cv2
    import numpy as np

    from lunar_stereo_recon import __version__
    from lunar_stereo_recon.backends.onnx_backend import RUNTIME_VERSION
    from lunar_stereo_recon.evaluation.machine import describe_machine

    return {
        'source': str(source.path),
        'command': shlex.join(['lunar-stereo', *sys.argv[1:]]),
        'machine': describe_machine(),
        'threads': args.threads,
        'versions': {
            'lunar_stereo_recon': __version__,
            'onnxruntime': RUNTIME_VERSION,
            'OpenCV': cv2.__version__,
            'NumPy': np.__version__,
        },
        'models': dict(models),
    }


def write(out: Path, results: Results, clouds: list[ViewedCloud], with_page: bool) -> None:
    """Write JSON, Markdown and, if wanted, the page; print the figures and the names."""
    from lunar_stereo_recon.evaluation.flicker import flicker_table
    from lunar_stereo_recon.evaluation.terrain_scores import map_tables
    from lunar_stereo_recon.files.html_page import write_page
    from lunar_stereo_recon.report.page import as_html, as_markdown, facts_table, loss_lines
    from lunar_stereo_recon.report.results import RESULTS

    summaries = results.summaries()
    results.write(out / RESULTS)
    write_text(out / MARKDOWN, as_markdown(results, summaries))
    print(facts_table(results))
    if summaries:
        from lunar_stereo_recon.benchmark.tables import subset_table

        print(f'\n{subset_table(summaries, "overall", "all")}')
    for line in loss_lines(results):
        print(f'WARNING: {line}', file=sys.stderr)
    for table in [*map_tables(results.maps), *flicker_table(results.flicker)]:
        print(f'\n{table}')
    names = [RESULTS, MARKDOWN, *([results.map_picture] if results.map_picture else [])]
    if with_page:
        write_page(out / PAGE, as_html(results, summaries, out, clouds))
        names.append(PAGE)
    for name in names:
        print(f'  {out / name}')


def _score_predictions(args: argparse.Namespace) -> int:
    """Print the table; a pair without prediction counts as missing everywhere."""
    from lunar_stereo_recon.evaluation.scores import format_table, summarise
    from lunar_stereo_recon.files.manifests import load_manifest

    manifest = args.source / 'manifest.json' if args.source.is_dir() else args.source
    entries = [entry for entry in load_manifest(manifest) if entry.ground_truth is not None]
    if not entries:
        raise InputError(f'no pair of {manifest} has ground truth ("gt")')
    results = {args.name: summarise(_scores(args.predictions, entries, filled=False))}
    if args.filled:
        filled = summarise(_scores(args.predictions, entries, filled=True))
        results[f'{args.name} + fill'] = filled
    for name, summary in results.items():
        print(format_table(name, summary), end='\n\n')
    if args.json:
        write_json(args.json, results, indent=1)
    return 0


def _scores(directory: Path, entries: list[Any], filled: bool) -> list[Any]:
    import sys

    import numpy as np
    from tqdm import tqdm

    from lunar_stereo_recon.errors import InputError
    from lunar_stereo_recon.evaluation.scores import load_ground_truth
    from lunar_stereo_recon.files.arrays import load_arrays

    if not directory.is_dir():
        raise InputError(f'no folder {directory}')
    paths = {entry.id: directory / f'{entry.id}.npz' for entry in entries}
    if not any(path.is_file() for path in paths.values()):
        raise InputError(
            f'{directory} has no prediction of any pair of the manifest; <id>.npz is needed, '
            f'such as {entries[0].id}.npz'
        )
    scores = []
    for entry in tqdm(entries, desc='scoring', unit='pair', delay=1):
        size = (entry.calibration.height, entry.calibration.width)
        factor = entry.calibration.fx * entry.calibration.baseline_m
        truth = load_ground_truth(entry.ground_truth, *size, factor)
        path = paths[entry.id]
        arrays = {'disparity': np.full(size, np.nan, np.float32)}
        if path.is_file():
            arrays = load_arrays(path, 'prediction')
        else:
            print(f'WARNING: no {path}; the pair counts as missing', file=sys.stderr)
        if 'disparity' not in arrays:
            raise InputError(f'{path} has no array disparity; it has {", ".join(arrays)}')
        try:
            scores.append(_score(arrays, truth, entry, filled))
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f'{path}: {error}') from error
    return scores


def _score(arrays: dict[str, Any], truth: Any, entry: ManifestEntry, filled: bool) -> PairScore:
    from lunar_stereo_recon.evaluation.scores import score_pair
    from lunar_stereo_recon.geometry.disparity import fill_from_background

    disparity = arrays['disparity']
    return score_pair(
        fill_from_background(disparity) if filled else disparity,
        truth,
        entry.calibration.fx * entry.calibration.baseline_m,
        None if filled else arrays.get('confidence'),
        entry.tag,
        float(arrays['ms']) if 'ms' in arrays else None,
    )
