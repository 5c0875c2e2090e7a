"""Recordings and calibrations as drivers, simulators and tools in the field leave them.

Each case is the kind of a public report, named at its side; data and assertions are our own.
"""

from __future__ import annotations

import json
from pathlib import Path
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
import yaml

from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter, make_message
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.doubts import baseline_doubt
from lunar_stereo_recon.errors import CalibrationError, InputError
from lunar_stereo_recon.files.calibrations import CameraInfo
from lunar_stereo_recon.messages import (
    calibration_from_camera_infos,
    decode_image,
    raw_camera_of_info,
    StereoTopics,
)
from lunar_stereo_recon.result_messages import camera_info_message, image_message
from lunar_stereo_recon.ros.camera_presets import read_preset

RIG = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, 96, 64)
TYPES = get_typestore(Stores.ROS2_JAZZY)
PRESETS = Path(__file__).resolve().parents[2] / 'config' / 'presets'
MAGIC = b'\x89MCAP0\r\n'
HEADER, FOOTER, MESSAGE_INDEX, CHUNK_INDEX, SUMMARY_OFFSET, DATA_END = 1, 2, 7, 8, 0x0E, 0x0F
LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    QosTime(0, 0),
    QosTime(0, 0),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)
VIEW = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)


def write(path, images, infos, frames=1, start=0):
    """Write frames of images and infos: topics, the right ones every second."""
    with BagWriter(path) as writer:
        for index in range(start, start + frames):
            stamp = 10**18 + index * 10**8
            for topic in images:
                message = image_message(make_message, VIEW, 'mono8', stamp, 'optical')
                writer.write(topic, message, stamp)
            for number, (topic, fx) in enumerate(infos):
                rig = StereoCalibration(fx, fx, 47.5, 31.5, 47.5, 0.2, 96, 64)
                right = bool(number % 2)
                info = camera_info_message(make_message, rig, stamp, 'optical', right=right)
                writer.write(topic, info, stamp)
    return path


@pytest.mark.parametrize(
    ('images', 'infos', 'wanted'),
    [
        # Two rigs in the root namespace (Isaac ROS, Hawk): each has its own infos.
        (
            ['/hawk_1_left_rgb_image', '/hawk_1_right_rgb_image'],
            [
                ('/hawk_0_left_rgb_camera_info', 50.0),
                ('/hawk_0_right_rgb_camera_info', 50.0),
                ('/hawk_1_left_rgb_camera_info', 60.0),
                ('/hawk_1_right_rgb_camera_info', 60.0),
            ],
            60.0,
        ),
        # stereolabs/zed-ros-wrapper 343, 427: an info for raw and one for rectified images.
        (
            ['/zed/left/image_raw_color', '/zed/right/image_raw_color'],
            [
                ('/zed/left/camera_info', 50.0),
                ('/zed/right/camera_info', 50.0),
                ('/zed/left/camera_info_raw', 60.0),
                ('/zed/right/camera_info_raw', 60.0),
            ],
            60.0,
        ),
        (
            ['/zed/left/image_rect_color', '/zed/right/image_rect_color'],
            [
                ('/zed/left/camera_info_raw', 50.0),
                ('/zed/right/camera_info_raw', 50.0),
                ('/zed/left/camera_info', 60.0),
                ('/zed/right/camera_info', 60.0),
            ],
            60.0,
        ),
        # ZED since version 5.
        (
            ['/zed/zed_node/left/color/rect/image', '/zed/zed_node/right/color/rect/image'],
            [
                ('/zed/zed_node/left/color/rect/camera_info', 60.0),
                ('/zed/zed_node/right/color/rect/camera_info', 60.0),
                ('/zed/zed_node/left/color/raw/camera_info', 50.0),
                ('/zed/zed_node/right/color/raw/camera_info', 50.0),
            ],
            60.0,
        ),
        # microsoft/AirSim 4634: the info is below the image.
        (
            ['/airsim_node/rover/front_left/Scene', '/airsim_node/rover/front_right/Scene'],
            [
                ('/airsim_node/rover/front_left/Scene/camera_info', 60.0),
                ('/airsim_node/rover/front_right/Scene/camera_info', 60.0),
                ('/airsim_node/rover/back_left/Scene/camera_info', 50.0),
                ('/airsim_node/rover/back_right/Scene/camera_info', 50.0),
            ],
            60.0,
        ),
        # NVIDIA-ISAAC-ROS/isaac_ros_dnn_stereo_depth 29.
        (
            ['/left/image_rect', '/right/image_rect'],
            [('/left/camera_info_rect', 60.0), ('/right/camera_info_rect', 60.0)],
            60.0,
        ),
        # carla-simulator/ros-bridge 205.
        (
            ['/carla/ego/rgb_left/image', '/carla/ego/rgb_right/image'],
            [
                ('/carla/ego/rgb_left/camera_info', 60.0),
                ('/carla/ego/rgb_right/camera_info', 60.0),
            ],
            60.0,
        ),
        # RealSense T265.
        (
            ['/camera/fisheye1/image_raw', '/camera/fisheye2/image_raw'],
            [('/camera/fisheye1/camera_info', 60.0), ('/camera/fisheye2/camera_info', 60.0)],
            60.0,
        ),
        (
            ['/NavCamL/image', '/NavCamR/image'],
            [('/NavCamL/camera_info', 60.0), ('/NavCamR/camera_info', 60.0)],
            60.0,
        ),
    ],
)
def test_each_image_has_its_own_camera_info(tmp_path, images, infos, wanted):
    bag = write(tmp_path / 'drive', images, infos)
    with StereoBagReader(bag) as reader:
        assert [reader.topics.left_image, reader.topics.right_image] == images
        calibration = next(reader.frames()).pair().calibration
    assert calibration.fx == wanted
    assert calibration.baseline_m == pytest.approx(0.2)


