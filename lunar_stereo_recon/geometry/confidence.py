"""One calibrated number for each pixel: the probability that its disparity error is below 1 px.

A logistic combination of what the network believes and what matching the images showed, then a
monotone correction. The coefficients are fitted on data apart from training and test, and travel
in the model's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.geometry.bands import Band, over_bands
from lunar_stereo_recon.geometry.refine import Refinement
from lunar_stereo_recon.geometry.residual import ResidualMatch

FEATURES = (
    'prior_logit',  # log odds of the network's own confidence
    'agreement',  # of the views at the result, 0..1; 0 where the right camera does not see it
    'deviation',  # log10 of the offset's standard deviation by texture and noise, pixels
    'shift',  # pixels between prior and result, at most 2
    'edge',  # log10 of 0.1 + how far the disparity is from a plane over 5 pixels, pixels
    'occluded',  # hidden from the right camera, 0 or 1
    'outside',  # outside the right frame, 0 or 1
    'dark',  # 1 in black windows falling to 0 at 4 % of white
    'saturated',  # 1 in white windows, 0 below 96 % of white
    'taken',  # the disparity is what matching found in place of the network's, 0 or 1
    'taken_logit',  # 'prior_logit' there, else 0: it was said of another disparity
    'taken_edge',  # 'edge' there, else 0: matching makes what is near wider
    'choice_error',  # log of the error that the chooser expects, pixels; 0 where none was asked
)
# Deviation of the offset by texture and noise from which a place begins to be without texture,
# log10 of pixels; ten times that, and nothing is seen.
BLIND_FROM_LOG10_PX = np.float32(-0.5)
# Mean grey up to which a place is dim, and from which it is not, as a share of white.
DIM_FROM, DIM_UNTIL = 0.1, 0.15
WINDOW_PX = 9
DARK_LEVEL = 0.04
SATURATED_LEVEL = 0.96
MAX_SHIFT_PX = 2.0
CURVE_LEVELS = 4096
CURVE_KNOTS = 24
# Log odds beyond this are as good as certain.
LARGEST_LOGIT = 16.0
# Beyond this a product with a feature could leave float32.
LARGEST_WEIGHT = 1e6
# Beyond this the chooser's expectation says nothing more.
LARGEST_LOG_ERROR = np.float32(4.0)
# The network's certainty still orders errors of a tenth of a pixel far above 99.9 %.
LARGEST_CERTAINTY = 1 - 1e-6


@dataclass(frozen=True)
class ConfidenceCalibration:
    """Coefficients of the confidence.

    Attributes:
        weights: Factor of each feature of `FEATURES`; a feature that is not named counts zero.
        bias: Constant term.
        curve: Pairs (logistic value, probability), both ascending: the monotone correction,
            linear between them in the log odds of the logistic value. Empty leaves that value.

    Raises:
        ModelError: A feature is unknown, a number is not finite or too large, or the curve is not
            ascending or not within [0, 1].
    """

    weights: Mapping[str, float]
    bias: float = 0.0
    curve: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(FEATURES))
        if unknown:
            raise ModelError(
                f'confidence calibration has unknown features {", ".join(unknown)}; '
                f'known are {", ".join(FEATURES)}'
            )
        numbers = [*self.weights.values(), self.bias, *itertools.chain(*self.curve)]
        if not (np.abs(numbers) <= LARGEST_WEIGHT).all():
            raise ModelError(
                f'confidence calibration holds a number that is not finite or beyond '
                f'{LARGEST_WEIGHT:g}: {self}'
            )
        if self.curve and not all(0 <= number <= 1 for knot in self.curve for number in knot):
            raise ModelError(f'confidence calibration curve is not within [0, 1]: {self.curve}')
        if self.curve and (np.diff(np.array(self.curve), axis=0) < 0).any():
            raise ModelError(f'confidence calibration curve is not ascending: {self.curve}')

    @classmethod
    def from_metadata(cls, entry: Mapping[str, Any]) -> ConfidenceCalibration:
        """Build from a model's `confidence_calibration`.

        Raises:
            ModelError: An entry is missing, unknown or not a number.
        """
        return cls(*linear_entry(entry, 'confidence_calibration'))

    def to_metadata(self) -> dict[str, Any]:
        """Return what `from_metadata` reads, ready for JSON."""
        return linear_document(self.weights, self.bias, self.curve)


def linear_entry(
    entry: Mapping[str, Any], what: str
) -> tuple[dict[str, float], float, tuple[tuple[float, float], ...]]:
    """Return weights, bias and curve of a calibration that `linear_document` wrote.

    Raises:
        ModelError: An entry is missing or not a number; the text names `what`.
    """
    try:
        weights = {str(name): float(value) for name, value in entry['weights'].items()}
        curve = tuple((float(x), float(y)) for x, y in entry.get('curve', ()))
        return weights, float(entry['bias']), curve
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f'{what} needs weights, bias and curve; got {entry!r}') from error


def linear_document(
    weights: Mapping[str, float], bias: float, curve: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return a calibration ready for JSON."""
    return {'weights': dict(weights), 'bias': bias, 'curve': [list(knot) for knot in curve]}


