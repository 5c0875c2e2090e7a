"""Bags written and read back, and each way in which a recording can be unusable."""

from pathlib import Path
import shutil

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

from lunar_stereo_recon.bags.reader import Pose, StereoBagReader
from lunar_stereo_recon.bags.storage import Recording
from lunar_stereo_recon.bags.writer import BagWriter, make_message, pose_message
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration
from lunar_stereo_recon.errors import CalibrationError, InputError
from lunar_stereo_recon.messages import StereoTopics
from lunar_stereo_recon.result_messages import (
    camera_info_message,
    CLOUD_FIELDS,
    confidence_message,
    depth_message,
    disparity_message,
    point_cloud_message,
)

PERIOD_NS = 100_000_000


def read_all(path: Path, **options):
    with StereoBagReader(path, **options) as reader:
        return list(reader.frames())


@pytest.fixture
def reconstruction():
    rng = np.random.default_rng(1)
    shape = (4, 5)
    depth = rng.uniform(1, 3, shape).astype(np.float32)
    depth[0, 0] = np.nan
    points = rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)
    points[0, 0] = np.nan
    return Reconstruction(
        disparity=(8 / depth).astype(np.float32),
        depth=depth,
        confidence=rng.uniform(0, 1, shape).astype(np.float32),
        points=points,
        color=rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        calibration=StereoCalibration(40.0, 40.0, 2.0, 1.5, 1.0, 0.2, 5, 4),
        stamp_ns=1_234_567_890,
        frame_id='left_optical',
        searched_px=(-0.5, 29.5),
    )


def test_frames_come_back_with_images_calibration_and_ground_truth(make_bag):
    frames = read_all(make_bag())
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert np.diff([frame.stamp_ns for frame in frames]).tolist() == [PERIOD_NS] * 2
    pair = frames[1].pair()
    assert pair.stamp_ns == frames[1].stamp_ns
    assert pair.frame_id == 'left_camera_optical_frame'
    assert pair.calibration.baseline_m == pytest.approx(0.2)
    np.testing.assert_array_equal(pair.left[:, 6:], pair.right[:, :-6])
    depth = frames[1].depth()
    assert np.isnan(depth[:4]).all()
    np.testing.assert_allclose(depth[4:], 2.0)
    np.testing.assert_allclose(frames[2].pose.position, [0.2, 0.0, 1.0])
    assert frames[2].pose.frame_id == 'map'


def test_topics_are_found_by_name_and_type(make_bag):
    with StereoBagReader(make_bag()) as reader:
        assert reader.topics == StereoTopics(
            '/rig/left/image_rect',
            '/rig/right/image_rect',
            '/rig/left/camera_info',
            '/rig/right/camera_info',
        )
        assert reader.depth_topic == '/ground_truth/depth'
        assert reader.pose_topic == '/ground_truth/pose'
        assert reader.frame_count == 3


def test_bare_file_and_directory_without_metadata(make_bag, tmp_path):
    bag = make_bag()
    assert len(read_all(bag / 'drive.mcap')) == 3
    (bag / 'metadata.yaml').unlink()
    assert len(read_all(bag)) == 3


