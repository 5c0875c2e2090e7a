"""Image and camera_info messages to pairs, and each way in which they can be unusable."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rosbags.typesys import get_typestore, Stores

from lunar_stereo_recon.bags.writer import make_message
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import CalibrationError, InputError
from lunar_stereo_recon.messages import (
    baseline_of_camera_infos,
    calibration_from_camera_infos,
    cdr_stamp_ns,
    decode_depth,
    decode_image,
    pair_from_messages,
    StereoTopics,
)
from lunar_stereo_recon.result_messages import camera_info_message, header, image_message

WIDTH, HEIGHT = 48, 32
CALIBRATION = StereoCalibration(40.0, 40.0, 23.5, 15.5, 22.0, 0.25, WIDTH, HEIGHT)
TOPICS = StereoTopics(
    '/rig/left/image_rect', '/rig/right/image_rect', '/rig/l/info', '/rig/r/info'
)


def image(values, encoding, **changes):
    message = image_message(make_message, values, encoding, 1_500_000_002, 'left_optical')
    for name, value in changes.items():
        object.__setattr__(message, name, value)
    return message


def infos():
    return tuple(
        camera_info_message(make_message, CALIBRATION, 0, 'left_optical', right=right)
        for right in (False, True)
    )


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture
def rgb():
    """Return a smooth colour image, which survives chroma subsampling and mosaics."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = [60 + 2 * rows, 200 - 2 * columns, 90 + rows + columns]
    return np.stack(channels, axis=2).astype(np.uint8)


def test_pair_carries_grey_values_calibration_stamp_and_frame(grey):
    pair = pair_from_messages(image(grey, 'mono8'), image(grey[::-1], 'mono8'), *infos())
    np.testing.assert_allclose(pair.left, grey / 255.0, atol=1e-6)
    np.testing.assert_allclose(pair.right, grey[::-1] / 255.0, atol=1e-6)
    assert pair.calibration == CALIBRATION
    assert pair.stamp_ns == 1_500_000_002
    assert pair.frame_id == 'left_optical'
    assert pair.color is None


@pytest.mark.parametrize(
    ('encoding', 'pack'),
    [
        ('rgb8', lambda rgb: rgb),
        ('bgr8', lambda rgb: rgb[..., ::-1]),
        ('rgba8', lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])),
        ('bgra8', lambda rgb: np.dstack([rgb[..., ::-1], np.zeros(rgb.shape[:2], np.uint8)])),
        ('8UC3', lambda rgb: rgb[..., ::-1]),
        ('8UC4', lambda rgb: np.dstack([rgb[..., ::-1], np.zeros(rgb.shape[:2], np.uint8)])),
    ],
)
def test_packed_colours_are_read_in_rgb_order(rgb, encoding, pack):
    np.testing.assert_array_equal(decode_image(image(pack(rgb), encoding), 'left'), rgb)


@pytest.mark.parametrize('encoding', ['rgb16', 'bgr16', 'rgba16', 'bgra16', '16UC3'])
def test_sixteen_bit_colours(rgb, encoding):
    wide = rgb.astype(np.uint16) * 257
    packed = wide if encoding.startswith('rgb') else wide[..., ::-1]
    if encoding.endswith('a16'):
        packed = np.dstack([packed, np.zeros(rgb.shape[:2], np.uint16)])
    decoded = decode_image(image(packed, encoding), 'left')
    np.testing.assert_array_equal(decoded, wide)
    pair = pair_from_messages(image(packed, encoding), image(packed, encoding), *infos())
    np.testing.assert_array_equal(pair.color, rgb)


