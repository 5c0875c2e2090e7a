import json

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import DEFAULT_MODEL, load_backend
from lunar_stereo_recon.backends.sgbm_backend import ClassicalBackend
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation import scores
from lunar_stereo_recon.geometry.confidence import DEFAULT_CALIBRATION, FEATURES
from lunar_stereo_recon.pipeline import StereoReconstructor
from training.cli import main
from training.commands.calibrate import (
    chosen_pixels,
    fit,
    fit_sigma_on,
    match_frames,
    score,
    score_sigma,
    store,
)
from training.data.batches import load_rendered_pair

SHAPE = (64, 160)


def write_frame(path, seed):
    """Write a slope under a black sky, its right third without texture, as pairs are stored."""
    rng = np.random.default_rng(seed)
    height, width = SHAPE
    rows = np.arange(height, dtype=np.float32)[:, None]
    disparity = np.repeat(3 + 0.15 * rows, width, axis=1).astype(np.float32)
    texture = cv2.GaussianBlur(rng.standard_normal((height, width + 20)), (0, 0), 1.0)
    texture = (0.5 + 0.3 * texture).astype(np.float32)
    texture[:, 110:] = 0.5
    columns = np.arange(width, dtype=np.float32) - disparity + 20
    grid = np.repeat(rows, width, axis=1)
    views = [cv2.remap(texture, columns, grid, cv2.INTER_CUBIC), texture[:, 20:].copy()]
    views = [view + 0.004 * rng.standard_normal(view.shape) for view in views]
    disparity[:16] = np.nan
    for view in views:
        view[:16] = 0.0
    left, right = (np.clip(view * 255, 0, 255).astype(np.uint8) for view in views)
    np.savez(
        path,
        left=left,
        right=right,
        disparity=disparity,
        shadow=np.zeros(SHAPE, bool),
        occlusion=np.zeros(SHAPE, np.uint8),
        intrinsics=np.array([[90.0, 0, 79.5], [0, 90.0, 31.5], [0, 0, 1]]),
        baseline_m=0.2,
        meta='{}',
    )
    return path


@pytest.fixture
def frames(tmp_path):
    return [write_frame(tmp_path / f'{seed}.npz', seed) for seed in range(4)]


@pytest.fixture
def engine():
    return StereoReconstructor(ClassicalBackend('sgbm'))


def test_rendered_pair_keeps_its_calibration(frames):
    pair, truth = load_rendered_pair(frames[0])
    assert pair.calibration.baseline_m == 0.2 and pair.calibration.cx == 79.5
    assert truth.shape == SHAPE and np.isnan(truth[:16]).all()


def test_file_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / 'other.npz', left=np.zeros(3))
    with pytest.raises(InputError, match='other.npz'):
        load_rendered_pair(tmp_path / 'other.npz')


def test_little_sky_is_chosen():
    error = np.zeros(SHAPE)
    error[:32] = np.nan
    pixels = chosen_pixels(error, np.random.default_rng(0), count=1000)
    assert len(set(pixels)) == len(pixels) == 1100
    assert np.isnan(error.ravel()[pixels]).sum() == 100


def test_fit_is_better_calibrated_than_the_default(frames, engine, tmp_path):
    matched = match_frames(engine, frames, tmp_path)
    fitted = score(matched[3:], fit(matched[:3]))
    default = score(matched[3:], DEFAULT_CALIBRATION)
    assert fitted['ece'] < 0.05 and fitted['ece'] < default['ece']
    assert fitted['ause'] < 0.5
    assert fitted['sky_confidence'] < 0.2
    assert fitted['mean_confidence'] == pytest.approx(fitted['correct'], abs=0.05)


def test_sigma_holds_on_a_frame_that_it_was_not_fitted_on(frames, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, 'LEAST_SIGMA_PIXELS', 500)
    matched = match_frames(engine, frames, tmp_path)
    confidence = fit(matched[:3])
    bins = score_sigma(matched[3:], confidence, fit_sigma_on(matched[:3], confidence))
    assert len(bins) == 10
    assert bins[-1]['sigma_px'] > 2 * bins[0]['sigma_px']  # without texture it is larger
    assert np.mean([each['within_one'] for each in bins]) == pytest.approx(0.683, abs=0.1)
    assert np.mean([each['within_two'] for each in bins]) == pytest.approx(0.954, abs=0.06)


def test_stored_calibration_is_read_by_the_backend(tmp_path):
    onnx = pytest.importorskip('onnx')
    from onnx import helper, TensorProto

    shape = ['b', 1, 'h', 'w']
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ('left', 'right')
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ['b', 'h', 'w'])
        for n in ('disparity', 'confidence')
    ]
    channel = helper.make_tensor('channel', TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node('Squeeze', ['left', 'channel'], ['disparity']),
        helper.make_node('Squeeze', ['right', 'channel'], ['confidence']),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, 'tiny', inputs, outputs, [channel]),
        opset_imports=[helper.make_opsetid('', 18)],
        ir_version=9,
    )
    helper.set_model_props(model, {'format_version': '1', 'max_disparity_px': '8', 'name': 'tiny'})
    onnx.save(model, tmp_path / 'tiny.onnx')
    entry = {'weights': {FEATURES[0]: 2.0}, 'bias': 0.5, 'curve': []}
    store(tmp_path / 'tiny.onnx', json.dumps(entry))
    backend = load_backend('onnx', tmp_path / 'tiny.onnx')
    assert backend.confidence_calibration == entry
    assert backend.name == 'tiny'


def test_calibration_is_written_into_a_new_folder(frames, tmp_path):
    out = tmp_path / 'new' / 'calibration.json'
    assert main(['calibrate', str(DEFAULT_MODEL), str(frames[0].parent), '--out', str(out)]) == 0
    assert 'sigma' in json.loads(out.read_text())
