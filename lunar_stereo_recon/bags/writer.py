"""Writes rosbag2 recordings (mcap, zstd in chunks) that any ROS 2 reads, without ROS.

A process that is killed leaves all chunks that were full, each with its checksum, and a
metadata.yaml that knows the topics: what was written can be read.
"""

from __future__ import annotations

from pathlib import Path
import shutil
import struct
from types import TracebackType
from typing import Any, cast
import zlib

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.metadata import dump_qos_v9
from rosbags.rosbag2.storage_mcap import McapWriter
from rosbags.typesys import get_typestore, Stores
import yaml

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.result_messages import header

_TYPES = get_typestore(Stores.ROS2_JAZZY)
# Where a chunk record holds its checksum: opcode, length, two times and a size come before it.
_CHUNK_CRC_OFFSET = 1 + 8 + 8 + 8 + 8


class _CheckedMcapWriter(McapWriter):
    """Rosbags' writer, with a checksum in each chunk, which is on the disk once it is full."""

    def close_chunk(self) -> None:
        """Write the pending chunk."""
        checksum = zlib.crc32(self.chunk.bio.getbuffer())
        start = self.bio.tell()
        super().close_chunk()
        end = self.bio.tell()
        self.bio.seek(start + _CHUNK_CRC_OFFSET)
        self.bio.write(struct.pack('<I', checksum))
        self.bio.seek(end)
        self.bio.flush()


class _Writer(Writer):
    """Rosbags' writer with metadata while it writes, as long as the final ones are not there."""

    STORAGE_PLUGINS = {StoragePlugin.MCAP: _CheckedMcapWriter}

    def write_early_metadata(self) -> None:
        """Write a metadata.yaml of what was written so far."""
        count = sum(self.counts.values())
        start = {'nanoseconds_since_epoch': self.min_timestamp if count else 0}
        duration = {'nanoseconds': max(0, self.max_timestamp - self.min_timestamp)}
        name = f'{self.path.name}.mcap'
        part = {'starting_time': start, 'duration': duration, 'message_count': count}
        information = {
            'version': self.version,
            'storage_identifier': 'mcap',
            'relative_file_paths': [name],
            **part,
            'topics_with_message_count': [
                {
                    'topic_metadata': {
                        'name': connection.topic,
                        'type': connection.msgtype,
                        'serialization_format': 'cdr',
                        'offered_qos_profiles': dump_qos_v9(
                            cast(Any, connection.ext).offered_qos_profiles
                        ),
                        'type_description_hash': connection.digest,
                    },
                    'message_count': self.counts[connection.id],
                }
                for connection in self.connections
            ],
            'compression_format': '',
            'compression_mode': '',
            'files': [{'path': name, **part}],
            'custom_data': None,
            'ros_distro': 'rosbags',
        }
        text = yaml.safe_dump({'rosbag2_bagfile_information': information}, sort_keys=False)
        unfinished = self.metapath.with_suffix('.yaml.tmp')
        unfinished.write_text(text, 'utf8')
        unfinished.replace(self.metapath)


def make_message(type_name: str, **fields: Any) -> Any:
    """Make a message of rosbags' Jazzy types; the `MakeMessage` of bags."""
    return _TYPES.types[type_name](**fields)


def pose_message(
    position: NDArray[Any], orientation: NDArray[Any], stamp_ns: int, frame_id: str = 'map'
) -> Any:
    """Return a PoseStamped from metres (3,) and a quaternion x, y, z, w (4,)."""
    return make_message(
        'geometry_msgs/msg/PoseStamped',
        header=header(make_message, stamp_ns, frame_id),
        pose=make_message(
            'geometry_msgs/msg/Pose',
            position=_xyz('geometry_msgs/msg/Point', position),
            orientation=_quaternion(orientation),
        ),
    )


