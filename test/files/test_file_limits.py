"""Arrays, JSON and bags from outside are held to limits before anything large is read."""

import io
import json
import logging
import sqlite3
import zipfile

import numpy as np
import pytest

from lunar_stereo_recon.bags.mcap_limits import check_chunks, unpack_file, unpacked_message
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import load_arrays, mapped_array
from lunar_stereo_recon.files.bounded import read_bounded, read_json


def npy(values, shape=None, descr=None):
    """Return a .npy file whose header may say another shape or type."""
    values = np.asarray(values)
    head = {
        'descr': descr or np.lib.format.dtype_to_descr(values.dtype),
        'fortran_order': False,
        'shape': values.shape if shape is None else shape,
    }
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue() + values.tobytes()


def write_npz(path, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(f'{name}.npy', content)
    return path


@pytest.mark.parametrize(
    'values',
    [
        np.arange(6, dtype='>u2').reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float64(2.5),
        np.array('text'),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
    ],
)
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(values, save, tmp_path):
    path = tmp_path / 'a.npz'
    save(path, values=values, other=1)
    found = load_arrays(path, 'file', ('values',))
    assert list(found) == ['values']
    assert found['values'].dtype == np.asarray(values).dtype
    np.testing.assert_array_equal(found['values'], values)
    assert found['values'].flags.writeable
    assert set(load_arrays(path, 'file')) == {'values', 'other'}
    assert set(load_arrays(path, 'file', (), ('other', 'absent'))) == {'other'}


@pytest.mark.parametrize(
    'content, message',
    [
        (npy(np.zeros(4), shape=(2**40,)), 'its header says 8796093022208'),
        (npy(np.zeros(4), shape=(-4,)), 'shape'),
        (npy(np.zeros(4), shape=(3,)), 'its header says 24'),
        (npy(np.zeros(4), descr='|O'), 'object'),
        (npy(np.zeros(4), descr=[('a', '<f8')]), 'plain numbers'),
        (npy(np.zeros(4))[:20], 'cannot be read'),
        (b'\x93NUMPY\x09\x00' + bytes(80), 'version'),
        (b'\x93NUMPY\x01\x00\x10\x27' + b'-' * 10_000, 'cannot be read'),
        (npy(np.zeros(4), descr=',f4'), 'invalid syntax'),
        (b'', 'cannot be read'),
        (b'PK', 'cannot be read'),
    ],
)
def test_headers_that_lie_are_refused(content, message, tmp_path):
    path = write_npz(tmp_path / 'a.npz', a=content)
    with pytest.raises(InputError, match=message):
        load_arrays(path, 'file')
    (tmp_path / 'a.npy').write_bytes(content)
    if 'says 24' not in message:  # a map may be shorter than its file
        with pytest.raises(InputError, match='a.npy'):
            mapped_array(tmp_path / 'a.npy', 'file')


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path):
    path = write_npz(tmp_path / 'a.npz', a=npy(np.zeros(2**24)), b=npy(np.zeros(4)))
    with pytest.raises(InputError, match='unpack to 134218.*; at most'):
        load_arrays(path, 'file')
    assert load_arrays(path, 'file', ('b',))['b'].shape == (4,)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_of_an_array_is_noticed(compression, tmp_path):
    path = write_npz(tmp_path / 'a.npz', compression, a=npy(np.arange(999)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match='cannot be read'):
        load_arrays(path, 'file')


def test_an_encrypted_archive_and_no_archive_are_refused(tmp_path):
    path = write_npz(tmp_path / 'a.npz', a=npy(np.zeros(4)))
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b'PK\x01\x02') + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match='encrypted'):
        load_arrays(path, 'file')
    path.write_bytes(npy(np.zeros(4)))
    with pytest.raises(InputError, match='.npz file'):
        load_arrays(path, 'file')
    with pytest.raises(InputError, match='No such file'):
        load_arrays(tmp_path / 'gone.npz', 'file')
    write_npz(tmp_path / 'zip.npy', a=b'')
    with pytest.raises(InputError, match='readable array'):
        mapped_array(tmp_path / 'zip.npy', 'file')


def test_no_more_bytes_are_read_than_allowed(tmp_path):
    (tmp_path / 'f').write_bytes(bytes(10))
    assert read_bounded(tmp_path / 'f', 10) == bytes(10)
    with pytest.raises(InputError, match='more than 9 bytes'):
        read_bounded(tmp_path / 'f', 9)
    (tmp_path / 'f').write_text('[' * 100_000)
    with pytest.raises(ValueError, match='brackets'):
        read_json(tmp_path / 'f')
    (tmp_path / 'f').write_text(json.dumps({'a': 1}))
    assert read_json(tmp_path / 'f') == {'a': 1}


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
