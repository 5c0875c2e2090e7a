"""Inputs that are usable but probably wrong; each text names the parameter that helps.

Plain functions of messages and numbers, for the node, the commands on bags and the doctor alike.
An empty text is no doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import RowAlignment, StereoPair
from lunar_stereo_recon.messages import StereoTopics

# Baselines of stereo rigs: less is P[3] in another unit, more too. OAK cameras of 7.5 cm once
# wrote centimetres.
SMALLEST_BASELINE_M, LARGEST_BASELINE_M = 0.005, 3.0
# 'rect', but not in unrectified, direct, correct, incorrect.
_RECTIFIED = re.compile(r'(?<!un)(?<!di)(?<!cor)rect')
# Bits that cameras store in 16-bit images beside all 16.
_COMMON_BITS = (10, 12, 14)


def looks_raw(topics: StereoTopics, left_info: Any, right_info: Any) -> bool:
    """Say whether a camera_info has distortion and no image topic is called rectified.

    camera_infos of rectified images may keep the raw camera's D, so the name decides first.
    """
    if any(called_rectified(topic) for topic in (topics.left_image, topics.right_image)):
        return False
    return any(bool(np.any(info.d)) for info in (left_info, right_info))


def called_rectified(name: str) -> bool:
    """Say whether a name is one of rectified images: `image_rect`; not `unrectified`, `direct`."""
    return _RECTIFIED.search(name.lower()) is not None


def files_look_raw(images: Sequence[Path], infos: Sequence[Any]) -> bool:
    """Say whether image files are raw, by the rule of `looks_raw`; their folder's name counts.

    Args:
        images: Left and right file.
        infos: Their camera_infos; empty where none is known.
    """
    left, right = (str(Path(*path.parts[-2:])) for path in images)
    topics = StereoTopics(left_image=left, right_image=right)
    return bool(infos) and looks_raw(topics, *infos)


def rows_doubt(alignment: RowAlignment, width: int, name: str) -> str:
    """Return why the images of a pair are probably not rectified, or not by this calibration.

    Args:
        alignment: What matching found.
        width: Of the image, pixels.
        name: Of the pair.
    """
    if not alignment.poor(width):
        return ''
    return f'{name}: {alignment.describe(width)}. Are the images raw?'


def baseline_doubt(baseline_m: float, topic: str) -> str:
    """Return why a baseline is hardly that of a rig.

    Args:
        baseline_m: Metres, positive.
        topic: Where it comes from.
    """
    if SMALLEST_BASELINE_M <= baseline_m <= LARGEST_BASELINE_M:
        return ''
    return (
        f'{topic}: the baseline is {baseline_m:g} m; rigs have {SMALLEST_BASELINE_M:g} to '
        f'{LARGEST_BASELINE_M:g} m. Is P[3] in pixels times metres? The parameter '
        "'baseline' (m) overrides it"
    )


def white_level_doubt(image: Any, pair: StereoPair, white_level: float | None, topic: str) -> str:
    """Return why the white of 16-bit images is probably elsewhere.

    Args:
        image: The left Image or CompressedImage.
        pair: What became of it.
        white_level: As it was given; None where it was not.
        topic: Topic of the image.
    """
    if white_level or not _has_16_bits(image):
        return ''
    return _few_bits(float(pair.left.max()) * 65535.0, topic)


def few_bits_doubt(values: NDArray[Any], white_level: float | None, name: str) -> str:
    """Return why the white of an image file's values is probably elsewhere.

    Args:
        values: (H, W) or (H, W, 3), as the file has them.
        white_level: As it was given; None where it was not.
        name: Name of the file.
    """
    if white_level or values.dtype != np.uint16:
        return ''
    return _few_bits(float(values.max()), name)


def _few_bits(brightest: float, topic: str) -> str:
    bits = next((bits for bits in _COMMON_BITS if brightest < 2**bits - 0.5), 16)
    if bits == 16 or brightest < 1:  # all black says nothing
        return ''
    return (
        f'{topic}: 16-bit images whose values stay below {2**bits}: are they {bits}-bit data? '
        f"Then set the parameter 'white_level' to {2**bits - 1}"
    )


def _has_16_bits(image: Any) -> bool:
    if hasattr(image, 'format'):
        return '16' in image.format.split(';')[0]
    return '16' in image.encoding
