"""Tells a matcher that is stuck from a process that stood still with all its threads."""

from __future__ import annotations

import time

# What one look may add, seconds; looks come once a second.
LONGEST_STEP_S = 2.0


class Watchdog:
    """How long a worker has been busy with one item, as far as somebody looked on.

    A process that is stopped, a machine that is paused or out of memory: then nobody looks, and
    the matcher did not get the time either.
    """

    def __init__(self) -> None:
        self._looked_s = time.monotonic()
        self._seen_s = 0.0

    def seen_s(self, busy_s: float) -> float:
        """Look; return the time that the item in work has been seen in work, seconds.

        Args:
            busy_s: How long that item has been in work; 0 where there is none.
        """
        now = time.monotonic()
        elapsed, self._looked_s = now - self._looked_s, now
        before = self._seen_s if busy_s >= elapsed else 0.0  # else another item has begun
        self._seen_s = before + min(busy_s, elapsed, LONGEST_STEP_S)
        return self._seen_s
