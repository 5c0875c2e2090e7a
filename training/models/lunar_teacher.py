"""The in-tree teacher: a flight network several times wider and deeper, and its pointmaps.

Its decoder blocks attend over all token rows as MASt3R's do. It matches along rows, because that
can be trained from nothing at a small scale; pointmaps of both views follow from its disparities
by geometry, so that it can also teach students of the MASt3R kind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.models.flight import FlightConfig, FlightStudent

# Wide where features are coarse: that is where context is, and where it costs little.
LUNAR_TEACHER = FlightConfig(
    encoder_channels=(16, 32, 64, 192),
    decoder_width=192,
    decoder_depth=6,
    decoder_heads=6,
    mlp_ratio=4.0,
    band_rows=0,
    hourglass_channels=(32, 96, 160, 192),
)
# Sky and unmatched ground have disparities near zero. Their points are put at this many median
# depths: far, but not so far that they outweigh all others.
FARTHEST = 20.0


def match_both_views(
    network: FlightStudent, left: Tensor, right: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the output for a pair, and `disparity` and `confidence_logit` of the right view.

    The right view is matched as the left view of the mirrored pair.

    Args:
        network: In evaluation mode.
        left, right: (B, 1, H, W) in [0, 1].
    """
    mirrored = network(right.flip(-1), left.flip(-1))
    names = ('disparity', 'confidence_logit')
    return network(left, right), {name: mirrored[name].flip(-1) for name in names}


def pointmaps_from_disparity(
    left: Tensor, right: Tensor, intrinsics: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the points of both views in the left camera's frame.

    The unit is the median depth of the left view: scale is left to the rig's calibration. Points
    further than `FARTHEST` units, sky among them, are put at that depth.

    Args:
        left, right: (B, H, W) disparities of either view, px, column left minus column right.
            NaN where unknown: that has no part in the median, and is put furthest.
        intrinsics: (B, 3, 3) of both cameras, px.

    Returns:
        Two (B, H, W, 3).
    """
    median = left.flatten(1).nanmedian(dim=1).values.nan_to_num(0.0)
    median = median.clamp_min(torch.finfo(left.dtype).eps)[:, None, None]
    points = []
    for disparity, is_right in ((left.nan_to_num(0.0), False), (right.nan_to_num(0.0), True)):
        depth = median / torch.maximum(disparity, median / FARTHEST)
        x, y = _rays(intrinsics.to(disparity), disparity.shape[1:])
        # Depth is fx * baseline / disparity: with depth 1 at the median disparity, this is the
        # baseline, by which the right camera stands to the right.
        baseline = median / intrinsics[:, 0, 0].to(disparity)[:, None, None]
        points.append(torch.stack([x * depth + is_right * baseline, y * depth, depth], dim=-1))
    return points[0], points[1]


def _rays(intrinsics: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return x and y (B, H, W) of each pixel's ray at depth 1."""
    height, width = size
    columns = torch.arange(width, device=intrinsics.device, dtype=intrinsics.dtype)
    rows = torch.arange(height, device=intrinsics.device, dtype=intrinsics.dtype)
    fx, fy, cx, cy = (intrinsics[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x, y = (columns - cx) / fx, (rows[:, None] - cy) / fy
    return x.expand(-1, height, -1), y.expand(-1, -1, width)
