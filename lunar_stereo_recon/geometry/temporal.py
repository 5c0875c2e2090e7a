"""Steadies the disparity by the frame before, where the two agree within their stated errors.

A point that was measured a moment ago is measured again; by the pose of both frames it is known
where the first measurement should be now. Where both say the same within their standard
deviations, their mean is better than either. Where they do not, the present images have the
word, and where too many do not, the pose is wrong and the frame before is left out as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lunar_stereo_recon.datatypes import FloatImage, StereoCalibration
from lunar_stereo_recon.geometry.earlier_view import in_earlier_view, sampled
from lunar_stereo_recon.geometry.pose_track import Pose

# Farther apart in time the ground need not be the same, nor the pose be exact.
MAX_GAP_S = 3.0
MAX_SPEED_M_S = 3.0
# What differs by more standard deviations, or by more pixels, is another point.
SAME_SIGMAS = 2.0
SAME_PX = 1.5
# Of exact poses about 1 % of the sure points disagree; of wheels that slip 12 % and more.
MOST_DISAGREEING = 0.05
LEAST_COMPARED = 0.05
SURE = 0.5
# The frame before never counts more than the present one.
LARGEST_WEIGHT = 0.5


@dataclass(frozen=True)
class EarlierFrame:
    """What is kept of a frame for the next one.

    Attributes:
        disparity, sigma_px: (H, W) pixels, the disparity and its standard deviation; NaN unknown.
        calibration: Of its images.
        stamp_ns: Its time.
        pose: Of the left optical frame in a fixed frame.
    """

    disparity: FloatImage
    sigma_px: FloatImage
    calibration: StereoCalibration
    stamp_ns: int
    pose: Pose


def why_unrelated(earlier: EarlierFrame, now: EarlierFrame) -> str:
    """Return why two frames cannot be of one drive, '' where they can."""
    if earlier.calibration != now.calibration:
        return 'the calibration is another one'
    gap_s = 1e-9 * (now.stamp_ns - earlier.stamp_ns)
    if not 0 < gap_s <= MAX_GAP_S:
        return f'the frame before is {gap_s:.2f} s older; 0 to {MAX_GAP_S:g} s is needed'
    return earlier.pose.jump_to(now.pose, gap_s, MAX_SPEED_M_S)


def steadied(
    now: EarlierFrame, confidence: FloatImage, earlier: EarlierFrame
) -> tuple[FloatImage, str]:
    """Return (H, W) pixels, and why the frame before was left out ('' where it was used).

    Args:
        now: The present frame.
        confidence: (H, W) in [0, 1], of the present frame.
        earlier: The frame before.
    """
    reason = why_unrelated(earlier, now)
    if reason:
        return now.disparity, reason
    motion = earlier.pose.inverse().of(now.pose)
    columns, rows, expected = in_earlier_view(now.disparity, now.calibration, motion)
    # Depths differ by the same in both views, disparities by the square of their ratio.
    with np.errstate(invalid='ignore'):  # infinitely far: unknown in both
        ratio = now.disparity / expected
    ratio *= ratio
    difference = (sampled(earlier.disparity, columns, rows) - expected) * ratio
    variance = sampled(earlier.sigma_px, columns, rows) * ratio
    variance *= variance
    own = now.sigma_px * now.sigma_px
    variance += own
    size = np.abs(difference)
    limit = np.float32(SAME_SIGMAS) * np.sqrt(variance)
    sure = (confidence >= SURE) & np.isfinite(difference)
    compared = int(sure.sum())
    if compared < LEAST_COMPARED * sure.size:
        return now.disparity, 'too little of the frame before is seen again'
    share = float((size[sure] > limit[sure]).mean())
    if share > MOST_DISAGREEING:
        return now.disparity, f'{share:.0%} of the points disagree: is the pose exact?'
    agree = size <= np.minimum(limit, np.float32(SAME_PX))
    weight = np.minimum(own / variance, np.float32(LARGEST_WEIGHT))
    return np.where(agree, now.disparity + weight * difference, now.disparity), ''
