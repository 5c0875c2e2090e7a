"""A pair with a known answer, matched before a model is trusted with real ones."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage
from lunar_stereo_recon.errors import ModelError

KEY = 'self_test_px'
HEIGHT, WIDTH, SHIFT_PX = 96, 160, 12
# Pixels whose answer is kept: on a coarse grid, away from what only the left camera sees.
_ROWS, _COLUMNS = slice(16, None, 24), slice(48, None, 24)
# Where both cameras see the texture and no border is near.
_SEEN = slice(8, -8), slice(32, -8)
# Between runtimes and precisions, of which int8 is the coarsest (0.15 px in the median).
TOLERANCE_PX = 0.3
# A student that knows the pair is nowhere farther from the truth than 0.25 px.
WRONG_PX, WRONG_SHARE = 1.0, 0.005


def self_test_pair() -> tuple[FloatImage, FloatImage]:
    """Return left and right (96, 160) float32: a texture that is 12 px apart everywhere."""
    texture = np.random.default_rng(18).random((HEIGHT, WIDTH + SHIFT_PX), np.float32)
    texture = cv2.GaussianBlur(texture, (0, 0), 1.0)
    return (
        np.ascontiguousarray(texture[:, :WIDTH]),
        np.ascontiguousarray(texture[:, SHIFT_PX:]),
    )


def self_test_entry(prediction: DisparityPrediction) -> str:
    """Return the metadata's `self_test_px` of a model that answered so to `self_test_pair`."""
    values = prediction.disparity[_ROWS, _COLUMNS].ravel()
    return json.dumps([round(float(value), 3) for value in values])


def check_answer(backend: Backend, model_path: Path) -> None:
    """Run a model on the pair and compare with the answer in its metadata, where it has one.

    If by that answer the model knows how far the texture is apart, each pixel is compared with
    this too: a damaged weight may spoil places that the answer does not hold.

    Raises:
        ModelError: It fails when run, answers in another shape, or answers otherwise.
    """
    prediction = backend.predict(*self_test_pair())
    if prediction.disparity.shape != (HEIGHT, WIDTH):
        raise ModelError(
            f'{model_path} answers {prediction.disparity.shape} to a pair of {(HEIGHT, WIDTH)}'
        )
    text = backend.metadata.get(KEY)
    if not text:
        return
    actual = prediction.disparity[_ROWS, _COLUMNS].ravel()
    try:
        expected = np.array(json.loads(text), np.float64)
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(f'{model_path} metadata {KEY} is not a list of numbers') from error
    if expected.shape != actual.shape:
        raise ModelError(
            f'{model_path} metadata {KEY} has shape {expected.shape}; {actual.shape} is needed'
        )
    error_px = float(np.median(np.abs(actual - expected)))
    if not error_px <= TOLERANCE_PX:
        raise ModelError(
            f'{model_path} fails its self-test on {backend.provider}: it is {error_px:.3g} px off '
            f'the known answer, at most {TOLERANCE_PX} px are allowed'
        )
    if float(np.median(np.abs(expected - SHIFT_PX))) > TOLERANCE_PX:
        return
    wrong = ~(np.abs(prediction.disparity[_SEEN] - SHIFT_PX) <= WRONG_PX)  # NaN is wrong
    if wrong.mean() > WRONG_SHARE:
        raise ModelError(
            f'{model_path} fails its self-test on {backend.provider}: {wrong.mean():.1%} of the '
            f'pixels are more than {WRONG_PX:g} px off, at most {WRONG_SHARE:.1%} are allowed'
        )
