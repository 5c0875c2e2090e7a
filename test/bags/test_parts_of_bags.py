"""Parts of a bag by recording time: together they have each frame once, as the whole bag has."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.storage import Recording
from lunar_stereo_recon.bags.writer import BagWriter, make_message
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.result_messages import camera_info_message, image_message

START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 500_000_000
CALIBRATION = StereoCalibration(300.0, 300.0, 159.5, 119.5, 159.5, 0.2, 320, 240)
FRAMES = 20
LEFT = '/rig/left/image_rect'


def messages(frames, latched, right_late_ns, lost_right):
    """Yield (topic, message, recording time) of noise, which fills a chunk with 6 frames."""
    random = np.random.default_rng(0)
    for index in range(frames):
        stamp = START_NS + index * PERIOD_NS
        for side in ('left', 'right'):
            recorded = stamp + (right_late_ns if side == 'right' else 0)
            if index == 0 or not latched:
                info = camera_info_message(
                    make_message, CALIBRATION, stamp, 'camera', right=side == 'right'
                )
                yield f'/rig/{side}/camera_info', info, recorded
            if side == 'right' and index in lost_right:
                continue
            view = random.integers(0, 256, (240, 320), np.uint8)
            image = image_message(make_message, view, 'mono8', stamp, 'camera')
            yield f'/rig/{side}/image_rect', image, recorded


@pytest.fixture(params=['mcap', 'sqlite3'])
def noise_bag(tmp_path, request):
    def make(frames=FRAMES, latched=False, right_late_ns=0, lost_right=()):
        path = tmp_path / 'noise'
        all_messages = sorted(
            messages(frames, latched, right_late_ns, lost_right), key=lambda entry: entry[2]
        )
        if request.param == 'mcap':
            with BagWriter(path) as writer:
                for entry in all_messages:
                    writer.write(*entry)
            return path
        types = get_typestore(Stores.ROS2_JAZZY)
        with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as plain:
            connections = {}
            for topic, message, recorded in all_messages:
                kind = message.__msgtype__
                if topic not in connections:
                    connections[topic] = plain.add_connection(topic, kind, typestore=types)
                plain.write(connections[topic], recorded, types.serialize_cdr(message, kind))
        return path

    return make


def stamps(path, *window):
    with StereoBagReader(path) as reader:
        return [frame.stamp_ns for frame in reader.frames(*window)], reader.images


def parts_of(path, frames):
    with StereoBagReader(path) as reader:
        starts = reader.frame_starts(frames)
    edges = [0, *starts, 2**63 - 1]
    return list(zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize('late_ns', [0, 700_000_000])
def test_parts_have_each_frame_once_and_in_order(noise_bag, late_ns):
    """The right image may be recorded in the next part."""
    bag = noise_bag(right_late_ns=late_ns)
    parts = parts_of(bag, 5)
    assert len(parts) >= 3
    found = [stamp for part in parts for stamp in stamps(bag, *part)[0]]
    assert found == stamps(bag)[0] and len(found) == FRAMES


def test_parts_begin_where_they_did_before(noise_bag):
    bag = noise_bag()
    assert parts_of(bag, 5) == parts_of(bag, 5) != parts_of(bag, 10)
    assert parts_of(bag, 1000) == [(0, 2**63 - 1)]


def test_infos_that_were_recorded_once_serve_every_part(noise_bag):
    bag = noise_bag(latched=True)
    for part in parts_of(bag, 5):
        with StereoBagReader(bag) as reader:
            for frame in reader.frames(*part):
                assert frame.pair().calibration.baseline_m == pytest.approx(0.2)


def test_images_of_parts_add_up(noise_bag):
    bag = noise_bag(lost_right=(0, 7))
    found = [stamps(bag, *part) for part in parts_of(bag, 5)]
    assert sum(len(frames) for frames, _ in found) == FRAMES - 2
    assert sum(images['left'] for _, images in found) == FRAMES
    assert sum(images['right'] for _, images in found) == FRAMES - 2


def test_newest_message_before_a_time(noise_bag):
    bag = noise_bag(latched=True)
    recording = Recording(bag)
    for time_ns, expected in ((START_NS, None), (START_NS + 1, 0), (START_NS + 9 * PERIOD_NS, 8)):
        found = recording.newest_before(LEFT, time_ns)
        wanted = None if expected is None else START_NS + expected * PERIOD_NS
        assert (found[1] if found else None) == wanted
    assert recording.newest_before('/rig/left/camera_info', 2**62)[1] == START_NS
    assert recording.newest_before('/nowhere', 2**62) is None
    recording.close()


def test_a_bag_without_an_index_is_one_part(tmp_path, noise_bag):
    bag = noise_bag()
    (file,) = [path for path in bag.iterdir() if path.suffix in ('.mcap', '.db3')]
    if file.suffix == '.db3':
        with sqlite3.connect(file) as database:
            assert database.execute('SELECT count(*) FROM messages').fetchone() == (4 * FRAMES,)
        return
    cut = tmp_path / 'cut.mcap'
    cut.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    assert parts_of(cut, 5) == [(0, 2**63 - 1)]
    assert 5 < len(stamps(cut)[0]) < FRAMES
