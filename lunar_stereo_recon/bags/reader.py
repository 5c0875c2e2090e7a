"""Reads stereo frames, and ground truth if there is any, from rosbag2 recordings.

Takes a rosbag2 directory or a bare .mcap or .db3 file (Humble to Lyrical), without ROS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
import dataclasses
from dataclasses import dataclass, field
import difflib
import logging
import os
from pathlib import Path
import re
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.serde import SerdeError
from rosbags.typesys import (
    get_types_from_idl,
    get_types_from_msg,
    get_typestore,
    Stores,
    TypesysError,
)

from lunar_stereo_recon.bags.storage import DAMAGE, LATEST_NS, Recording
from lunar_stereo_recon.datatypes import FloatImage, StereoPair
from lunar_stereo_recon.doubts import (
    baseline_doubt,
    called_rectified,
    looks_raw,
    white_level_doubt,
)
from lunar_stereo_recon.errors import CalibrationError, InputError
from lunar_stereo_recon.files.calibrations import load_camera_infos
from lunar_stereo_recon.geometry.frame_tree import FrameTree
from lunar_stereo_recon.geometry.rotation import rotation_from_quaternion
from lunar_stereo_recon.messages import (
    baseline_of_camera_infos,
    decode_depth,
    pair_from_messages,
    stamp_ns,
    StereoTopics,
)
from lunar_stereo_recon.pairing import PairQueue, Side, Unpaired

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
INFO_TYPE = 'sensor_msgs/msg/CameraInfo'
POSE_TYPE = 'geometry_msgs/msg/PoseStamped'
TRANSFORMS_TYPE = 'tf2_msgs/msg/TFMessage'
STATIC_TOPIC = '/tf_static'
_TYPES_READ = (
    *IMAGE_TYPES,
    INFO_TYPE,
    POSE_TYPE,
    'builtin_interfaces/msg/Time',
    'geometry_msgs/msg/Point',
    'geometry_msgs/msg/Pose',
    'geometry_msgs/msg/Quaternion',
    'sensor_msgs/msg/RegionOfInterest',
    'std_msgs/msg/Header',
)
_STANDARD = get_typestore(Stores.ROS2_JAZZY)
_LOG = logging.getLogger(__name__)
# How drivers name the two sides: what the left topic has, and the right one in its place.
_TWINS = (
    ('left', 'right'),
    ('Left', 'Right'),
    ('LEFT', 'RIGHT'),
    ('infra1', 'infra2'),
    ('fisheye1', 'fisheye2'),
    (r'(?<=cam)0|(?<=cam_)0|(?<=camera)0|(?<=camera_)0', '1'),
    (r'(?<=cam)1|(?<=cam_)1|(?<=camera)1|(?<=camera_)1', '2'),
    ('(?<![A-Za-z])l(?![A-Za-z])', 'r'),
    ('(?<![A-Z])L(?![A-Za-z])', 'R'),
)
# Frames held back while their ground truth, recorded a little later, is read.
_GROUND_TRUTH_LOOKAHEAD = 4
# Pairs held back while the camera_infos of their own stamps may still come.
_INFO_LOOKAHEAD = 4
# Read around a part of a bag too: the right image of a left one at the border may be there.
_MARGIN_NS = 2_000_000_000
# Images, and infos, of one side that are kept until the others of their stamp are read.
_QUEUE_SIZE = 1000
# When a message was recorded (ns), and the message.
_Recorded = tuple[int, Any]


@dataclass(frozen=True)
class Pose:
    """Where the left optical frame is in a fixed frame.

    Attributes:
        position: (3,) metres.
        orientation: (4,) quaternion x, y, z, w: fixed frame from left optical frame.
        frame_id: Name of the fixed frame.

    Raises:
        InputError: The quaternion is no rotation, or the position is not finite.
    """

    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    frame_id: str

    def __post_init__(self) -> None:
        rotation_from_quaternion(self.orientation)
        if not np.isfinite(self.position).all():
            raise InputError(
                f'position is {tuple(map(float, self.position))}; finite metres are needed'
            )

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Return the (4, 4) transform that takes left optical points to the fixed frame."""
        transform = np.eye(4)
        transform[:3, :3] = rotation_from_quaternion(self.orientation)
        transform[:3, 3] = self.position
        return transform


