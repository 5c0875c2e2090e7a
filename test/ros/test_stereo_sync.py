"""Sets of four messages, what is counted, and what is said when nothing comes out."""

import copy
from types import SimpleNamespace

import pytest

from lunar_stereo_recon.limits import MAX_WAITING_BYTES
from lunar_stereo_recon.messages import stamp_ns, StereoTopics
from lunar_stereo_recon.ros.stereo_sync import explain_no_pairs, StereoSynchronizer, SyncStatistics

TOPICS = StereoTopics('/l/image', '/r/image', '/l/info', '/r/info')
MS = 1_000_000


def message(stamp_ms):
    seconds, nanoseconds = divmod(round(stamp_ms * MS), 1_000_000_000)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=seconds, nanosec=nanoseconds)), data=b''
    )


@pytest.fixture
def sync():
    return StereoSynchronizer()


def test_set_has_the_newest_infos_where_they_come_once(sync):
    infos = {'left': message(0), 'right': message(0)}
    for side, info in infos.items():
        sync.add_info(side, info)
    for stamp in (100, 200, 300):
        assert sync.add_image('left', message(stamp)) == []
        (messages,) = sync.add_image('right', message(stamp))
        assert messages.left_info is infos['left']
        assert messages.right_info is infos['right']
        assert messages.stamp_ns == stamp * MS
    assert sync.statistics.pairs == 3


def feed(sync, stamp, *order):
    """Add images ('left') and infos ('left info') of one stamp in an order; return the sets."""
    complete = []
    for name in order:
        side, _, kind = name.partition(' ')
        add = sync.add_info if kind else sync.add_image
        complete += add(side, message(stamp))
    return complete


@pytest.mark.parametrize(
    'order',
    [
        ('left info', 'right info', 'left', 'right'),
        ('left', 'right', 'left info', 'right info'),
        ('left', 'left info', 'right', 'right info'),
    ],
)
def test_set_has_its_own_infos_where_they_come_with_each_image(sync, order):
    for stamp in (0, 100, 200):
        (messages,) = feed(sync, stamp, *order)
        assert messages.left_info.header.stamp.nanosec == stamp * MS
        assert messages.right_info.header.stamp.nanosec == stamp * MS


def test_infos_that_overtake_their_images_are_kept_for_them(sync):
    feed(sync, 0, 'left info', 'right info', 'left', 'right')
    for stamp in (100, 200, 300):
        feed(sync, stamp, 'left info', 'right info')
    for stamp in (100, 200, 300):
        (messages,) = feed(sync, stamp, 'left', 'right')
        assert messages.left_info.header.stamp.nanosec == stamp * MS
        assert messages.right_info.header.stamp.nanosec == stamp * MS


def test_lost_info_is_not_waited_for_when_a_later_one_is_here(sync):
    feed(sync, 0, 'left info', 'right info', 'left', 'right')
    feed(sync, 200, 'left info', 'right info')
    (messages,) = feed(sync, 100, 'left', 'right')
    assert messages.left_info.header.stamp.nanosec == 200 * MS


def test_lost_info_is_replaced_by_the_newest_when_the_next_pair_comes(sync):
    order = ('left info', 'right info', 'left', 'right')
    feed(sync, 0, *order)
    assert feed(sync, 100, 'left info', 'left', 'right') == []
    (first, second) = feed(sync, 200, *order)
    assert first.stamp_ns == 100 * MS
    assert second.right_info.header.stamp.nanosec == 200 * MS
    assert sync.statistics.drops == {}


def test_one_lost_info_does_not_leave_later_pairs_with_old_ones(sync):
    order = ('left', 'right', 'left info', 'right info')
    feed(sync, 0, *order)
    feed(sync, 100, 'left', 'right', 'left info')
    found = [feed(sync, stamp, *order) for stamp in (200, 300, 400)]
    assert [messages.right_info.header.stamp.nanosec // MS for messages in sum(found, [])] == [
        *(0, 0),  # of the pairs at 100 ms and 200 ms: the latter's own one tells that they go on
        *(300, 400),
    ]


@pytest.mark.parametrize(
    'order',
    [
        ('left info', 'right info', 'left', 'right'),
        ('left', 'right', 'left info', 'right info'),
        ('right', 'right info', 'left', 'left info'),
    ],
)
def test_set_has_its_own_infos_after_stamps_jumped_back(sync, order):
    for stamp in (5000, 5100, 500, 600, 100):
        (messages,) = feed(sync, stamp, *order)
        assert stamp_ns(messages.left_info) == stamp_ns(messages.right_info) == stamp * MS


