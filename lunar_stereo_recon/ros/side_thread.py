"""Slow work of a service's callback, in a thread of its own: the node's other callbacks go on."""

from __future__ import annotations

from collections.abc import Callable
import threading
import time
from typing import TypeVar

from rclpy.node import Node
from rclpy.task import Future

_Result = TypeVar('_Result')


class SideThreads:
    """Threads that callbacks wait for without holding up the executor.

    A callback that waits is a coroutine, and its service has a callback group of its own: the
    group is taken until the coroutine ends, so that one service never runs twice at once.
    """

    def __init__(self, node: Node) -> None:
        """Begin without a thread.

        Args:
            node: Owner of the callbacks.
        """
        self._node = node
        self._threads: list[threading.Thread] = []

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Return what `work` returns, or raise what it raises.

        Args:
            work: Called in a thread of its own; it must take nothing that callbacks change.
        """
        done: Future[_Result] = Future(executor=self._node.executor)

        def call() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 (raised again where it is awaited)
                done.set_exception(error)
            else:
                done.set_result(result)

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # A thread that is stuck must not keep the process from ending.
        thread = threading.Thread(target=call, name='service', daemon=True)
        self._threads.append(thread)
        thread.start()
        return await done

    def wait(self, patience_s: float | None) -> None:
        """Wait until all threads are done.

        Args:
            patience_s: At most this long, seconds; None is for ever.
        """
        deadline = None if patience_s is None else time.monotonic() + patience_s
        for thread in self._threads:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            thread.join(left_s)
