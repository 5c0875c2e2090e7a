"""A student with its losses: one module that takes a batch and a lesson and returns a loss.

The losses are inside, so that DistributedDataParallel sees projectors and student alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import InputError, ModelError
from training.checkpoint import trained_network
from training.frozen_teacher import Batch, flight_tokens, Teacher
from training.losses.distillation import distillation_loss, LossWeights
from training.losses.features import FeatureProjector
from training.losses.sparse_points import strongest_corners
from training.losses.stereo import feature_loss, flight_losses, teacher_labels
from training.models.flight import FlightStudent
from training.models.lunar_teacher import pointmaps_from_disparity
from training.models.mast3r import Mast3r
from training.recipe import LossRecipe, StudentRecipe
from training.students import build_student, encoder_modules, feature_widths, grey, rgb

TOKEN_STRIDE = 16
PARTS = ('encoder', 'decoder')
NOT_TERMS = 'feature_margin', 'edge_weight'
# Losses of a flight student: all numbers of a `LossRecipe` that are weights.
FLIGHT_TERMS = tuple(item.name for item in fields(LossRecipe) if item.name not in NOT_TERMS)


class Learner(nn.Module):
    """What students of both families have in common.

    Attributes:
        student: The network that is trained.
        projectors: 'encoder' and 'decoder' where those feature losses are on; dropped after
            training.
        wanted: Entries of a lesson that the enabled losses need.
    """

    wanted: frozenset[str]

    def __init__(
        self, recipe: StudentRecipe, student: nn.Module, parts: list[str], teacher: Teacher | None
    ) -> None:
        super().__init__()
        self.recipe, self.student = recipe, student
        self.projectors = nn.ModuleDict()
        for part in parts:
            if teacher is None:
                raise ModelError(f'loss {part}_features is enabled but there is no teacher')
            width = dict(zip(PARTS, feature_widths(student), strict=True))[part]
            self.projectors[part] = FeatureProjector(width, getattr(teacher, f'{part}_width'))
        if recipe.freeze_encoder:
            for module in encoder_modules(student):
                module.requires_grad_(False)
        if recipe.anchor:
            for number, weights in enumerate(self._held()):
                # Not kept in checkpoints: they are those of `start.checkpoint`.
                start = weights.detach().clone()
                self.register_buffer(f'start_{number}', start, persistent=False)

    def _held(self) -> list[Tensor]:
        return [weights for weights in self.student.parameters() if weights.requires_grad]

    def distance_from_start(self) -> Tensor:
        """Return the squared distance from the first weights, over their squared length."""
        pairs = [(now, self.get_buffer(f'start_{i}')) for i, now in enumerate(self._held())]
        way = torch.stack([(now - start).square().sum() for now, start in pairs]).sum()
        return way / torch.stack([start.square().sum() for _, start in pairs]).sum()

    def anchored(self, total: Tensor, terms: Batch) -> tuple[Tensor, Batch]:
        """Add the penalty for leaving the start, where the recipe has one."""
        if not self.recipe.anchor:
            return total, terms
        distance = self.distance_from_start()
        return total + self.recipe.anchor * distance, {**terms, 'anchor': distance.detach()}

    def feature_projectors(self) -> Iterator[tuple[str, FeatureProjector]]:
        """Yield the parts whose features are compared, and their projectors."""
        for part, projector in self.projectors.items():
            assert isinstance(projector, FeatureProjector)
            yield part, projector

    def train(self, mode: bool = True) -> Learner:
        """Set the mode; a frozen encoder keeps its statistics."""
        super().train(mode)
        if self.recipe.freeze_encoder:
            for module in encoder_modules(self.student):
                module.eval()
        return self


class FlightLearner(Learner):
    """A flight student on rectified pairs."""

    student: FlightStudent

    def __init__(
        self, recipe: StudentRecipe, student: FlightStudent, teacher: Teacher | None
    ) -> None:
        if recipe.distillation:
            raise InputError('distillation is for students of the MASt3R kind; flight has losses')
        if recipe.ground_truth_points:
            raise InputError(
                'ground_truth_points is for students of the MASt3R kind: losses of a flight '
                'student are means over cells that must be known as a whole'
            )
        weights = {name: getattr(recipe.losses, name) for name in FLIGHT_TERMS}
        if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
            raise InputError(f'weights of losses are {weights}; none below 0, one above is needed')
        parts = [part for part in PARTS if getattr(recipe.losses, f'{part}_features')]
        super().__init__(recipe, student, parts, teacher)
        wanted = {f'{part}{view}' for part in parts for view in (1, 2)}
        if recipe.losses.soft_bins:
            wanted.add('logits')
        if recipe.target == 'teacher':
            wanted |= {'disparity', 'confidence'}
        self.wanted = frozenset(wanted)

    def forward(self, batch: Batch, lesson: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses, each one before weighting, and monitors."""
        left, right = grey(batch['left']), grey(batch['right'])
        output = self.student(left, right)
        losses = self.recipe.losses
        labels = {**self._labels(batch, lesson), 'left': left, 'right': right}
        total, terms = flight_losses(output, labels, losses, lesson)
        grid = left.shape[-2] // TOKEN_STRIDE, left.shape[-1] // TOKEN_STRIDE
        tokens = flight_tokens(output)
        for part, projector in self.feature_projectors():
            term, below = feature_loss(
                tokens, lesson, part, grid, projector, losses.feature_margin
            )
            terms[f'{part}_features'] = term
            terms[f'{part}_features/below_margin'] = below
            total = total + getattr(losses, f'{part}_features') * term
        return self.anchored(total, terms)

    def _labels(self, batch: Batch, lesson: Batch) -> Batch:
        if self.recipe.target == 'teacher':
            source = lesson
        elif 'confidence' in batch:  # labels that a teacher wrote to disk
            source = batch
        elif 'disparity' in batch:
            return batch
        else:
            raise InputError('a flight student learns from rectified pairs with disparity')
        return teacher_labels(
            source['disparity'], source['confidence'], self.recipe.min_confidence
        )


