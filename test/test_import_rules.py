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
        (('ray',), ('batch/cluster.py',)),
        (('pyarrow',), ('batch/frame_table.py',)),
        (ROS, ('ros/',)),
    ],
)
def test_runtimes_stay_in_their_places(forbidden, allowed):
    assert offenders(forbidden, allowed) == []


def test_only_commands_reach_for_ros_and_only_when_run():
    """A command may start the nodes, but importing it must not need ROS."""
    assert offenders(('lunar_stereo_recon.ros',), ('ros/', 'commands/')) == []
    assert offenders(('lunar_stereo_recon.ros',), ('ros/',), everywhere=False) == []


def module_name(path: Path) -> str:
    """Return the dotted name of a module of this repository."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {
    module_name(path): path
    for top in ('lunar_stereo_recon', 'training')
    for path in sorted((ROOT / top).rglob('*.py'))
}


def imports_of(name: str) -> set[str]:
    """Return the modules of this repository that one imports: in functions and for types too."""
    found = imported_names(MODULES[name], everywhere=True) & MODULES.keys()
    return {module for module in found if module != name}


def room_of(name: str) -> str:
    """Return the folder that a module is in, or the module itself where it is in none."""
    return '.'.join(name.split('.')[:2])


def imports_of_rooms() -> dict[str, set[str]]:
    """Return which folders and single modules import which others."""
    rooms: dict[str, set[str]] = {room_of(name): set() for name in MODULES}
    for name in MODULES:
        rooms[room_of(name)] |= {room_of(other) for other in imports_of(name)} - {room_of(name)}
    return rooms


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a ring, or nothing."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(imports[name]):
            if ring := search(other, [*path, name]):
                return ring
        done.add(name)
        return []

    return next((ring for name in imports if (ring := search(name, []))), [])


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions and under TYPE_CHECKING count."""
    assert circle({name: imports_of(name) for name in MODULES}) == []


def test_no_folder_imports_itself_by_way_of_others():
    assert circle(imports_of_rooms()) == []


def test_a_circle_is_found():
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c']
    assert circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) == []


BELOW = {
    'datatypes.py': ('limits', 'errors'),
    'errors.py': (),
    'limits.py': ('errors',),
    'geometry/': ('geometry', 'datatypes', 'errors', 'limits'),
    'preprocess.py': ('geometry', 'datatypes', 'errors', 'limits'),
}


@pytest.mark.parametrize('place', BELOW)
def test_no_import_runs_upward(place):
    """What every stage stands on knows none of the stages."""
    allowed = {f'lunar_stereo_recon.{name}' for name in BELOW[place]}
    for name, path in MODULES.items():
        inside = path.relative_to(ROOT).as_posix()
        if inside.startswith(f'lunar_stereo_recon/{place}'):
            upward = [
                other
                for other in imports_of(name)
                if not any(other == rule or other.startswith(f'{rule}.') for rule in allowed)
            ]
            assert upward == [], name
