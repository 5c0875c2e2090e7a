"""The node outlives what is wrong with its matcher, its messages and its requests."""

import os
from pathlib import Path
import re
import signal

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from std_srvs.srv import Trigger  # noqa: E402

NODE = 'reconstruction_node'
OK, WARN, ERROR = b'\x00', b'\x01', b'\x02'
ROOT = Path(__file__).resolve().parents[2]
# Read by every Python that has its folder on the path: the backend 'openvino' does what a file
# says, for each pair anew.
FAULTY_BACKEND = """
import os, time
from lunar_stereo_recon import backends

class Faulty:
    def __init__(self, inner):
        self._inner = inner
        with open(os.environ['FAULT']) as file:
            loads_slowly = file.read() == 'load slowly'
        while loads_slowly:
            time.sleep(0.1)
            with open(os.environ['FAULT']) as file:
                loads_slowly = file.read() == 'load slowly'

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def predict(self, left, right):
        with open(os.environ['FAULT']) as file:
            fault = file.read()
        if fault == 'fail':
            raise ZeroDivisionError('a bug')
        while fault == 'hang':
            time.sleep(0.1)
            with open(os.environ['FAULT']) as file:
                fault = file.read()
        return self._inner.predict(left, right)

backends.BACKENDS['openvino'] = lambda *arguments: Faulty(
    backends.BACKENDS['sgbm'](*arguments)
)
"""
# More of it: the matcher has a width, and pairs take as long as the file says. A few quick pairs
# are enough to do more again.
TIMES_AS_TOLD = """
import dataclasses
from lunar_stereo_recon.datatypes import DisparityPrediction
from lunar_stereo_recon.pipeline import StereoReconstructor
from lunar_stereo_recon.ros import load_control

Faulty.max_width_px = 640
Faulty.predict = lambda self, left, right: DisparityPrediction(0 * left + 8, 0 * left + 1)
load_control.QUICK_PAIRS = 6
reconstruct = StereoReconstructor.reconstruct

def told(self, pair, pose=None):
    with open(os.environ['FAULT']) as file:
        slow = file.read() == 'slow'
    times = {'inference': 11000.0 if slow else 100.0}
    return dataclasses.replace(reconstruct(self, pair), timings_ms=times)

StereoReconstructor.reconstruct = told
"""


@pytest.fixture
def fault(processes, tmp_path):
    """Return the file that says what the backend 'openvino' does."""
    (tmp_path / 'sitecustomize.py').write_text(FAULTY_BACKEND)
    path = tmp_path / 'fault'
    path.write_text('')
    processes.environment = {
        'PYTHONPATH': os.pathsep.join(
            [str(tmp_path), str(ROOT), os.environ.get('PYTHONPATH', '')]
        ),
        'FAULT': str(path),
    }
    return path


@pytest.fixture
def node(processes, cameras, fault):
    """Return the process of a node with the faulty backend that has served a pair."""
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    cameras.listen_diagnostics()
    process = processes.start(NODE, backend='openvino', threads=1, save_root=fault.parent)
    cameras.wait_until_heard()
    assert cameras.answer(cameras.publish()).message == 'published'
    return process


def status_of(cameras, task, level):
    """Wait for a task's status of a level and return its text."""
    cameras.received['diagnostics'].clear()
    found = cameras.spin_until(
        lambda: [
            s
            for s in cameras.received['diagnostics']
            if s.name == f'{NODE}: {task}' and s.level == level
        ]
    )
    return found[0].message


def test_failures_are_answered_and_another_matcher_takes_over(node, processes, cameras, fault):
    fault.write_text('fail')
    for _ in range(3):
        status = cameras.answer(cameras.publish())
        assert (status.level, status.message) == (ERROR, 'failed: ZeroDivisionError: a bug')
    assert cameras.answer(cameras.publish()).message == 'published'
    text = status_of(cameras, 'model', ERROR)
    assert 'flight on CPUExecutionProvider instead of sgbm' in text
    assert '3 failures, the last: a bug' in text
    assert processes.log(NODE).count('Traceback') == 1
    # It is tried before it is taken back.
    answer = cameras.call(Trigger, 'set_model')
    assert not answer.success
    assert 'openvino fails on a trial pair of 96x64: ZeroDivisionError: a bug' in answer.message
    assert cameras.answer(cameras.publish()).message == 'published'
    fault.write_text('')
    assert cameras.call(Trigger, 'set_model').success
    status_of(cameras, 'model', OK)
    assert cameras.answer(cameras.publish()).message == 'published'


