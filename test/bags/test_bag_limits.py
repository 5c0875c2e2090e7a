"""Bags from outside are held to limits, and what is damaged in them is named."""

import io
import logging
import sqlite3

import numpy as np
import pytest

from lunar_stereo_recon.bags.mcap_limits import check_chunks, unpack_file, unpacked_message
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter
from lunar_stereo_recon.errors import InputError


def test_messages_and_files_that_unpack_to_too_much_are_refused():
    from backports import zstd

    assert unpacked_message(zstd.compress(bytes(9000))) == bytes(9000)
    with pytest.raises(ValueError, match='unpack to more than'):
        unpacked_message(zstd.compress(bytes(2**23)))
    with pytest.raises(ValueError, match='cut off'):
        unpacked_message(zstd.compress(np.arange(999).tobytes())[:-9])
    with pytest.raises(InputError, match='times their size'):
        unpack_file(io.BytesIO(bytes(2**28 + 1)).read, io.BytesIO(), 10)


def without_checksums(bag):
    """Set the checksum of each chunk to 0, which says that there is none."""
    (path,) = bag.glob('*.mcap')
    content = bytearray(path.read_bytes())
    at = 8
    while at < len(content) - 8:
        size = int.from_bytes(content[at + 1 : at + 9], 'little')
        if content[at] == 6:
            content[at + 33 : at + 37] = bytes(4)
        at += 9 + size
    path.write_bytes(content)
    return path


def test_a_bag_without_checksums_says_so(make_bag, caplog):
    bag = make_bag()
    with caplog.at_level(logging.WARNING), StereoBagReader(bag):
        pass
    assert 'checksum' not in caplog.text
    path = without_checksums(bag)
    assert check_chunks(path) == 1
    with caplog.at_level(logging.WARNING), StereoBagReader(bag) as reader:
        assert len(list(reader.frames())) == 3
    assert 'no checksum' in caplog.text


def test_a_calibration_that_changes_is_said(make_bag, tmp_path, caplog):
    changed = tmp_path / 'changed'
    with StereoBagReader(make_bag()) as reader, BagWriter(changed) as writer:
        count = 0
        for connection, stamp, raw in reader.raw_messages():
            if connection.topic == reader.topics.right_info:
                count += 1
                message = reader.deserialize(raw, connection.msgtype)
                message.p = message.p * (1 + (count == 2))
                writer.write(connection.topic, message, stamp)
            else:
                writer.write_raw(connection.topic, connection.msgtype, raw, stamp, connection)
    with caplog.at_level(logging.WARNING), StereoBagReader(changed) as reader:
        list(reader.frames())
    assert caplog.text.count('is the file damaged?') == 1
    assert 'p from' in caplog.text


@pytest.mark.parametrize(
    'damage, said',
    [
        ("UPDATE topics SET type = x'00' WHERE name LIKE '%left/image%'", 'its type is b'),
        ("UPDATE topics SET offered_qos_profiles = '- 1' WHERE id = 1", 'the QoS of'),
        ('UPDATE messages SET data = 7 WHERE id = 3', 'no bytes or no time'),
        ("UPDATE messages SET timestamp = 'x' WHERE id = 3", 'no bytes or no time'),
        ("UPDATE messages SET timestamp = 'x'", 'empty'),
        ("UPDATE messages SET topic_id = 'x' WHERE id = 3", ''),
        ("UPDATE messages SET data = CAST(x'ff00' AS TEXT) WHERE id = 3", 'no bytes or no time'),
    ],
)
def test_a_db3_with_wrong_types_is_read_in_part_or_refused(damage, said, make_bag, caplog):
    path = next(iter(to_db3(make_bag()).glob('*.db3')))
    with sqlite3.connect(path) as database:
        database.execute(damage)
    database.close()
    lost, frames = '', None
    with caplog.at_level(logging.WARNING):
        try:
            with StereoBagReader(path) as reader:
                frames = len(list(reader.frames()))
                lost = '; '.join(reader.losses)
        except InputError as error:
            lost = str(error) + caplog.text
    assert 'no checksum' in caplog.text
    assert said in lost or 'empty' in lost
    assert frames is None or frames < 3 or 'QoS' in said


def to_db3(bag):
    """Return a copy of a bag in SQLite's form."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import get_typestore, Stores

    types = get_typestore(Stores.ROS2_JAZZY)
    target = bag.with_name('db3')
    with (
        StereoBagReader(bag) as reader,
        Writer(
            target, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.SQLITE3
        ) as writer,
    ):
        made = {
            c.topic: writer.add_connection(c.topic, c.msgtype, typestore=types)
            for c in reader.connections
        }
        for connection, stamp, raw in reader.raw_messages():
            writer.write(made[connection.topic], stamp, raw)
    return target
