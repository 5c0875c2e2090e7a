"""Commands that need an extra say so in one line."""

from __future__ import annotations

from pathlib import Path
import re
import subprocess
import sys

import pytest

from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.extras import missing_extra, require

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = """
import importlib.abc, runpy, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {missing!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Missing())
sys.argv = {argv!r}
runpy.run_module({module!r}, run_name='__main__')
"""


def run_without(missing, module, *argv):
    code = WITHOUT.format(missing=missing, module=module, argv=[module, *argv])
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize('command', ['gallery', 'dataset', 'export-gazebo'])
def test_commands_that_render_name_the_extra(command, tmp_path):
    arguments = ['--out', str(tmp_path / 'new'), *(['--count', '1'] * (command == 'dataset'))]
    ended = run_without(('torch',), 'lunar_stereo_recon.cli', command, *arguments)
    assert ended.returncode == 2
    assert ended.stderr.strip().endswith("in the source folder, pip install '.[sim]'")
    assert ended.stderr.count('\n') == 1 and 'torch is not installed' in ended.stderr


def test_fuse_names_its_extra_before_it_looks_at_the_bag():
    ended = run_without(('rasterio',), 'lunar_stereo_recon.cli', 'fuse', 'no/bag')
    assert ended.returncode == 2
    assert 'rasterio is not installed; it comes with the extra [map]' in ended.stderr


@pytest.mark.parametrize('missing', ['torch', 'omegaconf'])
def test_training_names_its_extra(missing):
    ended = run_without((missing,), 'training', 'smoke')
    assert ended.returncode == 2
    assert ended.stderr.startswith(f'error: {missing} is not installed')
    assert "pip install '.[train]'" in ended.stderr and ended.stderr.count('\n') == 1


def test_simulator_names_its_extra():
    pytest.importorskip('rclpy')
    ended = run_without(('torch',), 'lunar_stereo_recon.ros.simulator_main')
    assert ended.returncode == 1
    assert re.fullmatch(r'simulator_node: error: torch is .*\[sim\].*\n', ended.stderr)


def test_a_library_of_nobody_is_a_fault_of_ours():
    assert missing_extra(ModuleNotFoundError(name='lunar_stereo_recon.nothing')) == ''


def test_what_is_required_is_named(monkeypatch):
    require('numpy')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ReconError, match=r'embreex is not installed.*\[sim\]'):
        require('embreex')
