"""The README keeps its word: its Python runs, its links lead somewhere."""

from __future__ import annotations

from pathlib import Path
import re

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent
CARD = DEFAULT_MODEL.parent / 'README.md'
PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').rglob('*.md')), CARD]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


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


@pytest.mark.parametrize(('page', 'limit'), [(ROOT / 'README.md', 10_000), (CARD, 12_000)])
def test_page_is_short(page, limit):
    assert len(page.read_bytes()) <= limit


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
