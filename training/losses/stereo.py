"""Losses of the flight student on rectified pairs with exact or a teacher's disparity.

Each returns a scalar tensor. Disparities are in pixels of the full-resolution image; at stride 4
a bin is 4 px. NaN in a target means that there is nothing to learn at that pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import ModelError
from training.data.batches import OUT_OF_FRAME, SEEN
from training.losses.features import cosine_margin, feature_map, FeatureProjector
from training.losses.photometric import explained, photometric_mask
from training.models.flight import MATCH_STRIDE
from training.recipe import LossRecipe

HIDDEN = 1
# A pixel is hidden where another one with a disparity larger by this lands on its match.
HIDDEN_BY_PX = 1.0
# A pull towards sub-pixel precision: errors above this grow linearly, below quadratically.
SMOOTH_L1_BETA_PX = 0.25
# Errors beyond this are the wrong bin, which cross entropy corrects and regression cannot; left
# in, they would drown the sub-pixel gradient of all other pixels.
LARGEST_ERROR_PX = 16.0
# A jump of the disparity by more than this is an edge, and this far around it edges count more.
EDGE_JUMP_PX = 1.5
EDGE_REACH_PX = 4


def smooth_l1(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean smooth L1 distance over pixels with a finite target; 0 without any.

    Distances stop counting more, and pulling, at `LARGEST_ERROR_PX`.
    """
    valid = torch.isfinite(target)
    distance = F.smooth_l1_loss(
        prediction, target.nan_to_num(0.0), reduction='none', beta=SMOOTH_L1_BETA_PX
    )
    share = valid if weight is None else valid * weight
    return (distance.clamp_max(LARGEST_ERROR_PX) * share).sum() / share.sum().clamp_min(1)


def edge_weights(disparity: Tensor, extra: float) -> Tensor:
    """Return (B, H, W): 1, and `1 + extra` near a jump of the disparity (B, H, W)."""
    known = disparity.nan_to_num(0.0)[:, None]
    side = 2 * EDGE_REACH_PX + 1
    most = F.max_pool2d(known, side, 1, EDGE_REACH_PX)  # (B, 1, H, W)
    least = -F.max_pool2d(-known, side, 1, EDGE_REACH_PX)
    return 1 + extra * (most - least > EDGE_JUMP_PX)[:, 0].to(known.dtype)


def cells(disparity: Tensor, stride: int) -> Tensor:
    """Return (B, stride * stride, H/stride, W/stride): the pixels of each cell."""
    return F.pixel_unshuffle(disparity[:, None], stride)


def cell_median(disparity: Tensor, stride: int) -> Tensor:
    """Return (B, H/stride, W/stride): median of each cell, NaN where one pixel has none.

    The mean of two surfaces lies on neither.
    """
    pixels = cells(disparity, stride)  # (B, pixels, h, w)
    middle = pixels.nanmedian(dim=1).values
    return middle.masked_fill(pixels.isnan().any(dim=1), torch.nan)


def bin_histogram_entropy(logits: Tensor, positions: Tensor) -> Tensor:
    """Return cross entropy against all pixels of each cell: two peaks where it has two surfaces.

    Args:
        logits: (B, bins, H, W).
        positions: (B, pixels, H, W) targets in bins, NaN where unknown; outside the bins they
            are left out.
    """
    bins = logits.shape[1]
    mask = (positions >= 0) & (positions <= bins - 1)
    positions = positions.nan_to_num(0.0).clamp(0, bins - 1)
    lower = positions.floor().long().clamp_max(bins - 2)  # (B, pixels, H, W)
    upper_weight = positions - lower
    log_probability = logits.float().log_softmax(dim=1)
    at_lower, at_upper = (log_probability.gather(1, index) for index in (lower, lower + 1))
    entropy = -((1 - upper_weight) * at_lower + upper_weight * at_upper)
    return (entropy * mask).sum() / mask.sum().clamp_min(1)


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
    upper_weight = (position - lower)[:, None]  # (B, 1, H, W)
    log_probability = logits.float().log_softmax(dim=1)
    at_lower = log_probability.gather(1, lower[:, None])
    at_upper = log_probability.gather(1, lower[:, None] + 1)
    entropy = -((1 - upper_weight) * at_lower + upper_weight * at_upper)[:, 0]
    return (entropy * mask).sum() / mask.sum().clamp_min(1)


