import logging
from pathlib import Path
import sys
import time

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import (
    BACKENDS,
    DEFAULT_MODEL,
    load_backend,
    model_file,
    STUDENT_BACKENDS,
)
from lunar_stereo_recon.backends.fastest import fastest, timing_pair
from lunar_stereo_recon.backends.sgbm_backend import ClassicalBackend
from lunar_stereo_recon.datatypes import DisparityPrediction
from lunar_stereo_recon.errors import InputError, ModelError


@pytest.fixture(params=STUDENT_BACKENDS)
def runtime(request):
    """Return the name of each backend that runs a student's file."""
    if request.param == 'openvino':
        pytest.importorskip('openvino')
    return request.param


def test_model_runs_at_several_sizes(runtime, model_maker):
    backend = load_backend(runtime, model_maker(), threads=1)
    assert backend.name == 'tiny'
    assert backend.provider_fallback == ''
    assert backend.max_disparity_px == 8.0
    assert backend.max_width_px == 640
    assert backend.confidence_calibration == {'weights': {'prior_logit': 1.0}, 'bias': 0.0}
    rng = np.random.default_rng(0)
    for shape in ((32, 64), (64, 96)):
        left, right = rng.random((2, *shape), dtype=np.float32)
        prediction = backend.predict(left, right)
        np.testing.assert_allclose(prediction.disparity, 8 * left, rtol=1e-6)
        np.testing.assert_allclose(prediction.confidence, right, rtol=1e-6)


def test_a_result_outlives_the_next_pair(runtime, model_maker):
    backend = load_backend(runtime, model_maker())
    left = np.full((32, 32), 0.5, np.float32)
    first = backend.predict(left, left).disparity
    backend.predict(0.5 * left, left)
    np.testing.assert_allclose(first, 4.0, rtol=1e-6)


def test_provider_names_runtime_and_precision(model_maker):
    assert load_backend('onnx', model_maker()).provider == 'CPUExecutionProvider'
    openvino = pytest.importorskip('openvino')
    provider = load_backend('openvino', model_maker()).provider
    # The file does not say what must not be rounded, so nothing is.
    assert provider == f'OpenVINO {openvino.__version__.split("-")[0]} CPU, float32'


def test_openvino_that_is_not_installed_is_named_with_its_extra(model_maker, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    monkeypatch.delitem(sys.modules, 'lunar_stereo_recon.backends.openvino_backend', raising=False)
    with pytest.raises(ModelError, match=r'pip install .*\[openvino\]'):
        load_backend('openvino', model_maker())


def test_openvino_refuses_what_it_would_do_badly_or_not_at_all(model_maker):
    pytest.importorskip('openvino')
    with pytest.raises(ModelError, match='quantized'):
        load_backend('openvino', model_maker(metadata={'quantization': '{}'}))
    with pytest.raises(ModelError, match='cuda belong to onnxruntime'):
        load_backend('openvino', model_maker(), providers=['cuda'])


def test_grey_views_are_repeated_for_a_colour_network(runtime, model_maker):
    backend = load_backend(runtime, model_maker(channels=3))
    left = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    np.testing.assert_allclose(backend.predict(left, left).disparity, 8 * left, rtol=1e-5)


def test_missing_model_names_its_path(runtime, tmp_path):
    with pytest.raises(ModelError, match='none.onnx'):
        load_backend(runtime, tmp_path / 'none.onnx')


def test_corrupted_model_names_its_path(runtime, tmp_path, model_maker):
    whole = model_maker().read_bytes()
    for name, content in (
        ('noise.onnx', bytes(range(256)) * 4),
        ('cut.onnx', whole[: len(whole) // 2]),
        ('empty.onnx', b''),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            load_backend(runtime, tmp_path / name)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'inputs': ('img1', 'img2')}, 'img1'),
        ({'confidence_name': 'certainty'}, 'lacks the outputs confidence'),
        ({'channels': 2}, '1 or 3'),
        ({'metadata': {'format_version': '9'}}, "'9'"),
        ({'omit': ('format_version',)}, 'format_version None'),
        ({'omit': ('max_disparity_px',)}, 'max_disparity_px'),
        ({'metadata': {'max_disparity_px': '-4'}}, 'positive'),
        ({'metadata': {'network_width_px': '330'}}, 'network_width_px is 330; .* multiple of 32'),
        ({'metadata': {'confidence_calibration': '{'}}, 'not JSON'),
        ({'metadata': {'confidence_calibration': '[1]'}}, 'JSON object'),
    ],
)
def test_model_of_another_form_is_refused(runtime, model_maker, change, message):
    with pytest.raises(ModelError, match=message):
        load_backend(runtime, model_maker(**change))


def test_model_says_its_width(runtime, model_maker):
    backend = load_backend(runtime, model_maker(metadata={'network_width_px': '320'}))
    assert backend.max_width_px == 320


def test_model_without_calibration_is_accepted(runtime, model_maker):
    assert load_backend(runtime, model_maker(omit=('confidence_calibration',))).name == 'tiny'


def test_size_that_is_no_multiple_is_refused(runtime, model_maker):
    backend = load_backend(runtime, model_maker())
    image = np.zeros((30, 64), np.float32)
    with pytest.raises(InputError, match='multiples of 32'):
        backend.predict(image, image)


