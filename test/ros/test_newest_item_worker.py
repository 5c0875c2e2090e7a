"""The worker's mailbox: newest wins, failures are told and survived, stopping waits."""

import threading
import time

from lunar_stereo_recon.ros.newest_item_worker import NewestItemWorker


def unexpected(item, error):
    raise AssertionError(f'{item}: {error}')


def test_newest_item_replaces_the_waiting_one():
    started, go_on, done = threading.Event(), threading.Event(), []

    def work(item):
        started.set()
        go_on.wait(5)
        done.append(item)

    worker = NewestItemWorker(work, unexpected)
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
    worker = NewestItemWorker(done.append, unexpected)
    for item in range(50):
        assert worker.submit(item) is None
        deadline = time.monotonic() + 5
        while len(done) <= item and time.monotonic() < deadline:
            time.sleep(0.001)
    worker.stop()
    assert done == list(range(50))


def test_work_goes_on_after_a_failure():
    done, failures = [], []

    def work(item):
        if item == 'bad':
            raise ZeroDivisionError(item)
        done.append(item)

    worker = NewestItemWorker(work, lambda item, error: failures.append((item, str(error))))
    for item in ('bad', 'good'):
        worker.submit(item)
        deadline = time.monotonic() + 5
        while len(done) + len(failures) < 1 + (item == 'good') and time.monotonic() < deadline:
            time.sleep(0.001)
    worker.stop()
    assert (failures, done) == ([('bad', 'bad')], ['good'])


def test_stop_waits_for_the_work_and_returns_what_waits():
    started, done = threading.Event(), []

    def work(item):
        started.set()
        time.sleep(0.1)
        done.append(item)

    worker = NewestItemWorker(work, unexpected)
    worker.submit('a')
    assert started.wait(5)
    worker.submit('b')
    assert worker.stop() == ['b']
    assert done == ['a']


def test_work_that_does_not_return_is_left_to_itself():
    started, go_on = threading.Event(), threading.Event()

    def work(item):
        started.set()
        go_on.wait(5)

    worker = NewestItemWorker(work, unexpected)
    assert worker.busy_s == 0.0
    worker.submit('a')
    assert started.wait(5)
    time.sleep(0.02)
    assert worker.busy_s > 0.01
    worker.submit('b')
    assert worker.stop(patience_s=0.01) == ['a', 'b']
    go_on.set()
