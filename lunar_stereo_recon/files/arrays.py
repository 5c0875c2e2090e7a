"""Reads NPY and NPZ files from outside; their headers are checked against `limits` first.

A header may say terabytes, and a zip archive of a megabyte may unpack to a gigabyte. Objects,
which NumPy would unpickle, are never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import lzma
import math
from pathlib import Path
import struct
import tokenize
from typing import Any, IO
import zipfile
import zlib

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.limits import MAX_ARRAYS_BYTES, MAX_ARRAYS_RATIO, SMALL_ARRAYS_BYTES

# Booleans, integers, floating point and text; neither objects nor records.
_KINDS = 'biufU'
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What zipfile, its decompressors and NumPy's parser of headers raise on damaged files.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,  # an encrypted member
    SyntaxError,  # a header is a Python literal
    TypeError,
    ValueError,
)


def load_arrays(
    path: Path, what: str, names: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a .npz file by name.

    Args:
        path: The file.
        what: What it is, for error messages.
        names: Which arrays; all where None.
        optional: Further ones, where the file has them.

    Raises:
        InputError: It is missing, damaged, lacks an array, holds something else than plain
            arrays, or more than `limits` allow.
    """
    try:
        with path.open('rb') as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f'{what} {path} is not a .npz file')
            with zipfile.ZipFile(file) as archive:
                members = {m.filename.removesuffix('.npy'): m for m in archive.infolist()}
                missing = [name for name in names or () if name not in members]
                if missing:
                    raise InputError(
                        f'{what} {path} has no array {", ".join(missing)}; '
                        f'it has {", ".join(sorted(members)[:20]) or "none"}'
                    )
                wanted = list(members if names is None else names)
                wanted += [name for name in optional if name in members]
                _check_sizes(f'{what} {path}', [members[name] for name in wanted])
                return {name: _array(archive, members[name]) for name in wanted}
    except OSError as error:
        raise InputError(f'cannot read {what} {path}: {error.strerror or error}') from error
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise InputError(f'{what} {path} has arrays that cannot be read: {reason}') from error


def check_rendered_pair(
    arrays: Mapping[str, NDArray[Any]], path: Path, maps: Sequence[str]
) -> None:
    """Refuse a pair whose arrays do not belong together.

    Args:
        arrays: With 'left', 'right', 'intrinsics' and 'baseline_m'.
        path: Where they are from.
        maps: Names of further arrays that have a value for each pixel of the left view; one that
            is not there is none.

    Raises:
        InputError: The views and maps are not real (H, W) of one size, the intrinsics not (3, 3),
            or the baseline is no number.
    """
    shape = arrays['left'].shape
    if len(shape) != 2:
        raise InputError(f'{path}: left has shape {shape}; (H, W) is needed')
    wanted: dict[str, tuple[int, ...]] = dict.fromkeys(('left', 'right', *maps), shape)
    wanted |= {'intrinsics': (3, 3), 'baseline_m': ()}
    for name in sorted(wanted.keys() & arrays.keys()):
        array = arrays[name]
        if array.shape != wanted[name] or array.dtype.kind not in 'biuf':
            raise InputError(
                f'{path}: {name} has shape {array.shape} and type {array.dtype}; real numbers '
                f'{wanted[name]} are needed'
            )


def mapped_array(path: Path, what: str) -> NDArray[Any]:
    """Return the array of a .npy file as a read-only map: what is not looked at takes no memory.

    Raises:
        InputError: The file is missing, damaged, shorter than its header says, or holds
            something else than a plain array.
    """
    try:
        array = np.lib.format.open_memmap(path, mode='r')
    except OSError as error:
        raise InputError(f'cannot read {what} {path}: {error.strerror or error}') from error
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise InputError(f'{what} {path} is not a readable array: {reason}') from error
    if array.dtype.kind not in _KINDS:
        raise InputError(f'{what} {path} holds {array.dtype}; plain numbers are needed')
    return array


def _check_sizes(name: str, members: list[zipfile.ZipInfo]) -> None:
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    most = min(MAX_ARRAYS_BYTES, max(SMALL_ARRAYS_BYTES, MAX_ARRAYS_RATIO * packed))
    if unpacked > most:
        raise InputError(
            f'{name}: {packed} bytes that unpack to {unpacked}; at most {MAX_ARRAYS_BYTES} bytes '
            f'and {MAX_ARRAYS_RATIO} times their size are read'
        )


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return one member; the archive gives no more bytes than its `file_size`."""
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        start, expected = file.tell(), math.prod(shape) * dtype.itemsize
        # Exactly this many: the checksum of a member is compared only at its end.
        if start + expected != member.file_size:
            raise ValueError(
                f'{member.filename} has {member.file_size - start} bytes of data; its header '
                f'says {expected}'
            )
        values = np.frombuffer(bytearray(file.read(expected) or file.read()), dtype)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f'format version {version} of an array')
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.kind not in _KINDS:
        raise ValueError(f'an array of {dtype}; plain numbers or text are read')
    if any(side < 0 for side in shape):
        raise ValueError(f'an array of shape {shape}')
    return shape, fortran, dtype
