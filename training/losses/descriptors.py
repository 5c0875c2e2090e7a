"""Losses over descriptors at corresponding pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.terms import masked_mean, Monitors, Pair

MIN_PROBABILITY = 1e-8


def gather_pixels(maps: Tensor, pixels: Tensor) -> Tensor:
    """Return values (B, N, ...) of maps (B, H, W, ...) at integer pixels (B, N, 2), x then y."""
    batch = torch.arange(maps.shape[0], device=maps.device)[:, None]
    return maps[batch, pixels[..., 1], pixels[..., 0]]


def infonce(descriptors1: Tensor, descriptors2: Tensor, temperature: float = 0.05) -> Tensor:
    """Return (B, N) negative log probabilities of the N matches, in both directions.

    Args:
        descriptors1, descriptors2: (B, N, D) unit length, row i of one matching row i of the
            other. Every other row is a negative.
        temperature: Similarities are divided by it.
    """
    logits = torch.einsum('bnd,bmd->bnm', descriptors1.float(), descriptors2.float()) / temperature
    floor = torch.tensor(MIN_PROBABILITY, device=logits.device).log()
    rows = logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    columns = logits.log_softmax(dim=1).diagonal(dim1=1, dim2=2)
    return -torch.maximum(rows, floor) - torch.maximum(columns, floor)


def confidence_weighted_matching(
    descriptors: Pair,
    descriptor_confidence: Pair,
    correspondences: Pair,
    valid: Tensor,
    temperature: float = 0.05,
    alpha: float = 10.0,
) -> tuple[Tensor, Monitors]:
    """Return the mean of loss * c - alpha * ln c over valid matches.

    Args:
        descriptors, correspondences, valid, temperature: As in `matching`.
        descriptor_confidence: Two (B, H, W), positive; c is the mean of the two ends' values.
        alpha: Reward of being sure.
    """
    losses = _match_losses(descriptors, correspondences, temperature)
    ends = [
        gather_pixels(confidence.float(), pixels)
        for confidence, pixels in zip(descriptor_confidence, correspondences, strict=True)
    ]
    confidence = (ends[0] + ends[1]) / 2.0
    loss = masked_mean(losses * confidence - alpha * confidence.log(), valid)
    monitors = {
        'matching': masked_mean(losses, valid).detach(),
        'matching_conf': loss.detach(),
        'desc_conf_mean': masked_mean(confidence, valid).detach(),
    }
    return loss, monitors


def _match_losses(descriptors: Pair, correspondences: Pair, temperature: float) -> Tensor:
    ends = [
        gather_pixels(maps, pixels)
        for maps, pixels in zip(descriptors, correspondences, strict=True)
    ]
    return infonce(ends[0], ends[1], temperature)
