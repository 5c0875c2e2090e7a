"""Figures of several seeds: their mean with its interval, and differences seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
import math
import statistics

# Two-sided 95 % points of Student's distribution by degrees of freedom; beyond, the normal one's.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL_95 = 1.96


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half the width of its 95 % interval; NaN of fewer than two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    freedom = len(values) - 1
    factor = T_95[freedom - 1] if freedom <= len(T_95) else NORMAL_95
    return mean, factor * statistics.stdev(values) / math.sqrt(len(values))


def difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the mean of values minus others and half of its interval, taken seed by seed.

    Args:
        values, others: One a seed, in the same order.
    """
    return interval([value - other for value, other in zip(values, others, strict=True)])


def verdict(mean: float, half: float) -> str:
    """Return what a difference of errors says: 'better', 'worse' or 'not clear'."""
    if not abs(mean) > half:  # NaN too
        return 'not clear'
    return 'better' if mean < 0 else 'worse'
