"""No bytes from outside raise anything but a ReconError: the short run."""

import importlib.util
from pathlib import Path
import sys

import pytest

pytest.importorskip('hypothesis')
from hypothesis import given, HealthCheck, settings, strategies

spec = importlib.util.spec_from_file_location('long_run', Path(__file__).with_name('long_run.py'))
long_run = importlib.util.module_from_spec(spec)
sys.modules['long_run'] = long_run
spec.loader.exec_module(long_run)


@pytest.mark.parametrize('name', long_run.ENTRY_POINTS)
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=strategies.data())
def test_any_bytes(name, data):
    start = data.draw(strategies.sampled_from([b'', *long_run.ENTRY_POINTS[name][1]]))
    cut = data.draw(strategies.integers(0, len(start)))
    long_run.try_bytes(name, start[:cut] + data.draw(strategies.binary(max_size=64)))


@pytest.mark.parametrize('name', long_run.ENTRY_POINTS)
def test_valid_bytes_are_taken(name):
    # There each start changes a number of a valid one, or holds too few weights for a network.
    if name not in ('camera_info', '.pth', '.safetensors'):
        assert all(long_run.try_bytes(name, data) for data in long_run.ENTRY_POINTS[name][1][:1])


def test_mutated_bytes():
    counts, failures = long_run.campaign(seconds=10.0, seed=18, inputs=5000)
    assert not failures, '\n'.join(failures.values())
    assert counts.total() > 0
