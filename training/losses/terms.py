"""What the terms of a distillation share: their types, and the mean over the pixels that count.

A term is a plain function of tensors that returns its loss and a dict of monitors (detached
scalars). View 1 is the left image, view 2 the right. Sums run in float32 whatever the inputs.
"""

from __future__ import annotations

from torch import Tensor

Monitors = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]
MIN_DISTANCE = 1e-8


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values where the mask is True, of any equal shapes.

    Zero, still part of the graph, where nothing is valid: one empty view must not stop a run.
    """
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
