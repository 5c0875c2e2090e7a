"""Files that are there whole or not at all, whatever ends the writing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import tempfile
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing that gets its name when the `with` statement ends well.

    A link of that name is replaced, never followed.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    written = False
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # as `open` would have made it
        os.replace(name, path)
        written = True
    finally:
        if not written:
            os.unlink(name)
