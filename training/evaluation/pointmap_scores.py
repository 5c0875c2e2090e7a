"""How right a pointmap is: alignment, depth, distance between clouds, and the ground's shape.

Points are (H, W, 3) in the left camera's frame, NaN where unknown; the truth is in metres, the
prediction in any unit. Angles are in degrees, shares in per cent. Scores of a perfect prediction
are 0 (errors), 1 (correlations, SSIM) and 100 (shares within a threshold, agreement).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree

from lunar_stereo_recon.errors import InputError

Points = NDArray[np.float64]
Map = NDArray[np.float64]
Mask = NDArray[np.bool_]
Scores = dict[str, float]

MIN_POINTS = 10
# Points that are off by more than this many medians do not count in the alignment.
OUTLIER_MEDIANS = 3.0
ALIGNMENT_ROUNDS = 5
# Points of a cloud that are compared, drawn with a fixed seed.
CLOUD_POINTS = 20000
# Shares of points nearer than these are given, as shares of the scene's diameter.
NEAR = (0.001, 0.002, 0.005)
DELTA = 1.25
# A side that varies by no more than this share of the other is constant.
CONSTANT = 1e-9
SSIM_WINDOW = 7
ROUGHNESS_WINDOW = 5
HAZARD_DEG = (5, 10, 15, 20)


@dataclass(frozen=True)
class Similarity:
    """Rotation (3, 3), translation (3,) and scale: x becomes scale * rotation x + translation."""

    scale: float
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    def __call__(self, points: Points) -> Points:
        """Return points (..., 3) moved."""
        return self.scale * points @ self.rotation.T + self.translation


def least_squares_similarity(source: Points, target: Points) -> Similarity:
    """Return the similarity that brings source (N, 3) nearest to target (N, 3) (Umeyama)."""
    mean_source, mean_target = source.mean(axis=0), target.mean(axis=0)
    centred = source - mean_source
    u, values, vt = np.linalg.svd((target - mean_target).T @ centred / len(source))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * signs) @ vt
    scale = float((values * signs).sum() / centred.var(axis=0).sum())
    return Similarity(scale, rotation, mean_target - scale * rotation @ mean_source)


def align(source: Points, target: Points) -> Similarity:
    """Return the similarity of most points: those far off are left out, and it is fitted again.

    Raises:
        InputError: Fewer than ten pairs of points are finite, or they are all one point.
    """
    known = np.isfinite(source).all(-1) & np.isfinite(target).all(-1)
    source, target = source[known].astype(np.float64), target[known].astype(np.float64)
    if len(source) < MIN_POINTS or not np.ptp(source, axis=0).any():
        raise InputError(f'{len(source)} different points; {MIN_POINTS} are needed to align them')
    chosen = np.ones(len(source), bool)
    for _ in range(ALIGNMENT_ROUNDS):
        found = least_squares_similarity(source[chosen], target[chosen])
        distance = np.linalg.norm(found(source) - target, axis=1)
        near = distance <= OUTLIER_MEDIANS * np.median(distance)
        if (near == chosen).all() or near.sum() < MIN_POINTS:
            break
        chosen = near
    return found


def depth_scores(depth: Map, truth: Map) -> Scores:
    """Return scores of a depth map (H, W) where both are known and positive; in the truth's unit.

    Raises:
        InputError: There are fewer than ten such pixels.
    """
    valid = np.isfinite(depth) & np.isfinite(truth) & (depth > 0) & (truth > 0)
    if valid.sum() < MIN_POINTS:
        raise InputError(f'{valid.sum()} pixels with depth; {MIN_POINTS} are needed')
    found, true = depth[valid], truth[valid]
    logarithm = np.log(found / true)
    ratio = np.exp(np.abs(logarithm))
    return {
        'abs_rel': float(np.mean(np.abs(found - true) / true)),
        'mae': float(np.mean(np.abs(found - true))),
        'rmse': float(np.sqrt(np.mean((found - true) ** 2))),
        'silog': float(logarithm.std()),
        **{f'delta{k}': 100 * float((ratio < DELTA**k).mean()) for k in (1, 2, 3)},
        'pearson': correlation(found, true),
        'ssim': ssim(depth, truth, valid),
    }


def correlation(one: Map, other: Map) -> float:
    """Return Pearson's correlation; NaN where one side is constant, but for rounding."""
    spreads = one.std(), other.std()
    if min(spreads) <= CONSTANT * max(spreads):
        return float('nan')
    return float(np.corrcoef(one, other)[0, 1])


