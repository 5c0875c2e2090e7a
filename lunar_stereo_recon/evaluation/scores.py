"""Scores of disparity maps and confidences against ground truth; ratios pooled over pixels.

Only pixels with ground truth count (terrain or rock, never sky). `density` is estimated / valid;
EPE, bad-k, AbsRel and delta are over estimated pixels; `bad05_all`, `bad1_all` and `bad2_all`
count missing as bad. The slope error is the angle between the planes that patches of the true and
of the estimated disparity lie on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import load_arrays
from lunar_stereo_recon.geometry.surfaces import depth_edges, flying_points, thin_surfaces
from lunar_stereo_recon.geometry.visibility import occluded_in_right, outside_right

SUBSETS = ('all', 'noc', 'lit', 'shadow')
RANGES_M = {'2-5 m': (2, 5), '5-10 m': (5, 10), '10-20 m': (10, 20), '20-40 m': (20, 40)}
ROCK_SUBSETS = ('rocks', 'lit rocks', 'rocks seen by both')
DETAILED_SUBSETS = (
    *SUBSETS,
    'occluded',
    *ROCK_SUBSETS,
    'rover parts',
    'edges',
    'thin',
    *RANGES_M,
)
LIMITS_PX = (0.5, 1.0, 2.0)
NUMBER_OF_SUMS = 13
CALIBRATION_FIGURES = ('ece', 'ece_low', 'ece_mass', 'ece_below', 'ece_above')
GROUP_FIGURES = ('ause', *CALIBRATION_FIGURES, 'slope_deg')
DEPTH_CAP_M = 80.0
MIN_DISPARITY_PX = 0.01
DELTA_RATIO = 1.05
CURVE_POINTS = 101
CONFIDENCE_BINS = 15
# Cells of a bin in the sums of all pixels; of them bins of equal mass are made.
CELLS_PER_BIN = 16
# Logarithmic cells of sigma, pixels, and how many bins of equal mass are made of them.
SIGMA_CELLS = np.geomspace(1e-3, 1e2, 501)
SIGMA_BINS = 10
# Fewer pixels than this say nothing about a bin's shares.
LEAST_SIGMA_PIXELS = 1000
SURE = 0.9
# With less of the pixels known, one cannot tell from them what is hidden.
DENSE_SHARE = 0.75
SHOWN = 0.5
# Slopes are compared on square patches of ground within the range that a rover drives through,
# where the true patch is nearly plane.
PATCH_PX = 32
PATCH_SHARE = 0.75
PATCH_DEPTH_M = 10.0
PATCH_RESIDUAL_PX = 0.5


@dataclass(frozen=True)
class GroundTruth:
    """What is true of a left image; every array (H, W).

    Attributes:
        disparity: Pixels, NaN where unknown; may be known where it does not count.
        depth: Metres, NaN where not valid.
        valid: Pixels that count.
        shadow: Not directly lit by the sun; None where that is unknown.
        occlusion: 0 seen in the right image, 1 hidden, 2 outside its frame; None where unknown.
        rock: On a rock; None where that is unknown.
        parts: On a part of the rover itself; None where that is unknown.
    """

    disparity: NDArray[np.floating]
    depth: NDArray[np.floating]
    valid: NDArray[np.bool_]
    shadow: NDArray[np.bool_] | None = None
    occlusion: NDArray[np.integer] | None = None
    rock: NDArray[np.bool_] | None = None
    parts: NDArray[np.bool_] | None = None

    def subset(self, name: str) -> NDArray[np.bool_]:
        """Return the pixels of one of `DETAILED_SUBSETS`; none of what is not known."""
        if name in RANGES_M:
            near, far = RANGES_M[name]
            return self.valid & (self.depth >= near) & (self.depth < far)
        return self.valid & self._masks[name]

    @cached_property
    def _masks(self) -> dict[str, NDArray[np.bool_]]:
        none = np.zeros(self.valid.shape, bool)
        lit = none if self.shadow is None else ~self.shadow
        seen = none if self.occlusion is None else self.occlusion == 0
        rock = none if self.rock is None else self.rock
        known = np.where(self.valid, self.disparity, np.nan)
        return {
            'all': self.valid,
            'noc': seen,
            'lit': lit,
            'shadow': none if self.shadow is None else self.shadow,
            'occluded': none if self.occlusion is None else self.occlusion != 0,
            'rocks': rock,
            'lit rocks': rock & lit,
            'rocks seen by both': rock & seen,
            'rover parts': none if self.parts is None else self.parts,
            'edges': depth_edges(known),
            'thin': thin_surfaces(known),
        }


@dataclass(frozen=True)
class PairScore:
    """Sums over the pixels of one pair, so that pairs can be pooled.

    Attributes:
        tag: Group of the pair.
        sums: For each subset: pixels, estimated, sum of errors, counts of errors above 0.5, 1
            and 2 px, sum of relative depth errors, count of depth ratios below 1.05; pixels with
            confidence >= 0.9 and those of them with an error above 2 px; points with confidence
            >= 0.5 (every one without confidence), those of them that fly, and those of these
            that are off by more than 1 px too.
        slope: Patches compared, sum of their slope errors in degrees; None without calibration.
        ause: Area under the sparsification error, 0 oracle to 1 random; None without confidence.
        reliability: For each subset (3, bins) sums over the estimated pixels in each bin of
            confidence: pixels, confidence, correct within 1 px. Of 'all' each bin is divided into
            `CELLS_PER_BIN`. None without confidence.
        milliseconds: Time of the pair; None where unknown.
        sigma: For each subset the sums of `sigma_counts`; None without sigma.
        sparsification: (2, CURVE_POINTS) mean errors, pixels, of what is left when growing shares
            are removed: the least confident pixels first, and those of the largest errors first
            (the oracle). None without confidence or where there are too few pixels.
    """

    tag: str
    sums: dict[str, NDArray[np.float64]]
    ause: float | None = None
    reliability: dict[str, NDArray[np.float64]] | None = None
    milliseconds: float | None = None
    slope: NDArray[np.float64] | None = None
    sigma: dict[str, NDArray[np.float64]] | None = None
    sparsification: NDArray[np.float64] | None = None


def load_ground_truth(
    path: Path, height: int, width: int, focal_times_baseline: float
) -> GroundTruth:
    """Return the ground truth of a manifest's pair.

    The file holds `disparity` and, where they are known, `depth`, `occlusion` and the masks
    `valid`, `shadow`, `rock`, bit-packed or not. Without `valid`, positive disparities count.
    Without `occlusion`, a dense disparity itself tells what is hidden.

    Args:
        path: The file.
        height, width: Height and width of the left image.
        focal_times_baseline: fx * baseline, pixel metres; gives the depth where it is not stored.

    Raises:
        InputError: The file is missing, unreadable, lacks the disparity or is of another size.
    """
    arrays = load_arrays(path, 'ground truth')
    if 'disparity' not in arrays:
        raise InputError(f'cannot read ground truth {path}: it has no array disparity')
    disparity = arrays['disparity']
    if disparity.shape != (height, width):
        raise InputError(f'ground truth {path} has shape {disparity.shape}, not {(height, width)}')
    try:
        masks = {
            name: _unpacked(arrays[name], height, width)
            for name in ('valid', 'shadow', 'rock')
            if name in arrays
        }
    except ValueError as error:
        raise InputError(f'cannot read ground truth {path}: {error}') from error
    with np.errstate(invalid='ignore', divide='ignore'):
        positive = np.isfinite(disparity) & (disparity > 0)
        depth = arrays.get('depth', np.where(positive, focal_times_baseline / disparity, np.nan))
    for name, array in (('depth', depth), ('occlusion', arrays.get('occlusion', disparity))):
        if array.shape != disparity.shape:
            raise InputError(
                f'ground truth {path} has {name} of shape {array.shape}, not {disparity.shape}'
            )
    return GroundTruth(
        disparity,
        depth,
        masks.get('valid', positive),
        masks.get('shadow'),
        arrays.get('occlusion', _occlusion(disparity)),
        masks.get('rock'),
    )


def _occlusion(disparity: NDArray[np.floating]) -> NDArray[np.uint8] | None:
    """Return what the right camera does not see by the true disparity, as `GroundTruth` has it.

    None where so little is known that what hides the rest may not be.
    """
    known = np.isfinite(disparity) & (disparity > 0)
    if known.mean() < DENSE_SHARE:
        return None
    values = np.where(known, disparity, np.nan).astype(np.float32)
    return np.select([outside_right(values), occluded_in_right(values)], [2, 1]).astype(np.uint8)


def score_pair(
    disparity: NDArray[np.floating],
    truth: GroundTruth,
    focal_times_baseline: float,
    confidence: NDArray[np.floating] | None = None,
    tag: str = '',
    milliseconds: float | None = None,
    subsets: Iterable[str] = SUBSETS,
    masks: Mapping[str, NDArray[np.bool_]] | None = None,
    calibration: StereoCalibration | None = None,
    sigma_px: NDArray[np.floating] | None = None,
) -> PairScore:
    """Score one disparity map.

    Args:
        disparity: (H, W) pixels; NaN or not positive is missing.
        truth: Ground truth of the pair.
        focal_times_baseline: fx * baseline, pixel metres.
        confidence: (H, W), higher is better; NaN counts as least.
        tag: Group of the pair.
        milliseconds: Time of the pair.
        subsets: Names of `DETAILED_SUBSETS`.
        masks: Further subsets: (H, W) masks by name.
        calibration: Calibration of the left image; gives the slope error too.
        sigma_px: (H, W) one standard deviation of the disparity; NaN and not positive ones do
            not count.

    Raises:
        InputError: A map has another size than the ground truth.
    """
    disparity = np.asarray(disparity, np.float64)
    if disparity.shape != truth.disparity.shape:
        raise InputError(
            f'disparity has shape {disparity.shape}, ground truth {truth.disparity.shape}'
        )
    if confidence is not None and np.shape(confidence) != disparity.shape:
        raise InputError(
            f'confidence has shape {np.shape(confidence)}, disparity {disparity.shape}'
        )
    estimated = np.isfinite(disparity) & (disparity > 0)
    chosen = truth.valid & estimated
    error = np.abs(disparity[chosen] - truth.disparity[chosen].astype(np.float64))
    chosen_masks = {name: truth.subset(name) for name in subsets}
    chosen_masks |= {name: truth.valid & mask for name, mask in (masks or {}).items()}
    certainty = None
    if confidence is not None:
        certainty = np.nan_to_num(np.asarray(confidence, np.float64)[chosen], nan=0.0)
    flying = flying_points(disparity, truth.disparity, chosen)
    far_off = flying_points(disparity, truth.disparity, flying, beyond_px=1.0)
    terms = np.concatenate(
        [
            _terms(error, disparity[chosen], truth.depth[chosen], focal_times_baseline),
            _certainty_terms(error, certainty, flying[chosen], far_off[chosen]),
        ]
    )
    sums = {
        name: np.concatenate([[mask.sum()], terms @ mask[chosen].astype(np.float64)])
        for name, mask in chosen_masks.items()
    }
    slope = None if calibration is None else slope_errors(disparity, truth, calibration)
    slope_sums = None if slope is None else np.array([slope.size, slope.sum()])
    sigmas = None
    if sigma_px is not None:
        sigma = np.asarray(sigma_px, np.float64)[chosen]
        sigmas = {
            name: sigma_counts(sigma[mask[chosen]], error[mask[chosen]])
            for name, mask in chosen_masks.items()
        }
    if certainty is None:
        return PairScore(tag, sums, None, None, milliseconds, slope_sums, sigmas)
    cells = {name: CELLS_PER_BIN if name == 'all' else 1 for name in chosen_masks}
    bins = {
        name: reliability(
            certainty[mask[chosen]], error[mask[chosen]] < 1.0, CONFIDENCE_BINS * cells[name]
        )
        for name, mask in chosen_masks.items()
    }
    curves = sparsification(error, certainty)
    area = None if curves is None else _relative_area(error, *curves)
    whole = None if curves is None or len(curves[0]) < CURVE_POINTS else np.stack(curves[1:])
    return PairScore(tag, sums, area, bins, milliseconds, slope_sums, sigmas, whole)


def _certainty_terms(
    error: NDArray[Any],
    confidence: NDArray[Any] | None,
    flying: NDArray[np.bool_],
    far_off: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return (5, N): sure, sure yet wrong, shown, shown yet flying, shown yet far off."""
    sure = np.zeros(error.shape, bool) if confidence is None else confidence >= SURE
    shown = np.ones(error.shape, bool) if confidence is None else confidence >= SHOWN
    wrong = error > LIMITS_PX[-1]
    return np.stack([sure, sure & wrong, shown, shown & flying, shown & far_off]).astype(
        np.float64
    )


