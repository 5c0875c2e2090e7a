"""Losses over pointmaps and their confidences; both views are in camera 1's frame."""

from __future__ import annotations

import torch
from torch import Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import InputError
from training.losses.terms import masked_mean, MIN_DISTANCE, Monitors, Pair


def average_distance(points: Pair, masks: Pair) -> Tensor:
    """Return (B,) mean distance to the origin over the valid points of both views.

    Args:
        points: Two (B, H, W, 3); anything, NaN too, where the mask is False.
        masks: Two (B, H, W) bool.
    """
    total: Tensor | float = 0.0
    count: Tensor | float = 0.0
    for view, mask in zip(points, masks, strict=True):
        view = view.float().masked_fill(~mask[..., None], 0.0)
        total = total + _length(view).sum(dim=(1, 2))
        count = count + mask.sum(dim=(1, 2))
    return (torch.as_tensor(total) / (torch.as_tensor(count) + MIN_DISTANCE)).clamp(
        min=MIN_DISTANCE
    )


def normalise_pointmaps(
    pred: Pair, target: Pair, masks: Pair, metric: bool | Tensor
) -> tuple[Pair, Pair]:
    """Return prediction and target, each divided by an average distance.

    Args:
        pred, target: Two (B, H, W, 3) each, camera 1's frame.
        masks: Two (B, H, W) bool, True where the target is valid.
        metric: True, or (B,) bool: the prediction has the target's unit, and is divided by the
            target's factor. False: scale is free, each side is divided by its own factor.

    Returns:
        The scaled prediction and target.
    """
    target_factor = average_distance(target, masks)
    pred_factor = average_distance(pred, masks)
    is_metric = torch.as_tensor(metric, device=target_factor.device).expand_as(target_factor)
    pred_factor = torch.where(is_metric, target_factor, pred_factor)
    scaled_pred = (_divide(pred[0], pred_factor), _divide(pred[1], pred_factor))
    scaled_target = (_divide(target[0], target_factor), _divide(target[1], target_factor))
    return scaled_pred, scaled_target


def pointmap_errors(
    pred: Pair,
    target: Pair,
    masks: Pair,
    metric: bool | Tensor,
    sky: Pair | None = None,
    sky_error: float = 2.0,
) -> tuple[Pair, Pair]:
    """Return Euclidean errors (B, H, W) of both views after scaling, and where they count.

    Args:
        pred, target, masks, metric: As in `normalise_pointmaps`.
        sky: Two (B, H, W) bool; sky without a valid target joins with a fixed error, so that
            the confidence learns to fall there.
        sky_error: That error, in average distances.

    Returns:
        Errors, zero where they do not count, and two bool masks.
    """
    scaled_pred, scaled_target = normalise_pointmaps(pred, target, masks, metric)
    errors, counted = [], []
    for view in (0, 1):
        valid = masks[view]
        difference = (scaled_pred[view] - scaled_target[view]).masked_fill(~valid[..., None], 0.0)
        error, count = _length(difference), valid
        if sky is not None:
            error = error.masked_fill(sky[view] & ~valid, sky_error)
            count = valid | sky[view]
        errors.append(error)
        counted.append(count)
    return (errors[0], errors[1]), (counted[0], counted[1])


def confidence_weighted_regression(
    pred: Pair,
    target: Pair,
    masks: Pair,
    pred_confidence: Pair,
    metric: bool | Tensor = False,
    sky: Pair | None = None,
    alpha: float = 0.2,
) -> tuple[Tensor, Monitors]:
    """Return the mean of error * c - alpha * ln c of each view, summed (MASt3R's ConfLoss).

    Args:
        pred, target, masks, metric, sky: As in `pointmap_errors`.
        pred_confidence: Two (B, H, W), raw, >= 1.
        alpha: Reward of being sure.
    """
    errors, counted = pointmap_errors(pred, target, masks, metric, sky)
    losses = []
    for error, count, confidence in zip(errors, counted, pred_confidence, strict=True):
        confidence = confidence.float()
        losses.append(masked_mean(error * confidence - alpha * confidence.log(), count))
    monitors = _pointmap_monitors(errors, counted)
    monitors.update(conf_loss1=losses[0].detach(), conf_loss2=losses[1].detach())
    return losses[0] + losses[1], monitors


