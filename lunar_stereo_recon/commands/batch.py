"""`lunar-stereo batch`: many recordings on many cores or machines; what is killed is resumed."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
import math
from pathlib import Path
import time
from typing import Any, TYPE_CHECKING

from lunar_stereo_recon.commands.replay import (
    add_bag_arguments,
    check_bag_numbers,
    check_numbers,
    given_topics,
    OUTPUTS,
    pair_options,
)
from lunar_stereo_recon.commands.run import (
    add_reconstruction_arguments,
    add_self_mask_argument,
    check_reconstruction_arguments,
    given_self_mask,
    reconstruction_options,
)
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.extras import require

if TYPE_CHECKING:
    from lunar_stereo_recon.batch.cluster import Answer, Limits
    from lunar_stereo_recon.batch.plan import BagPlan, Shard
    from lunar_stereo_recon.batch.settings import BatchSettings
    from lunar_stereo_recon.batch.store import Record, Store

# Reasons that are printed for each bag; all of them are in the tables.
_MOST_REASONS = 5


@dataclass
class Progress:
    """How far a batch is.

    Attributes:
        plans: Recordings that are worked on.
        records: Of the shards that are done, by name.
        there: Number of shards that were done before.
        failures: Recordings and shards that could not be done, with the reason.
    """

    plans: list[BagPlan] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    there: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, name: str, path: str, error: str, attempts: int = 1) -> None:
        """Note what could not be done."""
        self.failures.append({'name': name, 'path': path, 'error': error, 'attempts': attempts})


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'batch',
        help='reconstruct many recordings on many cores or machines',
        description='Reconstruct many rosbag2 recordings on Ray, in shards of some hundred '
        'frames. Each shard becomes an mcap bag of results and a Parquet table with a row for '
        'each frame. Whatever is killed, --resume goes on where it was. Ends with 1 where '
        'something failed. Needs the extra [batch]; see docs/batch.md.',
    )
    parser.add_argument(
        'bags',
        nargs='*',
        type=Path,
        metavar='BAG',
        help='recordings: rosbag2 folders, .mcap or .db3; with --resume, those that are added',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='STORE', help='results')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with the batch that is in STORE; begins one where none is',
    )
    parser.add_argument(
        '--verify',
        action='store_true',
        help='with --resume: compare the content of results that are there with their SHA-256',
    )
    parser.add_argument(
        '--outputs',
        nargs='+',
        choices=OUTPUTS,
        default=list(OUTPUTS),
        help='results to write to the bags (default: all)',
    )
    parser.add_argument(
        '--shard-frames',
        type=int,
        default=200,
        metavar='N',
        help='about how many frames a shard has (default: 200)',
    )
    group = parser.add_argument_group('workers')
    group.add_argument(
        '--address', help='Ray cluster to work on, HOST:PORT or auto (default: this machine)'
    )
    group.add_argument(
        '--workers',
        type=int,
        default=0,
        metavar='N',
        help='processes that work at a time (default: as many as the cores have room for)',
    )
    group.add_argument(
        '--memory',
        type=float,
        default=2.0,
        metavar='GIB',
        help='memory that a worker may take; one that needs more fails (default: 2)',
    )
    group.add_argument(
        '--gpus', type=float, default=0.0, metavar='N', help='GPUs of a worker, e.g. 0.5'
    )
    group.add_argument(
        '--retries',
        type=int,
        default=2,
        metavar='N',
        help='attempts after one that failed (default: 2)',
    )
    add_bag_arguments(parser)
    add_reconstruction_arguments(parser)
    add_self_mask_argument(parser)
    parser.set_defaults(run=run, threads=1)


def run(args: argparse.Namespace) -> int:
    """Do what is missing in the store, say what could not be done."""
    settings, limits = _settings(args), _limits(args)
    from lunar_stereo_recon.batch.cluster import connected
    from lunar_stereo_recon.batch.store import Store

    recordings = _distinct(args.bags)
    started = time.perf_counter()
    progress = Progress()
    with Store(args.out, settings.parameters(), recordings, resume=args.resume) as store:
        with connected(args.address, limits) as workers:
            print(f'{len(store.recordings)} bags, {workers} workers of {limits.threads} threads')
            _plan(store, settings, limits, progress)
            full = _work(store, settings, limits, progress, args.verify)
        _judge_bags(progress)
        manifest = store.write_manifest(progress.plans, progress.records)
        failures = store.write_failures(progress.failures)
    _print_results(progress, time.perf_counter() - started)
    print(f'  {manifest}')
    if full:
        print(f'{args.out}: nothing more can be written ({full}); make room, then --resume')
    for failure in progress.failures:
        times = f' (attempts: {failure["attempts"]})' if failure['attempts'] > 1 else ''
        print(f'FAILED {failure["name"]}: {failure["error"]}{times}')
    if progress.failures:
        print(f'  {failures}; --resume tries again')
    return 1 if progress.failures or full else 0


def _settings(args: argparse.Namespace) -> BatchSettings:
    """Return what results depend on.

    Raises:
        InputError: An argument is not allowed, also where it would make results depend on chance.
        ReconError: A library is missing.
    """
    require('ray', 'pyarrow')
    from lunar_stereo_recon.backends import check_backend
    from lunar_stereo_recon.batch.settings import BatchSettings

    check_bag_numbers(args)
    check_reconstruction_arguments(args)
    check_backend(args.backend, args.model)
    if args.target_ms:
        raise InputError(
            '--target-ms chooses by the time that a worker takes, so that results would depend '
            'on the machine; it is not for batches'
        )
    for name, value in (('--threads', args.threads), ('--shard-frames', args.shard_frames)):
        if value < 1:
            raise InputError(f'{name} is {value}; 1 or more is needed')
    return BatchSettings(
        topics=given_topics(args),
        tolerance_s=args.tolerance,
        calibration=tuple(str(path.resolve()) for path in args.calibration or ()),
        pair=pair_options(args),
        options=reconstruction_options(args),
        backend=args.backend,
        model=_model(args.model),
        providers=tuple(args.provider) if args.provider else None,
        threads=args.threads,
        self_mask=_self_mask(args),
        outputs=tuple(name for name in OUTPUTS if name in args.outputs),
        shard_frames=args.shard_frames,
    )


def _self_mask(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the masks as every process finds them, whatever its folder is.

    Raises:
        InputError: One is none.
    """
    from lunar_stereo_recon.files.self_masks import mask_file

    given_self_mask(args)
    masks = [(text, mask_file(text)) for text in args.self_mask]
    return tuple(text if path is None else str(path.resolve()) for text, path in masks)


