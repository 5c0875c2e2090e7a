"""Pinhole projection of the rectified left camera: pixels and depth to points, and back.

Optical frame: x right, y down, z forward, metres. Integer coordinates are pixel centres.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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


def project_points(
    points: NDArray[np.floating], calibration: StereoCalibration
) -> NDArray[np.float64]:
    """Return (..., 2) columns and rows in the left image of points (..., 3) in its frame.

    NaN where a point is NaN or not in front of the camera.
    """
    points = np.asarray(points, np.float64)
    z = np.where(points[..., 2] > 0, points[..., 2], np.nan)
    u = calibration.fx * points[..., 0] / z + calibration.cx
    v = calibration.fy * points[..., 1] / z + calibration.cy
    return np.stack([u, v], axis=-1)