@dataclass(frozen=True)
class BagFrame:
    """One synchronized stereo frame of a bag, images still undecoded.

    Attributes:
        index: Position among the frames that are read, from 0.
        stamp_ns: Stamp of the left image.
        left, right, left_info, right_info: Messages as rosbags deserialized them.
        topics: Topics that they came from.
        depth_message: Ground-truth depth image of the same stamp; None where there is none.
        pose: Ground-truth pose of the same stamp; None where there is none.
        depth_topic: Where the depth came from, for messages.
        static_baseline_m: Distance of the cameras on /tf_static, metres, where the camera_infos
            tell none; 0 where they do, or nothing does.
        static_baseline_text: What was done about it, or why nothing could; empty where the
            camera_infos tell the baseline.
        recorded_ns: When the left image was recorded.
    """

    index: int
    stamp_ns: int
    left: Any
    right: Any
    left_info: Any
    right_info: Any
    topics: StereoTopics
    depth_message: Any = None
    pose: Pose | None = None
    depth_topic: str = ''
    static_baseline_m: float = 0.0
    static_baseline_text: str = ''
    recorded_ns: int = 0

    def pair(
        self,
        *,
        baseline_m: float = 0.0,
        white_level: float | None = None,
        rectify: bool | None = None,
    ) -> StereoPair:
        """Return the decoded pair; see `messages.pair_from_messages`.

        Where `rectify` is None, images that look raw (`looks_raw`) are rectified.

        Raises:
            InputError: An image cannot be decoded, or sizes differ.
            CalibrationError: The camera_info is unusable; a positive `baseline_m` replaces the
                one in it, and so does that of /tf_static where it has none.
        """
        try:
            return pair_from_messages(
                self.left,
                self.right,
                self.left_info,
                self.right_info,
                baseline_m=baseline_m if baseline_m > 0 else self.static_baseline_m,
                white_level=white_level,
                rectify=self.looks_raw if rectify is None else rectify,
                topics=self.topics,
            )
        except CalibrationError as error:
            if baseline_m > 0 or self.static_baseline_m > 0 or not self.static_baseline_text:
                raise
            raise CalibrationError(f'{error} ({self.static_baseline_text})') from error

    @property
    def looks_raw(self) -> bool:
        """Say whether the images are raw, by `doubts.looks_raw`."""
        return looks_raw(self.topics, self.left_info, self.right_info)

    def depth(self) -> FloatImage | None:
        """Return the ground-truth depth, (H, W) metres, NaN invalid; None where there is none."""
        if self.depth_message is None:
            return None
        return decode_depth(self.depth_message, self.depth_topic)


@dataclass(frozen=True)
class FrameDoubts:
    """What was assumed about a frame, and what is probably wrong; empty texts are no doubt.

    Attributes:
        raw: The images look raw and are rectified, although nobody asked for it.
        static_baseline: The baseline is that of /tf_static.
        baseline: It is hardly the baseline of a rig.
        white_level: The 16-bit images seem to hold fewer bits.
    """

    raw: str = ''
    static_baseline: str = ''
    baseline: str = ''
    white_level: str = ''

    def texts(self) -> list[str]:
        """Return those that say something."""
        return [text for text in dataclasses.astuple(self) if text]