@pytest.mark.parametrize(
    ('encoding', 'sites'),
    [
        ('bayer_rggb', [[0, 1], [1, 2]]),
        ('bayer_bggr', [[2, 1], [1, 0]]),
        ('bayer_gbrg', [[1, 2], [0, 1]]),
        ('bayer_grbg', [[1, 0], [2, 1]]),
    ],
)
@pytest.mark.parametrize(('bits', 'dtype', 'gain'), [(8, np.uint8, 1), (16, np.uint16, 256)])
def test_bayer_mosaics_give_the_colours_back(rgb, encoding, sites, bits, dtype, gain):
    mosaic = np.empty((HEIGHT, WIDTH), dtype)
    for row in (0, 1):
        for column in (0, 1):
            channel = rgb[row::2, column::2, sites[row][column]].astype(dtype)
            mosaic[row::2, column::2] = channel * gain
    decoded = decode_image(image(mosaic, f'{encoding}{bits}'), 'left')
    inner = (slice(2, -2), slice(2, -2))
    difference = decoded[inner].astype(float) / gain - rgb[inner]
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize(
    'encoding', ['uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2', 'nv12', 'nv21', 'nv24']
)
def test_yuv_gives_the_colours_back(rgb, encoding):
    planar = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    luma = planar[:HEIGHT]
    quarter = (HEIGHT // 2, WIDTH // 2)
    u = planar[HEIGHT : HEIGHT + HEIGHT // 4].reshape(quarter)
    v = planar[HEIGHT + HEIGHT // 4 :].reshape(quarter)
    if encoding in ('nv12', 'nv21'):
        first, second = (u, v) if encoding == 'nv12' else (v, u)
        chroma = np.dstack([first, second]).reshape(HEIGHT // 2, WIDTH)
        message = image(np.vstack([luma, chroma]), encoding, height=HEIGHT)
    elif encoding == 'nv24':
        full = [np.repeat(np.repeat(plane, 2, axis=0), 2, axis=1) for plane in (u, v)]
        chroma = np.dstack(full).reshape(2 * HEIGHT, WIDTH)
        message = image(np.vstack([luma, chroma]), encoding, height=HEIGHT)
    else:
        chroma = np.empty((HEIGHT, WIDTH), np.uint8)
        chroma[:, 0::2], chroma[:, 1::2] = (np.repeat(plane, 2, axis=0) for plane in (u, v))
        order = [chroma, luma] if encoding in ('uyvy', 'yuv422') else [luma, chroma]
        message = image(np.dstack(order), encoding)
    difference = decode_image(message, 'left').astype(float) - rgb
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize(
    ('encoding', 'shape', 'words'),
    [
        ('uyvy', (32, 47), 'image of 47x32; an even width is'),
        ('nv12', (33, 48), 'image of 48x33; an even width and height are'),
        ('nv21', (32, 47), 'image of 47x32; an even width and height are'),
    ],
)
def test_subsampled_images_of_odd_size_are_refused(encoding, shape, words):
    message = image(np.zeros(shape, np.uint8), encoding, step=0, data=bytes(2 * 33 * 48))
    with pytest.raises(InputError, match=f'left: {encoding} {words} needed'):
        decode_image(message, 'left')


@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
def test_sixteen_bit_grey_and_white_level(encoding):
    values = np.linspace(0, 4095, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    messages = (image(values, encoding), image(values, encoding), *infos())
    full = pair_from_messages(*messages)
    np.testing.assert_allclose(full.left, values / 65535.0, atol=1e-6)
    twelve_bit = pair_from_messages(*messages, white_level=4095)
    np.testing.assert_allclose(twelve_bit.left, values / 4095.0, atol=1e-6)


@pytest.mark.parametrize(
    ('encoding', 'dtype', 'working'),
    [
        ('8SC1', np.int8, np.uint8),
        ('16SC1', np.int16, np.uint16),
        ('32SC1', np.int32, np.float32),
        ('64FC1', np.float64, np.float32),
    ],
)
def test_signed_and_wide_types(encoding, dtype, working):
    values = np.zeros((HEIGHT, WIDTH), dtype)
    values[0, :3] = -5, 1, 120
    decoded = decode_image(image(values, encoding), 'left')
    assert decoded.dtype == working
    negative = -5 if dtype is np.float64 else 0
    np.testing.assert_array_equal(decoded[0, :3], [negative, 1, 120])
    messages = [image(values, encoding)] * 2
    pair = pair_from_messages(*messages, *infos(), white_level=120)
    np.testing.assert_allclose(pair.left[0, :3], [0, 1 / 120, 1], rtol=1e-6)


def test_signed_colours_are_read_in_rgb_order(rgb):
    signed = (rgb // 2).astype(np.int8)[..., ::-1]
    np.testing.assert_array_equal(decode_image(image(signed, '8SC3'), 'left'), rgb // 2)


def test_big_endian_values(grey):
    values = (grey.astype(np.uint16) * 200).astype('>u2')
    message = image(values, 'mono16', is_bigendian=1)
    np.testing.assert_array_equal(decode_image(message, 'left'), grey.astype(np.uint16) * 200)


def test_row_padding_is_cut(grey):
    padded = np.hstack([grey, np.full((HEIGHT, 16), 99, np.uint8)])
    message = image(padded, 'mono8', width=WIDTH)
    np.testing.assert_array_equal(decode_image(message, 'left'), grey)


def test_float_images_must_be_in_unit_range(grey):
    unit = (grey / 255.0).astype(np.float32)
    pair = pair_from_messages(image(unit, '32FC1'), image(unit, '32FC1'), *infos())
    np.testing.assert_allclose(pair.left, unit, atol=1e-6)
    wide = image(grey.astype(np.float64), '64FC1')
    with pytest.raises(InputError, match=r"up to 255.*\[0, 1\].*'white_level'"):
        pair_from_messages(wide, wide, *infos())


@pytest.mark.parametrize(('extension', 'tolerance'), [('.png', 0), ('.jpg', 12)])
def test_compressed_images(rgb, extension, tolerance):
    data = cv2.imencode(extension, rgb[..., ::-1])[1].reshape(-1)
    message = SimpleNamespace(format='bgr8; jpeg compressed bgr8', data=data)
    difference = decode_image(message, 'left').astype(int) - rgb
    assert np.abs(difference).max() <= tolerance


def test_compressed_mosaic_is_demosaiced(rgb):
    mosaic = np.empty((HEIGHT, WIDTH), np.uint8)
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[row::2, column::2] = rgb[row::2, column::2, channel]
    data = cv2.imencode('.png', mosaic)[1].reshape(-1)
    message = SimpleNamespace(format='bayer_rggb8; png compressed', data=data)
    decoded = decode_image(message, 'left')[2:-2, 2:-2]
    assert np.abs(decoded.astype(int) - rgb[2:-2, 2:-2]).max() <= 3


def test_rosbags_image_reads_the_same_values(grey, rgb):
    """An independent reader agrees on whatever both take."""
    reference = pytest.importorskip('rosbags.image')
    for values, encoding in ((grey, 'mono8'), (rgb, 'rgb8'), (rgb, 'bgr8')):
        message = image(values, encoding)
        expected = reference.image_to_cvimage(message, 'mono8' if values.ndim == 2 else 'rgb8')
        np.testing.assert_array_equal(decode_image(message, 'left'), expected)


def test_unknown_encoding_is_named_with_its_topic_and_the_known_ones(grey):
    with pytest.raises(InputError, match="/rig/left/image_rect: .*'mono7'.*mono8, mono16"):
        pair_from_messages(image(grey, 'mono7'), image(grey, 'mono8'), *infos(), topics=TOPICS)


def test_truncated_image(grey):
    message = image(grey, 'mono8')
    object.__setattr__(message, 'data', message.data[:-5])
    with pytest.raises(InputError, match='/rig/right/image_rect: 1531 bytes .* truncated'):
        pair_from_messages(image(grey, 'mono8'), message, *infos(), topics=TOPICS)


def test_truncated_compressed_image(grey):
    message = SimpleNamespace(format='mono8; png', data=np.frombuffer(b'\x89PNG\r\n', np.uint8))
    with pytest.raises(InputError, match='left: 6 bytes are not PNG'):
        decode_image(message, 'left')


def test_empty_image(grey):
    with pytest.raises(InputError, match=r'left: the image is empty \(0x32\)'):
        decode_image(image(grey, 'mono8', width=0, step=0), 'left')


def test_left_and_right_of_different_size(grey):
    with pytest.raises(InputError, match='/rig/left/image_rect is 48x32 but .*right.* is 40x32'):
        pair_from_messages(
            image(grey, 'mono8'), image(grey[:, :40], 'mono8'), *infos(), topics=TOPICS
        )


def test_image_size_unlike_camera_info(grey):
    small = image(grey[:20], 'mono8')
    with pytest.raises(CalibrationError, match='left/image_rect is 48x20 but /rig/l/info.*48x32'):
        pair_from_messages(small, small, *infos(), topics=TOPICS)


@pytest.mark.parametrize('tx', [0.0, 12.5])
def test_right_projection_without_baseline_names_the_parameter(tx):
    left, right = infos()
    right.p[3] = tx
    with pytest.raises(CalibrationError, match=rf"/rig/r/info: P\[3\] is {tx:g}.*'baseline'"):
        calibration_from_camera_infos(left, right, topics=TOPICS)
    assert calibration_from_camera_infos(left, right, baseline_m=0.4).baseline_m == 0.4


def test_same_tx_on_both_cameras_is_no_baseline():
    left, right = infos()
    left.p[3] = right.p[3] = -157.0
    with pytest.raises(CalibrationError, match='baseline of 0 m'):
        baseline_of_camera_infos(left, right)


def test_uncalibrated_camera():
    left, right = infos()
    right.p[:] = 0.0
    with pytest.raises(CalibrationError, match='/rig/r/info: P has focal lengths 0 and 0.*calib'):
        calibration_from_camera_infos(left, right, topics=TOPICS)


@pytest.mark.parametrize(('index', 'name'), [(0, 'fx'), (5, 'fy'), (6, 'cy')])
def test_cameras_that_are_not_rectified_to_one_model(index, name):
    left, right = infos()
    right.p[index] += 2.0
    with pytest.raises(CalibrationError, match=f'{name} is .* shares fx, fy and cy'):
        calibration_from_camera_infos(left, right)


def test_camera_infos_of_different_size():
    left, right = infos()
    object.__setattr__(right, 'width', 40)
    with pytest.raises(CalibrationError, match='48x32 but .* for 40x32'):
        calibration_from_camera_infos(left, right)


def test_region_of_interest_and_binning_are_applied():
    left, right = infos()
    for info in (left, right):
        roi = make_message(
            'sensor_msgs/msg/RegionOfInterest',
            x_offset=8,
            y_offset=4,
            width=32,
            height=24,
            do_rectify=False,
        )
        object.__setattr__(info, 'roi', roi)
        object.__setattr__(info, 'binning_x', 2)
        object.__setattr__(info, 'binning_y', 2)
    calibration = calibration_from_camera_infos(left, right)
    assert (calibration.width, calibration.height) == (16, 12)
    assert calibration.fx == 20.0
    # Column 23.5 becomes 15.5 in the window; its centre at 16.0 from the edge becomes 8.0.
    assert calibration.cx == pytest.approx(7.5)
    assert calibration.cy == pytest.approx(5.5)
    assert calibration.baseline_m == pytest.approx(0.25)


def with_region(info, x, y, width, height):
    names = ('x_offset', 'y_offset', 'width', 'height')
    values = dict(zip(names, (x, y, width, height), strict=True))
    roi = make_message('sensor_msgs/msg/RegionOfInterest', do_rectify=False, **values)
    object.__setattr__(info, 'roi', roi)
    return info


def test_regions_may_begin_at_another_column_but_not_at_another_row():
    left, right = infos()
    with_region(left, 8, 4, 32, 24)
    calibration = calibration_from_camera_infos(left, with_region(right, 3, 4, 32, 24))
    assert (calibration.cx, calibration.cx_right) == (23.5 - 8, 22.0 - 3)
    for region in ((8, 5, 32, 24), (8, 4, 30, 24), (0, 0, 0, 0)):
        with pytest.raises(CalibrationError, match='32x24 at .8, 4.*the same rows at one size'):
            calibration_from_camera_infos(left, with_region(right, *region))
    # Raw images are rectified to one window, whatever part of the sensor they show.
    raw = calibration_from_camera_infos(left, with_region(right, 3, 5, 32, 24), raw=True)
    assert (raw.cx, raw.cx_right) == (23.5 - 8, 22.0 - 8)


def test_camera_info_without_a_size_names_its_topic():
    left, right = infos()
    for info in (left, right):
        object.__setattr__(info, 'width', 0)
    with pytest.raises(CalibrationError, match='/rig/l/info has the region 0x32'):
        calibration_from_camera_infos(left, right, topics=TOPICS)


def test_depth_in_metres_and_millimetres():
    metres = np.array([[1.5, 0.0], [np.nan, np.inf]], np.float32)
    expected = np.array([[1.5, np.nan], [np.nan, np.nan]], np.float32)
    np.testing.assert_array_equal(decode_depth(image(metres, '32FC1'), 'depth'), expected)
    millimetres = np.array([[1500, 0]], np.uint16)
    decoded = decode_depth(image(millimetres, '16UC1'), 'depth')
    np.testing.assert_allclose(decoded, [[1.5, np.nan]])
    with pytest.raises(InputError, match="depth: depth encoding 'mono8'"):
        decode_depth(image(np.ones((2, 2), np.uint8), 'mono8'), 'depth')


@pytest.mark.parametrize('little_endian', [True, False])
def test_stamp_of_serialized_messages(grey, little_endian):
    types = get_typestore(Stores.ROS2_JAZZY)
    data = types.serialize_cdr(
        image(grey, 'mono8'), 'sensor_msgs/msg/Image', little_endian=little_endian
    )
    assert cdr_stamp_ns(data) == 1_500_000_002
    with pytest.raises(InputError, match='4 bytes cannot be a message with a header'):
        cdr_stamp_ns(b'\x00\x01\x00\x00')


def test_header_of_a_time_before_the_epoch_keeps_its_nanoseconds_positive():
    stamp = header(make_message, -1, 'map').stamp
    assert (stamp.sec, stamp.nanosec) == (-1, 999_999_999)
