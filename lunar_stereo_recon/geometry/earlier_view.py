"""Where the points of a frame are in an earlier one, by the motion between the two."""

from __future__ import annotations

import cv2
import numpy as np

from lunar_stereo_recon.datatypes import FloatImage, StereoCalibration
from lunar_stereo_recon.geometry.pose_track import Pose


def in_earlier_view(
    disparity: FloatImage, calibration: StereoCalibration, earlier_from_now: Pose
) -> tuple[FloatImage, FloatImage, FloatImage]:
    """Return columns, rows and disparity in the earlier left view, each (H, W) pixels.

    NaN where there is no disparity, and where the point lies behind or outside of that view.

    Args:
        disparity: (H, W) pixels of the present view; NaN invalid.
        calibration: Of both frames.
        earlier_from_now: The present left optical frame in the earlier one.
    """
    height, width = disparity.shape
    factor = calibration.fx * calibration.baseline_m
    # The ray of each pixel, turned; the translation counts by the inverse depth.
    turned = earlier_from_now.rotation @ np.linalg.inv(calibration.intrinsics)
    columns, rows = np.arange(width), np.arange(height)[:, None]
    x, y, z = (
        (ray[0] * columns + ray[1] * rows + ray[2]).astype(np.float32)
        + disparity * np.float32(shift / factor)
        for ray, shift in zip(turned, earlier_from_now.position, strict=True)
    )
    scale = 1 / np.where(z > 1e-6, z, np.float32(np.nan))
    there_x = x * scale * np.float32(calibration.fx) + np.float32(calibration.cx)
    there_y = y * scale * np.float32(calibration.fy) + np.float32(calibration.cy)
    inside = (there_x >= 0) & (there_x <= width - 1) & (there_y >= 0) & (there_y <= height - 1)
    there = disparity * scale
    for image in (there_x, there_y, there):
        image[~inside] = np.nan
    return there_x, there_y, there


def sampled(image: FloatImage, columns: FloatImage, rows: FloatImage) -> FloatImage:
    """Return an image between its pixels; NaN where the place or a pixel beside it is NaN."""
    found = cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(np.isnan(columns), np.float32(np.nan), found)
