"""The pose between two views from matched descriptors, and how far it is off."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float64]

# Every so-many-th pixel of the left view, along rows and columns, looks for its match.
STEP = 8
# Matches nearer to a border have half of what they are told by cut off.
BORDER_PX = 3
MOST_MATCHES = 2000
MIN_MATCHES = 8
# Descriptors that are compared with all pixels at once.
BLOCK = 128
INLIER_PX = 1.0
CERTAINTY = 0.9999
AUC_DEG = (5, 10, 20)
# Recall is sampled so finely.
AUC_STEP_DEG = 0.1


def reciprocal_matches(
    left: NDArray[np.float32], right: NDArray[np.float32], step: int = STEP
) -> tuple[Pixels, Pixels]:
    """Return mutual nearest neighbours (N, 2), x then y, of descriptors (H, W, D) of both views.

    Of the left view every `step`-th pixel is asked; its match in the right one must have none
    better among all pixels of the left.
    """
    height, width = left.shape[:2]
    rows, columns = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    rows, columns = rows.ravel(), columns.ravel()
    there = _nearest(left[rows, columns], right)
    y, x = np.divmod(there, right.shape[1])
    back = _nearest(right[y, x], left)
    mutual = back == rows * width + columns
    one = np.stack([columns, rows], axis=1)[mutual].astype(np.float64)
    other = np.stack([x, y], axis=1)[mutual].astype(np.float64)
    inside = np.ones(len(one), bool)
    for pixels, view in ((one, left), (other, right)):
        size = np.array([view.shape[1], view.shape[0]])
        inside &= ((pixels >= BORDER_PX) & (pixels < size - BORDER_PX)).all(axis=1)
    return one[inside], other[inside]


def _nearest(descriptors: NDArray[np.float32], view: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return which pixel (N,) of a view (H, W, D), row-major, is most like each of (N, D)."""
    every = view.reshape(-1, view.shape[-1]).T
    # In blocks: the similarities of all would fill gigabytes.
    blocks = np.array_split(descriptors, max(1, -(-len(descriptors) // BLOCK)))
    return np.concatenate([(block @ every).argmax(axis=1) for block in blocks])


def strongest(
    matches: tuple[Pixels, Pixels], weights: Sequence[NDArray[np.float32]]
) -> tuple[Pixels, Pixels]:
    """Return the 2,000 matches whose less sure end, by maps (H, W) of both views, is surest."""
    ends = [
        weight[pixels[:, 1].astype(int), pixels[:, 0].astype(int)]
        for weight, pixels in zip(weights, matches, strict=True)
    ]
    order = np.argsort(-np.minimum(*ends), kind='stable')[:MOST_MATCHES]
    return matches[0][order], matches[1][order]


def pose_from_matches(
    left: Pixels,
    right: Pixels,
    intrinsics: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return rotation (3, 3) and direction (3,) from left to right camera; None if there is none.

    By the essential matrix (five points, RANSAC); views may have cameras of their own.
    """
    if len(left) < MIN_MATCHES:
        return None
    rays = [
        ((pixels - matrix[:2, 2]) / (matrix[0, 0], matrix[1, 1])).astype(np.float64)
        for pixels, matrix in zip((left, right), intrinsics, strict=True)
    ]
    focal = float(np.mean([matrix[0, 0] for matrix in intrinsics]))
    cv2.setRNGSeed(0)
    essential, inliers = cv2.findEssentialMat(
        *rays, np.eye(3), method=cv2.RANSAC, prob=CERTAINTY, threshold=INLIER_PX / focal
    )
    if essential is None or essential.shape != (3, 3):
        return None
    # Far points on a plane are no reason to doubt a pose: no limit of their distance.
    _, rotation, direction, _ = cv2.recoverPose(essential, *rays, np.eye(3), mask=inliers)
    return rotation, direction[:, 0]


def pose_errors(
    found: tuple[NDArray[np.float64], NDArray[np.float64]] | None, truth: NDArray[np.float64]
) -> tuple[float, float]:
    """Return errors of rotation and of direction, degrees; infinite where none was found.

    Args:
        found: Rotation and direction.
        truth: (4, 4), from the left camera's frame to the right one's.
    """
    if found is None:
        return np.inf, np.inf
    rotation, direction = found
    cosine = (np.trace(rotation @ truth[:3, :3].T) - 1) / 2
    way = truth[:3, 3] / np.linalg.norm(truth[:3, 3])
    return tuple(  # type: ignore[return-value]
        float(np.degrees(np.arccos(np.clip(value, -1, 1))))
        for value in (cosine, direction @ way / np.linalg.norm(direction))
    )


def area_under_recall(errors: Sequence[float], limit_deg: float) -> float:
    """Return the area under the share of errors below an angle, up to a limit, per cent."""
    angles = np.linspace(0, limit_deg, round(limit_deg / AUC_STEP_DEG) + 1)
    recall = np.mean(np.asarray(errors)[:, None] <= angles, axis=0)
    return 100 * float(np.trapezoid(recall, angles)) / limit_deg
