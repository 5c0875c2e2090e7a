"""Opens rosbag2 recordings of any state: whole, compressed, without metadata, or cut off.

What is whole is read; what is lost is logged and listed. The messages stay serialized.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator
import heapq
from io import BytesIO
import logging
from pathlib import Path
import re
import sqlite3
import struct
import sys
from tempfile import TemporaryDirectory
from typing import Any

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
    Qos,
)
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.metadata import parse_qos
from rosbags.rosbag2.storage_mcap import (
    ChunkInfo,
    decompress,
    get_qos,
    McapReader,
    msgsrc,
    read_bytes,
    read_string,
    Statistics,
)
import yaml

from lunar_stereo_recon.bags.mcap_limits import check_chunks, unpack_file, unpacked_message
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.yaml_files import read_yaml

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# What rosbags, its decompressors and SQLite raise on damaged files, checked by cutting and
# flipping bytes; RuntimeError is lz4's, TypeError comes from reading past the end of a file.
DAMAGE = (
    ReaderError,
    zstd.ZstdError,
    sqlite3.Error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    RuntimeError,
    AssertionError,
    MemoryError,
)
_FORMATS = {
    'ros2msg': MessageDefinitionFormat.MSG,
    'ros2idl': MessageDefinitionFormat.IDL,
    'omgidl': MessageDefinitionFormat.IDL,
}
_MAGIC = b'\x89MCAP0\r\n'
_LARGEST_HEAD = 2**16
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x03, 0x04, 0x05, 0x06
_BARE, _COMPRESSED = ('.mcap', '.db3'), ('.zstd', '.zst')
# SQLite keeps whatever type it is given in a column; a damaged row has another.
_WHOLE_ROW = "typeof(timestamp) = 'integer' AND typeof(data) = 'blob'"
_LOG = logging.getLogger(__name__)
# After every recording time, which have 64 bits; SQLite's have a sign.
LATEST_NS = 2**63 - 1


class Recording:
    """The files of one recording, opened. Not safe for several threads.

    Attributes:
        path: Directory or file.
        files: Its files, in their order.
        connections: One for each topic and type, counts over all files.
        losses: What could not be read so far, one sentence each.
        custom_data: What the owner wrote into metadata.yaml, as `ros2 bag record --custom-data`
            does.
    """

    def __init__(self, path: Path) -> None:
        """Open the files.

        Raises:
            InputError: The path does not exist, or no part of it can be read.
        """
        self.path = path
        self.losses: list[str] = []
        self.custom_data: dict[str, str] = {}
        self._temporary: TemporaryDirectory[str] | None = None
        self._storages: list[_Mcap | _Sqlite] = []
        self.files = self._files()
        reasons = []
        for file in self.files:
            try:
                self._storages.append(self._open(file))
            except DAMAGE as error:
                reasons.append(f'{file.name}: {_text(error)}')
        if not self._storages:
            self.close()
            raise InputError(
                f'{path}: cannot be read as a rosbag2 recording ({"; ".join(reasons)})'
            )
        for reason in reasons:
            self._lost(f'nothing of {reason}')
        self.connections = self._merged()

    @property
    def message_count(self) -> int:
        """Return the number of messages."""
        return sum(storage.metadata.message_count for storage in self._storages)

    @property
    def duration(self) -> int:
        """Return the time between the first and the last message, nanoseconds."""
        filled = [s.metadata for s in self._storages if s.metadata.message_count]
        if not filled:
            return 0
        return max(m.end_time for m in filled) - min(m.start_time for m in filled)

    @property
    def seekable(self) -> bool:
        """Say whether a part of the recording is found without reading all of it."""
        return self._temporary is None and all(storage.indexed for storage in self._storages)

    def starts(self, topic: str, messages: int) -> list[int]:
        """Return recording times, ascending, that divide a topic into about so many messages each.

        They are where chunks begin in an mcap file, so that no chunk is read for two parts where
        chunks do not overlap. They depend on the files alone.

        Args:
            topic: The topic that is counted.
            messages: Wanted in each part, 1 or more.

        Returns:
            Nanoseconds; the first part begins before the first of them.
        """
        groups = sorted(group for storage in self._storages for group in storage.groups(topic))
        starts: list[int] = []
        count = 0
        for time_ns, number in groups:
            if count >= messages and (not starts or time_ns > starts[-1]):
                starts.append(time_ns)
                count = 0
            count += number
        return starts

    def newest_before(self, topic: str, time_ns: int) -> tuple[Connection, int, bytes] | None:
        """Return the last message of a topic that was recorded before a time; None without one."""
        found = None
        for storage in self._storages:
            starts = {start for start, count in storage.groups(topic) if count and start < time_ns}
            for start in [*sorted(starts, reverse=True), 0]:
                here = list(self._of(storage, {topic}, start, time_ns))
                if here:
                    newest = max(here, key=lambda message: message[1])
                    found = max(filter(None, [found, newest]), key=lambda message: message[1])
                    break
        return found

    def messages(
        self, topics: Collection[str], start_ns: int = 0, stop_ns: int = LATEST_NS
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield (connection, recording time in ns, CDR bytes) in recording order.

        Args:
            topics: Those that are read.
            start_ns, stop_ns: Recording times; the second is outside.
        """
        for storage in self._storages:
            yield from self._of(storage, topics, start_ns, stop_ns)

    def _of(
        self, storage: _Mcap | _Sqlite, topics: Collection[str], start_ns: int, stop_ns: int
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield the messages of one file."""
        whole = {(c.topic, c.msgtype): c for c in self.connections if c.topic in topics}
        wanted = [c for c in storage.connections if (c.topic, c.msgtype) in whole]
        if wanted:
            for connection, time_ns, data in storage.messages(wanted, start_ns, stop_ns):
                # CDR begins with 0, so a compressed message is recognised by its first bytes.
                if data[:4] == _ZSTD_MAGIC:
                    try:
                        data = unpacked_message(data)
                    except DAMAGE as error:
                        self._lost(f'a message of {connection.topic}: {_text(error)}')
                        continue
                yield whole[connection.topic, connection.msgtype], time_ns, data

    def close(self) -> None:
        """Close the files."""
        for storage in self._storages:
            storage.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _lost(self, what: str) -> None:
        self.losses.append(what)
        _LOG.warning('%s: lost: %s', self.path, what)

    def _files(self) -> list[Path]:
        """Return the files in their order; metadata that do not fit are no reason to stop."""
        path = self.path
        if not path.exists():
            raise InputError(f'{path}: no such bag; a rosbag2 directory, .mcap or .db3 is needed')
        if path.suffix == '.bag':
            raise InputError(f'{path}: a ROS 1 bag; convert it with `rosbags-convert`')
        if not path.is_dir():
            return [path]
        there = [
            file
            for file in path.iterdir()
            if file.suffix in _BARE
            or (file.suffix in _COMPRESSED and Path(file.stem).suffix in _BARE)
        ]
        if not there:
            raise InputError(
                f'{path}: neither metadata.yaml nor an .mcap or .db3 file in it; a rosbag2 '
                'directory is needed'
            )
        there.sort(key=lambda file: [int(n) for n in re.findall(r'\d+', file.name)])
        named = self._named_files()
        for name in named:
            if not (path / name).exists():
                self._lost(f'{name}: the file is in metadata.yaml and not there')
        known = [path / name for name in named if (path / name) in there]
        return known + [file for file in there if file not in known] if known else there

    def _named_files(self) -> list[str]:
        metadata = self.path / 'metadata.yaml'
        if not metadata.exists():
            return []
        try:
            information = read_yaml(metadata)['rosbag2_bagfile_information']
            custom = information.get('custom_data') or {}
            self.custom_data = {str(key): str(value) for key, value in custom.items()}
            return [Path(name).name for name in information['relative_file_paths']]
        except (yaml.YAMLError, OSError, LookupError, TypeError, AttributeError) as error:
            _LOG.warning('%s: not used: %s', metadata, _text(error))
            return []

    def _open(self, file: Path) -> _Mcap | _Sqlite:
        if file.stat().st_size == 0:
            raise ReaderError('the file is empty')
        if file.suffix in _COMPRESSED:
            file = self._decompressed(file)
        unchecked = check_chunks(file)
        if unchecked or file.suffix == '.db3':
            what = f'{unchecked} chunks have' if unchecked else 'a .db3 file has'
            _LOG.warning(
                '%s: %s no checksum: a changed byte in it goes unnoticed; `lunar-stereo '
                'repair` writes a copy that has them',
                file,
                what,
            )
        storage = (_Sqlite if file.suffix == '.db3' else _Mcap)(file, self._lost)
        storage.open()
        return storage

    def _decompressed(self, file: Path) -> Path:
        """Return the unpacked copy of a file; of one that was cut off, what is there."""
        if self._temporary is None:
            self._temporary = TemporaryDirectory()
        target = Path(self._temporary.name, file.stem)
        with zstd.open(file, 'rb') as packed, target.open('wb') as plain:
            try:
                unpack_file(packed.read, plain, file.stat().st_size)
            except (EOFError, zstd.ZstdError) as error:
                self._lost(f'the end of {file.name}: {_text(error)}')
        return target

    def _merged(self) -> list[Connection]:
        merged: dict[tuple[str, str], Connection] = {}
        for connection in (c for storage in self._storages for c in storage.connections):
            key = connection.topic, connection.msgtype
            known = merged.get(key)
            merged[key] = (
                known._replace(msgcount=known.msgcount + connection.msgcount)
                if known
                else connection
            )
        return list(merged.values())


class _Mcap(McapReader):
    """Rosbags' reader, which goes on where a schema is foreign, a chunk bad, the footer gone."""

    def __init__(self, path: Path, lost: Callable[[str], None]) -> None:
        super().__init__(path)
        self._lost = lost
        self._name = path.name
        self._scanned = False

    @property
    def indexed(self) -> bool:
        """Say whether the file has an index of its chunks."""
        return bool(self.chunks) and not self._scanned

    def groups(self, topic: str) -> list[tuple[int, int]]:
        """Return (first recording time, number of the topic's messages) of each chunk."""
        ids = {c.id for c in self.connections if c.topic == topic}
        return [
            (chunk.message_start_time, sum(chunk.channel_count.get(i, 0) for i in ids))
            for chunk in self.chunks
        ]

    def _open(self) -> None:
        profile, start = self._head()
        if profile == 'ros1':
            raise ReaderError(
                'its messages are of ROS 1; convert the .bag file with `rosbags-convert`'
            )
        if profile not in ('', 'ros2'):
            _LOG.warning('%s: its profile is %r, not ros2', self._name, profile)
        if start and profile != 'ros2':  # the base class would refuse it
            self.data_start = start
            self._scan('')
            return
        try:
            super()._open()
        except DAMAGE as error:
            if not self.data_start:  # not even the head is there
                raise
            self._scan(_text(error))

    def _head(self) -> tuple[str, int]:
        """Return the file's profile and where its records begin; 'ros2' and 0 for no mcap."""
        assert self.bio
        head = self.bio.read(17)
        self.bio.seek(0)
        if len(head) < 17 or head[:9] != _MAGIC + b'\x01':
            return 'ros2', 0
        (size,) = struct.unpack_from('<Q', head, 9)
        if size > _LARGEST_HEAD:
            return 'ros2', 0
        record = BytesIO(self.bio.read(17 + size)[17:])
        self.bio.seek(0)
        try:
            return read_string(record), 17 + size
        except DAMAGE:
            return 'ros2', 0

    def _scan(self, reason: str) -> None:
        """Make the index from what is in the file; `reason` says why it has none."""
        self._scanned = True
        self.schemas.clear()
        self.channels.clear()
        self.chunks.clear()
        self.connections.clear()
        assert self.bio
        self.data_end = self.bio.seek(0, 2)
        self.meta_scan()
        statistics = self.statistics
        assert statistics
        count = statistics.message_count
        if not count:
            raise ReaderError(f'no whole message in it; {reason}')
        if reason:
            self._lost(
                f'the index of {self._name} ({reason}): the recorder was stopped or the file cut '
                f'off; {count} whole messages are read, `lunar-stereo repair` writes a whole bag'
            )
        self.connections = [
            c._replace(msgcount=statistics.channel_message_counts.get(c.id, 0))
            for c in self.connections
        ]
        self.metadata = self.metadata._replace(
            start_time=statistics.start_time,
            end_time=statistics.end_time + 1,
            duration=statistics.end_time - statistics.start_time + 1,
            message_count=count,
        )

    def read_index(self) -> None:
        """Read the summary; channels first, because the base class knows ROS 2 schemas only."""
        schemas: dict[int, MessageDefinition] = {}
        names: dict[int, str] = {}
        assert self.bio
        end = self.bio.seek(0, 2)
        for operation, record in _records(self.bio, self.data_end, end):
            if operation in (_SCHEMA, _CHANNEL):
                self._add(operation, record, schemas, names)
        super().read_index()

    def meta_scan(self) -> None:
        """Find chunks, topics and counts by reading the whole file; leave out what is damaged."""
        assert self.bio
        schemas: dict[int, MessageDefinition] = {}
        names: dict[int, str] = {}
        counts: dict[int, int] = defaultdict(int)
        times: list[int] = []
        for offset, operation, size in _positions(self.bio, self.data_start, self.data_end):
            if operation not in (_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK):
                continue
            self.bio.seek(offset + 9)
            record = self.bio.read(size)
            if operation == _CHUNK:
                try:
                    self._add_chunk(offset, record, schemas, names, counts, times)
                except DAMAGE as error:
                    self._lost(f'a chunk at byte {offset} of {self._name}: {_text(error)}')
            elif operation == _MESSAGE:
                channel, _, time_ns = struct.unpack_from('<HIQ', record)
                counts[channel] += 1
                times.append(time_ns)
            else:
                self._add(operation, record, schemas, names)
        self.statistics = Statistics(
            len(times), len(schemas), len(self.connections), 0, 0, len(self.chunks),
            min(times, default=0), max(times, default=0), dict(counts),
        )  # fmt: skip

    def _add_chunk(
        self,
        offset: int,
        record: bytes,
        schemas: dict[int, MessageDefinition],
        names: dict[int, str],
        counts: dict[int, int],
        times: list[int],
    ) -> None:
        start, end, size, checksum = struct.unpack_from('<QQQI', record)
        stream = BytesIO(record[28:])
        compression = read_string(stream)
        (packed_size,) = struct.unpack('<Q', stream.read(8))
        packed = stream.read(packed_size)
        data = decompress(packed, compression, size, checksum)
        found: list[tuple[int, int]] = []
        for operation, inner in _records(BytesIO(data), 0, len(data)):
            if operation == _MESSAGE:
                channel, _, time_ns = struct.unpack_from('<HIQ', inner)
                found.append((channel, time_ns))
            elif operation in (_SCHEMA, _CHANNEL):
                self._add(operation, inner, schemas, names)
        here: dict[int, int] = defaultdict(int)
        for channel, time_ns in found:
            here[channel] += 1
            counts[channel] += 1
            times.append(time_ns)
        self.chunks.append(
            ChunkInfo(start, end, offset, 9 + len(record), {}, 0, compression, packed_size, size,
                      dict(here))
        )  # fmt: skip

    def _add(
        self,
        operation: int,
        record: bytes,
        schemas: dict[int, MessageDefinition],
        names: dict[int, str],
    ) -> None:
        """Take a schema or a channel in."""
        stream = BytesIO(record)
        (number,) = struct.unpack('<H', stream.read(2))
        if operation == _SCHEMA:
            names[number] = read_string(stream)
            encoding = read_string(stream)
            schemas[number] = _definition(encoding, read_bytes(stream).decode(errors='replace'))
            return
        (schema,) = struct.unpack('<H', stream.read(2))
        topic, encoding, metadata = read_string(stream), read_string(stream), read_bytes(stream)
        if all(connection.id != number for connection in self.connections):
            self.connections.append(
                Connection(
                    number,
                    topic,
                    names.get(schema, ''),
                    schemas.get(schema, _definition('', '')),
                    '',
                    0,
                    ConnectionExtRosbag2(encoding, self._qos(metadata, topic)),
                    self,
                )
            )

    def _qos(self, metadata: bytes, topic: str) -> list[Qos]:
        try:
            return get_qos(metadata)
        except DAMAGE as error:
            self._lost(f'the QoS of {topic} in {self._name}: {_text(error)}')
            return []

    def messages(
        self,
        connections: Collection[Connection],
        start: int | None = None,
        stop: int | None = None,
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        """Yield the messages of all chunks that are whole, in time order."""
        start, stop = start or 0, LATEST_NS if stop is None else stop
        if not self.chunks:
            try:
                yield from super().messages(connections, start, stop)
            except DAMAGE as error:
                self._lost(f'the rest of {self._name}: {_text(error)}')
            return
        channels = {connection.id: connection for connection in connections}
        # A chunk may lack channel counts where its index does not name its messages.
        chunks = [
            chunk
            for chunk in self.chunks
            if chunk.message_start_time < stop
            and chunk.message_end_time >= start
            and (not chunk.channel_count or any(chunk.channel_count.get(c, 0) for c in channels))
        ]
        streams = [self._whole(chunk, channels, start, stop) for chunk in chunks]
        for message in heapq.merge(*streams, key=lambda message: message[:2]):
            if message.connection is not None and message.data is not None:
                yield message.connection, message.timestamp, message.data

    def _whole(
        self, chunk: ChunkInfo, channels: dict[int, Connection], start: int, stop: int
    ) -> Iterator[Any]:
        assert self.bio
        try:
            yield from msgsrc(chunk, channels, start, stop, self.bio)
        except DAMAGE as error:
            self._lost(
                f'a chunk at byte {chunk.chunk_start_offset} of {self._name}: {_text(error)}'
            )


class _Metadata:
    """Times (ns) and number of the messages of a file."""

    def __init__(self, start: int | None, end: int | None, count: int) -> None:
        self.start_time = start or 0
        self.end_time = (end or 0) + 1
        self.message_count = count


class _Sqlite:
    """A .db3 file; its write-ahead log, left by a recorder that was killed, is read too."""

    indexed = True  # rosbag2 makes one of the times

    def __init__(self, path: Path, lost: Callable[[str], None]) -> None:
        self.path = path
        self._lost = lost
        self.connections: list[Connection] = []
        self.metadata = _Metadata(None, None, 0)

    def open(self) -> None:
        """Read topics, definitions and counts."""
        self._database = self._opened()
        columns = {row[1] for row in self._database.execute('PRAGMA table_info(topics)')}
        if 'name' not in columns:
            raise ReaderError('the tables of a rosbag2 recording are not in it')
        definitions: dict[str, MessageDefinition] = {}
        if self._database.execute('PRAGMA table_info(message_definitions)').fetchall():
            for name, encoding, text in self._database.execute(
                'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
            ):
                definitions[name] = _definition(encoding, text)
        counts = self._counts()
        qos = 'offered_qos_profiles' if 'offered_qos_profiles' in columns else "''"
        digest = 'type_description_hash' if 'type_description_hash' in columns else "''"
        for number, topic, kind, encoding, profiles, checksum in self._database.execute(
            f'SELECT id, name, type, serialization_format, {qos}, {digest} FROM topics ORDER BY id'
        ):
            if not (isinstance(number, int) and isinstance(topic, str) and isinstance(kind, str)):
                self._lost(f'topic {topic!r} of {self.path.name}: its type is {kind!r}')
                continue
            self.connections.append(
                Connection(
                    number,
                    topic,
                    kind,
                    definitions.get(kind, _definition('', '')),
                    str(checksum or ''),
                    counts.get(number, 0),
                    ConnectionExtRosbag2(str(encoding), self._qos(profiles, topic)),
                    self,
                )
            )

    def _qos(self, profiles: Any, topic: str) -> list[Qos]:
        try:
            return parse_qos(profiles) if profiles else []
        except DAMAGE as error:
            self._lost(f'the QoS of {topic} in {self.path.name}: {_text(error)}')
            return []

    def _opened(self) -> sqlite3.Connection:
        for option in ('mode=ro', 'immutable=1'):  # the second where the folder is not writable
            database = sqlite3.connect(f'file:{self.path}?{option}', uri=True)
            try:
                database.execute('SELECT count(*) FROM sqlite_master')
            except sqlite3.OperationalError:
                database.close()
                if option == 'immutable=1':
                    raise
            else:
                break
        return database

    def _counts(self) -> dict[int, int]:
        try:
            rows = self._database.execute(
                'SELECT topic_id, count(*), min(timestamp), max(timestamp) FROM messages '
                f'WHERE {_WHOLE_ROW} GROUP BY topic_id'
            ).fetchall()
        except sqlite3.DatabaseError:
            return {}  # damaged: the reading itself will say what is lost
        if rows:
            _, counts, starts, ends = zip(*rows, strict=True)
            self.metadata = _Metadata(min(starts), max(ends), sum(counts))
        return {row[0]: row[1] for row in rows}

    def groups(self, topic: str) -> list[tuple[int, int]]:
        """Return (recording time, 1) of each message of a topic, up to the first damage."""
        query = (
            f'SELECT timestamp FROM messages WHERE topic_id = ? AND {_WHOLE_ROW} '
            'ORDER BY timestamp, id'
        )
        times: list[tuple[int, int]] = []
        for number in (c.id for c in self.connections if c.topic == topic):
            try:
                times += [(time_ns, 1) for (time_ns,) in self._database.execute(query, [number])]
            except sqlite3.DatabaseError as error:
                self._lost(f'times of {topic} in {self.path.name}: {_text(error)}')
        return times

    def messages(
        self, connections: Collection[Connection], start: int = 0, stop: int = LATEST_NS
    ) -> Iterator[tuple[Any, int, bytes]]:
        """Yield the messages in time order, up to the first damage."""
        by_id = {connection.id: connection for connection in connections}
        marks = ','.join('?' * len(by_id))
        query = (
            f'SELECT topic_id, {_WHOLE_ROW}, timestamp, CAST(data AS BLOB) FROM messages '
            # A time that is no number is later than any, and is reported below.
            f'WHERE topic_id IN ({marks}) AND (timestamp >= {start} AND timestamp < {stop} '
            f"OR typeof(timestamp) != 'integer') "
            'ORDER BY timestamp, id'
        )
        try:
            for number, whole, time_ns, data in self._database.execute(query, list(by_id)):
                if not whole:
                    self._lost(f'a message of {by_id[number].topic}: no bytes or no time')
                    continue
                yield by_id[number], time_ns, data
        except sqlite3.DatabaseError as error:
            self._lost(f'the rest of {self.path.name}: {_text(error)}')

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _positions(stream: Any, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, operation, length) of the mcap records that lie wholly before `end`."""
    position = start
    while position + 9 <= end:
        stream.seek(position)
        operation, size = struct.unpack('<BQ', stream.read(9))
        if position + 9 + size > end:
            return
        yield position, operation, size
        position += 9 + size


def _records(stream: Any, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (operation, content) of the mcap records that lie wholly before `end`."""
    for offset, operation, size in _positions(stream, start, end):
        stream.seek(offset + 9)
        yield operation, stream.read(size)


def _definition(encoding: str, text: Any) -> MessageDefinition:
    kind = _FORMATS.get(encoding, MessageDefinitionFormat.NONE)
    return MessageDefinition(kind, text if isinstance(text, str) else '')


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
