"""What a folder's files are made from, written beside them: two origins must not mix."""

from __future__ import annotations

import json
from pathlib import Path

from lunar_stereo_recon.errors import InputError

ORIGIN = 'source.json'


def claim(folder: Path, source: dict[str, str], option: str) -> None:
    """Write down what the files of a folder are made from.

    Args:
        folder: It is there.
        source: What it is made from, by names.
        option: Of the command, by which another folder is chosen.

    Raises:
        InputError: They were made from something else; says from what.
    """
    path = folder / ORIGIN
    if path.exists():
        before = path.read_text(encoding='utf-8')
        try:
            same = json.loads(before) == source
        except ValueError:
            same = False
        if not same:
            raise InputError(
                f'{folder} holds files made from {before}; choose another {option} for {source}'
            )
    path.write_text(json.dumps(source), encoding='utf-8')
