"""What a network's disparity leaves open, matched at the full size of the images.

A network sees the images reduced and its answer is smooth: small rocks and sharp borders are lost
in it. Here the right view is warped by the smoothed prior, so that semi-global matching
(Hirschmueller 2008) has a few disparities left to search where it had more than a hundred. Its
answer is taken where the images speak for it: a small classifier compares how well both answers
explain the right view, against the contrast and the noise of the place. It does not ask how sure
the network is, for on images of an unfamiliar kind a network is surely wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
import json

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.refine import photometric_match, warp_right

# The prior is smoothed so far, pixels: its own borders must not be those of the answer.
SMOOTHING_PX = 20.0
SMOOTHING_REDUCTION = 8
# Disparities around the smoothed prior that are searched, pixels.
LEAST_OFFSET_PX, OFFSETS_PX = -16, 32
BLOCK_PX = 3
SGBM_FRACTION = 16
# Answers that differ by less are one answer, which `geometry.refine` sharpens.
SAME_ANSWER_PX = 0.3
# Mean grey below which matching is not asked, as a share of white.
DARK = 0.06
NEAR_WINDOW_PX, WIDE_WINDOW_PX, AGREEMENT_WINDOW_PX, RIM_WINDOW_PX = 5, 11, 9, 3
# Differences of grey and of gradient from here on count the same, as a share of white.
LARGEST_DIFFERENCE, LARGEST_GRADIENT_DIFFERENCE = 0.06, 0.03
GRADIENT_SCALE = 1 / 8
# The noise is at least that of rounding to 256 grey values.
LEAST_NOISE = 0.004
NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
# A normal distribution's median absolute deviation.
MEDIAN_DEVIATION = 0.6745
BLACK, WHITE = 0.012, 0.98
EVIDENCE = (
    'gain',  # how much better the found disparity explains the right view, narrow window
    'wide_gain',  # the same in a wide window
    'least_gain',  # in the narrow window around that speaks most for the prior,
    'largest_gain',  # and in the one that speaks most for the found disparity: beside a border
    # they differ
    'found_cost',  # how badly the found disparity explains the right view, 0..1
    'prior_cost',  # the prior
    'distance',  # log of 0.1 + pixels between the two
    'nearer',  # pixels by which the found one is nearer, within +-4
    'contrast',  # log of 0.1 + local deviation of grey over the image's noise
    'answered',  # share of the pixels around that matching found a disparity for
    'disputed',  # share of the pixels around where both answers differ by half a pixel
)
NEARER_LIMIT_PX = 4.0
# One pixel's word counts no more than this, log odds.
LARGEST_ODDS = np.float32(4.0)


@dataclass(frozen=True)
class ResidualJudge:
    """A classifier with one hidden layer (ReLU) that chooses between prior and found disparity.

    Attributes:
        hidden: (M, K) float32, weights of the `EVIDENCE`, unscaled.
        hidden_bias: (M,) float32.
        output: (M,) float32.
        bias: The answer's constant term.

    Raises:
        ModelError: Shapes do not fit or a number is not finite.
    """

    hidden: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output: NDArray[np.float32]
    bias: float

    def __post_init__(self) -> None:
        units = len(self.hidden_bias)
        if self.hidden.shape != (units, len(EVIDENCE)) or self.output.shape != (units,):
            raise ModelError(
                f'residual judge has weights {self.hidden.shape} and {self.output.shape}; '
                f'{(units, len(EVIDENCE))} and {(units,)} are needed'
            )
        parts = (self.hidden, self.hidden_bias, self.output, self.bias)
        if not all(np.isfinite(part).all() for part in parts):
            raise ModelError('residual judge holds a number that is not finite')

    def log_odds(self, evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (N,) above 0 where the found disparity is to be taken.

        Args:
            evidence: (K, N), the `EVIDENCE` of N pixels.
        """
        # Not `@`: beside a network's threads, those of BLAS wait longer than they work.
        active = np.einsum('mk,kn->mn', self.hidden, evidence)
        active += self.hidden_bias[:, None]
        np.maximum(active, 0, out=active)
        odds = np.einsum('m,mn->n', self.output, active)
        odds += np.float32(self.bias)
        return odds

    @classmethod
    def from_json(cls, text: str) -> ResidualJudge:
        """Read what `to_json` wrote.

        Raises:
            ModelError: An entry is missing, of another evidence or not a number.
        """
        try:
            entry = json.loads(text)
            names = tuple(entry['evidence'])
            arrays = [
                np.array(entry[key], np.float32) for key in ('hidden', 'hidden_bias', 'output')
            ]
            bias = float(entry['bias'])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f'residual judge needs evidence, hidden, hidden_bias, output, bias: {error}'
            ) from error
        if names != EVIDENCE:
            raise ModelError(f'residual judge is of evidence {names}; {EVIDENCE} is needed')
        return cls(arrays[0], arrays[1], arrays[2], bias)

    def to_json(self) -> str:
        """Return the weights as JSON, six digits each."""
        rounded = {
            'evidence': list(EVIDENCE),
            'hidden': [[float(f'{weight:.6g}') for weight in row] for row in self.hidden],
            'hidden_bias': [float(f'{weight:.6g}') for weight in self.hidden_bias],
            'output': [float(f'{weight:.6g}') for weight in self.output],
            'bias': float(f'{self.bias:.6g}'),
        }
        return json.dumps(rounded, indent=1) + '\n'


