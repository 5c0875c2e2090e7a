"""Declares the parameters of a node (`parameters`) in rclpy, reads them, and checks changes."""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
from typing import Any, ClassVar, Protocol, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from lunar_stereo_recon.errors import InputError, quoted
from lunar_stereo_recon.ros.parameters import default_of, help_text, named


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_Parameters = TypeVar('_Parameters', bound=_Dataclass)


def declare_parameters(node: Node, kind: type[_Parameters]) -> _Parameters:
    """Declare the fields of `kind` on the node and return their values.

    Raises:
        InputError: A value is outside its range, not a choice, or of another type.
    """
    values = {}
    for item in dataclasses.fields(kind):
        default = default_of(item)
        try:
            declared = node.declare_parameter(item.name, default, _descriptor(item))
        except ParameterException as error:
            raise InputError(f'parameter {item.name}: {error}') from error
        values[item.name] = _checked(item, declared.value)
    return kind(**values)


def changed_parameters(current: _Parameters, changes: Iterable[Parameter]) -> _Parameters:
    """Return the parameters after a set_parameters request; other nodes' names are ignored.

    Raises:
        InputError: A value is not allowed, alone or together with the others.
    """
    fields = {item.name: item for item in dataclasses.fields(current)}
    values = {
        change.name: _checked(fields[change.name], change.value)
        for change in changes
        if change.name in fields
    }
    return dataclasses.replace(current, **values)


def _descriptor(item: dataclasses.Field[Any]) -> ParameterDescriptor:
    about = item.metadata
    choices = ', '.join(about['choices'])
    descriptor = ParameterDescriptor(
        description=help_text(item),
        additional_constraints=f'one of: {choices}' if choices else '',
        read_only=not about['dynamic'],
    )
    low, high = about['minimum'], about['maximum']
    if isinstance(default_of(item), float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif low is not None:
        high = 2**31 - 1 if high is None else high
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    return descriptor


def _checked(item: dataclasses.Field[Any], value: Any) -> Any:
    choices = item.metadata['choices']
    is_list = isinstance(default_of(item), list)
    if is_list and value is None:  # what rcl makes of [], a list without a type
        value = []
    given = named(value) if is_list and choices else [value]
    unknown = [text for text in given if choices and text not in choices]
    if unknown:
        raise InputError(
            f'parameter {item.name} is {quoted(unknown[0])}; one of {", ".join(choices)} is needed'
        )
    return list(value) if is_list else value
