"""Pinhole projection of the rectified left camera: pixels and depth to points, and back.

Optical frame: x right, y down, z forward, metres. Integer coordinates are pixel centres.
"""

from __future__ import annotations

import numpy as np

from lunar_stereo_recon.datatypes import FloatImage, StereoCalibration
from lunar_stereo_recon.errors import InputError


def points_from_depth(depth: FloatImage, calibration: StereoCalibration) -> FloatImage:
    """Back-project a depth map.

    Args:
        depth: (H, W) float32, metres along the optical axis. Invalid is NaN.
        calibration: Rectified calibration for this image size.

    Returns:
        (H, W, 3) float32, metres, left optical frame. NaN where depth is NaN.

    Raises:
        InputError: The depth map's size differs from the calibrated image size.
    """
    if depth.shape != (calibration.height, calibration.width):
        raise InputError(
            f'depth map has shape {depth.shape}; the calibration is for '
            f'{calibration.width}x{calibration.height} images'
        )
    points = np.empty((*depth.shape, 3), np.float32)
    columns = (np.arange(calibration.width) - calibration.cx) / calibration.fx
    rows = (np.arange(calibration.height) - calibration.cy) / calibration.fy
    np.multiply(depth, columns[None, :].astype(np.float32), out=points[..., 0])
    np.multiply(depth, rows[:, None].astype(np.float32), out=points[..., 1])
    points[..., 2] = depth
    return points