@cache
def shipped_judge() -> ResidualJudge:
    """Return the classifier that the package brings, made by `python -m training judge`."""
    path = files('lunar_stereo_recon') / 'weights' / 'residual_judge.json'
    return ResidualJudge.from_json(path.read_text(encoding='utf-8'))


@dataclass(frozen=True)
class ResidualMatch:
    """A prior and what matching made of it; every array is (H, W).

    Attributes:
        disparity: float32, pixels. The found one where `taken`, else the prior, NaN where that is.
        taken: bool, matching has the word.
    """

    disparity: FloatImage
    taken: NDArray[np.bool_]


def match_around(
    left: FloatImage, right: FloatImage, prior: FloatImage, judge: ResidualJudge | None = None
) -> ResidualMatch:
    """Return the prior with what matching knows better.

    Args:
        left, right: (H, W) float32 in [0, 1], rows aligned.
        prior: (H, W) float32, column left minus column right, pixels. NaN stays NaN.
        judge: Who chooses; None is the one that the package brings.
    """
    found = search_around(left, right, prior)
    open_question = disputed(prior, found)
    # In the dark what matching finds is noise, and the network knows the ground around.
    open_question &= cv2.blur(left, (AGREEMENT_WINDOW_PX, AGREEMENT_WINDOW_PX)) > DARK
    pixels = np.flatnonzero(open_question)
    odds = np.zeros(prior.shape, np.float32)
    if pixels.size:
        judged = (judge or shipped_judge()).log_odds(evidence(left, right, prior, found, pixels))
        odds.ravel()[pixels] = np.clip(judged, -LARGEST_ODDS, LARGEST_ODDS)
    # Neighbours decide together: surfaces are larger than a pixel.
    window = (NEAR_WINDOW_PX, NEAR_WINDOW_PX)
    taken = open_question & (cv2.boxFilter(odds, cv2.CV_32F, window, normalize=False) > 0)
    taken &= ~_rims(taken & (found > prior))
    return ResidualMatch(np.where(taken, found, prior), taken)


