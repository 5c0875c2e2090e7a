"""What a batch costs beside the work itself, and how it scales over the cores of this machine.

    PYTHONPATH=. python test/batch/cost.py --copies 4 --rounds 3

In turn, so that whatever else the machine does meets all of them: the frames of a recording as
`replay` does them, in this process; the same frames by one worker of a Ray on this machine; and by
as many as there are cores. Each copy of the recording is a shard. Of each it prints milliseconds a
frame: by the clock, and of CPU time, user and system, which other processes disturb less. The CPU
time of a batch is that of the driver, the workers and all of Ray's own processes, from the first
shard to the last; starting Ray and loading the model come before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import dataclasses
from functools import partial
import os
from pathlib import Path
import shutil
import statistics
import tempfile
import time

import cv2

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.bags.writer import BagWriter
from lunar_stereo_recon.batch.cluster import connected, Limits, run_all
from lunar_stereo_recon.batch.plan import plan_bag, Shard
from lunar_stereo_recon.batch.settings import BatchSettings
from lunar_stereo_recon.batch.shard_work import do_shard
from lunar_stereo_recon.batch.store import Store
from lunar_stereo_recon.commands.demo import DEMO_BAG
from lunar_stereo_recon.evaluation.machine import describe_machine, usable_cores
from lunar_stereo_recon.offline import outcomes, write_result
from lunar_stereo_recon.pipeline import StereoReconstructor

TICKS_PER_S = os.sysconf('SC_CLK_TCK')


def cpu_s() -> dict[int, float]:
    """Return the CPU time of this process and of all below it, by process, seconds."""
    parents, times = {}, {}
    for entry in Path('/proc').iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # After the name, which may hold anything: state, parent, ...; fields as in proc(5).
            fields = (entry / 'stat').read_text().rpartition(')')[2].split()
        except OSError:  # it ended
            continue
        parents[int(entry.name)] = int(fields[1])
        times[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    ours = {os.getpid()}
    while True:
        found = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not found:
            return {pid: times[pid] for pid in ours}
        ours |= found


def measured(work: Callable[[], int]) -> tuple[float, float]:
    """Return milliseconds a frame, by the clock and of CPU time; `work` returns its frames."""
    before, start = cpu_s(), time.perf_counter()
    frames = work()
    elapsed, after = time.perf_counter() - start, cpu_s()
    if before.keys() - after.keys():
        print('a process ended meanwhile: its CPU time since the start is missing')
    spent = sum(value - before.get(pid, 0.0) for pid, value in after.items())
    return 1e3 * elapsed / frames, 1e3 * spent / frames


def as_replay(backend: Backend, settings: BatchSettings, shards: list[Shard], out: Path) -> int:
    """Do the shards as `replay` does recordings; return the number of frames."""
    frames = 0
    for shard in shards:
        engine = StereoReconstructor(backend, settings.options)
        with settings.opened(shard.path) as reader, BagWriter(out / shard.bag) as writer:
            for outcome in outcomes(reader.frames(), engine, settings.pair):
                if outcome.result is None:
                    raise SystemExit(f'{shard.path}: {outcome.error}')
                write_result(writer, outcome.result, settings.outputs)
                frames += 1
    return frames


def as_batch(settings: BatchSettings, shards: list[Shard], limits: Limits, out: Path) -> int:
    """Do the shards by workers; return the number of frames."""
    frames = 0
    with Store(out, settings.parameters(), [shards[0].path], resume=False) as store:
        for answer in run_all(do_shard, (settings, store.path), shards, limits):
            if answer.error:
                raise SystemExit(f'{answer.job.name}: {answer.error}')
            frames += answer.value['frames']['in']
    return frames


def main() -> None:
    """Measure in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--bag', type=Path, default=DEMO_BAG, help='recording (demo drive)')
    parser.add_argument('--copies', type=int, default=4, help='shards of a round (4)')
    parser.add_argument('--rounds', type=int, default=3, help='rounds (3)')
    parser.add_argument('--workers', type=int, default=usable_cores(), help='at most (cores)')
    parser.add_argument('--backend', default='onnx', help='as of `lunar-stereo batch` (onnx)')
    args = parser.parse_args()
    settings = BatchSettings(backend=args.backend, shard_frames=10**6)
    [shard] = plan_bag(settings, str(args.bag.resolve())).shards()
    shards = [dataclasses.replace(shard, bag=f'copy-{index}') for index in range(args.copies)]
    cv2.setNumThreads(settings.threads)
    backend = load_backend(settings.backend, threads=settings.threads)
    machine = describe_machine()
    print(f'{machine["processor"]}, {machine["cores"]} cores; load {os.getloadavg()[0]:.1f}')
    counts = sorted({1, args.workers})
    found: dict[str, list[tuple[float, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        connected(None, Limits(workers=args.workers)),
    ):
        # Every worker loads its model.
        warm_up = [dataclasses.replace(shard, bag=f'w{index}') for index in range(args.workers)]
        as_batch(settings, warm_up, Limits(workers=args.workers), Path(folder, 'warm'))
        for _ in range(args.rounds):
            tasks: dict[str, Callable[[Path], int]] = {
                'replay': partial(as_replay, backend, settings, shards)
            }
            for count in counts:
                limits = Limits(workers=count)
                tasks[f'batch, workers: {count}'] = partial(as_batch, settings, shards, limits)
            for name, task in tasks.items():
                out = Path(folder, 'out')
                found.setdefault(name, []).append(measured(partial(task, out)))
                shutil.rmtree(out)
                wall, cpu = found[name][-1]
                print(f'{name:20} {wall:7.1f} ms by the clock {cpu:7.1f} ms of CPU', flush=True)
    print(
        f'medians of {args.rounds} rounds of {args.copies} shards; load {os.getloadavg()[0]:.1f}'
    )
    base = [statistics.median(values) for values in zip(*found['replay'], strict=True)]
    for name, rows in found.items():
        wall, cpu = (statistics.median(values) for values in zip(*rows, strict=True))
        print(
            f'{name:20} {wall:7.1f} ms by the clock ({base[0] / wall:4.2f} times as fast) '
            f'{cpu:7.1f} ms of CPU ({100 * (cpu / base[1] - 1):+.1f} %)'
        )


if __name__ == '__main__':
    main()
