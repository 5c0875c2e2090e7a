"""Faults over real DDS: what goes wrong on a rover, and what the nodes then do.

    PYTHONPATH=. python test/endurance/faults.py            # all of them, some minutes
    PYTHONPATH=. python test/endurance/faults.py stops storm # those whose name has one of these

Each fault is a function here; its docstring says what is promised. Exit status: 0 where every
promise is kept, 1 elsewhere.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import importlib.util
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import time

from rig import NODE, PATIENCE_S, Rig, rig_and_processes
from std_srvs.srv import Trigger

from lunar_stereo_recon.backends import DEFAULT_MODEL
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.ros.node_processes import NodeProcesses
from lunar_stereo_recon.ros.rclpy_messages import OK, WARN

WIDTH, HEIGHT = 96, 64
RECORDED = ['left/image_rect', 'right/image_rect', 'left/camera_info', 'right/camera_info']
MEBIBYTE = 2**20
# It makes its ground first.
SIMULATOR_S = 600.0
SKIPPED = 'skipped: '
# A launch file of one process; launch_ros adds names and parameters to this, no more.
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import ExecuteProcess
service = LaunchService(argv=[])
process = ExecuteProcess(cmd=sys.argv[1:], respawn=True, respawn_delay=1.0, output='log')
service.include_launch_description(LaunchDescription([process]))
sys.exit(service.run())
"""


class PromiseBroken(Exception):
    """A node did not do what is promised."""


@dataclass
class Stage:
    """Where a fault is played: the cameras, the starter of nodes, and an empty folder."""

    rig: Rig
    processes: NodeProcesses
    folder: Path

    def start(self, **parameters: str | int | float | bool) -> None:
        """Start the reconstruction node, and wait until it has served a pair."""
        parameters = {'backend': 'sgbm', 'threads': 1, **parameters}
        self.processes.start(NODE, parameters, large_messages=True)
        self.rig.wait_until_heard()
        self.must_serve()

    def must_serve(self) -> None:
        """Demand that the next pair is published.

        Raises:
            PromiseBroken: It is not.
        """
        answer = self.rig.answer(self.rig.publish())
        demand(answer == 'published', f'the next pair is answered {answer!r}')

    def must_serve_again(self) -> None:
        """Publish until a pair is answered; who died is taken for a subscriber for some time."""
        stamps: list[int] = []

        def served() -> bool:
            stamps.append(self.rig.publish())
            self.rig.spin_for(0.5)
            return any(stamp in self.rig.statuses for stamp in stamps)

        self.rig.spin_until(served, what='an answer of the new node')

    def must_have_answered(self, stamps: Sequence[int]) -> Counter[str]:
        """Demand one answer for each pair; return how many of each text.

        Raises:
            PromiseBroken: A pair has none, or more than one.
        """
        for stamp in stamps:
            self.rig.answer(stamp)
        several = [stamp for stamp in stamps if len(self.rig.statuses[stamp]) != 1]
        demand(not several, f'{len(several)} of {len(stamps)} pairs have several answers')
        return Counter(self.rig.statuses[stamp][0][1].partition(':')[0] for stamp in stamps)

    def health(self, task: str, level: bytes, words: str) -> str:
        """Wait for a task of the diagnostics to say something at a level; return its text."""

        def said() -> str:
            now, text = self.rig.health.get(task, (None, ''))
            return text if now == level and words in text else ''

        return self.rig.spin_until(said, what=f'{words!r} in the task {task}')

    def play(self, seconds: float, rate: float = 20.0) -> list[int]:
        """Publish pairs for a time; return their stamps."""
        begin, stamps = time.monotonic(), []
        for number in range(1, 1 + round(seconds * rate)):
            stamps.append(self.rig.publish())
            self.rig.spin_for(begin + number / rate - time.monotonic())
        return stamps


def demand(kept: bool, otherwise: str) -> None:
    """Raise where a promise is not kept.

    Raises:
        PromiseBroken: With what was seen.
    """
    if not kept:
        raise PromiseBroken(otherwise)


# Cameras


