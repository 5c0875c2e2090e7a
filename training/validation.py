"""Accuracy of a student on full rendered frames, at every pixel with ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.models.flight import FlightStudent
from lunar_stereo_recon.models.mast3r import Mast3r
from training.data import list_samples, read_sample
from training.students import rgb


def spread_samples(folder: str | Path, limit: int) -> list[Path]:
    """Return at most `limit` files of a folder, evenly spread over it."""
    paths = list_samples([folder])
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(limit, len(paths))).astype(int)]


@torch.no_grad()
def predict(
    student: FlightStudent, left: np.ndarray, right: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return disparity (px) and confidence of grey (H, W) images, both (H, W) float32."""
    views = [torch.from_numpy(view)[None, None].to(device) for view in (left, right)]
    output = student(*views)
    return (
        output['disparity'][0].float().cpu().numpy(),
        output['confidence_logit'][0].float().sigmoid().cpu().numpy(),
    )


def validate(
    student: FlightStudent, folder: str | Path, device: torch.device, limit: int = 24
) -> dict[str, float]:
    """Return EPE in px and shares of wrong pixels in per cent, pooled over pixels.

    Args:
        student: Any network with the output of `FlightStudent`.
        folder: Full frames; sizes are multiples of 32.
        device: Where to run.
        limit: Frames at the most, evenly spread over the folder.
    """
    student.eval()
    paths = spread_samples(folder, limit)
    errors, shadows, confidences = [], [], []
    for path in paths:
        sample = read_sample(path)
        disparity, confidence = predict(student, sample['left'], sample['right'], device)
        valid = np.isfinite(sample['disparity'])
        errors.append(np.abs(disparity - sample['disparity'])[valid])
        shadows.append(sample['shadow'][valid])
        confidences.append(confidence[valid])
    error, shadow = np.concatenate(errors), np.concatenate(shadows)
    confidence = np.concatenate(confidences)
    figures = {'epe': float(error.mean())}
    for threshold in (0.5, 1.0, 2.0):
        figures[f'bad{threshold:g}'] = 100 * float((error > threshold).mean())
    if shadow.any():
        figures['bad2_shadow'] = 100 * float((error[shadow] > 2).mean())
    figures['confidence_gap'] = float(confidence.mean() - (error < 1).mean())
    return figures


@torch.no_grad()
def validate_pointmaps(
    student: Mast3r, folder: str | Path, device: torch.device, limit: int = 24
) -> dict[str, float]:
    """Return errors of the left view's depth up to scale, in per cent, means over frames.

    Depth is the reciprocal of disparity; scales meet at the median of each frame.

    Args:
        student: In any mode; left in evaluation mode.
        folder: Full frames; sizes are multiples of 16.
        device: Where to run.
        limit: Frames at the most, evenly spread over the folder.
    """
    student.eval()
    relative, within = [], []
    for path in spread_samples(folder, limit):
        sample = read_sample(path)
        views = [torch.from_numpy(sample[view])[None, None] for view in ('left', 'right')]
        left, right = (rgb(view.to(device)) for view in views)
        predicted = student(left, right)['pointmap1'][0, ..., 2].float().cpu().numpy()
        valid = sample['disparity'] > 0  # False where NaN
        if not valid.any():
            continue
        ratio = predicted[valid] * sample['disparity'][valid]
        ratio = ratio / np.median(ratio)
        relative.append(np.abs(ratio - 1).mean())
        within.append((np.maximum(ratio, 1 / np.where(ratio > 0, ratio, np.nan)) < 1.05).mean())
    if not relative:
        raise InputError(f'{folder}: no frame with a positive disparity')
    return {
        'abs_rel': 100 * float(np.mean(relative)),
        'delta1.05': 100 * float(np.mean(within)),
    }


def validate_student(
    student: nn.Module, folder: str | Path, device: torch.device
) -> dict[str, float]:
    """Return the figures of a student of either kind; arguments as for `validate`."""
    if isinstance(student, FlightStudent):
        return validate(student, folder, device)
    if isinstance(student, Mast3r):
        return validate_pointmaps(student, folder, device)
    raise InputError(f'{type(student).__name__} cannot be validated')
