"""Records the results of a reconstruction to an mcap bag, with the latency of each frame.

Finishes when interrupted (SIGINT or SIGTERM), after `stop_after` frames, or after `idle_timeout`;
first it waits for the results of frames that were already answered. Exit status: 0 the bag is
complete; 1 it cannot be written or a parameter cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
import functools
from pathlib import Path
import queue
import sys
import threading
import time
from typing import Any

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message

from lunar_stereo_recon.bags.writer import BagWriter
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_json
from lunar_stereo_recon.messages import cdr_stamp_ns
from lunar_stereo_recon.pairing import OTHER
from lunar_stereo_recon.ros.image_subscription import ImageSubscription
from lunar_stereo_recon.ros.node_main import EXIT_DONE, EXIT_ERROR, run_node
from lunar_stereo_recon.ros.node_parameters import declare_parameters
from lunar_stereo_recon.ros.parameters import named, RecorderParameters
from lunar_stereo_recon.ros.rclpy_messages import message_class, OK

IMAGE, CLOUD, STATUS = 'left/image_rect', 'points2', 'frame_status'
TOPIC_TYPES = {
    IMAGE: 'sensor_msgs/msg/Image',
    'right/image_rect': 'sensor_msgs/msg/Image',
    'left/image_raw': 'sensor_msgs/msg/Image',
    'right/image_raw': 'sensor_msgs/msg/Image',
    'left/camera_info': 'sensor_msgs/msg/CameraInfo',
    'right/camera_info': 'sensor_msgs/msg/CameraInfo',
    CLOUD: 'sensor_msgs/msg/PointCloud2',
    'confidence': 'sensor_msgs/msg/Image',
    'disparity': 'stereo_msgs/msg/DisparityImage',
    'depth/image': 'sensor_msgs/msg/Image',
    'depth/image/compressedDepth': 'sensor_msgs/msg/CompressedImage',
    'depth/camera_info': 'sensor_msgs/msg/CameraInfo',
    'depth/sigma': 'sensor_msgs/msg/Image',
    STATUS: 'diagnostic_msgs/msg/DiagnosticArray',
    'ground_truth/depth': 'sensor_msgs/msg/Image',
    'ground_truth/pose': 'geometry_msgs/msg/PoseStamped',
}
# What a drive is graded by afterwards; no results, and poses have stamps of their own.
TRUTH = ('ground_truth/depth', 'ground_truth/pose')
INFO_NAME = 'camera_info'
# What comes from the cameras, whose drivers often offer best effort alone.
CAMERAS = tuple(
    f'{side}/{name}' for side in OTHER for name in ('image_rect', 'image_raw', INFO_NAME)
)
# All that `lunar-stereo evaluate` takes from a simulated drive; its images are raw or rectified.
DRIVE = (*CAMERAS, *TRUTH)
QUEUE_DEPTH = 20
# Frames of which results may still come, where no summary wants them all.
FRAMES_KEPT = 100
SUBSCRIPTION_CHECK_S = 0.1
# Limit of what waits to be written; beyond it messages are dropped with a log line.
MAX_QUEUED_BYTES = 256 * 2**20
# Time to end in: the longest `drain_timeout`, and as much for what is queued on a slow disk.
PATIENCE_S = 120.0


@dataclass
class FrameRecord:
    """What is known of one frame; times are of the machine's clock, nanoseconds.

    Attributes:
        image_published_ns: When the left image was published.
        cloud_received_ns: When its cloud arrived here.
        outcome: Text of its frame_status: 'published', or why it was dropped.
        values: Values of its frame_status: milliseconds by stage, valid share, confidence.
        received: Topics that came for it.
    """

    image_published_ns: int | None = None
    cloud_received_ns: int | None = None
    outcome: str = ''
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    received: set[str] = dataclasses.field(default_factory=set)

    @property
    def latency_ms(self) -> float | None:
        """Return milliseconds from the image being published to the cloud being here."""
        if self.image_published_ns is None or self.cloud_received_ns is None:
            return None
        return 1e-6 * (self.cloud_received_ns - self.image_published_ns)


class RecorderNode(Node):
    """See the module. Callbacks queue bytes; a thread compresses and writes them."""

    def __init__(self, **kwargs: Any) -> None:
        """Make the bag and subscribe.

        Raises:
            InputError: The bag cannot be made, or a topic's type is not known.
        """
        super().__init__('recorder_node', **kwargs)
        self.settings = declare_parameters(self, RecorderParameters)
        if not self.settings.bag:
            raise InputError("the parameter 'bag' is empty; the path of a new bag is needed")
        self._topics = named(self.settings.topics)
        unknown = [topic for topic in self._topics if topic not in TOPIC_TYPES]
        if unknown:
            raise InputError(f'topic {unknown[0]} is not one of {", ".join(TOPIC_TYPES)}')
        self.frames: dict[int, FrameRecord] = {}
        self._forgotten = self._answered = 0
        self._last_message_s: float | None = None
        self._writer = BagWriter(self.settings.bag, overwrite=self.settings.overwrite)
        self.failure: OSError | None = None
        self._dropped = 0
        self._queued_bytes = 0
        self._bytes_lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[str, str, bytes, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_queue, daemon=True)
        self._thread.start()
        self._cameras = []
        for topic in self._topics:
            kind = message_class(TOPIC_TYPES[topic])
            # Taking two arguments tells rclpy to pass the message's times along.
            callback = functools.partial(self._on_message, topic)
            if topic in CAMERAS:
                latched = topic.endswith(INFO_NAME)
                self._cameras.append(
                    ImageSubscription(
                        self, kind, topic, callback, depth=QUEUE_DEPTH, latched=latched, raw=True
                    )
                )
            else:
                self.create_subscription(
                    kind, topic, callback, QoSProfile(depth=QUEUE_DEPTH), raw=True
                )
        # With use_sim_time the node's own clock stands still until somebody plays.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(SUBSCRIPTION_CHECK_S, self._refresh, clock=steady)

    def _refresh(self) -> None:
        for camera in self._cameras:
            camera.refresh()

    def is_done(self) -> bool:
        """Say whether enough frames were answered, nothing came for long, or writing failed."""
        if self.failure is not None:
            return True
        if 0 < self.settings.stop_after <= self._answered:
            return True
        limit_s, last_s = self.settings.idle_timeout, self._last_message_s
        return limit_s > 0 and last_s is not None and time.monotonic() - last_s > limit_s

    def is_drained(self) -> bool:
        """Say whether every result of the answered frames is here."""
        # Results that this recording has seen at all; what nobody publishes cannot be waited for.
        results = {STATUS, IMAGE}
        expected = set().union(*(frame.received for frame in self.frames.values())) - results
        return all(
            expected <= frame.received
            for frame in self.frames.values()
            if frame.outcome == 'published'
        )

    def finish(self) -> None:
        """Write everything that is queued, close the bag, write the summary."""
        self._queue.put(None)
        self._thread.join()
        try:
            self._writer.close()
        except OSError as error:
            self._fail(error)
        if self._dropped:
            self.get_logger().error(
                f'{self._dropped} messages were not recorded: the queue was full'
            )
        if self.failure is not None:
            return
        if self.settings.summary:
            path = Path(self.settings.summary)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.summary())
        count = self._forgotten + len(self.frames)
        self.get_logger().info(f'{count} frames recorded to {self.settings.bag}')

    def summary(self) -> dict[str, Any]:
        """Return counts by outcome and topic, and each frame's times."""
        frames = []
        for stamp_ns, frame in sorted(self.frames.items()):
            frames.append(
                {
                    'stamp_ns': stamp_ns,
                    'outcome': frame.outcome,
                    'received_ns': frame.cloud_received_ns,
                    'latency_ms': frame.latency_ms,
                    **frame.values,
                }
            )
        outcomes = [frame.outcome or 'unanswered' for frame in self.frames.values()]
        return {
            'bag': self.settings.bag,
            'messages': dict(sorted(self._writer.counts.items())),
            'outcomes': {name: outcomes.count(name) for name in sorted(set(outcomes))},
            'frames': frames,
        }

    def _on_message(self, topic: str, data: bytes, info: dict[str, Any]) -> None:
        self._last_message_s = time.monotonic()
        try:
            stamp = cdr_stamp_ns(data)
        except InputError as error:
            self.get_logger().error(f'{topic}: {error}', throttle_duration_sec=5.0)
            return
        if not self._takes(len(data)):
            return
        if topic in TRUTH:
            self._keep(topic, data, stamp)
            return
        frame = self._frame(stamp)
        frame.received.add(topic)
        if topic == IMAGE:
            frame.image_published_ns = info['source_timestamp']
        elif topic == CLOUD:
            frame.cloud_received_ns = info['received_timestamp'] or time.time_ns()
        elif topic == STATUS:
            self._answered += not frame.outcome
            _note_status(frame, data)
        self._keep(topic, data, stamp)

    def _frame(self, stamp: int) -> FrameRecord:
        """Return what is known of a frame; without a summary, old frames are forgotten."""
        frame = self.frames.setdefault(stamp, FrameRecord())
        if not self.settings.summary and len(self.frames) > FRAMES_KEPT:
            del self.frames[next(iter(self.frames))]
            self._forgotten += 1
        return frame

    def _keep(self, topic: str, data: bytes, stamp: int) -> None:
        # Recorded under the stamp: a result belongs to its image's time, whatever the machine
        # took for it; the times it took are in frame_status and in the summary.
        self._queue.put((self.resolve_topic_name(topic), TOPIC_TYPES[topic], data, stamp))

    def _write_queue(self) -> None:
        while (entry := self._queue.get()) is not None:
            with self._bytes_lock:
                self._queued_bytes -= len(entry[2])
            if self.failure is None:
                try:
                    self._writer.write_raw(*entry)
                except OSError as error:
                    self._fail(error)

    def _takes(self, size: int) -> bool:
        """Reserve room in the queue; count and say it where there is none."""
        with self._bytes_lock:
            room = self._queued_bytes + size <= MAX_QUEUED_BYTES
            self._queued_bytes += size if room else 0
        if not room:
            self._dropped += 1
            self.get_logger().error(
                f'{self._dropped} messages not recorded: {MAX_QUEUED_BYTES} bytes wait to be '
                'written; the disk is too slow',
                throttle_duration_sec=5.0,
            )
        return room

    def _fail(self, error: OSError) -> None:
        """Stop recording: what is written stays."""
        if self.failure is None:
            self.failure = error
            self.get_logger().error(
                f'cannot write {self.settings.bag}: {error.strerror}; recording stops, what was '
                'written until now is kept'
            )


def _note_status(frame: FrameRecord, data: bytes) -> None:
    message = deserialize_message(data, message_class(TOPIC_TYPES[STATUS]))
    for status in message.status:
        frame.outcome = status.message
        if status.level == OK:
            frame.values = {
                entry.key: value
                for entry in status.values
                if (value := _number(entry.value)) is not None
            }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _record(node: RecorderNode, interrupted: threading.Event) -> int:
    """Record until done or interrupted, then wait for what is still on the way."""
    while not interrupted.is_set() and not node.is_done():
        rclpy.spin_once(node, timeout_sec=0.1)
    deadline = time.monotonic() + node.settings.drain_timeout
    while not node.is_drained() and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.finish()
    return EXIT_DONE if node.failure is None else EXIT_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Record; return the exit status that the module lists."""
    return run_node('recorder_node', lambda interrupted: RecorderNode(), _record, argv, PATIENCE_S)


if __name__ == '__main__':
    sys.exit(main())
