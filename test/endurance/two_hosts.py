"""The link between two hosts is cut and comes back: cameras on one, the node on the other.

    sudo PYTHONPATH=. python test/endurance/two_hosts.py --cuts 5 40

Needs root and `ip`: the hosts are two network namespaces that this program makes, joined by a
pair of virtual cards, and nothing else is touched. DDS goes over UDP, as between machines. The
promise: whatever the cut's length, the same node answers again within `RETURN_S` of the link's
return, and each pair from then on. Answers on their way when the link goes are lost where DDS has
given the other host up (20 s). Exit status: 0 where it is kept, 1 elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import contextlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

CAMERAS, ROVER = 'lsr_cameras', 'lsr_rover'
ADDRESSES = {CAMERAS: '10.77.0.1/24', ROVER: '10.77.0.2/24'}
RATE_HZ = 5.0
CARRIER_S = 10.0
WIDTH, HEIGHT = 160, 120
STEADY_S = 8.0
RETURN_S = 15.0
START_S = 120.0


def ip(*words: str) -> None:
    """Call `ip`."""
    subprocess.run(['ip', *words], check=True)


@contextlib.contextmanager
def two_hosts() -> Any:
    """Make two network namespaces with a link; remove them at the end."""
    for name in ADDRESSES:
        ip('netns', 'add', name)
    try:
        ip('link', 'add', 'lsr0', 'netns', CAMERAS, 'type', 'veth', 'peer', 'lsr0', 'netns', ROVER)
        for name, address in ADDRESSES.items():
            ip('-n', name, 'link', 'set', 'lo', 'up')
            ip('-n', name, 'address', 'add', address, 'dev', 'lsr0')
            ip('-n', name, 'link', 'set', 'lsr0', 'up')
        # DDS looks for its network cards once, when it begins.
        wait_for(lambda: all(carries(name) for name in ADDRESSES), CARRIER_S, 'the link')
        yield
    finally:
        for name in ADDRESSES:
            subprocess.run(['ip', 'netns', 'delete', name], check=False)


def carries(name: str) -> bool:
    """Return whether a host's end of the link is up and has its other end."""
    words = ['ip', '-n', name, '-o', 'link', 'show', 'lsr0']
    return 'state UP' in subprocess.run(words, check=True, capture_output=True, text=True).stdout


def environment() -> dict[str, str]:
    """Return the environment of both hosts."""
    return {
        **os.environ,
        'ROS_DOMAIN_ID': '77',
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET',
        # Namespaces share the memory of the machine, hosts do not.
        'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4',
        'OMP_NUM_THREADS': '1',
    }


def on_host(name: str, *command: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a Python program on one of the hosts."""
    words = ['ip', 'netns', 'exec', name, sys.executable, *command]
    with log.open('wb') as file:
        return subprocess.Popen(words, env=environment(), stdout=file, stderr=subprocess.STDOUT)


def play_cameras(report: Path) -> None:
    """Publish pairs until interrupted, then write when each was sent and answered."""
    from rig import Rig

    class TimedRig(Rig):
        """Knows when the first answer to a pair came."""

        def _on_status(self, message: Any) -> None:
            before = set(self.statuses)
            super()._on_status(message)
            for stamp in set(self.statuses) - before:
                answered[stamp] = time.monotonic()

    sent: dict[int, float] = {}
    answered: dict[int, float] = {}
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    rig = TimedRig(WIDTH, HEIGHT)
    rig.wait_until_heard()
    begin, number = time.monotonic(), 0
    while not stopped:
        number += 1
        sent[rig.publish()] = time.monotonic()
        rig.spin_for(begin + number / RATE_HZ - time.monotonic())
        if number % 5 == 0:
            write(report, sent, answered)
    write(report, sent, answered)
    rig.close()


def write(report: Path, sent: dict[int, float], answered: dict[int, float]) -> None:
    """Write the pairs as (seconds sent, seconds answered or null), whole or not at all."""
    part = report.with_suffix('.part')
    part.write_text(json.dumps([(at, answered.get(stamp)) for stamp, at in sent.items()]))
    part.replace(report)


def pairs_of(report: Path) -> list[tuple[float, float | None]]:
    """Return what the cameras have written so far."""
    return [tuple(pair) for pair in json.loads(report.read_text())] if report.exists() else []


def wait_for(done: Any, patience_s: float, what: str) -> None:
    """Wait until something is true.

    Raises:
        TimeoutError: It does not become so.
    """
    end = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f'{what} did not happen in {patience_s:g} s')
        time.sleep(0.2)


def cut(report: Path, node: subprocess.Popen[bytes], seconds: float) -> tuple[bool, str]:
    """Cut the link for a time; return whether the promise was kept, and what was seen."""
    time.sleep(STEADY_S)
    down = time.monotonic()
    ip('-n', ROVER, 'link', 'set', 'lsr0', 'down')
    time.sleep(seconds)
    ip('-n', ROVER, 'link', 'set', 'lsr0', 'up')
    up = time.monotonic()

    def back() -> bool:
        return any(sent > up and answered is not None for sent, answered in pairs_of(report))

    with contextlib.suppress(TimeoutError):
        wait_for(back, 8 * RETURN_S, 'an answer after the cut')
    time.sleep(STEADY_S)
    pairs = pairs_of(report)
    before = [answered for sent, answered in pairs if down - STEADY_S < sent < down - 1.0]
    during = [answered for sent, answered in pairs if down <= sent < up]
    first_s = min((a - up for s, a in pairs if s > up and a is not None), default=float('inf'))
    after = [a for s, a in pairs if up + first_s < s < time.monotonic() - 2.0]
    text = (
        f'cut for {seconds:g} s: of {len(before)} pairs before it {sum(map(bool, before))} were '
        f'answered, of {len(during)} in it {sum(map(bool, during))}, afterwards; the first new '
        f'answer came {first_s:.1f} s after the link, then {sum(map(bool, after))} of {len(after)}'
    )
    kept = node.poll() is None and first_s <= RETURN_S and bool(after) and all(after)
    return kept, text


def main(argv: Sequence[str] | None = None) -> int:
    """Play the cuts; print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cuts', nargs='+', type=float, default=[5.0, 40.0], help='seconds each')
    parser.add_argument('--play', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.play:
        play_cameras(args.play)
        return 0
    if os.geteuid() != 0:
        parser.error('network namespaces need root')
    kept = True
    with tempfile.TemporaryDirectory() as folder, two_hosts():
        report = Path(folder) / 'pairs.json'
        module = 'lunar_stereo_recon.ros.reconstruction_node'
        options = ['--ros-args', '-p', 'backend:=sgbm', '-p', 'threads:=1']
        node = on_host(ROVER, '-m', module, *options, log=Path(folder) / 'node.log')
        cameras = on_host(
            CAMERAS, __file__, '--play', str(report), log=Path(folder) / 'cameras.log'
        )
        try:
            wait_for(lambda: any(a for _, a in pairs_of(report)), START_S, 'the first answer')
            for seconds in args.cuts:
                good, text = cut(report, node, seconds)
                kept = kept and good
                print(f'{"kept" if good else "BROKEN"}: {text}', flush=True)
        finally:
            for process in (cameras, node):
                process.send_signal(signal.SIGINT)
                process.wait(30)
        print(f'the node ended with {node.returncode}')
    return 0 if kept and node.returncode == 0 else 1


if __name__ == '__main__':
    sys.exit(main())
