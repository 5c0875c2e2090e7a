"""The README keeps its word: its Python runs, its parameters and links are there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
import re

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').rglob('*.md'))]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
ROS_PAGE = (ROOT / 'docs/ros.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_to_files(page):
    text = page.read_text(encoding='utf-8')
    targets = re.findall(r'\]\(([^)#]*)(?:#([^)]+))?\)', text)
    for target, anchor in targets:
        if target.startswith('http'):
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f'{target}#{anchor}'


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.+)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in headings}


@pytest.mark.ros
def test_parameter_table_is_that_of_the_node():
    pytest.importorskip('rclpy')
    from lunar_stereo_recon.ros.parameters import ReconstructionParameters

    section = ROS_PAGE.split('## Parameters')[1].split('\n## ')[0]
    rows = re.findall(r'^\| (`.+?) \|', section, re.MULTILINE)
    documented = [
        (name, '*' in row)
        for row in rows[rows.index('`autostart`') :]
        for name in re.findall(r'`(\w+)`', row)
    ]
    declared = {
        field.name: field.metadata['dynamic']
        for field in dataclasses.fields(ReconstructionParameters)
    }
    assert sorted(documented) == sorted(declared.items())


@pytest.mark.ros
def test_parameters_of_the_readme_are_declared_with_its_defaults():
    pytest.importorskip('rclpy')
    from lunar_stereo_recon.ros.parameters import ReconstructionParameters

    section = README.split('## Topics and parameters')[1].split('\n## ')[0]
    rows = re.findall(r'^\| `(\w+)` \| ([^|]+?) \|', section.split('| parameter |')[1], re.M)
    assert len(rows) >= 8
    declared = {f.name: f.default for f in dataclasses.fields(ReconstructionParameters)}
    for name, default in rows:
        assert name in declared
        if default != 'all':
            text = str(declared[name]).lower().removesuffix('.0') or "''"
            assert default.split()[0] == text, name


def test_readme_is_short():
    assert len(README.encode()) <= 10_000


@pytest.mark.skipif(not DEFAULT_MODEL.is_file(), reason='the flight student is not there')
def test_python_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (480, 672)).astype(np.uint8)
    wall = cv2.GaussianBlur(noise, (0, 0), 1.5)
    cv2.imwrite(str(tmp_path / 'left.png'), wall[:, :640])
    cv2.imwrite(str(tmp_path / 'right.png'), wall[:, 32:])
    monkeypatch.chdir(tmp_path)
    example = re.search(r'```python\n(.*?)```', README, re.DOTALL).group(1)
    names: dict = {}
    exec(compile(example, 'README.md', 'exec'), names)
    # The rig of the example: 480 px * 0.3 m / 32 px.
    assert np.nanmedian(names['result'].depth) == pytest.approx(4.5, rel=0.05)
    assert capsys.readouterr().out
