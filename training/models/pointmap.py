"""From a MASt3R-style pointmap prediction of a rectified pair to a metric reconstruction.

Pointmaps are right up to scale. The known baseline gives the scale, preferably through matched
descriptors: a small rotation of the predicted right camera, harmless to the shape, would move its
predicted centre by a large part of the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, Reconstruction, StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.disparity import disparity_from_depth
from lunar_stereo_recon.limits import MAX_BASELINE_M, MIN_BASELINE_M
from training.models.metric_scale import relative_baseline, scale_from_baseline

# Rows whose descriptors are compared: every fourth gives thousands of matches already.
MATCHED_ROW_STEP = 4
MIN_MATCHES = 200
# Matches are whole columns; below this disparity rounding alone is a tenth of the scale.
MIN_MATCHED_DISPARITY_PX = 5.0
# The right camera is found from one point of POSE_STEP, and from MIN_POSE_POINTS at least.
POSE_STEP, MIN_POSE_POINTS = 37, 6


@dataclass(frozen=True)
class PointmapPrediction:
    """What a teacher or a student of the paper says about one pair.

    Attributes:
        left, right: (H, W, 3) float32, each view's points in the left optical frame, up to scale.
        confidence_raw_left, confidence_raw_right: (H, W) float32, at least 1.
        descriptors_left, descriptors_right: (H, W, D) float32 of unit length.

    Raises:
        InputError: The maps are not of one size.
    """

    left: FloatImage
    right: FloatImage
    confidence_raw_left: FloatImage
    confidence_raw_right: FloatImage
    descriptors_left: FloatImage
    descriptors_right: FloatImage

    def __post_init__(self) -> None:
        if self.left.ndim != 3 or self.left.shape[2] != 3:
            raise InputError(f'left pointmap has shape {self.left.shape}; (H, W, 3) is needed')
        for name, value in vars(self).items():
            if value.shape[:2] != self.left.shape[:2]:
                raise InputError(
                    f'{name} has shape {value.shape}, but the left pointmap {self.left.shape}'
                )


def confidence_from_raw(confidence_raw: FloatImage) -> FloatImage:
    """Return (H, W) in [0, 1) of a raw confidence >= 1: 1 - 1 / raw; monotone, not calibrated."""
    return np.asarray(1.0 - 1.0 / np.maximum(confidence_raw, 1.0), np.float32)


def match_rows(
    descriptors_left: FloatImage,
    descriptors_right: FloatImage,
    row_step: int = MATCHED_ROW_STEP,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return mutual nearest neighbours between equal rows of a rectified pair.

    Args:
        descriptors_left, descriptors_right: (H, W, D), unit length.
        row_step: Compare every row_step-th row.

    Returns:
        Row, left column and right column of each match, (N,) each.
    """
    rows, left_columns, right_columns = [], [], []
    columns = np.arange(descriptors_left.shape[1])
    for row in range(row_step // 2, descriptors_left.shape[0], row_step):
        similarity = descriptors_left[row] @ descriptors_right[row].T
        best_right, best_left = similarity.argmax(axis=1), similarity.argmax(axis=0)
        mutual = np.flatnonzero(best_left[best_right] == columns)
        rows.append(np.full(len(mutual), row))
        left_columns.append(mutual)
        right_columns.append(best_right[mutual])
    if not rows:
        none = np.zeros(0, np.intp)
        return none, none, none
    return np.concatenate(rows), np.concatenate(left_columns), np.concatenate(right_columns)


def metric_scale(prediction: PointmapPrediction, calibration: StereoCalibration) -> float:
    """Return metres per unit of a pointmap prediction.

    From the median over descriptor matches of known depth (fx * baseline / disparity) over
    predicted depth; with too few usable matches, from where the pointmaps put the right camera.

    Raises:
        InputError: Neither way gives a positive scale.
    """
    rows, left_columns, right_columns = match_rows(
        prediction.descriptors_left, prediction.descriptors_right
    )
    disparity = left_columns - right_columns - calibration.disparity_offset_px
    depth = prediction.left[rows, left_columns, 2]
    usable = (disparity >= MIN_MATCHED_DISPARITY_PX) & np.isfinite(depth) & (depth > 0)
    if usable.sum() < MIN_MATCHES:
        weights = prediction.confidence_raw_right
        return scale_from_baseline(prediction.right, calibration, weights)
    ratios = calibration.fx * calibration.baseline_m / disparity[usable] / depth[usable]
    return float(np.median(ratios))


def calibration_from_pointmap(prediction: PointmapPrediction) -> StereoCalibration:
    """Return the pinhole rig that a prediction itself implies, for a pair without calibration.

    The principal point is taken at the image centre, the focal length is the median over pixels,
    and the baseline is the distance of the cameras in the prediction's unit (metres only if its
    training was metric). The pair may have any pose; where it is not rectified, disparities that
    follow from this calibration are no shift between the images.

    Raises:
        InputError: The points are not in front of a camera.
    """
    height, width = prediction.left.shape[:2]
    cx, cy = (width - 1) / 2, (height - 1) / 2
    x, y, z = np.moveaxis(np.asarray(prediction.left, np.float64), -1, 0)
    offset = np.hypot(*np.meshgrid(np.arange(width) - cx, np.arange(height) - cy))
    usable = np.isfinite(z) & (z > 0) & (np.hypot(x, y) > 0)
    if not usable.any():
        raise InputError('pointmap has no point in front of the left camera')
    focal = float(np.median((offset[usable] * z[usable]) / np.hypot(x, y)[usable]))
    baseline = float(np.clip(_camera_distance(prediction, focal), MIN_BASELINE_M, MAX_BASELINE_M))
    return StereoCalibration(focal, focal, cx, cy, cx, baseline, width, height)


def _camera_distance(prediction: PointmapPrediction, focal: float) -> float:
    """Return how far from the left camera the right one stands, in the prediction's unit.

    Raises:
        InputError: The right view's points fit no camera.
    """
    height, width = prediction.right.shape[:2]
    cx, cy = (width - 1) / 2, (height - 1) / 2
    unit = StereoCalibration(focal, focal, cx, cy, cx, 1.0, width, height)
    offset = relative_baseline(prediction.right, unit, prediction.confidence_raw_right)
    if offset > 0:  # along the row: what a rectified pair has
        return offset
    rows, columns = (axis.ravel()[::POSE_STEP] for axis in np.indices((height, width)))
    points = prediction.right.reshape(-1, 3)[::POSE_STEP].astype(np.float64)
    known = np.isfinite(points).all(axis=1)
    pixels = np.stack([columns, rows], axis=1).astype(np.float64)
    camera = np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]])
    if known.sum() < MIN_POSE_POINTS:
        raise InputError(f'{known.sum()} points of the right view are finite; 6 are needed')
    found, _, translation = cv2.solvePnP(
        points[known], pixels[known], camera, None, flags=cv2.SOLVEPNP_SQPNP
    )
    if not found:
        raise InputError('points of the right view fit no camera')
    return float(np.linalg.norm(translation))


def reconstruct_pointmap(
    prediction: PointmapPrediction,
    calibration: StereoCalibration,
    color: NDArray[np.uint8],
    scale: float,
    confidence_threshold: float = 0.0,
) -> Reconstruction:
    """Return the reconstruction of a pointmap prediction.

    The predicted depth is put on the calibrated rays; the predicted x and y, which know nothing
    of the calibration, are not used.

    Args:
        prediction: Pointmaps at the size of the calibration.
        calibration: Rectified calibration for this image size.
        color: (H, W, 3) uint8 RGB of the left image.
        scale: Metres per unit of the pointmaps, see `metric_scale`.
        confidence_threshold: In [0, 1]; points below become NaN.
    """
    confidence = confidence_from_raw(prediction.confidence_raw_left)
    depth = np.asarray(prediction.left[..., 2] * scale, np.float32)
    valid = np.isfinite(depth) & (depth > 0) & (confidence >= confidence_threshold)
    depth = np.where(valid, depth, np.float32(np.nan))
    return Reconstruction(
        disparity=disparity_from_depth(depth, calibration),
        depth=depth,
        confidence=np.nan_to_num(confidence, nan=0.0),
        points=points_from_depth(depth, calibration),
        color=color,
        calibration=calibration,
    )
