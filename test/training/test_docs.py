"""Command lines of the documentation are command lines of this package."""

from __future__ import annotations

from pathlib import Path
import re

import pytest

pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from training.commands.campaign import parse_step  # noqa: E402
from training.commands.train import recipe_path  # noqa: E402
from training.recipe import load_recipe  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    'docs/training.md',
    'docs/campaign.md',
    'docs/ablation.md',
    'docs/svd_init.md',
    'docs/benchmark.md',
    'docs/student_history.md',
    'lunar_stereo_recon/weights/README.md',
)


def commands(page: str) -> list[str]:
    """Return the package's command lines in the page's code blocks."""
    text = (ROOT / page).read_text(encoding='utf-8')
    lines = []
    for language, block in re.findall(r'```(\w*)\n(.*?)```', text, flags=re.DOTALL):
        if language not in ('', 'bash', 'console'):
            continue
        lines += re.sub(r'\\\n\s*', '', block).splitlines()
    lines = [re.sub(r'\s+#.*', '', line).strip() for line in lines]
    start = r'^(python -m training|torchrun .*-m training|lunar-stereo)\b'
    return [line for line in lines if re.match(start, line)]


@pytest.mark.parametrize('page', PAGES)
def test_commands_are_known(page):
    found = commands(page)
    assert found
    for line in found:
        line = re.sub(r'^(python|torchrun .*?) -m training ?', '', line)
        if line == '--help':
            continue
        args = parse_step(line).args
        if hasattr(args, 'recipe'):
            load_recipe(recipe_path(args.recipe), args.overrides)
