"""Each file is there whole or not at all: the package writes through `files/atomic.py`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / 'lunar_stereo_recon'
# What writes a file by its name. `open` counts where its mode makes a file.
NAMED = {'write_text', 'write_bytes', 'imwrite', 'tofile', 'savez', 'savez_compressed', 'save'}
# Logs and temporary copies; a bag, which grows; a lock; and the writer itself.
ALLOWED = {
    'batch/store.py': 1,
    'bags/storage.py': 1,
    'bags/writer.py': 1,
    'files/atomic.py': 1,
    'ros/node_processes.py': 1,
}


def plain_writes(tree: ast.AST) -> list[int]:
    """Return the lines of calls that write a file of a given name."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, first = node.func.attr, node.args[0] if node.args else None
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        if name == 'open' and any(text in ('w', 'wb', 'x', 'xb', 'a', 'ab') for text in texts):
            if not (isinstance(first, ast.Name) and first.id == 'unfinished'):
                lines.append(node.lineno)
        elif name in ('savez', 'savez_compressed'):
            if not (isinstance(first, ast.Name) and first.id == 'file'):
                lines.append(node.lineno)
        elif name in NAMED - {'save'} or (name == 'save' and ast.unparse(node.func) == 'np.save'):
            lines.append(node.lineno)
    return lines


def test_no_module_writes_past_the_atomic_writer():
    found = {}
    for path in ROOT.rglob('*.py'):
        lines = plain_writes(ast.parse(path.read_text(encoding='utf-8')))
        if len(lines) > ALLOWED.get(str(path.relative_to(ROOT)), 0):
            found[str(path.relative_to(ROOT))] = lines
    assert not found


@pytest.mark.parametrize(
    'code, count',
    [
        ("path.write_text('')", 1),
        ("path.open('wb')", 1),
        ("path.open('rb')", 0),
        ('cv2.imwrite(path, image)', 1),
        ('np.savez(path, a=a)', 1),
        ('np.savez(file, a=a)', 0),
    ],
)
def test_the_rule_itself(code, count):
    assert len(plain_writes(ast.parse(code))) == count
