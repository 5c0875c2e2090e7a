"""Limits for what the chunks, messages and files of a bag unpack to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import struct
import sys
from typing import BinaryIO

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.limits import MAX_CHUNK_BYTES, MAX_CHUNK_RATIO

if sys.version_info >= (3, 14):
    from compression.zstd import get_frame_info, ZstdDecompressor, ZstdError
else:
    from backports.zstd import get_frame_info, ZstdDecompressor, ZstdError

_MAGIC = b'\x89MCAP0\r\n'
_CHUNK = 6
# Size of a zstd frame's header, which says what the frame unpacks to.
_FRAME_HEADER_BYTES = 18
_SMALL_BYTES = 2**20
_SMALL_FILE_BYTES = 2**28
_BLOCK_BYTES = 2**20
# Where a chunk has its checksum, after two times and its size; 0 says that it has none.
_CHUNK_CRC = 8 + 8 + 8


def check_chunks(path: Path) -> int:
    """Refuse a file with a chunk that unpacks to more than `limits` allow.

    Damage is left to the reader, which says what it is.

    Returns:
        The number of chunks without a checksum: what is changed in them is not noticed.

    Raises:
        InputError: There is such a chunk.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return 0
        unchecked = 0
        while len(record := file.read(9)) == 9:
            kind, length = struct.unpack('<BQ', record)
            start = file.tell()
            if length > size - start:
                break
            if kind == _CHUNK:
                head = file.read(min(length, 128))
                _check_chunk(path, head, length)
                unchecked += head[_CHUNK_CRC : _CHUNK_CRC + 4] == bytes(4)
            file.seek(start + length)
    return unchecked


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


def unpacked_message(data: bytes) -> bytes:
    """Return a message that was compressed by itself (zstd).

    Raises:
        ValueError: It unpacks to more than `limits` allow, or is cut off.
        ZstdError: It is damaged.
    """
    most = min(MAX_CHUNK_BYTES, max(_SMALL_BYTES, MAX_CHUNK_RATIO * len(data)))
    decompressor = ZstdDecompressor()
    unpacked = decompressor.decompress(data, max_length=most)
    if not decompressor.eof:
        raise ValueError(f'{len(data)} bytes that are cut off or unpack to more than {most}')
    return unpacked


def unpack_file(read: Callable[[int], bytes], plain: BinaryIO, packed_bytes: int) -> None:
    """Copy what is read and unpacked on the way, up to its end or the first damage.

    Raises:
        InputError: It unpacks to more than `limits` allow; a small one may be packed closer.
    """
    left = max(_SMALL_FILE_BYTES, MAX_CHUNK_RATIO * packed_bytes)
    while block := read(_BLOCK_BYTES):
        left -= len(block)
        if left < 0:
            raise InputError(
                f'{packed_bytes} bytes that unpack to more than {MAX_CHUNK_RATIO} times their size'
            )
        plain.write(block)
