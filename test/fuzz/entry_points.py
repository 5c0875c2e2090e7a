"""Where bytes from outside enter, each as a function of bytes that may only raise a ReconError.

One list for the short run (`test_entry_points.py`) and the long one (`long_run.py`).
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from pathlib import Path
import struct
import tempfile
from types import SimpleNamespace

import cv2
import numpy as np

from lunar_stereo_recon.backends.model_seal import check_model_file, seal_model
from lunar_stereo_recon.bags.writer import make_message
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.files.calibrations import load_calibration
from lunar_stereo_recon.files.encoded_image import decoded_image
from lunar_stereo_recon.files.manifests import load_manifest
from lunar_stereo_recon.files.rigs import read_rig_frames
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from lunar_stereo_recon.messages import calibration_from_camera_infos, cdr_stamp_ns, decode_image
from lunar_stereo_recon.result_messages import camera_info_message

RIG = StereoCalibration(20.0, 20.0, 11.5, 7.5, 11.5, 0.2, 24, 16)
ENCODINGS = ('mono8', 'rgb8', 'bayer_rggb16', 'yuv422', 'nv12', 'nv24', '32FC1', '64FC3', '16SC4')
CALIBRATION = b'fx: 90\nfy: 91.5\ncx: 4.75e1\ncy: 31.5\nbaseline: 0.2\nwidth: 96\nheight: 64\n'
RIG_FILE = (
    b'base_frame: base\nleft_optical_frame: l\nright_optical_frame: r\nposition: [0, 1, 2]\n'
    b'rotation_deg: [0, 10, 0]\nbaseline: 0.2\n'
)
MANIFEST = (
    b'{"pairs": [{"id": "a", "left": "l.png", "right": "r.png", "fx": 90, "fy": 90, "cx": 4, '
    b'"cy": 4, "baseline_m": 0.2, "width": 96, "height": 64, "gt": "g.npz"}]}'
)


def raw_image(data: bytes) -> None:
    """Two bytes choose size and encoding, the rest is the message's."""
    first, second = (*data[:2], 0, 0)[:2]
    message = SimpleNamespace(
        encoding=ENCODINGS[first % len(ENCODINGS)],
        width=second % 9,
        height=second // 9 % 9,
        step=first // 16,
        is_bigendian=second & 1,
        data=np.frombuffer(data[2:], np.uint8),
    )
    decode_image(message, 'left')


def camera_info(data: bytes) -> None:
    """Numbers of P are replaced; whatever is accepted gives finite points in front."""
    left, right = (
        camera_info_message(make_message, RIG, 0, 'left', right=side) for side in (False, True)
    )
    for index, value in struct.iter_unpack('<Bd', data[: len(data) // 9 * 9]):
        (left if index & 32 else right).p[index % 12] = value
        if index & 64:
            left.p[index % 12] = right.p[index % 12] = value
    calibration = calibration_from_camera_infos(left, right)
    disparity = np.full((calibration.height, calibration.width), 0.01, np.float32)
    disparity[:, 1::2] = calibration.width
    depth = depth_from_disparity(disparity, calibration)
    points = points_from_depth(depth, calibration)
    if not (np.isfinite(points).all() and (depth > 0).all()):
        raise AssertionError(f'{calibration} gives points that are no points')


def _file(read: Callable[[Path], object], data: bytes) -> None:
    path = Path(_folder()) / 'file'
    path.write_bytes(data)
    read(path)


@functools.cache
def _folder() -> str:
    """Return a folder of this process; it is small and stays for the system to clear."""
    return tempfile.mkdtemp(prefix='fuzz_')


def _sealed(content: bytes) -> bytes:
    path = Path(_folder()) / 'sealed'
    path.write_bytes(content)
    seal_model(path)
    return path.read_bytes()


def _encoded(ending: str, shape: tuple[int, ...], dtype: type = np.uint8) -> bytes:
    values = (np.arange(math.prod(shape)) * 7 % 251).reshape(shape).astype(dtype)
    return cv2.imencode(ending, values)[1].tobytes()


# Name: what takes the bytes, and valid bytes to begin with.
ENTRY_POINTS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    'encoded image': (
        lambda data: decoded_image(data, 'left'),
        [
            *(_encoded(end, (5, 7, 3)) for end in ('.png', '.jpg', '.tiff', '.webp', '.bmp')),
            _encoded('.pgm', (5, 7)),
            _encoded('.tiff', (5, 7), np.float32),
        ],
    ),
    'raw image': (raw_image, [bytes([n, 40]) + bytes(range(200)) for n in range(9)]),
    'camera_info': (camera_info, [struct.pack('<Bd', n, -7.5) for n in (3, 35, 67, 69)]),
    'stamp': (cdr_stamp_ns, [bytes(16)]),
    'calibration': (
        functools.partial(_file, lambda path: load_calibration([path], 96, 64)),
        [CALIBRATION],
    ),
    'rig': (functools.partial(_file, read_rig_frames), [RIG_FILE]),
    'manifest': (functools.partial(_file, load_manifest), [MANIFEST]),
    'model seal': (functools.partial(_file, check_model_file), [_sealed(bytes(200))]),
}


def try_bytes(name: str, data: bytes) -> bool:
    """Return whether an entry point took the bytes; what is no ReconError goes on."""
    try:
        ENTRY_POINTS[name][0](data)
    except ReconError:
        return False
    return True
