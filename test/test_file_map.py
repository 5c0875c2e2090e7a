"""docs/file_map.md names every module, and what it tells newcomers is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'file_map.md'
TEXT = PAGE.read_text(encoding='utf-8')


def test_the_map_is_up_to_date():
    spec = importlib.util.spec_from_file_location('make_file_map', ROOT / 'docs/make_file_map.py')
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.file_map() == TEXT, 'run: python docs/make_file_map.py'


def test_every_module_has_a_line():
    assert re.findall(r'^\| `\S+\.py` \|  \|$', TEXT, re.MULTILINE) == []


@pytest.mark.parametrize(
    'named', re.findall(r'`([\w/.]+)`', TEXT.split('## Where to look')[1].split('\n## ')[0])
)
def test_places_to_look_at_are_there(named):
    bases = (ROOT, ROOT / 'lunar_stereo_recon')
    assert any((base / named).exists() or (base / f'{named}.py').exists() for base in bases)


def test_folders_of_tests_are_those_of_the_tree():
    """Tests of `lunar_stereo_recon/geometry/` are in `test/geometry/`, and so on."""
    without_a_module = {'docs', 'endurance', 'fuzz', 'typings', 'ros/launch_files'}
    folders = {
        path.parent.relative_to(ROOT / 'test').as_posix() for path in ROOT.glob('test/*/**/*.py')
    }
    unknown = {
        folder
        for folder in folders - without_a_module
        if not (ROOT / 'lunar_stereo_recon' / folder).is_dir() and not (ROOT / folder).is_dir()
    }
    assert unknown == set()