@pytest.mark.parametrize('name', ['realsense', 'oak', 'zed', 'zed_5_0', 'isaac_sim'])
def test_presets_name_what_is_found_in_recordings(tmp_path, name):
    preset = read_preset(PRESETS / f'{name}.yaml')
    topics = dict(preset.remappings(rectify=False))
    images = [topics[f'{side}/image_rect'] for side in ('left', 'right')]
    infos = [(topics[f'{side}/camera_info'], 60.0) for side in ('left', 'right')]
    with StereoBagReader(write(tmp_path / 'drive', images, infos)) as reader:
        assert [reader.topics.left_image, reader.topics.right_image] == images
        assert reader.topics.left_info == infos[0][0]
        assert next(reader.frames()).looks_raw is False


def plain_bag(path, frames=3):
    infos = [('/left/camera_info', 60.0), ('/right/camera_info', 60.0)]
    return write(path, ['/left/image_rect', '/right/image_rect'], infos, frames)


def test_metadata_without_a_storage_identifier(tmp_path):
    """ros2/rosbag2 2175: what `ros2 bag reindex` once wrote."""
    bag = plain_bag(tmp_path / 'drive')
    file = bag / 'metadata.yaml'
    document = yaml.safe_load(file.read_text())
    document['rosbag2_bagfile_information']['storage_identifier'] = ''
    file.write_text(yaml.safe_dump(document))
    with StereoBagReader(bag) as reader:
        assert len(list(reader.frames())) == 3


def test_files_named_with_their_folder(tmp_path):
    """Recordings of Dashing and Eloquent."""
    bag = plain_bag(tmp_path / 'drive')
    file = bag / 'metadata.yaml'
    document = yaml.safe_load(file.read_text())
    information = document['rosbag2_bagfile_information']
    information['relative_file_paths'] = ['drive/drive.mcap']
    file.write_text(yaml.safe_dump(document))
    with StereoBagReader(bag) as reader:
        assert len(list(reader.frames())) == 3


def test_split_recording_is_read_in_the_order_of_its_numbers(tmp_path):
    bag = tmp_path / 'drive'
    bag.mkdir()
    infos = [('/left/camera_info', 60.0), ('/right/camera_info', 60.0)]
    for number in range(12):
        images = ['/left/image_rect', '/right/image_rect']
        part = write(tmp_path / f'part{number}', images, infos, 1, number)
        shutil.copy(next(part.glob('*.mcap')), bag / f'drive_{number}.mcap')
    with StereoBagReader(bag) as reader:
        stamps = [frame.stamp_ns for frame in reader.frames()]
    assert len(stamps) == 12 and stamps == sorted(stamps)


