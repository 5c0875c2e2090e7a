"""Losses over a student's and its teacher's features: directions, and relations between views."""

from __future__ import annotations

import torch
from torch import distributed, nn, Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import ModelError
from training.losses.terms import MIN_DISTANCE, Monitors, Pair

# Steps over which the mean of features runs.
MEAN_STEPS = 100
# A feature without its mean counts as at least this share of a typical feature's length.
SHORTEST_FEATURE = 0.01


class FeatureMeans(nn.Module):
    """The mean token of a teacher and of its student over the data, in the teacher's channels.

    Most of a token is what all tokens have in common, so a cosine that leaves it in calls a
    constant aligned with everything. Means run over the last steps, because the student's moves.

    Attributes:
        student, teacher: (C,) the means so far.
        steps: Batches seen.
    """

    student: Tensor
    teacher: Tensor
    steps: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer('student', torch.zeros(width))
        self.register_buffer('teacher', torch.zeros(width))
        self.register_buffer('steps', torch.zeros(()))

    def forward(self, student: Tensor, teacher: Tensor) -> Pair:
        """Return both (B, C, h, w) without their means; in training these follow the batch."""
        if self.training:
            self._follow(student.detach(), teacher)
        shape = (1, -1, 1, 1)
        return student - self.student.view(shape), teacher - self.teacher.view(shape)

    @torch.no_grad()
    def _follow(self, student: Tensor, teacher: Tensor) -> None:
        batch = torch.stack([student.mean(dim=(0, 2, 3)), teacher.mean(dim=(0, 2, 3))])
        if distributed.is_initialized():
            # The same means in every process, as if one saw all of the batch.
            distributed.all_reduce(batch)
            batch /= distributed.get_world_size()
        good = torch.isfinite(batch).all()  # a batch that is not would spoil all means to come
        self.steps += good
        share = good / self.steps.clamp(min=1, max=MEAN_STEPS)
        batch = batch.nan_to_num(0.0, 0.0, 0.0)
        self.student += share * (batch[0] - self.student)
        self.teacher += share * (batch[1] - self.teacher)


class FeatureProjector(nn.Module):
    """Bias-free linear map from a student's feature channels to its teacher's.

    Trained by the student's optimiser, dropped after training.

    Attributes:
        means: Means of the projected and of the teacher's features.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student_width, teacher_width, bias=False)
        nn.init.kaiming_uniform_(self.linear.weight, a=0.01)
        self.means = FeatureMeans(teacher_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, teacher channels, ...) of features (B, student channels, ...)."""
        return self.linear(features.movedim(1, -1)).movedim(-1, 1)

    @torch.no_grad()
    def start_from(self, basis: Tensor) -> None:
        """Start from a basis (teacher channels, student channels), as an SVD start returns."""
        if basis.shape != self.linear.weight.shape:
            raise ModelError(
                f'basis has shape {tuple(basis.shape)}; this projector is '
                f'{tuple(self.linear.weight.shape)}'
            )
        self.linear.weight.copy_(basis)


