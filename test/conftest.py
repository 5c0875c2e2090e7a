"""Small stereo scenes with exact disparity, a tiny model file, and a small recorded drive."""

from __future__ import annotations

from collections.abc import Callable
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.bags.writer import BagWriter, make_message, pose_message, transform_message
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.result_messages import camera_info_message, image_message

BAG_WIDTH, BAG_HEIGHT = 96, 64
BAG_DISPARITY_PX = 6.0
BAG_CALIBRATION = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, BAG_WIDTH, BAG_HEIGHT)
BAG_START_NS = 1_700_000_000_000_000_000
BAG_PERIOD_NS = 100_000_000
FRAME_ID = 'left_camera_optical_frame'
# A rover has no torch: there, `colcon test` leaves out what trains and renders.
TORCH_ONLY = ['simulation', 'training']
# What renders needs numba too; everything that trains runs on pairs that are there already.
NUMBA_ONLY = ['simulation']
if not importlib.util.find_spec('torch'):
    collect_ignore = TORCH_ONLY
elif not importlib.util.find_spec('numba'):
    collect_ignore = NUMBA_ONLY
else:
    collect_ignore = []


def pytest_report_header() -> str:
    """Say what is left out."""
    missing = 'numba' if collect_ignore is NUMBA_ONLY else 'torch'
    ignored = ', '.join(collect_ignore)
    return f'without {missing}, not collected: {ignored}' if ignored else ''


def frontal_views(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return left and right (H, W) uint8 of a textured wall with one disparity everywhere."""
    noise = np.random.default_rng(seed).standard_normal((BAG_HEIGHT, BAG_WIDTH + 16))
    texture = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.0)
    grey = np.clip(128 + 90 * texture, 0, 255).astype(np.uint8)
    shift = int(BAG_DISPARITY_PX)
    return grey[:, :BAG_WIDTH].copy(), grey[:, shift : BAG_WIDTH + shift].copy()


@pytest.fixture
def make_bag(tmp_path) -> Callable[..., Path]:
    """Return a function that writes a bag of a wall at 2 m and returns its path."""

    def make(
        name: str = 'drive',
        frames: int = 3,
        *,
        right_offset_ns: int = 0,
        infos: bool = True,
        right_tx: float | None = None,
        skip_right: tuple[int, ...] = (),
        encoding: str = 'mono8',
        right_rows_low: int = 0,
        result_topics: tuple[str, ...] = (),
    ) -> Path:
        calibration = BAG_CALIBRATION
        depth_m = calibration.fx * calibration.baseline_m / BAG_DISPARITY_PX
        depth = np.full((BAG_HEIGHT, BAG_WIDTH), depth_m, np.float32)
        depth[:4] = 0.0
        with BagWriter(tmp_path / name) as writer:
            for index in range(frames):
                stamp = BAG_START_NS + index * BAG_PERIOD_NS
                views = zip(('left', 'right'), frontal_views(index), strict=True)
                for side, view in views:
                    if side == 'right' and index in skip_right:
                        continue
                    if side == 'right':
                        view = np.roll(view, right_rows_low, axis=0)
                    own = stamp + (right_offset_ns if side == 'right' else 0)
                    message = image_message(make_message, view, encoding, own, FRAME_ID)
                    writer.write(f'/rig/{side}/image_rect', message, stamp)
                    info = camera_info_message(
                        make_message, calibration, own, FRAME_ID, right=side == 'right'
                    )
                    if side == 'right' and right_tx is not None:
                        info.p[3] = right_tx
                    if side == 'right':
                        info.k[5] += right_rows_low
                    if infos:
                        writer.write(f'/rig/{side}/camera_info', info, stamp)
                truth = image_message(make_message, depth, '32FC1', stamp, FRAME_ID)
                writer.write('/ground_truth/depth', truth, stamp)
                for topic in result_topics:
                    writer.write(topic, truth, stamp)
                # Looking along x of the map, z up.
                position = np.array([0.1 * index, 0.0, 1.0])
                orientation = np.array([-0.5, 0.5, -0.5, 0.5])
                pose = pose_message(position, orientation, stamp)
                writer.write('/ground_truth/pose', pose, stamp)
                writer.write('/tf', transform_message(position, orientation, stamp), stamp)
        return tmp_path / name

    return make


HEIGHT, WIDTH = 64, 96


@pytest.fixture
def calibration() -> StereoCalibration:
    return StereoCalibration(90.0, 91.0, 47.5, 31.5, 47.5, 0.2, WIDTH, HEIGHT)


@pytest.fixture
def slope_disparity() -> np.ndarray:
    """Ground seen at a slant: the disparity grows by 0.15 px a row."""
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    return np.repeat(3.0 + 0.15 * rows, WIDTH, axis=1).astype(np.float32)


@pytest.fixture
def slope_pair(calibration, slope_disparity) -> StereoPair:
    """Return a textured slope; left(x) = right(x - disparity) exactly up to interpolation."""
    left, right = textured_views(slope_disparity)
    return StereoPair(left, right, calibration)


def textured_views(disparity: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return left and right (H, W) float32 of a surface with this left disparity."""
    height, width = disparity.shape
    margin = int(disparity.max()) + 4
    noise = np.random.default_rng(seed).standard_normal((height, width + margin))
    # No steeper than a camera's point spread function leaves it.
    texture = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.0)
    texture = np.clip(0.5 + 0.3 * texture, 0, 1)
    columns = np.arange(width, dtype=np.float32) - disparity + margin
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    left = cv2.remap(texture, columns.astype(np.float32), rows, cv2.INTER_CUBIC)
    return np.clip(left, 0, 1), np.ascontiguousarray(texture[:, margin:])


@pytest.fixture
def model_maker(tmp_path):
    """Return a function that writes a tiny ONNX model of the package's format.

    Its disparity is 8 px times the left image, its confidence the right image.
    """
    onnx = pytest.importorskip('onnx')
    from onnx import helper, numpy_helper, TensorProto

    def make(
        name: str = 'tiny.onnx',
        channels: int = 1,
        inputs: tuple[str, str] = ('left', 'right'),
        confidence_name: str = 'confidence',
        metadata: dict[str, str] | None = None,
        omit: tuple[str, ...] = (),
    ) -> Path:
        shape = ['batch', channels, 'height', 'width']
        left, right = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs
        )
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ['batch', 'height', 'width'])
            for name in ('disparity', confidence_name)
        ]
        axis = numpy_helper.from_array(np.array([1]), 'axis')
        scale = numpy_helper.from_array(np.array(8.0, np.float32), 'scale')
        nodes = [
            helper.make_node('ReduceMean', [inputs[0], 'axis'], ['grey'], keepdims=0),
            helper.make_node('Mul', ['grey', 'scale'], ['disparity']),
            helper.make_node('ReduceMean', [inputs[1], 'axis'], [confidence_name], keepdims=0),
        ]
        graph = helper.make_graph(nodes, 'tiny', [left, right], outputs, [axis, scale])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
        entries = {
            'format_version': '1',
            'name': 'tiny',
            'config': '{}',
            'recipe': '{}',
            'weights_sha256': '0' * 64,
            'confidence_calibration': json.dumps({'weights': {'prior_logit': 1.0}, 'bias': 0.0}),
            'max_disparity_px': '8',
        }
        entries |= metadata or {}
        helper.set_model_props(model, {k: v for k, v in entries.items() if k not in omit})
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return make
