"""The parameter `viewer` of the reconstruction node: what is shown, and that it harms nobody."""

import signal
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip('rclpy')

import rclpy  # noqa: E402
from rclpy.lifecycle import TransitionCallbackReturn  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from lunar_stereo_recon.errors import ReconError  # noqa: E402
from lunar_stereo_recon.ros import frame_viewer, reconstruction_node  # noqa: E402
from lunar_stereo_recon.ros.reconstruction_node import ReconstructionNode  # noqa: E402

NODE = 'reconstruction_node'
OPTIONS = {'backend': 'sgbm', 'threads': 1, 'viewer': 'rerun'}


class Logger:
    """Keeps what a node would log."""

    def __init__(self):
        self.lines = []

    def error(self, text, **options):
        self.lines.append(text)


class StandIn:
    """A viewer that waits for `go` before each frame, and then shows it or fails."""

    def __init__(self, error=None):
        self.error, self.shown, self.closed = error, [], False
        self.go, self.busy = threading.Event(), threading.Event()

    def show(self, pair, result, pose):
        self.busy.set()
        self.go.wait(60)
        if self.error is not None:
            raise self.error
        self.shown.append((pair, result, pose))

    def close(self):
        self.closed = True


@pytest.fixture
def opened(monkeypatch):
    """Return a function that gives a FrameViewer around a stand-in, and its log."""

    def make(stand_in):
        monkeypatch.setattr(frame_viewer, 'open_viewer', lambda path, name: stand_in)
        monkeypatch.setattr(frame_viewer, 'PATIENCE_S', 0.1)
        logger = Logger()
        return frame_viewer.FrameViewer('', lambda result: f'pose of {result}', logger), logger

    return make


def wait_for(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_slow_viewer_gets_the_newest_frame_and_holds_up_nobody(opened):
    slow = StandIn()
    viewer, _ = opened(slow)
    viewer.submit('first', 1)
    slow.busy.wait(60)
    for number in range(2, 100):
        viewer.submit('later', number)
    assert slow.shown == []
    slow.go.set()
    wait_for(lambda: len(slow.shown) == 2)
    assert slow.shown == [('first', 1, 'pose of 1'), ('later', 99, 'pose of 99')]
    viewer.close()
    assert slow.closed


def test_a_viewer_that_is_stuck_does_not_keep_the_node_from_ending(opened):
    stuck = StandIn()
    viewer, _ = opened(stuck)
    viewer.submit('pair', 1)
    stuck.busy.wait(60)
    viewer.close()
    assert stuck.closed
    stuck.go.set()


def test_a_viewer_that_fails_is_logged_and_asked_again(opened):
    failing = StandIn(error=ReconError('the window is gone'))
    failing.go.set()
    viewer, logger = opened(failing)
    viewer.submit('pair', 1)
    wait_for(lambda: logger.lines)
    assert logger.lines == ['a frame is not shown: ReconError: the window is gone']
    failing.error = None
    viewer.submit('pair', 2)
    wait_for(lambda: failing.shown)
    viewer.close()


@pytest.mark.ros
def test_a_node_that_cannot_load_its_model_lets_its_viewer_go(monkeypatch):
    made = []

    class Viewer:
        closed = False

        def __init__(self, *args):
            made.append(self)

        def close(self):
            self.closed = True

    monkeypatch.setattr(reconstruction_node, 'FrameViewer', Viewer)
    context = rclpy.Context()
    rclpy.init(context=context)
    given = {'viewer': 'rerun', 'model': '/nowhere.onnx'}
    overrides = [Parameter(name, value=value) for name, value in given.items()]
    node = ReconstructionNode(context=context, parameter_overrides=overrides)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert [viewer.closed for viewer in made] == [True] and node._viewer is None
    node.destroy_node()
    context.try_shutdown()


@pytest.mark.ros
def test_the_node_works_for_the_viewer_and_writes_its_recording(processes, cameras, tmp_path):
    """Nobody subscribes to a result."""
    pytest.importorskip('rerun')
    file = tmp_path / 'drive.rrd'
    cameras.advertise()
    cameras.listen('frame_status')
    node = processes.start(NODE, viewer_file=file, **OPTIONS)
    cameras.wait_until_heard()
    for _ in range(3):
        assert cameras.answer(cameras.publish()).message == 'published'
    wait_for(lambda: 'works for the viewer' in processes.log(NODE))
    node.send_signal(signal.SIGINT)
    assert node.wait(120) == 0, processes.log(NODE)
    printed = subprocess.run(
        [sys.executable, '-m', 'rerun', 'rrd', 'print', file], capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    for path in ('/camera/left', '/camera/depth', '/camera/confidence', '/camera/cloud'):
        assert path in printed.stdout


@pytest.mark.ros
def test_a_viewer_that_cannot_be_opened_is_explained(processes, tmp_path):
    pytest.importorskip('rerun')
    (tmp_path / 'sitecustomize.py').write_text("import sys\nsys.modules['rerun'] = None\n")
    wrong = processes.start(NODE, viewer_file=tmp_path / 'drive.ply', **OPTIONS)
    log_of_wrong = processes.logs[NODE]
    processes.environment['PYTHONPATH'] = f'{tmp_path}:{":".join(sys.path)}'
    missing = processes.start(NODE, **OPTIONS)
    assert wrong.wait(240) == 1 and missing.wait(240) == 1
    assert 'viewer_file is' in log_of_wrong.read_text()
    assert 'rerun is not installed; it comes with the extra [viewer]' in processes.log(NODE)
    for text in (log_of_wrong.read_text(), processes.log(NODE)):
        assert 'Traceback' not in text
