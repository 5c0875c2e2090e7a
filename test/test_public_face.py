"""The names that `from lunar_stereo_recon import ...` offers, and what importing them costs."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
import subprocess
import sys

import pytest

import lunar_stereo_recon

INIT = Path(lunar_stereo_recon.__file__)


@pytest.mark.parametrize('name', lunar_stereo_recon.__all__)
def test_each_public_name_is_that_of_its_module(name):
    module = importlib.import_module(f'lunar_stereo_recon.{lunar_stereo_recon._MODULES[name]}')
    assert getattr(lunar_stereo_recon, name) is getattr(module, name)
    assert name in dir(lunar_stereo_recon)


def test_type_checkers_see_the_same_names_from_the_same_modules():
    block = next(node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix('lunar_stereo_recon.')
        for node in block.body
        for alias in node.names
    }
    assert seen == lunar_stereo_recon._MODULES
    assert sorted(seen) == sorted(lunar_stereo_recon.__all__)


def test_an_unknown_name_is_refused_like_in_any_module():
    with pytest.raises(AttributeError, match="'lunar_stereo_recon' has no attribute 'teacher'"):
        lunar_stereo_recon.teacher  # noqa: B018
    with pytest.raises(ImportError):
        from lunar_stereo_recon import teacher  # noqa: F401


def test_the_package_alone_loads_nothing_heavy():
    code = (
        'import sys, lunar_stereo_recon as p; p.ReconError;'
        "print([m for m in ('numpy', 'cv2', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert shown.stdout.strip() == '[]', shown.stderr


def test_the_package_says_that_it_has_types():
    assert (INIT.parent / 'py.typed').is_file()
