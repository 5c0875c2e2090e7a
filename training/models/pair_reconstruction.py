"""Reconstruct a rectified pair with a teacher or a student of the paper.

Images are brought to the size the networks were trained for: long side 512 pixels, both sides
cut about the centre to multiples of 16. The calibration goes along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor
import torch.nn.functional as F

from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration
from lunar_stereo_recon.errors import InputError
from training.models.heads import PATCH_SIZE
from training.models.mast3r import Mast3r
from training.models.pointmap import (
    calibration_from_pointmap,
    metric_scale,
    PointmapPrediction,
    reconstruct_pointmap,
)

LONG_SIDE = 512


@dataclass(frozen=True)
class NetworkWindow:
    """Size after scaling, and the part of it that the network sees, pixels."""

    scaled_width: int
    scaled_height: int
    left: int
    top: int
    width: int
    height: int

    def fit_image(self, image: Tensor) -> Tensor:
        """Return (3, height, width) of an image (3, H, W) in [0, 1].

        Antialiased bicubic; the official loader shrinks with Lanczos, a slightly sharper filter.
        """
        size = (self.scaled_height, self.scaled_width)
        if tuple(image.shape[-2:]) != size:
            image = F.interpolate(
                image[None], size, mode='bicubic', align_corners=False, antialias=True
            )[0].clamp(0, 1)
        rows = slice(self.top, self.top + self.height)
        return image[:, rows, self.left : self.left + self.width]

    def fit_calibration(self, calibration: StereoCalibration) -> StereoCalibration:
        """Return the calibration of the fitted images."""
        return calibration.resized(self.scaled_width, self.scaled_height).padded(
            left=-self.left,
            top=-self.top,
            right=self.left + self.width - self.scaled_width,
            bottom=self.top + self.height - self.scaled_height,
        )


def network_window(width: int, height: int, long_side: int = LONG_SIDE) -> NetworkWindow:
    """Return how an image of this size is fitted to the network.

    Raises:
        InputError: The image is empty, or so narrow that no 16 pixels are left of it.
    """
    if width < 1 or height < 1:
        raise InputError(f'image is {width}x{height}; it is empty')
    scale = long_side / max(width, height)
    scaled = round(width * scale), round(height * scale)
    cut = tuple(side // PATCH_SIZE * PATCH_SIZE for side in scaled)
    if min(cut) == 0:
        raise InputError(
            f'image of {width}x{height} becomes {scaled[0]}x{scaled[1]}; '
            f'each side needs at least {PATCH_SIZE} pixels'
        )
    left, top = ((whole - part) // 2 for whole, part in zip(scaled, cut, strict=True))
    return NetworkWindow(*scaled, left, top, *cut)


def rgb_tensor(image: NDArray[Any], white_level: float | None = None) -> Tensor:
    """Return (3, H, W) float32 in [0, 1] of a grey (H, W) or RGB (H, W, 3) uint8 or uint16 image.

    Grey images are repeated; `white_level` is the value that becomes 1, the type's maximum where
    None.

    Raises:
        InputError: Another shape or type.
    """
    if image.ndim not in (2, 3) or image.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f'image has shape {image.shape} and type {image.dtype}; '
            '(H, W) or (H, W, 3), uint8 or uint16, is needed'
        )
    white = white_level or np.iinfo(image.dtype).max
    channels = image[..., None].repeat(3, axis=2) if image.ndim == 2 else image
    scaled = np.clip(channels.astype(np.float32) / np.float32(white), 0, 1)
    return torch.from_numpy(scaled).permute(2, 0, 1).contiguous()


@torch.no_grad()
def predict_pointmaps(model: Mast3r, left: Tensor, right: Tensor) -> PointmapPrediction:
    """Return the prediction for two views (3, H, W) in [0, 1], on the model's device."""
    device = next(model.parameters()).device
    out = model(left[None].to(device), right[None].to(device))
    names = [f'{name}{view}' for name in ('pointmap', 'conf', 'desc') for view in (1, 2)]
    return PointmapPrediction(*(out[name][0].cpu().numpy() for name in names))


def reconstruct_pair(
    model: Mast3r,
    left: NDArray[Any],
    right: NDArray[Any],
    calibration: StereoCalibration | None,
    confidence_threshold: float = 0.0,
    long_side: int = LONG_SIDE,
    white_level: float | None = None,
) -> Reconstruction:
    """Reconstruct a rectified pair at the network's size.

    Args:
        model: A teacher or a student of the paper, in eval mode.
        left: (H, W) or (H, W, 3) RGB, uint8 or uint16.
        right: The same for the right image, of the same size.
        calibration: For this image size; the result is metric. Where None, the result is in the
            prediction's own unit and camera.
        confidence_threshold: In [0, 1); points below become NaN.
        long_side: Longer side of the network's input, pixels.
        white_level: Pixel value of white; the type's maximum where None.

    Raises:
        InputError: The images differ in size or cannot be used, or no scale can be found.
    """
    if left.shape[:2] != right.shape[:2]:
        raise InputError(
            f'left image is {left.shape[1]}x{left.shape[0]} but right image is '
            f'{right.shape[1]}x{right.shape[0]}'
        )
    window = network_window(left.shape[1], left.shape[0], long_side)
    views = [window.fit_image(rgb_tensor(image, white_level)) for image in (left, right)]
    prediction = predict_pointmaps(model, *views)
    if calibration is None:
        calibration, scale = calibration_from_pointmap(prediction), 1.0
    else:
        calibration = window.fit_calibration(calibration)
        scale = metric_scale(prediction, calibration)
    color = (views[0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    return reconstruct_pointmap(prediction, calibration, color, scale, confidence_threshold)