def frame_doubts(
    frame: BagFrame,
    pair: StereoPair,
    white_level: float | None = None,
    *,
    baseline_m: float = 0.0,
    rectify: bool | None = None,
) -> FrameDoubts:
    """Return the doubts about a frame.

    Args:
        frame: The frame.
        pair: What `frame.pair` made of it.
        white_level, baseline_m, rectify: As they were given to that.
    """
    topics = frame.topics
    raw = (
        f'{topics.left_image} has raw images (D of its camera_info is not 0): they are rectified; '
        '--no-rectify takes them as they are'
    )
    given = baseline_m > 0
    return FrameDoubts(
        raw=raw if rectify is None and frame.looks_raw else '',
        static_baseline='' if given else frame.static_baseline_text,
        baseline='' if given else baseline_doubt(pair.calibration.baseline_m, topics.right_info),
        white_level=white_level_doubt(frame.left, pair, white_level, topics.left_image),
    )


@dataclass
class _InfoStream:
    """The camera_infos of one side, to be looked up by stamp."""

    source: str
    by_stamp: dict[int, Any] = field(default_factory=dict)
    newest_ns: int = 0
    first: Any = None
    changed: bool = False

    def add(self, info: Any) -> None:
        self.newest_ns = stamp_ns(info)
        self._compare(info)
        self.by_stamp.pop(self.newest_ns, None)  # the newest is the last one of the dict
        self.by_stamp[self.newest_ns] = info
        if len(self.by_stamp) > _QUEUE_SIZE:
            del self.by_stamp[next(iter(self.by_stamp))]

    def _compare(self, info: Any) -> None:
        """Say once that a calibration changes, which damage does more often than a lens."""
        if self.first is None:
            self.first = info
        changes = [
            f'{name} from {getattr(self.first, name)} to {getattr(info, name)}'
            for name in ('width', 'height', 'distortion_model', 'd', 'k', 'r', 'p')
            if not np.array_equal(getattr(self.first, name), getattr(info, name))
        ]
        if changes and not self.changed:
            self.changed = True
            _LOG.warning(
                '%s changes at stamp %d ns, %s: is the file damaged?',
                self.source,
                self.newest_ns,
                '; '.join(changes),
            )

    def of(self, image_ns: int, wait: bool) -> Any:
        """Return the info of an image's own stamp, else the newest one that is not later.

        Args:
            image_ns: Stamp of the image.
            wait: Return None where the own one may still come.
        """
        own = self.by_stamp.get(image_ns)
        if own is not None or not self.by_stamp:
            return own
        if wait and self.newest_ns < image_ns:
            return None
        earlier = (stamp for stamp in reversed(self.by_stamp) if stamp < image_ns)
        return self.by_stamp[next(earlier, self.newest_ns)]


