"""What the programs of the nodes share: orderly start and end, and serving callbacks.

A signal asks the node to finish, it does not pull the graph from under it: with rclpy's own
handlers the context is shut down at once, and whatever is about to be published fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import sys
import threading
import traceback
from typing import Any, TypeVar

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.ros.interruption import interruption, PATIENCE_S

EXIT_DONE, EXIT_ERROR = 0, 1
SIGNAL_CHECK_S = 0.2
LOG_THROTTLE_S = 5.0

_Node = TypeVar('_Node', bound=Node)


def run_node(
    name: str,
    make: Callable[[threading.Event], _Node],
    work: Callable[[_Node, threading.Event], int],
    argv: Sequence[str] | None = None,
    patience_s: float = PATIENCE_S,
) -> int:
    """Make a node, work with it, let it go; return what `work` returned.

    Args:
        name: For the log, where the node cannot be made.
        make: Takes the event that SIGINT and SIGTERM set, returns the node.
        work: Takes the node and the event, returns the exit status.
        argv: Arguments with those of ROS; None takes the program's.
        patience_s: The process is ended by force this long after SIGINT or SIGTERM.

    Returns:
        `EXIT_ERROR` where making or working raised a ReconError, which is logged.
    """
    interrupted = interruption(name, patience_s)
    rclpy.init(
        args=sys.argv if argv is None else list(argv),
        signal_handler_options=SignalHandlerOptions.NO,
    )
    node = None
    try:
        node = make(interrupted)
        return work(node, interrupted)
    except ReconError as error:
        rclpy.logging.get_logger(name).fatal(str(error))
        return EXIT_ERROR
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


class CannotGoOnError(ReconError):
    """A node cannot be mended from within: it ends, and whoever started it starts it again."""


def serve(node: Node, interrupted: threading.Event) -> int:
    """Serve the callbacks in this thread until interrupted; the `work` of most nodes.

    No message and no request ends it: what a callback raises is logged, and the next one follows.

    Raises:
        CannotGoOnError: A callback says so.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not interrupted.is_set():
        try:
            executor.spin_once(timeout_sec=SIGNAL_CHECK_S)
        except CannotGoOnError:
            raise
        except Exception:  # noqa: BLE001 (whatever a message may bring about)
            # A message that fails may come a thousand times a second.
            node.get_logger().error(
                f'a callback failed:\n{traceback.format_exc()}',
                throttle_duration_sec=LOG_THROTTLE_S,
            )
    return EXIT_DONE


def run_spun(node: Any, interrupted: threading.Event) -> int:
    """Return what the node's `run` returns; a thread serves its callbacks meanwhile."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=_spin, args=(executor,), daemon=True)
    spinner.start()
    try:
        return int(node.run())
    finally:
        rclpy.try_shutdown()
        spinner.join(timeout=2.0)


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        return  # The context was shut down: there is nothing more to receive.
