"""What the stubs of rclpy promise is there in the rclpy that runs."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

TYPINGS = Path(__file__).resolve().parents[2] / 'typings'
STUBS = sorted(TYPINGS.rglob('*.pyi'))
Function = ast.FunctionDef


def module_name(stub: Path) -> str:
    return '.'.join(stub.relative_to(TYPINGS).with_suffix('').parts).removesuffix('.__init__')


def functions() -> list[tuple[str, str, Function]]:
    """Return (module, class or '', definition) of all functions in the stubs."""
    found = []
    for stub in STUBS:
        for item in ast.parse(stub.read_text()).body:
            if isinstance(item, Function):
                found.append((module_name(stub), '', item))
            elif isinstance(item, ast.ClassDef):
                members = [member for member in item.body if isinstance(member, Function)]
                found += [(module_name(stub), item.name, member) for member in members]
    return found


@pytest.mark.parametrize('stub', STUBS, ids=module_name)
def test_classes_and_values_are_there(stub):
    module = importlib.import_module(module_name(stub))
    for item in ast.parse(stub.read_text()).body:
        if isinstance(item, ast.ClassDef):
            real = getattr(module, item.name)
            for base in item.bases:
                name = ast.unparse(base).split('[')[0]
                if name not in ('IntEnum', 'Enum', 'Exception', 'Generic'):
                    assert name in {kind.__name__ for kind in real.__mro__}, item.name
            for member in item.body:
                if isinstance(member, ast.Assign):  # of an enumeration
                    assert hasattr(real, member.targets[0].id), (item.name, member.targets[0].id)
        elif isinstance(item, ast.AnnAssign):
            assert hasattr(module, item.target.id)


@pytest.mark.parametrize(
    'module, owner, definition',
    functions(),
    ids=lambda part: part.name if isinstance(part, Function) else part,
)
def test_functions_take_these_arguments(module, owner, definition):
    scope = importlib.import_module(module)
    real = getattr(getattr(scope, owner) if owner else scope, definition.name)
    if isinstance(real, property):
        return
    taken = inspect.signature(real).parameters
    anything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in taken.values())
    named = [a.arg for a in (*definition.args.args, *definition.args.kwonlyargs)]
    missing = [name for name in named if name not in taken and name not in ('self', 'cls')]
    assert anything or not missing