class StereoBagReader:
    """Iterates the stereo frames of a bag. A context manager.

    Attributes:
        path: The bag.
        topics: The four topics in use, given or found; infos are '' where files serve.
        tolerance_s: Largest difference of left and right stamps, seconds; may be changed before
            frames are read.
        depth_topic, pose_topic: Ground truth; '' where the bag has none.
        all_topics: Message type by topic, everything in the bag.
        unpaired: Images and infos without a partner so far, with the reason.
        images: Number of images read so far, left and right; of a part of the bag, those in it.
    """

    def __init__(
        self,
        path: str | Path,
        topics: StereoTopics | None = None,
        *,
        tolerance_s: float = 0.0,
        calibration: Sequence[str | Path] = (),
        depth_topic: str | None = None,
        pose_topic: str | None = None,
    ) -> None:
        """Open the bag and find its topics.

        Args:
            path: rosbag2 directory, .mcap or .db3.
            topics: Topics of the rig; found by their names and types where None. An empty info
                is one that the bag lacks: such a bag has raw messages, but no frames.
            tolerance_s: Largest difference of left and right stamps; 0 is exact.
            calibration: Two camera_info files, left and right, in place of the bag's topics.
            depth_topic: Ground-truth depth; found where None, not used where ''.
            pose_topic: Ground-truth PoseStamped of the left camera; the same.

        Raises:
            InputError: Missing, damaged or empty bag, or one without the topics.
            CalibrationError: A file of `calibration` cannot be used.
        """
        self.path = Path(path)
        self.tolerance_s = tolerance_s
        # One file may be of both cameras.
        self._files = tuple(map(str, (calibration[0], calibration[-1]) if calibration else ()))
        self._file_infos = load_camera_infos(calibration) if calibration else ()
        self._reader = Recording(self.path)
        self.all_topics = {
            connection.topic: connection.msgtype for connection in self._reader.connections
        }
        try:
            if self._reader.message_count == 0:
                raise InputError(f'{self.path}: the bag is empty (0 messages)')
            self.topics = self._checked(topics) if topics else self._found_topics()
            self.depth_topic = self._ground_truth_topic(depth_topic, 'depth', IMAGE_TYPES[:1])
            self.pose_topic = self._ground_truth_topic(pose_topic, 'pose', (POSE_TYPE,))
            self._check_definitions()
        except InputError:
            self._reader.close()
            raise
        self.unpaired: list[Unpaired] = []
        self.images: dict[Side, int] = {'left': 0, 'right': 0}
        self._static_frames: FrameTree | None = None

    def __enter__(self) -> StereoBagReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    @property
    def losses(self) -> list[str]:
        """Return what could not be read so far, one sentence each."""
        return self._reader.losses

    @property
    def custom_data(self) -> dict[str, str]:
        """Return what the owner wrote into the bag's metadata."""
        return self._reader.custom_data

    @property
    def connections(self) -> list[Connection]:
        """Return topics with type, number of messages, QoS and definition."""
        return self._reader.connections

    @property
    def frame_count(self) -> int:
        """Return the number of frames the bag can have: the fewer of left and right images."""
        return min(
            sum(c.msgcount for c in self._reader.connections if c.topic == topic)
            for topic in (self.topics.left_image, self.topics.right_image)
        )

    def raw_messages(
        self, topics: list[str] | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield (connection, recording time in ns, CDR bytes) in recording order.

        What is damaged is left out; `losses` names it.
        """
        yield from self._reader.messages(self.all_topics if topics is None else topics)

    def deserialize(self, raw: bytes, message_type: str) -> Any:
        """Return the message of CDR bytes.

        Raises:
            InputError: The bytes are not such a message.
        """
        try:
            return _STANDARD.deserialize_cdr(raw, message_type)
        except (*DAMAGE, SerdeError) as error:
            raise InputError(
                f'{self.path}: a {message_type} is damaged ({type(error).__name__}: {error})'
            ) from error

    def frame_starts(self, frames: int) -> list[int]:
        """Return recording times that divide the bag into parts of about so many frames.

        Empty where a part cannot be found without reading the whole bag: files without an index,
        or compressed as a whole. See `Recording.starts`.
        """
        if not self._reader.seekable:
            return []
        return self._reader.starts(self.topics.left_image, frames)

    @property
    def files(self) -> list[Path]:
        """Return the files of the bag, in their order."""
        return self._reader.files

    def frames(self, start_ns: int = 0, stop_ns: int = LATEST_NS) -> Iterator[BagFrame]:
        """Yield the synchronized frames in order.

        A frame has the camera_infos of its images' own stamps, wherever they stand in the bag;
        where it has none, the newest earlier ones (an info that was recorded once serves all).

        Args:
            start_ns, stop_ns: Recording times of the left images; the second is outside. Parts
                that border on each other have each frame once. Where a part begins, images of
                `_MARGIN_NS` before it are read too, in search of partners.

        Raises:
            InputError: The file is damaged.
        """
        depths: dict[int, Any] = {}
        poses: dict[int, Pose] = {}
        waiting: deque[BagFrame] = deque()
        inside = (
            frame
            for frame in self._stereo_frames(depths, poses, start_ns, stop_ns)
            if start_ns <= frame.recorded_ns < stop_ns
        )
        for index, frame in enumerate(inside):
            waiting.append(dataclasses.replace(frame, index=index))
            if len(waiting) > _GROUND_TRUTH_LOOKAHEAD:
                yield self._with_ground_truth(waiting.popleft(), depths, poses)
        while waiting:
            yield self._with_ground_truth(waiting.popleft(), depths, poses)

    def _stereo_frames(
        self, depths: dict[int, Any], poses: dict[int, Pose], start_ns: int, stop_ns: int
    ) -> Iterator[BagFrame]:
        """Yield frames, of the margin too; fill `depths` and `poses` by stamp."""
        infos = {
            topic: _InfoStream(f'{self.path}: {topic}')
            for topic in (self.topics.left_info, self.topics.right_info)
        }
        first_ns, last_ns = max(start_ns - _MARGIN_NS, 0), min(stop_ns + _MARGIN_NS, LATEST_NS)
        if first_ns:
            self._add_earlier_infos(infos, first_ns)
        waiting: deque[tuple[_Recorded, _Recorded]] = deque()
        tolerance_ns = round(self.tolerance_s * 1e9)
        queue: PairQueue[_Recorded] = PairQueue(tolerance_ns, _QUEUE_SIZE, self.unpaired.append)
        sides: dict[str, Side] = {
            self.topics.left_image: 'left',
            self.topics.right_image: 'right',
        }
        wanted = [*dataclasses.astuple(self.topics), self.depth_topic, self.pose_topic]
        topics = [topic for topic in wanted if topic]
        for connection, time_ns, raw in self._reader.messages(topics, first_ns, last_ns):
            topic = connection.topic
            message = self.deserialize(raw, connection.msgtype)
            if topic in sides:
                self.images[sides[topic]] += start_ns <= time_ns < stop_ns
                waiting += queue.add(sides[topic], stamp_ns(message), (time_ns, message))
            elif topic == self.depth_topic:
                depths[stamp_ns(message)] = message
            elif topic == self.pose_topic:
                try:
                    poses[stamp_ns(message)] = _pose(message)
                except InputError as error:
                    _LOG.warning('%s: a pose is left out: %s', topic, error)
            else:
                infos[topic].add(message)
            while waiting:
                frame = self._frame(*waiting[0], infos, len(waiting) <= _INFO_LOOKAHEAD)
                if frame is None:
                    break
                waiting.popleft()
                yield frame
        waiting += queue.finish()
        if waiting and last_ns < LATEST_NS:
            self._add_later_infos(infos, last_ns)
        for left, right in waiting:
            frame = self._frame(left, right, infos, wait=False)
            if frame is None:
                missing = [topic for topic, stream in infos.items() if not stream.by_stamp]
                raise InputError(
                    f'{self.path}: no message on {" or ".join(missing)}; a calibration is needed'
                )
            yield frame

    def _add_earlier_infos(self, infos: dict[str, _InfoStream], time_ns: int) -> None:
        """Add the newest camera_infos from before a part of the bag."""
        for topic, stream in infos.items():
            found = self._reader.newest_before(topic, time_ns) if topic else None
            if found is not None:
                stream.add(self.deserialize(found[2], found[0].msgtype))

    def _add_later_infos(self, infos: dict[str, _InfoStream], time_ns: int) -> None:
        """Add the next camera_infos where there is none up to the end of a part of the bag."""
        for topic, stream in infos.items():
            if topic and not stream.by_stamp:
                for connection, _, raw in self._reader.messages([topic], time_ns):
                    stream.add(self.deserialize(raw, connection.msgtype))
                    break

    def _frame(
        self,
        recorded_left: _Recorded,
        recorded_right: _Recorded,
        infos: dict[str, _InfoStream],
        wait: bool,
    ) -> BagFrame | None:
        """Return the frame of a pair; None while an info of it is not there or may still come."""
        topics = self.topics
        left, right = recorded_left[1], recorded_right[1]
        if self._file_infos:
            left_info, right_info = self._file_infos
            left_file, right_file = self._files
            topics = dataclasses.replace(topics, left_info=left_file, right_info=right_file)
        else:
            left_info = infos[topics.left_info].of(stamp_ns(left), wait)
            right_info = infos[topics.right_info].of(stamp_ns(right), wait)
        if left_info is None or right_info is None:
            return None
        baseline_m, text = self._static_baseline(left, right, left_info, right_info)
        return BagFrame(
            index=0,
            stamp_ns=stamp_ns(left),
            recorded_ns=recorded_left[0],
            left=left,
            right=right,
            left_info=left_info,
            right_info=right_info,
            topics=topics,
            depth_topic=self.depth_topic,
            static_baseline_m=baseline_m,
            static_baseline_text=text,
        )

    def _static_baseline(
        self, left: Any, right: Any, left_info: Any, right_info: Any
    ) -> tuple[float, str]:
        """Return the baseline that /tf_static tells where the camera_infos do not, and a text."""
        try:
            baseline_of_camera_infos(left_info, right_info)
        except CalibrationError:
            pass
        else:
            return 0.0, ''
        frames = left.header.frame_id, right.header.frame_id
        if frames[0] == frames[1]:
            return 0.0, f'{STATIC_TOPIC} cannot help: both cameras have the frame {frames[0]!r}'
        try:
            pose = self._read_static_frames().lookup(*frames)
        except InputError as error:
            return 0.0, f'{STATIC_TOPIC}: {error}'
        found_m = float(np.linalg.norm(pose[:3, 3]))
        if not found_m > 0:
            where = f'{frames[0]!r} and {frames[1]!r} are in one place'
            return 0.0, f'on {STATIC_TOPIC} {where}'
        source = self.topics.right_info or self._files[1]
        return found_m, (
            f'P[3] of {source} gives no baseline; {found_m:.5g} m is used, the '
            f'distance of {frames[0]!r} and {frames[1]!r} on {STATIC_TOPIC}'
        )

    def _read_static_frames(self) -> FrameTree:
        """Return all static transforms of the bag, wherever they stand in it; read once."""
        if self._static_frames is not None:
            return self._static_frames
        tree = FrameTree()
        topics = [t for t, kind in self.all_topics.items() if _is_static(t, kind)]
        for connection, _, raw in self.raw_messages(topics) if topics else ():
            for stamped in self.deserialize(raw, connection.msgtype).transforms:
                shift, turn = stamped.transform.translation, stamped.transform.rotation
                try:
                    tree.add(
                        stamped.header.frame_id,
                        stamped.child_frame_id,
                        np.array([shift.x, shift.y, shift.z]),
                        np.array([turn.x, turn.y, turn.z, turn.w]),
                    )
                except InputError as error:
                    _LOG.warning(
                        '%s: %s is left out: %s', connection.topic, stamped.child_frame_id, error
                    )
        self._static_frames = tree
        return tree

    @staticmethod
    def _with_ground_truth(
        frame: BagFrame, depths: dict[int, Any], poses: dict[int, Pose]
    ) -> BagFrame:
        depth = depths.pop(frame.stamp_ns, None)
        # Frames leave in order, so older depth images belong to no frame.
        for stamp in [stamp for stamp in depths if stamp < frame.stamp_ns]:
            del depths[stamp]
        return dataclasses.replace(frame, depth_message=depth, pose=poses.get(frame.stamp_ns))

    def _check_definitions(self) -> None:
        """Refuse a bag whose own definition of a type that is read here is not the standard one.

        The bag's definition says where each field is, so damage in it would go unnoticed. Where
        a recorder found no definition, or left one that nobody can parse, the standard one serves.
        """
        used = {*dataclasses.astuple(self.topics), self.depth_topic, self.pose_topic}
        for connection in self._reader.connections:
            if connection.topic not in used:
                continue
            own = _definitions(connection)
            for message_type in _TYPES_READ:
                fields = own.get(message_type)
                if fields is not None and fields[1] != _STANDARD.fielddefs[message_type][1]:
                    raise InputError(
                        f'{self.path}: its definition of {message_type} ({connection.topic}) is '
                        'not that of ROS 2; the bag is damaged or from another system'
                    )

    def _checked(self, topics: StereoTopics) -> StereoTopics:
        """Refuse topics that the bag lacks; name the nearest that it has."""
        infos = [info for info in (topics.left_info, topics.right_info) if info]
        for names, what in (((topics.left_image, topics.right_image), 'images'), (infos, 'infos')):
            if len(set(names)) < len(names):
                raise InputError(
                    f'{self.path}: topic {names[0]} is given for left and right {what}; two '
                    'topics are needed'
                )
        kinds = [
            (topics.left_image, IMAGE_TYPES),
            (topics.right_image, IMAGE_TYPES),
            *((info, (INFO_TYPE,)) for info in infos),
        ]
        for topic, types in kinds:
            if topic not in self.all_topics:
                raise self._missing(topic, types)
            if self.all_topics[topic] not in types:
                raise InputError(
                    f'{self.path}: topic {topic} is a {self.all_topics[topic]}; '
                    f'{" or ".join(types)} is needed'
                )
        return topics

    def _missing(self, topic: str, types: tuple[str, ...]) -> InputError:
        candidates = [name for name, kind in self.all_topics.items() if kind in types]
        nearest = difflib.get_close_matches(topic, candidates, n=1, cutoff=0.0)
        suggestion = f'; did you mean {nearest[0]}?' if nearest else ''
        return InputError(
            f'{self.path}: no topic {topic} in the bag{suggestion}\n{self._topic_list()}'
        )

    def _topic_list(self) -> str:
        lines = [f'  {topic} ({kind})' for topic, kind in sorted(self.all_topics.items())]
        return 'The bag has these topics:\n' + '\n'.join(lines)

    def _found_topics(self) -> StereoTopics:
        """Return the rig's topics by their names: a left image whose right twin exists."""
        images = [topic for topic, kind in self.all_topics.items() if kind in IMAGE_TYPES]
        infos = [topic for topic, kind in self.all_topics.items() if kind == INFO_TYPE]
        candidates, lacking = [], []
        for left in images:
            right = _right_twin(left, images)
            if right and self._file_infos:
                candidates.append(StereoTopics(left, right, '', ''))
            elif right:
                left_info = _nearest_info(left, infos)
                twin = _right_twin(left_info, infos) if left_info else None
                right_info = twin or _nearest_info(right, infos)
                if left_info == right_info:
                    right_info = None
                if left_info and right_info:
                    candidates.append(StereoTopics(left, right, left_info, right_info))
                else:
                    lacking += [right if left_info else left]
        if not candidates:
            self._refuse_ros1()
            seen = (
                f'; {lacking[0]} has none (--calibration LEFT.yaml RIGHT.yaml serves)'
                if lacking
                else ''
            )
            raise InputError(
                f'{self.path}: no stereo rig found: two image topics named left and right, each '
                f'with a camera_info, are needed{seen}\n{self._topic_list()}'
            )
        return min(candidates, key=self._rank)

    def _refuse_ros1(self) -> None:
        """Say so where the file holds messages of ROS 1, as `mcap convert` leaves them."""
        for connection in self._reader.connections:
            if getattr(connection.ext, 'serialization_format', '') == 'ros1':
                raise InputError(
                    f'{self.path}: {connection.topic} has messages of ROS 1 '
                    f'({connection.msgtype}); convert the .bag file with `rosbags-convert`'
                )

    def _rank(self, topics: StereoTopics) -> tuple[bool, bool, int, str]:
        """Order candidates: rectified first, then uncompressed, then the shortest name."""
        name = topics.left_image
        compressed = self.all_topics[name] == IMAGE_TYPES[1]
        return (not called_rectified(name), compressed, len(name), name)

    def _ground_truth_topic(self, topic: str | None, name: str, types: tuple[str, ...]) -> str:
        if topic:
            if topic not in self.all_topics:
                raise self._missing(topic, types)
            return topic
        if topic == '':
            return ''
        found = [
            candidate
            for candidate, kind in self.all_topics.items()
            if kind in types and 'ground_truth' in candidate and name in candidate
        ]
        return min(found, key=len, default='')


def bag_topics(path: str | Path) -> dict[str, str]:
    """Return the message type by topic of everything in a bag.

    Raises:
        InputError: Missing or damaged bag.
    """
    recording = Recording(Path(path))
    try:
        return {connection.topic: connection.msgtype for connection in recording.connections}
    finally:
        recording.close()


def _definitions(connection: Connection) -> dict[str, Any]:
    """Return the fields by type of a connection's definition; empty where it has none."""
    definition = connection.msgdef
    try:
        if definition.format == MessageDefinitionFormat.MSG:
            return dict(get_types_from_msg(definition.data, connection.msgtype))
        if definition.format == MessageDefinitionFormat.IDL:
            types: dict[str, Any] = {}
            for part in definition.data.split('=' * 80 + '\n'):
                if part.strip():
                    types.update(get_types_from_idl(re.sub(r'\AIDL: .*\n', '', part)))
            return types
    except (TypesysError, SyntaxError, *DAMAGE) as error:
        _LOG.warning(
            '%s: definition of %s cannot be parsed (%s); that of ROS 2 is used',
            connection.topic,
            connection.msgtype,
            str(error).partition('\n')[0],
        )
    return {}


def _right_twin(left: str, there: list[str]) -> str | None:
    """Return the topic of the other side, by the first rule that names one; None without one."""
    for pattern, right in _TWINS:
        found = list(re.finditer(pattern, left))
        if not found:
            continue
        last = found[-1]
        # The side may be named once or, in folder and topic, everywhere.
        once = left[: last.start()] + right + left[last.end() :]
        for candidate in (once, re.sub(pattern, right, left)):
            if candidate in there:
                return candidate
    return None


def _nearest_info(image: str, infos: list[str]) -> str | None:
    """Return the camera_info of an image: the same namespace, else the same side's only one.

    Of several in one namespace it is the one whose name begins most like the image's; of those
    that are alike so far, the one for raw images where the image is raw.
    """
    namespace = image  # AirSim has the info below its image
    while namespace:
        here = [info for info in infos if info.rpartition('/')[0] == namespace]
        if here:
            return max(here, key=lambda info: _likeness(image, info))
        namespace = namespace.rpartition('/')[0]
    here = [info for info in infos if info.count('/') == 1]
    if here:
        return max(here, key=lambda info: _likeness(image, info))
    side = 'left' if 'left' in image.lower() else 'right'
    same_side = [info for info in infos if side in info.lower()]
    return same_side[0] if len(same_side) == 1 else None


def _likeness(image: str, info: str) -> tuple[int, bool, int]:
    """Return what tells which of several camera_infos is an image's; the largest is."""
    same = len(os.path.commonprefix([image, info]))
    raw = [name.rpartition('/')[2].count('raw') > 0 for name in (image, info)]
    return same, raw[0] == raw[1], -len(info)


def _is_static(topic: str, kind: str) -> bool:
    return kind == TRANSFORMS_TYPE and topic.rpartition('/')[2] == STATIC_TOPIC[1:]


def _pose(message: Any) -> Pose:
    position, orientation = message.pose.position, message.pose.orientation
    return Pose(
        np.array([position.x, position.y, position.z]),
        np.array([orientation.x, orientation.y, orientation.z, orientation.w]),
        message.header.frame_id,
    )
