"""What an mcap file's chunks unpack to, known before one is unpacked."""

from __future__ import annotations

from pathlib import Path
import struct
import sys

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.limits import MAX_CHUNK_BYTES, MAX_CHUNK_RATIO

if sys.version_info >= (3, 14):
    from compression.zstd import get_frame_info, ZstdError
else:
    from backports.zstd import get_frame_info, ZstdError

_MAGIC = b'\x89MCAP0\r\n'
_CHUNK = 6
# Of a zstd frame's header, which says what the frame unpacks to.
_FRAME_HEADER_BYTES = 18
_SMALL_BYTES = 2**20


def check_chunks(path: Path) -> None:
    """Refuse a file with a chunk that unpacks to more than `limits` allow.

    Damage is left to the reader, which says what it is.

    Raises:
        InputError: There is such a chunk.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return
        while len(record := file.read(9)) == 9:
            kind, length = struct.unpack('<BQ', record)
            start = file.tell()
            if length > size - start:
                return
            if kind == _CHUNK:
                _check_chunk(path, file.read(min(length, 128)), length)
            file.seek(start + length)


def _check_chunk(path: Path, head: bytes, length: int) -> None:
    if len(head) < 32:
        return
    unpacked, _, name_length = struct.unpack_from('<QII', head, 16)
    frame = head[32 + name_length + 8 :][:_FRAME_HEADER_BYTES]
    if head[32 : 32 + name_length] == b'zstd' and frame:
        try:
            # Whatever the chunk says: the frame decides. One that does not say is not made here
            # nor by rosbag2, and is held to what the chunk says by the reader.
            unpacked = max(unpacked, get_frame_info(frame).decompressed_size or 0)
        except ZstdError:
            return
    if unpacked > min(MAX_CHUNK_BYTES, max(_SMALL_BYTES, MAX_CHUNK_RATIO * length)):
        raise InputError(
            f'{path}: a chunk of {length} bytes unpacks to {unpacked}; at most {MAX_CHUNK_BYTES} '
            f'bytes and {MAX_CHUNK_RATIO} times its size are read'
        )