def transform_message(
    position: NDArray[Any],
    orientation: NDArray[Any],
    stamp_ns: int,
    frame_id: str = 'map',
    child_frame_id: str = 'left_camera_optical_frame',
) -> Any:
    """Return a TFMessage of one transform: where the child frame is in the parent frame."""
    transform = make_message(
        'geometry_msgs/msg/TransformStamped',
        header=header(make_message, stamp_ns, frame_id),
        child_frame_id=child_frame_id,
        transform=make_message(
            'geometry_msgs/msg/Transform',
            translation=_xyz('geometry_msgs/msg/Vector3', position),
            rotation=_quaternion(orientation),
        ),
    )
    return make_message('tf2_msgs/msg/TFMessage', transforms=[transform])


class BagWriter:
    """Writes messages of rosbags' types, or serialized ones, to a new mcap bag.

    A context manager; the bag is complete when it is left without an error.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Create the bag directory.

        Args:
            path: Directory to make, for example `out/result`; the file in it is `result.mcap`.
            overwrite: Replace a bag that is there. Only a bag is ever deleted.

        Raises:
            InputError: The path exists and must not be overwritten, or is not a bag.
        """
        self.path = Path(path)
        if self.path.exists():
            self._remove_old(overwrite)
        self._writer = _Writer(
            self.path, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP
        )
        # In the chunks, so that readers can seek; clouds and depth shrink to about a half.
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._connections: dict[str, Connection] = {}
        self.counts: dict[str, int] = {}

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What was recorded before an error is worth as much as any recording: index it too.
        self.close()

    def write(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Write a message made by `make_message`, recorded at `stamp_ns`."""
        message_type = cast(str, message.__msgtype__)
        self.write_raw(topic, message_type, _TYPES.serialize_cdr(message, message_type), stamp_ns)

    def write_raw(
        self,
        topic: str,
        message_type: str,
        data: bytes | memoryview,
        stamp_ns: int,
        source: Connection | None = None,
    ) -> None:
        """Write CDR bytes.

        Args:
            topic: Name of the topic.
            message_type: Of ROS 2 Jazzy's common packages, unless `source` is given.
            data: The serialized message.
            stamp_ns: When it was recorded.
            source: The topic in a bag that is copied: gives definition and QoS.

        Raises:
            InputError: The type is not known.
        """
        if topic not in self._connections:
            self._connections[topic] = self._new_connection(topic, message_type, source)
            self._writer.write_early_metadata()
        self._writer.write(self._connections[topic], stamp_ns, data)
        self.counts[topic] = self.counts.get(topic, 0) + 1

    def _new_connection(
        self, topic: str, message_type: str, source: Connection | None
    ) -> Connection:
        qos = list(cast(Any, source.ext).offered_qos_profiles) if source else []
        if message_type in _TYPES.fielddefs:
            return self._writer.add_connection(
                topic, message_type, typestore=_TYPES, offered_qos_profiles=qos
            )
        if source is None:
            raise InputError(f'{topic}: message type {message_type} is not known to rosbags')
        return self._writer.add_connection(
            topic,
            message_type,
            msgdef=source.msgdef.data,
            rihs01=source.digest or f'RIHS01_{"0" * 64}',
            offered_qos_profiles=qos,
        )

    def close(self) -> None:
        """Write the index and the metadata. A second call does nothing."""
        if self._writer.storage is not None:
            self._writer.close()

    def _remove_old(self, overwrite: bool) -> None:
        if not overwrite:
            raise InputError(f'{self.path}: exists already')
        is_bag = self.path.is_dir() and all(
            entry.name in ('metadata.yaml', 'metadata.yaml.tmp')
            or entry.suffix in ('.mcap', '.db3')
            for entry in self.path.iterdir()
        )
        if not is_bag:
            raise InputError(f'{self.path}: exists and is not a bag; it is left as it is')
        shutil.rmtree(self.path)


def _xyz(type_name: str, values: NDArray[Any]) -> Any:
    x, y, z = (float(value) for value in np.asarray(values))
    return make_message(type_name, x=x, y=y, z=z)


def _quaternion(values: NDArray[Any]) -> Any:
    x, y, z, w = (float(value) for value in np.asarray(values))
    return make_message('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w)
