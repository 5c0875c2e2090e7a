"""Transforms between frames, from tf2_ros where it is installed.

The PyPI wheels of ROS have neither tf2_ros nor the message type of /tf. There whatever needs a
transform says so, and the rest works.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from lunar_stereo_recon.errors import InputError, quoted
from lunar_stereo_recon.geometry.rotation import rotation_from_quaternion

# A transform is stamped and sent after the image it is for; it is waited for this long.
PATIENCE_S = 0.05


def transforms_available() -> bool:
    """Return whether tf2_ros is installed."""
    return importlib.util.find_spec('tf2_ros') is not None


class TransformListener:
    """Listens to /tf and /tf_static of a node's context.

    `lookup` may be called from another thread than the one that spins the node.
    """

    def __init__(self, node: Node) -> None:
        """Subscribe.

        Raises:
            InputError: tf2_ros is not installed.
        """
        try:
            self._tf2: Any = importlib.import_module('tf2_ros')
        except ModuleNotFoundError as error:
            raise InputError(
                f'transforms need tf2_ros, which cannot be imported ({error}); it comes with a '
                'ROS installation'
            ) from error
        # Without the node: it would offer the service tf2_frames, which other nodes offer too.
        self._buffer = self._tf2.Buffer()
        self._listener = self._tf2.TransformListener(self._buffer, node)

    def clear(self) -> None:
        """Forget what moves: time went back, and tf2 takes nothing older than it has."""
        self._buffer.clear()

    def close(self) -> None:
        """Unsubscribe."""
        self._listener.unregister()

    def lookup(
        self, target: str, source: str, stamp_ns: int, patience_s: float = PATIENCE_S
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return rotation (3, 3) and translation (3,) that take points of `source` to `target`.

        Args:
            target, source: Frames.
            stamp_ns: Time at which both are looked at, nanoseconds.
            patience_s: How long the transform may still take to come, seconds; 0 in the thread
                that spins the node.

        Raises:
            InputError: tf2 does not know it; the message names the frames and tf2's reason.
        """
        try:
            found = self._buffer.lookup_transform(
                target, source, Time(nanoseconds=stamp_ns), Duration(seconds=patience_s)
            )
        except self._tf2.TransformException as error:
            reason = str(error).strip(' .')
            raise InputError(
                f'no transform from {quoted(source)} to {quoted(target)}: {reason}. Is it on '
                '/tf or /tf_static, at the time of the image?'
            ) from error
        rotation, translation = found.transform.rotation, found.transform.translation
        return (
            rotation_from_quaternion(
                np.array([rotation.x, rotation.y, rotation.z, rotation.w], np.float64)
            ),
            np.array([translation.x, translation.y, translation.z], np.float64),
        )