def ssim(one: Map, other: Map, valid: Mask) -> float:
    """Return the mean structural similarity over windows of 7 pixels that are known as a whole.

    The range is that of both maps together. NaN without any such window.
    """
    whole = _whole(valid, SSIM_WINDOW)
    if not whole.any():
        return float('nan')
    one, other = np.where(valid, one, 0.0), np.where(valid, other, 0.0)
    # Near the same level differences of squares would round away what varies.
    level = other[valid].mean()
    one, other = np.where(valid, one - level, 0.0), np.where(valid, other - level, 0.0)
    span = max(one[valid].max(), other[valid].max()) - min(one[valid].min(), other[valid].min())
    floors = ((0.01 * span) ** 2, (0.03 * span) ** 2)
    mean1, mean2 = (uniform_filter(image, SSIM_WINDOW) for image in (one, other))
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    variance1 = unbiased * (uniform_filter(one * one, SSIM_WINDOW) - mean1**2)
    variance2 = unbiased * (uniform_filter(other * other, SSIM_WINDOW) - mean2**2)
    covariance = unbiased * (uniform_filter(one * other, SSIM_WINDOW) - mean1 * mean2)
    top = (2 * mean1 * mean2 + floors[0]) * (2 * covariance + floors[1])
    bottom = (mean1**2 + mean2**2 + floors[0]) * (variance1 + variance2 + floors[1])
    return float((top[whole] / bottom[whole]).mean()) if span else 1.0


def cloud_scores(points: Points, truth: Points, near: Sequence[float] = NEAR) -> Scores:
    """Return distances between an aligned cloud and the true one, (N, 3) and (M, 3).

    Returns:
        `accuracy`, mean distance of predicted points from the nearest true one; `completeness`,
        the other way; `chamfer`, the mean of both; shares nearer than parts of the diameter.
    """
    rng = np.random.default_rng(0)
    clouds = []
    for cloud in (points, truth):
        cloud = cloud[np.isfinite(cloud).all(-1)]
        if len(cloud) > CLOUD_POINTS:
            cloud = cloud[np.sort(rng.choice(len(cloud), CLOUD_POINTS, replace=False))]
        clouds.append(cloud)
        rng = np.random.default_rng(0)  # the same places of both, where they are one grid
    there, back = (
        cKDTree(b).query(a)[0] for a, b in ((clouds[0], clouds[1]), (clouds[1], clouds[0]))
    )
    diameter = float(np.linalg.norm(np.ptp(clouds[1], axis=0)))
    shares = {}
    for part in near:
        name = f'{100 * part:g}%'
        shares[f'accuracy_under_{name}'] = 100 * float((there <= part * diameter).mean())
        shares[f'completeness_under_{name}'] = 100 * float((back <= part * diameter).mean())
    accuracy, completeness = float(there.mean()), float(back.mean())
    return {
        'accuracy': accuracy,
        'completeness': completeness,
        'chamfer': (accuracy + completeness) / 2,
        **shares,
    }


