"""Every command shows how far it is, or is known to be quick: a new one has to decide."""

import ast
from pathlib import Path

import pytest

from lunar_stereo_recon import cli

ROOT = Path(__file__).resolve().parent.parent
# Command: why it has no bar.
WITHOUT = {
    'lunar_stereo_recon.commands.sim': 'runs until it is interrupted',
    'lunar_stereo_recon.commands.info': 'describes one file',
    'training.commands.campaign': 'its steps have theirs',
    'training.commands.convert': 'reads and writes one file',
    'training.commands.curves': 'draws one picture',
    'training.commands.export': 'writes one file',
    'training.commands.known_answer': 'answers one small input a file',
    'training.commands.teacher': 'reconstructs one pair',
}


def training_commands():
    """Return the names in COMMANDS of training/cli.py, which needs torch to be imported."""
    tree = ast.parse((ROOT / 'training' / 'cli.py').read_text(encoding='utf-8'))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == 'COMMANDS'
    )
    return names


MODULES = [f'lunar_stereo_recon.commands.{name}' for name in cli.COMMANDS] + [
    f'training.commands.{name}' for name in training_commands()
]


def imports(module):
    """Return the modules of this repository that one imports, and whether it imports tqdm."""
    path = ROOT.joinpath(*module.split('.')).with_suffix('.py')
    if not path.is_file():
        return set(), False
    found, bar = set(), False
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module:
            bar |= node.module == 'tqdm'
            if node.module.split('.')[0] in ('lunar_stereo_recon', 'training'):
                found |= {node.module, *(f'{node.module}.{each.name}' for each in node.names)}
    return found, bar


@pytest.mark.parametrize('module', MODULES)
def test_a_command_has_a_bar_or_a_reason(module):
    """The bar is in the command, or in what the command imports."""
    others, bar = imports(module)
    if module in WITHOUT:
        assert not bar, f'{module} has a bar: it is no exception any more'
    else:
        assert bar or any(imports(other)[1] for other in others), f'{module} shows no progress'


def test_the_exceptions_are_commands():
    assert set(WITHOUT) <= set(MODULES)
