"""What the reconstruction node receives: the images and camera_infos of a rig, as pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import time
from typing import Any

from rclpy.node import Node

from lunar_stereo_recon.files.calibrations import CameraInfo
from lunar_stereo_recon.messages import StereoTopics
from lunar_stereo_recon.pairing import OTHER, RESTART_NS, Side
from lunar_stereo_recon.ros.image_subscription import ImageSubscription, transport_topic
from lunar_stereo_recon.ros.parameters import ReconstructionParameters
from lunar_stereo_recon.ros.rclpy_messages import message_class
from lunar_stereo_recon.ros.recent_inputs import RecentInputs
from lunar_stereo_recon.ros.stereo_sync import (
    OnUnpaired,
    StereoMessages,
    StereoSynchronizer,
    SyncStatistics,
)

# Images that DDS keeps until the node has time; while it is busy with its own thread, or tries a
# model, more than `queue_size` come.
RECEIVE_DEPTH = 50
# Images wait this long for their partner after the last one came, or up to twice as long.
SETTLE_S = 5.0


class StereoInputs:
    """The subscriptions of a rig; call `refresh` a few times a second.

    Attributes:
        idle: Nothing is received, on purpose. So it begins.
    """

    def __init__(
        self,
        node: Node,
        parameters: ReconstructionParameters,
        file_infos: Mapping[Side, CameraInfo],
        on_pair: Callable[[StereoMessages], None],
        on_unpaired: OnUnpaired,
        recent: RecentInputs,
    ) -> None:
        """Prepare; nothing is subscribed before `refresh`.

        Args:
            node: Owner.
            parameters: What they say of the inputs cannot change while the node runs.
            file_infos: camera_infos that come from files; their topics are not subscribed.
            on_pair: Called with each synchronized set.
            on_unpaired: See `StereoSynchronizer`.
            recent: What comes is noted there.
        """
        self.idle = True
        self._on_pair = on_pair
        self._recent = recent
        self._sync = StereoSynchronizer(
            parameters.tolerance_ns,
            parameters.queue_size,
            file_infos,
            parameters.cache_camera_info,
            on_unpaired,
        )
        self._settled_s = time.monotonic()
        compressed = parameters.input_transport == 'compressed'
        image_type = 'CompressedImage' if compressed else 'Image'

        def subscription(
            type_name: str, topic: str, callback: Callable[[Any], None], latched: bool = False
        ) -> ImageSubscription:
            return ImageSubscription(
                node,
                message_class(type_name),
                topic,
                callback,
                parameters.input_reliability,
                max(parameters.queue_size, RECEIVE_DEPTH),
                latched,
            )

        images = [
            subscription(
                f'sensor_msgs/msg/{image_type}',
                image_topic(node, parameters, side),
                functools.partial(self._on_image, side),
            )
            for side in OTHER
        ]
        self._infos = {
            side: subscription(
                'sensor_msgs/msg/CameraInfo',
                f'{side}/camera_info',
                functools.partial(self._on_info, side),
                latched=True,
            )
            for side in OTHER
            if side not in file_infos
        }
        self._all = [*images, *self._infos.values()]

    def refresh(self, wanted: bool) -> None:
        """Subscribe to what is published while it is wanted, and to nothing otherwise."""
        if not wanted:
            if not self.idle:
                self.idle = True
                self.close()
            return
        self.idle = False
        if time.monotonic() - self._settled_s > SETTLE_S:
            self._settled_s = time.monotonic()
            self._give(self._sync.settle())
        settled = [self._infos.get(side) for side in self._sync.settled_infos]
        for subscription in self._all:
            if subscription in settled:
                subscription.close()
            else:
                subscription.refresh()

    def close(self) -> None:
        """Unsubscribe; what waits is given up."""
        self._sync.clear()
        for subscription in self._all:
            subscription.close()

    @property
    def statistics(self) -> SyncStatistics:
        """Return what came and what became of it; also of what DDS has lost."""
        statistics = self._sync.statistics
        for item in self._all:
            if item.lost:
                statistics.drops[f'lost on the way: {item.topic}'] = item.lost
        return statistics

    @property
    def publishers(self) -> dict[str, int]:
        """Return the number of publishers by topic."""
        return {item.resolved: item.publisher_count for item in self._all}

    @property
    def conflicts(self) -> dict[str, str]:
        """Return the QoS policy that does not fit, by topic, where one does not."""
        return {item.resolved: item.conflict for item in self._all if item.conflict}

    def _on_image(self, side: Side, message: Any) -> None:
        self._recent.note(side, 'image', message)
        self._give(self._sync.add_image(side, message))

    def _on_info(self, side: Side, message: Any) -> None:
        self._recent.note(side, 'info', message)
        self._give(self._sync.add_info(side, message))

    def _give(self, complete: list[StereoMessages]) -> None:
        for messages in complete:
            self._recent.note_pair(messages)
            self._on_pair(messages)


class PairStamps:
    """Watches the stamps of the pairs: where time goes back, and which pairs come too soon."""

    def __init__(self) -> None:
        """Begin before the first pair."""
        self._last_ns: int | None = None
        self._taken_ns: int | None = None

    def jumped_back(self, stamp_ns: int) -> bool:
        """Say whether this pair is a new start (bag loop, simulation reset)."""
        last, self._last_ns = self._last_ns, stamp_ns
        return last is not None and stamp_ns < last - RESTART_NS

    def too_soon(self, stamp_ns: int, rate_hz: float) -> bool:
        """Say whether a pair comes faster than a rate; a twentieth of its period may be missing.

        Args:
            stamp_ns: Stamp of the pair, nanoseconds.
            rate_hz: Pairs per second of stamps at most; 0 is no limit.
        """
        taken = self._taken_ns
        if rate_hz > 0 and taken is not None and 0 <= stamp_ns - taken < 0.95e9 / rate_hz:
            return True
        self._taken_ns = stamp_ns
        return False


def image_topic(node: Node, parameters: ReconstructionParameters, side: Side) -> str:
    """Return the topic that a side's images come on, for subscribing."""
    name = f'{side}/image_raw' if parameters.rectify else f'{side}/image_rect'
    if parameters.input_transport == 'compressed':
        return transport_topic(node, name, 'compressed')
    return name


def source_names(node: Node, parameters: ReconstructionParameters) -> StereoTopics:
    """Return where images and infos come from, for texts: resolved topics, or files."""
    topics = StereoTopics()
    return StereoTopics(
        node.resolve_topic_name(image_topic(node, parameters, 'left')),
        node.resolve_topic_name(image_topic(node, parameters, 'right')),
        parameters.left_camera_info_url or node.resolve_topic_name(topics.left_info),
        parameters.right_camera_info_url or node.resolve_topic_name(topics.right_info),
    )
