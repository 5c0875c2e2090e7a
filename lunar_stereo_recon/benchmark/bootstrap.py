"""Confidence intervals of the figures: the pairs are drawn repeatedly (bootstrap)."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.evaluation.scores import (
    calibration_errors_of,
    calibration_figures,
    PairScore,
    pooled_figures,
    pooled_ratios,
)

DRAWS = 1000
PERCENTILES = (2.5, 97.5)

Interval = tuple[float, float]
Drawn = dict[str, dict[str, NDArray[np.float64]]]
# Figures of a group of pairs rather than of a subset of their pixels.
GROUP = ''


def wilson_interval(found: float, count: int, z: float = 1.96) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of independent cases (Wilson); None without a case.

    Args:
        found: The share that was seen, in [0, 1].
        count: Of how many.
        z: Standard deviations of a normal distribution; 1.96 for 95 %.
    """
    if not count:
        return None
    middle = (found + z * z / (2 * count)) / (1 + z * z / count)
    half = math.sqrt(found * (1 - found) / count + (z / (2 * count)) ** 2) * z
    half /= 1 + z * z / count
    return max(0.0, middle - half), min(1.0, middle + half)


def intervals(
    scores: Sequence[PairScore], mean_of_pairs: bool = False, draws: int = DRAWS
) -> dict[str, Any]:
    """Return 95 % intervals of the figures that `scores.summarise` gives for one group.

    As there, a dict for each subset (only subsets with pixels), and `ause`, `ece`, `slope_deg`
    and so on; each figure a pair (low, high). Empty for fewer than two pairs, which have no
    spread.
    """
    if len(scores) < 2:
        return {}
    drawn = drawn_figures(scores, _drawn(len(scores), draws), mean_of_pairs)
    found: dict[str, Any] = {
        name: {key: _interval(values) for key, values in figures.items()}
        for name, figures in drawn.items()
    }
    return {**found.pop(GROUP), **found}


def paired_differences(
    before: Sequence[PairScore],
    after: Sequence[PairScore],
    mean_of_pairs: bool = False,
    draws: int = DRAWS,
) -> dict[str, dict[str, tuple[float, Interval | None]]]:
    """Return after minus before of each figure of each subset, and its 95 % interval.

    Both are scores of the same pairs, drawn together: what is hard for both cancels. The figures
    of the whole group are under `GROUP`. Of one pair there is no interval.
    """
    count = len(before)
    weights = np.concatenate([np.ones((1, count)), _drawn(count, draws)])
    first, second = (drawn_figures(each, weights, mean_of_pairs) for each in (before, after))
    found: dict[str, dict[str, tuple[float, Interval | None]]] = {}
    for name, figures in first.items():
        found[name] = {}
        for key, values in figures.items():
            if key in second.get(name, {}):
                change = second[name][key] - values
                spread = _interval(change[1:]) if count > 1 else None
                found[name][key] = (float(change[0]), spread)
    return found


def mean_difference(
    before: Sequence[float], after: Sequence[float], draws: int = DRAWS
) -> tuple[float, Interval | None]:
    """Return the mean of after minus before over pairs, and its 95 % interval."""
    changes = np.subtract(after, before)
    if len(changes) < 2:
        return float(changes.mean()), None
    means = _drawn(len(changes), draws) @ changes / len(changes)
    return float(changes.mean()), _interval(means)


def drawn_figures(
    scores: Sequence[PairScore], weights: NDArray[np.float64], mean_of_pairs: bool
) -> Drawn:
    """Return the figures of each draw by subset and name, (draws,) each, NaN where it has none.

    Args:
        scores: Scores of N pairs.
        weights: (draws, N), how often each pair is in each draw.
        mean_of_pairs: As for `scores.summarise`.
    """
    return (_means if mean_of_pairs else _pooled)(scores, weights)


def _means(scores: Sequence[PairScore], weights: NDArray[np.float64]) -> Drawn:
    values: dict[str, dict[str, list[float]]] = {GROUP: {}}
    for score in scores:
        for name, figures in pooled_figures([score]).items():
            subset = figures if isinstance(figures, dict) else {name: figures}
            known = subset.get('pixels', 1) > 0
            of_subset = values.setdefault(name if isinstance(figures, dict) else GROUP, {})
            for key, value in subset.items():
                figure = np.nan if value is None or not known else value
                of_subset.setdefault(key, []).append(figure)
    return _without_unknown(
        {
            name: {
                key: _weighted_mean(np.array(column), weights)
                for key, column in columns.items()
                if key != 'pixels'
            }
            for name, columns in values.items()
        }
    )


def _pooled(scores: Sequence[PairScore], weights: NDArray[np.float64]) -> Drawn:
    with_confidence = all(score.reliability is not None for score in scores)
    areas = np.array([np.nan if score.ause is None else score.ause for score in scores])
    found: Drawn = {GROUP: {'ause': _weighted_mean(areas, weights)}}
    for subset in scores[0].sums:
        sums = weights @ np.stack([score.sums[subset] for score in scores])
        some = sums[:, 0] > 0
        figures = {key: _where(some, value) for key, value in pooled_ratios(sums.T).items()}
        if with_confidence:
            bins = _drawn_bins(scores, weights, subset)
            figures['ece'] = _where(some, calibration_errors_of(bins))
            if subset == 'all':
                each = [calibration_figures(of_draw) for of_draw in bins]
                found[GROUP] |= {key: np.array([f[key] for f in each]) for key in each[0]}
        found[subset] = figures
    slopes = [score.slope for score in scores if score.slope is not None]
    if len(slopes) == len(scores):
        patches, degrees = (weights @ np.stack(slopes)).T
        found[GROUP]['slope_deg'] = _where(patches > 0, degrees / np.maximum(patches, 1))
    return _without_unknown(found)


def _drawn_bins(
    scores: Sequence[PairScore], weights: NDArray[np.float64], subset: str
) -> NDArray[np.float64]:
    bins = [score.reliability[subset] for score in scores if score.reliability is not None]
    return np.tensordot(weights, np.stack(bins), axes=1)


def _weighted_mean(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (draws,): the mean over the pairs that have a value."""
    total = (weights * np.isfinite(values)).sum(axis=1)
    return _where(total > 0, (weights @ np.nan_to_num(values)) / np.maximum(total, 1))


def _where(known: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(known, values, np.nan)


def _without_unknown(drawn: Drawn) -> Drawn:
    """Return the figures without those that no draw has."""
    kept = {
        name: {key: values for key, values in figures.items() if np.isfinite(values).any()}
        for name, figures in drawn.items()
    }
    return {name: figures for name, figures in kept.items() if figures or name == GROUP}


def _drawn(count: int, draws: int) -> NDArray[np.float64]:
    """Return (draws, count): how often each pair is in each draw; the same for every method."""
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.nanpercentile(values, PERCENTILES)
    return float(low), float(high)
