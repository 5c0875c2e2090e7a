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
from lunar_stereo_recon.geometry.bands import Band, over_bands
from lunar_stereo_recon.geometry.refine import photometric_match, row_numbers, warp_right

# The prior is smoothed so far, pixels: its own borders must not be those of the answer.
SMOOTHING_PX = 20.0
SMOOTHING_REDUCTION = 8
# Disparities around the smoothed prior that are searched, pixels.
LEAST_OFFSET_PX, OFFSETS_PX = -16, 32
BLOCK_PX = 3
SGBM_FRACTION = 16
# What semi-global matching answers where it knows nothing, in steps of 1 / 16 px.
LEAST_STEP = (LEAST_OFFSET_PX - 1) * SGBM_FRACTION
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
# Pixels that are judged at a time.
PIECE_PX = 1024
# Rows that a decision looks up and down: half the windows of rims, odds and evidence, and that of
# brightness with its reduction.
HALO_PX = 32


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
        odds = np.empty(evidence.shape[1], np.float32)
        # In pieces for which BLAS takes no threads: beside a network's they wait longer than they
        # work.
        for start in range(0, odds.size, PIECE_PX):
            piece = slice(start, start + PIECE_PX)
            active = self.hidden @ evidence[:, piece]
            active += self.hidden_bias[:, None]
            np.maximum(active, 0, out=active)
            np.dot(self.output, active, out=odds[piece])
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
        warped: float32, the right view as `disparity` sees it, with 0 for NaN.
    """

    disparity: FloatImage
    taken: NDArray[np.bool_]
    warped: FloatImage


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
    noise = noise_of(left)
    judge = judge or shipped_judge()
    result = ResidualMatch(
        np.empty_like(prior), np.empty(prior.shape, np.bool_), np.empty_like(prior)
    )

    def decide(band: Band) -> None:
        views = Views.through(
            left[band.seen], right[band.seen], prior[band.seen], found[band.seen]
        )
        taken = _taken(views, noise, judge)[band.own]
        result.taken[band.rows] = taken
        for whole, in_doubt, otherwise in (
            (result.disparity, views.found, views.prior),
            (result.warped, views.by_found, views.by_prior),
        ):
            whole[band.rows] = np.where(taken, in_doubt[band.own], otherwise[band.own])

    over_bands(prior.shape[0], HALO_PX, decide)
    return result


@dataclass(frozen=True)
class Views:
    """The left view, and the right one as two disparities see it; every array is (H, W) float32.

    Attributes:
        left: In [0, 1].
        prior, found: The disparities, pixels, NaN unknown.
        start, answer: The same without NaN: 0, and the prior.
        by_prior, by_found: The right view through `start` and through `answer`.
        known: All of the prior is known.
    """

    left: FloatImage
    prior: FloatImage
    found: FloatImage
    start: FloatImage
    answer: FloatImage
    by_prior: FloatImage
    by_found: FloatImage
    known: bool

    @classmethod
    def through(
        cls, left: FloatImage, right: FloatImage, prior: FloatImage, found: FloatImage
    ) -> Views:
        """Warp the right view."""
        known = np.isfinite(prior)
        all_known = bool(known.all())
        start = prior if all_known else np.where(known, prior, np.float32(0))
        answer = np.where(np.isfinite(found), found, start)
        return cls(
            left,
            prior,
            found,
            start,
            answer,
            warp_right(right, start),
            warp_right(right, answer),
            all_known,
        )


def _taken(views: Views, noise: float, judge: ResidualJudge) -> NDArray[np.bool_]:
    """Return (H, W) bool: the found disparity is to be taken."""
    open_question = disputed(views.prior, views.found)
    # In the dark what matching finds is noise, and the network knows the ground around.
    open_question &= cv2.blur(views.left, (AGREEMENT_WINDOW_PX, AGREEMENT_WINDOW_PX)) > DARK
    pixels = np.flatnonzero(open_question)
    if not pixels.size:
        return open_question
    odds = np.zeros(open_question.shape, np.float32)
    judged = judge.log_odds(_evidence(views, pixels, noise))
    odds.ravel()[pixels] = np.clip(judged, -LARGEST_ODDS, LARGEST_ODDS, out=judged)
    # Neighbours decide together: surfaces are larger than a pixel.
    window = (NEAR_WINDOW_PX, NEAR_WINDOW_PX)
    taken = open_question
    taken &= cv2.boxFilter(odds, cv2.CV_32F, window, normalize=False) > 0
    nearer = views.found > views.prior
    nearer &= taken
    taken &= ~_rims(nearer)
    return taken


def _rims(nearer: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (H, W) bool: the outermost pixels of the regions that matching found to be nearer.

    Semi-global matching makes what is near wider by a pixel or so, as every window does.
    """
    square = np.ones((RIM_WINDOW_PX, RIM_WINDOW_PX), np.uint8)
    closed = cv2.morphologyEx(nearer.astype(np.uint8), cv2.MORPH_CLOSE, square)
    return nearer & (cv2.erode(closed, square) == 0)