def test_infos_that_came_once_serve_after_stamps_jumped_back(sync):
    feed(sync, 9000, 'left info', 'right info')
    for stamp in (5000, 5100, 500, 600):
        (messages,) = feed(sync, stamp, 'left', 'right')
        assert stamp_ns(messages.right_info) == 9000 * MS


def test_pair_waits_for_a_late_camera_info(sync):
    sync.add_image('left', message(0))
    sync.add_image('right', message(0))
    assert sync.add_info('left', message(0)) == []
    assert len(sync.add_info('right', message(0))) == 1
    assert sync.statistics.drops == {}


def test_newest_pair_waits_older_ones_are_counted(sync):
    for stamp in (0, 100, 200):
        sync.add_image('left', message(stamp))
        sync.add_image('right', message(stamp))
    sync.add_info('left', message(0))
    (messages,) = sync.add_info('right', message(0))
    assert messages.stamp_ns == 200 * MS
    assert sync.statistics.drops == {'pair no_camera_info': 2}


def test_drops_are_counted_by_side_and_reason(sync):
    for stamp in range(0, 800, 100):
        sync.add_image('left', message(stamp))
    sync.add_image('right', message(701))
    assert sync.statistics.drops == {'left queue_full': 3, 'left unmatched': 5}
    assert sync.statistics.images == {'left': 8, 'right': 1}
    assert sync.statistics.last_gap_ns == 1 * MS


def test_clear_forgets_messages_but_not_counts(sync):
    sync.add_image('left', message(0))
    sync.add_info('left', message(0))
    sync.clear()
    assert sync.add_image('right', message(0)) == []
    assert sync.statistics.images['left'] == 1


