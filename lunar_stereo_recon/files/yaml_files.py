"""Reads YAML from outside; a file is measured before objects are made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.bounded import read_bounded
from lunar_stereo_recon.limits import MAX_YAML_BYTES, MAX_YAML_DEPTH, MAX_YAML_NODES

# What OpenCV's FileStorage writes in place of YAML's own directive.
OPENCV_HEADER = '%YAML:1.0'
OPENCV_MATRIX = 'tag:yaml.org,2002:opencv-matrix'


class _Loader(yaml.SafeLoader):
    """Plain YAML, and OpenCV's matrices as mappings of rows, cols, dt and data."""


def _opencv_matrix(loader: yaml.SafeLoader, node: Any) -> Any:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(OPENCV_MATRIX, _opencv_matrix)


class YamlRefusedError(yaml.YAMLError):
    """The file is YAML, or nearly, but not of the plain and small kind that is read here."""


def read_yaml(path: Path) -> Any:
    """Return the document in a file, within `limits` once its aliases are followed.

    Files of OpenCV's FileStorage are read too.

    Raises:
        OSError: The file cannot be read.
        yaml.YAMLError: It is not UTF-8 or not YAML, or is refused.
    """
    try:
        text = read_bounded(path, MAX_YAML_BYTES).decode('utf-8')
        if text.lstrip('\ufeff').startswith(OPENCV_HEADER):
            text = text.partition('\n')[2]
        _measure(text)
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader with one tag more
    except (InputError, ValueError) as error:  # too large, not UTF-8, a date of month 99
        raise YamlRefusedError(str(error)) from error


def _measure(text: str) -> None:
    """Refuse what would take memory or time out of all proportion."""
    nodes = 0
    open_collections: list[tuple[str | None, int]] = []  # anchor, entries before it
    entries_of: dict[str | None, int] = {}  # by anchor, once it is whole
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in entries_of:
                raise YamlRefusedError(f'alias *{event.anchor} refers to itself or to nothing')
            nodes += entries_of[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                open_collections.append((event.anchor, nodes))
            else:
                entries_of[event.anchor] = 1
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_collections.pop()
            entries_of[anchor] = nodes - before
        if len(open_collections) > MAX_YAML_DEPTH or nodes > MAX_YAML_NODES:
            raise YamlRefusedError(
                f'{nodes} entries, {len(open_collections)} deep; at most {MAX_YAML_NODES} and '
                f'{MAX_YAML_DEPTH} are read'
            )
