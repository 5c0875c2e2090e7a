"""What is shipped: declared dependencies, version, licence, and the tree that colcon installs."""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from lunar_stereo_recon import __version__

ROOT = Path(__file__).resolve().parent.parent
NODES = (
    'reconstruction_node',
    'replay_node',
    'recorder_node',
    'simulator_node',
    'camera_info_relay',
)

# Import name: (distribution on PyPI, rosdep key or None where rosdep has none).
THIRD_PARTY = {
    'backports': ('backports-zstd', None),
    'cv2': ('opencv-python-headless', 'python3-opencv'),
    'numpy': ('numpy', 'python3-numpy'),
    'onnxruntime': ('onnxruntime', 'python3-onnxruntime-pip'),
    'rosbags': ('rosbags', 'python3-rosbags-pip'),
    'scipy': ('scipy', 'python3-scipy'),
    'tqdm': ('tqdm', 'python3-tqdm'),
    'yaml': ('pyyaml', 'python3-yaml'),
}
# Packages of a ROS distribution that are not on PyPI; imported only where they are present.
ROS_ONLY = {
    'launch',
    'launch_ros',
    'tf2_msgs',
    'cv_bridge',
    'message_filters',
    'ament_index_python',
}
# Import name and distribution of what only the extras [sim] and [train] bring.
TRAINING_ONLY = {
    **{name: name for name in ('embreex', 'numba', 'onnx', 'rasterio', 'safetensors', 'torch')},
    **{'erfa': 'pyerfa', 'OpenEXR': 'openexr'},
}


def imported_modules(folder: Path) -> set[str]:
    """Return the top-level names of all absolute imports below a folder."""
    names = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split('.')[0])
    # `compression` belongs to the standard library since Python 3.14.
    standard = set(sys.stdlib_module_names) | {'compression'}
    return names - standard - {'lunar_stereo_recon', 'training'}


@pytest.fixture(scope='module')
def manifest():
    return ElementTree.parse(ROOT / 'package.xml').getroot()


# Optional: import name, and its extra and distribution; rosdep has no key.
OWN_EXTRAS = {
    'laspy': ('map', 'laspy'),
    'model_signing': ('signing', 'model-signing'),
    'openvino': ('openvino', 'openvino'),
    'plotly': ('report', 'plotly'),
    'pyarrow': ('batch', 'pyarrow'),
    'ray': ('batch', 'ray'),
    'rerun': ('viewer', 'rerun-sdk'),
}


@pytest.fixture(scope='module')
def metadata(tmp_path_factory):
    """Return the requirements that setup.py declares: name of the extra ('' for none) to names."""
    folder = tmp_path_factory.mktemp('egg')
    subprocess.run(
        [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(folder)],
        cwd=ROOT,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    declared: dict[str, set[str]] = {'': set()}
    section = ''
    requirements = (folder / 'lunar_stereo_recon.egg-info' / 'requires.txt').read_text()
    for line in filter(None, map(str.strip, requirements.splitlines())):
        if line.startswith('['):
            # '[extra:marker]': a requirement of some Python versions only.
            section = line.strip('[]').split(':')[0]
            declared.setdefault(section, set())
        else:
            assert '>=' in line and '<' in line, f'{line} has no range'
            declared[section].add(re.split(r'[<>=!~\s]', line)[0].lower())
    return declared


def exec_depends(manifest) -> set[str]:
    return {e.text for tag in ('depend', 'exec_depend') for e in manifest.findall(tag)}


def test_package_xml_is_format_3_ament_python_of_this_version(manifest):
    assert manifest.get('format') == '3'
    assert manifest.findtext('name') == 'lunar_stereo_recon'
    assert manifest.findtext('version') == __version__
    assert manifest.findtext('license') == 'Apache-2.0'
    assert manifest.findtext('export/build_type') == 'ament_python'


def test_every_import_of_the_runtime_is_declared_for_pip_and_for_rosdep(manifest, metadata):
    ros_wheels = {name.removeprefix('ros-jazzy-').replace('-', '_') for name in metadata['ros']}
    training = metadata['sim'] | metadata['train']
    for name in sorted(imported_modules(ROOT / 'lunar_stereo_recon')):
        if name in THIRD_PARTY:
            distribution, key = THIRD_PARTY[name]
            assert distribution in metadata[''], f'{name}: {distribution} is not in setup.py'
            assert key is None or key in exec_depends(manifest), f'{name}: no {key}'
        elif name in OWN_EXTRAS:
            extra, distribution = OWN_EXTRAS[name]
            assert distribution in metadata[extra], f'{name} is not in extra [{extra}]'
        elif name in TRAINING_ONLY:
            distribution = TRAINING_ONLY[name]
            assert distribution in training, f'{name} is in neither extra [sim] nor [train]'
        else:
            assert name in ros_wheels | ROS_ONLY | {'builtin_interfaces', 'rcl_interfaces'}, name
            assert name in exec_depends(manifest), f'{name} is not in package.xml'


def test_simulator_has_rosdep_keys_for_who_asks(manifest):
    catkin_pkg = pytest.importorskip('catkin_pkg.package')
    package = catkin_pkg.parse_package(str(ROOT / 'package.xml'))

    def keys(environment):
        package.evaluate_conditions(environment)
        return {depend.name for depend in package.exec_depends if depend.evaluated_condition}

    more = keys({'LUNAR_STEREO_SIM': '1'}) - keys({})
    assert more == {'python3-pytorch-pip'}


def test_every_import_of_training_is_declared(metadata):
    distributions = {'cv2': 'opencv-python-headless', 'yaml': 'pyyaml', 'OpenEXR': 'openexr'}
    declared = metadata[''] | metadata['train']
    for name in sorted(imported_modules(ROOT / 'training')):
        assert distributions.get(name, name) in declared, f'{name} is not in extra [train]'


def test_wheels_of_ros_are_packages_of_package_xml(manifest, metadata):
    # The middleware is chosen by the user's ROS installation, not by this package.
    wheels = metadata['ros'] - {'ros-jazzy-rmw-fastrtps-cpp'}
    names = {name.removeprefix('ros-jazzy-').replace('-', '_') for name in wheels}
    assert names <= exec_depends(manifest)


def test_no_runtime_requirement_is_torch(metadata):
    assert not {'torch'} & (metadata[''] | metadata['ros'])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('git') is None, reason='git is not installed')
