"""Paths that a user wrote; bytes and JSON of files from outside, never more than a limit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lunar_stereo_recon.errors import InputError, quoted
from lunar_stereo_recon.limits import MAX_JSON_BYTES


def user_path(text: str) -> Path:
    """Return the path in a parameter or an argument; '~' is the user's home.

    Raises:
        InputError: It can be no path.
    """
    try:
        return Path(os.path.expanduser(text))
    except ValueError as error:  # a null character
        raise InputError(f'{quoted(text)} is no path: {error}') from error


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a file of at most `most` bytes; pipes and devices have no size to ask.

    Raises:
        OSError: The file cannot be read.
        InputError: It has more bytes.
    """
    with path.open('rb') as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f'{path} has more than {most} bytes; that many are read at most')
    return content


def read_json(path: Path) -> Any:
    """Return the document in a JSON file.

    Raises:
        OSError: The file cannot be read.
        InputError: It is too large.
        ValueError: It is not UTF-8, not JSON, has a number of thousands of digits or brackets
            in too many brackets.
    """
    content = read_bounded(path, MAX_JSON_BYTES)
    try:
        return json.loads(content.decode('utf-8'))
    except RecursionError as error:
        raise ValueError('too many brackets in brackets') from error