def _model(model: Path | None) -> str | None:
    """Return the model as every process finds it, whatever its folder is."""
    if model is None:
        return None
    return str(model.resolve()) if model.exists() else str(model)


def _limits(args: argparse.Namespace) -> Limits:
    from lunar_stereo_recon.batch.cluster import Limits

    check_numbers(('--memory', args.memory, True), ('--gpus', args.gpus, False))
    for name, value in (('--workers', args.workers), ('--retries', args.retries)):
        if value < 0:
            raise InputError(f'{name} is {value}; 0 or more is needed')
    return Limits(
        workers=args.workers,
        threads=args.threads,
        memory_bytes=math.ceil(args.memory * 2**30),
        gpus=args.gpus,
        retries=args.retries,
    )


def _distinct(bags: list[Path]) -> list[str]:
    """Return the absolute paths, each once; say which were given twice."""
    counts = Counter(str(path.resolve()) for path in bags)
    for path, number in counts.items():
        if number > 1:
            print(f'{path}: given {number} times, taken once')
    return list(counts)


def _plan(store: Store, settings: BatchSettings, limits: Limits, progress: Progress) -> None:
    """Divide the recordings; those that are no recordings are failures."""
    from tqdm import tqdm

    from lunar_stereo_recon.batch.cluster import run_all
    from lunar_stereo_recon.batch.plan import plan_bag

    answers = run_all(plan_bag, settings, store.recordings, limits)
    with tqdm(answers, total=len(store.recordings), desc='looking at bags', unit='bag') as bar:
        plans: dict[str, Answer[str]] = {answer.job: answer for answer in bar}
    taken: dict[str, str] = {}
    for path in store.recordings:  # in their order, which the answers do not have
        answer = plans[path]
        try:
            if answer.error:
                raise InputError(answer.error)
            plan: BagPlan = answer.value
            if plan.bag in taken:
                print(f'{path}: the same recording as {taken[plan.bag]}, taken once')
                continue
            store.keep_plan(plan)
        except InputError as error:
            progress.fail(path, path, str(error), answer.attempts)
            continue
        taken[plan.bag] = path
        progress.plans.append(plan)


