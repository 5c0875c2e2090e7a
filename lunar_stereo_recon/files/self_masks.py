"""Self-masks from image files or polygons, see `geometry.self_mask`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.bounded import user_path
from lunar_stereo_recon.files.images import read_image
from lunar_stereo_recon.geometry.self_mask import BoolImage, Polygon, SelfMask
from lunar_stereo_recon.limits import MAX_SIDE_PX

MOST_CORNERS = 1000


def read_self_mask(left: str, right: str = '') -> SelfMask:
    """Return the masks that two texts name.

    Args:
        left, right: Path of an image in which the rover is not black, or a polygon as
            '[[x, y], [x, y], ...]' in pixels; '' is none.

    Raises:
        InputError: A file cannot be read, or a polygon is none.
    """
    return SelfMask(_mask(left), _mask(right), left or 'self_mask', right or 'self_mask_right')


def mask_file(text: str) -> Path | None:
    """Return the image that the text of a mask names; None where it is a polygon or empty.

    Raises:
        InputError: It can be no path.
    """
    return None if not text or text.lstrip().startswith('[') else user_path(text)


def _mask(text: str) -> BoolImage | Polygon | None:
    if not text:
        return None
    path = mask_file(text)
    if path is None:
        return _polygon(text)
    image = read_image(path)
    grey = image if image.ndim == 2 else image.max(axis=2)
    return np.asarray(grey > 0, np.bool_)


def _polygon(text: str) -> Polygon:
    try:
        corners = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f'self-mask {text[:60]!r} is no polygon: {error}') from error
    good = corners.ndim == 2 and corners.shape[1] == 2 and 3 <= len(corners) <= MOST_CORNERS
    if not good or not (np.abs(corners) <= MAX_SIDE_PX).all():
        raise InputError(
            f'self-mask {text[:60]!r} is no polygon; between 3 and {MOST_CORNERS} corners [x, y] '
            f'within {MAX_SIDE_PX} px are needed'
        )
    return Polygon(corners)
