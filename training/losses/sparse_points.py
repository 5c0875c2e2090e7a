"""Which pixels of dense ground truth a sparse one would have: the strongest corners.

Structure from motion triangulates corners, so a set without dense depth has points there and
nowhere else. `students.NAME.ground_truth_points` thins dense truth out to that.
"""

from __future__ import annotations

import torch
from torch import Tensor
import torch.nn.functional as F

from training.losses.pointmaps import sobel

# Sides of the window that a corner is measured in, and of that in which it is the strongest.
WINDOW, APART = 5, 3


def corner_strength(images: Tensor) -> Tensor:
    """Return (B, H, W): the smaller eigenvalue of the gradients' covariance (Shi and Tomasi).

    Args:
        images: (B, C, H, W) in [0, 1].
    """
    grey = images.float().mean(dim=1)
    x, y = sobel(grey[..., None])[..., 0].unbind(dim=1)  # (B, H, W) each
    products = torch.stack([x * x, y * y, x * y], dim=1)  # (B, 3, H, W)
    xx, yy, xy = F.avg_pool2d(products, WINDOW, 1, WINDOW // 2).unbind(dim=1)
    return (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()


def strongest_corners(images: Tensor, valid: Tensor, count: int) -> Tensor:
    """Return (B, H, W) bool: at most `count` corners of each image among the valid pixels.

    Args:
        images: (B, C, H, W) in [0, 1].
        valid: (B, H, W) bool.
        count: How many; fewer where there are not as many that are the strongest around.
    """
    strength = corner_strength(images)
    strongest = strength == F.max_pool2d(strength[:, None], APART, 1, APART // 2)[:, 0]
    strength = strength.masked_fill(~(valid & strongest & (strength > 0)), -1.0).flatten(1)
    values, places = strength.topk(min(count, strength.shape[1]), dim=1)
    chosen = torch.zeros_like(strength, dtype=torch.bool).scatter_(1, places, values > 0)
    return chosen.view(valid.shape)
