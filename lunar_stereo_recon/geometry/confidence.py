"""One calibrated number a pixel: the probability that the disparity error is below one pixel.

A logistic combination of what the network believes and what matching the images showed, then a
monotone correction. The coefficients are fitted on data apart from training and test, and travel
in the model's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.refine import Refinement

FEATURES = (
    'prior_logit',  # log odds of the network's own confidence
    'zncc',  # matching score of the images at the result, 0 where outside the right frame
    'texture',  # log10 of the window's standard deviation, share of white
    'shift',  # pixels between prior and result
    'occluded',  # hidden from the right camera, 0 or 1
    'outside',  # outside the right frame, 0 or 1
    'dark',  # 1 in black windows falling to 0 at 4 % of white
    'saturated',  # 1 in white windows, 0 below 96 % of white
)


@dataclass(frozen=True)
class ConfidenceCalibration:
    """Coefficients of the confidence.

    Attributes:
        weights: Factor of each feature of `FEATURES`; a feature that is not named counts zero.
        bias: Constant term.
        curve: Pairs (logistic value, probability), both ascending: the monotone correction.
            Empty leaves the logistic value.
    """

    weights: Mapping[str, float]
    bias: float = 0.0
    curve: tuple[tuple[float, float], ...] = field(default=())

    @classmethod
    def from_metadata(cls, entry: Mapping[str, Any]) -> ConfidenceCalibration:
        """Build from a model's `confidence_calibration`.

        Raises:
            ModelError: An entry is missing, unknown or not a number.
        """
        try:
            weights = {str(name): float(value) for name, value in entry['weights'].items()}
            curve = tuple((float(x), float(y)) for x, y in entry.get('curve', ()))
            bias = float(entry['bias'])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f'confidence_calibration needs weights, bias and curve; got {dict(entry)}'
            ) from error
        unknown = sorted(set(weights) - set(FEATURES))
        if unknown:
            raise ModelError(f'confidence_calibration has unknown features {", ".join(unknown)}')
        return cls(weights, bias, curve)

    def to_metadata(self) -> dict[str, Any]:
        """Return what `from_metadata` reads, ready for JSON."""
        return asdict(self)


# For a model that brings none: its own belief, lowered where the images contradict it.
DEFAULT_CALIBRATION = ConfidenceCalibration(
    weights={
        'prior_logit': 1.0,
        'zncc': 1.0,
        'shift': -1.0,
        'occluded': -2.0,
        'outside': -1.0,
        'dark': -4.0,
        'saturated': -4.0,
    },
    bias=-0.5,
)


def confidence_features(
    left: FloatImage, prior_confidence: FloatImage, prior: FloatImage, refinement: Refinement
) -> FloatImage:
    """Return (K, H, W) float32, the `FEATURES` in their order; finite everywhere."""
    certainty = np.clip(np.nan_to_num(prior_confidence, nan=0.0), 1e-3, 1 - 1e-3)
    brightness = cv2.blur(left, (9, 9))
    shift = np.abs(refinement.disparity - prior)
    planes = (
        np.log(certainty / (1 - certainty)),
        np.where(refinement.outside, 0, refinement.zncc),
        np.log10(refinement.texture + 1e-4),
        np.nan_to_num(np.minimum(shift, 2.0), nan=2.0),
        refinement.occluded,
        refinement.outside,
        np.clip(1 - brightness / 0.04, 0, 1),
        np.clip((brightness - 0.96) / 0.03, 0, 1),
    )
    return np.stack([np.asarray(plane, np.float32) for plane in planes])


def calibrated_confidence(
    features: FloatImage, calibration: ConfidenceCalibration
) -> NDArray[np.float32]:
    """Return (H, W) float32 in [0, 1] from features (K, H, W)."""
    logit = np.full(features.shape[1:], np.float32(calibration.bias))
    for name, plane in zip(FEATURES, features, strict=True):
        weight = calibration.weights.get(name, 0.0)
        if weight:
            logit += np.float32(weight) * plane
    probability = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
    if calibration.curve:
        knots = np.array(calibration.curve)
        probability = np.interp(probability, knots[:, 0], knots[:, 1])
    return probability.astype(np.float32)
