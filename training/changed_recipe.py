"""Checks that a resumed run still has the recipe that it began with.

A checkpoint holds the recipe that it was trained with. Going on under another one would make a
result that no recipe describes, so differences are found here, and named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lunar_stereo_recon.errors import InputError
from training.recipe import Recipe, recipe_from_values

# What has no part in what is learnt.
FREE = frozenset(
    {
        'name',
        'comparisons',
        'checkpoint_every',
        'validate_every',
        'data.workers',
        'data.max_unreadable_fraction',
        'teacher.cache',
    }
)
SHOWN = 6


def changes(stored: dict[str, Any], given: Recipe) -> list[str]:
    """Return what differs between a checkpoint's recipe and another, as 'KEY was A, is B'.

    Keys that the stored one lacks, because an older version wrote it, count at their defaults.

    Raises:
        InputError: The stored recipe has keys or types that are no longer known.
    """
    before = dict(_flat(recipe_from_values(stored).as_dict()))
    now = dict(_flat(given.as_dict()))
    keys = [key for key in {**before, **now} if key not in FREE and key.split('.')[0] not in FREE]
    return [
        f'{key} was {before.get(key, "not there")!r}, is {now.get(key, "not there")!r}'
        for key in keys
        if before.get(key) != now.get(key)
    ]


def refuse_changes(stored: dict[str, Any], given: Recipe, source: object) -> None:
    """Refuse to go on from a checkpoint under another recipe.

    Raises:
        InputError: They differ; says in what, and the ways out.
    """
    found = changes(stored, given)
    if found:
        more = f' and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
        raise InputError(
            f'{source} was trained with another recipe: {"; ".join(found[:SHOWN])}{more}. '
            'Give the recipe that it began with, another --out, or --anew to begin again'
        )


def _flat(values: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _flat(value, f'{path}.{key}' if path else str(key))
    else:
        yield path, list(values) if isinstance(values, tuple) else values
