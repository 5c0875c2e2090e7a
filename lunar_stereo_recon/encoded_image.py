"""Decodes images only after a check of their headers: a kilobyte may claim gigabytes.

Headers are read without trust and without decoding: PNG, JPEG, TIFF, WebP, BMP, PGM and PPM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import re
import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.limits import (
    MAX_IMAGE_BYTES,
    MAX_PIXELS,
    MAX_PIXELS_PER_BYTE,
    MAX_SIDE_PX,
    SMALL_PIXELS,
)

Encoded = bytes | memoryview | NDArray[np.uint8]

# A tile or strip is decoded whole: it may be wider or higher than the image by this, pixels.
_TILE_MARGIN_PX = 1024
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 256, 257, 322, 323
_TIFF_INTEGERS = {1: 'B', 3: 'H', 4: 'I'}
_TIFF_MAX_ENTRIES = 512
# Markers of JPEG that stand alone, and those that begin a frame and carry its size.
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODED_TYPES = (np.uint8, np.uint16, np.float32)


@dataclass(frozen=True)
class ImageHeader:
    """What an encoded image says of itself.

    Attributes:
        form: 'PNG', 'JPEG', ...
        width, height: Pixels.
    """

    form: str
    width: int
    height: int


def image_header(data: Encoded, name: str) -> ImageHeader:
    """Return form and size of an encoded image, within `limits`.

    Args:
        data: The encoded bytes.
        name: Topic or path, for error messages.

    Raises:
        InputError: No known form, cut off within the header, or beyond a limit.
    """
    view = np.frombuffer(data, np.uint8).data
    if len(view) > MAX_IMAGE_BYTES:
        raise InputError(f'{name}: {len(view)} bytes of image; at most {MAX_IMAGE_BYTES} are read')
    form, size = _form_of(view)
    if size is None:
        raise InputError(
            f'{name}: {len(view)} bytes are not PNG, JPEG, TIFF, WebP, BMP, PGM or PPM'
        )
    try:
        width, height = size(view)
    except (struct.error, IndexError, ValueError) as error:
        raise InputError(
            f'{name}: {len(view)} bytes of {form} that are damaged or truncated'
        ) from error
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise InputError(
            f'{name}: {form} of {width}x{height}; 1 to {MAX_SIDE_PX} pixels each way are read'
        )
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise InputError(
            f'{name}: {form} of {width}x{height}; at most {MAX_PIXELS} pixels are read'
        )
    if pixels > max(SMALL_PIXELS, len(view) * MAX_PIXELS_PER_BYTE):
        raise InputError(
            f'{name}: {len(view)} bytes of {form} that claim {width}x{height}; at most '
            f'{MAX_PIXELS_PER_BYTE} pixels a byte are unpacked'
        )
    return ImageHeader(form, width, height)


def decoded_image(data: Encoded, name: str) -> NDArray[Any]:
    """Return (H, W) or (H, W, 3) RGB: uint8, uint16, or float32 of a TIFF; alpha is left out.

    Args:
        data: The encoded bytes.
        name: Topic or path, for error messages.

    Raises:
        InputError: See `image_header`; or the data is damaged, or of another type.
    """
    header = image_header(data, name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(
            f'{name}: {len(data)} bytes of {header.form} cannot be decoded: {error.err}'
        ) from error
    if image is None:
        raise InputError(
            f'{name}: {len(data)} bytes of {header.form} cannot be decoded; they are damaged or '
            'truncated'
        )
    if image.shape[:2] != (header.height, header.width):
        raise InputError(
            f'{name}: {header.form} of {image.shape[1]}x{image.shape[0]} whose header says '
            f'{header.width}x{header.height}'
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype not in _DECODED_TYPES or channels not in (1, 3, 4):
        raise InputError(
            f'{name}: {header.form} of type {image.dtype} with {channels} channels; uint8, uint16 '
            'or float32 with 1, 3 or 4 are read'
        )
    if channels == 1:
        return image.reshape(image.shape[:2])
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if channels == 4 else cv2.COLOR_BGR2RGB)


def _form_of(view: memoryview) -> tuple[str, Callable[[memoryview], tuple[int, int]] | None]:
    """Return the name of the form and what reads its size; ('', None) where it is unknown."""
    start = bytes(view[:16])
    if start.startswith(b'\x89PNG\r\n\x1a\n'):
        return 'PNG', _png_size
    if start.startswith(b'\xff\xd8\xff'):
        return 'JPEG', _jpeg_size
    if start[:4] in (b'II*\0', b'MM\0*'):
        return 'TIFF', _tiff_size
    if start[:4] == b'RIFF' and start[8:12] == b'WEBP':
        return 'WebP', _webp_size
    if start[:2] == b'BM':
        return 'BMP', _bmp_size
    if start[:2] in (b'P5', b'P6'):
        return 'PGM' if start[:2] == b'P5' else 'PPM', _pnm_size
    return '', None


def _png_size(view: memoryview) -> tuple[int, int]:
    length, kind, width, height = struct.unpack_from('>I4sII', view, 8)
    if kind != b'IHDR' or length != 13:
        raise ValueError(kind)
    # OpenCV takes the memory that a chunk says it has before it looks whether it is there.
    at = 8
    while kind != b'IEND':
        length, kind = struct.unpack_from('>I4s', view, at)
        at += 12 + length
        if at > len(view):
            raise ValueError(kind)
    return width, height


def _jpeg_size(view: memoryview) -> tuple[int, int]:
    """Walk over the segments to the first frame, as a decoder does."""
    at = 2
    while True:
        while view[at] != 0xFF:  # decoders skip what is between segments
            at += 1
        while view[at] == 0xFF:
            at += 1
        marker = view[at]
        at += 1
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from('>HH', view, at + 3)
            return width, height
        if marker not in _JPEG_ALONE:
            at += max(2, struct.unpack_from('>H', view, at)[0])


def _tiff_size(view: memoryview) -> tuple[int, int]:
    order = '<' if view[0] == ord('I') else '>'
    (directory,) = struct.unpack_from(f'{order}I', view, 4)
    (count,) = struct.unpack_from(f'{order}H', view, directory)
    if count > _TIFF_MAX_ENTRIES:
        raise ValueError(count)
    values: dict[int, int] = {}
    for index in range(count):
        at = directory + 2 + 12 * index
        tag, kind, number = struct.unpack_from(f'{order}HHI', view, at)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT):
            if kind not in _TIFF_INTEGERS or number != 1 or tag in values:
                raise ValueError(tag)
            (values[tag],) = struct.unpack_from(f'{order}{_TIFF_INTEGERS[kind]}', view, at + 8)
    if not {_TIFF_WIDTH, _TIFF_HEIGHT} <= values.keys():
        raise ValueError('no size')
    width, height = values[_TIFF_WIDTH], values[_TIFF_HEIGHT]
    tile = values.get(_TIFF_TILE_WIDTH, 0) - width, values.get(_TIFF_TILE_HEIGHT, 0) - height
    if max(tile) > _TILE_MARGIN_PX:
        raise ValueError('tile')
    return width, height


def _webp_size(view: memoryview) -> tuple[int, int]:
    kind = bytes(view[12:16])
    if kind == b'VP8 ':
        if bytes(view[23:26]) != b'\x9d\x01\x2a':
            raise ValueError(kind)
        width, height = struct.unpack_from('<HH', view, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b'VP8L':
        signature, bits = struct.unpack_from('<BI', view, 20)
        if signature != 0x2F:
            raise ValueError(kind)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b'VP8X':
        sizes = (int.from_bytes(view[at : at + 3], 'little') + 1 for at in (24, 27))
        if len(view) < 30:
            raise ValueError(kind)
        width, height = sizes
        return width, height
    raise ValueError(kind)


def _bmp_size(view: memoryview) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from('<I', view, 14)
    if header_bytes == 12:
        return struct.unpack_from('<HH', view, 18)
    width, height = struct.unpack_from('<ii', view, 18)
    return width, abs(height)  # negative: rows from the top


def _pnm_size(view: memoryview) -> tuple[int, int]:
    found = re.match(rb'P[56](?:\s|#[^\n]*\n)+(\d{1,9})\s+(\d{1,9})\s', bytes(view[:1024]))
    if found is None:
        raise ValueError('no size')
    return int(found.group(1)), int(found.group(2))
