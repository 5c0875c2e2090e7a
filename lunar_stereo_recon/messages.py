"""Stereo image and camera_info messages to a StereoPair, the one implementation for DDS and bags.

Works on any object with the attributes of the ROS 2 messages (`sensor_msgs`), so that messages of
rclpy and of rosbags are read alike and nothing of ROS is imported. Each error names the topic.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
import struct
import sys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.encoded_image import decoded_image, image_header
from lunar_stereo_recon.errors import CalibrationError, InputError, quoted
from lunar_stereo_recon.geometry.rectify import (
    DEFAULT_MODEL,
    fitting_coefficients,
    RawCamera,
    rectified_image,
    seen_mask,
)
from lunar_stereo_recon.limits import MAX_NAME, MAX_STAMP_NS, MAX_STAMP_S
from lunar_stereo_recon.preprocess import check_float_range, color_from_array, grey_from_array

# Encoding: (type of one value, channels, OpenCV conversion to RGB or None where the channels are
# grey already, RGB already, or cut from RGBA). Names of sensor_msgs/image_encodings.hpp.
_RGB_CONVERSIONS: dict[str, tuple[str, int, int | None]] = {
    'mono8': ('u1', 1, None),
    'mono16': ('u2', 1, None),
    'rgb8': ('u1', 3, None),
    'rgba8': ('u1', 4, None),
    'rgb16': ('u2', 3, None),
    'rgba16': ('u2', 4, None),
    'bgr8': ('u1', 3, cv2.COLOR_BGR2RGB),
    'bgra8': ('u1', 4, cv2.COLOR_BGRA2RGB),
    'bgr16': ('u2', 3, cv2.COLOR_BGR2RGB),
    'bgra16': ('u2', 4, cv2.COLOR_BGRA2RGB),
    # OpenCV names a Bayer pattern by its second row and column, ROS by its first two pixels.
    'bayer_rggb8': ('u1', 1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr8': ('u1', 1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': ('u1', 1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg8': ('u1', 1, cv2.COLOR_BayerGB2RGB),
    'bayer_rggb16': ('u2', 1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr16': ('u2', 1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg16': ('u2', 1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg16': ('u2', 1, cv2.COLOR_BayerGB2RGB),
    'yuv422': ('u1', 2, cv2.COLOR_YUV2RGB_UYVY),
    'uyvy': ('u1', 2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': ('u1', 2, cv2.COLOR_YUV2RGB_YUYV),
    'yuyv': ('u1', 2, cv2.COLOR_YUV2RGB_YUYV),
}
# Planar encodings: rows of the message per image row, OpenCV conversion.
_PLANAR_CONVERSIONS: dict[str, tuple[float, int]] = {
    'nv12': (1.5, cv2.COLOR_YUV2RGB_NV12),
    'nv21': (1.5, cv2.COLOR_YUV2RGB_NV21),
}
# P[3] and a baseline from elsewhere may differ by this share before it is worth a warning.
BASELINE_AGREEMENT = 0.01
# Of P[1] and P[4], in focal lengths: less moves no pixel by a tenth.
MAX_SKEW = 1e-4
_GENERIC_TYPES = {
    '8U': 'u1',
    '8S': 'i1',
    '16U': 'u2',
    '16S': 'i2',
    '32S': 'i4',
    '32F': 'f4',
    '64F': 'f8',
}
# What values are worked with, by kind and bytes: 32 bits of an integer need a white level anyway.
_WORKING_TYPES: dict[str, dict[int, type]] = {
    'i': {1: np.uint8, 2: np.uint16, 4: np.float32},
    'f': {4: np.float32, 8: np.float32},
}
_GENERIC_ENCODING = re.compile(r'(8U|8S|16U|16S|32S|32F|64F)C?([134])?')


@dataclass(frozen=True)
class StereoTopics:
    """Names of the four topics of a rig, as they shall appear in messages to the user."""

    left_image: str = 'left/image_rect'
    right_image: str = 'right/image_rect'
    left_info: str = 'left/camera_info'
    right_info: str = 'right/camera_info'


def stamp_ns(message: Any) -> int:
    """Return the stamp in the message's header, nanoseconds."""
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def check_stamp(message: Any, topic: str) -> None:
    """Refuse a stamp that no message of a result could carry.

    Raises:
        InputError: Seconds are negative, or nanoseconds a second or more.
    """
    stamp = message.header.stamp
    if not (0 <= stamp.sec <= MAX_STAMP_S and 0 <= stamp.nanosec <= MAX_STAMP_NS):
        raise InputError(
            f'{topic}: the stamp is {stamp.sec} s and {stamp.nanosec} ns; 0 to {MAX_STAMP_S} s '
            f'and 0 to {MAX_STAMP_NS} ns are needed'
        )


