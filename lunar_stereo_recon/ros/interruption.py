"""An orderly end: a signal asks the node to finish, it does not pull the graph from under it."""

from __future__ import annotations

import signal
import threading


def on_interruption() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set from now on.

    With rclpy's own handlers the context is shut down at once, and whatever is about to be
    published fails. Start rclpy with `SignalHandlerOptions.NO`, look at the event, and shut down
    when the work in progress is done.
    """
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    return interrupted
