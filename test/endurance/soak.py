"""Many frames through the node: does its memory grow, do handles or threads, does it get slower?

    PYTHONPATH=. python test/endurance/soak.py --frames 20000
    PYTHONPATH=. python test/endurance/soak.py --minutes 60 --size 640x480 --backend onnx --rate 2

The frames go over DDS to the node in a process of its own, one after the other: the next is sent
when the one before was answered. What comes of the first tenth is warm-up. Exit status: 0 where
every limit is kept, 1 elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import json
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

import numpy as np
from rig import NODE, Rig, rig_and_processes

from lunar_stereo_recon.evaluation.machine import describe_machine

SAMPLE_S = 0.2
LEAST_SAMPLES = 8
WARM_UP = 0.1
MEMORY_GROWTH = 0.01
# Work per frame is steadier than latency, which also holds what else the machine does; but who
# shares caches and cores makes it vary by a fifth.
CPU_GROWTH = 0.3
PAGE_BYTES = os.sysconf('SC_PAGE_SIZE')
TICKS_PER_S = os.sysconf('SC_CLK_TCK')
ANSWER_S = 120.0


@dataclass(frozen=True)
class Sample:
    """What the node's process is at one moment.

    Attributes:
        frame: Frames answered until now.
        resident: Bytes of memory.
        handles, threads: Their numbers.
        cpu_s: Processor time since it began.
        load: Mean number of processes that wanted a core in the last minute, on the machine.
    """

    frame: int
    resident: int
    handles: int
    threads: int
    cpu_s: float
    load: float


def sample(pid: int, frame: int) -> Sample:
    """Read /proc of a process."""
    process = Path(f'/proc/{pid}')
    # The name in brackets may hold blanks.
    fields = (process / 'stat').read_text().rpartition(')')[2].split()
    resident = int((process / 'statm').read_text().split()[1]) * PAGE_BYTES
    cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    handles = len(os.listdir(process / 'fd'))
    return Sample(frame, resident, handles, int(fields[17]), cpu_s, os.getloadavg()[0])


@dataclass
class Course:
    """What was measured, in order of time."""

    samples: list[Sample]
    latencies_ms: list[float]
    round_trips_ms: list[float]
    outcomes: dict[str, int]
    seconds: float


def run(rig: Rig, pid: int, frames: int, seconds: float, rate: float) -> Course:
    """Send frames, each after the answer to the one before.

    Args:
        rig: The cameras.
        pid: Of the node.
        frames: So many, or 0.
        seconds: For so long, where `frames` is 0.
        rate: Frames per second at most; 0 is no limit.
    """
    course = Course([], [], [], {}, 0.0)
    begin = next_sample = time.monotonic()
    number = 0
    while number < frames if frames else time.monotonic() - begin < seconds:
        sent = time.monotonic()
        stamp = rig.publish()
        try:
            outcome = rig.answer(stamp, ANSWER_S)
        except TimeoutError:
            outcome = 'unanswered'
        course.round_trips_ms.append(1e3 * (time.monotonic() - sent))
        answers = rig.statuses.pop(stamp, [])
        if len(answers) > 1:
            outcome = f'{len(answers)} answers'
        elif outcome == 'published':
            course.latencies_ms.append(float(answers[0][2]['latency [ms]']))
        course.outcomes[outcome] = course.outcomes.get(outcome, 0) + 1
        number += 1
        if time.monotonic() >= next_sample:
            course.samples.append(sample(pid, number))
            next_sample = time.monotonic() + SAMPLE_S
        if rate > 0:
            rig.spin_for(begin + number / rate - time.monotonic())
    course.samples.append(sample(pid, number))
    course.seconds = time.monotonic() - begin
    return course


def judged(course: Course) -> dict[str, Any]:
    """Return the figures of a course, and which limits it does not keep."""
    frames = course.samples[-1].frame
    after = [s for s in course.samples if s.frame >= WARM_UP * frames]
    if len(after) < LEAST_SAMPLES:
        raise ValueError(
            f'{len(after)} samples after warm-up; at least {LEAST_SAMPLES} are needed'
        )
    quarter = len(after) // 4
    first, last = after[:quarter], after[-quarter:]
    resident = [float(np.median([s.resident for s in part])) for part in (first, last)]
    growth = resident[1] / resident[0] - 1
    quarters = [after[part[0] : part[-1] + 1] for part in np.array_split(range(len(after)), 4)]
    cpu_ms = [_cpu_ms(part[0], part[-1]) for part in quarters]
    warm = int(WARM_UP * len(course.latencies_ms))
    p50, p95 = (
        [
            round(float(np.percentile(part, share)), 1)
            for part in np.array_split(np.array(course.latencies_ms[warm:]), 4)
        ]
        for share in (50, 95)
    )
    handles, threads = ({getattr(s, name) for s in after} for name in ('handles', 'threads'))
    failures = []
    if set(course.outcomes) != {'published'}:
        failures.append('not every frame was published, with one answer')
    if growth >= MEMORY_GROWTH:
        failures.append(f'resident memory grew by {growth:.2%}')
    for name in ('handles', 'threads'):  # a library may have one more for a moment
        usual = [np.median([getattr(s, name) for s in part]) for part in (first, last)]
        if usual[0] != usual[1]:
            failures.append(f'the number of {name} changed')
    if cpu_ms[-1] > (1 + CPU_GROWTH) * cpu_ms[0]:
        failures.append('a frame takes more processor time at the end')
    return {
        'frames': frames,
        'minutes': round(course.seconds / 60, 1),
        'outcomes': course.outcomes,
        'resident_mib_first_and_last_quarter': [round(r / 2**20, 1) for r in resident],
        'resident_growth': round(growth, 5),
        'resident_mib_peak': round(max(s.resident for s in after) / 2**20, 1),
        'handles': sorted(handles),
        'threads': sorted(threads),
        'cpu_ms_per_frame_by_quarter': [round(value, 2) for value in cpu_ms],
        'latency_p50_ms_by_quarter': p50,
        'latency_p95_ms_by_quarter': p95,
        'load_by_quarter': [round(float(np.mean([s.load for s in p])), 2) for p in quarters],
        'round_trip_p95_ms': round(float(np.percentile(course.round_trips_ms, 95)), 1),
        'failures': failures,
    }


def _cpu_ms(first: Sample, last: Sample) -> float:
    return 1e3 * (last.cpu_s - first.cpu_s) / max(1, last.frame - first.frame)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--frames', type=int, default=0, help='so many, instead of --minutes')
    parser.add_argument('--minutes', type=float, default=60.0)
    parser.add_argument('--size', default='96x64', help='of the images, WIDTHxHEIGHT')
    parser.add_argument('--backend', default='sgbm')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rate', type=float, default=0.0, help='frames per second at most')
    parser.add_argument('--logs', type=Path, help='folder of the log of the node')
    parser.add_argument('--out', type=Path, help='JSON with the figures and all samples')
    args = parser.parse_args(argv)
    width, height = map(int, args.size.split('x'))
    with tempfile.TemporaryDirectory() as scratch:
        logs = args.logs or Path(scratch)
        with rig_and_processes(width, height, logs) as (rig, processes):
            parameters = {'backend': args.backend, 'threads': args.threads}
            processes.start(NODE, parameters, large_messages=True)
            rig.wait_until_heard()
            course = run(rig, processes.pid(NODE), args.frames, 60 * args.minutes, args.rate)
            status = processes.stop(NODE)
    figures = {'machine': describe_machine(), 'options': vars(args), **judged(course)}
    figures['exit_status_of_node'] = status
    print(json.dumps(figures, indent=2, default=str))
    if args.out:
        samples = [vars(each) for each in course.samples]
        latencies = {'latencies_ms': course.latencies_ms, 'samples': samples}
        args.out.write_text(json.dumps({**figures, **latencies}, default=str))
    return 1 if figures['failures'] or status else 0


if __name__ == '__main__':
    sys.exit(main())
