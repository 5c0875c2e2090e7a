"""Matching of two streams by stamp: exact, approximate, late, lost, and after a jump back."""

import random

import pytest

from lunar_stereo_recon.pairing import PairQueue, RESTART_NS

MS = 1_000_000


class Recorder:
    """A queue whose pairs and given-up items are kept as lists."""

    def __init__(self, tolerance_ns=0, queue_size=10):
        self.unpaired = []
        self.pairs = []
        self.queue = PairQueue(tolerance_ns, queue_size, self.unpaired.append)

    def add(self, side, *stamps_ms):
        for stamp in stamps_ms:
            self.pairs += self.queue.add(side, round(stamp * MS), stamp)
        return self

    @property
    def reasons(self):
        return [(item.side, item.reason) for item in self.unpaired]


def test_equal_stamps_pair_in_either_order_of_arrival():
    recorder = Recorder().add('left', 0).add('right', 0).add('right', 100).add('left', 100)
    assert recorder.pairs == [(0, 0), (100, 100)]
    assert recorder.unpaired == []


def test_one_nanosecond_is_a_difference_without_tolerance():
    recorder = Recorder().add('left', 0).add('right', 1e-6)
    assert recorder.pairs == []


def test_an_image_without_partner_is_given_up_when_a_newer_pair_shows_it():
    recorder = Recorder().add('left', 0, 100, 200).add('right', 200)
    assert recorder.pairs == [(200, 200)]
    assert recorder.reasons == [('left', 'unmatched'), ('left', 'unmatched')]
    assert [item.gap_ns for item in recorder.unpaired] == [200 * MS, 100 * MS]


def test_queue_keeps_only_so_many():
    recorder = Recorder(queue_size=3).add('left', *range(0, 500, 100))
    assert recorder.reasons == [('left', 'queue_full')] * 2
    assert recorder.queue.waiting('left') == 3
    assert recorder.unpaired[0].gap_ns is None


def test_queue_keeps_only_so_many_bytes():
    unpaired = []
    queue = PairQueue(0, 5, unpaired.append, size_of=len, max_size=100)
    assert queue.add('left', 1, b'x' * 60) == queue.add('left', 2, b'y' * 40) == []
    queue.add('left', 3, b'z')
    assert [(item.stamp_ns, item.reason) for item in unpaired] == [(1, 'queue_full')]
    # Nor does one that is larger than all may be wait; with its partner there, it need not.
    queue.add('left', 4, b'x' * 101)
    assert queue.waiting('left') == 0
    queue.add('right', 5, b'r')
    assert queue.add('left', 5, b'x' * 101) == [(b'x' * 101, b'r')]


def test_an_item_older_than_the_last_pair_is_late():
    recorder = Recorder().add('left', 100).add('right', 100).add('left', 50)
    assert recorder.reasons == [('left', 'late')]


def test_repeated_stamps_still_pair():
    recorder = Recorder().add('left', 0).add('right', 0).add('left', 0).add('right', 0)
    assert recorder.pairs == [(0, 0), (0, 0)]


def test_tolerance_takes_the_nearest_not_the_first():
    recorder = Recorder(tolerance_ns=20 * MS)
    recorder.add('left', 0, 100).add('right', 85, 102)
    recorder.add('left', 200).add('right', 201)
    # 85 is within the tolerance of 100, but 102 is nearer.
    assert recorder.pairs == [(100, 102), (200, 201)]
    assert recorder.reasons == [('left', 'unmatched'), ('right', 'unmatched')]


def test_a_pair_that_cannot_get_better_does_not_wait():
    recorder = Recorder(tolerance_ns=20 * MS)
    recorder.add('left', 0, 100).add('right', 3, 103)
    assert recorder.pairs == [(0, 3), (100, 103)]


def test_the_first_unequal_pair_waits_for_the_period_to_be_known():
    recorder = Recorder(tolerance_ns=20 * MS).add('left', 0).add('right', 3)
    assert recorder.pairs == []
    assert recorder.queue.finish() == [(0, 3)]


def test_finish_gives_up_what_is_left():
    recorder = Recorder().add('left', 0)
    assert recorder.queue.finish() == []
    assert recorder.reasons == [('left', 'unmatched')]


def test_bag_loop_loses_nothing_but_what_waited():
    recorder = Recorder()
    for _ in range(3):
        for stamp in range(0, 1000, 100):
            recorder.add('left', stamp).add('right', stamp)
    assert len(recorder.pairs) == 30
    assert recorder.unpaired == []


def test_bag_loop_with_messages_of_one_side_still_on_the_way():
    recorder = Recorder()
    for stamp in range(0, 1000, 100):
        recorder.add('left', stamp)
        recorder.add('right', stamp) if stamp < 800 else None
    recorder.add('left', 0)  # The left topic starts anew before the right one has ended.
    recorder.add('right', 800, 900)
    recorder.add('right', 0)
    recorder.add('left', 100).add('right', 100)
    assert recorder.pairs[-2:] == [(0, 0), (100, 100)]
    assert set(recorder.reasons) == {('left', 'time_jump'), ('right', 'time_jump')}
    assert len(recorder.unpaired) == 4


def test_a_side_that_was_silent_before_the_jump_joins_again():
    recorder = Recorder().add('right', 0).add('left', 0, 5000, 10000)
    recorder.add('left', 100, 200)
    recorder.add('right', 100, 200)
    assert recorder.pairs == [(0, 0), (100, 100), (200, 200)]


def test_small_disorder_is_no_jump():
    recorder = Recorder().add('left', 100, 60, 140).add('right', 60, 100, 140)
    assert recorder.pairs == [(60, 60), (100, 100), (140, 140)]
    assert RESTART_NS > 40 * MS


@pytest.mark.parametrize('seed', range(5))
def test_random_streams_pair_as_an_exhaustive_search_does(seed):
    """With jitter far below the period the nearest neighbour is the only sensible answer."""
    rng = random.Random(seed)
    left = {i: 100 * i + rng.uniform(-5, 5) for i in range(40) if rng.random() > 0.2}
    right = {i: 100 * i + rng.uniform(-5, 5) for i in range(40) if rng.random() > 0.2}
    arrivals = [(stamp, 'left') for stamp in left.values()]
    arrivals += [(stamp, 'right') for stamp in right.values()]
    arrivals.sort(key=lambda arrival: arrival[0] + rng.uniform(0, 40))
    recorder = Recorder(tolerance_ns=20 * MS)
    for side in ('left', 'right'):
        # Each topic keeps its own order, whatever the network does between topics.
        own = iter(sorted(stamp for stamp, name in arrivals if name == side))
        arrivals = [
            (next(own), name) if name == side else (stamp, name) for stamp, name in arrivals
        ]
    for stamp, side in arrivals:
        recorder.add(side, stamp)
    recorder.pairs += recorder.queue.finish()
    expected = [(left[i], right[i]) for i in sorted(left.keys() & right.keys())]
    assert recorder.pairs == expected
    assert len(recorder.unpaired) == len(left.keys() ^ right.keys())