def test_sqlite_bag_with_message_compression(make_bag, tmp_path):
    source, copy = make_bag(), tmp_path / 'sqlite'
    types = get_typestore(Stores.ROS2_JAZZY)
    writer = Writer(copy, version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with AnyReader([source]) as reader, writer:
        connections = {
            c.topic: writer.add_connection(c.topic, c.msgtype, typestore=types)
            for c in reader.connections
        }
        for connection, stamp, raw in reader.messages():
            writer.write(connections[connection.topic], stamp, raw)
    for left, right in zip(read_all(copy), read_all(source), strict=True):
        np.testing.assert_array_equal(left.pair().left, right.pair().left)


def test_compressed_topic_is_used_where_there_is_no_raw_one(make_bag, tmp_path):
    import cv2

    path = tmp_path / 'compressed'
    with BagWriter(path) as writer:
        for frame in read_all(make_bag()):
            for side in ('left', 'right'):
                message = getattr(frame, side)
                values = message.data.reshape(message.height, message.width)
                data = cv2.imencode('.png', values)[1].reshape(-1)
                compressed = make_message(
                    'sensor_msgs/msg/CompressedImage',
                    header=message.header,
                    format='mono8; png compressed mono8',
                    data=data,
                )
                topic = f'/rig/{side}/image_rect/compressed'
                writer.write(topic, compressed, frame.stamp_ns)
                info = getattr(frame, f'{side}_info')
                writer.write(f'/rig/{side}/camera_info', info, frame.stamp_ns)
    original = read_all(tmp_path / 'drive')
    for frame, expected in zip(read_all(path), original, strict=True):
        np.testing.assert_array_equal(frame.pair().right, expected.pair().right)


def test_poses_that_are_none_are_left_out_and_named(make_bag, tmp_path, caplog):
    """Drivers that know no orientation leave all of it 0."""
    poses = [
        (np.zeros(3), np.zeros(4)),
        (np.full(3, np.nan), np.array([0.0, 0.0, 0.0, 1.0])),
        (np.ones(3), np.array([0.0, 0.0, 0.0, 2.0])),
    ]
    path = tmp_path / 'posed'
    with BagWriter(path) as writer:
        for frame, pose in zip(read_all(make_bag()), poses, strict=True):
            for name in ('left', 'right'):
                writer.write(f'/{name}/image_rect', getattr(frame, name), frame.stamp_ns)
                info = getattr(frame, f'{name}_info')
                writer.write(f'/{name}/camera_info', info, frame.stamp_ns)
            message = pose_message(*pose, frame.stamp_ns)
            writer.write('/ground_truth/pose', message, frame.stamp_ns)
    frames = read_all(path)
    assert [frame.pose is None for frame in frames] == [True, True, False]
    np.testing.assert_array_equal(frames[2].pose.matrix[:3, :3], np.eye(3))
    assert 'quaternion is (0.0, 0.0, 0.0, 0.0); a rotation is needed' in caplog.text
    assert 'finite metres are needed' in caplog.text


def test_unsynchronized_stamps_need_a_tolerance(make_bag):
    bag = make_bag(right_offset_ns=5_000_000)
    with StereoBagReader(bag) as reader:
        assert list(reader.frames()) == []
        assert [item.reason for item in reader.unpaired] == ['unmatched'] * 6
        assert {item.gap_ns for item in reader.unpaired[:-1]} == {5_000_000, 95_000_000}
    assert len(read_all(bag, tolerance_s=0.01)) == 3


def rearranged(source, path, order, keep=lambda topic, index: True):
    """Write a bag again: fx 100 + its number in each camera_info, messages in another order."""
    messages = []
    with StereoBagReader(source) as reader:
        counts = {}
        for connection, stamp, raw in reader.raw_messages():
            index = counts[connection.topic] = counts.get(connection.topic, -1) + 1
            message = reader.deserialize(raw, connection.msgtype)
            if connection.topic.endswith('camera_info'):
                message.p = message.p.copy()
                message.p[[0, 5]] = 100.0 + index
            if keep(connection.topic, index):
                messages.append((connection.topic, message, stamp))
    with BagWriter(path) as writer:
        for topic, message, stamp in sorted(messages, key=lambda item: order(*item)):
            writer.write(topic, message, stamp)
    return path


@pytest.mark.parametrize(
    'order',
    [
        lambda topic, message, stamp: (stamp, 'camera_info' in topic),
        lambda topic, message, stamp: (stamp, 'camera_info' not in topic),
        lambda topic, message, stamp: stamp + 2 * PERIOD_NS * ('camera_info' in topic),
        lambda topic, message, stamp: stamp - 2 * PERIOD_NS * ('camera_info' in topic),
    ],
    ids=['infos last', 'infos first', 'infos late', 'infos early'],
)
def test_a_frame_has_the_infos_of_its_own_stamps(make_bag, tmp_path, order):
    path = rearranged(make_bag(frames=6), tmp_path / 'other', order)
    assert [frame.pair().calibration.fx for frame in read_all(path)] == [
        100.0 + index for index in range(6)
    ]


def test_an_info_that_comes_once_serves_all_frames_and_a_lost_one_its_forerunner(
    make_bag, tmp_path
):
    source = make_bag(frames=8)

    def by_stamp(topic, message, stamp):
        return stamp

    once = rearranged(
        source, tmp_path / 'once', by_stamp, lambda topic, i: 'info' not in topic or i == 0
    )
    assert [frame.pair().calibration.fx for frame in read_all(once)] == [100.0] * 8

    def kept(topic, index):
        return 'info' not in topic or index not in (0, 4)

    lost = rearranged(source, tmp_path / 'lost', by_stamp, kept)
    found = [frame.pair().calibration.fx for frame in read_all(lost)]
    assert found == [101.0, 101.0, 102.0, 103.0, 103.0, 105.0, 106.0, 107.0]


def test_one_topic_for_both_sides_is_refused(make_bag):
    bag = make_bag()
    left, right = '/rig/left/image_rect', '/rig/right/image_rect'
    info = '/rig/left/camera_info'
    with pytest.raises(InputError, match=f'{info} is given for left and right infos'):
        StereoBagReader(bag, StereoTopics(left, right, info, info))
    with pytest.raises(InputError, match=f'{info} is a .*CameraInfo; .*Image'):
        StereoBagReader(bag, StereoTopics(info, right, info, '/rig/right/camera_info'))


def test_a_lost_image_costs_its_frame_only(make_bag):
    with StereoBagReader(make_bag(skip_right=(1,))) as reader:
        assert [frame.index for frame in reader.frames()] == [0, 1]
        assert [(item.side, item.reason) for item in reader.unpaired] == [('left', 'unmatched')]


def test_missing_topic_lists_what_is_there_and_suggests_the_nearest(make_bag):
    topics = StereoTopics(
        '/rig/left/image_raw', '/rig/right/image_rect', '/rig/left/camera_info', '/x'
    )
    with pytest.raises(InputError) as caught:
        StereoBagReader(make_bag(), topics)
    text = str(caught.value)
    assert 'no topic /rig/left/image_raw' in text
    assert 'did you mean /rig/left/image_rect?' in text
    assert '/ground_truth/pose (geometry_msgs/msg/PoseStamped)' in text


def test_topic_of_another_type(make_bag):
    topics = StereoTopics(
        '/rig/left/image_rect', '/rig/right/image_rect', '/rig/left/camera_info', '/tf'
    )
    with pytest.raises(
        InputError, match='/tf is a tf2_msgs/msg/TFMessage; sensor_msgs/msg/Camera'
    ):
        StereoBagReader(make_bag(), topics)


def test_bag_without_a_rig(make_bag, tmp_path):
    with BagWriter(tmp_path / 'poses') as writer:
        pose = pose_message(np.zeros(3), np.array([0, 0, 0, 1.0]), 5)
        writer.write('/pose', pose, 5)
    with pytest.raises(InputError, match='no stereo rig found(.|\n)*/pose'):
        StereoBagReader(tmp_path / 'poses')


def test_bag_without_camera_info(make_bag):
    with pytest.raises(InputError, match='are needed; /rig/left/image_rect has none'):
        StereoBagReader(make_bag(infos=False))


def test_empty_bag(tmp_path):
    BagWriter(tmp_path / 'empty').close()
    with pytest.raises(InputError, match='the bag is empty'):
        StereoBagReader(tmp_path / 'empty')


def test_missing_bag_and_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match='nowhere: no such bag'):
        StereoBagReader(tmp_path / 'nowhere')
    with pytest.raises(InputError, match='neither metadata.yaml nor'):
        StereoBagReader(tmp_path)