def _terms(
    error: NDArray[Any],
    disparity: NDArray[Any],
    true_depth: NDArray[Any],
    focal_times_baseline: float,
) -> NDArray[np.float64]:
    """Return (7, N): what `PairScore.sums` adds up over the estimated pixels."""
    depth = focal_times_baseline / np.maximum(disparity, MIN_DISPARITY_PX)
    depth = np.minimum(depth, DEPTH_CAP_M)
    true_depth = true_depth.astype(np.float64)
    ratio = np.maximum(depth / true_depth, true_depth / depth)
    return np.stack(
        [
            np.ones_like(error),
            error,
            *((error > limit).astype(np.float64) for limit in LIMITS_PX),
            np.abs(depth - true_depth) / true_depth,
            (ratio < DELTA_RATIO).astype(np.float64),
        ]
    )


def slope_errors(
    disparity: NDArray[np.floating], truth: GroundTruth, calibration: StereoCalibration
) -> NDArray[np.float64]:
    """Return the angles, degrees, between true and estimated ground on the patches of an image.

    A plane in space is a plane in disparity, and there its error is even; so planes are fitted to
    disparity by least squares, on the pixels that have both truth and estimate. Patches count
    where those are three quarters of the pixels, the ground is within 10 m and nearly plane.

    Args:
        disparity: (H, W) pixels; NaN or not positive is missing.
        truth: Ground truth of the pair.
        calibration: Calibration of the left image.
    """
    weight = truth.valid & np.isfinite(disparity) & (disparity > 0)
    true_disparity = np.where(weight, truth.disparity, 0).astype(np.float64)
    columns = np.arange(calibration.width)[None, :] - calibration.cx
    rows = np.arange(calibration.height)[:, None] - calibration.cy
    plane = [np.broadcast_to(axis, weight.shape) * weight for axis in (columns, rows, 1.0)]
    basis = np.stack([_patches(axis) for axis in plane], axis=-1)  # (patches, pixels, 3)
    near_px = calibration.fx * calibration.baseline_m / PATCH_DEPTH_M
    true_patches = _patches(true_disparity)
    count = basis[..., 2].sum(axis=1)
    usable = count >= PATCH_SHARE * PATCH_PX**2
    usable &= true_patches.sum(axis=1) >= near_px * np.maximum(count, 1)
    basis, true_patches, count = basis[usable], true_patches[usable], count[usable]
    estimated = _patches(np.where(weight, disparity, 0.0))[usable]
    transposed = basis.transpose(0, 2, 1)
    values = np.stack([true_patches, estimated], axis=-1)
    coefficients = np.linalg.solve(transposed @ basis, transposed @ values)  # (patches, 3, 2)
    residual = true_patches - (basis @ coefficients[..., :1])[..., 0]
    smooth = (residual**2).sum(axis=1) <= PATCH_RESIDUAL_PX**2 * count
    normals = coefficients[smooth] * np.array([[calibration.fx], [calibration.fy], [1.0]])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    # Not the arc cosine of their product, which loses small angles to rounding.
    gap = np.linalg.norm(normals[..., 0] - normals[..., 1], axis=1)
    return np.degrees(2 * np.arcsin(np.clip(gap / 2, 0, 1)))


