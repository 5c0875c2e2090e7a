"""Disparity and depth of a rectified pair, and the classical filling of holes.

Disparity is x_left - x_right - (cx_left - cx_right), pixels, positive in front of the rig.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, StereoCalibration
from lunar_stereo_recon.errors import InputError


def disparity_from_columns(
    column_difference: FloatImage, calibration: StereoCalibration
) -> FloatImage:
    """Return disparity of raw column differences x_left - x_right.

    Differs only where the two principal points do (cameras with converged windows).
    """
    offset = calibration.disparity_offset_px
    if offset == 0.0:
        return column_difference
    return column_difference - np.float32(offset)


def depth_from_disparity(disparity: FloatImage, calibration: StereoCalibration) -> FloatImage:
    """Return depth along the optical axis of the rectified left camera.

    Args:
        disparity: (H, W) float32, pixels. Invalid is NaN.
        calibration: Rectified calibration: focal length in pixels, baseline in metres.

    Returns:
        (H, W) float32, metres. NaN where disparity is NaN or not positive.

    Raises:
        InputError: Disparity shape differs from the calibrated image size.
    """
    _check_size('disparity', disparity, calibration)
    positive = np.where(disparity > 0, disparity, np.float32(np.nan))
    return np.float32(calibration.fx * calibration.baseline_m) / positive


def disparity_from_depth(depth: FloatImage, calibration: StereoCalibration) -> FloatImage:
    """Return disparity, pixels, of depth (H, W), metres. NaN where depth is not positive.

    Raises:
        InputError: Depth shape differs from the calibrated image size.
    """
    _check_size('depth', depth, calibration)
    positive = np.where(depth > 0, depth, np.float32(np.nan))
    return np.float32(calibration.fx * calibration.baseline_m) / positive


def fill_from_background(disparity: FloatImage) -> FloatImage:
    """Fill missing pixels row by row with the farther of the nearest estimates left and right.

    What the classical matchers are given when full density is compared: a hole is mostly an
    occlusion, and what is hidden is the background. Rows without any estimate copy the nearest
    row that has one.

    Args:
        disparity: (H, W) float32, pixels. Missing is NaN or not positive.

    Returns:
        (H, W) float32. All NaN only when there is no estimate at all.
    """
    known = np.isfinite(disparity) & (disparity > 0)
    filled = np.full(disparity.shape, np.nan, np.float32)
    rows_known = np.flatnonzero(known.any(axis=1))
    if rows_known.size == 0:
        return filled
    height, width = disparity.shape
    columns = np.arange(width)
    nearest_left = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    nearest_right = np.minimum.accumulate(np.where(known, columns, width)[:, ::-1], axis=1)
    nearest_right = nearest_right[:, ::-1]
    # One column of infinity on each side stands for "no estimate on that side".
    bordered = np.pad(disparity.astype(np.float32), ((0, 0), (1, 1)), constant_values=np.inf)
    from_left = np.take_along_axis(bordered, nearest_left + 1, axis=1)
    from_right = np.take_along_axis(bordered, nearest_right + 1, axis=1)
    filled[rows_known] = np.minimum(from_left, from_right)[rows_known]
    rows_empty = np.setdiff1d(np.arange(height), rows_known)
    if rows_empty.size:
        # argmin takes the upper row when two known rows are equally near.
        source = np.abs(rows_known[None, :] - rows_empty[:, None]).argmin(axis=1)
        filled[rows_empty] = filled[rows_known[source]]
    return filled


def depth_millimetres(depth: FloatImage) -> NDArray[np.uint16]:
    """Return (H, W) uint16 millimetres; 0 where invalid or beyond 65.5 m."""
    millimetres = np.nan_to_num(depth * 1000.0, nan=0.0, posinf=0.0)
    return np.where(millimetres < 65535.5, np.rint(millimetres), 0).astype(np.uint16)


def _check_size(name: str, image: FloatImage, calibration: StereoCalibration) -> None:
    if image.shape != (calibration.height, calibration.width):
        raise InputError(
            f'{name} map has shape {image.shape}; the calibration is for '
            f'{calibration.width}x{calibration.height} images'
        )
