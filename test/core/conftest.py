"""Small stereo scenes with exact disparity, and a tiny model file in the package's format."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair

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
