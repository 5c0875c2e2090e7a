"""The programs of this folder, in a short form."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

pytest.importorskip('rclpy')
pytestmark = [pytest.mark.ros, pytest.mark.slow]

FOLDER = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, 'PYTHONPATH': str(FOLDER.parents[1])}


def run(program, *arguments):
    """Run a program and return its exit status and all that it wrote."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / program), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout


def test_soak():
    status, text = run('soak.py', '--frames', '1000')
    assert status == 0, text
    assert '"published": 1000' in text


@pytest.mark.parametrize('name', ['one_side_only', 'camera_info_changes', 'replay_is_ended'])
def test_fault(name):
    status, text = run('faults.py', name)
    assert status == 0, text


def test_latency_of_the_node():
    status, text = run('latency.py', 'node', '--backend', 'sgbm', '--size', '160x120')
    assert status == 0, text
    assert '"backend": "sgbm"' in text


def test_cost_of_clouds():
    status, text = run('latency.py', 'clouds', '--count', '2')
    assert status == 0, text
    assert '"what": "compressedDepth"' in text
