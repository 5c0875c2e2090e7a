"""Checkpoints: one file with all that a run needs to go on, replaced in one step."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
from typing import Any

import torch

from lunar_stereo_recon.errors import ModelError

FORMAT_VERSION = 1


def git_commit() -> str:
    """Return the commit of the source tree, '' outside a git checkout."""
    try:
        result = subprocess.run(
            ['git', 'rev-parse', 'HEAD'],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ''
    return result.stdout.strip()


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; the old one stays whole until the new one is on the disk.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file is untouched.
    """
    partial = path.with_suffix('.partial')
    try:
        with partial.open('wb') as file:
            torch.save({'format_version': FORMAT_VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        ModelError: The file is missing, damaged or of another format version.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # noqa: BLE001  torch raises many types for a damaged file
        raise ModelError(f'{path}: not a readable checkpoint: {error}') from error
    version = content.get('format_version') if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ModelError(f'{path}: format version {version}, this code reads {FORMAT_VERSION}')
    return content
