"""Accuracy of a student on frames that were never trained on, at every pixel with ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import InputError
from training.data.batches import list_samples, read_sample
from training.models.flight import FlightStudent
from training.models.mast3r import Mast3r
from training.recipe import DataRecipe
from training.students import rgb

# At most this many frames are looked at.
FRAMES = 24


def spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` of the numbers below `count`, evenly spread."""
    return np.linspace(0, count - 1, min(limit, count)).astype(int).tolist()


def spread_samples(folder: str | Path, limit: int) -> list[Path]:
    """Return at most `limit` files of a folder, evenly spread over it."""
    paths = list_samples([folder])
    return [paths[i] for i in spread(len(paths), limit)]


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
    student: FlightStudent, folder: str | Path, device: torch.device, limit: int = FRAMES
) -> dict[str, float]:
    """Return EPE in px and shares of wrong pixels in per cent, pooled over pixels.

    Args:
        student: Any network with the output of `FlightStudent`.
        folder: Full frames; sizes are multiples of 32.
        device: Where to run.
        limit: Largest number of frames, evenly spread over the folder.
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


@dataclass(frozen=True)
class DepthFrame:
    """A pair with the left view's depth.

    Attributes:
        left, right: (1, C, H, W) in [0, 1], C 1 or 3; sides are multiples of 16.
        depth: (H, W), any unit, NaN unknown.
    """

    left: Tensor
    right: Tensor
    depth: NDArray[np.float32]


def rendered_frames(folder: str | Path, limit: int = FRAMES) -> Iterator[DepthFrame]:
    """Yield full rendered frames, evenly spread; depth is the reciprocal of disparity."""
    for path in spread_samples(folder, limit):
        sample = read_sample(path)
        left, right = (torch.from_numpy(sample[view])[None, None] for view in ('left', 'right'))
        with np.errstate(divide='ignore', invalid='ignore'):
            depth = np.where(sample['disparity'] > 0, 1 / sample['disparity'], np.nan)
        yield DepthFrame(left, right, depth)


def stereolunar_frames(recipe: DataRecipe, limit: int = FRAMES) -> Iterator[DepthFrame]:
    """Yield pairs of the recipe's folder for validation, evenly spread, cut to its crop's size."""
    # Needs OpenEXR, which rendered pairs do not.
    from training.data.stereolunar import fitted, list_view_pairs, read_view

    pairs = list_view_pairs([recipe.validation], recipe.max_frame_distance)
    size = recipe.crop_height, recipe.crop_width
    for index in spread(len(pairs), limit):
        left, right = (fitted(read_view(stem), *size) for stem in pairs[index])
        views = [torch.from_numpy(view.image).permute(2, 0, 1)[None] for view in (left, right)]
        yield DepthFrame(views[0], views[1], left.depth)


@torch.no_grad()
def validate_pointmaps(
    student: Mast3r, frames: Iterable[DepthFrame], device: torch.device
) -> dict[str, float]:
    """Return errors of the left view's depth up to scale, in per cent, means over frames.

    Scales meet at the median of each frame.

    Args:
        student: In any mode; left in evaluation mode.
        frames: Those without any known depth are passed over.
        device: Where to run.

    Raises:
        InputError: No frame has a known depth.
    """
    student.eval()
    relative, within = [], []
    for frame in frames:
        valid = np.isfinite(frame.depth)
        if not valid.any():
            continue
        left, right = (rgb(view.to(device)) for view in (frame.left, frame.right))
        predicted = student(left, right)['pointmap1'][0, ..., 2].float().cpu().numpy()
        ratio = predicted[valid] / frame.depth[valid]
        ratio = ratio / np.median(ratio)
        relative.append(np.abs(ratio - 1).mean())
        within.append((np.maximum(ratio, 1 / np.where(ratio > 0, ratio, np.nan)) < 1.05).mean())
    if not relative:
        raise InputError('validation: no frame with a known depth')
    return {
        'abs_rel': 100 * float(np.mean(relative)),
        'delta1.05': 100 * float(np.mean(within)),
    }


def check_frames(recipe: DataRecipe) -> None:
    """See before a run that there are frames to validate on, where the recipe names a folder.

    Raises:
        InputError: The folder holds none.
    """
    if recipe.validation and recipe.kind == 'stereolunar':
        next(stereolunar_frames(recipe, limit=1))
    elif recipe.validation:
        list_samples([recipe.validation])


def validate_student(
    student: nn.Module, recipe: DataRecipe, device: torch.device
) -> dict[str, float]:
    """Return the figures of a student of either kind on the recipe's frames for validation.

    Raises:
        InputError: The frames do not suit the student.
    """
    if isinstance(student, Mast3r):
        lunar = recipe.kind == 'stereolunar'
        frames = stereolunar_frames(recipe) if lunar else rendered_frames(recipe.validation)
        return validate_pointmaps(student, frames, device)
    if isinstance(student, FlightStudent):
        return validate(student, recipe.validation, device)
    raise InputError(f'{type(student).__name__} cannot be validated')
