"""Writes rosbag2 recordings (mcap, zstd in chunks) that any ROS 2 reads, without ROS."""

from __future__ import annotations

from pathlib import Path
import shutil
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.result_messages import header

_TYPES = get_typestore(Stores.ROS2_JAZZY)


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
            InputError: The path exists and is not to be overwritten, or is not a bag.
        """
        self.path = Path(path)
        if self.path.exists():
            self._remove_old(overwrite)
        self._writer = Writer(
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
        self, topic: str, message_type: str, data: bytes | memoryview, stamp_ns: int
    ) -> None:
        """Write CDR bytes of a message type that ROS 2 Jazzy's common packages have.

        Raises:
            InputError: The type is not known.
        """
        if topic not in self._connections:
            if message_type not in _TYPES.fielddefs:
                raise InputError(f'{topic}: message type {message_type} is not known to rosbags')
            self._connections[topic] = self._writer.add_connection(
                topic, message_type, typestore=_TYPES
            )
        self._writer.write(self._connections[topic], stamp_ns, data)
        self.counts[topic] = self.counts.get(topic, 0) + 1

    def close(self) -> None:
        """Write the index and the metadata. A second call does nothing."""
        if self._writer.storage is not None:
            self._writer.close()

    def _remove_old(self, overwrite: bool) -> None:
        if not overwrite:
            raise InputError(f'{self.path}: exists already')
        is_bag = self.path.is_dir() and all(
            entry.name == 'metadata.yaml' or entry.suffix in ('.mcap', '.db3')
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
