"""The frame and the gravity of the results, from TF and an Imu, while they are needed."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.subscription import Subscription

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.ros.hazard_grid import Attitudes
from lunar_stereo_recon.ros.rclpy_messages import message_class
from lunar_stereo_recon.ros.transforms import TransformListener


class RoverMotion:
    """Listens to TF and an Imu. It is asked by another thread than the one that spins the node.

    Attributes:
        attitudes: Attitudes of the Imu.
    """

    def __init__(self, node: Node) -> None:
        """Listen to nothing yet."""
        self.attitudes = Attitudes(node.resolve_topic_name('imu'))
        self._node = node
        self._transforms: TransformListener | InputError | None = None
        self._imu: Subscription | None = None

    def listen(self, transforms: bool, imu: bool) -> None:
        """Subscribe to what is needed; TF stays until `close`.

        Args:
            transforms: Transforms are needed.
            imu: Attitudes are needed.
        """
        if transforms and self._transforms is None:
            try:
                self._transforms = TransformListener(self._node)
            except InputError as error:
                self._transforms = error
                self._node.get_logger().error(str(error))
        if imu and self._imu is None:
            self._imu = self._node.create_subscription(
                message_class('sensor_msgs/msg/Imu'),
                'imu',
                self.attitudes.add,
                qos_profile_sensor_data,
            )
        elif not imu and self._imu is not None:
            self._node.destroy_subscription(self._imu)
            self._imu = None

    def transform(self, target: str, source: str, stamp_ns: int) -> tuple[Any, Any]:
        """Return rotation (3, 3) and translation (3,), see `TransformListener.lookup`.

        Raises:
            InputError: tf2 does not know it or is not installed, or the listener is only about to
                be made.
        """
        if isinstance(self._transforms, InputError):
            raise self._transforms
        if self._transforms is None:
            raise InputError('the node has only now begun to listen to /tf')
        return self._transforms.lookup(target, source, stamp_ns)

    def clear(self) -> None:
        """Forget what moves: time went back."""
        self.attitudes.clear()
        if isinstance(self._transforms, TransformListener):
            self._transforms.clear()

    def close(self) -> None:
        """Unsubscribe."""
        if self._imu is not None:
            self._node.destroy_subscription(self._imu)
            self._imu = None
        if isinstance(self._transforms, TransformListener):
            self._transforms.close()
            self._transforms = None