@pytest.mark.skipif(importlib.util.find_spec('colcon_core') is None, reason='needs colcon')
@pytest.mark.parametrize('option', [[], ['--symlink-install']], ids=['copied', 'symlinked'])
def test_colcon_installs_nodes_launch_files_config_and_weights(tmp_path, option):
    source = tmp_path / 'src'
    source.mkdir()
    copy_tracked_files(source)
    install = tmp_path / 'install' / 'lunar_stereo_recon'
    built = subprocess.run(
        [
            str(Path(sys.executable).with_name('colcon')),
            *('--log-base', str(tmp_path / 'log')),
            *('build', '--base-paths', str(source), '--build-base', str(tmp_path / 'build')),
            *('--install-base', str(tmp_path / 'install'), *option),
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    for node in (*NODES, 'lunar-stereo'):
        script = install / 'lib' / 'lunar_stereo_recon' / node
        assert os.access(script, os.X_OK), f'{script} is missing'
    share = install / 'share' / 'lunar_stereo_recon'
    assert (install / 'share/ament_index/resource_index/packages/lunar_stereo_recon').is_file()
    assert (share / 'package.xml').is_file()
    for folder in ('launch', 'config'):
        assert relative_files(share / folder) == relative_files(source / folder) != set()
    assert package_data(install, option) >= shipped_data()


def copy_tracked_files(target: Path) -> None:
    """Copy what a fresh clone would hold (and new files that git does not ignore)."""
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split('\0')
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def relative_files(folder: Path) -> set[str]:
    files = (p for p in folder.rglob('*') if p.is_file() and p.suffix != '.pyc')
    return {str(p.relative_to(folder)) for p in files}


def shipped_data() -> set[str]:
    names = relative_files(ROOT / 'lunar_stereo_recon')
    shipped = ('weights/', 'data/demo_traverse/', 'ros/fastdds_large_messages.xml')
    return {n for n in names if n.startswith(shipped)}


def package_data(install: Path, option: list[str]) -> set[str]:
    """Return the data files beside the package that the install tree makes importable."""
    environment = {'PATH': os.environ['PATH'], 'HOME': os.environ.get('HOME', '/')}
    hook = f'. {install}/share/lunar_stereo_recon/package.sh && {sys.executable} -c '
    code = 'import lunar_stereo_recon as p; print(p.__file__)'
    found = subprocess.run(
        ['sh', '-c', f'COLCON_CURRENT_PREFIX={install}; {hook} "{code}"'],
        cwd=install,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    package = Path(found.stdout.strip()).parent
    assert install.parent.parent in package.parents, 'not the package that colcon installed'
    return relative_files(package)
