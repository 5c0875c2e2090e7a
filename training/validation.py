"""Accuracy of a student on full rendered frames, at every pixel with ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lunar_stereo_recon.models.flight import FlightStudent
from training.data import list_samples, read_sample


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
    paths = list_samples([folder])
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(limit, len(paths))).astype(int)]
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
