"""How sure the pooled figures are: the pairs are drawn again and again (bootstrap)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.evaluation.scores import calibration_error_of, PairScore, pooled_ratios

DRAWS = 1000
PERCENTILES = (2.5, 97.5)

Interval = tuple[float, float]


def intervals(scores: Sequence[PairScore], draws: int = DRAWS) -> dict[str, Any]:
    """Return 95 % intervals of the figures that `scores.summarise` gives for one group.

    As there, a dict for each subset (only subsets with pixels), and `ause`, `ece`, `slope_deg`;
    each figure a pair (low, high). Empty for fewer than two pairs, which say nothing of spread.
    """
    if len(scores) < 2:
        return {}
    weights = _drawn(len(scores), draws)
    found: dict[str, Any] = {}
    for subset in scores[0].sums:
        sums = np.stack([score.sums[subset] for score in scores])
        if sums[:, 0].any():
            ratios = pooled_ratios((weights @ sums).T)
            found[subset] = {key: _interval(values) for key, values in ratios.items()}
    ause = np.array([np.nan if score.ause is None else score.ause for score in scores])
    if np.isfinite(ause).any():
        known = weights * np.isfinite(ause)
        total = known.sum(axis=1)
        mean = known @ np.nan_to_num(ause) / np.maximum(total, 1)
        found['ause'] = _interval(mean[total > 0])
    bins = [score.reliability['all'] for score in scores if score.reliability is not None]
    if len(bins) == len(scores):
        pooled = np.tensordot(weights, np.stack(bins), axes=1)
        found['ece'] = _interval(np.array([calibration_error_of(sums) for sums in pooled]))
    slopes = [score.slope for score in scores if score.slope is not None]
    if len(slopes) == len(scores) and np.any(slopes):
        patches, degrees = (weights @ np.stack(slopes)).T
        found['slope_deg'] = _interval(degrees[patches > 0] / patches[patches > 0])
    return found


def paired_difference(
    before: Sequence[PairScore],
    after: Sequence[PairScore],
    subset: str,
    key: str,
    draws: int = DRAWS,
) -> tuple[float, Interval]:
    """Return after minus before of one figure and its 95 % interval.

    Both are scores of the same pairs, drawn together: what is hard for both cancels.
    """
    sums = [np.stack([score.sums[subset] for score in scores]) for scores in (before, after)]
    first, second = (float(pooled_ratios(part.sum(axis=0))[key]) for part in sums)
    weights = _drawn(len(before), draws)
    drawn = [pooled_ratios((weights @ part).T)[key] for part in sums]
    return second - first, _interval(drawn[1] - drawn[0])


def _drawn(count: int, draws: int) -> NDArray[np.float64]:
    """Return (draws, count): how often each pair is in each draw; the same for every method."""
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)