def _check_frame(message: Any, topic: str) -> None:
    """Refuse a frame whose name would be copied into every result and is no name."""
    frame_id = message.header.frame_id
    if len(frame_id) > MAX_NAME:
        raise InputError(
            f'{topic}: the frame_id is {quoted(frame_id)}; at most {MAX_NAME} are allowed'
        )


def pair_from_messages(
    left: Any,
    right: Any,
    left_info: Any,
    right_info: Any,
    *,
    baseline_m: float = 0.0,
    white_level: float | None = None,
    rectify: bool = False,
    topics: StereoTopics = StereoTopics(),
) -> StereoPair:
    """Return the StereoPair of two images (Image or CompressedImage) and their infos.

    Args:
        left: `sensor_msgs` Image or CompressedImage; its stamp and frame are the pair's.
        right: The same for the right camera.
        left_info: `sensor_msgs` CameraInfo of the left camera.
        right_info: The same for the right camera.
        baseline_m: Overrides the baseline in the right P where positive; metres.
        white_level: Image value that becomes 1.0; the encoding's maximum where None.
        rectify: The images are raw: distortion and rotation are taken out by D, K, R and P.
        topics: Names used in error messages.

    Raises:
        InputError: A stamp, a frame or an image cannot be used, or the sizes of left and right
            differ.
        CalibrationError: A camera_info is unusable or is for another image size.
    """
    check_stamp(left, topics.left_image)
    check_stamp(right, topics.right_image)
    _check_frame(left, topics.left_image)
    calibration = calibration_from_camera_infos(
        left_info, right_info, baseline_m=baseline_m, raw=rectify, topics=topics
    )
    # By what the headers say: pixels of another size are not even decoded.
    left_size = _size_of(left, topics.left_image)
    right_size = _size_of(right, topics.right_image)
    if left_size != right_size:
        raise InputError(
            f'{topics.left_image} is {_text(left_size)} but {topics.right_image} is '
            f'{_text(right_size)}; both views must have one size'
        )
    if left_size != (calibration.width, calibration.height):
        raise CalibrationError(
            f'{topics.left_image} is {_text(left_size)} but {topics.left_info} is for '
            f'{calibration.width}x{calibration.height}; a camera_info of the same size is needed'
        )
    left_values = decode_image(left, topics.left_image)
    right_values = decode_image(right, topics.right_image)
    for values, topic in ((left_values, topics.left_image), (right_values, topics.right_image)):
        check_float_range(values, white_level, topic)
    left_mask = right_mask = None
    if rectify:
        cameras = raw_cameras_of_infos(left_info, right_info, calibration, topics)
        left_values, right_values = map(rectified_image, (left_values, right_values), cameras)
        left_mask, right_mask = map(seen_mask, cameras)
    return StereoPair(
        left=grey_from_array(left_values, white_level),
        right=grey_from_array(right_values, white_level),
        calibration=calibration,
        stamp_ns=stamp_ns(left),
        frame_id=left.header.frame_id,
        color=color_from_array(left_values, white_level),
        left_mask=left_mask,
        right_mask=right_mask,
    )


