"""Static transforms from /tf_static: how two frames of the rover stand to each other.

Needs the message type of tf2_msgs and nothing else of tf2: `transforms` serves what moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.subscription import Subscription

from lunar_stereo_recon.errors import InputError, quoted
from lunar_stereo_recon.geometry.frame_tree import FrameTree
from lunar_stereo_recon.ros.rclpy_messages import message_class

# Each node that publishes static transforms has messages of its own to give to a late subscriber.
DEPTH = 100
LOG_THROTTLE_S = 5.0


class StaticFrames:
    """Listens once somebody has asked; may be looked up from another thread."""

    def __init__(self, node: Node) -> None:
        """Listen to nothing yet."""
        self._node = node
        self._tree = FrameTree()
        self._wanted = False
        self._subscription: Subscription | None = None
        self._missing = ''

    def refresh(self) -> None:
        """Subscribe where a distance was asked for; call it where the node is spun."""
        if not self._wanted or self._subscription is not None or self._missing:
            return
        try:
            kind = message_class('tf2_msgs/msg/TFMessage')
        except ModuleNotFoundError:
            self._missing = 'tf2_msgs, which /tf_static needs, is not installed'
            return
        self._subscription = self._node.create_subscription(
            kind,
            '/tf_static',
            self._on_transforms,
            QoSProfile(depth=DEPTH, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        )

    def distance_m(self, one: str, other: str) -> float:
        """Return the distance of the origins of two frames, metres.

        Raises:
            InputError: It is not known, or not yet.
        """
        return float(np.linalg.norm(self.pose(one, other)[:3, 3]))

    def pose(self, target: str, source: str) -> NDArray[np.float64]:
        """Return the (4, 4) pose of `source` in `target`.

        Raises:
            InputError: It is not known, or not yet.
        """
        if not self._wanted:
            self._wanted = True
            raise InputError('the node has only now begun to listen to /tf_static')
        if self._missing:
            raise InputError(self._missing)
        return self._tree.lookup(target, source)

    def close(self) -> None:
        """Unsubscribe; what is known stays."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _on_transforms(self, message: Any) -> None:
        for stamped in message.transforms:
            shift, turn = stamped.transform.translation, stamped.transform.rotation
            try:
                self._tree.add(
                    stamped.header.frame_id,
                    stamped.child_frame_id,
                    np.array([shift.x, shift.y, shift.z]),
                    np.array([turn.x, turn.y, turn.z, turn.w]),
                )
            except InputError as error:
                self._node.get_logger().warning(
                    f'/tf_static: {quoted(stamped.child_frame_id)} is left out: {error}',
                    throttle_duration_sec=LOG_THROTTLE_S,
                )
