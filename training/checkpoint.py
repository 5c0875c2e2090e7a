"""Checkpoints: one file with all that a run needs to go on, replaced in one step.

Format 2 holds `recipe`, `step`, `seconds`, `git_commit`, `torch_rng` and `students`, by name:
`kind`, `config`, `student`, `average`, `optimizer` and `projectors`. Format 1, of runs with one
flight student, has the student's entries at the top; it is read as a run of one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
import subprocess
from typing import Any

import torch
from torch import nn

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.models.checkpoints import (
    load_pointmap_model,
    load_state,
    read_tensors,
)
from training.students import build_student

FORMAT_VERSION = 2
READABLE = (1, 2)
# What the metadata of a flight student's .safetensors say it is.
FLIGHT_KIND = 'FlightConfig'
_STUDENT_ENTRIES = ('config', 'student', 'average', 'optimizer')
_AVERAGE_PREFIX = 'module.'


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
        ModelError: The disk is full or the folder cannot be written; the old file is untouched.
    """
    partial = path.with_suffix('.partial')
    try:
        with partial.open('wb') as file:
            torch.save({'format_version': FORMAT_VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        raise ModelError(
            f'{path} cannot be written: {error}; an older one is as it was'
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Returns:
        The content in format 2, whichever the file has.

    Raises:
        ModelError: The file is missing, damaged or of another format version.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # noqa: BLE001  torch raises many types for a damaged file
        raise ModelError(f'{path}: not a readable checkpoint: {error}') from error
    version = content.get('format_version') if isinstance(content, dict) else None
    if version not in READABLE:
        raise ModelError(f'{path}: format version {version}, this code reads {READABLE}')
    return _from_format_1(content) if version == 1 else content


def load_network(path: Path | str, name: str = '') -> tuple[nn.Module, dict[str, Any]]:
    """Return a run's student with averaged weights, in evaluation mode, and the checkpoint.

    Args:
        path: `.pt` file of a run.
        name: Which student; may be left out where there is one.

    Raises:
        ModelError: The checkpoint is damaged, has no such student or several, or its weights do
            not fit its configuration.
    """
    content = load_checkpoint(path)
    students = content.get('students', {})
    if not name and len(students) == 1:
        name = next(iter(students))
    if name not in students:
        raise ModelError(f'{path} has no student {name!r}; it holds {", ".join(students)}')
    entry = students[name]
    student = build_student(entry['kind'], entry['config'])
    weights = {
        key.removeprefix(_AVERAGE_PREFIX): value
        for key, value in entry['average'].items()
        if key.startswith(_AVERAGE_PREFIX)
    }
    load_state(student, weights, path)
    return student.eval(), content


def trained_network(path: Path | str, name: str = '') -> nn.Module:
    """Return the network in a file, in evaluation mode.

    Args:
        path: `.pt` of a run (averaged weights), `.safetensors` of an export, or an official
            `.pth` of a teacher.
        name: Which student of a `.pt`; may be left out where there is one.

    Raises:
        ModelError: The file is missing, damaged or of another form.
    """
    path = Path(path).expanduser()
    if path.suffix == '.pt':
        return load_network(path, name)[0]
    if path.suffix == '.safetensors':
        state, metadata = read_tensors(path)
        if metadata.get('kind') == FLIGHT_KIND:
            student = build_student('flight', json.loads(metadata['config']))
            load_state(student, state, path)
            return student.eval()
    return load_pointmap_model(path)


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of one flight student as one of a run of students."""
    common = {name: value for name, value in content.items() if name not in _STUDENT_ENTRIES}
    if 'student' not in content:
        return common
    entry = {name: content[name] for name in _STUDENT_ENTRIES}
    name = content['recipe']['name']
    return {**common, 'students': {name: {'kind': 'flight', 'projectors': {}, **entry}}}
