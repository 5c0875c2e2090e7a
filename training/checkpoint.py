"""Checkpoints: a folder of small safetensors shards, with an index that makes them whole.

The content is a tree of dicts with text keys: `recipe`, `step`, `seconds`, `progress`,
`git_commit`, `torch_rng` and `students`, by name: `kind`, `config`, `student`, `average`,
`optimizer` and `projectors`. Tensors are in the shards under their paths in the tree
(`students/flight/student/...`), one larger than a shard in pieces; `index.json` holds the rest,
and name, size and SHA-256 of every shard. Shards are named after what is in them, and the index
is replaced last: whatever happens while a checkpoint is written, the one before stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import json
import os
from pathlib import Path
import subprocess
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.files.bounded import read_bounded, read_json
from lunar_stereo_recon.limits import MAX_CHECKPOINT_BYTES, MAX_SHARD_BYTES
from training.models.checkpoints import (
    load_pointmap_model,
    load_state,
    read_tensors,
)
from training.students import build_student

FORMAT_VERSION = 3
INDEX = 'index.json'
# Largest shard: files of 16 MiB pass where large ones do not.
SHARD_BYTES = 15 * 2**20
# Bytes of a tensor's entry in the header of a shard, besides its name.
_ENTRY_BYTES = 128
# What stands in the index for a tensor: its shape, and in how many pieces it is.
_SHAPE, _PIECES = '$shape', '$pieces'
# What the metadata of a flight student's .safetensors say it is.
FLIGHT_KIND = 'FlightConfig'
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


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; the old one stays whole until the new one is on the disk.

    Args:
        folder: Folder of the checkpoint, made if it is not there; nothing else belongs in it.
        content: Dicts with text keys, lists, tensors, numbers, texts.

    Raises:
        ModelError: The disk is full or the folder cannot be written; the old one is untouched.
    """
    tensors: dict[str, Tensor] = {}
    tree = _without_tensors(content, '', tensors)
    old = {path.name for path in _written(folder)}
    shards: list[dict[str, Any]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for shard in _shards(tensors):
            data = save(shard)
            digest = hashlib.sha256(data).hexdigest()
            name = f'{digest[:16]}.safetensors'
            _replace(folder / name, data)
            shards.append({'file': name, 'bytes': len(data), 'sha256': digest})
        index = {'format_version': FORMAT_VERSION, 'shards': shards, 'content': tree}
        _replace(folder / INDEX, json.dumps(index).encode())
    except (OSError, SafetensorError) as error:
        _keep(folder, old)
        raise ModelError(
            f'{folder} cannot be written: {error}; an older one is unchanged'
        ) from error
    _keep(folder, {shard['file'] for shard in shards})


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return a tree for the index; its tensors go into `tensors` in pieces, by path."""
    if isinstance(value, dict):
        return {
            name: _without_tensors(entry, f'{path}/{name}' if path else name, tensors)
            for name, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [
            _without_tensors(entry, f'{path}/{place}', tensors)
            for place, entry in enumerate(value)
        ]
    if not isinstance(value, Tensor):
        return value
    whole = value.detach().cpu().contiguous()
    largest = SHARD_BYTES - len(path) - 2 * _ENTRY_BYTES
    pieces = whole.reshape(-1).split(largest // whole.element_size()) or (whole,)
    for number, piece in enumerate(pieces):
        tensors[f'{path}:{number}'] = piece
    return {_SHAPE: list(value.shape), _PIECES: len(pieces)}


def _with_tensors(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return the content of a tree from an index; takes its tensors out of `tensors`."""
    if isinstance(tree, dict) and set(tree) == {_SHAPE, _PIECES}:
        pieces = [tensors.pop(f'{path}:{number}') for number in range(tree[_PIECES])]
        return torch.cat(pieces).reshape(tree[_SHAPE])
    if isinstance(tree, dict):
        return {
            name: _with_tensors(entry, f'{path}/{name}' if path else name, tensors)
            for name, entry in tree.items()
        }
    if isinstance(tree, list):
        return [
            _with_tensors(entry, f'{path}/{place}', tensors) for place, entry in enumerate(tree)
        ]
    return tree


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors in their order, in groups that fill a shard each."""
    shard: dict[str, Tensor] = {}
    filled, stored = _ENTRY_BYTES, set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in stored:
            tensor = tensor.clone()  # a second name of the same tensor, which a shard refuses
        stored.add(tensor.data_ptr())
        size = tensor.nbytes + len(name) + _ENTRY_BYTES
        if shard and filled + size > SHARD_BYTES:
            yield shard
            shard, filled = {}, _ENTRY_BYTES
        shard[name] = tensor
        filled += size
    if shard:
        yield shard


def _replace(path: Path, data: bytes) -> None:
    """Write a file; it appears under its name when it is on the disk."""
    partial = path.with_suffix('.partial')
    try:
        with partial.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _written(folder: Path) -> list[Path]:
    return [*folder.glob('*.safetensors'), *folder.glob('*.partial')]


def _keep(folder: Path, names: set[str]) -> None:
    for path in _written(folder):
        if path.name not in names:
            path.unlink(missing_ok=True)


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint; shards alone, of a stopped first one, do not."""
    return (folder / INDEX).exists()


def load_checkpoint(folder: Path | str) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        ModelError: It is missing, damaged or of another format version; names the file.
    """
    folder = Path(folder)
    index = _read_index(folder)
    tensors: dict[str, Tensor] = {}
    try:
        stated = sum(shard['bytes'] for shard in index['shards'])
        if stated > MAX_CHECKPOINT_BYTES:
            raise ModelError(f'{folder} has {stated} bytes; {MAX_CHECKPOINT_BYTES} are read')
        for shard in index['shards']:
            name = Path(shard['file']).name
            tensors |= _read_shard(folder / name, shard['bytes'], shard['sha256'])
        return _with_tensors(index['content'], '', tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f'{folder / INDEX}: not the index of its shards: {type(error).__name__} {error}'
        ) from error


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = read_json(path)
    except (OSError, ValueError, InputError) as error:
        raise ModelError(f'{path}: not a readable checkpoint: {error}') from error
    version = index.get('format_version') if isinstance(index, dict) else None
    if version != FORMAT_VERSION:
        raise ModelError(f'{path}: format version {version}, this code reads {FORMAT_VERSION}')
    return index


def _read_shard(path: Path, size: int, digest: str) -> dict[str, Tensor]:
    try:
        data = read_bounded(path, MAX_SHARD_BYTES)
    except (OSError, InputError) as error:
        raise ModelError(
            f'{path}: this shard of the checkpoint cannot be read: {error}'
        ) from error
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise ModelError(
            f'{path}: not the shard that {INDEX} lists: {len(data)} bytes, {size} wanted, '
            f'with SHA-256 {digest}'
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise ModelError(f'{path}: not a readable shard: {error}') from error


def load_network(path: Path | str, name: str = '') -> tuple[nn.Module, dict[str, Any]]:
    """Return a run's student with averaged weights, in evaluation mode, and the checkpoint.

    Args:
        path: Checkpoint of a run, a folder.
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
        path: Checkpoint of a run, a folder (averaged weights), `.safetensors` of an export, or
            an official `.pth` of a teacher.
        name: Which student of a run; may be left out where there is one.

    Raises:
        ModelError: The file is missing, damaged or of another form.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return load_network(path, name)[0]
    if path.suffix == '.safetensors':
        state, metadata = read_tensors(path)
        if metadata.get('kind') == FLIGHT_KIND:
            student = build_student('flight', json.loads(metadata['config']))
            load_state(student, state, path)
            return student.eval()
    return load_pointmap_model(path)
