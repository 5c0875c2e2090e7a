"""Stereo pairs from image files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.preprocess import grey_from_array


def read_image(path: str | Path) -> NDArray:
    """Return an image file as (H, W) or (H, W, 3) RGB, uint8 or uint16.

    Raises:
        InputError: There is no file, or it is not an image that can be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'no image at {path}')
    # From memory: OpenCV prints a warning of its own when it opens a broken file.
    encoded = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    if image is None:
        raise InputError(f'cannot decode the image {path} ({encoded.size} bytes)')
    if image.ndim == 3 and image.shape[2] in (3, 4):
        image = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)
    return image


def pair_from_images(
    left: NDArray,
    right: NDArray,
    calibration: StereoCalibration,
    white_level: float | None = None,
) -> StereoPair:
    """Return a pair from two images as `read_image` gives them; colour is kept for the cloud.

    Raises:
        InputError, CalibrationError: Images differ in size or from the calibration.
    """
    color = None
    if left.ndim == 3:
        white = white_level or np.iinfo(left.dtype).max
        color = np.clip(left * (255.0 / white) + 0.5, 0, 255).astype(np.uint8)
    return StereoPair(
        grey_from_array(left, white_level),
        grey_from_array(right, white_level),
        calibration,
        color=color,
    )
