"""What the diagnostics count, and when they warn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.datatypes import (  # noqa: E402
    Reconstruction,
    RowAlignment,
    StereoCalibration,
)
from lunar_stereo_recon.messages import StereoTopics  # noqa: E402
from lunar_stereo_recon.ros.diagnostics import FrameStatistics, MatcherState, NodeReport  # noqa: E402
from lunar_stereo_recon.ros.rclpy_messages import ERROR, OK, WARN  # noqa: E402
from lunar_stereo_recon.ros.stereo_sync import SyncStatistics  # noqa: E402

CALIBRATION = StereoCalibration(60.0, 60.0, 31.5, 23.5, 31.5, 0.2, 64, 48)


TOPICS = StereoTopics('/l/image', '/r/image', 'left.yaml', 'right.yaml')


def reconstruction(alignment=None, confidence=1.0):
    shape = (48, 64)
    flat = np.ones(shape, np.float32)
    return Reconstruction(
        flat,
        flat,
        np.float32(confidence) * flat,
        np.ones((*shape, 3), np.float32),
        np.zeros((*shape, 3), np.uint8),
        CALIBRATION,
        row_alignment=alignment or RowAlignment(),
    )


@pytest.fixture
def report():
    return NodeReport('node', TOPICS, 5_000_000)


def status_of(report, task, sync=None, frames=None, resting='', error='', warning=''):
    """Return level, message and values of one task's status."""
    statuses = report.statuses(
        sync or SyncStatistics(),
        (frames or FrameStatistics()).snapshot(),
        MatcherState({'model': 'flight'}, error, warning),
        resting,
    )
    assert [status.name for status in statuses] == [
        f'node: {name}' for name in ('input', 'output', 'calibration', 'model')
    ]
    (status,) = [status for status in statuses if status.name == f'node: {task}']
    values = {entry.key: entry.value for entry in status.values}
    return status.level, status.message, values


def published(*results, latency_ms=20.0):
    frames = FrameStatistics()
    for result in results:
        frames.count_published(latency_ms, result)
    return frames


def test_moved_rows_are_a_warning_with_the_advice(report):
    frames = published(reconstruction(RowAlignment(0.6, 0.0, 0.01)))
    level, message, values = status_of(report, 'output', frames=frames)
    assert level == WARN
    assert message == values['row alignment'] == 'right rows 0.6 px low: recalibrate'


def test_aligned_rows_are_fine(report):
    frames = published(reconstruction(RowAlignment(0.1, 0.0, 0.01)))
    level, _, values = status_of(report, 'output', frames=frames)
    assert level == OK
    assert values['row alignment'] == 'rows aligned within 0.10 px'
    assert float(values['mean confidence']) == 1.0


def test_rates_latencies_and_drops_are_counted(report):
    frames = FrameStatistics()
    for latency_ms in range(1, 101):
        frames.count_published(float(latency_ms), reconstruction())
    frames.count_drop('superseded')
    sync = SyncStatistics(images=Counter(left=101, right=101), pairs=101)
    report._time -= 10.0  # ten seconds ago
    level, message, values = status_of(report, 'output', sync, frames)
    assert level == OK
    assert message == '10.0 reconstructions per second; 1 pairs superseded by newer ones'
    assert float(values['latency p50 [ms]']) == pytest.approx(50.5)
    assert float(values['latency p95 [ms]']) == pytest.approx(95.05)
    assert values['dropped: superseded'] == '1'
    # Rates are those since the last report; counts go on.
    report._time -= 1.0
    sync.images.update(left=5, right=5)
    sync.pairs += 5
    _, message, values = status_of(report, 'input', sync, frames)
    assert message.startswith('5.0 pairs per second')
    assert float(values['left image rate [Hz]']) == pytest.approx(5.0, abs=0.1)
    assert values['pairs'] == '106'


def test_few_pairs_are_a_warning_with_the_reason(report):
    sync = SyncStatistics(images=Counter(left=20, right=20), pairs=12)
    sync.drops.update({'left unmatched': 6, 'right unmatched': 8})
    level, message, _ = status_of(report, 'input', sync)
    assert level == WARN
    assert message == (
        '20 images of each side, but 12 pairs; 8 right images were given up: no partner with a '
        'matching stamp'
    )
    sync.images.update(left=20, right=20)
    sync.pairs += 19
    assert status_of(report, 'input', sync)[0] == OK


def test_no_pair_is_a_warning_that_names_what_is_missing(report):
    sync = SyncStatistics(images=Counter(left=20), infos=Counter(left=1, right=1))
    level, message, _ = status_of(report, 'input', sync)
    assert level == WARN
    assert message == 'left 20 images, right 0: is /r/image published?'
    sync.images.update(left=20)
    report.publishers = {'/r/image': 1}
    assert 'has a publisher, but nothing arrives' in status_of(report, 'input', sync)[1]
    sync.images.update(left=20)
    report.conflicts = {'/r/image': 'RELIABILITY'}
    _, message, values = status_of(report, 'input', sync)
    assert '/r/image has a publisher whose QoS does not fit (RELIABILITY)' in message
    assert values['QoS does not fit: /r/image'] == 'RELIABILITY'


