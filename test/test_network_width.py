"""The network's width follows from the time that a pair may take."""

import numpy as np
import pytest

from lunar_stereo_recon import network_width
from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.network_width import NETWORK_WIDTHS, widest_within
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor
from lunar_stereo_recon.preprocess import NETWORK_WIDTH


class Clock:
    """Stands in for the module `time`: a pair takes so long as its width says."""

    def __init__(self, ms_per_px):
        self.ms_per_px, self.now, self.seen = ms_per_px, 0.0, []

    def perf_counter(self):
        return self.now

    def reconstruct(self, width):
        self.seen.append(width)
        self.now += width * self.ms_per_px / 1e3


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(ms_per_px=0.05)
    monkeypatch.setattr(network_width, 'time', clock)
    return clock


@pytest.mark.parametrize('target_ms, width', [(1000, 640), (26, 480), (18, 320)])
def test_the_widest_that_is_quick_enough(clock, target_ms, width):
    assert widest_within(target_ms, 640, clock.reconstruct) == width


def test_too_slow_at_any_width_is_said(clock, caplog):
    assert widest_within(1.0, 640, clock.reconstruct) == 320
    assert 'smallest network width, 320 px; target_ms is 1' in caplog.text


def test_widths_beyond_the_image_are_not_tried(clock):
    assert widest_within(1e3, 300, clock.reconstruct) == 300
    clock.seen.clear()
    widest_within(0.0, 4000, clock.reconstruct)
    assert sorted(set(clock.seen)) == list(NETWORK_WIDTHS)


def test_wider_than_the_network_itself_is_not_tried(clock):
    assert widest_within(1e3, 640, clock.reconstruct, own_width=320) == 320
    assert set(clock.seen) == {320}


def test_a_generous_target_enlarges_as_no_target_does(clock):
    assert widest_within(1e3, 384, clock.reconstruct) == NETWORK_WIDTH


def test_pipeline_sets_the_width_once(slope_pair):
    backend = load_backend('onnx', threads=1)
    engine = StereoReconstructor(backend, ReconstructionOptions(target_ms=60e3))
    engine.reconstruct(slope_pair)
    assert engine.network_width_px == slope_pair.calibration.width
    engine.network_width_px = 64
    engine.reconstruct(slope_pair)
    assert engine.network_width_px == 64  # this size was timed before
    engine.options = ReconstructionOptions()
    engine.reconstruct(slope_pair)
    assert engine.network_width_px == NETWORK_WIDTH


def test_a_target_on_one_reconstructor_leaves_the_width_of_another(slope_pair):
    backend = load_backend('onnx', threads=1)
    other = StereoReconstructor(backend)
    before = other.reconstruct(slope_pair)
    hurried = StereoReconstructor(backend, ReconstructionOptions(target_ms=60e3))
    hurried.reconstruct(slope_pair)
    assert hurried.network_width_px == slope_pair.calibration.width
    assert other.network_width_px == backend.max_width_px == NETWORK_WIDTH
    np.testing.assert_array_equal(other.reconstruct(slope_pair).disparity, before.disparity)


def test_classical_matchers_have_no_width(slope_pair):
    backend = load_backend('sgbm')
    engine = StereoReconstructor(backend, ReconstructionOptions(target_ms=1.0))
    engine.reconstruct(slope_pair)
    assert engine.network_width_px is None


def test_a_negative_target_is_refused():
    with pytest.raises(InputError, match='target_ms is -1'):
        ReconstructionOptions(target_ms=-1.0)
