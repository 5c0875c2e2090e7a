"""Counts the frames that a reconstruction node has answered, for a progress bar."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile

from lunar_stereo_recon.ros.rclpy_messages import message_class

POLL_S = 0.05
SETTLE_S = 0.3


class FrameProgress:
    """Subscribes to `frame_status` in a context of its own. A context manager."""

    def __init__(self, domain_id: int, namespace: str = '') -> None:
        """Join a DDS domain.

        Args:
            domain_id: ROS_DOMAIN_ID of the node.
            namespace: Namespace of the node.
        """
        self.answered = 0
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self._node = rclpy.create_node(
            'frame_progress', context=self._context, namespace=namespace
        )
        self._node.create_subscription(
            message_class('diagnostic_msgs/msg/DiagnosticArray'),
            'frame_status',
            self._on_status,
            QoSProfile(depth=100),
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def __enter__(self) -> FrameProgress:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def wait_for_node(self, timeout_s: float) -> bool:
        """Wait until somebody publishes `frame_status`; say whether somebody does.

        Args:
            timeout_s: Seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not self._node.count_publishers('frame_status'):
            if time.monotonic() > deadline:
                return False
            self._executor.spin_once(timeout_sec=POLL_S)
        # The publisher may have seen less of us than we of it.
        time.sleep(SETTLE_S)
        return True

    def wait(self, timeout_s: float) -> int:
        """Return how many frames were answered since the last call; wait a limited time for one.

        Args:
            timeout_s: Seconds.
        """
        before = self.answered
        self._executor.spin_once(timeout_sec=timeout_s)
        return self.answered - before

    def _on_status(self, message: Any) -> None:
        self.answered += 1
