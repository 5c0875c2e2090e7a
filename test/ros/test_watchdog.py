"""Time that a matcher was stuck, and time in which all stood still."""

import pytest

from lunar_stereo_recon.ros import watchdog
from lunar_stereo_recon.ros.watchdog import LONGEST_STEP_S, Watchdog


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only element is the time."""
    now = [100.0]
    monkeypatch.setattr(watchdog.time, 'monotonic', lambda: now[0])
    return now


def test_looks_at_a_stuck_matcher_add_up(clock):
    dog = Watchdog()
    for second in range(1, 31):
        clock[0] = 100.0 + second
        seen_s = dog.seen_s(busy_s=second - 0.4)
    assert seen_s == pytest.approx(29.6)


def test_each_item_counts_for_itself(clock):
    dog = Watchdog()
    for _ in range(100):
        clock[0] += 1.0
        assert dog.seen_s(busy_s=0.9) == pytest.approx(0.9)
    clock[0] += 1.0
    assert dog.seen_s(busy_s=0.0) == 0.0


def test_a_process_that_stood_still_was_not_stuck(clock):
    """As after SIGSTOP and SIGCONT, or where memory runs out."""
    dog = Watchdog()
    clock[0] += 1.0
    assert dog.seen_s(busy_s=0.5) == 0.5
    clock[0] += 3600.0
    assert dog.seen_s(busy_s=3600.5) == 0.5 + LONGEST_STEP_S
    clock[0] += 1.0
    assert dog.seen_s(busy_s=3601.5) == 1.5 + LONGEST_STEP_S