def decode_image(message: Any, topic: str) -> NDArray[Any]:
    """Return the values of an Image or CompressedImage message, colours in RGB order.

    Takes every encoding of `sensor_msgs` that is grey or has colours: mono, RGB, BGR, with or
    without alpha, Bayer, YUV 4:2:2, 4:2:0 and 4:4:4, and the generic types from 8U to 64F (three
    channels then mean BGR, as in OpenCV). Negative values of the signed types become 0.

    Args:
        message: Image or CompressedImage.
        topic: Name for error messages.

    Returns:
        (H, W) or (H, W, 3), uint8, uint16 or float32.

    Raises:
        InputError: Unknown encoding, empty image, or fewer bytes than the header promises.
    """
    if hasattr(message, 'format'):
        return _decode_compressed(message, topic)
    encoding = message.encoding.strip()
    if encoding.lower() == 'nv24':
        return _rgb_of_nv24(_raw_values(message, topic, 'u1', 1, 3 * message.height))
    planar = _PLANAR_CONVERSIONS.get(encoding.lower())
    if planar:
        rows_per_row, conversion = planar
        _check_even(message, topic, message.width, message.height)
        raw = _raw_values(message, topic, 'u1', 1, round(message.height * rows_per_row))
        return cv2.cvtColor(raw, conversion)
    dtype, channels, conversion_to_rgb = _layout(encoding, topic)
    values = _raw_values(message, topic, dtype, channels, message.height)
    if channels == 2:  # YUV 4:2:2: two pixels share their colour
        _check_even(message, topic, message.width)
    if values.dtype.kind in _WORKING_TYPES:
        if values.dtype.kind == 'i':
            values = np.maximum(values, 0)
        values = values.astype(_WORKING_TYPES[values.dtype.kind][values.dtype.itemsize])
    if conversion_to_rgb is not None:
        return cv2.cvtColor(np.ascontiguousarray(values), conversion_to_rgb)
    return values[..., :3] if channels == 4 else values


