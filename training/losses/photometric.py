"""How well the right view explains the left at a disparity: a loss that needs no label.

It is blind where nothing can be seen: hidden ground and darkness have no counterpart that looks
alike. There a mask takes it away, and far from a label too, because it pulls towards whatever
looks alike within a pixel or two.
"""

from __future__ import annotations

import torch
from torch import Tensor
import torch.nn.functional as F

from training.models.flight import warp_row

# Windows are compared, not pixels: exposure differs between the views.
WINDOW_PX = 7
# Variance of the noise in images of [0, 1]; windows with less have nothing to compare.
NOISE_VARIANCE = 1e-4
# Image values below are dark.
DARK = 0.05
# A prediction further than this from a known label is left to the label.
REACH_PX = 2.0


def explained(left: Tensor, right: Tensor, disparity: Tensor, mask: Tensor) -> Tensor:
    """Return how far the left view is from the right one brought to it; 0: they look the same.

    Half of one minus the structural similarity, without its term of brightness, of windows around
    each pixel. Pixels outside the mask have no part in any window, so no gradient reaches
    their disparity.

    Args:
        left, right: (B, 1, H, W) in [0, 1].
        disparity: (B, H, W) px of the left view.
        mask: (B, H, W) bool, pixels that count.

    Returns:
        The mean over the mask; 0 where it is empty.
    """
    counts = mask[:, None]
    # A disparity that is not finite must not reach the sums, times zero or not.
    there = warp_row(right, disparity[:, None].where(counts, torch.zeros_like(right)))
    share = _box(counts.to(left.dtype)).clamp_min(1 / WINDOW_PX**2)

    def mean(values: Tensor) -> Tensor:
        return _box(values * counts) / share

    mean_left, mean_there = mean(left), mean(there)
    variances = (
        mean(left.square()) - mean_left.square() + mean(there.square()) - mean_there.square()
    )
    covariance = mean(left * there) - mean_left * mean_there
    similarity = (2 * covariance + NOISE_VARIANCE) / (variances.clamp_min(0) + NOISE_VARIANCE)
    return ((1 - similarity) / 2 * counts).sum() / counts.sum().clamp_min(1)


def photometric_mask(
    left: Tensor, right: Tensor, disparity: Tensor, label: Tensor, hidden: Tensor
) -> Tensor:
    """Return (B, H, W) bool: the views can be compared at the predicted disparity.

    Args:
        left, right: (B, 1, H, W) in [0, 1].
        disparity: (B, H, W) px, predicted.
        label: (B, H, W) px, NaN where unknown; the prediction may then be anywhere.
        hidden: (B, H, W) bool: the right view does not see the pixel.
    """
    disparity = disparity.detach()
    there = warp_row(right, disparity[:, None])[:, 0]
    bright = (left[:, 0] >= DARK) & (there >= DARK)
    agree = label.isnan() | ((disparity - label).abs() <= REACH_PX)
    return bright & agree & ~hidden


def _box(values: Tensor) -> Tensor:
    return F.avg_pool2d(values, WINDOW_PX, 1, WINDOW_PX // 2)
