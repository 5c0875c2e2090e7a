"""The trainer: build, step, loop, checkpoint, in that order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
import dataclasses
import json
import logging
import math
from pathlib import Path
import time
from typing import Any

import torch
from torch import nn, Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.models.flight import FlightConfig, FlightStudent
from training.checkpoint import git_commit, load_checkpoint, save_checkpoint
from training.data import RenderedPairs
from training.recipe import OptimizerRecipe, Recipe
from training.stereo_losses import flight_losses
from training.validation import validate

LOG = logging.getLogger(__name__)
# Steps with a loss that is not finite are skipped; so many in a row mean a broken run.
MAX_BAD_STEPS = 20


class TrainingDivergedError(ReconError):
    """The loss was not finite for many steps in a row."""


def flight_config(overrides: dict[str, Any]) -> FlightConfig:
    """Return the configuration with overrides from a recipe or a checkpoint."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    return FlightConfig(**values)


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """Return AdamW over every trainable parameter; only matrices and kernels decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': recipe.weight_decay},
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def learning_rate(step: int, recipe: OptimizerRecipe) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    span = max(recipe.total_steps - recipe.warmup_steps, 1)
    progress = min((step - recipe.warmup_steps) / span, 1.0)
    floor = recipe.final_fraction
    return recipe.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """One student, one run, one folder."""

    def __init__(self, recipe: Recipe, folder: Path, device: str = 'cpu') -> None:
        """Build model, optimiser and data.

        Raises:
            InputError: No training data.
        """
        self.recipe, self.folder = recipe, folder
        self.device = torch.device(device)
        self.distributed = torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if self.distributed else 0
        self.world_size = torch.distributed.get_world_size() if self.distributed else 1
        torch.manual_seed(recipe.seed)
        self.config = flight_config(recipe.model)
        self.student = FlightStudent(self.config).to(self.device)
        self.optimizer = build_optimizer(self.student, recipe.optimizer)
        self.average = AveragedModel(
            self.student,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.optimizer.ema_decay),
            use_buffers=True,
        )
        self.model: nn.Module = self.student
        if self.distributed:
            self.model = nn.parallel.DistributedDataParallel(self.student)
        self.data = RenderedPairs(
            recipe.data,
            recipe.seed,
            recipe.optimizer.batch_size,
            self.rank,
            self.world_size,
        )
        self.step = 0
        self.seconds = 0.0
        self.bad_steps = 0

    # -- step ------------------------------------------------------------------------------

    def train_step(self, batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """Take one optimiser step over the given (accumulated) batches; return the terms.

        Raises:
            TrainingDivergedError: The loss was not finite for `MAX_BAD_STEPS` steps in a row.
        """
        optimizer = self.recipe.optimizer
        self.model.train()
        rate = learning_rate(self.step, optimizer)
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        sums: dict[str, float] = {}
        for batch in batches:
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            with self._autocast():
                output = self.model(batch['left'], batch['right'])
                loss, terms = flight_losses(output, batch, self.recipe.losses)
            (loss / len(batches)).backward()
            for name, term in {'loss': loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + term.item() / len(batches)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), optimizer.clip_norm)
        if math.isfinite(sums['loss']) and torch.isfinite(norm):
            self.optimizer.step()
            self.average.update_parameters(self.student)
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            LOG.warning('step %d: loss %s, skipped', self.step, sums['loss'])
            if self.bad_steps >= MAX_BAD_STEPS:
                raise TrainingDivergedError(
                    f'loss not finite for {MAX_BAD_STEPS} steps up to step {self.step}; '
                    f'terms: {sums}; lower optimizer.learning_rate'
                )
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {**sums, 'learning_rate': rate, 'grad_norm': norm.item()}

    def _autocast(self):
        if self.recipe.optimizer.amp == 'off':
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # -- loop ------------------------------------------------------------------------------

    def run(self, minutes: float | None = None) -> None:
        """Train to the recipe's last step, or until the time budget of this call is spent."""
        total = self.recipe.optimizer.total_steps
        started = last = time.monotonic()
        progress = tqdm(
            total=total,
            initial=self.step,
            disable=self.rank > 0,
            unit='step',
            smoothing=0.05,
            mininterval=1.0,
        )
        for batches in self._batches():
            terms = self.train_step(batches)
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            self._report(progress, terms, self.recipe.optimizer.batch_size)
            out_of_time = minutes is not None and now - started > 60 * minutes
            finished = self.step >= total
            if self.step % self.recipe.validate_every == 0 or finished:
                self._validate()
                last = time.monotonic()
            if self.step % self.recipe.checkpoint_every == 0 or finished or out_of_time:
                self.save()
            if out_of_time:
                break
        progress.close()

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        accumulate = self.recipe.optimizer.accumulate
        total = self.recipe.optimizer.total_steps
        loader = DataLoader(
            self.data,
            batch_size=None,
            sampler=range(self.step * accumulate, total * accumulate),
            num_workers=self.recipe.data.workers,
        )
        group = []
        for batch in loader:
            group.append(batch)
            if len(group) == accumulate:
                yield group
                group = []

    def _report(self, progress: tqdm, terms: dict[str, float], pairs: int) -> None:
        progress.update()
        if self.rank or self.step % 10:
            return
        progress.set_postfix({k: f'{v:.3g}' for k, v in terms.items()}, refresh=False)
        rate = progress.format_dict['rate'] or 0.0
        self._log({'step': self.step, 'pairs_per_s': rate * pairs, **terms})

    def _validate(self) -> None:
        if self.rank or not self.recipe.data.validation:
            return
        figures = validate(self.average.module, self.recipe.data.validation, self.device)
        self._log({'step': self.step, 'validation': figures})
        LOG.warning(
            'step %d: %s', self.step, ', '.join(f'{k} {v:.4g}' for k, v in figures.items())
        )

    def _log(self, row: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / 'metrics.jsonl').open('a') as file:
            file.write(json.dumps(row) + '\n')

    # -- checkpoint ------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Return the run's checkpoint file."""
        return self.folder / 'checkpoint.pt'

    def save(self) -> None:
        """Write the checkpoint (first process only)."""
        if self.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(
            self.path,
            {
                'recipe': self.recipe.as_dict(),
                'config': dataclasses.asdict(self.config),
                'student': self.student.state_dict(),
                'average': self.average.state_dict(),
                'optimizer': self.optimizer.state_dict(),
                'torch_rng': torch.get_rng_state(),
                'step': self.step,
                'seconds': self.seconds,
                'git_commit': git_commit(),
            },
        )

    def resume(self) -> None:
        """Go on from the run's checkpoint; does nothing where there is none yet.

        Raises:
            ModelError: The checkpoint is damaged.
        """
        if not self.path.exists():
            return
        content = load_checkpoint(self.path)
        self.student.load_state_dict(content['student'])
        self.average.load_state_dict(content['average'])
        self.optimizer.load_state_dict(content['optimizer'])
        torch.set_rng_state(content['torch_rng'])
        self.step, self.seconds = content['step'], content['seconds']
