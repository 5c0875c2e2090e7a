"""SIGINT and SIGTERM: they ask a node to end, and see to it that its process does end."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time

# Ending takes a second; the simulator's took 11 s on a machine with six times too much to do.
PATIENCE_S = 30.0
# The part of the patience after which it is said where the threads stand: before `ros2 launch`
# loses its own patience, which is 10 s.
SAID_AFTER = 1 / 6
_STDERR = 2


def interruption(name: str, patience_s: float = PATIENCE_S) -> threading.Event:
    """Return an event that SIGINT and SIGTERM set; from the first on the process is bound to end.

    A thread sets it. Handlers of Python run in the main thread, which would wait for itself where
    it is just looking at the event, and late where a library keeps it busy.

    If the process still runs after a sixth of `patience_s`, what its threads are doing is
    written to stderr; after `patience_s` the kernel ends it with SIGALRM. That needs neither
    Python's lock nor any thread: DDS may wait for shared memory that a killed process has locked.

    Args:
        name: Of the node, for what is written.
        patience_s: Time to end in.
    """
    interrupted = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Whoever starts the node may have had it ignored.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # What matters is the byte in the pipe.
    arguments = (name, patience_s, reader, interrupted)
    threading.Thread(target=_watch, args=arguments, name='signals', daemon=True).start()
    return interrupted


def _watch(name: str, patience_s: float, reader: int, interrupted: threading.Event) -> None:
    number = signal.Signals(os.read(reader, 1)[0])
    said_s = SAID_AFTER * patience_s
    signal.setitimer(signal.ITIMER_REAL, patience_s)
    # Written by a thread without Python, in case another one keeps Python's lock.
    faulthandler.dump_traceback_later(said_s + 1.0, file=_STDERR)
    interrupted.set()
    time.sleep(said_s)
    faulthandler.cancel_dump_traceback_later()
    # Not by way of sys.stderr or the log: somebody may be stuck in them.
    text = (
        f'{name}: still running {said_s:g} s after {number.name}; {patience_s:g} s after it '
        'SIGALRM ends the process. Its threads:\n'
    )
    os.write(_STDERR, text.encode())
    faulthandler.dump_traceback(file=_STDERR)