def camera_stops_and_returns(stage: Stage) -> str:
    """Stop both cameras: the diagnostics name the topics; the next pair is served at once."""
    stage.start()
    stage.rig.spin_for(3.0)
    text = stage.health('input', WARN, 'left/image_rect and ')
    demand('right/image_rect' in text, text)
    stage.must_serve()
    stage.health('input', OK, 'pairs per second')
    return 'named after 3 s of silence, served at once'


def one_side_only(stage: Stage) -> str:
    """Publish one side: each image is answered; the diagnostics name the silent side."""
    stage.start()
    stamps: list[int] = []

    def said() -> str:
        stamps.append(stage.rig.publish(sides=('left',)))
        stage.rig.spin_for(0.1)
        text = stage.rig.health['input'][1]
        return text if ', right 0: is ' in text else ''

    text = stage.rig.spin_until(said, what='a word on the right side')
    demand('right 0: is /right/image_rect published?' in text, text)
    answers = stage.must_have_answered(stamps)
    demand(set(answers) == {'unpaired'}, str(answers))
    stage.must_serve()
    return f'{len(stamps)} images answered'


def publishers_restart(stage: Stage) -> str:
    """Replace the publishers, with stamps going on or anew: the next pair is served."""
    stage.start()
    for number in range(6):
        stage.rig.withdraw()
        stage.rig.spin_for(0.3)
        stage.rig.advertise()
        stage.rig.wait_until_heard()
        if number % 2:
            stage.rig.index = 1000 * number  # a driver's clock may jump at its start
        stage.must_serve()
    return '6 restarts'


def stamps_out_of_order(stage: Stage) -> str:
    """Send stamps back by 10 ms, equal, 0 and the last there is: all are answered, and said."""
    stage.start()
    stage.rig.index += 10  # away from the stamps that were answered
    newest = stage.rig.publish()
    stage.rig.answer(newest)
    back = [newest - 10_000_000 * step for step in range(1, 19)]
    for stamp in back:
        stage.rig.publish(stamp)
        stage.rig.spin_for(0.03)
    text = stage.health('input', WARN, 'older than the one before, the last by 10 ms')
    answers = stage.must_have_answered(back)
    for stamp in (0, 2**31 * 10**9 - 1):
        for _ in range(5):
            stage.rig.publish(stamp)
            stage.rig.spin_for(0.05)
        stage.health('input', WARN, 'have the stamp of the one before')
        # Diagnostics count a pair when it comes, on a busy machine long before its answer.
        stage.rig.spin_until(
            lambda stamp=stamp: len(stage.rig.statuses.get(stamp, [])) >= 5,
            what=f'an answer to each pair with the stamp {stamp}',
        )
        stage.rig.spin_for(0.5)
        number = len(stage.rig.statuses[stamp])
        demand(number == 5, f'{number} answers to five pairs with the stamp {stamp}')
    stage.must_serve()
    return f'{dict(answers)}; {text}'


def camera_info_changes(stage: Stage) -> str:
    """Spoil a calibration: it is refused with the reason, and the next good one is served."""
    stage.start()

    def spoilt(field: str, value: object) -> Callable[[str, object], None]:
        def change(side: str, info: object) -> None:
            setattr(info, field, value)

        return change

    texts = []
    for field, value in (('width', 640), ('p', [0.0] * 12), ('p', [float('nan')] * 12)):
        answer = stage.rig.answer(stage.rig.publish(change_info=spoilt(field, value)))
        demand(answer.startswith('invalid: '), f'{field} = {value}: {answer}')
        texts.append(answer)
        stage.must_serve()
    return f'3 refused, such as {texts[0]!r}'


def ten_times_the_load(stage: Stage) -> str:
    """Send 2,000 pairs at 200 Hz: each one that arrives is answered, and the next is served."""
    stage.start(backend='onnx')
    stamps = stage.play(10.0, 200.0)
    stage.must_serve()
    stage.rig.spin_for(3.0)  # the diagnostics have counted it
    stamps = [stamp for stamp in stamps if stamp in stage.rig.statuses]
    answers = stage.must_have_answered(stamps)
    values = stage.rig.values['input']
    # Two pairs more than these were served, one before and one after.
    arrived = max(int(values[f'{side} images']) for side in ('left', 'right')) - 2
    demand(len(stamps) >= arrived, f'{arrived} pairs arrived, {len(stamps)} were answered')
    return f'{arrived} pairs arrived, {len(stamps)} were answered: {dict(answers)}'