def scale_loss(
    log_scale: Tensor, prediction: Tensor, target: Tensor, target_confidence: Tensor | None = None
) -> Tensor:
    """Return the negative log likelihood of the disparity's error after Laplace.

    The error counts up to `LARGEST_ERROR_PX`, and as that where there is no target (sky): nothing
    there may be trusted. Where the target is a teacher's, it is right with a probability only;
    otherwise the error is as large.

    Args:
        log_scale: (B, H, W), logarithm of the expected error, px.
        prediction, target: (B, H, W) px.
        target_confidence: (B, H, W) in [0, 1].
    """
    error = (prediction.detach() - target).abs().nan_to_num(LARGEST_ERROR_PX)
    error = error.clamp_max(LARGEST_ERROR_PX)
    if target_confidence is not None:
        error = target_confidence * error + (1 - target_confidence) * LARGEST_ERROR_PX
    log_scale = log_scale.float()
    return (error * (-log_scale).exp() + log_scale).mean()


def bin_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean divergence of the student's bins from the teacher's, (B, bins, H, W).

    Raises:
        ModelError: The networks have different bins.
    """
    if student.shape != teacher.shape:
        raise ModelError(
            f'soft_bins: student has bins {tuple(student.shape)}, teacher '
            f'{tuple(teacher.shape)}; they must be equal'
        )
    student, teacher = (bins.float().log_softmax(dim=1) for bins in (student, teacher.detach()))
    return (teacher.exp() * (teacher - student)).sum(dim=1).mean()


def occlusion_from_disparity(disparity: Tensor) -> Tensor:
    """Return (B, H, W) uint8 of a left disparity (B, H, W): seen, hidden or out of frame.

    Pixels are put where they land in the right view; of two that land in one column the nearer
    is seen. A disparity of NaN makes no claim and hides nothing: out of frame.
    """
    known = disparity.nan_to_num(nan=torch.inf)
    columns = torch.arange(disparity.shape[2], device=disparity.device)
    landing = (columns - known).clamp_min(-1.0).round()
    outside = landing < 0
    index = landing.clamp_min(0).long()
    nearest = torch.zeros_like(disparity).scatter_reduce(
        2, index, known.masked_fill(outside, 0.0), 'amax'
    )
    hidden = known < nearest.gather(2, index) - HIDDEN_BY_PX
    occlusion = torch.full_like(index, SEEN, dtype=torch.uint8).masked_fill(hidden, HIDDEN)
    return occlusion.masked_fill(outside, OUT_OF_FRAME)


def teacher_labels(
    disparity: Tensor, confidence: Tensor, min_confidence: float
) -> dict[str, Tensor]:
    """Return what takes the place of ground truth where a teacher gives it.

    Args:
        disparity: (B, H, W) px.
        confidence: (B, H, W), probability that it is right.
        min_confidence: Below, there is nothing to learn from the disparity.

    Returns:
        `disparity` with NaN where the teacher is not sure enough, `all_disparity` without,
        `confidence`, `occlusion` as it follows from the disparity.
    """
    return {
        'disparity': disparity.masked_fill(~(confidence >= min_confidence), torch.nan),
        'all_disparity': disparity,
        'confidence': confidence,
        'occlusion': occlusion_from_disparity(disparity),
    }


def feature_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    part: str,
    grid: tuple[int, int],
    projector: FeatureProjector,
    margin: float,
) -> tuple[Tensor, Tensor]:
    """Return the cosine-margin loss of both views' tokens, and the share below the margin.

    Means over the data are taken off both sides.

    Args:
        student, teacher: `encoder1`, ... (B, h * w, C), as in `training.frozen_teacher`.
        part: 'encoder' or 'decoder'.
        grid: Rows h and columns w.
        projector: From the student's channels to the teacher's.
        margin: Cosine from which a token counts as aligned.
    """
    maps = [
        torch.cat([feature_map(tokens[f'{part}{view}'], grid) for view in (1, 2)])
        for tokens in (student, teacher)
    ]
    loss, monitors = cosine_margin(maps[0], maps[1], projector, margin, projector.means)
    return loss, monitors['below_margin']


def flight_losses(
    output: dict[str, Tensor],
    batch: dict[str, Tensor],
    weights: LossRecipe,
    lesson: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the enabled losses, and each one before weighting.

    Feature alignment is not among them: its projectors belong to the learner.

    Args:
        output: Of `FlightStudent.forward`.
        batch: `disparity` (B, H, W) px with NaN in the sky, `occlusion` (B, H, W); of a teacher
            as `teacher_labels` gives them. `left`, `right` (B, 1, H, W) for `photometric`.
        weights: Losses of weight 0 are not computed.
        lesson: The teacher's, with `logits` where `soft_bins` is on.

    Raises:
        ModelError: An enabled loss lacks what it needs; says what.
    """
    target = batch['disparity']
    coarse, fine = cell_median(target, 4), cell_median(target, 2)  # (B, H/4, W/4), (B, H/2, W/2)
    near_edges = edge_weights(target, weights.edge_weight)
    near_edges2, near_edges4 = (F.avg_pool2d(near_edges[:, None], n)[:, 0] for n in (2, 4))
    seen4, seen2 = all_seen(batch['occlusion'], 4), all_seen(batch['occlusion'], 2)
    upsampled = output['disparity_upsampled'][:, 0]  # (B, H/2, W/2)
    # The matcher at stride 2 sees offsets of 2 px around where the coarse estimate put it.
    offset = (fine - upsampled.detach()) / 2 + output['match'].shape[1] // 2
    lesson = lesson or {}
    if weights.soft_bins and 'logits' not in lesson:
        raise ModelError("loss 'soft_bins' is enabled but the teacher gives no 'logits'")
    if weights.photometric and not ('left' in batch and 'right' in batch):
        raise ModelError("loss 'photometric' is enabled but the batch has no 'left' and 'right'")
    enabled: dict[str, Callable[[], Tensor]] = {
        'disparity': lambda: smooth_l1(output['disparity'], target, near_edges),
        'coarse': lambda: smooth_l1(output['disparity_coarse'][:, 0], coarse, near_edges4),
        'first': lambda: smooth_l1(output['disparity_first'][:, 0], coarse, near_edges4),
        'upsampled': lambda: smooth_l1(upsampled, fine, near_edges2),
        'bins': lambda: bin_histogram_entropy(
            output['logits'], cells(target, MATCH_STRIDE) / MATCH_STRIDE
        ),
        'correlation': lambda: bin_cross_entropy(
            output['correlation'], coarse / MATCH_STRIDE, seen4
        ),
        'match': lambda: bin_cross_entropy(output['match'], offset, seen2),
        'confidence': lambda: scale_loss(
            output['log_scale'],
            output['disparity'],
            batch.get('all_disparity', target),
            batch.get('confidence'),
        ),
        'soft_bins': lambda: bin_divergence(output['logits'], lesson['logits']),
        'photometric': lambda: _photometric_loss(output['disparity'], batch),
    }
    terms = {name: loss() for name, loss in enabled.items() if getattr(weights, name)}
    total = sum(getattr(weights, name) * term for name, term in terms.items())
    return total, terms


def _photometric_loss(disparity: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    left, right = batch['left'], batch['right']
    hidden = occlusion_from_disparity(disparity.detach()) != SEEN
    mask = photometric_mask(left, right, disparity, batch['disparity'], hidden)
    return explained(left, right, disparity, mask)
