"""Where the left camera is, by what a recording has: PoseStamped, Odometry or TF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.bags.reader import (
    BagFrame,
    POSE_TYPE,
    STATIC_TOPIC,
    StereoBagReader,
    TRANSFORMS_TYPE,
)
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.moving_frames import MovingFrames, RecordedPoses
from lunar_stereo_recon.messages import stamp_ns

ODOMETRY_TYPE = 'nav_msgs/msg/Odometry'
TF = 'tf'
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CameraPoses:
    """Poses of the left camera over a recording.

    Attributes:
        source: Topic, or 'tf'.
        frame_id: The fixed frame; its z points up.
    """

    source: str
    frame_id: str
    _track: RecordedPoses | None
    _frames: MovingFrames
    _pose_frame: str

    def of(self, frame: BagFrame) -> NDArray[np.float64] | None:
        """Return the (4, 4) fixed frame from the left optical frame; None where unknown.

        Raises:
            InputError: The transforms do not connect the camera with what has the pose.
        """
        camera = frame.left.header.frame_id
        if self._track is None:
            return self._frames.lookup(self.frame_id, camera, frame.stamp_ns)
        pose = self._track.at(frame.stamp_ns)
        if pose is None or not self._pose_frame:
            return pose
        mount = self._frames.lookup(self._pose_frame, camera, frame.stamp_ns)
        return None if mount is None else pose @ mount


def read_camera_poses(
    reader: StereoBagReader, topic: str = '', fixed_frame: str = '', pose_frame: str = ''
) -> CameraPoses:
    """Return the poses of the left camera by all that a recording has.

    Args:
        reader: The recording.
        topic: A PoseStamped or an Odometry, or 'tf' for the transforms. Empty takes, of what is
            there: the PoseStamped that the reader found as ground truth, an Odometry whose frame
            the transforms connect with the camera, the transforms.
        fixed_frame: Of the transforms, where not at the top of the tree.
        pose_frame: Whose pose a PoseStamped is; empty is the left camera. Odometry says it.

    Raises:
        InputError: The topic is not there or of another type, or there are no poses at all.
    """
    kinds = reader.all_topics
    if topic and topic != TF and kinds.get(topic) not in (POSE_TYPE, ODOMETRY_TYPE):
        there = kinds.get(topic, 'not in the bag')
        raise InputError(
            f'{reader.path}: pose topic {topic} is {there}; {POSE_TYPE}, {ODOMETRY_TYPE} or tf '
            'is needed'
        )
    frames = _read_transforms(reader)
    camera = _camera_frame(reader)
    if not topic:
        topic = reader.pose_topic or _connected_odometry(reader, frames, camera)
    if topic and topic != TF:
        return _poses_of_topic(reader, topic, frames, pose_frame)
    fixed = fixed_frame or frames.root(camera)
    if not frames.moves(camera) or frames.root(fixed) != frames.root(camera):
        raise InputError(
            f'{reader.path}: no poses of the left camera: neither a {POSE_TYPE} (ground_truth/'
            f'pose, or --pose-topic) nor an {ODOMETRY_TYPE} nor transforms on /tf that move '
            f'{camera!r}{f" in {fixed_frame!r}" if fixed_frame else ""}'
        )
    return CameraPoses(TF, fixed, None, frames, '')


def _poses_of_topic(
    reader: StereoBagReader, topic: str, frames: MovingFrames, pose_frame: str
) -> CameraPoses:
    track, frame_id = RecordedPoses(), ''
    for message in _messages(reader, [topic]):
        pose = message.pose
        if reader.all_topics[topic] == ODOMETRY_TYPE:
            pose, pose_frame = pose.pose, message.child_frame_id
        frame_id = message.header.frame_id
        try:
            track.add(stamp_ns(message), _xyz(pose.position), _xyzw(pose.orientation))
        except InputError as error:
            _LOG.warning('%s: a pose is left out: %s', topic, error)
    return CameraPoses(topic, frame_id, track, frames, pose_frame)


def _connected_odometry(reader: StereoBagReader, frames: MovingFrames, camera: str) -> str:
    """Return the odometry whose frame the transforms connect with the camera; '' without one."""
    for topic in sorted(t for t, kind in reader.all_topics.items() if kind == ODOMETRY_TYPE):
        first = next(_messages(reader, [topic]), None)
        if first is None:
            continue
        child = first.child_frame_id
        if child.lstrip('/') == camera.lstrip('/') or frames.root(child) == frames.root(camera):
            return topic
    return ''


def _camera_frame(reader: StereoBagReader) -> str:
    first = next(_messages(reader, [reader.topics.left_image]), None)
    if first is None:
        raise InputError(f'{reader.path}: no message on {reader.topics.left_image}')
    return str(first.header.frame_id)


def _read_transforms(reader: StereoBagReader) -> MovingFrames:
    frames = MovingFrames()
    topics = [topic for topic, kind in reader.all_topics.items() if kind == TRANSFORMS_TYPE]
    # Static ones last: what is static stays so, should /tf repeat it.
    topics.sort(key=lambda topic: topic.endswith(STATIC_TOPIC))
    for topic in topics:
        static = topic.endswith(STATIC_TOPIC)
        for message in _messages(reader, [topic]):
            for stamped in message.transforms:
                place = (
                    _xyz(stamped.transform.translation),
                    _xyzw(stamped.transform.rotation),
                )
                names = stamped.header.frame_id, stamped.child_frame_id
                try:
                    if static:
                        frames.add_static(*names, *place)
                    else:
                        frames.add(*names, stamp_ns(stamped), *place)
                except InputError as error:
                    _LOG.warning('%s: %s is left out: %s', topic, names[1], error)
    return frames


def _messages(reader: StereoBagReader, topics: list[str]) -> Iterator[Any]:
    for connection, _, raw in reader.raw_messages(topics):
        yield reader.deserialize(raw, connection.msgtype)


def _xyz(vector: Any) -> NDArray[np.float64]:
    return np.array([vector.x, vector.y, vector.z], np.float64)


def _xyzw(quaternion: Any) -> NDArray[np.float64]:
    return np.array([quaternion.x, quaternion.y, quaternion.z, quaternion.w], np.float64)
