"""Under pressure: effort goes down when pairs take too long, up when there is room, and rests."""

import pytest

from lunar_stereo_recon.ros.load_control import Effort, LoadControl, QUICK_PAIRS, SLOW_PAIRS

REST_MS = 10.0


def run(control, pairs, ms_per_megapixel, target_ms=50.0):
    """Feed pairs of a machine whose network takes so long; return the efforts in between."""
    efforts = []
    for _ in range(pairs):
        width = control.effort.width_px
        inference = ms_per_megapixel * (width or 640) ** 2 * 0.75e-6
        control.note(REST_MS + inference, inference, target_ms)
        efforts.append(control.effort)
    return efforts


def test_width_then_rate_go_down_and_come_back():
    control = LoadControl(640)
    assert not control.reduced
    # 640 px take 71 ms, 480 px 45 ms.
    assert run(control, SLOW_PAIRS, 200)[-2:] == [Effort(640), Effort(480)]
    assert run(control, 200, 200)[-1] == Effort(480)
    # No width will do.
    assert run(control, 6 * SLOW_PAIRS, 800)[-1] == Effort(320, one_in=8)
    assert control.reduced
    # The machine is free again: one step for each time of patience.
    efforts = run(control, 5 * QUICK_PAIRS, 50)
    assert efforts[QUICK_PAIRS - 2] == Effort(320, one_in=8)
    assert efforts[-1] == Effort(640)
    assert not control.reduced


@pytest.mark.parametrize('ms_per_megapixel', range(10, 1000, 37))
def test_a_steady_load_has_a_steady_answer(ms_per_megapixel):
    control = LoadControl(640)
    run(control, 100, ms_per_megapixel)
    assert len(set(run(control, 500, ms_per_megapixel))) == 1


def test_single_slow_pairs_change_nothing():
    control = LoadControl(640)
    for _ in range(50):
        assert not control.note(500.0, 400.0, 50.0)
        run(control, SLOW_PAIRS - 1, 50)
    assert control.effort == Effort(640)


def test_matcher_without_a_width_gives_up_pairs_alone():
    control = LoadControl(None)
    assert run(control, SLOW_PAIRS, 800)[-1] == Effort(None, one_in=2)