class PointmapLearner(Learner):
    """A student of the MASt3R kind, on pairs of any geometry."""

    student: Mast3r

    def __init__(self, recipe: StudentRecipe, student: Mast3r, teacher: Teacher | None) -> None:
        if recipe.losses != LossRecipe():
            raise InputError('losses is for flight students; this one has distillation')
        try:
            weights = LossWeights(**recipe.distillation)
        except TypeError as error:
            raise InputError(f'distillation: {error}') from error
        if recipe.ground_truth_points and weights.gradient:
            raise InputError(
                'ground_truth_points is on and so is the gradient loss, which needs neighbouring '
                'pixels; set distillation.gradient to 0'
            )
        parts = [part for part in PARTS if getattr(weights, f'{part}_features')]
        super().__init__(recipe, student, parts, teacher)
        self.weights = weights
        self.wanted = frozenset(self._wanted(parts))

    def _wanted(self, parts: list[str]) -> set[str]:
        weights = self.weights
        names = list(parts)
        if weights.relational and 'decoder' not in names:
            names.append('decoder')
        if self.recipe.target == 'teacher':
            names.append('pointmap')
        if weights.teacher_confidence or weights.min_teacher_confidence:
            names.append('conf')
        return {f'{name}{view}' for name in names for view in (1, 2)}

    def forward(self, batch: Batch, lesson: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses, and their terms and monitors."""
        left, right = rgb(batch['left']), rgb(batch['right'])
        output = self.student(left, right, with_tokens=True)
        grid = [left.shape[-2] // TOKEN_STRIDE, left.shape[-1] // TOKEN_STRIDE]
        target: dict[str, object] = dict(lesson)
        if self.recipe.target == 'ground_truth':
            truth = true_pointmaps(batch)
            target |= truth
            batch = {**batch, **self._known(left, right, truth)}
        for view in (1, 2):
            levels = [lesson.get(f'{part}{view}') for part in PARTS]
            if any(level is not None for level in levels):
                target[f'tokens{view}'] = levels
        batch = {**batch, 'grid': torch.tensor(grid)}
        loss, terms = distillation_loss(
            output, target, batch, self.weights, dict(self.projectors.items())
        )
        return self.anchored(loss, terms)

    def _known(self, left: Tensor, right: Tensor, truth: Batch) -> Batch:
        """Return where the ground truth counts, `valid1` and `valid2` (B, H, W)."""
        masks = {name: truth[name] for name in ('valid1', 'valid2')}
        points = self.recipe.ground_truth_points
        if not points:
            return masks
        views = zip(masks.items(), (left, right), strict=True)
        return {name: strongest_corners(view, mask, points) for (name, mask), view in views}


def true_pointmaps(batch: Batch) -> Batch:
    """Return `pointmap1`, `pointmap2` (B, H, W, 3) and where they are known, `valid1`, `valid2`.

    Rectified pairs with the disparities of both views have them up to scale.

    Raises:
        InputError: The pairs have neither.
    """
    names = ('pointmap1', 'pointmap2', 'valid1', 'valid2')
    if all(name in batch for name in names):
        return {name: batch[name] for name in names}
    lacking = [
        name for name in ('disparity', 'disparity_right', 'intrinsics') if name not in batch
    ]
    if lacking:
        raise InputError(
            f'target is ground_truth, but the pairs have no pointmap1, pointmap2 and no '
            f'{", ".join(lacking)}: rendered pairs hold the left disparity alone; take '
            'StereoLunar pairs or warped textures, or target teacher'
        )
    disparities = batch['disparity'], batch['disparity_right']
    known = [torch.isfinite(disparity) for disparity in disparities]
    one, two = pointmaps_from_disparity(*disparities, batch['intrinsics'])
    return {'pointmap1': one, 'pointmap2': two, 'valid1': known[0], 'valid2': known[1]}


def build_learner(recipe: StudentRecipe, teacher: Teacher | None) -> Learner:
    """Return the learner of a recipe's student: with random weights, or as trained before.

    Raises:
        InputError: The recipe names something unknown.
        ModelError: An enabled loss needs a teacher, or a file cannot be read.
    """
    if recipe.start.checkpoint:
        student = trained_network(recipe.start.checkpoint)
    else:
        student = build_student(recipe.kind, recipe.model)
    learner: Learner
    if isinstance(student, FlightStudent):
        learner = FlightLearner(recipe, student, teacher)
    elif isinstance(student, Mast3r):
        learner = PointmapLearner(recipe, student, teacher)
    else:
        raise InputError(f'{type(student).__name__} is not a student that can be trained')
    lacking = learner.wanted - (teacher.offers if teacher else frozenset())
    if lacking:
        raise ModelError(
            f'the enabled losses need {", ".join(sorted(lacking))} of a teacher; '
            + (
                f'{type(teacher.network).__name__} does not give it'
                if teacher
                else 'there is none'
            )
        )
    return learner
