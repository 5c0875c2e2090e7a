"""The trainer: build, step, loop, checkpoint, in that order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
import logging
import math
from pathlib import Path
import time
from typing import Any

import torch
from torch import distributed, nn, Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lunar_stereo_recon.errors import InputError, ModelError, ReconError
from training.batch_norm import share_batch_norms
from training.changed_recipe import changes, refuse_changes
from training.checkpoint import git_commit, is_checkpoint, load_checkpoint, save_checkpoint
from training.curves import read_curves, ScalarLog
from training.data.batches import PairsOnTheFly, RenderedPairs, StepBatches, use_one_thread
from training.frozen_teacher import Batch, load_frozen_teacher
from training.learner import build_learner, Learner
from training.models.checkpoints import load_state
from training.recipe import OptimizerRecipe, Recipe, StartRecipe
from training.start.first_weights import start_student
from training.students import config_values
from training.validation import check_frames, validate_student

LOG = logging.getLogger(__name__)
# Steps with a loss that is not finite are skipped; this many in a row mean a broken run.
MAX_BAD_STEPS = 20
# A term that is exactly 0 for this many steps in a row teaches nothing.
SILENT_STEPS = 50
NOT_TERMS = ('loss', 'grad_norm')
# Unreadable pairs that are named at the end of a run.
LISTED = 10


class TrainingDivergedError(ReconError):
    """The loss was not finite for many steps in a row."""


def build_optimizer(learner: Learner, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """Return AdamW over every trainable parameter; only matrices and kernels decay."""
    parameters = [p for p in learner.student.parameters() if p.requires_grad]
    groups = [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': recipe.weight_decay},
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    if learner.projectors:
        groups.append({'params': list(learner.projectors.parameters()), 'weight_decay': 0.0})
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, recipe.beta2))


def learning_rate(step: int, recipe: OptimizerRecipe, progress: float = 0.0) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay.

    Args:
        step: Counted from 0.
        recipe: Recipe of the schedule.
        progress: Part of the decay, in [0, 1], that time alone has brought; what the steps have
            brought counts where it is more.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    span = max(recipe.total_steps - recipe.warmup_steps, 1)
    progress = min(max((step - recipe.warmup_steps) / span, progress), 1.0)
    floor = recipe.final_fraction
    return recipe.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_data(recipe: Recipe, rank: int = 0, world_size: int = 1) -> StepBatches:
    """Return the batches of a recipe.

    Raises:
        InputError: A folder holds no pairs.
    """
    share = recipe.seed, recipe.optimizer.batch_size, rank, world_size
    if recipe.data.kind == 'stereolunar':
        # Needs OpenEXR, which rendered pairs do not.
        from training.data.stereolunar import StereoLunarPairs

        return StereoLunarPairs(recipe.data, *share)
    if recipe.data.kind == 'on_the_fly':
        return PairsOnTheFly(recipe.data, *share)
    return RenderedPairs(recipe.data, *share)


class StudentInTraining:
    """One student with its losses, optimiser and averaged weights.

    Attributes:
        learner: Student, projectors and losses.
        average: The averaged weights, which are validated and exported.
    """

    def __init__(self, name: str, learner: Learner, recipe: OptimizerRecipe) -> None:
        self.name, self.recipe = name, recipe
        self.learner = learner
        self.optimizer = build_optimizer(learner, recipe)
        self.average = AveragedModel(
            learner.student,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay),
            use_buffers=True,
        )
        self.model: nn.Module = learner
        self.sums: dict[str, Tensor] = {}
        self.bad_steps = 0
        self._silent: Counter[str] = Counter()

    @property
    def student(self) -> nn.Module:
        """Return the network that is trained."""
        return self.learner.student

    def distribute(self) -> None:
        """Share batch norms and gradients with the other processes of the run."""
        share_batch_norms(self.student)
        # A loss that is off may leave parts of a network without a gradient.
        self.model = nn.parallel.DistributedDataParallel(
            self.learner, broadcast_buffers=False, find_unused_parameters=True
        )

    def backward(self, batch: Batch, lesson: Batch, share: float, last: bool) -> None:
        """Add a batch's gradients and terms, each times `share`."""
        self.model.train()
        amp = self.recipe.amp == 'bf16'
        exchange: AbstractContextManager[Any] = nullcontext()
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not last:
            exchange = self.model.no_sync()  # gradients are exchanged with the last batch's
        with exchange:
            with torch.autocast(batch['left'].device.type, torch.bfloat16, enabled=amp):
                loss, terms = self.model(batch, lesson)
            (loss * share).backward()
        for name, term in {'loss': loss, **terms}.items():
            # Kept on the device: to read each of them would stop a GPU as often.
            sum_ = term.detach().double() * share
            self.sums[name] = self.sums[name] + sum_ if name in self.sums else sum_

    def step(self, number: int, progress: float) -> dict[str, float]:
        """Take an optimiser step on the gradients gathered; return the terms.

        Args:
            number: Number of the step.
            progress: See `learning_rate`.

        Raises:
            TrainingDivergedError: The loss was not finite for `MAX_BAD_STEPS` steps in a row.
        """
        rate = learning_rate(number, self.recipe, progress)
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        trained = [p for group in self.optimizer.param_groups for p in group['params']]
        norm = nn.utils.clip_grad_norm_(trained, self.recipe.clip_norm)
        terms = mean_over_processes({**self.sums, 'grad_norm': norm.double()})
        self.sums = {}
        self._warn_of_silent_terms(number, terms)
        # Terms and gradients are those of all processes, so all take the same branch.
        if math.isfinite(terms['loss']) and math.isfinite(terms['grad_norm']):
            self.optimizer.step()
            self.average.update_parameters(self.student)
            self.bad_steps = 0
        else:
            self._restore_statistics()
            self._count_bad_step(number, terms)
        self.optimizer.zero_grad(set_to_none=True)
        return {**terms, 'learning_rate': rate}

    def _warn_of_silent_terms(self, number: int, terms: dict[str, float]) -> None:
        # What stands behind a slash is a monitor of a term.
        for term in (name for name in terms if '/' not in name and name not in NOT_TERMS):
            self._silent[term] = self._silent[term] + 1 if terms[term] == 0 else 0
            if self._silent[term] == SILENT_STEPS:
                LOG.warning(
                    'step %d: loss %s of %s has been 0 for %d steps: it is enabled, but teaches '
                    'nothing',
                    number,
                    term,
                    self.name,
                    SILENT_STEPS,
                )

    def _restore_statistics(self) -> None:
        """Take back running statistics that a bad batch has spoilt; no later one mends them."""
        kept = self.average.module.buffers()
        for now, before in zip(self.student.buffers(), kept, strict=True):
            if not torch.isfinite(now).all():
                now.copy_(before)

    def _count_bad_step(self, number: int, terms: dict[str, float]) -> None:
        self.bad_steps += 1
        LOG.warning('step %d: loss of %s is %s, skipped', number, self.name, terms['loss'])
        if self.bad_steps >= MAX_BAD_STEPS:
            raise TrainingDivergedError(
                f'{self.name}: loss not finite for {MAX_BAD_STEPS} steps up to step {number}; '
                f'terms: {terms}; lower optimizer.learning_rate'
            )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of this student."""
        optimizer = self.optimizer.state_dict()
        # A checkpoint is a tree of dicts with text keys; the optimiser counts its parameters.
        moments = {str(number): values for number, values in optimizer['state'].items()}
        return {
            'kind': self.learner.recipe.kind,
            'config': config_values(self.student),
            'student': self.student.state_dict(),
            'average': self.average.state_dict(),
            'optimizer': {'state': moments, 'param_groups': optimizer['param_groups']},
            'projectors': self.learner.projectors.state_dict(),
        }

    def load(self, state: dict[str, Any], source: str) -> None:
        """Go on from the state in a checkpoint, which errors call `source`.

        Raises:
            ModelError: It is of another network; names the first entries that differ.
        """
        load_state(self.student, state['student'], source)
        self.average.load_state_dict(state['average'])
        optimizer = state['optimizer']
        moments = {int(number): values for number, values in optimizer['state'].items()}
        # Moments are the checkpoint's, settings (rates, decay) the recipe's.
        settings = self.optimizer.state_dict()['param_groups']
        self.optimizer.load_state_dict({**optimizer, 'state': moments})
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update({name: value for name, value in own.items() if name != 'params'})
        # In the parameters' memory layout, in which the optimiser is fast.
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if name != 'step':
                    values[name] = torch.empty_like(parameter).copy_(value)
        self.learner.projectors.load_state_dict(state['projectors'])


def mean_over_processes(terms: dict[str, Tensor]) -> dict[str, float]:
    """Return the terms averaged over the processes of the run."""
    values = torch.stack(list(terms.values()))
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return dict(zip(terms, values.tolist(), strict=True))


def most_of_processes(value: float, device: torch.device) -> float:
    """Return the largest of the processes' values: all must take the same branch."""
    if not distributed.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return shared.item()


