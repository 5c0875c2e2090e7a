"""A node that cannot end is ended, whatever holds it up."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[2]
NODE = """
import atexit, ctypes, os, sys, threading, time
from rclpy.node import Node
from lunar_stereo_recon.ros.node_main import run_node, serve, EXIT_DONE

LIBRARY, WITH_LOCK_OF_PYTHON = ctypes.CDLL(None), ctypes.PyDLL(None)
MUTEX = ctypes.create_string_buffer(64)

class Stuck(Node):
    def destroy_node(self):
        {ending}
        super().destroy_node()

def make(interrupted):
    return Stuck('stuck')

def work(node, interrupted):
    print('working', flush=True)
    {working}
    return EXIT_DONE

sys.exit(run_node('stuck', make, work, [], patience_s={patience_s}))
"""
SERVING = 'serve(node, interrupted)'
LOCK_TWICE = '{library}.pthread_mutex_lock(MUTEX), {library}.pthread_mutex_lock(MUTEX)'


def start(folder: Path, working: str = SERVING, ending: str = 'pass', patience_s: float = 60.0):
    """Start a node that works and ends by these statements, and wait until it works."""
    program = folder / 'stuck.py'
    program.write_text(NODE.format(working=working, ending=ending, patience_s=patience_s))
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'working\n', process.communicate()
    return process


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Return exit status and stderr."""
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_node_that_ends_is_left_alone(number, tmp_path):
    process = start(tmp_path)
    process.send_signal(number)
    assert ended(process) == (0, '')


def test_signal_while_the_main_thread_looks_at_the_event(tmp_path):
    """It holds the event's lock then: a handler that sets it would wait for ever."""
    looking = 'with interrupted._cond: os.kill(os.getpid(), 15); time.sleep(0.1)'
    process = start(tmp_path, f'{looking}\n    {SERVING}')
    assert ended(process) == (0, '')


def test_signal_reaches_a_node_in_the_middle_of_its_library(tmp_path):
    """Handlers of Python run when the library returns."""
    helper = 'interrupted.wait(), print("asked", flush=True), LIBRARY.pthread_mutex_unlock(MUTEX)'
    thread = f'threading.Thread(target=lambda: ({helper})).start()'
    process = start(tmp_path, f'{thread}\n    {LOCK_TWICE.format(library="LIBRARY")}')
    time.sleep(0.5)
    process.terminate()
    assert ended(process) == (0, '')


@pytest.mark.parametrize(
    ('stuck', 'place'),
    [
        ({'ending': 'time.sleep(100)'}, 'in destroy_node'),
        ({'working': 'threading.Event().wait()'}, 'in work'),
        # As in DDS, which rclpy calls with Python's lock.
        ({'ending': LOCK_TWICE.format(library='WITH_LOCK_OF_PYTHON')}, 'in destroy_node'),
        # After the node has gone.
        ({'working': 'atexit.register(lambda: time.sleep(100))'}, 'in <lambda>'),
    ],
)
def test_node_that_is_stuck_says_where_and_is_ended(stuck, place, tmp_path):
    process = start(tmp_path, **stuck, patience_s=6.0)
    begun = time.monotonic()
    process.terminate()
    status, errors = ended(process)
    assert status == -signal.SIGALRM
    assert 6.0 < time.monotonic() - begun < 30.0
    assert place in errors and 'stuck.py' in errors
    if 'WITH_LOCK_OF_PYTHON' in stuck.get('ending', ''):
        assert 'Timeout' in errors  # written without Python
    else:
        assert 'stuck: still running 1 s after SIGTERM; 6 s after it SIGALRM ends' in errors
