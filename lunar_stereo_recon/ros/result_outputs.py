"""What the reconstruction node publishes: results in the forms that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import (
    DurabilityPolicy,
    qos_policy_name_from_kind,
    QoSProfile,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

from lunar_stereo_recon.datatypes import Reconstruction
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.result_messages import (
    compressed_depth_message,
    confidence_message,
    confidence_view_message,
    depth_info_message,
    depth_message,
    depth_sigma_message,
    disparity_message,
    left_image_message,
    moved_points,
    point_cloud_message,
)
from lunar_stereo_recon.ros.hazard_grid import frame_of_attitude, frame_of_transform
from lunar_stereo_recon.ros.image_subscription import transport_topic
from lunar_stereo_recon.ros.parameters import ReconstructionParameters
from lunar_stereo_recon.ros.rclpy_messages import (
    diagnostic_array,
    diagnostic_status,
    make_message,
    message_class,
    MessageBuffer,
)
from lunar_stereo_recon.ros.rover_motion import RoverMotion
from lunar_stereo_recon.ros.transforms import transforms_available

DEPTH_SIGMA_TOPIC = 'depth/sigma'
# Its name follows that of the image, as with image_transport.
DEPTH_TOPIC, COMPRESSED_DEPTH = 'depth/image', 'compressedDepth'
COMPRESSED_DEPTH_TOPIC = f'{DEPTH_TOPIC}/{COMPRESSED_DEPTH}'
# These take time, and few want them: they are made for who subscribes, whatever `lazy` says.
ON_DEMAND = (DEPTH_SIGMA_TOPIC, COMPRESSED_DEPTH_TOPIC)
# Topic: message type, and the entry of the parameter `outputs` that it belongs to.
OUTPUT_TOPICS = {
    'points2': ('sensor_msgs/msg/PointCloud2', 'points2'),
    'confidence': ('sensor_msgs/msg/Image', 'confidence'),
    'confidence/image_mono8': ('sensor_msgs/msg/Image', 'confidence'),
    'disparity': ('stereo_msgs/msg/DisparityImage', 'disparity'),
    DEPTH_TOPIC: ('sensor_msgs/msg/Image', 'depth'),
    COMPRESSED_DEPTH_TOPIC: ('sensor_msgs/msg/CompressedImage', 'depth'),
    'depth/camera_info': ('sensor_msgs/msg/CameraInfo', 'depth'),
    DEPTH_SIGMA_TOPIC: ('sensor_msgs/msg/Image', 'depth'),
    'hazard': ('nav_msgs/msg/OccupancyGrid', 'hazard'),
}
# Where the node rectifies, nobody else may publish the rectified image and its calibration.
RECTIFIED_TOPICS = {'left/image_rect': ('sensor_msgs/msg/Image', 'image')}
STATUS_TOPIC = 'frame_status'
# A costmap asks for the newest grid when it starts, as for any map.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Fast DDS sends a lost fragment again after up to three seconds; until then the message must still
# be there. Ten clouds of 640x480 are 61 MB.
OUTPUT_DEPTH = 10
# Answers are small, and many come at once where pairs come fast.
STATUS_DEPTH = 200
DEMAND_SETTLE_S = 0.4
LOG_THROTTLE_S = 5.0


class ResultOutputs:
    """The publishers of a node, and what some results need beside the reconstruction.

    Attributes:
        refused: QoS policies that subscribers asked for in vain, by topic.
    """

    def __init__(
        self, node: LifecycleNode, parameters: Callable[[], ReconstructionParameters]
    ) -> None:
        """Prepare; `open` makes the publishers.

        Args:
            node: Owner.
            parameters: Gives the parameters as they are now.
        """
        self.refused: dict[str, str] = {}
        self._node = node
        self._parameters = parameters
        self._topics = {
            **OUTPUT_TOPICS,
            **(RECTIFIED_TOPICS if parameters().rectify else {}),
        }
        self._publishers: dict[str, LifecyclePublisher] = {}
        self._cloud_buffer = MessageBuffer()
        self._motion = RoverMotion(node)
        self._demand: list[str] = []
        self._demand_since_s = 0.0

    def open(self) -> None:
        """Make the publishers."""
        for topic, (type_name, _) in self._topics.items():
            qos = LATCHED if topic == 'hazard' else QoSProfile(depth=OUTPUT_DEPTH)
            self._publishers[topic] = self._publisher(type_name, topic, qos)
        self._publishers[STATUS_TOPIC] = self._publisher(
            'diagnostic_msgs/msg/DiagnosticArray', STATUS_TOPIC, QoSProfile(depth=STATUS_DEPTH)
        )

    def close(self) -> None:
        """Let the publishers go."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}
        self.refused = {}

    def refresh(self) -> None:
        """Listen to TF and the Imu while a wanted result needs them."""
        parameters = self._parameters()
        gravity = parameters.hazard_gravity if 'hazard' in self._to_publish() else ''
        # A viewer also shows what has no pose: it is no reason to ask for tf2_ros.
        shown = parameters.viewer != 'none' and transforms_available()
        transforms = bool(parameters.cloud_frame) or gravity == 'tf' or shown
        self._motion.listen(transforms=transforms, imu=gravity == 'imu')

    def stop_listening(self) -> None:
        """Unsubscribe from TF and the Imu."""
        self._motion.close()

    def forget_motion(self) -> None:
        """Drop what is known of TF and the Imu: time went back."""
        self._motion.clear()

    def pose(self, result: Reconstruction) -> NDArray[np.float64] | None:
        """Return the (4, 4) transform from the result's frame to `hazard_frame`, metres.

        It is None where TF does not lead there.
        """
        target, matrix = self._parameters().hazard_frame, np.eye(4)
        try:
            matrix[:3, :3], matrix[:3, 3] = self._motion.transform(
                target, result.frame_id, result.stamp_ns
            )
        except InputError:
            return None
        return matrix

    @property
    def offered(self) -> list[str]:
        """Return the full names of the selected topics."""
        return [self._node.resolve_topic_name(self._name(topic)) for topic in self._selected()]

    def wanted(self) -> list[str]:
        """Return the selected topics that somebody subscribes to."""
        return [
            topic
            for topic in self._selected()
            if self._publishers[topic].get_subscription_count() > 0
        ]

    def wants_sigma(self) -> bool:
        """Return whether a result that is going to be published shows sigma."""
        topics = self._to_publish()
        return DEPTH_SIGMA_TOPIC in topics or (
            'points2' in topics and self._parameters().cloud_form.sigma
        )

    def demand_settled(self, idle: bool) -> bool:
        """Say whether results are wanted, and by everybody who is going to want them at first.

        The subscriptions of one program are discovered one after the other; starting at the first
        would leave the others without the first frame.

        Args:
            idle: Nothing is received yet; otherwise there is nothing to wait for.
        """
        wanted, now = self.wanted(), time.monotonic()
        if wanted != self._demand:
            self._demand, self._demand_since_s = wanted, now
        return bool(wanted) and (not idle or now - self._demand_since_s >= DEMAND_SETTLE_S)

    def publish(
        self, result: Reconstruction, parameters: ReconstructionParameters
    ) -> dict[str, str]:
        """Publish what is selected and, when lazy, subscribed to.

        Returns:
            Why a result could not be published, by topic.
        """
        makers = {
            'points2': self._cloud_message,
            'confidence': _unparametrized(confidence_message),
            'confidence/image_mono8': _unparametrized(confidence_view_message),
            'disparity': _unparametrized(disparity_message),
            DEPTH_TOPIC: _depth_message,
            COMPRESSED_DEPTH_TOPIC: _unparametrized(compressed_depth_message),
            'depth/camera_info': _unparametrized(depth_info_message),
            DEPTH_SIGMA_TOPIC: _unparametrized(depth_sigma_message),
            'left/image_rect': _unparametrized(left_image_message),
            'hazard': self._hazard_message,
        }
        withheld = {}
        for topic in self._to_publish():
            try:
                message = makers[topic](result, parameters)
            except InputError as error:
                withheld[topic] = str(error)
                self._node.get_logger().warning(
                    f'{topic} is not published: {error}', throttle_duration_sec=LOG_THROTTLE_S
                )
                continue
            self._publishers[topic].publish(message)
        return withheld

    def answer(
        self,
        stamp_ns: int,
        frame_id: str,
        level: bytes,
        text: str,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Say on frame_status what became of a pair, under its stamp.

        Args:
            stamp_ns: Stamp of the left image, nanoseconds.
            frame_id: Frame of the left image; '' where it never came.
            level: OK, WARN or ERROR.
            text: 'published', or the reason why not.
            values: Milliseconds by stage and more.
        """
        status = diagnostic_status(level, self._node.get_name(), text, values or {})
        message = diagnostic_array(stamp_ns, frame_id, [status])
        self._publishers[STATUS_TOPIC].publish(message)

    def _selected(self) -> list[str]:
        selected = self._parameters().outputs
        return [topic for topic, (_, name) in self._topics.items() if name in selected]

    def _to_publish(self) -> list[str]:
        wanted = self.wanted()
        if self._parameters().lazy:
            return wanted
        return [topic for topic in self._selected() if topic not in ON_DEMAND or topic in wanted]

    def _cloud_message(self, result: Reconstruction, parameters: ReconstructionParameters) -> Any:
        """Return the cloud in the frame and form that are wanted.

        Raises:
            InputError: There is no transform to that frame.
        """
        frame = parameters.cloud_frame
        if frame and frame != result.frame_id:
            rotation, translation = self._motion.transform(frame, result.frame_id, result.stamp_ns)
            result = moved_points(result, rotation, translation, frame)
        return point_cloud_message(
            make_message, result, parameters.cloud_form, self._cloud_buffer.floats
        )

    def _hazard_message(self, result: Reconstruction, parameters: ReconstructionParameters) -> Any:
        """Return the hazard grid.

        Raises:
            InputError: Nothing tells where gravity points.
        """
        extent = parameters.hazard_range, parameters.hazard_cell
        if parameters.hazard_gravity == 'tf':
            target = parameters.hazard_frame
            transform = self._motion.transform(target, result.frame_id, result.stamp_ns)
            frame = frame_of_transform(*transform, target, *extent)
        else:
            attitude = np.eye(3)
            if parameters.hazard_gravity == 'imu':
                attitude = self._motion.attitudes.level_from_body(result.stamp_ns)
            pitch = parameters.camera_pitch
            frame = frame_of_attitude(attitude, pitch, result.frame_id, *extent)
        return frame.message(
            make_message, result, parameters.hazard_options, parameters.hazard_confidence
        )

    def _name(self, topic: str) -> str:
        """Return the name under which a topic is made."""
        if topic == COMPRESSED_DEPTH_TOPIC:
            return transport_topic(self._node, DEPTH_TOPIC, COMPRESSED_DEPTH)
        return topic

    def _publisher(self, type_name: str, topic: str, qos: QoSProfile) -> LifecyclePublisher:
        return self._node.create_lifecycle_publisher(
            message_class(type_name),
            self._name(topic),
            qos,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            event_callbacks=PublisherEventCallbacks(
                incompatible_qos=functools.partial(self._on_refused, topic)
            ),
        )

    def _on_refused(self, topic: str, event: Any) -> None:
        """Say that a subscriber asks for more than the publisher offers: it gets nothing."""
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self.refused[topic] = policy
        self._node.get_logger().warning(
            f'a subscriber of {self._publishers[topic].topic_name} asks for a {policy} that is '
            'not offered: nothing is sent to it'
        )


def _unparametrized(
    make: Callable[[Any, Reconstruction], Any],
) -> Callable[[Reconstruction, ReconstructionParameters], Any]:
    return lambda result, parameters: make(make_message, result)


def _depth_message(result: Reconstruction, parameters: ReconstructionParameters) -> Any:
    return depth_message(make_message, result, parameters.depth_encoding)
