"""The shipped model in int8: it still matches, and says what it is."""

from __future__ import annotations

import json

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')

from lunar_stereo_recon.backends import DEFAULT_MODEL, load_backend  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.quantize import differences, grid_pair  # noqa: E402


def test_int8_keeps_the_disparities_and_the_metadata(plane_pairs, tmp_path, capsys):
    target = tmp_path / 'int8.onnx'
    arguments = [str(DEFAULT_MODEL), str(plane_pairs), '--out', str(target), '--frames', '2']
    assert main(['quantize', *arguments, '--threads', '1']) == 0
    assert 'MiB; against the float model on 2 frames' in capsys.readouterr().out
    assert target.stat().st_size < 0.6 * DEFAULT_MODEL.stat().st_size
    weights = [
        w for w in onnx.load(target).graph.initializer if w.data_type == onnx.TensorProto.INT8
    ]
    assert len(weights) > 30
    paths = sorted(plane_pairs.glob('*.npz'))
    change = differences(DEFAULT_MODEL, target, paths, threads=1)
    # Rounding shows (else nothing was quantized), and is small.
    assert 0 < np.median(change) < 0.2
    quantized = load_backend('onnx', target)
    for path in paths:
        pair = grid_pair(path)
        found = quantized.predict(pair['left'], pair['right']).disparity[:, 40:]
        assert np.median(np.abs(found - pair['disparity'][:, 40:])) < 0.3
    assert quantized.name.endswith('-int8')
    assert json.loads(quantized.metadata['quantization'])['frames'] == 2
    original = load_backend('onnx', DEFAULT_MODEL)
    assert quantized.max_disparity_px == original.max_disparity_px
    assert quantized.confidence_calibration == original.confidence_calibration


def test_no_frames_is_an_error(plane_pairs, tmp_path, capsys):
    arguments = [str(DEFAULT_MODEL), str(plane_pairs), '--out', str(tmp_path / 'x.onnx')]
    assert main(['quantize', *arguments, '--frames', '0']) == 2
    assert '--frames is 0' in capsys.readouterr().err
