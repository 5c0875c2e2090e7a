"""Image pair to network input and back: grey values, size, padding; the calibration goes along.

The calibration is changed only together with the images, so the two cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage, StereoPair
from lunar_stereo_recon.errors import InputError

NETWORK_WIDTH = 640
# Images of at least this width are enlarged to the network's; smaller ones are chosen for speed.
LEAST_ENLARGED_WIDTH = 360


def grey_from_array(image: NDArray[Any], white_level: float | None = None) -> FloatImage:
    """Return a grey image in [0, 1].

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3 or 4) in RGB order; uint8, uint16 or floating point
            (then already in [0, 1]).
        white_level: Value that becomes 1.0. The type's maximum where None, which is too much
            for 12-bit data in uint16: give 4095.

    Returns:
        (H, W) float32. Non-finite values become 0.

    Raises:
        InputError: Another shape or type, or a white level that is not positive.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.size == 0 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] > 4):
        raise InputError(f'image has shape {image.shape}; (H, W) or (H, W, 3) is needed')
    if white_level is not None and not white_level > 0:
        raise InputError(f'white level is {white_level}; it must be positive')
    if image.dtype == np.uint8 or image.dtype == np.uint16:
        scale = 1.0 / (white_level or np.iinfo(image.dtype).max)
    elif np.issubdtype(image.dtype, np.floating):
        scale = 1.0 / (white_level or 1.0)
        image = np.nan_to_num(image.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    else:
        raise InputError(f'image has type {image.dtype}; uint8, uint16 or float is needed')
    if image.ndim == 3:
        if image.shape[2] == 2:
            raise InputError(f'image has shape {image.shape}; 1, 3 or 4 channels are needed')
        image = cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)
    grey = image.astype(np.float32) * np.float32(scale)
    return np.clip(grey, 0.0, 1.0, out=grey)


def color_from_array(
    image: NDArray[Any], white_level: float | None = None
) -> NDArray[np.uint8] | None:
    """Return (H, W, 3) uint8 RGB for colouring the cloud; None for a grey image.

    Args:
        image: As for `grey_from_array`.
        white_level: See there.
    """
    if image.ndim == 2 or image.shape[2] < 3:
        return None
    image = image[..., :3]
    if image.dtype == np.uint8 and white_level is None:
        return np.ascontiguousarray(image)
    white = white_level or (np.iinfo(image.dtype).max if image.dtype.kind == 'u' else 1.0)
    values = np.nan_to_num(image.astype(np.float32), nan=0.0, posinf=white, neginf=0.0)
    return np.clip(values * np.float32(255.0 / white) + 0.5, 0, 255).astype(np.uint8)


def check_float_range(image: NDArray[Any], white_level: float | None, name: str) -> None:
    """Refuse floating point images in another range: clipping them would leave a white image.

    Raises:
        InputError: Values above 1 and no white level; the text has the name.
    """
    if image.dtype.kind == 'f' and white_level is None:
        largest = float(np.nanmax(np.where(np.isfinite(image), image, np.nan), initial=0.0))
        if largest > 1.0:
            raise InputError(
                f'{name}: floating point image with values up to {largest:g}; [0, 1] is needed. '
                "Set the parameter 'white_level' to the value of white"
            )


def aligned_principal_points(pair: StereoPair) -> StereoPair:
    """Shift the right image by whole columns so that its principal point meets the left's.

    Backends search column differences from 0 upwards; a rig with cx_left != cx_right would have
    its far points elsewhere. What is left after whole columns is below one pixel and stays in the
    calibration. Pairs with equal principal points are returned as they are.
    """
    columns = math.floor(pair.calibration.disparity_offset_px)
    if columns == 0:
        return pair
    width = pair.right.shape[1]
    source = np.clip(np.arange(width) - columns, 0, width - 1)
    calibration = dataclasses.replace(
        pair.calibration, cx_right=pair.calibration.cx_right + columns
    )
    right = np.ascontiguousarray(pair.right[:, source])
    return dataclasses.replace(pair, right=right, calibration=calibration)


def network_pair(
    pair: StereoPair, size_multiple: int, network_width: int | None = NETWORK_WIDTH
) -> StereoPair:
    """Return the pair at the network's size: scaled to `network_width`, then padded.

    Images from `LEAST_ENLARGED_WIDTH` on are enlarged: what is thin stays apart in the network's
    coarse grid. The aspect ratio is kept to within half a row; padded at the right and bottom by
    edge replication, so that no column of the image moves. `network_width` None keeps the size.
    """
    width, height = content_size(pair, network_width)
    left, right, calibration = pair.left, pair.right, pair.calibration
    if (width, height) != (calibration.width, calibration.height):
        smaller = width < calibration.width
        interpolation = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        left, right = (
            cv2.resize(image, (width, height), interpolation=interpolation)
            for image in (left, right)
        )
        if not smaller:  # a cubic overshoots beside edges
            left, right = np.clip(left, 0, 1), np.clip(right, 0, 1)
        calibration = calibration.resized(width, height)
    pad_right, pad_bottom = -width % size_multiple, -height % size_multiple
    if pad_right or pad_bottom:
        left, right = (
            cv2.copyMakeBorder(image, 0, pad_bottom, 0, pad_right, cv2.BORDER_REPLICATE)
            for image in (left, right)
        )
        calibration = calibration.padded(right=pad_right, bottom=pad_bottom)
    return StereoPair(left, right, calibration, pair.stamp_ns, pair.frame_id)


def content_size(pair: StereoPair, network_width: int | None) -> tuple[int, int]:
    """Return width and height of the image inside the network's padded input."""
    width, height = pair.calibration.width, pair.calibration.height
    scaled_width = content_width(width, network_width)
    return scaled_width, max(1, round(height * scaled_width / width))


def content_width(image_width: int, network_width: int | None) -> int:
    """Return the width that images are scaled to for a network of this width, pixels."""
    if network_width is None or image_width < min(network_width, LEAST_ENLARGED_WIDTH):
        return image_width
    return network_width


def full_size_prediction(
    prediction: DisparityPrediction, pair: StereoPair, network_width: int | None = NETWORK_WIDTH
) -> DisparityPrediction:
    """Undo `network_pair`: cut the padding, scale to the pair's size, disparity with the width."""
    width, height = content_size(pair, network_width)
    disparity = prediction.disparity[:height, :width]
    confidence = prediction.confidence[:height, :width]
    full_width, full_height = pair.calibration.width, pair.calibration.height
    if (width, height) != (full_width, full_height):
        size = (full_width, full_height)
        disparity = cv2.resize(disparity, size, interpolation=cv2.INTER_LINEAR)
        disparity *= np.float32(full_width / width)
        confidence = cv2.resize(confidence, size, interpolation=cv2.INTER_LINEAR)
    return DisparityPrediction(disparity, confidence)
