"""Publishes a recording with its stamps, at a rate or as fast as the frames are answered.

Exit status: 0 everything was published (and answered, with flow_control); 1 the bag or a
parameter cannot be used; 2 frames stayed unanswered; 3 nobody subscribed in time.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import sys
import threading
import time
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import ConnectionExtRosbag2

from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.messages import cdr_stamp_ns, stamp_ns, StereoTopics
from lunar_stereo_recon.pairing import PairQueue, Side
from lunar_stereo_recon.ros.node_main import EXIT_DONE, run_node, run_spun
from lunar_stereo_recon.ros.node_parameters import declare_parameters
from lunar_stereo_recon.ros.parameters import named, ReplayParameters
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class

EXIT_UNANSWERED, EXIT_NO_SUBSCRIBER = 2, 3
# Stamps of one pair may differ by this much; only to know when a frame is complete.
FRAME_TOLERANCE_NS = 20_000_000
POLL_S = 0.02
OPTIONAL_WAIT_S = 2.0
SETTLE_S = 0.3
# Static transforms that a late subscriber still gets.
STATIC_DEPTH = 1000


class ReplayNode(Node):
    """See the module. `run` publishes; an executor spins the node in another thread."""

    def __init__(self, interrupted: threading.Event, **kwargs: Any) -> None:
        """Open the bag and make a publisher for each topic.

        Args:
            interrupted: Set by somebody else to end the replay early.
            kwargs: Of rclpy's Node.

        Raises:
            InputError: The bag or a parameter cannot be used.
        """
        super().__init__('replay_node', **kwargs)
        self._interrupted = interrupted
        self.settings = declare_parameters(self, ReplayParameters)
        if not self.settings.bag:
            raise InputError("the parameter 'bag' is empty; the path of a recording is needed")
        self._reader = StereoBagReader(self.settings.bag, self._given_topics())
        self._latched_depths: dict[str, int] = {}
        self._outputs = self._make_publishers()
        self._clock_publisher = (
            self.create_publisher(message_class('rosgraph_msgs/msg/Clock'), '/clock', 10)
            if self.settings.clock
            else None
        )
        self._answers = threading.Condition()
        self._unanswered: dict[int, float] = {}
        self.frames_published = 0
        self.frames_answered = 0
        if self.settings.flow_control:
            self.create_subscription(
                message_class('diagnostic_msgs/msg/DiagnosticArray'),
                'frame_status',
                self._on_answer,
                QoSProfile(depth=100),
            )

    def run(self) -> int:
        """Publish the bag and return the exit status."""
        if not self._wait_for_subscribers():
            return EXIT_DONE if self._interrupted.is_set() else EXIT_NO_SUBSCRIBER
        while True:
            self._play_once()
            self._wait_for_answers(0)
            if not self.settings.loop or self._interrupted.is_set():
                break
        for publisher in self._outputs.values():
            publisher.wait_for_all_acked(Duration(seconds=2))
        lost = self.frames_published - self.frames_answered
        self.get_logger().info(self._summary(lost))
        if self._interrupted.is_set() or not self.settings.flow_control:
            return EXIT_DONE
        return EXIT_UNANSWERED if lost else EXIT_DONE

    def _summary(self, lost: int) -> str:
        text = f'{self.frames_published} frames of {self.settings.bag} published'
        return f'{text}, {lost} unanswered' if self.settings.flow_control else text

    def _given_topics(self) -> StereoTopics | None:
        """Return the topics given as parameters, the found ones where none is."""
        settings = self.settings
        given = (
            settings.left_image,
            settings.right_image,
            settings.left_info,
            settings.right_info,
        )
        if not any(given):
            return None
        if not all(given[:2]):
            raise InputError(
                'left_image, right_image, left_info and right_info are '
                f'{", ".join(repr(topic) for topic in given)}; give both images, with the infos '
                'that the bag has, or none'
            )
        return StereoTopics(*given)

    def _make_publishers(self) -> dict[str, Publisher]:
        """Return the publishers by topic; types that are not installed are left out."""
        wanted = named(self.settings.topics) or list(self._reader.all_topics)
        unknown = [topic for topic in wanted if topic not in self._reader.all_topics]
        if unknown:
            raise InputError(
                f'{self.settings.bag}: no topic {unknown[0]}; the bag has '
                f'{", ".join(sorted(self._reader.all_topics))}'
            )
        publishers = {}
        for topic in wanted:
            type_name = self._reader.all_topics[topic]
            try:
                kind = message_class(type_name)
            except (ModuleNotFoundError, AttributeError):
                self.get_logger().warning(f'{topic} is left out: {type_name} is not installed')
                continue
            qos = self._recorded_qos(topic)
            publishers[topic] = self.create_publisher(kind, self._output_name(topic), qos)
            if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
                self._latched_depths[topic] = qos.depth
        return publishers

    def _recorded_qos(self, topic: str) -> QoSProfile:
        """Return what the recorded publishers of a topic offered, the weakest of several."""
        qos = QoSProfile(depth=10)
        offers = [
            offer
            for connection in self._reader.connections
            if connection.topic == topic and isinstance(connection.ext, ConnectionExtRosbag2)
            for offer in connection.ext.offered_qos_profiles
        ]
        if offers:
            qos.depth = max(qos.depth, *(offer.depth for offer in offers))
            if any(offer.reliability.name == 'BEST_EFFORT' for offer in offers):
                qos.reliability = ReliabilityPolicy.BEST_EFFORT
            if all(offer.durability.name == 'TRANSIENT_LOCAL' for offer in offers):
                qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
        if topic.endswith('tf_static'):
            qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
            # Each node of the recording has a message of its own here.
            qos.depth = STATIC_DEPTH
        return qos

    def _output_name(self, topic: str) -> str:
        """Return the name under which a topic of the bag is published."""
        if not self.settings.rename_rig:
            return topic
        names = dict(
            zip(
                dataclasses.astuple(self._reader.topics),
                dataclasses.astuple(StereoTopics()),
                strict=True,
            )
        )
        compressed = self._reader.all_topics[topic].endswith('CompressedImage')
        return names.get(topic, topic) + ('/compressed' if compressed and topic in names else '')

    def _wait_for_subscribers(self) -> bool:
        """Wait until the images have their subscribers; discovery takes up to some seconds."""
        limit_s, topics = self.settings.wait_for_subscribers, self._reader.topics
        if limit_s == 0:
            return True
        needed = {topics.left_image: self.settings.min_subscribers, topics.right_image: 1}
        if not self._subscribed(needed, limit_s):
            counts = ', '.join(
                f'{topic} has {self._outputs[topic].get_subscription_count()} of {count}'
                for topic, count in needed.items()
                if topic in self._outputs
            )
            self.get_logger().error(f'subscribers are missing after {limit_s:g} s: {counts}')
            return False
        # Consumers with a calibration of their own do not subscribe to these.
        self._subscribed({topics.left_info: 1, topics.right_info: 1}, OPTIONAL_WAIT_S)
        # The subscriber may have seen less of us than we of it.
        time.sleep(SETTLE_S)
        return True

    def _subscribed(self, needed: dict[str, int], limit_s: float) -> bool:
        """Wait until topics have enough subscribers; return False when time is up."""
        deadline = time.monotonic() + limit_s
        while any(
            self._outputs[topic].get_subscription_count() < count
            for topic, count in needed.items()
            if topic in self._outputs
        ):
            if time.monotonic() > deadline or self._interrupted.is_set():
                return False
            time.sleep(POLL_S)
        return True

    def _play_once(self) -> None:
        """Publish the recording once, from its start offset to its end.

        Raises:
            InputError: Nothing is left from there on.
        """
        topics = self._reader.topics
        sides: dict[str, Side] = {topics.left_image: 'left', topics.right_image: 'right'}
        rig = dataclasses.astuple(topics)
        pairs: PairQueue[int] = PairQueue(FRAME_TOLERANCE_NS)
        first_ns: int | None = None
        start_s = time.monotonic()
        kept: list[tuple[str, bytes]] = []
        recorded_s = -self.settings.start_offset
        for connection, time_ns, raw in self._reader.raw_messages(list(self._outputs)):
            first_ns = time_ns if first_ns is None else first_ns
            recorded_s = (time_ns - first_ns) * 1e-9 - self.settings.start_offset
            if recorded_s < 0:
                self._keep_latched(kept, connection.topic, bytes(raw))
                continue
            while kept:
                topic, earlier = kept.pop(0)
                self._outputs[topic].publish(earlier)
            if self._interrupted.is_set():
                return
            self._wait_until(start_s, recorded_s, first_ns)
            if connection.topic in rig:
                self._wait_for_answers(self.settings.in_flight - 1, cdr_stamp_ns(raw))
            if self._clock_publisher is not None:
                self._publish_clock(time_ns)
            if connection.topic in sides:
                stamp = cdr_stamp_ns(raw)
                for left_stamp, _ in pairs.add(sides[connection.topic], stamp, stamp):
                    self._expect_answer(left_stamp)
            self._outputs[connection.topic].publish(bytes(raw))
        if recorded_s < 0:
            raise InputError(
                f'start_offset is {self.settings.start_offset:g} s, but {self.settings.bag} is '
                f'{recorded_s + self.settings.start_offset:.3g} s long'
            )

    def _keep_latched(self, kept: list[tuple[str, bytes]], topic: str, raw: bytes) -> None:
        """Keep what holds from the skipped beginning on: what was latched, and the last infos."""
        depth = self._latched_depths.get(topic, 0)
        if topic in (self._reader.topics.left_info, self._reader.topics.right_info):
            depth = 1
        if depth == 0:
            return
        kept.append((topic, raw))
        if sum(1 for name, _ in kept if name == topic) > depth:
            del kept[next(i for i, (name, _) in enumerate(kept) if name == topic)]

    def _wait_until(self, start_s: float, recorded_s: float, first_ns: int) -> None:
        """Sleep until a message is due; the clock goes on meanwhile."""
        rate = self.settings.rate
        if rate == 0:
            return
        due_s = start_s + recorded_s / rate
        tick_s = 1.0 / self.settings.clock_rate
        while not self._interrupted.is_set() and (left_s := due_s - time.monotonic()) > 0:
            if self._clock_publisher is not None:
                passed_s = (time.monotonic() - start_s) * rate + self.settings.start_offset
                self._publish_clock(first_ns + round(passed_s * 1e9))
            time.sleep(min(left_s, tick_s))

    def _publish_clock(self, time_ns: int) -> None:
        if self._clock_publisher is None:
            return
        seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
        now = make_message('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
        self._clock_publisher.publish(make_message('rosgraph_msgs/msg/Clock', clock=now))

    def _expect_answer(self, left_stamp_ns: int) -> None:
        """Note a frame just before its last image is published."""
        self.frames_published += 1
        if self.settings.flow_control:
            with self._answers:
                self._unanswered[left_stamp_ns] = time.monotonic()

    def _on_answer(self, message: Any) -> None:
        with self._answers:
            if self._unanswered.pop(stamp_ns(message), None) is not None:
                self.frames_answered += 1
                self._answers.notify_all()

    def _wait_for_answers(self, allowed: int, before_ns: int | None = None) -> None:
        """Wait until at most `allowed` frames are unanswered; give up those that take too long.

        Args:
            allowed: Number of frames that may stay unanswered.
            before_ns: Only frames older than this stamp count: the camera_info of a frame may
                follow its images.
        """
        with self._answers:
            while not self._interrupted.is_set():
                waiting = [
                    (since_s, stamp)
                    for stamp, since_s in self._unanswered.items()
                    if before_ns is None or stamp < before_ns - FRAME_TOLERANCE_NS
                ]
                if len(waiting) <= allowed:
                    return
                since_s, stamp = min(waiting)
                left_s = since_s + self.settings.answer_timeout - time.monotonic()
                if left_s <= 0:
                    del self._unanswered[stamp]
                    self.get_logger().warning(
                        f'no frame_status for the frame at {stamp * 1e-9:.3f} s within '
                        f'{self.settings.answer_timeout:g} s; it counts as lost'
                    )
                else:
                    self._answers.wait(min(left_s, 0.2))


def main(argv: Sequence[str] | None = None) -> int:
    """Replay a bag; return the exit status that the module lists."""
    return run_node('replay_node', ReplayNode, run_spun, argv)


if __name__ == '__main__':
    sys.exit(main())
