"""Corrects the camera_info of a simulated stereo rig: {left,right}/camera_info_in to camera_info.

Gazebo writes a baseline only into cameras of one link, at times into both of them, and counts
pixels from the image's corner. Here the left P[3] becomes 0, the right one -fx * baseline, and
the principal point is moved to ROS's convention. A disagreement is logged once.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import sys
from typing import Any

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data, QoSProfile

from lunar_stereo_recon.errors import CalibrationError
from lunar_stereo_recon.messages import BASELINE_AGREEMENT
from lunar_stereo_recon.pairing import OTHER, Side
from lunar_stereo_recon.ros.node_main import run_node, serve
from lunar_stereo_recon.ros.node_parameters import declare_parameters
from lunar_stereo_recon.ros.parameters import CameraInfoRelayParameters
from lunar_stereo_recon.ros.rclpy_messages import message_class


def correct_camera_info(
    info: Any, side: Side, baseline_m: float, pixel_offset_px: float, topic: str
) -> str:
    """Correct a CameraInfo message in place.

    Args:
        info: The message.
        side: Camera that it belongs to.
        baseline_m: Distance between the cameras, metres; 0 takes it from P[3].
        pixel_offset_px: Taken off the principal point.
        topic: Name for messages.

    Returns:
        What disagreed with the correction, '' for nothing.

    Raises:
        CalibrationError: P has no focal length, or neither P[3] nor a parameter tells a baseline.
    """
    fx, tx = float(info.p[0]), float(info.p[3])
    if not fx > 0:
        raise CalibrationError(
            f'{topic}: P[0] is {fx:g}; the focal length of a rectified camera is needed'
        )
    told = ''
    wanted = 0.0
    if side == 'right':
        baseline_m = baseline_m or abs(tx) / fx
        if not baseline_m > 0:
            raise CalibrationError(
                f'{topic}: P[3] is 0, so that the baseline is not known; set the parameter '
                "'baseline', or put both cameras on one link of the model"
            )
        wanted = -fx * baseline_m
    if abs(tx - wanted) > BASELINE_AGREEMENT * max(abs(wanted), 1e-6 * fx):
        told = f'{topic}: P[3] is {tx:g}, {wanted:g} is published instead'
        if side == 'right':
            told += f' (fx {fx:g} px, baseline {baseline_m:g} m)'
    info.p[3] = wanted
    for matrix, entries in ((info.p, (2, 6)), (info.k, (2, 5))):
        for entry in entries:
            matrix[entry] -= pixel_offset_px
    return told


class CameraInfoRelay(Node):
    """See the module."""

    def __init__(self, **kwargs: Any) -> None:
        """Connect both sides.

        Raises:
            InputError: A parameter has a value that is not allowed.
        """
        super().__init__('camera_info_relay', **kwargs)
        self.settings = declare_parameters(self, CameraInfoRelayParameters)
        kind = message_class('sensor_msgs/msg/CameraInfo')
        self._outputs = {}
        self._said: set[str] = set()
        for side in OTHER:
            self._outputs[side] = self.create_publisher(
                kind, f'{side}/camera_info', QoSProfile(depth=10)
            )
            self.create_subscription(
                kind,
                f'{side}/camera_info_in',
                functools.partial(self._relay, side),
                # Best effort listens to every publisher, reliable ones too.
                qos_profile_sensor_data,
            )

    def _relay(self, side: Side, info: Any) -> None:
        topic = self.resolve_topic_name(f'{side}/camera_info_in')
        try:
            told = correct_camera_info(
                info, side, self.settings.baseline, self.settings.pixel_offset, topic
            )
        except CalibrationError as error:
            self._say_once(str(error), error=True)
            return
        if told:
            self._say_once(told)
        self._outputs[side].publish(info)

    def _say_once(self, text: str, error: bool = False) -> None:
        if text not in self._said:
            self._said.add(text)
            log = self.get_logger()
            # rclpy ties a severity to the line of code: each needs its own.
            if error:
                log.error(text)
            else:
                log.warning(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Relay until interrupted; 1 where a parameter cannot be used."""
    return run_node('camera_info_relay', lambda interrupted: CameraInfoRelay(), serve, argv)


if __name__ == '__main__':
    sys.exit(main())
