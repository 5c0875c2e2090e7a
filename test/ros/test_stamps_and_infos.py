"""Stamps and camera_infos out of the ordinary: each pair is answered, and it is said."""

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.messages import stamp_ns  # noqa: E402
from lunar_stereo_recon.ros.stereo_inputs import PairStamps  # noqa: E402

WARN = b'\x01'
MS = 1_000_000
LAST_STAMP_NS = 2**31 * 10**9 - 1


@pytest.fixture
def rig(running):
    """Return the shared node's cameras, after a new start of their stamps."""
    running.answer(running.publish(LAST_STAMP_NS))
    running.answer(running.publish())
    for messages in running.received.values():
        messages.clear()
    return running


def input_warning(rig, words):
    """Wait until the task `input` warns with these words and return its text."""

    def find():
        statuses = rig.received['diagnostics']
        texts = [s.message for s in statuses if s.name.endswith(': input') and s.level == WARN]
        return next((text for text in texts if words in text), None)

    return rig.spin_until(find)


def answers(rig, stamp):
    return [a.status[0].message for a in rig.received['frame_status'] if stamp_ns(a) == stamp]


def test_stamps_that_go_back_in_small_steps_are_said(rig, node_log):
    first = rig.publish()
    stamps = [first, *(first - 10 * MS * step for step in range(1, 30))]
    for stamp in stamps[1:]:
        rig.publish(stamp)
        rig.spin_for(0.02)
    text = input_warning(rig, 'older than the one before')
    assert 'the last by 10 ms: is the clock of the camera set back?' in text
    assert text.split(' older')[0].endswith('/left/image_rect are')
    assert 'older than the one before' in node_log()
    texts = [rig.answer(stamp).message for stamp in stamps]
    assert texts[0] == 'published'
    # Too late, or left behind by its other side, as the two topics happen to come.
    assert all(text.startswith('unpaired: ') for text in texts[1:20]), texts
    # Two tenths of a second back is a new start.
    assert 'published' in texts[20:]
    assert all(len(answers(rig, stamp)) == 1 for stamp in stamps)


@pytest.mark.parametrize('stamp', [0, 5_000_000_000])
def test_stamps_that_stand_still_are_said(rig, stamp):
    for _ in range(5):
        rig.publish(stamp)
        rig.spin_for(0.1)
    text = input_warning(rig, 'have the stamp of the one before')
    assert 'does the driver stamp each image?' in text
    rig.spin_until(lambda: len(answers(rig, stamp)) == 5)
    assert 'published' in answers(rig, stamp)


def test_stamps_near_their_end_are_served(rig):
    for stamp in (LAST_STAMP_NS - 100 * MS, LAST_STAMP_NS):
        assert rig.answer(rig.publish(stamp)).message == 'published'
        assert stamp_ns(rig.result('points2', stamp)) == stamp


def test_camera_info_that_changes_counts_at_once(rig):
    def wider(side, info):
        if side == 'right':
            info.p[3] *= 2.0

    def other_size(side, info):
        info.width, info.height = 640, 480

    before = rig.result('disparity', rig.publish())
    after = rig.result('disparity', rig.publish(change_info=wider))
    assert after.t == pytest.approx(2 * before.t)
    text = rig.answer(rig.publish(change_info=other_size)).message
    assert text.startswith('invalid: ')
    assert '640' in text and '96' in text
    assert rig.answer(rig.publish()).message == 'published'


def test_each_image_that_finds_no_pair_is_answered(rig):
    left = rig.publish(sides=('left',))
    right = rig.publish(sides=('right',))
    assert rig.answer(rig.publish()).message == 'published'
    words = 'image: no partner with a matching stamp'
    assert rig.answer(left).message == f'unpaired: left {words}'
    assert rig.answer(right).message == f'unpaired: right {words}'


def test_last_image_of_a_camera_that_stops_is_answered(rig):
    stamp = rig.publish(sides=('left',))
    text = 'unpaired: left image: no partner with a matching stamp'
    assert rig.answer(stamp).message == text


def test_pairs_without_camera_info_are_answered(processes, cameras):
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    processes.start('reconstruction_node', backend='sgbm', threads=1)
    cameras.wait_until_heard()
    stamps = [cameras.publish(infos=False) for _ in range(3)]
    texts = [cameras.answer(stamp).message for stamp in stamps]
    assert texts == ['unpaired: no camera_info yet'] * 3
    assert cameras.answer(cameras.publish()).message == 'published'


def test_a_limited_rate_takes_the_first_pair_after_stamps_jumped_back():
    stamps, second = PairStamps(), 1_000_000_000
    for start in (100 * second, 50 * second):
        jumped, soon = [], []
        for tenth in range(11):
            stamp = start + tenth * second // 10
            jumped.append(stamps.jumped_back(stamp))
            soon.append(stamps.too_soon(stamp, 2.0))
        assert jumped == [start == 50 * second, *[False] * 10]
        assert soon == [index % 5 != 0 for index in range(11)]
