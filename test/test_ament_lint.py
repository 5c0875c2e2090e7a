"""ROS's own linters, where they are installed; ruff checks the same everywhere.

No copyright notice stands in each file: LICENSE holds for all, and package.xml names it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
CHECKED = ('lunar_stereo_recon', 'launch', 'test', 'training', 'setup.py')


@pytest.fixture
def checked(monkeypatch) -> list[str]:
    """Return the paths to check, from the root of the package."""
    monkeypatch.chdir(ROOT)
    return [name for name in CHECKED if Path(name).exists()]


def test_ament_flake8(checked):
    ament_flake8 = pytest.importorskip('ament_flake8.main')
    status, errors = ament_flake8.main_with_errors(argv=['--config', 'setup.cfg', *checked])
    assert status == 0, '\n'.join(errors)


def test_ament_pep257(checked, capsys):
    ament_pep257 = pytest.importorskip('ament_pep257.main')
    # Google's convention has no rule on private and undocumented things that ament has not.
    undocumented = [f'D{number}' for number in range(100, 108)]
    options = ['--convention', 'google', '--add-ignore', *undocumented, 'D417']
    assert ament_pep257.main(argv=[*options, '--', *checked]) == 0, capsys.readouterr().out
