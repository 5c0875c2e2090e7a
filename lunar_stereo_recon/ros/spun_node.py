"""A node that works in the main thread while another one serves its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import sys
import threading
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.ros.interruption import on_interruption

EXIT_ERROR = 1


def run_spun(
    name: str, make: Callable[[threading.Event], Any], argv: Sequence[str] | None = None
) -> int:
    """Make a node, spin it in a thread, and return what its `run` returns.

    Args:
        name: For the log, where the node cannot be made.
        make: Takes the event that is set on SIGINT or SIGTERM, returns the node.
        argv: Arguments with those of ROS; None takes the program's.

    Returns:
        `EXIT_ERROR` where making or running raised a ReconError, which is logged.
    """
    interrupted = on_interruption()
    rclpy.init(
        args=sys.argv if argv is None else list(argv),
        signal_handler_options=SignalHandlerOptions.NO,
    )
    node, spinner = None, None
    try:
        node = make(interrupted)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        spinner = threading.Thread(target=_spin, args=(executor,), daemon=True)
        spinner.start()
        return node.run()
    except ReconError as error:
        rclpy.logging.get_logger(name).fatal(str(error))
        return EXIT_ERROR
    finally:
        rclpy.try_shutdown()
        if spinner is not None:
            spinner.join(timeout=2.0)
        if node is not None:
            node.destroy_node()


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        return  # The context was shut down: there is nothing more to receive.