def test_matcher_that_is_stuck_is_left(node, processes, cameras, fault):
    # Not from the start: on a busy machine the loading of another matcher takes longer.
    cameras.set_parameters(watchdog=1.0)
    fault.write_text('hang')
    status = cameras.answer(cameras.publish())
    assert status.level == ERROR
    assert status.message.startswith('stuck: the matcher has not returned for ')
    cameras.set_parameters(watchdog=30.0)
    assert cameras.answer(cameras.publish()).message == 'published'
    assert 'flight on CPUExecutionProvider instead of sgbm' in status_of(cameras, 'model', ERROR)
    answered = len(cameras.received['frame_status'])
    fault.write_text('')
    cameras.spin_for(0.5)  # The thread that was left ends, and says nothing.
    assert len(cameras.received['frame_status']) == answered
    fault.write_text('hang')
    node.send_signal(signal.SIGINT)
    assert node.wait(60) == 0


def test_node_that_stood_still_keeps_its_matcher(node, processes, cameras, fault):
    """A paused machine is no stuck matcher."""
    cameras.set_parameters(watchdog=10.0)
    fault.write_text('hang')
    stamp = cameras.publish()
    cameras.spin_for(1.0)
    node.send_signal(signal.SIGSTOP)
    cameras.spin_for(12.0)
    fault.write_text('')
    node.send_signal(signal.SIGCONT)
    assert cameras.answer(stamp).message == 'published'
    cameras.spin_for(2.0)  # the watchdog has looked
    assert 'has not returned' not in processes.log(NODE)


def test_first_pair_of_a_size_may_take_longer(node, processes, cameras, fault):
    cameras.set_parameters(watchdog=1.0)
    fault.write_text('hang')
    half = {side: image[:32] for side, image in cameras.views().items()}

    def of_half(side, info):
        info.height = 32

    stamp = cameras.publish(change_info=of_half, **half)
    cameras.spin_for(4.0)  # a runtime compiles; watchdog is 1 s
    fault.write_text('')
    assert cameras.answer(stamp).message == 'published'
    assert 'has not returned' not in processes.log(NODE)
    fault.write_text('hang')
    status = cameras.answer(cameras.publish(change_info=of_half, **half))
    assert status.message.startswith('stuck: ')
    assert 's; watchdog is 1 s' in status.message


def test_node_whose_last_resort_is_stuck_ends(processes, cameras, fault):
    # The last resort itself hangs.
    (fault.parent / 'sitecustomize.py').write_text(
        FAULTY_BACKEND + "\nbackends.BACKENDS['bm'] = backends.BACKENDS['openvino']\n"
    )
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    process = processes.start(NODE, backend='bm', threads=1, watchdog=1.0, watchdog_first=2.0)
    cameras.wait_until_heard()
    fault.write_text('hang')
    cameras.publish()
    cameras.spin_until(lambda: process.poll() is not None)
    assert process.returncode == 1
    assert 's; watchdog_first is 2 s' in processes.log(NODE)
    assert 'there is no simpler matcher than sgbm' in processes.log(NODE)


@pytest.mark.slow
def test_slow_matcher_gets_less_to_do_and_more_again(processes, cameras, fault):
    """Width, then rate, go down while the matcher is slow, and come back."""
    scale = 7  # images that are worth a network's width
    views = {
        side: np.kron(image, np.ones((scale, scale), np.uint8))
        for side, image in cameras.views().items()
    }

    def large(side, info):
        info.width, info.height = scale * info.width, scale * info.height

    def publish():
        return cameras.answer(cameras.publish(change_info=large, **views)).message

    # The times are said, not taken: what else the machine does must not matter.
    (fault.parent / 'sitecustomize.py').write_text(FAULTY_BACKEND + TIMES_AS_TOLD)
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    cameras.listen_diagnostics()
    options = {'target_ms': 10000.0, 'watchdog': 600.0, 'refine': False}
    processes.start(NODE, backend='openvino', threads=1, **options)
    cameras.wait_until_heard()
    answers, seen = [], set()

    def efforts():
        """Publish a pair and return the efforts that the diagnostics have told so far."""
        answers.append(publish())
        statuses, cameras.received['diagnostics'][:] = [*cameras.received['diagnostics']], []
        for status in statuses:
            values = {entry.key: entry.value for entry in status.values}
            if status.name == f'{NODE}: model':
                seen.add((values['network width, px'], values['one pair in'], status.level))
        return seen

    def steps():
        """Return all changes so far, which come faster than diagnostics: (width, one pair in)."""
        logged = re.findall(
            r'network width (\d+) px, (?:every pair|one pair in (\d+)) from now on',
            processes.log(NODE),
        )
        return [(640, 1), *((int(width), int(share or 1)) for width, share in logged)]

    cameras.spin_until(lambda: efforts() == {('640', '1', OK)})
    fault.write_text('slow')
    cameras.spin_until(lambda: efforts() and len(steps()) >= 5)
    fault.write_text('')
    cameras.spin_until(lambda: efforts() and steps()[-1] == (640, 1))
    falling = [(640, 1), (480, 1), (320, 1), (320, 2), (320, 4)]
    assert steps()[:5] == falling
    rising = steps()[4:]
    assert rising in ([(320, 4), *falling[-2::-1]], [(320, 4), (320, 8), *falling[::-1]])
    assert len(seen) > 1  # diagnostics come once a second and may miss a step
    for width, share, level in seen:
        assert (level == OK) == ((width, share) == ('640', '1')), (width, share)
    assert set(answers) == {'published', 'pressure'}


