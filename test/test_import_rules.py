"""Who may import whom: the core runs without ROS and torch, and nothing imports the trainer."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'lunar_stereo_recon'

BLOCKED_IMPORT = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError(f'{{name}} must not be imported here')

sys.meta_path.insert(0, Blocked())
import {module}
"""

ROS = ('rclpy', 'sensor_msgs', 'stereo_msgs', 'message_filters', 'cv_bridge', 'rosgraph_msgs')
CORE = [
    'lunar_stereo_recon.pipeline',
    'lunar_stereo_recon.preprocess',
    'lunar_stereo_recon.evaluation.scores',
    'lunar_stereo_recon.geometry.camera',
    'lunar_stereo_recon.geometry.disparity',
    'lunar_stereo_recon.geometry.refine',
    'lunar_stereo_recon.geometry.confidence',
    'lunar_stereo_recon.bags.reader',
    'lunar_stereo_recon.bags.writer',
    'lunar_stereo_recon.backends.onnx_backend',
    'lunar_stereo_recon.backends.sgbm_backend',
    'lunar_stereo_recon.benchmark.report',
    'lunar_stereo_recon.cli',
]


def import_with_blocked(module: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess:
    code = BLOCKED_IMPORT.format(blocked=set(blocked), module=module)
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)


def test_core_imports_without_ros_and_torch():
    result = import_with_blocked(', '.join(CORE), (*ROS, 'torch', 'training'))
    assert result.returncode == 0, result.stderr


def test_pipeline_knows_no_network_runtime():
    result = import_with_blocked('lunar_stereo_recon.pipeline', ('onnxruntime', 'torch', 'yaml'))
    assert result.returncode == 0, result.stderr


def test_types_errors_and_scores_need_numpy_alone():
    modules = ', '.join(
        f'lunar_stereo_recon.{n}' for n in ('datatypes', 'errors', 'evaluation.scores')
    )
    result = import_with_blocked(modules, ('cv2', 'scipy', 'onnxruntime', 'torch', 'yaml'))
    assert result.returncode == 0, result.stderr


def test_the_block_blocks():
    assert 'must not be' in import_with_blocked('cv2', ('cv2',)).stderr


def imported_names(path: Path, everywhere: bool) -> set[str]:
    """Return the modules that a file imports, inside functions too where `everywhere`."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    nodes = ast.walk(tree) if everywhere else tree.body
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return names


def offenders(forbidden: tuple[str, ...], allowed: tuple[str, ...], everywhere: bool = True):
    """Return package files outside the `allowed` paths that import a `forbidden` module."""
    found = []
    for path in sorted(PACKAGE.rglob('*.py')):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(allowed):
            continue
        for name in imported_names(path, everywhere):
            if any(name == rule or name.startswith(f'{rule}.') for rule in forbidden):
                found.append(f'{place}: {name}')
    return found


@pytest.mark.parametrize(
    'forbidden, allowed',
    [
        (('training', 'safetensors', 'omegaconf'), ('none',)),
        (('torch',), ('simulation/',)),
        (('onnxruntime',), ('backends/onnx_backend.py', 'commands/info.py')),
        (('openvino',), ('backends/openvino_backend.py',)),
        (ROS, ('ros/',)),
    ],
)
def test_runtimes_stay_in_their_places(forbidden, allowed):
    assert offenders(forbidden, allowed) == []


def test_only_commands_reach_for_ros_and_only_when_run():
    """A command may start the nodes, but importing it must not need ROS."""
    assert offenders(('lunar_stereo_recon.ros',), ('ros/', 'commands/')) == []
    assert offenders(('lunar_stereo_recon.ros',), ('ros/',), everywhere=False) == []
