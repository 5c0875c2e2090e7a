"""A lifecycle node whose work can be stopped, and what it holds let go, at any time."""

from __future__ import annotations

from abc import abstractmethod

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from lunar_stereo_recon.ros.callbacks import transition


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
