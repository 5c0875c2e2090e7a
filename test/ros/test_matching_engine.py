"""The node's matcher is tried before it is trusted, and left when it does not work."""

import dataclasses
import logging
import threading

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon import backends  # noqa: E402
from lunar_stereo_recon.datatypes import DisparityPrediction  # noqa: E402
from lunar_stereo_recon.errors import InputError, ModelError  # noqa: E402
from lunar_stereo_recon.pipeline import StereoReconstructor  # noqa: E402
from lunar_stereo_recon.ros import load_control, matching_engine  # noqa: E402
from lunar_stereo_recon.ros.matching_engine import MatchingEngine, trial_pair  # noqa: E402
from lunar_stereo_recon.ros.parameters import ReconstructionParameters  # noqa: E402

PAIR = trial_pair(96, 64)


class Matcher:
    """A student on a provider of its own that does what the test wants."""

    name, provider, provider_fallback, choice = 'student', 'GPU', '', ''
    size_multiple, max_width_px, max_disparity_px = 32, 96, 32.0
    confidence_calibration, metadata = None, {}

    def __init__(self):
        self.error = None
        self.ms_per_pixel = 0.0
        self.pixels = 0

    def predict(self, left, right):
        if self.error is not None:
            raise self.error
        self.pixels = left.size
        disparity = np.full(left.shape, 8.0, np.float32)
        return DisparityPrediction(disparity, np.ones_like(disparity))


@pytest.fixture
def matcher(monkeypatch):
    """Return what the backend 'onnx' is while it does not run on the CPU."""
    matcher, onnx = Matcher(), backends.BACKENDS['onnx']

    def load(path, providers, threads, *key):
        return onnx(path, providers, 1, *key) if providers == ['cpu'] else matcher

    monkeypatch.setitem(backends.BACKENDS, 'onnx', load)
    return matcher


def engine_for(**parameters):
    parameters = ReconstructionParameters(**parameters)
    return MatchingEngine(parameters, logging.getLogger('test')), parameters


def fail(engine, parameters, count):
    for _ in range(count):
        with pytest.raises(ZeroDivisionError):
            engine.reconstruct(PAIR, parameters)


def test_model_that_fails_on_a_pair_is_not_taken(matcher):
    engine, parameters = engine_for(backend='sgbm')
    engine.reconstruct(PAIR, parameters)
    matcher.error = ZeroDivisionError('no')
    with pytest.raises(ModelError, match='onnx fails on a trial pair of 96x64: ZeroDivisionError'):
        engine.replace(ReconstructionParameters())
    assert engine.reconstructor.backend.name == 'sgbm'
    with pytest.raises(ModelError, match='640x480'):
        engine_for()


def test_failures_in_a_row_lead_to_the_cpu_and_to_sgbm(matcher, caplog):
    engine, parameters = engine_for(fallback_after=3)
    matcher.error = ZeroDivisionError('out of memory')
    fail(engine, parameters, 2)
    matcher.error = None
    engine.reconstruct(PAIR, parameters)  # the row is broken
    matcher.error = ZeroDivisionError('out of memory')
    fail(engine, parameters, 3)
    assert engine.reconstructor.backend.provider == 'CPUExecutionProvider'
    assert 'flight on CPUExecutionProvider instead of student on GPU' in engine.fallback
    assert '3 failures, the last: out of memory' in engine.fallback
    assert engine.fallback in [r.getMessage() for r in caplog.records if r.levelname == 'ERROR']
    assert np.isfinite(engine.reconstruct(PAIR, parameters).depth).any()
    assert engine.fall_back(parameters, 'it is stuck')
    assert engine.reconstructor.backend.name == 'sgbm'
    assert not engine.fall_back(parameters, 'it is stuck')
    matcher.error = None
    engine.replace(parameters)
    assert (engine.reconstructor.backend, engine.fallback) == (matcher, '')


def test_what_auto_chose_is_tested_again_too(matcher, monkeypatch):
    answers = []
    monkeypatch.setattr(
        matching_engine, 'check_answer', lambda backend, path: answers.append(path)
    )
    engine, parameters = engine_for(self_test_period=1e-6)
    engine._matcher = dataclasses.replace(engine._matcher, backend_name='auto')
    engine.reconstruct(PAIR, parameters)
    matcher.provider = 'OpenVINO 2026.1 CPU, float32'
    engine.reconstruct(PAIR, parameters)
    assert len(answers) == 1


def test_student_that_forgets_its_answer_is_loaded_anew_or_left(matcher, monkeypatch, caplog):
    answers = []

    def check(backend, path):
        answers.append(path.name)
        if backend is matcher and matcher.ms_per_pixel:  # stands for a damaged weight
            raise ModelError(f'{path} fails its self-test')

    monkeypatch.setattr(matching_engine, 'check_answer', check)
    engine, parameters = engine_for(self_test_period=1e-6)
    first = engine.reconstructor
    engine.reconstruct(PAIR, parameters)
    assert answers == ['flight.onnx'] and engine.reconstructor is first
    engine.reconstruct(PAIR, dataclasses.replace(parameters, self_test_period=0.0))
    engine.reconstruct(PAIR, dataclasses.replace(parameters, self_test_period=3600.0))
    assert len(answers) == 1
    matcher.ms_per_pixel = 1.0
    engine.reconstruct(PAIR, parameters)
    assert engine.reconstructor is not first and engine.reconstructor.backend is matcher
    assert 'flight.onnx fails its self-test: it has changed in memory' in caplog.text
    assert engine.fallback == ''
    # The file cannot be loaded either: the provider is left.
    matcher.error = ZeroDivisionError('no')
    engine.reconstruct(PAIR, parameters)
    assert engine.reconstructor.backend.provider == 'CPUExecutionProvider'
    assert 'fails its self-test; onnx fails on a trial pair' in engine.fallback


