"""One picture a pair: image, depth, confidence and error of each method, on common scales."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lunar_stereo_recon.benchmark.methods import Estimate
from lunar_stereo_recon.datatypes import StereoPair
from lunar_stereo_recon.evaluation.scores import GroundTruth
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from lunar_stereo_recon.report.clouds import left_color
from lunar_stereo_recon.visualize import contact_sheet, RgbImage, SheetRow

PICTURE_WIDTH = 300


def panel(
    title: str,
    images: StereoPair,
    truth: GroundTruth | None,
    estimates: Mapping[str, Estimate],
) -> RgbImage:
    """Return the picture of a pair, a row for each method."""
    rows = [_row(method, images, truth, each) for method, each in estimates.items()]
    return contact_sheet(title, rows, PICTURE_WIDTH)


def _row(
    method: str, images: StereoPair, truth: GroundTruth | None, estimate: Estimate
) -> SheetRow:
    error, caption = None, method
    disparity = estimate.disparity
    if truth is not None:
        error = np.where(truth.valid, np.abs(disparity - truth.disparity), np.nan)
        known = error[np.isfinite(error)]
        if known.size:
            bad = 1 - (known <= 1).sum() / truth.valid.sum()
            caption += f'   EPE {known.mean():.2f} px, bad-1-all {100 * bad:.1f} %'
    confidence = estimate.confidence
    if confidence is None:
        # Its own estimates are all it trusts; nothing is drawn as confidence.
        confidence = np.full(disparity.shape, np.nan, np.float32)
    depth = depth_from_disparity(disparity, images.calibration)
    if truth is not None and truth.valid.any():
        # Not the sky, whose depths would take up the scale.
        depth = np.where(truth.valid, depth, np.float32(np.nan))
    return SheetRow(caption, left_color(images), depth, confidence, error)
