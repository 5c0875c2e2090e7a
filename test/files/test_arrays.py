"""Arrays and JSON from outside are held to limits before anything large is read."""

import io
import json
import zipfile

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import check_rendered_pair, load_arrays, mapped_array
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


@pytest.mark.parametrize(
    ('name', 'array', 'reason'),
    [
        ('left', np.zeros((4, 5, 3), np.uint8), r'left has shape \(4, 5, 3\)'),
        ('right', np.zeros((4, 6), np.uint8), r'right has shape \(4, 6\)'),
        ('disparity', np.full((4, 5), 'a'), 'disparity .* type <U1; real numbers'),
        ('intrinsics', np.array(2.0), r'intrinsics has shape \(\)'),
        ('baseline_m', np.zeros(3), r'baseline_m has shape \(3,\)'),
    ],
)
def test_arrays_of_a_pair_that_do_not_belong_together_are_refused(name, array, reason, tmp_path):
    view = np.zeros((4, 5), np.uint8)
    arrays = {'left': view, 'right': view, 'disparity': view.astype(np.float32)}
    arrays |= {'intrinsics': np.eye(3), 'baseline_m': np.array(0.2)}
    check_rendered_pair(arrays, tmp_path, ('disparity', 'rock'))
    with pytest.raises(InputError, match=reason):
        check_rendered_pair(arrays | {name: array}, tmp_path, ('disparity', 'rock'))