@dataclass(frozen=True)
class Ground:
    """The plane that fits the true points best: what slopes and heights refer to.

    Attributes:
        origin: (3,) on the plane.
        up: (3,) unit length, towards the camera.
    """

    origin: NDArray[np.float64]
    up: NDArray[np.float64]

    @classmethod
    def of(cls, truth: Points) -> Ground:
        """Return the plane of points (..., 3)."""
        known = truth[np.isfinite(truth).all(-1)]
        origin = known.mean(axis=0)
        up = np.linalg.svd(np.cov((known - origin).T))[0][:, 2]
        return cls(origin, up if up @ origin < 0 else -up)

    def heights(self, points: Points) -> Map:
        """Return (H, W) heights above the plane."""
        return (points - self.origin) @ self.up

    def slopes(self, points: Points) -> Map:
        """Return (H, W) angles between the surface and the plane, degrees; NaN at borders."""
        slopes = np.full(points.shape[:2], np.nan)
        across = points[1:-1, 2:] - points[1:-1, :-2]
        down = points[2:, 1:-1] - points[:-2, 1:-1]
        normal = np.cross(across, down)
        with np.errstate(invalid='ignore', divide='ignore'):
            cosine = np.abs(normal @ self.up) / np.linalg.norm(normal, axis=-1)
        slopes[1:-1, 1:-1] = np.degrees(np.arccos(np.clip(cosine, 0, 1)))
        return slopes


def terrain_scores(points: Points, truth: Points) -> Scores:
    """Return scores of the ground's shape, of aligned points and true ones, (H, W, 3).

    Returns:
        `slope_mae`, `slope_corr`; at 5, 10, 15 and 20 degrees `hazard_agree_N`,
        `hazard_false_N` (of safe pixels) and `hazard_miss_N` (of steep ones; NaN without any);
        correlations of relief (heights above the ground's plane), curvature and roughness, and
        mean errors of the last two.

    Raises:
        InputError: There are fewer than ten pixels with a slope.
    """
    ground = Ground.of(truth)
    found, true = ground.slopes(points), ground.slopes(truth)
    valid = np.isfinite(found) & np.isfinite(true)
    if valid.sum() < MIN_POINTS:
        raise InputError(f'{valid.sum()} pixels with a slope; {MIN_POINTS} are needed')
    found, true = found[valid], true[valid]
    scores = {
        'slope_mae': float(np.abs(found - true).mean()),
        'slope_corr': correlation(found, true),
    }
    for limit in HAZARD_DEG:
        steep, called = true >= limit, found >= limit
        scores[f'hazard_agree_{limit}'] = 100 * float((steep == called).mean())
        scores[f'hazard_false_{limit}'] = _share(called, ~steep)
        scores[f'hazard_miss_{limit}'] = _share(~called, steep)
    relief = [ground.heights(cloud) for cloud in (points, truth)]
    known = np.isfinite(relief[0]) & np.isfinite(relief[1])
    scores['relief_corr'] = correlation(relief[0][known], relief[1][known])
    for name, of in (('curvature', curvature), ('roughness', roughness)):
        here, there = of(relief[0]), of(relief[1])
        known = np.isfinite(here) & np.isfinite(there)
        scores[f'{name}_corr'] = correlation(here[known], there[known])
        scores[f'{name}_mae'] = float(np.abs(here - there)[known].mean())
    return scores


def _share(hits: Mask, of: Mask) -> float:
    return 100 * float(hits[of].mean()) if of.any() else float('nan')


def curvature(heights: Map) -> Map:
    """Return the Laplacian (H, W) of heights, per squared pixel; NaN at borders."""
    bent = np.full(heights.shape, np.nan)
    middle = heights[1:-1, 1:-1]
    rows = heights[2:, 1:-1] + heights[:-2, 1:-1]
    columns = heights[1:-1, 2:] + heights[1:-1, :-2]
    bent[1:-1, 1:-1] = rows + columns - 4 * middle
    return bent


def roughness(heights: Map) -> Map:
    """Return the standard deviation (H, W) of heights in windows of 5 pixels; NaN at borders."""
    known = np.isfinite(heights)
    filled = np.where(known, heights - heights[known].mean(), 0.0)
    mean, square = (uniform_filter(values, ROUGHNESS_WINDOW) for values in (filled, filled**2))
    return np.where(
        _whole(known, ROUGHNESS_WINDOW), np.sqrt(np.maximum(square - mean**2, 0.0)), np.nan
    )


def _whole(known: Mask, window: int) -> Mask:
    """Return where all pixels of a window are known and inside the image."""
    return uniform_filter(known.astype(np.float64), window, mode='constant') > 1 - 1e-9