class Trainer:
    """One recipe, its students, one folder.

    Attributes:
        step: Optimiser steps done.
        seconds: Of training, validation left out.
        progress: In [0, 1], of a schedule that time ends; see `run`.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        device: str = 'cpu',
        resume: bool = False,
        accept_changes: bool = False,
    ) -> None:
        """Build teacher, students, optimisers and data.

        Args:
            recipe: The run.
            folder: Folder of checkpoint and log.
            device: Torch device.
            resume: Go on from the folder's checkpoint if there is one.
            accept_changes: Go on though that one was trained with another recipe; optimiser
                settings are then this one's.

        Raises:
            InputError: No training data, a recipe that cannot be built, or one that is not the
                checkpoint's.
            ModelError: A weight file is damaged or does not fit.
        """
        recipe.check()
        self.recipe, self.folder = recipe, folder
        self.accept_changes = accept_changes
        self.device = torch.device(device)
        self.distributed = distributed.is_initialized()
        self.rank = distributed.get_rank() if self.distributed else 0
        self.world_size = distributed.get_world_size() if self.distributed else 1
        if recipe.optimizer.batch_size % self.world_size:
            raise InputError(
                f'optimizer.batch_size is {recipe.optimizer.batch_size}; it must be a multiple '
                f'of the number of processes, {self.world_size}'
            )
        teacher = recipe.teacher.checkpoint
        if teacher and Path(teacher).expanduser().resolve() == self.path.resolve():
            raise InputError(
                f'teacher.checkpoint is {teacher}, where this run would write its own; give the '
                'run another name or --out'
            )
        for name, student in recipe.students.items():
            start = student.start.checkpoint
            if student.anchor and Path(start).expanduser().resolve() == self.path.resolve():
                raise InputError(
                    f'students.{name}.start.checkpoint is {start}, where this run would write its '
                    'own, and anchor holds to its weights; give the run another name or --out'
                )
        torch.manual_seed(recipe.seed)
        self.teacher = load_frozen_teacher(recipe.teacher, self.device)
        self.data = build_data(recipe, self.rank, self.world_size)
        check_frames(recipe.data)
        # Weights that a checkpoint replaces need no start.
        resume = resume and is_checkpoint(self.path)
        content = self._checkpoint() if resume else None
        self.students = {name: self._build_student(name, not resume) for name in recipe.students}
        self.log = ScalarLog(folder, fresh=not resume) if self.rank == 0 else None
        self.step = 0
        self.seconds = 0.0
        self.progress = 0.0
        if content is not None:
            self._load(content)

    def _build_student(self, name: str, start: bool) -> StudentInTraining:
        student_recipe = self.recipe.students[name]
        learner = build_learner(student_recipe, self.teacher)
        if start:
            pairs = self._fitting_pairs(student_recipe.start)
            plan = start_student(learner, self.teacher, pairs)
            if plan and self.rank == 0:
                print(f'{name} starts from its teacher:\n{plan}')
        # Channels last: convolutions on the CPU train a quarter faster, attention as before.
        for parameter in learner.to(self.device).parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        member = StudentInTraining(name, learner, self.recipe.optimizer)
        if self.distributed:
            member.distribute()
        return member

    def _fitting_pairs(self, start: StartRecipe) -> Batch | None:
        if start.method != 'shared_basis' or not start.pairs:
            return None
        # The same pairs in every process, so that all start from the same weights.
        whole = build_data(self.recipe)
        whole.batch_size = start.pairs
        return self._on_device(whole[0])

    def _on_device(self, batch: dict[str, Tensor]) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    # -- step ------------------------------------------------------------------------------

    def train_step(self, batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """Take one optimiser step over the given (accumulated) batches; return the terms.

        The teacher sees each batch once, whatever the number of students. Terms carry the
        student's name where there are several.

        Raises:
            TrainingDivergedError: A loss was not finite for `MAX_BAD_STEPS` steps in a row.
        """
        wanted = frozenset().union(*(s.learner.wanted for s in self.students.values()))
        for number, batch in enumerate(batches):
            batch = self._on_device(batch)
            lesson = self.teacher.lesson(batch, wanted) if self.teacher else {}
            last = number == len(batches) - 1
            for student in self.students.values():
                student.backward(batch, lesson, 1 / len(batches), last)
        terms: dict[str, float] = {}
        for name, student in self.students.items():
            prefix = f'{name}/' if len(self.students) > 1 else ''
            found = student.step(self.step, self.progress)
            terms |= {f'{prefix}{key}': value for key, value in found.items()}
        self.step += 1
        return terms

    # -- loop ------------------------------------------------------------------------------

    def run(
        self,
        minutes: float | None = None,
        finish_in: float | None = None,
        stop_at: int | None = None,
    ) -> bool:
        """Train to the recipe's last step, or until the time budget of this call is spent.

        Args:
            minutes: Budget of this call; a later one goes on.
            finish_in: Minutes from now in which the schedule comes to its end, in this call or,
                where that is longer than its budget, in later ones; the last step of the recipe
                ends it sooner. A run that was stopped keeps how far it was.
            stop_at: Stop with a checkpoint at this step; a later call goes on.

        Returns:
            Whether the run is at its end.
        """
        total = self.recipe.optimizer.total_steps
        if self.progress >= 1.0:
            return True
        if self.step == 0 and any(s.start.checkpoint for s in self.recipe.students.values()):
            self._validate()  # what there is to be better than
        started = last = time.monotonic()
        before = self.progress
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
            self._report(progress, terms)
            elapsed = most_of_processes(now - started, self.device) / 60
            if finish_in is not None:
                part = min(elapsed / finish_in, 1.0) if finish_in > 0 else 1.0
                self.progress = before + (1.0 - before) * part
            out_of_time = minutes is not None and elapsed > minutes
            out_of_time = out_of_time or (stop_at is not None and self.step >= stop_at)
            finished = self.step >= total or self.progress >= 1.0
            if self.step % self.recipe.validate_every == 0 or finished:
                self._validate()
                last = time.monotonic()
            if self.step % self.recipe.checkpoint_every == 0 or finished or out_of_time:
                self.save()
            if finished:
                self._tell_if_worse()
            if finished or out_of_time:
                break
        progress.close()
        self._list_unreadable()
        return self.step >= total or self.progress >= 1.0

    def _list_unreadable(self) -> None:
        left_out = self.data.unreadable
        if left_out:
            names = ', '.join(str(entry) for entry in left_out[:LISTED])
            more = ', ...' if len(left_out) > LISTED else ''
            count, total = len(left_out), len(self.data.entries)
            LOG.warning('%d of %d pairs could not be read: %s%s', count, total, names, more)

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        accumulate = self.recipe.optimizer.accumulate
        total = self.recipe.optimizer.total_steps
        loader = DataLoader(
            self.data,
            batch_size=None,
            sampler=range(self.step * accumulate, total * accumulate),
            num_workers=self.recipe.data.workers,
            worker_init_fn=use_one_thread,
            # A fork of a process in which OpenCV and torch have run threads waits for threads that
            # it does not have.
            multiprocessing_context='spawn' if self.recipe.data.workers else None,
            pin_memory=self.device.type == 'cuda',
        )
        group = []
        for batch in loader:
            group.append(batch)
            if len(group) == accumulate:
                yield group
                group = []

    def _report(self, progress: tqdm[Any], terms: dict[str, float]) -> None:
        progress.update()
        if self.log is None or self.step % 10:
            return
        pairs = self.recipe.optimizer.batch_size * self.recipe.optimizer.accumulate
        rate = progress.format_dict['rate'] or 0.0
        values = {'pairs_per_s': rate * pairs, **terms}
        progress.set_postfix({k: f'{v:.3g}' for k, v in values.items()}, refresh=False)
        self.log.write(self.step, values)

    def _validate(self) -> None:
        if self.log is None or not self.recipe.data.validation:
            return
        for name, student in self.students.items():
            network = student.average.module
            figures = validate_student(network, self.recipe.data, self.device)
            several = len(self.students) > 1
            self.log.write_validation(self.step, figures, name if several else '')
            text = ', '.join(f'{k} {v:.4g}' for k, v in figures.items())
            LOG.warning('step %d, %s: %s', self.step, name, text)

    def _tell_if_worse(self) -> None:
        """Warn where a student that began as a trained one is no better at the end."""
        if self.log is None or not self.recipe.data.validation:
            return
        curves = read_curves(self.folder)
        for name in self.students:
            prefix = f'{name}/' if len(self.students) > 1 else ''
            for figure in ('epe', 'abs_rel'):
                points = curves.get(f'{prefix}validation/{figure}', [])
                # Not `>=`: that is false of NaN.
                if points and points[0][0] == 0 and not points[-1][1] < points[0][1]:
                    LOG.warning(
                        '%s is no better than what it began with: validation %s %.4g, was %.4g',
                        name,
                        figure,
                        points[-1][1],
                        points[0][1],
                    )

    # -- checkpoint ------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Return the folder of the run's checkpoint."""
        return self.folder / 'checkpoint'

    def save(self, path: Path | None = None) -> None:
        """Write the checkpoint (first process only), to the run's folder or another."""
        if self.rank:
            return
        save_checkpoint(
            path or self.path,
            {
                'recipe': self.recipe.as_dict(),
                'students': {name: student.state() for name, student in self.students.items()},
                'torch_rng': torch.get_rng_state(),
                'step': self.step,
                'seconds': self.seconds,
                'progress': self.progress,
                'git_commit': git_commit(),
            },
        )

    def resume(self) -> None:
        """Go on from the run's checkpoint; does nothing where there is none yet.

        Raises:
            InputError: It was trained with another recipe.
            ModelError: The checkpoint is damaged, or of other students.
        """
        if is_checkpoint(self.path):
            self._load(self._checkpoint())
            if self.log is not None:
                self.log.fresh = False

    def _checkpoint(self) -> dict[str, Any]:
        content = load_checkpoint(self.path)
        if set(content['students']) != set(self.recipe.students):
            raise ModelError(
                f'{self.path} holds students {", ".join(content["students"])}; the recipe has '
                f'{", ".join(self.recipe.students)}'
            )
        if not self.accept_changes:
            refuse_changes(content['recipe'], self.recipe, self.path)
        elif self.rank == 0:
            for change in changes(content['recipe'], self.recipe):
                LOG.warning('going on under a changed recipe: %s', change)
        return content

    def _load(self, content: dict[str, Any]) -> None:
        for name, student in self.students.items():
            source = f'{self.path}, student {name}'
            try:
                student.load(content['students'][name], source)
            except (RuntimeError, ValueError) as error:
                raise ModelError(f'{source}: {error}') from error
        torch.set_rng_state(content['torch_rng'])
        self.step, self.seconds = content['step'], content['seconds']
        self.progress = content['progress']
