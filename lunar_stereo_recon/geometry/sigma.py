"""One standard deviation of each pixel's disparity, in pixels, and of its depth, in metres.

A linear model of the logarithm, of the features that the confidence follows from and of how far
the fill moved the pixel, then a monotone curve. Both are fitted on data apart from training and
test, and travel in the model's metadata with the calibration of the confidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import itertools
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, StereoCalibration
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.geometry.bands import Band, over_bands
from lunar_stereo_recon.geometry.confidence import (
    FEATURES,
    LARGEST_WEIGHT,
    linear_document,
    linear_entry,
)

# Beside the features of the confidence: log10 of 1 + how far the fill moved the disparity, in
# steps of `FILL_STEP_PX`.
FILLED = 'filled'
FILL_STEP_PX = 0.05
# Range of the model and of its curve, log10 of pixels.
LOWEST_LOG10_PX, HIGHEST_LOG10_PX = -3.0, 2.0
CURVE_LEVELS = 4096
CURVE_KNOTS = 24
# Shares of a normal distribution within one and two standard deviations.
WITHIN_ONE, WITHIN_TWO = math.erf(1 / math.sqrt(2)), math.erf(2 / math.sqrt(2))
# Errors are fitted as if the logarithm of their density fell with the fourth root of the error:
# far more robust than a normal distribution, and the fit has one optimum all the same.
ERROR_POWER = 0.25
# The linear model is fitted on errors cut to this range, pixels: how wrong an outlier is says
# nothing about the others. The curve sees them whole.
SMALLEST_ERROR_PX, LARGEST_ERROR_PX = 1e-4, 8.0


@dataclass(frozen=True)
class SigmaCalibration:
    """Coefficients of the standard deviation of the disparity.

    Attributes:
        weights: Factor of each feature of `geometry.confidence.FEATURES` and of `FILLED` in the
            decimal logarithm; a feature that is not named counts zero.
        bias: Constant term.
        curve: Pairs (linear value, log10 of sigma in pixels), both ascending; linear in between,
            constant outside.

    Raises:
        ModelError: A feature is unknown, a number is not finite or too large, or the curve is
            empty, not ascending or out of range.
    """

    weights: Mapping[str, float]
    bias: float
    curve: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        known = (*FEATURES, FILLED)
        unknown = sorted(set(self.weights) - set(known))
        if unknown:
            raise ModelError(
                f'sigma calibration has unknown features {", ".join(unknown)}; known are '
                f'{", ".join(known)}'
            )
        numbers = [*self.weights.values(), self.bias, *itertools.chain(*self.curve)]
        if not (np.abs(numbers) <= LARGEST_WEIGHT).all():
            raise ModelError(
                f'sigma calibration holds a number that is not finite or beyond '
                f'{LARGEST_WEIGHT:g}: {self}'
            )
        if not self.curve or (np.diff(np.array(self.curve), axis=0) < 0).any():
            raise ModelError(f'sigma calibration curve is empty or not ascending: {self.curve}')
        if not all(LOWEST_LOG10_PX <= knot[1] <= HIGHEST_LOG10_PX for knot in self.curve):
            raise ModelError(
                f'sigma calibration curve is not within {LOWEST_LOG10_PX:g} and '
                f'{HIGHEST_LOG10_PX:g}: {self.curve}'
            )

    @classmethod
    def from_metadata(cls, entry: Mapping[str, Any] | None) -> SigmaCalibration | None:
        """Build from a model's `confidence_calibration`; None where that has no `sigma`.

        Raises:
            ModelError: An entry is missing, unknown or not a number.
        """
        if not entry or 'sigma' not in entry:
            return None
        return cls(*linear_entry(entry['sigma'], 'sigma of confidence_calibration'))

    def to_metadata(self) -> dict[str, Any]:
        """Return what `from_metadata` reads under `sigma`, ready for JSON."""
        return linear_document(self.weights, self.bias, self.curve)


def disparity_sigma(
    features: FloatImage, filled_px: FloatImage, calibration: SigmaCalibration
) -> FloatImage:
    """Return float32 pixels of any shape S, positive and finite.

    Args:
        features: (K, *S), the `FEATURES` of the confidence.
        filled_px: S, how far the fill moved the disparity, pixels; NaN counts as far.
        calibration: Calibration of the model.
    """
    knots = np.array(calibration.curve)
    levels = np.linspace(LOWEST_LOG10_PX, HIGHEST_LOG10_PX, CURVE_LEVELS)
    table = (10 ** np.interp(levels, knots[:, 0], knots[:, 1])).astype(np.float32)
    images = features.reshape(len(FEATURES), features.shape[1] if features.ndim > 1 else 1, -1)
    moved = np.asarray(filled_px, np.float32).reshape(images.shape[1:])
    sigma = np.empty_like(moved)

    def write(band: Band) -> None:
        rows = band.rows
        linear = _linear(images[:, rows], moved[rows], calibration)
        # fmin takes the other number where one is NaN: what says nothing is known to nothing.
        np.fmin(linear, np.float32(HIGHEST_LOG10_PX), out=linear)
        np.maximum(linear, np.float32(LOWEST_LOG10_PX), out=linear)
        linear -= np.float32(LOWEST_LOG10_PX)
        linear *= np.float32((CURVE_LEVELS - 1) / (HIGHEST_LOG10_PX - LOWEST_LOG10_PX))
        linear += np.float32(0.5)
        table.take(linear.astype(np.int32), out=sigma[rows], mode='clip')

    over_bands(moved.shape[0], 0, write)
    return sigma.reshape(features.shape[1:])


def _linear(
    features: FloatImage, filled_px: FloatImage, calibration: SigmaCalibration
) -> FloatImage:
    """Return (H, W) the linear model of (K, H, W) features and (H, W) pixels."""
    linear = filled_feature(filled_px)
    linear *= np.float32(calibration.weights.get(FILLED, 0.0))
    linear += np.float32(calibration.bias)
    # Not one matrix product: beside a network's threads, those of BLAS wait longer than they work.
    for name, feature in zip(FEATURES, features, strict=True):
        weight = calibration.weights.get(name, 0.0)
        if weight:
            cv2.scaleAdd(feature, weight, linear, dst=linear)
    return linear


def filled_feature(filled_px: FloatImage) -> FloatImage:
    """Return the feature `FILLED` of any shape."""
    steps = 1 + np.asarray(filled_px, np.float32) / np.float32(FILL_STEP_PX)
    feature = cv2.log(steps.reshape(-1, 1)).reshape(steps.shape)
    feature *= np.float32(1 / math.log(10))
    return feature


def depth_sigma(
    sigma_px: FloatImage, depth: FloatImage, calibration: StereoCalibration
) -> FloatImage:
    """Return one standard deviation of depth, (H, W) metres; NaN where depth or sigma is.

    To first order: depth^2 / (focal length in pixels * baseline) for each pixel of disparity.

    Args:
        sigma_px: (H, W) pixels.
        depth: (H, W) metres.
        calibration: Calibration of the pair.
    """
    factor = np.float32(1 / (calibration.fx * calibration.baseline_m))
    return np.asarray(sigma_px * (depth * depth * factor), np.float32)


def fit_sigma(
    features: NDArray[np.floating],
    filled_px: NDArray[np.floating],
    error_px: NDArray[np.floating],
    ridge: float = 1e-3,
) -> SigmaCalibration:
    """Fit sigma on pixels whose truth is known.

    Args:
        features: (K, N), the `FEATURES` of N pixels.
        filled_px: (N,), how far the fill moved them, pixels.
        error_px: (N,), their disparity errors; signs do not count.
        ridge: Penalty on the squared weights of the standardized features, per pixel.

    Raises:
        InputError: Shapes do not match, or a number is not finite.
    """
    size = np.abs(np.asarray(error_px, np.float64))
    filled = filled_feature(np.asarray(filled_px, np.float32)).astype(np.float64)
    if np.shape(features) != (len(FEATURES), size.size) or filled.shape != size.shape:
        raise InputError(
            f'features have shape {np.shape(features)}, fill {filled.shape}, errors {size.shape}; '
            f'{(len(FEATURES), size.size)} and twice {size.shape} are needed'
        )
    rows = np.vstack([np.asarray(features, np.float64), filled])
    if not size.size or not np.isfinite(rows).all() or not np.isfinite(size).all():
        raise InputError('sigma is fitted on finite features and errors of one pixel or more')
    mean, deviation = rows.mean(axis=1), rows.std(axis=1)
    scale = np.where(deviation > 1e-9, deviation, np.inf)  # a constant feature gets weight 0
    design = np.vstack([(rows - mean[:, None]) / scale[:, None], np.ones(size.size)])
    cut = np.clip(size, SMALLEST_ERROR_PX, LARGEST_ERROR_PX)
    solution = _scale_regression(design, cut, ridge) / math.log(10)
    weights = solution[:-1] / scale
    bias = float(solution[-1] - weights @ mean)
    named = dict(zip((*FEATURES, FILLED), weights.tolist(), strict=True))
    linear = np.clip(weights @ rows + bias, LOWEST_LOG10_PX, HIGHEST_LOG10_PX)
    return SigmaCalibration(named, bias, _curve(linear, size))


def normal_like_sigma(error: NDArray[np.floating]) -> float:
    """Return the sigma for which the errors are most like a normal distribution's.

    Of shares within one and two sigma, the one that is farther from 68.3 and 95.4 % is as near as
    possible. Tails are heavier than a normal distribution's: the 68th percentile alone would
    leave out too many errors beyond two sigma.

    Args:
        error: (N,), at least one; signs do not count.
    """
    ordered = np.sort(np.abs(error))
    candidates = np.quantile(ordered, np.linspace(WITHIN_ONE - 0.15, WITHIN_ONE + 0.25, 161))
    shares = [
        np.searchsorted(ordered, factor * candidates, 'right') / ordered.size for factor in (1, 2)
    ]
    gap = np.maximum(np.abs(shares[0] - WITHIN_ONE), np.abs(shares[1] - WITHIN_TWO))
    return float(candidates[gap.argmin()])


def _scale_regression(
    design: NDArray[np.float64], size: NDArray[np.float64], ridge: float, steps: int = 50
) -> NDArray[np.float64]:
    """Return (K + 1,) coefficients of the log scale; the last row is constant and unpenalized."""
    penalty = np.full(len(design), ridge)
    penalty[-1] = 0.0
    solution = np.zeros(len(design))
    solution[-1] = np.log(size).mean()
    power = size**ERROR_POWER
    for _ in range(steps):
        # Of log scale + (size / scale)^p / p.
        ratio = power * np.exp(-ERROR_POWER * np.clip(solution @ design, -12, 8))
        gradient = design @ (1 - ratio) / size.size + penalty * solution
        hessian = (design * (ERROR_POWER * ratio)) @ design.T / size.size
        step = np.linalg.solve(hessian + np.diag(penalty + 1e-9), gradient)
        solution -= step * min(1.0, 1.0 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-6:
            break
    return solution


def _curve(
    linear: NDArray[np.float64], size: NDArray[np.float64]
) -> tuple[tuple[float, float], ...]:
    """Return knots of the ascending function from the linear value to log10 of sigma."""
    order = np.argsort(linear, kind='stable')
    blocks: list[tuple[NDArray[np.intp], float]] = []
    for members in np.array_split(order, min(CURVE_KNOTS, max(1, size.size // 50))):
        block = members, _log10_sigma(size[members])
        while blocks and blocks[-1][1] >= block[1]:
            merged = np.concatenate([blocks.pop()[0], block[0]])
            block = merged, _log10_sigma(size[merged])
        blocks.append(block)
    return tuple((float(linear[members].mean()), sigma) for members, sigma in blocks)


def _log10_sigma(size: NDArray[np.float64]) -> float:
    sigma = math.log10(max(normal_like_sigma(size), SMALLEST_ERROR_PX))
    return min(max(sigma, LOWEST_LOG10_PX), HIGHEST_LOG10_PX)
