"""Runs slow work in one thread and always on the newest item."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import threading
from typing import Generic, TypeVar

Item = TypeVar('Item')


class NewestItemWorker(Generic[Item]):
    """One thread with a mailbox for one item; an item that is still in it is replaced.

    Subscription callbacks only drop items here, so messages keep being received while the work
    goes on, and the work never lags behind.
    """

    def __init__(self, work: Callable[[Item], None]) -> None:
        """Make the thread; `work` is called in it, one item after the other."""
        self._work = work
        self._lock = threading.Lock()
        self._mailbox: list[Item] = []
        self._busy = False
        self._run: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix='reconstruct')

    def submit(self, item: Item) -> Item | None:
        """Hand over an item; return the one that it replaces, if any.

        Raises:
            Exception: Whatever an earlier call of `work` raised; see `check`.
        """
        self.check()
        with self._lock:
            replaced = self._mailbox.pop() if self._mailbox else None
            self._mailbox.append(item)
            if not self._busy:
                self._busy = True
                self._run = self._thread.submit(self._empty_mailbox)
        return replaced

    def check(self) -> None:
        """Raise what `work` raised, in the caller's thread: a bug must not die in silence."""
        if self._run is not None and self._run.done():
            self._run.result()

    def stop(self) -> None:
        """Drop the waiting item and wait for the work in progress."""
        with self._lock:
            self._mailbox.clear()
        self._thread.shutdown(wait=True)

    def _empty_mailbox(self) -> None:
        while True:
            with self._lock:
                if not self._mailbox:
                    self._busy = False
                    return
                item = self._mailbox.pop()
            self._work(item)