def records_of(content):
    """Yield (operation, content) of an mcap file's records."""
    position = len(MAGIC)
    while position < len(content) - len(MAGIC):
        operation, size = struct.unpack_from('<BQ', content, position)
        yield operation, content[position + 9 : position + 9 + size]
        position += 9 + size


def rewritten(content, change):
    """Return an mcap file's content with `change` made to its records; no checksum over them.

    `change(operation, record)` returns both, and may not change the length in the data section.
    """
    parts = [MAGIC]
    start = 0
    for operation, record in records_of(content):
        if operation == DATA_END:
            record = struct.pack('<I', 0)
        elif operation == FOOTER:
            record = struct.pack('<QQI', start, 0, 0)
        elif operation == SUMMARY_OFFSET:
            continue
        parts.append(mcap_record(*change(operation, record)))
        if operation == DATA_END:
            start = sum(map(len, parts))
    return b''.join([*parts, MAGIC])


def test_chunks_without_message_indexes(tmp_path):
    """facontidavide/cloudini 15: a writer that leaves the message indexes out."""

    def unindexed(operation, record):
        if operation == MESSAGE_INDEX:
            return 0x88, record
        if operation == CHUNK_INDEX:
            (size,) = struct.unpack_from('<I', record, 32)
            rest = record[36 + size + 8 :]
            return operation, record[:32] + struct.pack('<IQ', 0, 0) + rest
        return operation, record

    bag = plain_bag(tmp_path / 'drive')
    content = next(bag.glob('*.mcap')).read_bytes()
    file = tmp_path / 'other.mcap'
    file.write_bytes(rewritten(content, unindexed))
    with StereoBagReader(file) as reader:
        assert len(list(reader.frames())) == 3


@pytest.mark.parametrize('profile', ['', 'custom'])
def test_other_profiles_hold_ros_2_messages_too(tmp_path, profile):
    """Writers of other makes leave the profile empty."""

    def renamed(operation, record):
        if operation != HEADER:
            return operation, record
        return operation, text(profile) + text('x' * (len(record) - 8 - len(profile)))

    bag = plain_bag(tmp_path / 'drive')
    content = next(bag.glob('*.mcap')).read_bytes()
    file = tmp_path / 'other.mcap'
    file.write_bytes(rewritten(content, renamed))
    with StereoBagReader(file) as reader:
        assert len(list(reader.frames())) == 3
        assert reader.losses == []


def mcap_record(operation, content):
    return struct.pack('<BQ', operation, len(content)) + content


def text(value):
    return struct.pack('<I', len(value)) + value.encode()


def test_messages_of_ros_1_in_an_mcap_file_are_named(tmp_path):
    """foxglove/mcap 389: `mcap convert` of a .bag file keeps the serialization of ROS 1."""
    definition = text('uint32 seq')
    schema = struct.pack('<H', 1) + text('sensor_msgs/Image') + text('ros1msg') + definition
    channel = (
        struct.pack('<HH', 1, 1) + text('/left/image_raw') + text('ros1') + struct.pack('<I', 0)
    )
    message = struct.pack('<HIQQ', 1, 0, 1, 1) + b'\0' * 16
    records = [
        mcap_record(1, text('ros1') + text('mcap go')),
        mcap_record(3, schema),
        mcap_record(4, channel),
        mcap_record(5, message),
        mcap_record(0x0F, struct.pack('<I', 0)),
        mcap_record(2, struct.pack('<QQI', 0, 0, zlib.crc32(b'') & 0)),
    ]
    file = tmp_path / 'old.mcap'
    file.write_bytes(MAGIC + b''.join(records) + MAGIC)
    with pytest.raises(InputError, match='messages are of ROS 1.*rosbags-convert'):
        StereoBagReader(file)


def test_ros_1_bag_is_named(tmp_path):
    (tmp_path / 'old.bag').write_bytes(b'#ROSBAG V2.0\n')
    with pytest.raises(InputError, match='rosbags-convert'):
        StereoBagReader(tmp_path / 'old.bag')


