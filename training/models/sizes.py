"""Sizes of a network that a file or a recipe asks for, before anything of it is built."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.limits import MAX_CHANNELS, MAX_LAYERS


def check_sizes(config: Any, source: object) -> None:
    """Refuse a configuration that is no network, or one that would not end to be built.

    Args:
        config: Dataclass of numbers, tuples of numbers and further such dataclasses; text is
            left to who reads it.
        source: Where it comes from, for the error.

    Raises:
        ModelError: A value is no finite number from 0 to the most that `limits` allow.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_sizes(value, source)
            continue
        most = MAX_LAYERS if field.name.endswith('depth') else MAX_CHANNELS
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str):
                continue
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not (is_number and math.isfinite(number) and 0 <= number <= most):
                raise ModelError(
                    f'{source}: {type(config).__name__} with {field.name} {value!r}; '
                    f'numbers from 0 to {most} are needed'
                )