def parameter_storm(stage: Stage) -> str:
    """Change 1,000 parameters, each fourth of them badly: changes and pairs are answered."""
    stage.start()
    stamps, refused = [], 0
    for number in range(1000):
        values = [
            {'confidence_threshold': number % 10 / 10},
            {'min_range': float(number % 7)},
            {'refine': bool(number % 2)},
            {'confidence_threshold': 7.0},
        ][number % 4]
        (result,) = stage.rig.set_parameters(**values)
        refused += not result.successful
        if number % 5 == 0:
            stamps.append(stage.rig.publish())
    demand(refused == 250, f'{refused} of 250 bad values were refused')
    stage.rig.set_parameters(confidence_threshold=0.5, min_range=0.0, refine=True)
    answers = stage.must_have_answered(stamps)
    stage.must_serve()
    return f'{refused} refused; of {len(stamps)} pairs {dict(answers)}'


# Files


def model_file_changes(stage: Stage) -> str:
    """Cut the file off, change a bit, remove it: it is refused, and pairs go on."""
    path = stage.folder / 'model.onnx'
    good = DEFAULT_MODEL.read_bytes()
    path.write_bytes(good)
    stage.start(backend='onnx', model=str(path))
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    texts = []
    for data in (good[: len(good) // 2], bytes(flipped), b'', b'no model at all', None):
        path.unlink() if data is None else path.write_bytes(data)
        stage.must_serve()
        answer = stage.rig.call(Trigger, 'set_model')
        demand(not answer.success, f'taken: {answer.message}')
        texts.append(answer.message)
        stage.must_serve()
    path.write_bytes(good)
    answer = stage.rig.call(Trigger, 'set_model')
    demand(answer.success, answer.message)
    stage.must_serve()
    stage.health('model', OK, 'ready')
    return f'{len(texts)} refused, such as {texts[1]!r}'


def model_is_broken_at_start(stage: Stage) -> str:
    """Start with a file that is cut off: the node names it and ends with 1."""
    path = stage.folder / 'model.onnx'
    path.write_bytes(DEFAULT_MODEL.read_bytes()[:1_000_000])
    stage.processes.start(NODE, {'backend': 'onnx', 'model': str(path)})
    stage.rig.spin_until(
        lambda: stage.processes.status(NODE) is not None, what='the end of the node'
    )
    status = stage.processes.status(NODE)
    demand(status == 1, f'status {status}')
    demand(str(path) in stage.processes.log(NODE), 'the log does not name the file')
    return 'status 1, the file is named'


def disk_is_full_for_the_recorder(stage: Stage) -> str:
    """Fill the disk: the recorder says so and ends with 1; what it wrote can be read."""
    with small_disk(stage.folder, MEBIBYTE) as disk:
        stage.start()
        bag = disk / 'bag'
        record(stage, bag)
        stage.rig.spin_until(
            lambda: stage.rig.publish() and stage.processes.status('recorder_node') is not None,
            what='the end of the recorder',
        )
        status, log = stage.processes.status('recorder_node'), stage.processes.log('recorder_node')
        demand(status == 1, f'status {status}: {log}')
        demand('No space left on device; recording stops' in log, log)
        demand('Traceback' not in log, log)
        frames = readable_frames(bag)
        demand(frames > 0, 'nothing can be read')
        stage.must_serve()
        return f'{frames} frames can be read of 1 MiB'


def disk_is_full_for_a_cloud(stage: Stage) -> str:
    """Save a cloud on a full disk: the answer has the reason, and no half of a file is left."""
    with small_disk(stage.folder, MEBIBYTE) as disk:
        (disk / 'filler').write_bytes(bytes(MEBIBYTE - 20 * 1024))
        stage.start(save_root=str(disk), confidence_threshold=0.0)
        answer = stage.rig.call(Trigger, 'save_cloud')
        demand(not answer.success, answer.message)
        demand('No space left on device' in answer.message, answer.message)
        left = sorted(path.name for path in disk.iterdir())
        demand(left == ['filler'], f'left behind: {left}')
        stage.must_serve()
        return answer.message.replace(str(stage.folder), '')


# Processes


def node_is_interrupted(stage: Stage) -> str:
    """Interrupt the node in the middle of its work: it ends with 0."""
    took = []
    for number in (signal.SIGINT, signal.SIGTERM):
        stage.start(backend='onnx')
        stage.play(1.0, 30.0)
        begin = time.monotonic()
        os.kill(stage.processes.pid(NODE), number)
        status = stage.processes.wait(NODE)
        took.append(time.monotonic() - begin)
        demand(status == 0, f'{number.name}: status {status}')
        demand('Traceback' not in stage.processes.log(NODE), stage.processes.log(NODE))
    return f'within {max(took):.1f} s'


def node_is_killed_and_respawned(stage: Stage) -> str:
    """Kill the node: launch starts it again, and it serves the same cameras."""
    if importlib.util.find_spec('launch.actions') is None:
        raise CannotPlay('the Python package launch of ROS is not installed')
    command = [sys.executable, '-m', f'lunar_stereo_recon.ros.{NODE}', '--ros-args']
    command += ['-p', 'backend:=sgbm', '-p', 'threads:=1']
    with (stage.folder / 'launch.log').open('wb') as log:
        launch = subprocess.Popen([sys.executable, '-c', LAUNCH, *command], stdout=log, stderr=log)
    try:
        took = []
        for _ in range(3):
            stage.must_serve_again()
            (pid,) = children(launch.pid)
            stage.play(0.5)
            os.kill(pid, signal.SIGKILL)
            begin = time.monotonic()
            stage.rig.spin_until(
                lambda pid=pid: children(launch.pid) not in ([], [pid]), what='another node'
            )
            stage.must_serve_again()
            took.append(time.monotonic() - begin)
        launch.send_signal(signal.SIGINT)
        status = launch.wait(PATIENCE_S)
        demand(status == 0, f'launch ended with {status}')
    finally:
        for pid in children(launch.pid):
            os.kill(pid, signal.SIGKILL)
        launch.kill()
        launch.wait()
    return f'3 times, served again within {max(took):.0f} s'


def recorder_is_ended(stage: Stage) -> str:
    """End the recorder: a signal leaves a whole bag, a kill one whose chunks can be read."""
    stage.start()
    frames = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        bag = stage.folder / number.name
        record(stage, bag)
        stamps = stage.play(3.0, 30.0)
        os.kill(stage.processes.pid('recorder_node'), number)
        status = stage.processes.wait('recorder_node')
        wanted = -number if number == signal.SIGKILL else 0
        demand(status == wanted, f'{number.name}: status {status}')
        stage.must_have_answered(stamps)
        frames[number.name] = readable_frames(bag)
        demand(frames[number.name] > 0, f'{number.name}: nothing can be read')
    stage.must_serve()
    return f'frames that can be read, of {len(stamps)}: {frames}'


def replay_is_ended(stage: Stage) -> str:
    """End the player: with 0 after a signal; the node names the topics, serves the next one."""
    stage.start()
    bag = stage.folder / 'bag'
    record(stage, bag)
    stage.play(2.0)
    stage.processes.stop('recorder_node')
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        before = len(stage.rig.statuses)
        stage.rig.statuses.clear()
        stage.processes.start('replay_node', {'bag': str(bag), 'loop': True})
        stage.rig.spin_until(lambda: len(stage.rig.statuses) >= 10, what='ten answers')
        os.kill(stage.processes.pid('replay_node'), number)
        status = stage.processes.wait('replay_node')
        wanted = -number if number == signal.SIGKILL else 0
        demand(status == wanted, f'{number.name}: status {status} after {before} answers')
        stage.health('input', WARN, 'left/image_rect and ')
    stage.must_serve()
    return 'SIGINT, SIGTERM, kill -9'


def simulator_is_ended(stage: Stage) -> str:
    """End the simulator: with 0 after a signal; the node serves the next one."""
    stage.start()
    stage.rig.withdraw()
    small = {'width': 96, 'height': 64, 'samples': 1, 'rate': 5.0, 'preset': 'smooth'}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        stage.rig.statuses.clear()
        stage.processes.start('simulator_node', small)
        stage.rig.spin_until(lambda: len(stage.rig.statuses) >= 3, SIMULATOR_S, 'three answers')
        os.kill(stage.processes.pid('simulator_node'), number)
        status = stage.processes.wait('simulator_node')
        wanted = -number if number == signal.SIGKILL else 0
        demand(status == wanted, f'{number.name}: status {status}')
        stage.health('input', WARN, 'left/image_rect and ')
    stage.rig.advertise()
    stage.rig.wait_until_heard()
    stage.must_serve()
    return 'SIGINT, SIGTERM, kill -9'


FAULTS: list[Callable[[Stage], str]] = [
    camera_stops_and_returns,
    one_side_only,
    publishers_restart,
    stamps_out_of_order,
    camera_info_changes,
    ten_times_the_load,
    parameter_storm,
    model_file_changes,
    model_is_broken_at_start,
    disk_is_full_for_the_recorder,
    disk_is_full_for_a_cloud,
    node_is_interrupted,
    node_is_killed_and_respawned,
    recorder_is_ended,
    replay_is_ended,
    simulator_is_ended,
]


class CannotPlay(Exception):
    """A fault needs what this machine does not allow."""


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Give a file system of so many bytes.

    Raises:
        CannotPlay: Mounting is not allowed.
    """
    disk = folder / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'small', str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise CannotPlay(f'a small file system cannot be mounted: {done.stderr.strip()}')
    try:
        yield disk
    finally:
        subprocess.run(['umount', '--lazy', str(disk)], check=True)


def record(stage: Stage, bag: Path) -> None:
    """Start the recorder and wait until it listens."""
    topics = [*RECORDED, 'points2', 'frame_status']
    stage.processes.start('recorder_node', {'bag': str(bag), 'topics': topics})
    publishers = stage.rig.publishers.values()
    stage.rig.spin_until(
        lambda: all(p.get_subscription_count() > 1 for p in publishers), what='a recorder'
    )
    stage.rig.spin_for(0.5)


def readable_frames(bag: Path) -> int:
    """Return how many stereo frames a bag gives."""
    with StereoBagReader(bag) as reader:
        return sum(1 for _ in reader.frames())


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run."""
    found = []
    for number in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path('/proc', number, 'stat').read_text().rpartition(')')[2].split()
            if int(fields[1]) == pid and fields[0] != 'Z':
                found.append(int(number))
    return found


def play_fault(fault: Callable[[Stage], str]) -> tuple[bool, str]:
    """Play a fault on a domain of its own; return whether the promise is kept, and what was seen.

    The reconstruction node must still run at the end, and end with 0 when it is interrupted,
    unless the fault has ended it.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder) / 'logs'
        with rig_and_processes(WIDTH, HEIGHT, logs) as (rig, processes):
            try:
                seen = fault(Stage(rig, processes, Path(folder)))
                if processes.has(NODE) and processes.status(NODE) is None:
                    status = processes.stop(NODE)
                    demand(status == 0, f'the node ended with {status} in the end')
            except CannotPlay as error:
                return True, f'{SKIPPED}{error}'
            except (PromiseBroken, TimeoutError) as error:
                tail = [
                    f'{path.name}: {line}'
                    for path in sorted(logs.glob('*.log'))
                    for line in path.read_text().splitlines()[-5:]
                ]
                return False, '\n    '.join([str(error), *tail])
    return True, seen


def main(argv: Sequence[str] | None = None) -> int:
    """Play the faults; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', help='parts of the names of faults; all where none')
    args = parser.parse_args(argv)
    chosen = [f for f in FAULTS if not args.names or any(n in f.__name__ for n in args.names)]
    if not chosen:
        parser.error(f'known are {", ".join(fault.__name__ for fault in FAULTS)}')
    broken = 0
    for fault in chosen:
        begin = time.monotonic()
        kept, seen = play_fault(fault)
        broken += not kept
        word = 'kept' if kept else 'BROKEN'
        print(f'{word:6} {fault.__name__} ({time.monotonic() - begin:.0f} s): {seen}', flush=True)
    print(f'{len(chosen) - broken} of {len(chosen)} promises kept')
    return 1 if broken else 0


if __name__ == '__main__':
    sys.exit(main())