def decode_depth(message: Any, topic: str) -> NDArray[np.float32]:
    """Return a depth image in metres, NaN invalid, by REP 118.

    32FC1 holds metres (NaN, 0 and infinity are invalid), 16UC1 millimetres (0 invalid).

    Raises:
        InputError: Another encoding, or truncated data.
    """
    if message.encoding not in ('32FC1', '16UC1', 'mono16'):
        raise InputError(
            f'{topic}: depth encoding {quoted(message.encoding)}; 32FC1 (metres) or 16UC1 '
            '(millimetres) is needed'
        )
    metres_per_unit = 1.0 if message.encoding == '32FC1' else 1e-3
    dtype = 'f4' if message.encoding == '32FC1' else 'u2'
    depth = _raw_values(message, topic, dtype, 1, message.height).astype(np.float32)
    depth *= np.float32(metres_per_unit)
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def calibration_from_camera_infos(
    left: Any,
    right: Any,
    *,
    baseline_m: float = 0.0,
    raw: bool = False,
    topics: StereoTopics = StereoTopics(),
) -> StereoCalibration:
    """Return the rectified calibration that two CameraInfo messages describe by their P.

    Args:
        left: CameraInfo of the left camera. Region of interest and binning are applied.
        right: CameraInfo of the right camera; its region may begin at another column.
        baseline_m: Metres; used instead of the right P[3] where positive.
        raw: The images are going to be rectified: both get the window of the left one.
        topics: Names for error messages.

    Raises:
        CalibrationError: P is empty, the two cameras are not rectified to one model, sizes,
            rows of the region or binning differ, or there is no positive baseline.
    """
    if (left.width, left.height) != (right.width, right.height):
        raise CalibrationError(
            f'{topics.left_info} is for {left.width}x{left.height} but {topics.right_info} for '
            f'{right.width}x{right.height}; both views must have one size'
        )
    left_p, right_p = _projection(left, topics.left_info), _projection(right, topics.right_info)
    _check_rectified(left_p, right_p, topics)
    if not baseline_m > 0:
        baseline_m = baseline_of_camera_infos(left, right, topics=topics)
    left_window = _read_out_window(left, topics.left_info)
    right_window = left_window if raw else _read_out_window(right, topics.right_info)
    if left_window[1:] != right_window[1:]:
        raise CalibrationError(
            f'{topics.left_info} has {_window_text(left_window)} but {topics.right_info} has '
            f'{_window_text(right_window)}; both views must show the same rows at one size'
        )
    x, y, width, height, columns, rows = left_window
    if columns > width or rows > height:
        raise CalibrationError(
            f'{topics.left_info} has {_window_text(left_window)}; no pixel is left of it'
        )
    try:
        calibration = StereoCalibration(
            fx=float(left_p[0, 0]),
            fy=float(left_p[1, 1]),
            cx=float(left_p[0, 2]) - x,
            cy=float(left_p[1, 2]) - y,
            cx_right=float(right_p[0, 2]) - right_window[0],
            baseline_m=baseline_m,
            width=width,
            height=height,
        )
        return calibration.resized(width // columns, height // rows)
    except CalibrationError as error:
        raise CalibrationError(f'{topics.left_info}: {error}') from error


def baseline_of_camera_infos(
    left: Any, right: Any, *, topics: StereoTopics = StereoTopics()
) -> float:
    """Return the baseline in the P matrices, metres: -(P_right[3] - P_left[3]) / fx.

    Raises:
        CalibrationError: It is not positive; the message names the `baseline` parameter.
    """
    left_p, right_p = _projection(left, topics.left_info), _projection(right, topics.right_info)
    baseline_m = (left_p[0, 3] - right_p[0, 3]) / right_p[0, 0]
    if not (np.isfinite(baseline_m) and baseline_m > 0):
        reason = ''
        if baseline_m < 0:
            reason = 'Are left and right swapped? '
        elif right_p[1, 3] != left_p[1, 3]:
            reason = (
                f'P[7] is {right_p[1, 3]:g}: the cameras stand above each other, which is not '
                'supported. '
            )
        elif left_p[0, 3] != 0:
            reason = 'Both have the same. '
        raise CalibrationError(
            f'{topics.right_info}: P[3] is {right_p[0, 3]:g} ({topics.left_info}: '
            f'{left_p[0, 3]:g}), which gives a baseline of {baseline_m:g} m; a rectified right '
            f'camera has P[3] = -fx * baseline < 0. {reason}Mend the calibration, or set the '
            "parameter 'baseline' to the distance between the cameras in metres"
        )
    return float(baseline_m)


def raw_cameras_of_infos(
    left_info: Any,
    right_info: Any,
    calibration: StereoCalibration,
    topics: StereoTopics = StereoTopics(),
) -> tuple[RawCamera, RawCamera]:
    """Return both raw cameras of a rig; see `raw_camera_of_info`."""
    return (
        raw_camera_of_info(left_info, calibration, topics.left_info),
        raw_camera_of_info(right_info, calibration, topics.right_info, is_right=True),
    )


def raw_camera_of_info(
    info: Any, calibration: StereoCalibration, topic: str, *, is_right: bool = False
) -> RawCamera:
    """Return the raw camera that a CameraInfo describes, to be rectified for a calibration.

    Args:
        info: CameraInfo of either camera. Its region of interest and binning are applied to K.
        calibration: What the rectified pair shall have, see `calibration_from_camera_infos`.
        topic: Name for error messages.
        is_right: Take the calibration's right principal point.

    Raises:
        CalibrationError: K, D or R cannot be used.
    """
    fx, _, cx, _, fy, cy = info.k[:6]
    x_offset, y_offset, width, height, _, _ = _read_out_window(info, topic)
    x_scale, y_scale = calibration.width / width, calibration.height / height
    model = info.distortion_model.strip().lower()
    if not model and any(info.d):  # ROS's own parsers take it so, too
        model = DEFAULT_MODEL
    try:
        return RawCamera(
            calibration.width,
            calibration.height,
            (
                float(fx * x_scale),
                float(fy * y_scale),
                float((cx - x_offset + 0.5) * x_scale - 0.5),
                float((cy - y_offset + 0.5) * y_scale - 0.5),
            ),
            model,
            fitting_coefficients(model, info.d),
            tuple(map(float, info.r)),
            (
                calibration.fx,
                calibration.fy,
                calibration.cx_right if is_right else calibration.cx,
                calibration.cy,
            ),
        )
    except CalibrationError as error:
        raise CalibrationError(f'{topic}: {error}') from error


def _projection(info: Any, topic: str) -> NDArray[np.float64]:
    projection = np.asarray(info.p, np.float64)
    if projection.size != 12:
        raise CalibrationError(f'{topic}: P has {projection.size} numbers; 12 are needed')
    projection = projection.reshape(3, 4)
    if not np.isfinite(projection).all():
        values = ', '.join(f'{value:g}' for value in projection.ravel())
        raise CalibrationError(f'{topic}: P is {values}; finite numbers are needed')
    if projection[0, 0] <= 0 or projection[1, 1] <= 0:
        raise CalibrationError(
            f'{topic}: P has focal lengths {projection[0, 0]:g} and {projection[1, 1]:g}; a '
            'rectified camera has positive ones. Is the camera calibrated?'
        )
    return projection


def _check_rectified(left_p: NDArray[Any], right_p: NDArray[Any], topics: StereoTopics) -> None:
    """Refuse P matrices whose rows cannot be epipolar lines (half a pixel at the image edge)."""
    for matrix, topic in ((left_p, topics.left_info), (right_p, topics.right_info)):
        skew = max(abs(matrix[0, 1]), abs(matrix[1, 0]))
        if skew > MAX_SKEW * matrix[0, 0]:
            raise CalibrationError(
                f'{topic}: P[1] is {matrix[0, 1]:g} and P[4] {matrix[1, 0]:g}; a rectified camera '
                'has zeros there. P seems to be K times the pose: rectify the pair and take its P'
            )
    names = {'fx': (0, 0), 'fy': (1, 1), 'cy': (1, 2)}
    for name, index in names.items():
        left_value, right_value = left_p[index], right_p[index]
        tolerance = 0.5 if name == 'cy' else 1e-3 * left_value
        if abs(left_value - right_value) > tolerance:
            raise CalibrationError(
                f'{name} is {left_value:g} in P of {topics.left_info} but {right_value:g} in P '
                f'of {topics.right_info}; a rectified pair shares fx, fy and cy'
            )


def _read_out_window(info: Any, topic: str) -> tuple[int, int, int, int, int, int]:
    """Return offset and size of the region of interest and the binning, which P does not hold.

    Returns:
        x, y, width, height of the region, and columns and rows that are binned to a pixel.

    Raises:
        CalibrationError: The region is not within the image.
    """
    roi = info.roi
    region = (roi.x_offset, roi.y_offset, roi.width, roi.height)
    if not (roi.width and roi.height):
        region = (0, 0, info.width, info.height)
    elif roi.x_offset + roi.width > info.width or roi.y_offset + roi.height > info.height:
        raise CalibrationError(
            f'{topic}: the region {roi.width}x{roi.height} at ({roi.x_offset}, {roi.y_offset}) is '
            f'not within the image of {info.width}x{info.height}'
        )
    return *region, max(1, info.binning_x), max(1, info.binning_y)


def _window_text(window: tuple[int, int, int, int, int, int]) -> str:
    x, y, width, height, columns, rows = window
    return f'the region {width}x{height} at ({x}, {y}) with binning {columns}x{rows}'


def _layout(encoding: str, topic: str) -> tuple[str, int, int | None]:
    """Return value type, channels and conversion to RGB of a packed encoding."""
    if encoding.lower() in _RGB_CONVERSIONS:
        return _RGB_CONVERSIONS[encoding.lower()]
    generic = _GENERIC_ENCODING.fullmatch(encoding)
    if generic is None:
        known = ', '.join([*_RGB_CONVERSIONS, *_PLANAR_CONVERSIONS])
        raise InputError(
            f'{topic}: unknown image encoding {quoted(encoding)}; known are {known}, nv24 and the '
            'generic 8UC1, 8SC1, 16UC1, 16SC1, 32SC1, 32FC1, 64FC1 with 1, 3 or 4 channels'
        )
    channels = int(generic.group(2) or 1)
    conversions = {1: None, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    return _GENERIC_TYPES[generic.group(1)], channels, conversions[channels]


def _raw_values(message: Any, topic: str, dtype: str, channels: int, rows: int) -> NDArray[Any]:
    """Return a (rows, W) or (rows, W, channels) view of the message's bytes, without padding."""
    value_bytes = np.dtype(dtype).itemsize
    row_bytes = message.width * channels * value_bytes
    # Some drivers leave step at 0 for packed rows.
    step = message.step or row_bytes
    data = np.frombuffer(message.data, np.uint8)
    if message.width == 0 or rows == 0:
        raise InputError(f'{topic}: the image is empty ({message.width}x{message.height})')
    if step < row_bytes or data.size < step * (rows - 1) + row_bytes:
        raise InputError(
            f'{topic}: {data.size} bytes with a row step of {step}, but {message.width}x'
            f'{message.height} {message.encoding} needs {row_bytes} bytes a row, '
            f'{row_bytes * rows} in all; the data is truncated'
        )
    row_starts = np.lib.stride_tricks.as_strided(
        data, shape=(rows, row_bytes), strides=(step, 1), writeable=False
    )
    values = np.ascontiguousarray(row_starts).view(np.dtype(dtype))
    if value_bytes > 1 and bool(message.is_bigendian) != (sys.byteorder == 'big'):
        values = values.byteswap()
    return values.reshape((rows, message.width) + ((channels,) if channels > 1 else ()))


def _check_even(message: Any, topic: str, *sizes: int) -> None:
    """Refuse a subsampled image that ends within a group of pixels that share their colour."""
    if any(size % 2 for size in sizes):
        which = 'width and height are' if len(sizes) == 2 else 'width is'
        raise InputError(
            f'{topic}: {message.encoding} image of {message.width}x{message.height}; an even '
            f'{which} needed'
        )


def _rgb_of_nv24(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB of an image over its full-size interleaved U and V, (3 H, W).

    OpenCV has no such conversion; these are the numbers of its others (BT.601, video range).
    """
    rows, width = values.shape
    luma = values[: rows // 3].astype(np.float32)
    chroma = values[rows // 3 :].reshape(rows // 3, width, 2).astype(np.float32) - 128
    grey, u, v = 1.164 * np.maximum(luma - 16, 0), chroma[..., 0], chroma[..., 1]
    rgb = np.stack([grey + 1.596 * v, grey - 0.813 * v - 0.391 * u, grey + 2.018 * u], axis=-1)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def _decode_compressed(message: Any, topic: str) -> NDArray[Any]:
    """Return the values of a CompressedImage (JPEG, PNG, ...), colours in RGB order."""
    values = decoded_image(message.data, topic)
    if values.ndim == 3:
        return values
    # image_transport writes "bayer_rggb8; jpeg compressed": the mosaic was compressed as grey.
    source_encoding = message.format.split(';')[0].strip().lower()
    _, _, conversion = _RGB_CONVERSIONS.get(source_encoding, ('', 0, None))
    if source_encoding.startswith('bayer_') and conversion is not None:
        if values.dtype.kind != 'u':
            raise InputError(
                f'{topic}: compressed image of type {values.dtype} ({quoted(message.format)}); '
                'a mosaic has uint8 or uint16'
            )
        return cv2.cvtColor(values, conversion)
    return values


def _size_of(message: Any, topic: str) -> tuple[int, int]:
    """Return width and height as the message's or the compressed image's own header says."""
    if not hasattr(message, 'format'):
        return message.width, message.height
    header = image_header(message.data, topic)
    return header.width, header.height


def _text(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'


def cdr_stamp_ns(data: bytes | memoryview) -> int:
    """Return the stamp of a serialized message that begins with a std_msgs Header, nanoseconds.

    Raises:
        InputError: Fewer bytes than a header has.
    """
    if len(data) < 12:
        raise InputError(f'{len(data)} bytes cannot be a message with a header')
    # Four bytes of encapsulation; the second says the byte order.
    order = '<' if data[1] & 1 else '>'
    seconds, nanoseconds = struct.unpack_from(f'{order}iI', data, 4)
    return seconds * 1_000_000_000 + nanoseconds