def _patches(image: NDArray[Any]) -> NDArray[np.float64]:
    """Return (patches, PATCH_PX**2): the whole square patches of an image (H, W)."""
    down, across = (size // PATCH_PX for size in image.shape)
    cut = image[: down * PATCH_PX, : across * PATCH_PX]
    blocks = cut.reshape(down, PATCH_PX, across, PATCH_PX).swapaxes(1, 2)
    return blocks.reshape(down * across, PATCH_PX**2).astype(np.float64)


def summarise(
    scores: Sequence[PairScore], mean_of_pairs: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the figures of each tag and 'overall'.

    A dict for each subset, and `ause` (mean over pairs), the `CALIBRATION_FIGURES` (see
    `calibration_figures`), `calibration` (see `calibration_bins`), `sigma` (`sigma_bins` of each
    subset), `slope_deg` (mean over patches), `ms_median`, `ms_p95`, `pairs`; None where no pair
    has such a value.

    Args:
        scores: Scores of the pairs.
        mean_of_pairs: Figures of each pair are averaged, every pair counting alike. Otherwise
            pixels are pooled.
    """
    tags = sorted({score.tag for score in scores if score.tag})
    groups = {'overall': list(scores)}
    groups |= {tag: [score for score in scores if score.tag == tag] for tag in tags}
    return {name: _figures(members, mean_of_pairs) for name, members in groups.items()}


def _figures(scores: list[PairScore], mean_of_pairs: bool) -> dict[str, Any]:
    groups = [[score] for score in scores] if mean_of_pairs else [scores]
    pooled = [pooled_figures(group) for group in groups]
    figures: dict[str, Any] = {
        name: _mean_figures([each[name] for each in pooled])
        for name, value in pooled[0].items()
        if isinstance(value, dict)
    }
    for name in GROUP_FIGURES:
        figures[name] = _mean([each[name] for each in pooled])
    bins = pooled_reliability(scores, 'all')
    figures['calibration'] = None if bins is None else calibration_bins(bins)
    sigmas = [score.sigma for score in scores if score.sigma is not None]
    figures['sigma'] = {
        subset: sigma_bins(np.sum([each[subset] for each in sigmas], axis=0))
        for subset in (sigmas[0] if sigmas else ())
    } or None
    times = [score.milliseconds for score in scores if score.milliseconds is not None]
    figures['ms_median'] = float(np.median(times)) if times else None
    figures['ms_p95'] = float(np.percentile(times, 95)) if times else None
    figures['pairs'] = len(scores)
    return figures


def _mean_figures(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of each figure over pairs that have pixels, and their pixels."""
    known = [each for each in figures if each['pixels']] or list(figures[:1])
    means = {key: _mean([each[key] for each in known]) for key in known[0]}
    return means | {'pixels': sum(each['pixels'] for each in figures)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def pooled_figures(scores: Sequence[PairScore]) -> dict[str, Any]:
    """Return a dict for each subset and the `GROUP_FIGURES`, pixels pooled."""
    figures: dict[str, Any] = {}
    for subset in scores[0].sums if scores else SUBSETS:
        sums = sum((score.sums[subset] for score in scores), np.zeros(NUMBER_OF_SUMS))
        bins = pooled_reliability(scores, subset)
        figures[subset] = {
            **subset_figures(sums),
            'ece': None if bins is None else calibration_error_of(bins),
        }
    figures['ause'] = _mean([score.ause for score in scores])
    bins = pooled_reliability(scores, 'all')
    figures |= dict.fromkeys(CALIBRATION_FIGURES) if bins is None else calibration_figures(bins)
    slopes = [score.slope for score in scores if score.slope is not None]
    patches, degrees = np.sum(slopes, axis=0) if slopes else (0, 0.0)
    figures['slope_deg'] = _rounded(degrees / patches) if patches else None
    return figures


def pooled_reliability(scores: Sequence[PairScore], subset: str) -> NDArray[np.float64] | None:
    """Return the sums of `PairScore.reliability` over pairs; None without confidence."""
    bins = [score.reliability[subset] for score in scores if score.reliability is not None]
    return np.sum(bins, axis=0) if bins else None


def subset_figures(sums: NDArray[np.float64]) -> dict[str, Any]:
    """Return the figures of one subset from the sums of a `PairScore`, or of several added."""
    ratios = {key: _rounded(value) for key, value in pooled_ratios(sums).items()}
    return {'pixels': int(sums[0]), **ratios}


def pooled_ratios(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return density, errors and depth scores of the sums (13, ...) of one subset."""
    pixels, estimated, error, bad05, bad1, bad2, absrel, delta, *of_confidence = sums
    sure, wrong, shown, flying, far_off = of_confidence
    every, count = np.maximum(pixels, 1), np.maximum(estimated, 1)
    missing = pixels - estimated
    return {
        'density': estimated / every,
        'epe_px': error / count,
        'bad05': bad05 / count,
        'bad1': bad1 / count,
        'bad2': bad2 / count,
        'bad05_all': (bad05 + missing) / every,
        'bad1_all': (bad1 + missing) / every,
        'bad2_all': (bad2 + missing) / every,
        'absrel': absrel / count,
        'delta105': delta / count,
        'sure': sure / every,
        'confident': shown / every,
        'sure_wrong': wrong / np.maximum(sure, 1),
        'flying': flying / np.maximum(shown, 1),
        'flying_1px': far_off / np.maximum(shown, 1),
    }


def _rounded(value: float | NDArray[Any]) -> float:
    return round(float(value), 5)


def format_table(
    name: str, summary: dict[str, dict[str, Any]], subsets: Iterable[str] = SUBSETS
) -> str:
    """Return a Markdown table of `summarise`'s result, percentages where a ratio."""
    lines = [
        f'### {name}',
        '',
        '| tag | pixels | density % | EPE px | bad-0.5 % | bad-1 % | bad-2 % | bad-2-all % '
        '| AbsRel % | delta<1.05 % | AUSE | ms |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    keys = ('bad05', 'bad1', 'bad2', 'bad2_all', 'absrel', 'delta105')
    for tag in [*(tag for tag in summary if tag != 'overall'), 'overall']:
        group = summary[tag]
        for subset in subsets:
            figures = group[subset]
            if figures['pixels'] == 0:
                continue
            first = subset == 'all'
            # Without any estimate there is no error: 0 would look perfect.
            estimated = figures['density'] > 0
            cells = [
                tag if first else '',
                subset,
                f'{100 * figures["density"]:.2f}',
                f'{figures["epe_px"]:.3f}' if estimated else '',
                *(
                    f'{100 * figures[key]:.2f}' if estimated or key == 'bad2_all' else ''
                    for key in keys
                ),
                f'{group["ause"]:.3f}' if first and group['ause'] is not None else '',
                f'{group["ms_median"]:.0f}' if first and group['ms_median'] is not None else '',
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def ause(error: NDArray[np.floating], confidence: NDArray[np.floating]) -> float | None:
    """Return the area under the sparsification error over that of random removal.

    The least confident pixels are removed first and the mean error of the rest is taken at 101
    shares; the area above the oracle's curve is divided by that of removing at random: 0 is an
    oracle, 1 is random. Ties are broken at random with a fixed seed.

    Args:
        error: (N,) absolute errors.
        confidence: (N,), higher is better.

    Returns:
        None for fewer than 100 pixels or where every error is the same.
    """
    curves = sparsification(error, confidence)
    return None if curves is None else _relative_area(error, *curves)


def sparsification(
    error: NDArray[np.floating], confidence: NDArray[np.floating]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Return shares of the pixels, and the mean error of the rest when they are removed.

    Args:
        error: (N,) absolute errors.
        confidence: (N,), higher is better.

    Returns:
        The shares, about `CURVE_POINTS` of them from 0; the mean errors when the least confident
        pixels are removed first; and when the largest errors are. None for fewer than 100 pixels.
    """
    count = error.size
    if count < 100:
        return None
    removed = np.unique(np.linspace(0, count - 1, CURVE_POINTS).astype(int))
    shuffled = np.random.default_rng(0).permutation(count)
    by_confidence = shuffled[np.argsort(confidence[shuffled], kind='stable')]
    curve = _mean_of_rest(error[by_confidence], removed)
    oracle = _mean_of_rest(error[np.argsort(-error)], removed)
    return removed / count, curve, oracle


def _relative_area(
    error: NDArray[Any], share: NDArray[Any], curve: NDArray[Any], oracle: NDArray[Any]
) -> float | None:
    """Return the area between the curves over that of removing at random; None of no area."""
    area_random = _area(np.full(len(share), error.mean()) - oracle, share)
    return _area(curve - oracle, share) / area_random if area_random > 1e-9 else None


def _mean_of_rest(error: NDArray[Any], removed: NDArray[Any]) -> NDArray[Any]:
    remaining = np.cumsum(error[::-1])[::-1]
    return remaining[removed] / (error.size - removed)


def _area(values: NDArray[Any], positions: NDArray[Any]) -> float:
    return float(np.sum((values[1:] + values[:-1]) * np.diff(positions)) / 2)


def expected_calibration_error(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = CONFIDENCE_BINS
) -> float:
    """Return the mean gap of confidence and accuracy over equal-width bins, weighted by pixels.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool, whether the error was below one pixel.
        bins: Number of bins.
    """
    return calibration_error_of(reliability(confidence, correct, bins))


def reliability(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = CONFIDENCE_BINS
) -> NDArray[np.float64]:
    """Return (3, bins): pixels, summed confidence and number correct in each bin."""
    index = np.clip((np.asarray(confidence) * bins).astype(int), 0, bins - 1)
    return np.stack(
        [
            np.bincount(index, minlength=bins).astype(np.float64),
            np.bincount(index, weights=confidence, minlength=bins),
            np.bincount(index, weights=correct, minlength=bins),
        ]
    )


def calibration_error_of(sums: NDArray[np.float64]) -> float:
    """Return the expected calibration error of `reliability`'s sums, whose bins may be divided."""
    return float(calibration_errors_of(sums[None])[0])


def calibration_errors_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N,) expected calibration errors of (N, 3, bins) sums."""
    bins = sums.reshape(len(sums), 3, CONFIDENCE_BINS, -1).sum(axis=3)
    return _gap(bins)


def calibration_figures(sums: NDArray[np.float64]) -> dict[str, float]:
    """Return the `CALIBRATION_FIGURES` of the finely divided sums of all pixels.

    `ece` over bins of equal width, `ece_low` the same over the less confident half of the pixels
    alone, `ece_mass` over bins of equal numbers of pixels, `ece_below` and `ece_above` over the
    pixels with a confidence below 0.5 and of 0.5 and more. Within a cell pixels count as alike.
    """
    half = np.minimum(np.cumsum(sums[0]), sums[0].sum() / 2)
    share = np.diff(half, prepend=0) / np.maximum(sums[0], 1)
    below = _cells_below_shown(sums)
    return {
        'ece': calibration_error_of(sums),
        'ece_low': calibration_error_of(sums * share),
        'ece_mass': float(_gap(_equal_mass(sums))),
        'ece_below': calibration_error_of(sums * below),
        'ece_above': calibration_error_of(sums * ~below),
    }


def calibration_bins(sums: NDArray[np.float64]) -> dict[str, Any]:
    """Return what confidences said and what was right, of the finely divided sums of all pixels.

    `equal_mass`: a list of bins of equal numbers of pixels, least confident first; `below` and
    `above`: the pixels with a confidence below 0.5, and of 0.5 and more. Each has `share` of all
    pixels, mean confidence `said` and share `right` within 1 px; None of no pixels.
    """
    below = _cells_below_shown(sums)
    total = max(float(sums[0].sum()), 1.0)

    def said_and_right(part: NDArray[np.float64]) -> dict[str, float | None]:
        pixels, confidence, correct = part
        known = pixels > 0
        return {
            'share': _rounded(pixels / total),
            'said': _rounded(confidence / pixels) if known else None,
            'right': _rounded(correct / pixels) if known else None,
        }

    return {
        'equal_mass': [said_and_right(column) for column in _equal_mass(sums).T],
        'below': said_and_right((sums * below).sum(axis=1)),
        'above': said_and_right((sums * ~below).sum(axis=1)),
    }


def sigma_counts(
    sigma_px: NDArray[np.floating], error_px: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return (4, cells) sums over the pixels in each of `SIGMA_CELLS`.

    Pixels, those with an error within one and within two sigma, and summed sigma.

    Args:
        sigma_px: (N,) pixels; what is not positive and finite is left out.
        error_px: (N,) absolute disparity errors, pixels.
    """
    known = np.isfinite(sigma_px) & (sigma_px > 0)
    sigma, error = sigma_px[known], error_px[known]
    cells = len(SIGMA_CELLS) - 1
    index = np.clip(np.searchsorted(SIGMA_CELLS, sigma, 'right') - 1, 0, cells - 1)
    terms = (None, error <= sigma, error <= 2 * sigma, sigma)
    return np.stack([np.bincount(index, term, cells) for term in terms]).astype(np.float64)


def sigma_bins(counts: NDArray[np.float64]) -> list[dict[str, float]]:
    """Return what sigma said and what was true, in ten bins of equal numbers of pixels.

    Each bin has `pixels`, mean `sigma_px` and the shares `within_one` and `within_two` sigma;
    the smallest sigma comes first. No bin where there are too few pixels for ten.

    Args:
        counts: (4, cells) of `sigma_counts`, or several added.
    """
    if counts[0].sum() < LEAST_SIGMA_PIXELS * SIGMA_BINS:
        return []
    total = np.concatenate([np.zeros((4, 1)), np.cumsum(counts, axis=1)], axis=1)
    ends = np.linspace(0, total[0, -1], SIGMA_BINS + 1)
    bins = np.diff([np.interp(ends, total[0], row) for row in total], axis=1)
    return [
        {
            'pixels': float(pixels),
            'sigma_px': _rounded(sigma / pixels),
            'within_one': _rounded(one / pixels),
            'within_two': _rounded(two / pixels),
        }
        for pixels, one, two, sigma in bins.T
    ]


def _cells_below_shown(sums: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (cells,): whether a cell holds confidences below `SHOWN`, which is a cell's edge."""
    cells = sums.shape[1]
    return np.arange(cells) < SHOWN * cells


def _equal_mass(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (3, CONFIDENCE_BINS) sums over equal numbers of pixels, least confident first."""
    total = np.concatenate([np.zeros((3, 1)), np.cumsum(sums, axis=1)], axis=1)
    ends = np.linspace(0, total[0, -1], CONFIDENCE_BINS + 1)
    return np.diff([np.interp(ends, total[0], row) for row in total], axis=1)


def _gap(bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean gap, weighted by pixels, of sums (..., 3, bins)."""
    gaps = np.abs(bins[..., 1, :] - bins[..., 2, :]).sum(axis=-1)
    return gaps / np.maximum(bins[..., 0, :].sum(axis=-1), 1)


def _unpacked(mask: NDArray[Any], height: int, width: int) -> NDArray[np.bool_]:
    if mask.shape == (height, width):
        return mask.astype(bool)
    return np.unpackbits(mask)[: height * width].reshape(height, width).astype(bool)