# For a model that brings none: its own belief, lowered where the images contradict it.
DEFAULT_CALIBRATION = ConfidenceCalibration(
    weights={
        'prior_logit': 1.0,
        'agreement': 2.0,
        'shift': -1.0,
        'occluded': -2.0,
        'outside': -1.0,
        'dark': -6.0,
        'saturated': -6.0,
    },
    bias=-1.5,
)


def confidence_features(
    left: FloatImage,
    prior_confidence: FloatImage,
    prior: FloatImage,
    refinement: Refinement,
    match: ResidualMatch | None,
) -> FloatImage:
    """Return (K, H, W) float32, the `FEATURES` in their order; finite everywhere.

    Args:
        left: (H, W) in [0, 1].
        prior_confidence: (H, W) in [0, 1], the backend's own; NaN where it has no estimate.
        prior: (H, W) pixels, the backend's own; NaN where there is no estimate.
        refinement: What matching found.
        match: What `refinement` started from; None where that is the prior.
    """
    features = np.empty((len(FEATURES), *left.shape), np.float32)

    def describe(band: Band) -> None:
        rows = band.rows
        _write_features(
            features[:, rows],
            prior_confidence[rows],
            prior[rows],
            Refinement(*(plane[rows] for plane in vars(refinement).values())),
            _departure_from_plane(np.nan_to_num(refinement.disparity[band.seen]))[band.own],
            cv2.blur(left[band.seen], (WINDOW_PX, WINDOW_PX))[band.own],
        )
        if match is None:
            features[FEATURES.index('taken') :, rows] = 0
        else:
            _write_choice(features[:, rows], match.taken[rows], match.log_error_px[rows])

    over_bands(left.shape[0], WINDOW_PX // 2, describe)
    return features


def _write_features(
    features: FloatImage,
    prior_confidence: FloatImage,
    prior: FloatImage,
    refinement: Refinement,
    departure: FloatImage,
    brightness: FloatImage,
) -> None:
    """Write the features of a band, (K, h, W), but those of the choice.

    Args:
        features: To be written.
        prior_confidence, prior, refinement: Of the band.
        departure: (h, W) pixels, of the disparity from a plane.
        brightness: (h, W), mean grey around.
    """
    (
        logit,
        agreement,
        deviation,
        shift,
        edge,
        occluded,
        outside,
        dark,
        saturated,
        *_,
    ) = features
    # fmax takes the other number where one is NaN.
    certainty = np.fmax(prior_confidence, np.float32(1 - LARGEST_CERTAINTY), out=logit)
    np.minimum(certainty, np.float32(LARGEST_CERTAINTY), out=certainty)
    certainty /= 1 - certainty
    cv2.log(certainty, dst=logit)
    agreement[:] = refinement.agreement
    _decimal_logarithm(refinement.deviation_px, 1e-3, deviation)
    np.subtract(refinement.disparity, prior, out=shift)
    np.abs(shift, out=shift)
    np.fmin(shift, np.float32(MAX_SHIFT_PX), out=shift)
    _decimal_logarithm(departure, 0.1, edge)
    occluded[:] = refinement.occluded
    outside[:] = refinement.outside
    np.multiply(brightness, np.float32(-1 / DARK_LEVEL), out=dark)
    dark += 1
    np.clip(dark, 0, 1, out=dark)
    np.subtract(brightness, np.float32(SATURATED_LEVEL), out=saturated)
    saturated *= np.float32(1 / (0.99 - SATURATED_LEVEL))
    np.clip(saturated, 0, 1, out=saturated)


def _write_choice(
    features: FloatImage, taken: NDArray[np.bool_], log_error_px: FloatImage
) -> None:
    """Write those of the choice, after the others."""
    first = FEATURES.index('taken')
    spoke, spoke_logit, spoke_edge, choice_error = features[first:]
    spoke[:] = taken
    np.multiply(features[FEATURES.index('prior_logit')], spoke, out=spoke_logit)
    np.multiply(features[FEATURES.index('edge')], spoke, out=spoke_edge)
    np.clip(log_error_px, -LARGEST_LOG_ERROR, LARGEST_LOG_ERROR, out=choice_error)


def _decimal_logarithm(values: FloatImage, offset: float, out: FloatImage) -> None:
    """Write log10(values + offset); the offset keeps it finite."""
    np.add(values, np.float32(offset), out=out)
    cv2.log(out, dst=out)
    out *= np.float32(1 / np.log(10))


def blindness(features: FloatImage, left: FloatImage) -> FloatImage:
    """Return (H, W) float32 in [0, 1], 1 where there is nothing to be seen.

    That is in black and white windows, outside of the right view, and in dim places where the
    texture leaves the offset open by pixels. A bright surface without texture does not count: what
    stands up is often plain, and the network knows it by its outline.

    Args:
        features: (K, H, W), `FEATURES`.
        left: (H, W) in [0, 1].
    """
    result = np.empty_like(left)

    def write(band: Band) -> None:
        rows, blind = band.rows, result[band.rows]
        dim = cv2.blur(left[band.seen], (WINDOW_PX, WINDOW_PX))[band.own]
        np.subtract(np.float32(DIM_UNTIL), dim, out=dim)
        dim *= np.float32(1 / (DIM_UNTIL - DIM_FROM))
        np.clip(dim, 0, 1, out=dim)
        np.subtract(features[FEATURES.index('deviation'), rows], BLIND_FROM_LOG10_PX, out=blind)
        np.clip(blind, 0, 1, out=blind)
        blind *= dim
        for name in ('outside', 'dark', 'saturated'):
            np.maximum(blind, features[FEATURES.index(name), rows], out=blind)

    over_bands(left.shape[0], WINDOW_PX // 2, write)
    return result


def calibrated_confidence(
    features: FloatImage, calibration: ConfidenceCalibration
) -> NDArray[np.float32]:
    """Return float32 in [0, 1] of any shape S from features (K, *S)."""
    weights = np.array([calibration.weights.get(name, 0.0) for name in FEATURES], np.float32)
    table = _curve_table(calibration)
    images = features.reshape(len(FEATURES), features.shape[1] if features.ndim > 1 else 1, -1)
    result = np.empty(images.shape[1:], np.float32)

    def grade(band: Band) -> None:
        part = images[:, band.rows]
        result[band.rows] = _probabilities(part, weights, calibration.bias, table)

    over_bands(result.shape[0], 0, grade)
    return result.reshape(features.shape[1:])


def _probabilities(
    features: FloatImage,
    weights: NDArray[np.float32],
    bias: float,
    table: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Return (H, W) the confidence of (K, H, W), the curve as a table; None is no curve."""
    # Not one matrix product: beside a network's threads, those of BLAS wait longer than they work.
    logit = np.full(features.shape[1:], bias, np.float32)
    for weight, feature in zip(weights, features, strict=True):
        if weight:
            cv2.scaleAdd(feature, float(weight), logit, dst=logit)
    # fmax takes the other number where one is NaN: what says nothing is not believed.
    np.fmax(logit, np.float32(-LARGEST_LOGIT), out=logit)
    np.minimum(logit, np.float32(LARGEST_LOGIT), out=logit)
    if table is None:
        return np.float32(1) / (np.float32(1) + np.exp(-logit))
    steps_a_unit = (CURVE_LEVELS - 1) / (2 * LARGEST_LOGIT)
    logit += np.float32(LARGEST_LOGIT)
    logit *= np.float32(steps_a_unit)
    logit += np.float32(0.5)
    return table.take(logit.astype(np.int32))


def _curve_table(calibration: ConfidenceCalibration) -> NDArray[np.float32] | None:
    """Return (CURVE_LEVELS,) the curve over log odds; None where there is no curve.

    Interpolating in every pixel would take longer than all the rest.
    """
    if not calibration.curve:
        return None
    knots = np.array(calibration.curve)
    levels = np.linspace(-LARGEST_LOGIT, LARGEST_LOGIT, CURVE_LEVELS)
    return np.interp(levels, _log_odds(knots[:, 0]), knots[:, 1]).astype(np.float32)


def _log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide='ignore'):
        odds = np.log(probability) - np.log1p(-probability)
    return np.clip(odds, -LARGEST_LOGIT, LARGEST_LOGIT)


def fit_confidence(
    features: NDArray[np.floating], correct: NDArray[np.bool_], ridge: float = 1e-3
) -> ConfidenceCalibration:
    """Fit the confidence on pixels whose truth is known.

    Logistic regression by Newton's method, then the pool-adjacent-violators curve of its values.
    Pixels without any surface (sky) belong in as not correct.

    Args:
        features: (K, N), the `FEATURES` of N pixels.
        correct: (N,) bool, the disparity error is below one pixel.
        ridge: Penalty on the squared weights of the standardized features, per pixel.

    Raises:
        InputError: Shapes do not match, a feature is not finite, or all pixels are alike.
    """
    features = np.asarray(features, np.float64)
    if features.shape != (len(FEATURES), correct.size):
        raise InputError(
            f'features have shape {features.shape}; {(len(FEATURES), correct.size)} is needed'
        )
    if not np.isfinite(features).all():
        raise InputError('a confidence feature is not finite')
    if correct.all() or not correct.any():
        raise InputError('every pixel is equally right; confidence cannot be fitted')
    mean, deviation = features.mean(axis=1), features.std(axis=1)
    scale = np.where(deviation > 1e-9, deviation, np.inf)  # a constant feature gets weight 0
    design = np.vstack([(features - mean[:, None]) / scale[:, None], np.ones(correct.size)])
    solution = _logistic_regression(design, correct.astype(np.float64), ridge)
    weights = solution[:-1] / scale
    bias = float(solution[-1] - weights @ mean)
    named = dict(zip(FEATURES, weights.tolist(), strict=True))
    probability = 1 / (1 + np.exp(-np.clip(weights @ features + bias, -30, 30)))
    return ConfidenceCalibration(named, bias, _monotone_curve(probability, correct))


def _departure_from_plane(disparity: FloatImage) -> FloatImage:
    """Return (H, W) pixels: zero on any plane, large beside a depth edge."""
    across = cv2.Sobel(disparity, cv2.CV_32F, 2, 0, ksize=5, scale=1 / 16)
    down = cv2.Sobel(disparity, cv2.CV_32F, 0, 2, ksize=5, scale=1 / 16)
    return np.abs(across) + np.abs(down)


def _logistic_regression(
    design: NDArray[np.float64], target: NDArray[np.float64], ridge: float, steps: int = 30
) -> NDArray[np.float64]:
    """Return (K + 1,) coefficients of design (K + 1, N), the last row constant and unpenalized."""
    count = target.size
    penalty = np.full(len(design), ridge)
    penalty[-1] = 0.0
    solution = np.zeros(len(design))
    for _ in range(steps):
        probability = 1 / (1 + np.exp(-np.clip(solution @ design, -30, 30)))
        gradient = design @ (target - probability) / count - penalty * solution
        weight = np.maximum(probability * (1 - probability), 1e-6)
        hessian = (design * weight) @ design.T / count + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        solution += step * min(1.0, 4.0 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-6:
            break
    return solution


def _monotone_curve(
    probability: NDArray[np.float64], correct: NDArray[np.bool_]
) -> tuple[tuple[float, float], ...]:
    """Return knots of the ascending function that makes `probability` the observed frequency."""
    order = np.argsort(probability, kind='stable')
    # Finer where right and wrong mix: most pixels are nearly certain and need few knots.
    mixed = np.cumsum(probability[order] * (1 - probability[order]) + 0.02)
    knots_wanted = min(CURVE_KNOTS, max(2, correct.size // 50))
    cuts = np.searchsorted(mixed, mixed[-1] * np.arange(1, knots_wanted) / knots_wanted)
    bins = [members for members in np.split(order, cuts) if members.size]
    blocks: list[list[float]] = []  # [pixels, sum of probability, sum of correct]
    for members in bins:
        blocks.append([len(members), probability[members].sum(), float(correct[members].sum())])
        while len(blocks) > 1 and _rate(blocks[-2]) >= _rate(blocks[-1]):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    knots = [(value / count, right / count) for count, value, right in blocks]
    return ((0.0, 0.0), *knots, (1.0, max(1.0, knots[-1][1])))


def _rate(block: list[float]) -> float:
    return block[2] / block[0]