def test_file_that_is_no_bag(tmp_path):
    path = tmp_path / 'picture.mcap'
    path.write_bytes(b'\x89PNG\r\n\x1a\n' * 20)
    with pytest.raises(InputError, match='picture.mcap: cannot be read'):
        StereoBagReader(path)


@pytest.mark.parametrize('share', [0.0, 0.001, 0.3, 0.6])
def test_bag_without_a_whole_chunk_is_refused(make_bag, share):
    """As after a power failure: never another exception, never an endless wait."""
    path = make_bag() / 'drive.mcap'
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match='drive'):
        read_all(path)


@pytest.mark.parametrize('share', [0.95, 0.999])
def test_bag_without_its_end_gives_what_is_whole(make_bag, share):
    path = make_bag() / 'drive.mcap'
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with StereoBagReader(path) as reader:
        assert len(list(reader.frames())) == 3
        assert 'the index of drive.mcap' in reader.losses[0]
        assert 'lunar-stereo repair' in reader.losses[0]


def test_chunks_of_a_writer_that_was_killed_can_be_read(make_bag, tmp_path):
    """As after kill -9: no footer, the metadata are those of the beginning."""
    frame = read_all(make_bag())[0]
    writer = BagWriter(tmp_path / 'killed')
    noise = np.random.default_rng(0).integers(0, 255, 400_000, dtype=np.uint8)
    for index in range(9):
        picture = make_message(
            'sensor_msgs/msg/Image', header=frame.left.header, height=500, width=800,
            encoding='mono8', is_bigendian=0, step=800, data=noise,
        )  # fmt: skip
        writer.write('/left', picture, index)
    copy = tmp_path / 'copy'
    shutil.copytree(tmp_path / 'killed', copy)
    writer.close()
    assert (copy / 'metadata.yaml').exists()
    recording = Recording(copy)
    times = [time_ns for _, time_ns, _ in recording.messages(['/left'])]
    recording.close()
    assert times == list(range(len(times))) and len(times) >= 6


