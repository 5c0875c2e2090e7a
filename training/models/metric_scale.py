"""Metric scale of a relative pointmap from the known baseline of a rectified rig.

Students with a disparity head need none of this; it serves MASt3R-style pointmap heads.
"""

from __future__ import annotations

import numpy as np

from lunar_stereo_recon.datatypes import FloatImage, StereoCalibration
from lunar_stereo_recon.errors import InputError


def scale_from_baseline(
    pointmap_right_relative: FloatImage,
    calibration: StereoCalibration,
    confidence: FloatImage | None = None,
) -> float:
    """Return metres per unit of a pointmap that is right only up to scale.

    A point (X, Y, Z) of the right view, given in the left frame, is seen by the right camera at
    column u with (u - cx_right) / fx = (s X - B) / (s Z), hence B / s = X - Z (u - cx_right) / fx
    for every right pixel. The scale is B over the weighted median of the right-hand side: no
    matching is needed, and half of the points may be wrong.

    Args:
        pointmap_right_relative: (H, W, 3), the right view's points in the left optical frame.
            Invalid is NaN.
        calibration: Rectified calibration for this image size.
        confidence: (H, W) weights of the pixels; all equal where None.

    Raises:
        InputError: No finite point, or the points put the right camera on or left of the left
            one, so that no positive scale exists.
    """
    value = relative_baseline(pointmap_right_relative, calibration, confidence)
    if value <= 0:
        raise InputError(
            f'pointmap places the right camera at x = {value:.4g} units in the left frame; '
            'a positive value is needed (are left and right exchanged?)'
        )
    return calibration.baseline_m / value


def relative_baseline(
    pointmap_right_relative: FloatImage,
    calibration: StereoCalibration,
    confidence: FloatImage | None = None,
) -> float:
    """Return how far along the row a pointmap puts the right camera, in its own unit.

    Arguments and errors as `scale_from_baseline`, but for the sign, which may be any.
    """
    columns = (np.arange(pointmap_right_relative.shape[1]) - calibration.cx_right) / calibration.fx
    offsets = pointmap_right_relative[..., 0] - pointmap_right_relative[..., 2] * columns
    weights = np.ones(offsets.shape) if confidence is None else confidence
    usable = np.isfinite(offsets) & (weights > 0)
    if not usable.any():
        raise InputError('pointmap has no finite point with positive confidence')
    return _weighted_median(offsets[usable], weights[usable])


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])