def test_model_that_loads_and_cannot_run_is_refused(node, cameras, tmp_path):
    onnx = pytest.importorskip('onnx')
    from onnx import helper, TensorProto

    shape = ['batch', 1, 'height', 'width']
    tensor = helper.make_tensor_value_info
    images = [tensor(name, TensorProto.FLOAT, shape) for name in ('left', 'right')]
    results = [
        tensor(name, TensorProto.FLOAT, ['b', 'h', 'w']) for name in ('disparity', 'confidence')
    ]
    size = onnx.numpy_helper.from_array(np.array([1, 7, 7]), 'size')
    nodes = [
        helper.make_node('Reshape', [source, 'size'], [name])
        for source, name in (('left', 'disparity'), ('right', 'confidence'))
    ]
    graph = helper.make_graph(nodes, 'bad', images, results, [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    entries = {'format_version': '1', 'max_disparity_px': '8', 'name': 'bad'}
    helper.set_model_props(model, entries)
    path = tmp_path / 'bad.onnx'
    onnx.save(model, path)
    cameras.set_parameters(backend='onnx', model=str(path))
    answer = cameras.call(Trigger, 'set_model')
    assert not answer.success
    assert 'bad fails when run' in answer.message
    assert cameras.answer(cameras.publish()).message == 'published'


def test_messages_out_of_the_ordinary_do_not_end_the_node(node, processes, cameras):
    def huge(side, info):
        if side == 'right':
            info.p[2] = 1e30

    def tiny(side, info):
        info.width = info.height = 1

    dot = {side: np.zeros((1, 1), np.uint8) for side in ('left', 'right')}
    for changes in ({'change_info': huge}, {'change_info': tiny, **dot}):
        status = cameras.answer(cameras.publish(**changes))
        assert status.level in (OK, ERROR), status.message
    cameras.publish(2**31 * 10**9 - 1)  # the last stamp there is
    cameras.spin_for(0.2)
    cameras.received['frame_status'].clear()
    assert cameras.answer(cameras.publish()).message == 'published'
    assert node.poll() is None


def request(cameras, name):
    """Ask a service of the node and return the future of its answer."""
    client = cameras.node.create_client(Trigger, f'{NODE}/{name}')
    cameras.spin_until(client.service_is_ready)
    return client.call_async(Trigger.Request())


def test_pairs_and_requests_are_served_while_a_model_is_loaded(node, cameras, fault):
    fault.write_text('load slowly')
    answer = request(cameras, 'set_model')
    for _ in range(5):
        assert cameras.answer(cameras.publish()).message == 'published'
    assert cameras.set_parameters(confidence_threshold=0.4)[0].successful
    again = request(cameras, 'set_model')
    assert cameras.call(Trigger, 'doctor').message
    assert not answer.done()
    fault.write_text('')
    for future in (answer, again):  # one after the other
        cameras.spin_until(future.done)
        assert future.result().success
    assert cameras.answer(cameras.publish()).message == 'published'


def test_node_ends_in_order_while_a_model_is_loaded(node, processes, cameras, fault):
    fault.write_text('load slowly')
    request(cameras, 'set_model')
    assert cameras.answer(cameras.publish()).message == 'published'
    node.send_signal(signal.SIGTERM)
    fault.write_text('')
    assert node.wait(60) == 0
    assert 'Traceback' not in processes.log(NODE)


def test_doctor_waits_its_turn_and_gives_up_a_stuck_matcher(node, cameras, fault):
    fault.write_text('hang')
    stuck = cameras.publish()
    answer = cameras.call(Trigger, 'doctor')
    assert not answer.success
    assert 'has not returned from a pair for 10 s' in ' '.join(answer.message.split())
    fault.write_text('')
    assert cameras.answer(stuck).message == 'published'