def _rims(nearer: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (H, W) bool: the outermost pixels of the regions that matching found to be nearer.

    Semi-global matching makes what is near wider by a pixel or so, as every window does.
    """
    square = np.ones((RIM_WINDOW_PX, RIM_WINDOW_PX), np.uint8)
    closed = cv2.morphologyEx(nearer.astype(np.uint8), cv2.MORPH_CLOSE, square)
    return nearer & (cv2.erode(closed, square) == 0)


def disputed(prior: FloatImage, found: FloatImage) -> NDArray[np.bool_]:
    """Return (H, W) bool: both answers are there and differ. False where either is NaN."""
    return np.abs(found - prior) > SAME_ANSWER_PX


def search_around(left: FloatImage, right: FloatImage, prior: FloatImage) -> FloatImage:
    """Return (H, W) float32 pixels, found by semi-global matching around the smoothed prior.

    NaN where the answer is not unique, not the same from both views, or outside the right image.
    """
    height, width = prior.shape
    base = _smoothed(prior)
    columns = np.arange(width, dtype=np.float32)[None, :]
    warped = warp_right(right, base)
    views = (
        # Beside the borders there must be room for the search.
        cv2.copyMakeBorder(_grey(image), 0, 0, OFFSETS_PX, OFFSETS_PX, cv2.BORDER_REPLICATE)
        for image in (left, warped)
    )
    area = BLOCK_PX * BLOCK_PX
    matcher = cv2.StereoSGBM_create(
        minDisparity=LEAST_OFFSET_PX,
        numDisparities=OFFSETS_PX,
        blockSize=BLOCK_PX,
        P1=8 * area,
        P2=32 * area,
        disp12MaxDiff=1,
        preFilterCap=63,
        uniquenessRatio=5,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    fixed = matcher.compute(*views)[:, OFFSETS_PX:-OFFSETS_PX]
    offset = _equiangular(fixed.astype(np.float32) * np.float32(1 / SGBM_FRACTION))
    # The warped view's column x - offset holds the right column x - offset - base(x - offset).
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    there = cv2.remap(
        base, columns - offset, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    found = there + offset
    unknown = fixed < LEAST_OFFSET_PX * SGBM_FRACTION
    unknown |= (found > columns) | (found < 0)
    found[unknown] = np.nan
    return found


def evidence(
    left: FloatImage,
    right: FloatImage,
    prior: FloatImage,
    found: FloatImage,
    pixels: NDArray[np.intp],
) -> NDArray[np.float32]:
    """Return (K, N) float32, the `EVIDENCE` of N pixels, finite.

    Args:
        left, right: (H, W) float32 in [0, 1].
        prior, found: (H, W) pixels, NaN unknown.
        pixels: (N,) flat indices.
    """
    known, answered = np.isfinite(prior), np.isfinite(found)
    start = np.where(known, prior, np.float32(0))
    answer = np.where(answered, found, start)
    warped = warp_right(right, start)
    gain, bias = photometric_match(left, warped, known.astype(np.float32))
    prior_cost = _difference(left, gain * warped + bias)
    found_cost = _difference(left, gain * warp_right(right, answer) + bias)
    better = prior_cost - found_cost
    step = answer - start

    def mean(image: FloatImage, side: int) -> FloatImage:
        return cv2.blur(image, (side, side))

    near_gain = mean(better, NEAR_WINDOW_PX)
    around = np.ones((NEAR_WINDOW_PX, NEAR_WINDOW_PX), np.uint8)
    planes = (
        near_gain,
        mean(better, WIDE_WINDOW_PX),
        cv2.erode(near_gain, around),
        cv2.dilate(near_gain, around),
        mean(found_cost, NEAR_WINDOW_PX),
        mean(prior_cost, NEAR_WINDOW_PX),
        cv2.absdiff(answer, start),
        np.clip(step, -NEARER_LIMIT_PX, NEARER_LIMIT_PX),
        _contrast_over_noise(left),
        mean(answered.astype(np.float32), AGREEMENT_WINDOW_PX),
        mean((np.abs(step) > 0.5).astype(np.float32), AGREEMENT_WINDOW_PX),
    )
    result = np.empty((len(EVIDENCE), pixels.size), np.float32)
    for plane, row in zip(planes, result, strict=True):
        plane.take(pixels, out=row, mode='clip')
    for name in ('distance', 'contrast'):
        logarithm = result[EVIDENCE.index(name)]
        logarithm += np.float32(0.1)
        cv2.log(logarithm, dst=logarithm)
    return result


def noise_of(image: FloatImage) -> float:
    """Return the standard deviation of an image's noise, as a share of white (Immerkaer 1996).

    At least what rounding to 256 grey values makes.
    """
    lit = (image > BLACK) & (image < WHITE)
    lit = lit[::2, ::2]
    if not lit.any():
        return LEAST_NOISE
    roughness = np.abs(cv2.filter2D(image, cv2.CV_32F, NOISE_KERNEL))[::2, ::2]
    return max(LEAST_NOISE, float(np.median(roughness[lit])) / MEDIAN_DEVIATION)


def _smoothed(prior: FloatImage) -> FloatImage:
    """Return (H, W) the prior's course, known everywhere; all zero where nothing is known."""
    height, width = prior.shape
    size = max(1, width // SMOOTHING_REDUCTION), max(1, height // SMOOTHING_REDUCTION)
    known = np.isfinite(prior)
    values = prior if known.all() else np.where(known, prior, np.float32(0))
    weight = known.astype(np.float32)
    total, share = (
        cv2.GaussianBlur(
            cv2.resize(image, size, interpolation=cv2.INTER_AREA),
            (0, 0),
            SMOOTHING_PX / SMOOTHING_REDUCTION,
        )
        for image in (values, weight)
    )
    mean = float(values.sum() / max(weight.sum(), 1))
    # Far from everything known: the mean of what is.
    course = (total + np.float32(1e-3) * mean) / (share + np.float32(1e-3))
    return cv2.resize(course, (width, height), interpolation=cv2.INTER_LINEAR)


def _equiangular(offset: FloatImage) -> FloatImage:
    """Return offsets whose fraction was fitted with a parabola as two straight lines tell it.

    Absolute differences rise in straight lines from where the views agree. A parabola through
    three of them turns a fraction t into t / (2 - 2 t): the answers gather at whole pixels.
    """
    whole = np.rint(offset)
    fraction = offset - whole
    return whole + 2 * fraction / (1 + 2 * np.abs(fraction))


def _grey(image: FloatImage) -> NDArray[np.uint8]:
    return np.clip(image * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)


def _difference(left: FloatImage, warped: FloatImage) -> FloatImage:
    """Return (H, W) in [0, 1], grey and gradient alike, each with a ceiling."""
    difference = cv2.subtract(left, warped)
    slope = np.abs(cv2.Sobel(difference, cv2.CV_32F, 1, 0, scale=GRADIENT_SCALE))
    np.minimum(slope, np.float32(LARGEST_GRADIENT_DIFFERENCE), out=slope)
    grey = np.abs(difference, out=difference)
    np.minimum(grey, np.float32(LARGEST_DIFFERENCE), out=grey)
    return cv2.addWeighted(
        grey, 0.5 / LARGEST_DIFFERENCE, slope, 0.5 / LARGEST_GRADIENT_DIFFERENCE, 0.0
    )


def _contrast_over_noise(left: FloatImage) -> FloatImage:
    window = (NEAR_WINDOW_PX, NEAR_WINDOW_PX)
    mean = cv2.blur(left, window)
    variance = cv2.blur(left * left, window) - mean * mean
    return np.sqrt(np.maximum(variance, 0)) * np.float32(1 / noise_of(left))
