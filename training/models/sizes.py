"""Sizes of a network that a file or a recipe asks for, before anything of it is built."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args, get_origin, get_type_hints

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.limits import MAX_CHANNELS, MAX_LAYERS


def check_sizes(config: Any, source: object) -> None:
    """Refuse a configuration that is no network, or one that would not end to be built.

    Args:
        config: Dataclass of numbers, tuples of numbers and further such dataclasses; text is
            left to who reads it.
        source: Where it comes from, for the error.

    Raises:
        ModelError: A value is no finite number, or whole number, from 0 or 1 to the most that
            `limits` allow; a tuple has another length.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if dataclasses.is_dataclass(value):
            check_sizes(value, source)
            continue
        kinds = get_args(hint) if get_origin(hint) is tuple else (hint,)
        numbers = value if isinstance(value, tuple) else (value,)
        if Ellipsis not in kinds and len(numbers) != len(kinds):
            raise ModelError(
                f'{source}: {type(config).__name__} with {field.name} {value!r}; '
                f'{len(kinds)} numbers are needed'
            )
        kind = int if kinds[0] is int else (int, float)
        least = 1 if field.name.endswith(('width', 'heads', 'channels')) else 0
        most = MAX_LAYERS if field.name.endswith('depth') else MAX_CHANNELS
        for number in numbers:
            if isinstance(number, str) and kinds[0] not in (int, float):
                continue
            is_number = isinstance(number, kind) and not isinstance(number, bool)
            if not (is_number and math.isfinite(number) and least <= number <= most):
                wanted = 'whole numbers' if kind is int else 'numbers'
                raise ModelError(
                    f'{source}: {type(config).__name__} with {field.name} {value!r}; '
                    f'{wanted} from {least} to {most} are needed'
                )