def test_chooser_that_is_damaged_in_memory_is_read_anew(monkeypatch):
    pair = trial_pair(208, 128)  # as large as the known answer
    engine, parameters = engine_for(threads=1, self_test_period=1e-6)
    right = engine.reconstruct(pair, parameters).disparity
    chooser = engine.reconstructor._chooser
    answer = type(chooser).__call__
    monkeypatch.setattr(
        type(chooser),
        '__call__',
        lambda self, evidence: answer(self, evidence) + (1.0 if self is chooser else 0.0),
    )
    again = engine.reconstruct(pair, parameters).disparity
    assert engine.reconstructor._chooser is not chooser
    np.testing.assert_array_equal(again, right)


def test_bad_pairs_are_no_failures_of_the_matcher(matcher):
    engine, parameters = engine_for(fallback_after=1)
    matcher.error = InputError('too small')
    with pytest.raises(InputError):
        engine.reconstruct(PAIR, parameters)
    assert engine.reconstructor.backend is matcher
    engine, parameters = engine_for(backend='sgbm', fallback_after=0)
    assert engine.fallback == ''


def test_slow_matcher_gets_less_to_do_and_more_again(matcher, monkeypatch):
    """The processor slows down to a fifth and recovers."""
    monkeypatch.setattr(load_control, 'NETWORK_WIDTHS', (32, 64, 96))
    monkeypatch.setattr(load_control, 'QUICK_PAIRS', 8)
    reconstruct = StereoReconstructor.reconstruct

    def timed(reconstructor, pair, pose=None):
        result = reconstruct(reconstructor, pair)
        times = {'inference': matcher.ms_per_pixel * matcher.pixels, 'rest': 10.0}
        return dataclasses.replace(result, timings_ms=times)

    # The times are said, not taken: what else the machine does must not matter.
    monkeypatch.setattr(StereoReconstructor, 'reconstruct', timed)
    engine, parameters = engine_for(target_ms=200.0)
    engine.reconstruct(PAIR, parameters)
    assert engine.reconstructor.network_width_px == 96
    matcher.ms_per_pixel = 0.06  # 369 ms at 96 px, 184 ms at 64 px, 61 ms at 32 px
    for _ in range(3 * load_control.SLOW_PAIRS):
        engine.reconstruct(PAIR, parameters)
    assert engine.load.reduced
    assert engine.reconstructor.network_width_px in (32, 64)
    assert matcher.max_width_px == 96
    matcher.ms_per_pixel = 0.0
    for _ in range(3 * load_control.QUICK_PAIRS):
        engine.reconstruct(PAIR, parameters)
    assert engine.reconstructor.network_width_px == 96
    assert not engine.load.reduced


def test_slow_loading_holds_up_nobody_and_is_not_undone(matcher, monkeypatch):
    """A pair, a fallback and a second replacement come while the first is being loaded."""
    engine, parameters = engine_for()
    go_on, loading = threading.Event(), threading.Event()
    quick = backends.BACKENDS['sgbm']

    def load(*arguments):
        if threading.current_thread() is not threading.main_thread():
            loading.set()
            assert go_on.wait(60)
        return quick(*arguments)

    monkeypatch.setitem(backends.BACKENDS, 'sgbm', load)
    asked = dataclasses.replace(parameters, backend='sgbm')
    thread = threading.Thread(target=engine.replace, args=(asked,))
    thread.start()
    assert loading.wait(60)
    assert engine.reconstruct(PAIR, parameters) is not None
    assert engine.fall_back(parameters, 'it is stuck')
    assert engine.reconstructor.backend.provider == 'CPUExecutionProvider'
    go_on.set()
    thread.join(60)
    assert (engine.reconstructor.backend.name, engine.fallback) == ('sgbm', '')


def test_fallback_does_not_undo_a_replacement(matcher, monkeypatch):
    engine, parameters = engine_for()
    onnx = backends.BACKENDS['onnx']

    def load(path, providers, threads, *key):
        """Load the simpler one so slowly that somebody is quicker."""
        if providers == ['cpu']:
            engine.replace(dataclasses.replace(parameters, backend='sgbm'))
        return onnx(path, providers, threads, *key)

    monkeypatch.setitem(backends.BACKENDS, 'onnx', load)
    assert engine.fall_back(parameters, 'it is stuck')
    assert (engine.reconstructor.backend.name, engine.fallback) == ('sgbm', '')


def test_matcher_serves_one_at_a_time(matcher, monkeypatch):
    from lunar_stereo_recon.ros import matching_engine

    monkeypatch.setattr(matching_engine, 'TURN_PATIENCE_S', 0.05)
    engine, parameters = engine_for()
    backend, turn = engine.lend()
    assert backend is matcher
    thread = threading.Thread(target=engine.reconstruct, args=(PAIR, parameters))
    with turn():
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        with pytest.raises(ModelError, match=r'student has not returned from a pair for 0\.05 s'):
            turn().__enter__()
    thread.join(60)
    assert not thread.is_alive()
