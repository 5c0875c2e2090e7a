"""Files from outside that are damaged or made to harm get one line, soon, and little memory."""

import json
import os
import struct

import numpy as np
import pytest

from lunar_stereo_recon.bags.mcap_limits import check_chunks
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError, ReconError
from lunar_stereo_recon.files.atomic import atomic_file, write_json, write_text
from lunar_stereo_recon.files.calibrations import load_calibration
from lunar_stereo_recon.files.manifests import load_manifest
from lunar_stereo_recon.files.results import write_png
from lunar_stereo_recon.files.rigs import read_rig_frames
from lunar_stereo_recon.files.yaml_files import read_yaml
from lunar_stereo_recon.limits import MAX_YAML_BYTES

BOMB = 'a0: &a0 [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]\n' for i in range(1, 9)
)
HOSTILE_YAML = {
    'aliases': BOMB,
    'itself': '&a [*a]',
    'brackets': '[' * 3000,
    'closed brackets': '[' * 3000 + ']' * 3000,
    'entries': '[' + '1,' * 30_000 + ']',
    'no date': 'fx: 2001-99-99',
    'digits': 'fx: ' + '9' * 400 + '\nfy: 1\ncx: 1\ncy: 1\nbaseline: 1',
    'many digits': 'fx: ' + '9' * 5000,
    'size': '#' * (MAX_YAML_BYTES + 1),
    'infinite': 'fx: .inf\nfy: 1\ncx: 1\ncy: 1\nbaseline: 1',
    'python': '!!python/object/apply:os.system ["true"]',
    'not utf-8': b'\xff\xfe\x00',
    'empty': '',
}


@pytest.mark.parametrize('read', [lambda path: load_calibration([path], 96, 64), read_rig_frames])
@pytest.mark.parametrize('name', HOSTILE_YAML)
def test_hostile_yaml_is_refused(name, read, tmp_path):
    content = HOSTILE_YAML[name]
    path = tmp_path / 'file.yaml'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ReconError, match='file.yaml'):
        read(path)


def test_plain_yaml_is_read(tmp_path):
    path = tmp_path / 'file.yaml'
    path.write_text('a: &a {b: [1, 2.5, x]}\nc: *a\n')
    assert read_yaml(path) == dict.fromkeys('ac', {'b': [1, 2.5, 'x']})


@pytest.mark.parametrize(
    'text',
    [
        '[' * 100_000,
        '{"pairs": [{"id": 1, "left": "l", "right": "r", "fx": 90, "fy": 90, "cx": 1, "cy": 1, '
        '"baseline_m": 0.2, "width": Infinity, "height": 64}]}',
        '{"pairs": ' + '9' * 5000 + '}',
        '{"pairs": [{"id": 1, "fx": ' + '9' * 400 + '}]}',
    ],
)
def test_hostile_manifest_is_refused(text, tmp_path):
    (tmp_path / 'manifest.json').write_text(text)
    with pytest.raises(ReconError, match='manifest.json'):
        load_manifest(tmp_path / 'manifest.json')


def test_a_chunk_that_unpacks_to_gigabytes_is_refused_unread(tmp_path):
    from backports import zstd

    packed = zstd.compress(bytes(8_000_000))
    body = struct.pack('<QQQII', 0, 0, 100, 0, 4) + b'zstd' + struct.pack('<Q', len(packed))
    record = struct.pack('<BQ', 6, len(body) + len(packed)) + body + packed
    path = tmp_path / 'bomb.mcap'
    path.write_bytes(b'\x89MCAP0\r\n' + record + b'\x89MCAP0\r\n')
    with pytest.raises(InputError, match='unpacks to 8000000'):
        check_chunks(path)
    with pytest.raises(InputError, match='unpacks to 8000000'):
        StereoBagReader(path)


def test_bags_that_are_written_here_are_within_the_limits(make_bag):
    with StereoBagReader(make_bag()) as bag:
        assert len(list(bag.frames())) == 3


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'cloud.ply'
    path.write_text('old')
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b'half of')
        raise RuntimeError
    assert path.read_text() == 'old'
    with atomic_file(path) as file:
        file.write(b'new')
    assert path.read_bytes() == b'new'
    assert os.listdir(tmp_path) == ['cloud.ply']


def test_a_link_is_replaced_and_not_followed(tmp_path):
    target = tmp_path / 'precious'
    target.write_text('precious')
    link = tmp_path / 'cloud.ply'
    link.symlink_to(target)
    with atomic_file(link) as file:
        file.write(b'cloud')
    assert target.read_text() == 'precious'
    assert not link.is_symlink() and link.read_bytes() == b'cloud'


def test_pictures_arrays_and_texts_are_written_so_too(tmp_path):
    for write in (
        lambda path: write_png(path, np.zeros((4, 6), np.uint8)),
        lambda path: write_json(path, {'a': 1}),
        lambda path: write_text(path, 'text'),
    ):
        target, link = tmp_path / 'precious', tmp_path / 'file.png'
        target.write_text('precious')
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write(link)
        assert target.read_text() == 'precious' and not link.is_symlink()
    with pytest.raises(TypeError):
        write_json(tmp_path / 'file.png', {1: object()})
    assert (tmp_path / 'file.png').read_text() == 'text'
    with pytest.raises(OSError):
        write_text(tmp_path / 'no' / 'folder', '')
    assert sorted(os.listdir(tmp_path)) == ['file.png', 'precious']


@pytest.mark.parametrize('name', ['fx', 'baseline_m', 'width'])
def test_manifest_values_are_held_to_their_ranges(name, tmp_path):
    rig = StereoCalibration(90.0, 90.0, 47.5, 31.5, 47.5, 0.2, 96, 64)
    entry = {'left': 'l.png', 'right': 'r.png', **vars(rig), name: 10**9}
    (tmp_path / 'm.json').write_text(json.dumps({'pairs': [entry]}, default=float))
    with pytest.raises(ReconError, match=f'calibration {name} is 1e'):
        load_manifest(tmp_path / 'm.json')
    assert np.isfinite(rig.intrinsics).all()
