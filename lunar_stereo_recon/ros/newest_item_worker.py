"""Runs slow work in one thread and always on the newest item."""

from __future__ import annotations

from collections.abc import Callable
import threading
import time
from typing import Generic, TypeVar

Item = TypeVar('Item')


class NewestItemWorker(Generic[Item]):
    """One thread with a mailbox for one item; an item that is still in it is replaced.

    Subscription callbacks only drop items here, so messages keep being received while the work
    goes on, and the work never lags behind. The thread outlives whatever the work raises.
    """

    def __init__(
        self, work: Callable[[Item], None], on_failure: Callable[[Item, Exception], None]
    ) -> None:
        """Make the thread.

        Args:
            work: Called in it, one item after the other.
            on_failure: Called in it with what `work` raised; the next item follows.
        """
        self._work = work
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._mailbox: list[Item] = []
        self._current: list[Item] = []
        self._since_s = 0.0
        self._stopped = False
        # A thread that is stuck must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name='reconstruct', daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> Item | None:
        """Hand over an item; return the one that it replaces, if any."""
        with self._changed:
            replaced = self._mailbox.pop() if self._mailbox else None
            self._mailbox.append(item)
            self._changed.notify()
        return replaced

    @property
    def busy_s(self) -> float:
        """Return the seconds that the item in work has taken so far; 0 while there is none."""
        with self._changed:
            return time.monotonic() - self._since_s if self._current else 0.0

    def stop(self, patience_s: float | None = None) -> list[Item]:
        """End the work; return the items that are not done, the one in work first.

        Args:
            patience_s: Wait at most this long for the item in work; None is for ever. A thread
                that takes longer is left to itself and ends after its item.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(patience_s)
        with self._changed:
            return [*self._current, *self._mailbox]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._current.clear()
                while not self._mailbox and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                item = self._mailbox.pop()
                self._current.append(item)
                self._since_s = time.monotonic()
            try:
                self._work(item)
            except Exception as error:  # noqa: BLE001 (one bad pair must not end all work)
                self._on_failure(item, error)