def test_slow_stream_is_not_one_that_stopped(report, monkeypatch):
    """A pair every three seconds, each of them long in work, is no fault; silence is."""
    now = 1000.0
    monkeypatch.setattr('lunar_stereo_recon.ros.diagnostics.time.monotonic', lambda: now)
    sync, frames = SyncStatistics(), FrameStatistics()
    levels = {'input': [], 'output': []}
    for second in range(22):
        now += 1.0
        if second < 12 and second % 3 == 0:
            sync.images.update(left=1, right=1)
            sync.pairs += 1
        if second < 12 and second % 3 == 1:
            frames.count_published(1000.0, reconstruction())
        statuses = report.statuses(sync, frames.snapshot(), MatcherState({}), '')
        for task, status in zip(levels, statuses, strict=False):
            levels[task].append(status.level)
    assert levels['input'][3:14] == [OK] * 11
    assert levels['output'][3:] == [OK] * 19  # nothing comes in that could come out
    assert levels['input'][18:] == [WARN] * 4
    assert 'published?' in statuses[0].message
    # Pairs come again, and no result.
    now += 100.0
    sync.pairs += 1
    assert report.statuses(sync, frames.snapshot(), MatcherState({}), '')[1].level == WARN


def test_what_was_lost_is_said_as_it_is(report):
    sync = SyncStatistics(images=Counter(left=20, right=20), pairs=5)
    sync.drops['pair no_camera_info'] = 7
    assert '7 pairs were given up: no camera_info yet' in status_of(report, 'input', sync)[1]
    sync.images.update(left=20, right=20)
    sync.pairs += 5
    sync.drops['lost on the way: left/image_rect'] = 9
    message = status_of(report, 'input', sync)[1]
    assert message.endswith('5 pairs; 9 messages lost on the way: left/image_rect')


def test_refused_pairs_are_an_error(report):
    frames = FrameStatistics()
    frames.count_drop('invalid', 'P[3] is 0')
    level, message, _ = status_of(report, 'output', frames=frames)
    assert (level, message) == (ERROR, 'pairs are refused: P[3] is 0')
    assert status_of(report, 'output', frames=frames)[0] == OK  # no new one


def test_pairs_without_a_result_are_a_warning(report):
    sync = SyncStatistics(images=Counter(left=5, right=5), pairs=5)
    level, message, _ = status_of(report, 'output', sync)
    assert (level, message) == (WARN, 'pairs come in, but no reconstruction came out')


def test_low_confidence_is_a_warning(report):
    level, message, _ = status_of(
        report, 'output', frames=published(reconstruction(confidence=0.1))
    )
    assert level == WARN
    assert message.startswith('mean confidence is 0.10: are the images dark')


def test_withheld_results_are_a_warning(report):
    frames = published(reconstruction())
    frames.withheld = {'hazard': 'no transform'}
    level, message, _ = status_of(report, 'output', frames=frames)
    assert (level, message) == (WARN, 'hazard is not published: no transform')


def test_qos_that_is_not_offered_is_told(report):
    report.refused = {'points2': 'DURABILITY'}
    assert status_of(report, 'output')[2]['QoS not offered: points2'] == 'DURABILITY'


def test_calibration_says_what_is_used(report):
    level, message, values = status_of(report, 'calibration')
    assert (level, message) == (OK, 'no pair yet')
    assert values == {'left camera_info': 'left.yaml', 'right camera_info': 'right.yaml'}
    frames = published(reconstruction())
    _, message, values = status_of(report, 'calibration', frames=frames)
    assert message == '64x48, baseline 0.2 m'
    assert (values['fx'], values['cx_right']) == ('60', '31.5')
    frames.doubts['baseline'] = 'P[3] says otherwise'
    level, message, _ = status_of(report, 'calibration', frames=frames)
    assert (level, message) == (WARN, 'P[3] says otherwise')


def test_rest_is_no_fault(report):
    for task in ('input', 'output'):
        assert status_of(report, task, resting='nobody subscribes')[:2] == (
            OK,
            'nobody subscribes',
        )


def test_fallback_of_the_provider_is_a_warning(report):
    level, message, values = status_of(report, 'model', warning='cuda is not there: CPU')
    assert (level, message) == (WARN, 'cuda is not there: CPU')
    assert values == {'model': 'flight'}


def test_matcher_that_was_left_is_an_error(report):
    level, message, _ = status_of(report, 'model', error='sgbm instead of flight', warning='hot')
    assert (level, message) == (ERROR, 'sgbm instead of flight')


@pytest.mark.parametrize('reason', ['failed', 'stuck'])
def test_pairs_that_fail_are_an_error(report, reason):
    frames = FrameStatistics()
    frames.count_drop(reason, 'ZeroDivisionError: no')
    level, message, values = status_of(report, 'output', frames=frames)
    assert (level, message) == (ERROR, 'pairs fail: ZeroDivisionError: no')
    assert values[f'dropped: {reason}'] == '1'