def test_one_flipped_pixel_is_noticed(make_bag):
    path = make_bag() / 'drive.mcap'
    chunk = path.read_bytes()
    damaged = bytearray(chunk)
    damaged[len(chunk) // 2] ^= 1
    path.write_bytes(damaged)
    with StereoBagReader(path) as reader:
        assert list(reader.frames()) == []
        assert 'a chunk at byte' in reader.losses[0]


def test_bag_with_flipped_bytes_is_refused_or_read(make_bag):
    """Damage is either noticed as an InputError or sits in a value; nothing else is raised."""
    path = make_bag() / 'drive.mcap'
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(3)
    noticed = 0
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 4):
            damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            with StereoBagReader(path) as reader:
                for frame in reader.frames():
                    frame.pair()
                noticed += bool(reader.losses)
        except (InputError, CalibrationError):
            noticed += 1
    assert noticed > 40


def test_damaged_sqlite_file(tmp_path):
    path = tmp_path / 'drive.db3'
    path.write_bytes(b'SQLite format 3\x00' + bytes(range(256)) * 8)
    with pytest.raises(InputError, match='drive.db3: cannot be read'):
        StereoBagReader(path)


def test_baseline_override_for_a_bag_without_one(make_bag):
    frame = read_all(make_bag(right_tx=0.0))[0]
    with pytest.raises(CalibrationError, match=r"/rig/right/camera_info: P\[3\] is 0.*'baseline'"):
        frame.pair()
    assert frame.pair(baseline_m=0.3).calibration.baseline_m == 0.3


def test_pose_matrix_turns_optical_points_into_the_map():
    half = np.sqrt(0.5)
    pose = Pose(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, half, half]), 'map')
    np.testing.assert_allclose(pose.matrix @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)


def test_results_written_to_a_bag_are_what_went_in(reconstruction, tmp_path):
    stamp = reconstruction.stamp_ns
    with BagWriter(tmp_path / 'out') as writer:
        writer.write('/points2', point_cloud_message(make_message, reconstruction), stamp)
        writer.write('/confidence', confidence_message(make_message, reconstruction), stamp)
        writer.write('/depth', depth_message(make_message, reconstruction), stamp)
        writer.write('/disparity', disparity_message(make_message, reconstruction), stamp)
        assert writer.counts == {'/points2': 1, '/confidence': 1, '/depth': 1, '/disparity': 1}
    with AnyReader([tmp_path / 'out']) as reader:
        messages = {c.topic: reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages()}
    cloud = messages['/points2']
    assert [field.name for field in cloud.fields] == list(CLOUD_FIELDS)
    assert (cloud.height, cloud.width, cloud.is_dense) == (4, 5, False)
    assert cloud.row_step * cloud.height == len(cloud.data) == 4 * 5 * 20
    assert cloud.header.frame_id == 'left_optical'
    assert (cloud.header.stamp.sec, cloud.header.stamp.nanosec) == (1, 234_567_890)
    values = cloud.data.view('<f4').reshape(4, 5, 5)
    np.testing.assert_array_equal(values[..., :3], reconstruction.points)
    np.testing.assert_array_equal(values[..., 4], reconstruction.confidence)
    rgb = np.ascontiguousarray(values[..., 3]).view('<u4')
    red, green, blue = (reconstruction.color[..., i].astype(np.uint32) for i in range(3))
    np.testing.assert_array_equal(rgb, red << 16 | green << 8 | blue)
    disparity = messages['/disparity']
    assert (disparity.f, disparity.t) == (pytest.approx(40.0), pytest.approx(0.2))
    assert (disparity.min_disparity, disparity.max_disparity) == (-0.5, 29.5)
    window = disparity.valid_window
    assert (window.x_offset, window.y_offset, window.width, window.height) == (0, 0, 5, 4)
    for message, expected in (
        (disparity.image, reconstruction.disparity),
        (messages['/depth'], reconstruction.depth),
        (messages['/confidence'], reconstruction.confidence),
    ):
        assert message.encoding == '32FC1'
        np.testing.assert_array_equal(message.data.view('<f4').reshape(4, 5), expected)


