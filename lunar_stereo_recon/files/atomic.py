"""Writes files completely or not at all, however the writing ends; links are not followed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import tempfile
from typing import Any, BinaryIO


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give the name of an empty file beside `path`, which becomes `path` when all went well.

    For libraries that write by name; it has the same ending. A link of the name `path` is
    replaced, never followed.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    handle, name = tempfile.mkstemp(prefix=f'.{path.stem}.', suffix=path.suffix, dir=path.parent)
    os.close(handle)
    written = False
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # as `open` would have made it
        with open(name, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(name, path)
        written = True
    finally:
        if not written:
            Path(name).unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing that gets its name when the `with` statement ends well.

    Raises:
        OSError: See `atomic_path`.
    """
    with atomic_path(path) as unfinished, unfinished.open('wb') as file:
        yield file


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; see `atomic_path`."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8; see `atomic_path`."""
    write_bytes(path, text.encode('utf-8'))


def write_json(path: Path, document: Any, indent: int = 2) -> None:
    """Write a document as JSON; see `atomic_path`.

    Raises:
        TypeError: It holds what JSON has not.
    """
    write_text(path, json.dumps(document, indent=indent) + '\n')