def test_falling_back_to_the_cpu_is_said(model_maker, caplog):
    with caplog.at_level(logging.WARNING):
        backend = load_backend('onnx', model_maker(), providers=['tensorrt', 'cpu'])
    if backend.provider == 'TensorrtExecutionProvider':
        pytest.skip('TensorRT is installed: nothing falls back')
    assert 'TensorrtExecutionProvider' in backend.provider_fallback
    assert backend.provider_fallback in caplog.text


def test_unknown_names_list_the_known(model_maker):
    with pytest.raises(ModelError, match='onnx, openvino, sgbm'):
        load_backend('magic')
    with pytest.raises(ModelError, match='cpu, cuda'):
        load_backend('onnx', model_maker(), providers=['abacus'])


@pytest.mark.parametrize('name', ['sgbm', 'sgbm_hh', 'bm_padded'])
def test_classical_matchers_find_a_slope(name, slope_pair, slope_disparity):
    prediction = BACKENDS[name](None, None, 0).predict(slope_pair.left, slope_pair.right)
    found = np.isfinite(prediction.disparity)
    inner = found[16:-16, 24:-16]
    assert inner.mean() > 0.5
    error = np.abs(prediction.disparity - slope_disparity)[16:-16, 24:-16][inner]
    assert np.median(error) < 0.3
    np.testing.assert_array_equal(found, np.isfinite(prediction.confidence))


def test_padded_border_leaves_no_blind_columns():
    """Without padding SGBM answers nothing in the first 128 columns."""
    rng = np.random.default_rng(0)
    image = rng.random((40, 200), dtype=np.float32)
    shifted = np.roll(image, -3, axis=1)
    prediction = ClassicalBackend('sgbm').predict(image, shifted)
    assert np.isfinite(prediction.disparity[:, 10:100]).mean() > 0.8
    blind = ClassicalBackend('bm').predict(image, shifted)
    assert not np.isfinite(blind.disparity[:, :100]).any()


def test_unusable_search_range_is_refused():
    with pytest.raises(ModelError, match='multiple of 16'):
        ClassicalBackend('sgbm', 100)
    with pytest.raises(ModelError, match='sgbm_hh'):
        ClassicalBackend('semi')


def test_images_smaller_than_a_block_are_refused():
    tiny = np.zeros((8, 16), np.float32)
    with pytest.raises(InputError, match='16x8'):
        ClassicalBackend('bm').predict(tiny, tiny)


def test_shipped_models_go_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_file(None) == model_file('flight') == DEFAULT_MODEL
    assert model_file('flight_int8').is_file()
    assert model_file('mine.onnx') == Path('mine.onnx')
    with pytest.raises(ModelError, match='no model file at other'):
        load_backend('onnx', 'other')


def test_int8_model_says_what_the_float_one_says():
    rng = np.random.default_rng(4)
    texture = cv2.GaussianBlur(rng.random((96, 192), np.float32), (0, 0), 1.0)
    left, right = texture[:, :160], np.ascontiguousarray(texture[:, 12:172])
    whole, small = (load_backend('onnx', name, threads=1) for name in ('flight', 'flight_int8'))
    found = [backend.predict(left, right).disparity[:, 32:] for backend in (whole, small)]
    assert np.median(np.abs(found[0] - 12)) < 0.3
    assert 0 < np.median(np.abs(found[0] - found[1])) < 0.15


class Timed:
    """A backend that takes a time and is off by some pixels."""

    choice = ''

    def __init__(self, seconds, error_px=0.0):
        self._seconds, self._error_px = seconds, error_px

    def predict(self, left, right):
        time.sleep(self._seconds)
        disparity = np.full(left.shape, 10 + self._error_px, np.float32)
        return DisparityPrediction(disparity, np.ones_like(disparity))


def test_the_fastest_that_agrees_is_taken_and_said(caplog):
    def broken():
        raise ModelError('no such runtime')

    slow, fast = Timed(0.05), Timed(0.002, error_px=0.05)
    wrong = Timed(0.0, error_px=0.5)
    loaders = {
        'a': lambda: slow,
        'b': broken,
        'c': lambda: wrong,
        'd': lambda: fast,
    }
    with caplog.at_level(logging.INFO):
        assert fastest(loaders) is fast
    assert fast.choice.startswith('d, the fastest of a ')
    assert 'b left out (no such runtime)' in fast.choice
    assert 'c left out (its disparities differ by 0.5 px' in fast.choice
    assert fast.choice in caplog.text
    assert slow.choice == ''


def test_without_the_first_there_is_no_choice():
    def broken():
        raise ModelError('no such file')

    with pytest.raises(ModelError, match='no such file'):
        fastest({'onnx': broken, 'openvino': lambda: Timed(0.0)})


def test_the_pair_for_timing_has_the_disparities_it_claims():
    left, right = timing_pair()
    found = ClassicalBackend('sgbm').predict(left, right).disparity
    assert np.nanmedian(found[10]) == pytest.approx(8.7, abs=0.5)
    assert np.nanmedian(found[-10]) == pytest.approx(39.3, abs=0.5)


def test_auto_runs_a_model_as_onnxruntime_would(model_maker):
    backend = load_backend('auto', model_maker(), threads=1)
    assert backend.choice.split(',')[0] in ('onnx', 'openvino')
    assert load_backend('onnx', model_maker(), threads=1).choice == ''
