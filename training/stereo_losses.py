"""Losses of the flight student on rectified pairs with exact disparity.

Each returns a scalar tensor. Disparities are in pixels of the full-resolution image; at stride 4
a bin is 4 px. NaN in a target means that there is nothing to learn at that pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor
import torch.nn.functional as F

from lunar_stereo_recon.models.flight import MATCH_STRIDE
from training.recipe import LossRecipe

SEEN = 0  # value of `occlusion` for pixels that both views see
# A pull towards sub-pixel precision: errors above this grow linearly, below quadratically.
SMOOTH_L1_BETA_PX = 0.25
# Errors beyond this are the wrong bin, which cross entropy corrects and regression cannot; left
# in, they would drown the sub-pixel gradient of all other pixels.
LARGEST_ERROR_PX = 16.0
# Confidence is the probability of an error below this.
CONFIDENT_ERROR_PX = 1.0


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean smooth L1 distance over pixels with a finite target; 0 without any.

    Distances stop counting more, and pulling, at `LARGEST_ERROR_PX`.
    """
    valid = torch.isfinite(target)
    distance = F.smooth_l1_loss(
        prediction, target.nan_to_num(0.0), reduction='none', beta=SMOOTH_L1_BETA_PX
    )
    return (distance.clamp_max(LARGEST_ERROR_PX) * valid).sum() / valid.sum().clamp_min(1)


def cell_mean(disparity: Tensor, stride: int) -> Tensor:
    """Return (B, H/stride, W/stride): mean of each cell, NaN where one pixel has none."""
    return F.avg_pool2d(disparity[:, None], stride)[:, 0]


def all_seen(occlusion: Tensor, stride: int) -> Tensor:
    """Return (B, H/stride, W/stride) bool: both views see every pixel of the cell."""
    return F.max_pool2d((occlusion != SEEN).float()[:, None], stride)[:, 0] == 0


def bin_cross_entropy(logits: Tensor, position: Tensor, mask: Tensor) -> Tensor:
    """Return cross entropy against the two bins around the target.

    Args:
        logits: (B, bins, H, W).
        position: (B, H, W) target in bins, NaN where unknown; outside the bins it is left out.
        mask: (B, H, W) bool, pixels that count.
    """
    bins = logits.shape[1]
    mask = mask & (position >= 0) & (position <= bins - 1)  # False where NaN
    position = position.nan_to_num(0.0).clamp(0, bins - 1)
    lower = position.floor().long().clamp_max(bins - 2)
    upper_weight = (position - lower)[:, None]
    log_probability = logits.float().log_softmax(dim=1)
    at_lower = log_probability.gather(1, lower[:, None])
    at_upper = log_probability.gather(1, lower[:, None] + 1)
    entropy = -((1 - upper_weight) * at_lower + upper_weight * at_upper)[:, 0]
    return (entropy * mask).sum() / mask.sum().clamp_min(1)


def confidence_loss(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """Return binary cross entropy of "the disparity error is below one pixel".

    Pixels without a target (sky) count as wrong: nothing there may be trusted.
    """
    correct = (prediction.detach() - target).abs() < CONFIDENT_ERROR_PX  # False where NaN
    return F.binary_cross_entropy_with_logits(logit.float(), correct.float())


def flight_losses(
    output: dict[str, Tensor], batch: dict[str, Tensor], weights: LossRecipe
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the enabled losses, and each one before weighting.

    Args:
        output: Of `FlightStudent.forward`.
        batch: `disparity` (B, H, W) px with NaN in the sky, `occlusion` (B, H, W).
        weights: Losses of weight 0 are not computed.
    """
    target = batch['disparity']
    coarse, fine = cell_mean(target, 4), cell_mean(target, 2)
    seen4, seen2 = all_seen(batch['occlusion'], 4), all_seen(batch['occlusion'], 2)
    upsampled = output['disparity_upsampled'][:, 0]
    # The matcher at stride 2 sees offsets of 2 px around where the coarse estimate put it.
    offset = (fine - upsampled.detach()) / 2 + output['match'].shape[1] // 2
    enabled = {
        'disparity': lambda: smooth_l1(output['disparity'], target),
        'coarse': lambda: smooth_l1(output['disparity_coarse'][:, 0], coarse),
        'first': lambda: smooth_l1(output['disparity_first'][:, 0], coarse),
        'upsampled': lambda: smooth_l1(upsampled, fine),
        'bins': lambda: bin_cross_entropy(
            output['logits'], coarse / MATCH_STRIDE, torch.ones_like(seen4)
        ),
        'correlation': lambda: bin_cross_entropy(
            output['correlation'], coarse / MATCH_STRIDE, seen4
        ),
        'match': lambda: bin_cross_entropy(output['match'], offset, seen2),
        'confidence': lambda: confidence_loss(
            output['confidence_logit'], output['disparity'], target
        ),
    }
    terms = {name: loss() for name, loss in enabled.items() if getattr(weights, name)}
    total = sum(getattr(weights, name) * term for name, term in terms.items())
    return total, terms
