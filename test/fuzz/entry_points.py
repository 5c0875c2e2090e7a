"""Where bytes from outside enter, each as a function of bytes that may only raise a ReconError.

One list for the short run (`test_entry_points.py`) and the long one (`long_run.py`).
"""

from __future__ import annotations

import argparse
import atexit
from collections.abc import Callable
import contextlib
import functools
import io
import json
import math
from pathlib import Path
import shutil
import struct
import tempfile
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

from lunar_stereo_recon.backends import choice_self_test
from lunar_stereo_recon.backends.model_seal import check_model_file, seal_model
from lunar_stereo_recon.backends.self_test import check_answer, HEIGHT, KEY, SHIFT_PX, WIDTH
from lunar_stereo_recon.backends.student_file import described
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import make_message
from lunar_stereo_recon.benchmark.pairs import load_sample
from lunar_stereo_recon.datatypes import DisparityPrediction, StereoCalibration
from lunar_stereo_recon.encoded_image import decoded_image
from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.files.arrays import load_arrays, mapped_array
from lunar_stereo_recon.files.calibrations import load_calibration, load_camera_infos
from lunar_stereo_recon.files.manifests import load_manifest
from lunar_stereo_recon.files.rigs import read_rig_frames
from lunar_stereo_recon.files.self_masks import read_self_mask
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.confidence import (
    calibrated_confidence,
    ConfidenceCalibration,
    FEATURES,
)
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from lunar_stereo_recon.geometry.frame_tree import FrameTree
from lunar_stereo_recon.geometry.moving_frames import MovingFrames
from lunar_stereo_recon.geometry.rectify import rectified_image, seen_mask
from lunar_stereo_recon.messages import (
    calibration_from_camera_infos,
    cdr_stamp_ns,
    decode_image,
    raw_cameras_of_infos,
)
from lunar_stereo_recon.result_messages import camera_info_message, image_message
from lunar_stereo_recon.ros.camera_presets import read_preset
from lunar_stereo_recon.terrain_messages import points_of_cloud

try:
    from safetensors.torch import save_file
    import torch

    from lunar_stereo_recon.simulation.camera_faults import read_camera_faults
    from lunar_stereo_recon.simulation.dem import read_dem
    from training import checkpoint as checkpoints
    from training.commands.campaign import read_campaign
    from training.models.checkpoints import load_pointmap_model
    from training.recipe import load_recipe
except ModuleNotFoundError:
    torch = None

RIG = StereoCalibration(20.0, 20.0, 11.5, 7.5, 11.5, 0.2, 24, 16)
ENCODINGS = ('mono8', 'rgb8', 'bayer_rggb16', 'yuv422', 'nv12', 'nv24', '32FC1', '64FC3', '16SC4')
CALIBRATION = b'fx: 90\nfy: 91.5\ncx: 4.75e1\ncy: 31.5\nbaseline: 0.2\nwidth: 96\nheight: 64\n'
RIG_FILE = (
    b'base_frame: base\nleft_optical_frame: l\nright_optical_frame: r\nposition: [0, 1, 2]\n'
    b'rotation_deg: [0, 10, 0]\nbaseline: 0.2\n'
)
CAMCHAIN = b"""cam0:
  camera_model: pinhole
  intrinsics: [20.0, 20.5, 11.5, 7.5]
  distortion_model: radtan
  distortion_coeffs: [-0.2, 0.05, 0.001, -0.0005]
  resolution: [24, 16]
cam1:
  camera_model: pinhole
  intrinsics: [20.0, 20.5, 11.5, 7.5]
  distortion_model: radtan
  distortion_coeffs: [-0.1, 0.02, 0, 0]
  resolution: [24, 16]
  T_cn_cnm1:
  - [1, 0, 0, -0.12]
  - [0, 1, 0, 0.001]
  - [0, 0, 1, 0]
  - [0, 0, 0, 1]
"""
LENSES = ('plumb_bob', 'rational_polynomial', 'equidistant', 'fisheye', '')
MANIFEST = (
    b'{"pairs": [{"id": "a", "left": "l.png", "right": "r.png", "fx": 90, "fy": 90, "cx": 4, '
    b'"cy": 4, "baseline_m": 0.2, "width": 96, "height": 64, "gt": "g.npz"}]}'
)
PRESET = (
    b'camera_namespace: /rig\nleft_image: left/image\nuse_sim_time: true\n'
    b'parameters:\n  baseline: 0.2\n  rectify: true\n'
)
CAMERA_FAULTS = b'right_error:\n  roll_deg: 0.1\nlamp_strength: 0.5\n'
CAMPAIGN = b'steps:\n- run: smoke --out {out}/a\n  share: 2\n  makes: "{data}/b"\n'


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


