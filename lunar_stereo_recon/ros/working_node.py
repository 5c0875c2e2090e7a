"""A lifecycle node whose work can be stopped, and what it holds let go, at any time."""

from __future__ import annotations

from abc import abstractmethod
import threading
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from lunar_stereo_recon.ros.callbacks import transition
from lunar_stereo_recon.ros.node_main import EXIT_ERROR, serve


class WorkingNode(LifecycleNode):
    """Stops on deactivation, releases on cleanup, does both on shutdown and after an error."""

    @abstractmethod
    def _stop(self) -> None:
        """End the work and the subscriptions; called again where there are none."""

    @abstractmethod
    def _release(self) -> None:
        """Let go what configuring made; called again where there is nothing."""

    @transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop."""
        self._stop()
        return super().on_deactivate(state)

    @transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let everything go."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop whatever runs."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after a failed transition."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS


def start_and_serve(node: Any, interrupted: threading.Event) -> int:
    """Configure and activate a working node unless its parameters say no; then serve it.

    Args:
        node: With the parameter `autostart` among its `parameters`.
        interrupted: Set to end.

    Returns:
        The exit status; `EXIT_ERROR` where it cannot be configured or activated.
    """
    if node.parameters.autostart:
        for start in (node.trigger_configure, node.trigger_activate):
            if start() != TransitionCallbackReturn.SUCCESS:
                return EXIT_ERROR
    return serve(node, interrupted)
