"""A training run as data: one YAML file a run, checked against these dataclasses.

Unknown keys and wrong types are errors. `--set section.key=value` overrides single values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lunar_stereo_recon.errors import InputError


@dataclass
class DataRecipe:
    """Where the pairs come from and how they are varied.

    Attributes:
        train: Folders of rendered pairs (`lunar_stereo_recon.simulation.dataset`).
        validation: Folder of full frames, never trained on; '' for none.
        crop_height, crop_width: Random crop, pixels; multiples of 32.
        photometric: Vary exposure, gain, gamma and noise on top of the rendered camera.
        max_vertical_offset_px: Largest random shift of the right rows, pixels.
        workers: Loader processes.
        max_unreadable_fraction: The run stops when more of the files than this cannot be read.
    """

    train: list[str] = field(default_factory=list)
    validation: str = ''
    crop_height: int = 256
    crop_width: int = 384
    photometric: bool = True
    max_vertical_offset_px: float = 0.3
    workers: int = 1
    max_unreadable_fraction: float = 0.01


@dataclass
class LossRecipe:
    """Weight of each loss of the flight student; 0 switches it off.

    Attributes:
        disparity: Full-resolution disparity.
        upsampled: Disparity at stride 2 before the correction there.
        coarse: Disparity at stride 4 after the correction there.
        first: Disparity at stride 4 before it.
        bins: Cross entropy of the aggregated bins.
        correlation: Cross entropy of the raw correlation, on pixels seen in both views.
        match: Cross entropy of the matching at stride 2, on pixels seen in both views.
        confidence: Binary cross entropy of "error below one pixel"; sky counts as wrong.
    """

    disparity: float = 1.0
    upsampled: float = 0.3
    coarse: float = 0.3
    first: float = 0.3
    bins: float = 0.5
    correlation: float = 0.3
    match: float = 0.3
    confidence: float = 0.3


@dataclass
class OptimizerRecipe:
    """AdamW with warm-up and cosine decay.

    Attributes:
        learning_rate: At the top of the schedule.
        final_fraction: Of the learning rate, at the last step.
        weight_decay: On matrices and kernels; norms, biases and scalars have none.
        warmup_steps, total_steps: Optimiser steps.
        batch_size: Pairs a step, over all processes.
        accumulate: Backward passes a step.
        clip_norm: Largest norm of the gradient.
        ema_decay: Of the averaged weights that are validated and exported.
        amp: 'off' or 'bf16'.
    """

    learning_rate: float = 1e-3
    final_fraction: float = 0.01
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    total_steps: int = 4000
    batch_size: int = 4
    accumulate: int = 1
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    amp: str = 'off'


@dataclass
class Recipe:
    """A whole run.

    Attributes:
        name: Name of the run and of the exported model.
        seed: Of initial weights, crops and order.
        model: Overrides of `FlightConfig`.
    """

    name: str = 'flight'
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    data: DataRecipe = field(default_factory=DataRecipe)
    losses: LossRecipe = field(default_factory=LossRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    checkpoint_every: int = 250
    validate_every: int = 1000

    def as_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as plain values, as stored in checkpoints."""
        return asdict(self)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: `section.key=value` strings, applied last.

    Raises:
        InputError: The file is missing, or a key or type is wrong; says which.
    """
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Recipe),
            OmegaConf.load(path),
            OmegaConf.from_dotlist(list(overrides)),
        )
        return OmegaConf.to_object(merged)
    except (OSError, OmegaConfBaseException) as error:
        raise InputError(f'recipe {path}: {error}') from error