def test_stream_without_frames_of_one_camera(tmp_path):
    """A topic that is in the bag with no message on it."""
    bag = tmp_path / 'drive'
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic in ('/left/image_rect', '/right/image_rect'):
            writer.add_connection(topic, 'sensor_msgs/msg/Image', typestore=TYPES)
        kind = 'sensor_msgs/msg/CameraInfo'
        for side in ('left', 'right'):
            info = camera_info_message(make_message, RIG, 1, 'left', right=side == 'right')
            connection = writer.add_connection(f'/{side}/camera_info', kind, typestore=TYPES)
            writer.write(connection, 1, TYPES.serialize_cdr(info, kind))
    with StereoBagReader(bag) as reader:
        assert reader.frame_count == 0
        assert list(reader.frames()) == []


def info(p, **others):
    return CameraInfo(96, 64, tuple(p), **others)


def p_of(tx=0.0, fx=60.0, skew=0.0, ty=0.0):
    return (fx, skew, 47.5, tx, 0.0, fx, 31.5, ty, 0.0, 0.0, 1.0, 0.0)


REFUSED = {
    # introlab/rtabmap_ros 1142, 517, luxonis/depthai-ros 408, 597: the sides are reversed.
    'positive P[3]': (p_of(), p_of(4.5), r'Are left and right swapped\?'),
    # introlab/rtabmap_ros 404: both cameras have the right one's.
    'the same twice': (p_of(-15.7), p_of(-15.7), 'Both have the same'),
    # microsoft/AirSim 4634, carla-simulator/ros-bridge 205.
    'no baseline': (p_of(), p_of(), r'P\[3\] is 0 '),
    # Cameras above each other.
    'vertical': (p_of(), p_of(ty=-12.0), r'P\[7\] is -12'),
    # luxonis/depthai-ros 58: only K is filled.
    'zeros': ((0.0,) * 12, (0.0,) * 12, r'focal lengths 0 and 0.*calibrated\?'),
    # introlab/rtabmap_ros 1142: P is K [R t].
    'skewed': (p_of(), p_of(-12.0, skew=3.4), r'P\[1\] is 3.4'),
    # ros-perception/image_pipeline 130: two cameras that were calibrated alone.
    'two models': (p_of(), p_of(-12.0, fx=61.0), 'shares fx, fy and cy'),
    'not a number': (p_of(), p_of(float('nan')), 'finite numbers'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_camera_infos_of_no_rectified_rig_are_refused_with_the_reason(name):
    left, right, reason = REFUSED[name]
    topics = StereoTopics(left_info='/l/camera_info', right_info='/r/camera_info')
    with pytest.raises(CalibrationError, match=reason) as error:
        calibration_from_camera_infos(info(left), info(right), topics=topics)
    assert re.search('/[lr]/camera_info', str(error.value))


def test_baseline_in_centimetres_is_doubted():
    """introlab/rtabmap_ros 1142: 8205 for fx 916, an OAK camera of 7.5 cm."""
    rig = calibration_from_camera_infos(info(p_of()), info(p_of(-8205.0 / 916.0 * 60.0)))
    assert 'parameter' in baseline_doubt(rig.baseline_m, 'right/camera_info')


def test_offset_on_both_cameras_counts_as_their_difference():
    """introlab/rtabmap_ros 108: the left P[3] is not 0."""
    rig = calibration_from_camera_infos(info(p_of(-2.0)), info(p_of(-14.0)))
    assert rig.baseline_m == pytest.approx(0.2)


@pytest.mark.parametrize(
    ('model', 'distortion'),
    [
        ('', (-0.1,)),
        ('', (-0.1, 0.01, 0.0)),
        ('plumb_bob', (-0.1, 0.01)),
        ('Plumb_Bob ', (-0.1, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        ('rational_polynomial', (-0.1, 0.01, 0.0, 0.0, 0.0)),
        ('rational_polynomial', (-0.1, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        ('equidistant', (-0.1, 0.01)),
        ('fisheye', (-0.1, 0.01, 0.0, 0.0, 0.0)),
    ],
)
def test_short_and_padded_distortion_is_taken(model, distortion):
    k = (60.0, 0.0, 47.5, 0.0, 60.0, 31.5, 0.0, 0.0, 1.0)
    left = info(p_of(), k=k, d=distortion, distortion_model=model)
    right = info(p_of(-12.0), k=k, d=distortion, distortion_model=model)
    calibration = calibration_from_camera_infos(left, right, raw=True)
    columns, rows = raw_camera_of_info(left, calibration, 'left/camera_info').maps()
    assert np.isfinite(columns).all() and np.isfinite(rows).all()
    assert abs(columns[0, 0]) > 0.05  # the corner moves: the coefficients count


def test_rows_with_padding_and_no_step():
    padded = image_message(make_message, VIEW, 'mono8', 1, 'left')
    padded.step = 128
    data = np.zeros((64, 128), np.uint8)
    data[:, :96] = VIEW
    padded.data = data.ravel()[: 63 * 128 + 96]  # some drivers leave out the last padding
    np.testing.assert_array_equal(decode_image(padded, 'left'), VIEW)
    packed = image_message(make_message, VIEW, 'mono8', 1, 'left')
    packed.step = 0
    np.testing.assert_array_equal(decode_image(packed, 'left'), VIEW)


@pytest.mark.parametrize('encoding', ['MONO8', 'mono8 ', '8UC1', 'Mono8'])
def test_spelling_of_an_encoding(encoding):
    message = image_message(make_message, VIEW, 'mono8', 1, 'left')
    message.encoding = encoding
    np.testing.assert_array_equal(decode_image(message, 'left'), VIEW)


@pytest.mark.parametrize('encoding', ['', 'jpeg', 'mono12p', 'bayer_rggb10p', 'h264'])
def test_unknown_encoding_is_named(encoding):
    message = image_message(make_message, VIEW, 'mono8', 1, 'left')
    message.encoding = encoding
    with pytest.raises(InputError, match=f'left/image: unknown image encoding {encoding!r}'):
        decode_image(message, 'left/image')


def test_big_endian_sixteen_bits():
    values = VIEW.astype(np.uint16) * 257 - np.minimum(VIEW, 1)
    message = image_message(make_message, values, 'mono16', 1, 'left')
    message.is_bigendian = 1
    message.data = values.astype('>u2').view(np.uint8).ravel()
    np.testing.assert_array_equal(decode_image(message, 'left'), values)


def test_recorded_qos_is_kept_by_repair(tmp_path):
    bag = tmp_path / 'drive'
    kind = 'sensor_msgs/msg/CameraInfo'
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(
            '/left/camera_info', kind, typestore=TYPES, offered_qos_profiles=[LATCHED]
        )
        message = camera_info_message(make_message, RIG, 1, 'left', right=False)
        writer.write(connection, 1, TYPES.serialize_cdr(message, kind))
    assert main(['repair', str(bag)]) == 0
    document = yaml.safe_load((tmp_path / 'drive_repaired' / 'metadata.yaml').read_text())
    (topic,) = document['rosbag2_bagfile_information']['topics_with_message_count']
    profiles = topic['topic_metadata']['offered_qos_profiles']
    assert 'transient_local' in json.dumps(profiles)


@pytest.mark.parametrize('plugin', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_qos_of_another_form_costs_nothing_else(tmp_path, plugin):
    bag = tmp_path / 'drive'
    with Writer(bag, version=9, storage_plugin=plugin) as writer:
        for side in ('left', 'right'):
            image = image_message(make_message, VIEW, 'mono8', 1, 'optical')
            info = camera_info_message(make_message, RIG, 1, 'optical', right=side == 'right')
            for name, message in (('image_rect', image), ('camera_info', info)):
                kind = message.__msgtype__
                connection = writer.add_connection(
                    f'/{side}/{name}', kind, typestore=TYPES, offered_qos_profiles=[LATCHED]
                )
                writer.write(connection, 1, TYPES.serialize_cdr(message, kind))
    file = next(file for file in bag.iterdir() if file.suffix in ('.mcap', '.db3'))
    content = file.read_bytes()
    assert b'depth: ' in content
    file.write_bytes(content.replace(b'depth: ', b'depht: '))
    with StereoBagReader(file) as reader:
        assert len(list(reader.frames())) == 1
        assert any('QoS of /left/camera_info' in loss for loss in reader.losses)
