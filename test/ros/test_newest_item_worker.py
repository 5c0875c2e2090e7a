"""The worker's mailbox: newest wins, errors surface, stopping waits."""

import threading
import time

import pytest

from lunar_stereo_recon.ros.newest_item_worker import NewestItemWorker


def test_newest_item_replaces_the_waiting_one():
    started, go_on, done = threading.Event(), threading.Event(), []

    def work(item):
        started.set()
        go_on.wait(5)
        done.append(item)

    worker = NewestItemWorker(work)
    assert worker.submit('a') is None
    assert started.wait(5)
    assert worker.submit('b') is None
    assert worker.submit('c') == 'b'
    assert worker.submit('d') == 'c'
    go_on.set()
    deadline = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.stop()
    assert done == ['a', 'd']


def test_every_item_is_worked_on_when_there_is_time():
    done = []
    worker = NewestItemWorker(done.append)
    for item in range(50):
        assert worker.submit(item) is None
        deadline = time.monotonic() + 5
        while len(done) <= item and time.monotonic() < deadline:
            time.sleep(0.001)
    worker.stop()
    assert done == list(range(50))


def test_what_the_work_raises_reaches_the_caller():
    def work(item):
        raise ZeroDivisionError(item)

    worker = NewestItemWorker(work)
    worker.submit('a')
    deadline = time.monotonic() + 5
    with pytest.raises(ZeroDivisionError, match='a'):
        while time.monotonic() < deadline:
            worker.check()
            time.sleep(0.01)


def test_stop_waits_for_the_work_and_drops_what_waits():
    started, done = threading.Event(), []

    def work(item):
        started.set()
        time.sleep(0.1)
        done.append(item)

    worker = NewestItemWorker(work)
    worker.submit('a')
    assert started.wait(5)
    worker.submit('b')
    worker.stop()
    assert done == ['a']