def feature_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (B, C, h, w) of row-major tokens (B, h * w, C)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def cosine_margin(
    student: Tensor,
    teacher: Tensor,
    projector: nn.Module | None = None,
    margin: float = 0.9,
    means: FeatureMeans | None = None,
) -> tuple[Tensor, Monitors]:
    """Align feature directions where they are not yet close.

    One minus the mean cosine over the positions whose cosine is below the margin; zero when
    there is none. The published code of the paper leaves the means in, as this does without
    `means`; a student of constant tokens then passes for aligned with a teacher whose tokens
    are alike.

    Args:
        student: (B, C, h, w).
        teacher: (B, C', h', w'); resized to (h, w) if it differs. No gradient flows into it.
        projector: Map from C to C' channels; needed where they differ.
        margin: Cosine from which a position counts as aligned.
        means: Taken off both sides first.

    Returns:
        The loss; the mean `cosine` and the share of positions `below_margin`.

    Raises:
        ModelError: Channels differ after projection.
    """
    student, teacher = student.float(), teacher.detach().float()
    if projector is not None:
        student = projector(student)
    if student.shape[1] != teacher.shape[1]:
        raise ModelError(
            f'feature loss: student has {student.shape[1]} channels, teacher '
            f'{teacher.shape[1]}; a FeatureProjector between them is needed'
        )
    if student.shape[2:] != teacher.shape[2:]:
        size = (student.shape[2], student.shape[3])
        teacher = F.interpolate(teacher, size=size, mode='bilinear', align_corners=False)
    shortest = student.new_tensor(MIN_DISTANCE)
    if means is not None:
        typical = student.detach().square().sum(dim=1).mean().sqrt()
        shortest = torch.maximum(typical * SHORTEST_FEATURE, shortest)
        student, teacher = means(student, teacher)
    # A token that hardly leaves the mean has no direction yet: bounded below, its gradient stays
    # finite and pulls it away from there.
    length = torch.maximum(torch.linalg.vector_norm(student, dim=1), shortest)
    cosine = (student * F.normalize(teacher, dim=1)).sum(dim=1) / length  # (B, h, w)
    below = cosine < margin
    count = below.sum()
    mean_below = cosine.masked_fill(~below, 0.0).sum() / count.clamp(min=1)
    loss = torch.where(count > 0, 1.0 - mean_below, mean_below)
    return loss, {'cosine': cosine.mean().detach(), 'below_margin': below.float().mean()}


def relational(
    student: Pair,
    teacher: Pair,
    positions: Tensor | None = None,
    temperature: float = 0.1,
    centre: bool = False,
) -> tuple[Tensor, Monitors]:
    """Let the student's views resemble each other as the teacher's do.

    Cosines between all positions of view 1 and of view 2, over the temperature, make a
    distribution for each position of view 1; loss is KL(teacher, student), mean over positions.

    Args:
        student, teacher: Two (B, C, h, w) each; channels may differ, grids may not.
        positions: (B, N) int64 row-major positions to take, in both views; None takes all.
        temperature: Cosines are divided by it.
        centre: Take each pair's mean token off its tokens, which otherwise makes all of them
            alike; the published form leaves it in.

    Raises:
        ModelError: Grids differ.
    """
    if student[0].shape[2:] != teacher[0].shape[2:]:
        raise ModelError(
            f'relational loss: student grid is {tuple(student[0].shape[2:])}, teacher grid '
            f'{tuple(teacher[0].shape[2:])}; they must be equal'
        )
    if centre:
        student, teacher = _without_mean(student), _without_mean(teacher)
    # (B, N, N): of each position of view 1, over those of view 2.
    student_log = _relations(student, positions, temperature).log_softmax(dim=-1)
    teacher_log = _relations(teacher, positions, temperature).detach().log_softmax(dim=-1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1)
    loss = divergence.mean()
    return loss, {'relational': loss.detach()}


def sample_positions(
    batch: int, count: int, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return (batch, min(samples, count)) different positions below count, for `relational`."""
    order = torch.rand(batch, count, generator=generator).argsort(dim=1)
    return order[:, :samples]


def _without_mean(features: Pair) -> Pair:
    mean = torch.cat([maps.float().flatten(2) for maps in features], dim=2).mean(dim=2)
    shape = (*mean.shape, 1, 1)
    return features[0].float() - mean.view(shape), features[1].float() - mean.view(shape)


def _relations(features: Pair, positions: Tensor | None, temperature: float) -> Tensor:
    views = []
    for maps in features:
        tokens = F.normalize(maps.float().flatten(2), dim=1)  # (B, C, h * w)
        if positions is not None:
            # (B, C, N)
            tokens = tokens.gather(2, positions[:, None].expand(-1, tokens.shape[1], -1))
        views.append(tokens)
    return torch.einsum('bcn,bcm->bnm', views[0], views[1]) / temperature
