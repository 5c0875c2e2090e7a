"""No call that could run what a file holds; ruff's S rules keep pickle, eval and yaml.load out."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path
    for folder in ('lunar_stereo_recon', 'training', 'test', 'launch')
    for path in (ROOT / folder).rglob('*.py')
]


def unsafe_calls(tree: ast.AST) -> list[int]:
    """Return the lines of torch.load without weights_only=True and np.load with pickles."""
    lines = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == 'torch.load' and given.get('weights_only') != 'True':
            lines.append(node.lineno)
        if called in ('np.load', 'numpy.load') and given.get('allow_pickle', 'False') != 'False':
            lines.append(node.lineno)
    return lines


def test_no_source_loads_pickles():
    found = {str(p): unsafe_calls(ast.parse(p.read_text(encoding='utf-8'))) for p in SOURCES}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    'code, count',
    [
        ('torch.load(f)', 1),
        ('torch.load(f, weights_only=False)', 1),
        ('torch.load(f, weights_only=True)', 0),
        ('np.load(f, allow_pickle=True)', 1),
        ('np.load(f)', 0),
    ],
)
def test_the_rule_itself(code, count):
    assert len(unsafe_calls(ast.parse(code))) == count
