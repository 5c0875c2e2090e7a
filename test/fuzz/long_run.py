"""Mutate valid inputs for a while and count what became of them.

PYTHONPATH=. python test/fuzz/long_run.py --minutes 60 --seed 1

With atheris installed, `--atheris NAME` lets coverage guide the bytes of one entry point instead.
"""

from __future__ import annotations

import argparse
from collections import Counter
import json
import logging
from pathlib import Path
import random
import sys
import time
import traceback

sys.path.insert(0, str(Path(__file__).resolve().parent))
if '--atheris' in sys.argv:  # our own modules report their branches; they must be new for that
    import atheris

    with atheris.instrument_imports(include=['lunar_stereo_recon', 'training']):
        from entry_points import ENTRY_POINTS, SLOW, try_bytes
else:
    from entry_points import ENTRY_POINTS, SLOW, try_bytes

TOKENS = (
    *(b'[', b']', b'{', b'}', b'&a', b'*a', b'9' * 400, b'1e999', b'-1e300', b'1e-300', b'.nan'),
    *(b'.inf', b'null', b'NaN', b'Infinity', b'2001-99-99', b'\xff\xff\xff\xff', b'\0\0\0\0'),
    *(b'\x7f\xff\xff\xff', b'\x7f\xf0\0\0\0\0\0\0', b'!!binary x', b'"', b'\n', b': '),
)
MAX_GROWTH_BYTES = 4096
DIGITS = b'0123456789-.e'
SLOW_S = 2.0
# Of the inputs, for all slow entry points together.
SLOW_SHARE = 0.05


def mutated(data: bytes, randomness: random.Random) -> bytes:
    """Return the bytes with one to eight changes; with few of them more inputs are taken."""
    content = bytearray(data)
    for _ in range(randomness.choice((1, 1, 1, 2, 4, 8))):
        at = randomness.randrange(len(content) + 1)
        kind = randomness.randrange(7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << randomness.randrange(8)
        elif kind == 1 and at < len(content):
            content[at] = randomness.randrange(256)
        elif kind == 2:
            content[at:at] = randomness.choice(TOKENS)
        elif kind == 3:
            token = randomness.choice(TOKENS)
            content[at : at + len(token)] = token
        elif kind == 4:
            digits = [place for place, byte in enumerate(content[:4096]) if byte in DIGITS]
            if digits:
                content[randomness.choice(digits)] = randomness.choice(DIGITS)
        elif kind == 5:
            del content[at : at + randomness.randint(1, 16)]
        else:
            piece = content[at : at + randomness.randint(1, 32)]
            content[at:at] = piece * randomness.randint(1, 8)
    return bytes(content[: len(data) + MAX_GROWTH_BYTES])


def campaign(seconds: float, seed: int, inputs: int = 0) -> tuple[Counter, dict[str, str]]:
    """Return counts by entry point and outcome, and the first traceback of each failure."""
    randomness = random.Random(seed)
    counts: Counter = Counter()
    failures: dict[str, str] = {}
    for name, (_, starts) in ENTRY_POINTS.items():
        try_bytes(name, starts[0])  # what is imported when it is first needed takes its time now
    end = time.monotonic() + seconds
    fast = [name for name in ENTRY_POINTS if name not in SLOW]
    slow = [name for name in ENTRY_POINTS if name in SLOW]
    while time.monotonic() < end and not 0 < inputs <= counts.total():
        name = randomness.choice(slow if randomness.random() < SLOW_SHARE else fast)
        data = mutated(randomness.choice(ENTRY_POINTS[name][1]), randomness)
        try:
            outcome, took_s = _tried(name, data)
            # Twice: a machine out of memory reads its programs anew, in our time.
            if took_s > SLOW_S and _tried(name, data)[1] > SLOW_S:
                failures.setdefault(f'{name}: slow', repr(data))
        except Exception as error:  # noqa: BLE001 (finding these is what this is for)
            outcome = type(error).__name__
            failures.setdefault(f'{name}: {outcome}', f'{data!r}\n{traceback.format_exc()}')
        counts[f'{name}: {outcome}'] += 1
    return counts, failures


def _tried(name: str, data: bytes) -> tuple[str, float]:
    """Return what became of an input, and the processor time that it took, seconds."""
    start = time.process_time()  # other programs do not count
    outcome = 'taken' if try_bytes(name, data) else 'refused'
    return outcome, time.process_time() - start


def main() -> int:
    """Return 1 where anything but a ReconError came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=60.0)
    parser.add_argument('--inputs', type=int, default=0, help='stop after so many; 0 is no limit')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--atheris', choices=list(ENTRY_POINTS), help='guided by coverage')
    args, rest = parser.parse_known_args()
    if args.atheris:
        logging.disable(logging.WARNING)
        atheris.Setup([sys.argv[0], *rest], lambda data: try_bytes(args.atheris, data))
        atheris.Fuzz()
    logging.disable(logging.WARNING)
    counts, failures = campaign(60 * args.minutes, args.seed, args.inputs)
    print(json.dumps(dict(sorted(counts.items())), indent=2))
    print(f'{counts.total()} inputs, {len(failures)} kinds of failure')
    for name, text in failures.items():
        print(f'\n{name}\n{text}')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