def test_right_camera_info_has_the_baseline():
    calibration = StereoCalibration(40.0, 41.0, 2.0, 1.5, 1.0, 0.2, 5, 4)
    left = camera_info_message(make_message, calibration, 7, 'a')
    right = camera_info_message(make_message, calibration, 7, 'b', right=True)
    assert left.p.tolist() == [40, 0, 2, 0, 0, 41, 1.5, 0, 0, 0, 1, 0]
    assert right.p.tolist() == [40, 0, 1, -8, 0, 41, 1.5, 0, 0, 0, 1, 0]
    assert right.k.tolist() == [40, 0, 1, 0, 41, 1.5, 0, 0, 1]


def test_clouds_are_compressed(make_bag, tmp_path):
    values = np.zeros((200, 200), np.float32)
    calibration = StereoCalibration(40.0, 40.0, 2.0, 1.5, 2.0, 0.2, 200, 200)
    flat = Reconstruction(
        values, values, values, np.zeros((200, 200, 3), np.float32),
        np.zeros((200, 200, 3), np.uint8), calibration,
    )  # fmt: skip
    with BagWriter(tmp_path / 'out') as writer:
        writer.write('/points2', point_cloud_message(make_message, flat), 0)
    assert (tmp_path / 'out' / 'out.mcap').stat().st_size < 50_000 < 200 * 200 * 20


def test_existing_bag_is_only_replaced_when_asked(make_bag, tmp_path):
    bag = make_bag()
    with pytest.raises(InputError, match='exists already'):
        BagWriter(bag)
    BagWriter(bag, overwrite=True).close()
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'diary.txt').write_text('precious')
    with pytest.raises(InputError, match='is not a bag'):
        BagWriter(tmp_path / 'notes', overwrite=True)
    assert (tmp_path / 'notes' / 'diary.txt').exists()


def test_what_was_written_before_an_error_can_be_read(make_bag, tmp_path):
    frame = read_all(make_bag())[0]
    with pytest.raises(ZeroDivisionError), BagWriter(tmp_path / 'out') as writer:
        writer.write('/left', frame.left, 1)
        raise ZeroDivisionError
    with AnyReader([tmp_path / 'out']) as reader:
        assert reader.message_count == 1


def test_unknown_message_type(tmp_path):
    with BagWriter(tmp_path / 'out') as writer, pytest.raises(InputError, match='my_msgs/msg/Own'):
        writer.write_raw('/own', 'my_msgs/msg/Own', b'', 0)


def test_shared_traverse_where_it_is_there():
    path = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'rover_traverse'
    if not path.exists():
        pytest.skip('the shared recording is not beside this checkout')
    frames = read_all(path)
    assert len(frames) == 18
    pair, depth = frames[7].pair(), frames[7].depth()
    assert pair.left.shape == depth.shape == (480, 640)
    assert pair.calibration.baseline_m == pytest.approx(0.3)
    assert frames[7].pose is not None


def test_repair_writes_a_whole_bag_with_foreign_topics(make_bag, tmp_path, capsys):
    source = tmp_path / 'mixed'
    types = get_typestore(Stores.ROS2_JAZZY)
    with (
        StereoBagReader(make_bag()) as reader,
        Writer(source, version=9, storage_plugin=StoragePlugin.MCAP) as writer,
    ):
        foreign = writer.add_connection(
            '/joints', 'arm_msgs/msg/Joints', msgdef='uint8 count\n', rihs01=f'RIHS01_{"0" * 64}'
        )
        writer.write(foreign, 0, b'\0\1\0\0\5')
        connections = {
            c.topic: writer.add_connection(c.topic, c.msgtype, typestore=types)
            for c in reader.connections
        }
        for connection, time_ns, raw in reader.raw_messages():
            writer.write(connections[connection.topic], time_ns, raw)
    path = source / 'mixed.mcap'
    path.write_bytes(path.read_bytes()[:-200])
    assert main(['repair', str(source), '--out', str(tmp_path / 'whole')]) == 0
    assert 'lost: the index of mixed.mcap' in capsys.readouterr().out
    with StereoBagReader(tmp_path / 'whole') as reader:
        assert reader.losses == []
        assert len(list(reader.frames())) == 3
        assert reader.all_topics['/joints'] == 'arm_msgs/msg/Joints'
    with Reader(tmp_path / 'whole') as reader:  # rosbags itself takes it
        assert next(reader.messages())[2] == b'\0\1\0\0\5'