def disputed(prior: FloatImage, found: FloatImage) -> NDArray[np.bool_]:
    """Return (H, W) bool: both answers are there and differ. False where either is NaN."""
    return cv2.absdiff(found, prior) > SAME_ANSWER_PX


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
    found = np.empty_like(prior)

    def convert(band: Band) -> None:
        steps, part = fixed[band.rows], base[band.rows]
        offset = _offset_of_steps().take(steps + np.int16(-LEAST_STEP), mode='clip')
        # The warped view's column x - offset holds the right column x - offset - base(x - offset).
        there = cv2.remap(
            part,
            columns - offset,
            row_numbers(*part.shape),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        answer = np.add(there, offset, out=found[band.rows])
        unknown = steps < LEAST_OFFSET_PX * SGBM_FRACTION
        unknown |= answer > columns
        unknown |= answer < 0
        np.copyto(answer, np.float32(np.nan), where=unknown)

    over_bands(height, 0, convert)
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
    return _evidence(Views.through(left, right, prior, found), pixels, noise_of(left))


def _evidence(views: Views, pixels: NDArray[np.intp], noise: float) -> NDArray[np.float32]:
    """Return (K, N) float32; see `evidence`."""
    left = views.left
    weight = None if views.known else np.isfinite(views.prior).astype(np.float32)
    gain, bias = photometric_match(left, views.by_prior, weight)
    prior_cost = _difference(left, cv2.add(cv2.multiply(gain, views.by_prior), bias))
    found_cost = _difference(left, cv2.add(cv2.multiply(gain, views.by_found), bias))
    better = cv2.subtract(prior_cost, found_cost)
    step = cv2.subtract(views.answer, views.start)
    distance = cv2.absdiff(views.answer, views.start)

    def mean(image: FloatImage, side: int) -> FloatImage:
        return cv2.blur(image, (side, side))

    def share(mask: NDArray[np.bool_]) -> FloatImage:
        side = (AGREEMENT_WINDOW_PX, AGREEMENT_WINDOW_PX)
        return cv2.boxFilter(mask.view(np.uint8), cv2.CV_32F, side)

    near_gain = mean(better, NEAR_WINDOW_PX)
    around = np.ones((NEAR_WINDOW_PX, NEAR_WINDOW_PX), np.uint8)
    planes = (
        near_gain,
        mean(better, WIDE_WINDOW_PX),
        cv2.erode(near_gain, around),
        cv2.dilate(near_gain, around),
        mean(found_cost, NEAR_WINDOW_PX),
        mean(prior_cost, NEAR_WINDOW_PX),
        distance,
        np.clip(step, -NEARER_LIMIT_PX, NEARER_LIMIT_PX, out=step),
        _contrast_over_noise(left, noise),
        share(np.isfinite(views.found)),
        share(distance > 0.5),
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
    sample = image[::2, ::2]
    lit = (sample > BLACK) & (sample < WHITE)
    if not lit.any():
        return LEAST_NOISE
    roughness = np.abs(cv2.filter2D(image, cv2.CV_32F, NOISE_KERNEL)[::2, ::2][lit])
    return max(LEAST_NOISE, float(np.median(roughness)) / MEDIAN_DEVIATION)


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


@cache
def _offset_of_steps() -> FloatImage:
    """Return the offset, pixels, of each answer of semi-global matching from `LEAST_STEP` on."""
    steps = np.arange(LEAST_STEP, (LEAST_OFFSET_PX + OFFSETS_PX) * SGBM_FRACTION + 1)
    return _equiangular(steps.astype(np.float32) * np.float32(1 / SGBM_FRACTION))


def _equiangular(offset: FloatImage) -> FloatImage:
    """Return offsets whose fraction was fitted with a parabola as two straight lines tell it.

    Absolute differences rise in straight lines from where the views agree. A parabola through
    three of them turns a fraction t into t / (2 - 2 t): the answers gather at whole pixels.
    """
    whole = np.rint(offset)
    fraction = offset - whole
    return whole + 2 * fraction / (1 + 2 * np.abs(fraction))


def _grey(image: FloatImage) -> NDArray[np.uint8]:
    return np.asarray(cv2.multiply(image, 255.0, dtype=cv2.CV_8U))


def _difference(left: FloatImage, warped: FloatImage) -> FloatImage:
    """Return (H, W) in [0, 1], grey and gradient alike, each with a ceiling."""
    difference = cv2.subtract(left, warped)
    slope = cv2.Sobel(difference, cv2.CV_32F, 1, 0, scale=GRADIENT_SCALE)
    for image, largest in (
        (difference, LARGEST_DIFFERENCE),
        (slope, LARGEST_GRADIENT_DIFFERENCE),
    ):
        np.abs(image, out=image)
        np.minimum(image, np.float32(largest), out=image)
    return cv2.addWeighted(
        difference, 0.5 / LARGEST_DIFFERENCE, slope, 0.5 / LARGEST_GRADIENT_DIFFERENCE, 0.0
    )


def _contrast_over_noise(left: FloatImage, noise: float) -> FloatImage:
    window = (NEAR_WINDOW_PX, NEAR_WINDOW_PX)
    mean = cv2.blur(left, window)
    mean *= mean
    variance = cv2.subtract(cv2.blur(left * left, window), mean, dst=mean)
    np.maximum(variance, 0, out=variance)
    deviation = np.sqrt(variance, out=variance)
    deviation *= np.float32(1 / noise)
    return deviation
