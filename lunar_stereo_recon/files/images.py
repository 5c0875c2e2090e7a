"""Stereo pairs from image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.encoded_image import decoded_image
from lunar_stereo_recon.errors import CalibrationError, InputError, quoted
from lunar_stereo_recon.files.bounded import read_bounded
from lunar_stereo_recon.geometry.rectify import RawCamera, rectified_image, seen_mask
from lunar_stereo_recon.limits import MAX_IMAGE_BYTES
from lunar_stereo_recon.preprocess import check_float_range, color_from_array, grey_from_array


def read_image(path: str | Path) -> NDArray[Any]:
    """Return an image file as (H, W) or (H, W, 3) RGB: uint8, uint16, or float32 of a TIFF.

    Raises:
        InputError: There is no file, or it is not an image that can be decoded.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(f'no image at {path}')
        content = read_bounded(path, MAX_IMAGE_BYTES)
    except OSError as error:
        raise InputError(f'cannot read image {quoted(str(path))}: {error.strerror}') from error
    return decoded_image(content, str(path))


def pair_from_files(
    left: str | Path,
    right: str | Path,
    calibration: StereoCalibration,
    white_level: float | None = None,
) -> StereoPair:
    """Return a pair from two image files; see `read_image` and `pair_from_images` for errors."""
    names = (str(left), str(right))
    return pair_from_images(read_image(left), read_image(right), calibration, white_level, names)


def pair_from_images(
    left: NDArray[Any],
    right: NDArray[Any],
    calibration: StereoCalibration,
    white_level: float | None = None,
    names: tuple[str, str] = ('left image', 'right image'),
    raw: tuple[RawCamera, RawCamera] | None = None,
) -> StereoPair:
    """Return a pair from two images as `read_image` gives them; colour is kept for the cloud.

    Args:
        left, right: (H, W) or (H, W, 3) RGB; uint8, uint16, or floating point in [0, 1].
        calibration: Calibration of images of this size.
        white_level: Value that becomes 1.0; the type's maximum where None.
        names: What the two are called in error messages, such as their paths.
        raw: The cameras of raw images, which are rectified for the calibration; None where the
            images are rectified already.

    Raises:
        InputError: The images differ in size, or are of a type or range that cannot be used.
        CalibrationError: It is for another size.
    """
    size, right_size = (f'{image.shape[1]}x{image.shape[0]}' for image in (left, right))
    if size != right_size:
        raise InputError(
            f'{names[0]} is {size} but {names[1]} is {right_size}; both views of a pair must '
            'have one size'
        )
    if left.shape[:2] != (calibration.height, calibration.width):
        raise CalibrationError(
            f'{names[0]} is {size} but the calibration is for '
            f'{calibration.width}x{calibration.height}'
        )
    for image, name in zip((left, right), names, strict=True):
        check_float_range(image, white_level, name)
    masks = (None, None) if raw is None else (seen_mask(raw[0]), seen_mask(raw[1]))
    if raw is not None:
        left, right = map(rectified_image, (left, right), raw)
    return StereoPair(
        grey_from_array(left, white_level),
        grey_from_array(right, white_level),
        calibration,
        color=color_from_array(left, white_level),
        left_mask=masks[0],
        right_mask=masks[1],
    )