def raw_camera_info(data: bytes) -> None:
    """Numbers of K, D, R and P and the region are replaced; what is accepted can be rectified."""
    infos = [
        camera_info_message(make_message, RIG, 0, 'left', right=side) for side in (False, True)
    ]
    lens, count = (*data[:2], 0, 0)[:2]
    for info in infos:
        info.distortion_model = LENSES[lens % len(LENSES)]
        info.d = np.full(count % 16, 0.001)
    for index, value in struct.iter_unpack('<Bd', data[2 : 2 + (len(data) - 2) // 9 * 9]):
        info = infos[index >> 7]
        kind, place = index >> 5 & 3, index & 31
        if kind == 3:
            numbers = (0.0 if not math.isfinite(value) else value) % 2**32
            region = ('x_offset', 'y_offset', 'width', 'height')
            setattr(info.roi, region[place % 4], int(numbers))
            continue
        array = (info.k, info.r, info.d)[kind]
        if len(array):
            array[place % len(array)] = value
    calibration = calibration_from_camera_infos(*infos, raw=True)
    for camera in raw_cameras_of_infos(*infos, calibration):
        grey = np.full((camera.height, camera.width), 0.5, np.float32)
        rectified = rectified_image(grey, camera)
        if not np.isfinite(rectified[seen_mask(camera)]).all():
            raise AssertionError(f'{camera} gives pixels that are no numbers')


def cloud(data: bytes) -> None:
    """Sizes of a cloud, then of its fields, then its points."""
    head = struct.unpack_from('<IIIII5B', data.ljust(25, b'\0'))
    names = ('x', 'y', 'z', 'confidence', 'sigma')
    fields = [
        SimpleNamespace(name=name, offset=place & 63, datatype=7 if place < 192 else 8, count=1)
        for name, place in zip(names, head[5:], strict=True)
    ]
    width, height, point_step, row_step, big = head[:5]
    message = SimpleNamespace(
        width=width,
        height=height,
        point_step=point_step,
        row_step=row_step,
        is_bigendian=bool(big),
        fields=fields,
        data=np.frombuffer(data[25:], np.uint8),
    )
    points = points_of_cloud(message)
    if points.points.shape != (len(points.confidence), 3):
        raise AssertionError(f'{points} does not belong together')


def transforms(data: bytes) -> None:
    """Add static transforms between seven frames; what can be looked up is finite."""
    tree = FrameTree()
    for parent, child, *numbers in struct.iter_unpack('<BB7d', data[: len(data) // 58 * 58]):
        tree.add(str(parent % 7), str(child % 7), np.array(numbers[:3]), np.array(numbers[3:]))
    for source in range(7):
        with contextlib.suppress(ReconError):
            if not np.isfinite(tree.lookup('0', str(source))).all():
                raise AssertionError(f'frame {source} is nowhere')


def moving_frames(data: bytes) -> None:
    """Add poses over time between five frames; what can be looked up is finite."""
    frames = MovingFrames()
    for parent, child, tick, *numbers in struct.iter_unpack(
        '<BBB7d', data[: len(data) // 59 * 59]
    ):
        names = str(parent % 5), str(child % 5)
        pose = np.array(numbers[:3]), np.array(numbers[3:])
        if tick & 128:
            frames.add_static(*names, *pose)
        else:
            frames.add(*names, (tick - 40) * 10**8, *pose)
    for source in range(5):
        for tick in (-3, 0, 1, 5):
            with contextlib.suppress(ReconError):
                found = frames.lookup('0', str(source), tick * 10**8 + 7)
                if found is not None and not np.isfinite(found).all():
                    raise AssertionError(f'frame {source} is nowhere')


def rendered_pair(data: bytes) -> None:
    """Change shapes, types and values of a pair's arrays; what is taken is a pair."""
    meta = json.dumps({'stratum': 'a'})
    arrays: dict[str, np.ndarray] = {
        **{name: np.full((6, 8), 90, np.uint8) for name in ('left', 'right')},
        **{name: np.zeros((6, 8), bool) for name in ('shadow', 'occlusion', 'rock')},
        'disparity': np.full((6, 8), 2.5, np.float32),
        'intrinsics': np.array([[20.0, 0, 3.5], [0, 20, 2.5], [0, 0, 1]]),
        'baseline_m': np.array(0.2),
        'meta': np.array(meta),
    }
    for which, kind, value in struct.iter_unpack('<BBd', data[: len(data) // 10 * 10]):
        name = list(arrays)[which % len(arrays)]
        array = arrays[name]
        if kind < 128 and array.dtype.kind in 'fbu' and array.size:
            with np.errstate(invalid='ignore'):
                array.reshape(-1)[kind % array.size] = np.float64(value).astype(array.dtype)
        elif kind < 192:
            arrays[name] = np.resize(
                array, ((), (3,), (6, 8), (5, 8), (6, 8, 3), (0, 0))[kind % 6]
            )
        else:
            with np.errstate(invalid='ignore'), contextlib.suppress(ValueError):
                arrays[name] = array.astype(('f8', 'U20', 'i2', 'c8', 'bool', '>f4')[kind % 6])
    path = Path(_folder()) / 'rendered.npz'
    np.savez(path, **arrays)
    pair, truth = load_sample(path)
    if not np.isfinite(pair.left).all() or not np.isfinite(truth.depth[truth.valid]).all():
        raise AssertionError(f'{arrays} gives values that are none')


def self_test(data: bytes) -> None:
    """Read the known answer of a model; one that is always right is refused or taken."""
    answer = np.full((HEIGHT, WIDTH), SHIFT_PX, np.float32)
    matcher: Any = SimpleNamespace(
        predict=lambda left, right: DisparityPrediction(answer, answer / 100),
        metadata={KEY: data.decode('utf-8', 'replace')},
        provider='none',
    )
    check_answer(matcher, Path('model.onnx'))


def chooser_answer(data: bytes) -> None:
    """Read the known answer of the chooser; what is taken is compared without a warning."""
    path = Path('choice.onnx')
    text = data.decode('utf-8', 'replace')
    expected = choice_self_test.stored_answer({choice_self_test.ANSWER_KEY: text}, path)
    zeros = np.zeros((5, choice_self_test.TEST_HEIGHT, choice_self_test.TEST_WIDTH), np.float32)
    choice_self_test.check_answer(zeros, expected, path)


def self_mask(data: bytes) -> None:
    """Read a mask as the parameter gives it."""
    read_self_mask(data.decode('utf-8', 'replace'))


def bag(ending: str, data: bytes) -> None:
    """Whatever is read of a bag are pairs; what is not is said."""
    path = Path(_folder()) / f'bag{ending}'
    path.write_bytes(data)
    with StereoBagReader(path) as reader:
        for frame in reader.frames():
            # A damaged image is refused; the next one may be whole.
            with contextlib.suppress(ReconError):
                frame.pair()
                frame.depth()


def model_metadata(data: bytes) -> None:
    """Lines of text are the entries of a model's metadata."""
    names = (
        'format_version',
        'max_disparity_px',
        'confidence_calibration',
        'self_test_px',
        'network_width_px',
    )
    values = data.decode('utf-8', 'replace').split('\n')
    metadata = dict(zip(names, values, strict=False))
    facts = described(metadata, Path('model.onnx'))
    if facts.confidence_calibration:
        calibration = ConfidenceCalibration.from_metadata(facts.confidence_calibration)
        features = np.linspace(-16, 16, len(FEATURES) * 12, dtype=np.float32)
        answer = calibrated_confidence(features.reshape(len(FEATURES), 3, 4), calibration)
        if not (np.isfinite(answer).all() and 0 <= answer.min() and answer.max() <= 1):
            raise AssertionError(f'{calibration} gives confidences {answer}')


def checkpoint(data: bytes) -> None:
    """Replace the index of a checkpoint; its shards stay."""
    folder = _checkpoint()
    (folder / checkpoints.INDEX).write_bytes(data)
    checkpoints.load_checkpoint(folder)


def _campaign(path: Path) -> None:
    # What is no command line is refused by argparse with a page of help.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        read_campaign(path, Path('out'), None, 'cpu')


def weights(ending: str, data: bytes) -> None:
    """Weights as others publish them: what is read are tensors."""
    _file(load_pointmap_model, data, f'file{ending}')


def _file(read: Callable[[Path], object], data: bytes, name: str = 'file') -> None:
    path = Path(_folder()) / name
    path.write_bytes(data)
    read(path)


@functools.cache
def _folder() -> str:
    """Return a folder of this process; it goes with it."""
    # In memory where there is such a folder: most of the time would go to the disk.
    memory = Path('/dev/shm')
    folder = tempfile.mkdtemp(prefix='fuzz_', dir=memory if memory.is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _checkpoint() -> Path:
    folder = Path(_folder()) / 'checkpoint'
    checkpoints.save_checkpoint(
        folder, {'step': 3, 'a': {'b': torch.arange(6.0).reshape(2, 3)}, 'c': [1, 2]}
    )
    return folder


def _index() -> bytes:
    return (_checkpoint() / 'index.json').read_bytes()


def _weights(ending: str) -> bytes:
    path = Path(_folder()) / f'start{ending}'
    tensors = {'enc_norm.weight': torch.zeros(3), 'a': torch.arange(6.0).reshape(2, 3)}
    if ending == '.pth':
        text = "AsymmetricMASt3R(pos_embed='RoPE100', enc_depth=1)"
        torch.save({'args': argparse.Namespace(model=text), 'model': tensors}, path)
    else:
        config = {
            **{
                f'{part}_{size}': count
                for part in ('encoder', 'decoder')
                for size, count in (('width', 16), ('depth', 1), ('heads', 2))
            },
            'head': {'level_channels': [1, 2, 3, 4]},
        }
        metadata = {'format_version': '1', 'kind': 'Mast3rConfig', 'config': json.dumps(config)}
        save_file(tensors, path, metadata)
    return path.read_bytes()


def _arrays(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, left=np.arange(12, dtype=np.uint8).reshape(3, 4), meta=np.array('{}'))
    return file.getvalue()


def _array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(49, dtype=np.float32).reshape(7, 7))
    return file.getvalue()


def _bag(plugin: StoragePlugin) -> bytes:
    """Return a bag of one small pair, not compressed and without checksums: more of it is read."""
    path = Path(_folder()) / f'start_{plugin.name}'
    types = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=Writer.VERSION_LATEST, storage_plugin=plugin) as writer:
        for side in ('left', 'right'):
            image = image_message(make_message, np.zeros((16, 24), np.uint8), 'mono8', 5, side)
            info = camera_info_message(make_message, RIG, 5, side, right=side == 'right')
            for topic, message in ((f'/{side}/image_rect', image), (f'/{side}/camera_info', info)):
                kind = message.__msgtype__
                connection = writer.add_connection(topic, kind, typestore=types)
                writer.write(connection, 5, types.serialize_cdr(message, kind))
    (file,) = (entry for entry in path.iterdir() if entry.suffix in ('.mcap', '.db3'))
    return file.read_bytes()


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
    'raw camera_info': (
        raw_camera_info,
        [bytes([n, (5, 8, 4, 4, 0)[n]]) + struct.pack('<Bd', 64, 0.01) for n in range(5)],
    ),
    'cloud': (
        cloud,
        [
            struct.pack('<IIIII5B', width, height, 20, 20 * width, 0, 0, 4, 8, 12, 16)
            + np.linspace(-3, 9, 5 * width * height, dtype='<f4').tobytes()
            for width, height in ((4, 1), (3, 2))
        ],
    ),
    'transforms': (
        transforms,
        [b''.join(struct.pack('<BB7d', n, n + 1, 0.1, 2, -3, 0, 0, 0.6, 0.8) for n in range(4))],
    ),
    'moving frames': (
        moving_frames,
        [
            b''.join(
                struct.pack('<BBB7d', n, n + 1, 40 + step, 0.1, 2, -3, 0, 0, 0.6, 0.8)
                for n in range(3)
                for step in (0, 4)
            )
        ],
    ),
    'rendered pair': (
        rendered_pair,
        [struct.pack('<BBd', which, kind, 3.0) for kind in (2, 130, 200) for which in (0, 5, 6)],
    ),
    'self-test': (self_test, [json.dumps([SHIFT_PX + 0.01] * 20).encode(), b'']),
    'chooser answer': (
        chooser_answer,
        [choice_self_test.answer_entry(np.zeros((5, 120, 192), np.float32)).encode(), b'[]'],
    ),
    'preset': (functools.partial(_file, read_preset), [PRESET]),
    'self mask': (
        self_mask,
        [b'[[0, 0], [10, 2], [5.5, 9]]', b'[[1, 1], [9, 9], [20, 1]]', b'~x/y'],
    ),
    'stamp': (cdr_stamp_ns, [bytes(16)]),
    'calibration': (
        functools.partial(_file, lambda path: load_calibration([path], 96, 64)),
        [CALIBRATION],
    ),
    'camchain': (
        functools.partial(_file, lambda path: load_camera_infos([path])),
        [CAMCHAIN],
    ),
    'rig': (functools.partial(_file, read_rig_frames), [RIG_FILE]),
    'manifest': (functools.partial(_file, load_manifest), [MANIFEST]),
    'model seal': (functools.partial(_file, check_model_file), [_sealed(bytes(200))]),
    'npz': (
        functools.partial(_file, lambda path: load_arrays(path, 'pair')),
        [_arrays(np.savez), _arrays(np.savez_compressed)],
    ),
    'npy': (functools.partial(_file, lambda path: mapped_array(path, 'heights')), [_array()]),
    'model metadata': (
        model_metadata,
        [
            b'1\n192\n{"weights": {"edge": -0.9, "dark": 2}, "bias": 0.1, "curve": [[0, 0.1], '
            b'[0.5, 0.4], [1, 1]]}',
            b'1\n1e2\nnull',
            b'1\n192\nnull\n\n640',
        ],
    ),
    'mcap': (functools.partial(bag, '.mcap'), [_bag(StoragePlugin.MCAP)]),
    'db3': (functools.partial(bag, '.db3'), [_bag(StoragePlugin.SQLITE3)]),
}
# Those of training, where torch is installed.
if torch is not None:
    ENTRY_POINTS |= {
        'camera faults': (functools.partial(_file, read_camera_faults), [CAMERA_FAULTS]),
        'elevation model': (
            functools.partial(_file, functools.partial(read_dem, cell_m=1.0), name='dem.npy'),
            [_array()],
        ),
        'recipe': (
            functools.partial(_file, load_recipe),
            [(Path(__file__).parents[2] / 'training/recipes/adapt.yaml').read_bytes()],
        ),
        'campaign': (functools.partial(_file, _campaign), [CAMPAIGN]),
        'checkpoint': (checkpoint, [_index()]),
        '.pth': (functools.partial(weights, '.pth'), [_weights('.pth')]),
        '.safetensors': (functools.partial(weights, '.safetensors'), [_weights('.safetensors')]),
    }
# Milliseconds each: the long run gives them a share of the inputs, not an equal one.
SLOW = ('mcap', 'db3', 'recipe', 'campaign', 'checkpoint', '.pth', '.safetensors')


def try_bytes(name: str, data: bytes) -> bool:
    """Return whether an entry point took the bytes; what is no ReconError goes on."""
    try:
        ENTRY_POINTS[name][0](data)
    except ReconError:
        return False
    return True
