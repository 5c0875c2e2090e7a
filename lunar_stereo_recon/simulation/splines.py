"""Cubic B-splines on even lattices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spline_weights(at: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """Return (M, N) the weights of a cubic B-spline's N coefficients at M places (0..N - 1)."""
    weights = np.zeros((len(at), count))
    whole = np.clip(np.floor(at).astype(int), 0, count - 1)
    t = at - whole
    basis = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    for offset, values in zip((-1, 0, 1, 2), basis, strict=True):
        np.add.at(weights, (np.arange(len(at)), np.clip(whole + offset, 0, count - 1)), values)
    return weights