def teacher_weighted_regression(
    pred: Pair,
    target: Pair,
    masks: Pair,
    pred_confidence: Pair,
    teacher_confidence: Pair,
    metric: bool | Tensor = False,
    sky: Pair | None = None,
    gamma: float = 0.2,
) -> tuple[Tensor, Monitors]:
    """Weight errors by the teacher's confidence, and teach that confidence.

    Of each view the mean of error * teacher confidence, plus gamma times the mean absolute
    difference of both confidences over the same pixels; the views are summed.

    Args:
        pred, target, masks, metric, sky: As in `pointmap_errors`.
        pred_confidence, teacher_confidence: Two (B, H, W) each, raw, >= 1.
        gamma: Weight of the confidence term.
    """
    errors, counted = pointmap_errors(pred, target, masks, metric, sky)
    weighted: list[Tensor] = []
    differences: list[Tensor] = []
    for view in (0, 1):
        teacher = teacher_confidence[view].float()
        weighted.append(masked_mean(errors[view] * teacher.clamp(min=0.0), counted[view]))
        difference = (pred_confidence[view].float() - teacher).abs()
        differences.append(masked_mean(difference, counted[view]))
    confidence_l1 = differences[0] + differences[1]
    monitors = _pointmap_monitors(errors, counted)
    monitors['conf_l1'] = confidence_l1.detach()
    return weighted[0] + weighted[1] + gamma * confidence_l1, monitors


def pointmap_gradient(
    pred: Pair, target: Pair, masks: Pair | None = None, xy_weight: float = 0.1
) -> tuple[Tensor, Monitors]:
    """Compare the image gradients of pointmaps, in both views.

    Of each view the mean absolute difference of Sobel gradients of z, along x and along y, plus
    `xy_weight` times the same of the x and y coordinates. Masks act on the z term alone, as in
    the published form; targets must be finite everywhere.

    Args:
        pred, target: Two (B, H, W, 3) each.
        masks: Two (B, H, W) bool, or None for all pixels.
        xy_weight: Weight of the x and y coordinates.

    Raises:
        InputError: A target is not finite (a teacher's pointmap always is).
    """
    losses = []
    for view in (0, 1):
        if not torch.isfinite(target[view]).all():
            raise InputError(f'gradient loss: target pointmap {view + 1} has values not finite')
        difference = sobel(pred[view].float()) - sobel(target[view].float())
        difference = difference.abs().sum(dim=1)  # (B, H, W, 3): along x and along y, added
        z = difference[..., 2]
        z_mean = z.mean() if masks is None else masked_mean(z, masks[view])
        losses.append(z_mean + xy_weight * difference[..., :2].mean(dim=(0, 1, 2)).sum())
    monitors = {'gradient1': losses[0].detach(), 'gradient2': losses[1].detach()}
    return losses[0] + losses[1], monitors


def sobel(maps: Tensor) -> Tensor:
    """Return gradients (B, 2, H, W, C), along x then y, of maps (B, H, W, C); units per pixel."""
    kernel = maps.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4.0
    weight = torch.stack([kernel, kernel.T])[:, None]  # (2, 1, 3, 3)
    batch, height, width, channels = maps.shape
    planes = maps.permute(0, 3, 1, 2).reshape(-1, 1, height, width)  # (B * C, 1, H, W)
    padded = F.pad(planes, (1, 1, 1, 1), mode='replicate')
    gradients = F.conv2d(padded, weight).reshape(batch, channels, 2, height, width)
    return gradients.permute(0, 2, 3, 4, 1)


def _length(vectors: Tensor) -> Tensor:
    # torch's norm has a zero gradient at zero, as masked points need.
    return torch.linalg.vector_norm(vectors, dim=-1)


def _divide(points: Tensor, factor: Tensor) -> Tensor:
    return points.float() / factor.view(-1, 1, 1, 1)


def _pointmap_monitors(errors: Pair, counted: Pair) -> Monitors:
    monitors = {}
    for view in (0, 1):
        monitors[f'error{view + 1}'] = masked_mean(errors[view], counted[view]).detach()
        monitors[f'valid{view + 1}'] = counted[view].float().mean()
    return monitors