def test_each_stamp_that_gives_no_set_is_told_once():
    told = []
    sync = StereoSynchronizer(on_unpaired=lambda *what: told.append(what), queue_size=2)
    feed(sync, 0, 'left info', 'right info')
    for stamp in (100, 200, 300):
        feed(sync, stamp, 'left')
    assert told == [(100 * MS, 'unpaired: left image: waited in vain for a partner')]
    feed(sync, 100, 'right')  # the other half of the pair that was given up
    assert len(feed(sync, 300, 'right')) == 1
    assert [stamp // MS for stamp, _ in told] == [100, 200]
    sync.clear()
    feed(sync, 400, 'left')
    sync.clear()
    assert told[-1] == (400 * MS, 'unpaired: left image: the node stopped receiving')


def test_what_waits_is_settled_when_nothing_comes():
    told = []
    sync = StereoSynchronizer(20 * MS, on_unpaired=lambda *what: told.append(what))
    feed(sync, 0, 'left info', 'right info', 'left')
    feed(sync, 3, 'right')  # a better partner might come
    assert sync.settle() == []  # images came since the last time
    (messages,) = sync.settle()
    assert stamp_ns(messages.right) == 3 * MS
    feed(sync, 100, 'left')
    sync.settle()
    assert (sync.settle(), sync.settle()) == ([], [])
    assert told == [(100 * MS, 'unpaired: left image: no partner with a matching stamp')]


def test_lost_info_is_replaced_when_nothing_comes(sync):
    feed(sync, 0, 'left info', 'right info', 'left', 'right')
    assert feed(sync, 100, 'left info', 'left', 'right') == []
    sync.settle()
    assert len(sync.settle()) == 1


def test_stamps_that_stand_still_or_go_back_are_counted(sync):
    for stamp in (500, 490, 480, 480, 500, 100):
        feed(sync, stamp, 'left')
    assert sync.statistics.backward == {'left': 2}  # 100 is a new start
    assert sync.statistics.repeated == {'left': 1}
    assert sync.statistics.step_back_ns == 10 * MS


def explanation(sync, before=None, **options):
    before = before or SyncStatistics()
    return explain_no_pairs(before, sync.statistics, TOPICS, 0, **options)


def test_silent_side_is_named(sync):
    for stamp in range(0, 12000, 100):
        sync.add_image('left', message(stamp))
    assert explanation(sync) == 'left 120 images, right 0: is /r/image published?'


def test_nothing_at_all(sync):
    text = explanation(sync)
    assert text == 'left 0 images, right 0: are /l/image and /r/image published?'


def test_only_the_silent_time_counts(sync):
    sync.add_image('right', message(0))
    before = copy.deepcopy(sync.statistics)
    sync.add_image('left', message(0))
    assert 'left 1 images, right 0' in explanation(sync, before)


def test_publisher_that_is_not_heard_points_at_qos(sync):
    text = explanation(sync, publishers={'/l/image': 1, '/r/image': 0})
    assert '/l/image has a publisher, but nothing arrives' in text
    assert 'QoS' in text


def test_missing_camera_info(sync):
    sync.add_info('left', message(0))
    sync.add_image('left', message(0))
    sync.add_image('right', message(0))
    text = explanation(sync)
    assert text == 'left 1 images, right 1, but no camera_info: is /r/info published?'


def test_stamps_that_differ_name_gap_and_parameter(sync):
    sync.add_info('left', message(0))
    sync.add_info('right', message(0))
    for stamp in range(0, 500, 100):
        sync.add_image('left', message(stamp))
        sync.add_image('right', message(stamp + 31))
    text = explanation(sync)
    assert 'left 5 images, right 5: left and right stamps differ by 31 ms, 0 ms allowed' in text
    assert 'approximate_sync' in text


@pytest.mark.parametrize('tolerance_ms', [0, 20])
def test_pairs_are_those_of_message_filters(tolerance_ms):
    """The same arrivals through ROS' own synchronizers, where they can be imported."""
    message_filters = pytest.importorskip('message_filters')
    from lunar_stereo_recon.result_messages import header
    from lunar_stereo_recon.ros.rclpy_messages import make_message

    arrivals = []
    for index in range(60):
        jitter_ms = (index * 7 % 11) if tolerance_ms else 0
        if index % 7:
            arrivals.append(('left', 100 * index))
        if index % 5:
            arrivals.append(('right', 100 * index + jitter_ms))

    def run(feed):
        for side, stamp in arrivals:
            feed(side, SimpleNamespace(header=header(make_message, stamp * MS, '')))

    expected = []
    filters = {side: message_filters.SimpleFilter() for side in ('left', 'right')}
    if tolerance_ms:
        theirs = message_filters.ApproximateTimeSynchronizer(
            list(filters.values()), 10, tolerance_ms * 1e-3
        )
    else:
        theirs = message_filters.TimeSynchronizer(list(filters.values()), 10)
    theirs.registerCallback(lambda *pair: expected.append(tuple(map(stamp_ns, pair))))
    run(lambda side, item: filters[side].signalMessage(item))

    ours = StereoSynchronizer(tolerance_ms * MS, queue_size=10)
    ours.add_info('left', message(0))
    ours.add_info('right', message(0))
    got = []
    run(
        lambda side, item: got.extend(
            (stamp_ns(each.left), stamp_ns(each.right)) for each in ours.add_image(side, item)
        )
    )
    assert got == expected
    assert len(got) == sum(1 for index in range(60) if index % 7 and index % 5)


def test_infos_from_files_are_not_waited_for():
    infos = {'left': message(0), 'right': message(0)}
    sync = StereoSynchronizer(settled_infos=infos)
    assert sync.add_image('left', message(100)) == []
    (messages,) = sync.add_image('right', message(100))
    assert (messages.left_info, messages.right_info) == (infos['left'], infos['right'])
    sync.clear()
    sync.add_image('left', message(200))
    assert len(sync.add_image('right', message(200))) == 1
    assert 'camera_info' not in explain_no_pairs(SyncStatistics(), sync.statistics, TOPICS, 0, {})


def test_first_infos_are_kept():
    sync = StereoSynchronizer(keep_first_infos=True)
    first = {'left': message(0), 'right': message(0)}
    for side, info in first.items():
        sync.add_info(side, info)
    assert sync.settled_infos == first
    sync.add_info('left', message(100))
    sync.add_image('left', message(100))
    (messages,) = sync.add_image('right', message(100))
    assert messages.left_info is first['left']
    assert messages.right_info is first['right']


def test_large_images_without_partner_do_not_fill_the_memory():
    """Five may wait, but not five of any size."""
    given_up = []
    sync = StereoSynchronizer(on_unpaired=lambda stamp, reason: given_up.append((stamp, reason)))
    for stamp in (100, 200, 300):
        large = message(stamp)
        large.data = range(MAX_WAITING_BYTES // 2)  # as long as it says, in no memory
        sync.add_image('left', large)
    assert given_up == [(100 * MS, 'unpaired: left image: waited in vain for a partner')]