def _work(
    store: Store, settings: BatchSettings, limits: Limits, progress: Progress, verify: bool
) -> str:
    """Do the shards that are missing; return why nothing more can be written, or nothing."""
    from tqdm import tqdm

    from lunar_stereo_recon.batch.cluster import run_all
    from lunar_stereo_recon.batch.shard_work import do_shard

    missing: list[Shard] = []
    there = total = 0
    for shard in (shard for plan in progress.plans for shard in plan.shards()):
        record = store.done(shard, verify)
        if record is None:
            missing.append(shard)
            total += shard.frames
            continue
        progress.records[shard.name] = record
        there += record['frames']['in']
    progress.there = len(progress.records)
    full = ''
    answers = run_all(do_shard, (settings, store.path), missing, limits)
    frames = there + total
    with tqdm(total=frames, initial=there, desc='reconstructing', unit='frame') as bar:
        for answer in answers:
            shard = answer.job
            if answer.error:
                progress.fail(shard.name, shard.path, answer.error, answer.attempts)
                frames -= shard.frames
            else:
                progress.records[shard.name] = answer.value
                frames += answer.value['frames']['in'] - shard.frames
                bar.update(answer.value['frames']['in'])
            bar.total = frames
            bar.refresh()
            if answer.disk_full:
                full = answer.error
                break
    answers.close()
    return full


def _judge_bags(progress: Progress) -> None:
    """Call a recording of which no frame could be used a failure, if all of it was tried."""
    for plan in progress.plans:
        records = [progress.records.get(shard.name) for shard in plan.shards()]
        if None in records or any(record['frames']['out'] for record in records if record):
            continue
        reasons: Counter[str] = Counter()
        for record in records:
            reasons.update(record['frames']['reasons'] if record else {})
        text = f'none of {reasons.total()} frames can be used'
        for reason, number in reasons.most_common(1):
            text += f'; {number} of them: {reason}'
        if not reasons:
            text = (
                'no left and right image with matching stamps; --tolerance S allows a difference'
            )
        progress.fail(plan.bag, plan.path, text)


def _print_results(progress: Progress, elapsed_s: float) -> None:
    shards = sum(len(plan.shards()) for plan in progress.plans)
    records = progress.records.values()
    frames_in = sum(record['frames']['in'] for record in records)
    frames_out = sum(record['frames']['out'] for record in records)
    print(
        f'{len(progress.plans)} bags, {len(progress.records)} of {shards} shards '
        f'({progress.there} were there), {frames_in} frames in, {frames_out} out, '
        f'{elapsed_s:.0f} s'
    )
    for plan in progress.plans:
        done = [progress.records[s.name] for s in plan.shards() if s.name in progress.records]
        _print_bag(plan, done)


def _print_bag(plan: BagPlan, done: list[Record]) -> None:
    """Print what is to be known about a recording beside its results."""
    reasons: Counter[str] = Counter()
    for record in done:
        reasons.update(record['frames']['reasons'])
    texts = [f'{number} frames cannot be used: {r}' for r, number in reasons.most_common()]
    frames = sum(record['frames']['in'] for record in done)
    for side in ('left', 'right'):
        alone = sum(record['images'][side] for record in done) - frames
        if alone:
            texts.append(f'{alone} images without a partner: {side}')
    losses = [*plan.losses, *(loss for record in done for loss in record['losses'])]
    texts += [f'lost: {loss}' for loss in dict.fromkeys(losses)]
    texts += dict.fromkeys(doubt for record in done for doubt in record['doubts'])
    for text in texts[:_MOST_REASONS]:
        print(f'  {plan.bag}: {text}')
    if len(texts) > _MOST_REASONS:
        print(f'  {plan.bag}: and {len(texts) - _MOST_REASONS} more, see shard.json of its shards')
