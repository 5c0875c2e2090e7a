"""A subscription that adopts the reliability of its publishers.

A reliable subscription never hears a best-effort camera, and a best-effort one loses large images
of a reliable publisher when the network buffer is full. ROS's policy "best available" takes what
is offered at the moment when the subscription is made: so it is made when the first publisher is
seen, and again when the offer changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

_FIXED = {
    'reliable': ReliabilityPolicy.RELIABLE,
    'best_effort': ReliabilityPolicy.BEST_EFFORT,
}


def transport_topic(node: Node, image: str, transport: str) -> str:
    """Return the topic of an image's other form, such as '/camera/left/compressed'.

    As with image_transport, whoever remaps the image remaps its other forms too; one that is
    remapped by its own name keeps that.

    Args:
        node: Whose remapping rules apply.
        image: Relative name of the image's topic.
        transport: Last part of the name.
    """
    name = f'{image}/{transport}'
    if node.resolve_topic_name(name) != node.resolve_topic_name(name, only_expand=True):
        return name
    return f'{node.resolve_topic_name(image)}/{transport}'


class ImageSubscription:
    """One input topic. Call `refresh` a few times a second.

    Attributes:
        topic: Name as given.
        resolved: Full name after remapping.
        lost: Messages that DDS says never arrived.
        conflict: Policy in which a publisher offers less than is asked for, such as
            'RELIABILITY': nothing comes from it. '' where all fit.
    """

    def __init__(
        self,
        node: Node,
        message_type: type,
        topic: str,
        callback: Callable[..., None],
        reliability: str = 'auto',
        depth: int = 5,
        latched: bool = False,
        raw: bool = False,
    ) -> None:
        """Prepare; nothing is subscribed before `refresh`.

        Args:
            node: Owner.
            message_type: rclpy message class.
            topic: Relative name; remapping applies.
            callback: Called with each message, and with its times if it takes two arguments.
            reliability: 'auto', 'reliable' or 'best_effort'.
            depth: Messages kept until the callback has time.
            latched: Ask for what was published before, where every publisher keeps it.
            raw: Give the messages as bytes.
        """
        self._node = node
        self._message_type = message_type
        self._callback = callback
        self._reliability = reliability
        self._depth = depth
        self._latched = latched
        self._raw = raw
        self._subscription: Subscription | None = None
        self._offers: set[tuple[ReliabilityPolicy, DurabilityPolicy]] = set()
        self.lost = 0
        self.conflict = ''
        self.topic = topic
        self.resolved = node.resolve_topic_name(topic)

    def refresh(self) -> None:
        """Subscribe, or subscribe again, if the offer of the publishers asks for it."""
        fixed = _FIXED.get(self._reliability)
        profiles = [
            publisher.qos_profile
            for publisher in self._node.get_publishers_info_by_topic(self.resolved)
        ]
        if self.conflict and all(self._hears(profile) for profile in profiles):
            self.conflict = ''  # who did not fit is gone
        offers = {(profile.reliability, profile.durability) for profile in profiles}
        if self._subscription is None:
            if not offers and fixed is None:
                return
        elif not offers or offers == self._offers or (fixed and not self._latched):
            return
        self.close()
        # Not left to "best available" as well: with Zenoh that is volatile, whatever is offered.
        kept = bool(offers) and all(
            durability == DurabilityPolicy.TRANSIENT_LOCAL for _, durability in offers
        )
        self._subscription = self._node.create_subscription(
            self._message_type,
            self.topic,
            self._callback,
            QoSProfile(
                history=HistoryPolicy.KEEP_LAST,
                depth=self._depth,
                reliability=fixed or ReliabilityPolicy.BEST_AVAILABLE,
                durability=DurabilityPolicy.TRANSIENT_LOCAL
                if self._latched and kept
                else DurabilityPolicy.VOLATILE,
            ),
            qos_overriding_options=QoSOverridingOptions(
                (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)
            ),
            event_callbacks=SubscriptionEventCallbacks(
                message_lost=self._on_lost, incompatible_qos=self._on_conflict
            ),
            raw=self._raw,
        )
        self._offers = offers
        self._node.get_logger().debug(f'{self.resolved}: subscribed')

    def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription, self._offers, self.conflict = None, set(), ''

    @property
    def publisher_count(self) -> int:
        """Return how many publishers the topic has."""
        return self._node.count_publishers(self.topic)

    def _hears(self, offered: QoSProfile) -> bool:
        """Return whether what a publisher offers fits the present subscription."""
        if self._subscription is None:
            return True
        fits, _ = qos_check_compatible(offered, self._subscription.qos_profile)
        return fits != QoSCompatibility.ERROR

    def _on_lost(self, event: Any) -> None:
        self.lost += event.total_count_change

    def _on_conflict(self, event: Any) -> None:
        self.conflict = qos_policy_name_from_kind(event.last_policy_kind)
        self._node.get_logger().warning(
            f'{self.resolved}: a publisher offers a {self.conflict} that does not fit; nothing '
            'comes from it'
        )
