"""~/doctor: what the page of `lunar-stereo doctor` says, asked of a running node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from std_srvs.srv import Trigger  # noqa: E402

NODE = 'reconstruction_node'


def some_pairs(cameras, **changes):
    """Publish pairs that are far enough apart for the doctor to keep them."""
    for _ in range(12):
        cameras.answer(cameras.publish(**changes))


def test_page_of_a_running_node(running, tmp_path):
    running.set_parameters(save_directory=str(tmp_path / 'pages'))
    some_pairs(running)
    answer = running.call(Trigger, 'doctor')
    first = answer.message.splitlines()[0]
    assert 'reconstruction_node: ' in first
    for name in ('topics', 'stamps', 'left and right stamps', 'camera_info', 'transport', 'rows'):
        assert f'{name} ' in answer.message, name
    assert 'pairs of 96x64 looked at; baseline 0.2 m' in answer.message
    page = Path(answer.message.rpartition('With pictures: ')[2])
    assert page.parent == tmp_path / 'pages'
    text = page.read_text()
    assert text.startswith('<!doctype html>') and 'data:image/jpeg' in text
    # The node goes on.
    assert running.answer(running.publish()).message == 'published'


def test_fault_of_the_calibration_is_found(processes, cameras, tmp_path):
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    processes.start(NODE, backend='sgbm', threads=1, save_root=tmp_path)
    cameras.wait_until_heard()
    some_pairs(cameras, right_tx=0.0)
    answer = cameras.call(Trigger, 'doctor')
    assert not answer.success
    assert 'FAULT' in answer.message and 'P[3] is 0' in answer.message
    assert "'baseline'" in answer.message


def test_silent_camera_is_found(processes, cameras, tmp_path):
    cameras.advertise()
    cameras.listen('points2', 'frame_status')
    processes.start(NODE, backend='sgbm', threads=1, save_root=tmp_path)
    cameras.wait_until_heard()
    for _ in range(5):
        cameras.publish(sides=('left',))
        cameras.spin_for(0.1)
    answer = cameras.call(Trigger, 'doctor')
    assert not answer.success
    assert 'right/image_rect is silent' in ' '.join(answer.message.split())


def test_idle_node_listens_when_it_is_asked(processes, cameras, tmp_path):
    cameras.advertise()
    processes.start(NODE, backend='sgbm', threads=1, save_root=tmp_path)
    answer = cameras.call(Trigger, 'doctor')
    assert not answer.success
    assert 'nobody subscribes to' in answer.message and 'call again' in answer.message
    # It listens for some seconds after each call, however slow the machine.
    for _ in range(10):
        for _ in range(12):
            cameras.publish()
            cameras.spin_for(0.05)
        answer = cameras.call(Trigger, 'doctor')
        if answer.success:
            break
    assert 'pairs of 96x64 looked at' in answer.message
    assert list(tmp_path.glob('doctor_*.html'))


def test_page_that_cannot_be_written_is_said(running, tmp_path):
    (tmp_path / 'file').write_text('')
    running.set_parameters(save_directory=str(tmp_path / 'file'))
    some_pairs(running)
    answer = running.call(Trigger, 'doctor')
    assert 'Without pictures: cannot write' in answer.message


def test_images_that_are_dark_are_found(running, tmp_path):
    running.set_parameters(save_directory=str(tmp_path))
    dark = {side: (view // 40).astype(np.uint8) for side, view in running.views().items()}
    some_pairs(running, **dark)
    answer = running.call(Trigger, 'doctor')
    assert 'WARNING' in answer.message or 'FAULT' in answer.message
