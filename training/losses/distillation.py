"""Distillation losses over pointmaps, confidences, descriptors and features.

Plain functions of tensors that return the loss and a dict of monitors (detached scalars).
View 1 is the left image, view 2 the right; both pointmaps are in camera 1's frame. Sums run in
float32 whatever the inputs. `distillation_loss` adds the enabled terms up and raises where one
lacks what it needs: a term that is switched on acts, or the run stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import distributed, nn, Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import InputError, ModelError

Monitors = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]

MIN_DISTANCE = 1e-8
MIN_PROBABILITY = 1e-8
RAW_CONFIDENCE_MIN = 1.0
# Steps over which the mean of features runs.
MEAN_STEPS = 100
# Of the typical length of a feature: what is left of one without its mean counts as so long at
# the least.
SHORTEST_FEATURE = 0.01


# --- Pointmaps -----------------------------------------------------------------------------


def points_in_camera(points: Tensor, camera_to_world: Tensor) -> Tensor:
    """Return world points (B, H, W, 3) in the frame of cameras with poses (B, 4, 4)."""
    rotation, centre = camera_to_world[:, :3, :3], camera_to_world[:, None, None, :3, 3]
    return torch.einsum('bhwi,bij->bhwj', points - centre, rotation)


def average_distance(points: Pair, masks: Pair) -> Tensor:
    """Return (B,) mean distance to the origin over the valid points of both views.

    Args:
        points: Two (B, H, W, 3); anything, NaN too, where the mask is False.
        masks: Two (B, H, W) bool.
    """
    total: Tensor | float = 0.0
    count: Tensor | float = 0.0
    for view, mask in zip(points, masks, strict=True):
        view = view.float().masked_fill(~mask[..., None], 0.0)
        total = total + _length(view).sum(dim=(1, 2))
        count = count + mask.sum(dim=(1, 2))
    return (torch.as_tensor(total) / (torch.as_tensor(count) + MIN_DISTANCE)).clamp(
        min=MIN_DISTANCE
    )


def normalise_pointmaps(
    pred: Pair, target: Pair, masks: Pair, metric: bool | Tensor
) -> tuple[Pair, Pair]:
    """Return prediction and target, each divided by an average distance.

    Args:
        pred, target: Two (B, H, W, 3) each, camera 1's frame.
        masks: Two (B, H, W) bool, True where the target is valid.
        metric: True, or (B,) bool: the prediction has the target's unit, and is divided by the
            target's factor. False: scale is free, each side is divided by its own factor.

    Returns:
        The scaled prediction and target.
    """
    target_factor = average_distance(target, masks)
    pred_factor = average_distance(pred, masks)
    is_metric = torch.as_tensor(metric, device=target_factor.device).expand_as(target_factor)
    pred_factor = torch.where(is_metric, target_factor, pred_factor)
    scaled_pred = (_divide(pred[0], pred_factor), _divide(pred[1], pred_factor))
    scaled_target = (_divide(target[0], target_factor), _divide(target[1], target_factor))
    return scaled_pred, scaled_target


def pointmap_errors(
    pred: Pair,
    target: Pair,
    masks: Pair,
    metric: bool | Tensor,
    sky: Pair | None = None,
    sky_error: float = 2.0,
) -> tuple[Pair, Pair]:
    """Return Euclidean errors (B, H, W) of both views after scaling, and where they count.

    Args:
        pred, target, masks, metric: As in `normalise_pointmaps`.
        sky: Two (B, H, W) bool; sky without a valid target joins with a fixed error, so that
            the confidence learns to fall there.
        sky_error: That error, in average distances.

    Returns:
        Errors, zero where they do not count, and two bool masks.
    """
    scaled_pred, scaled_target = normalise_pointmaps(pred, target, masks, metric)
    errors, counted = [], []
    for view in (0, 1):
        valid = masks[view]
        difference = (scaled_pred[view] - scaled_target[view]).masked_fill(~valid[..., None], 0.0)
        error, count = _length(difference), valid
        if sky is not None:
            error = error.masked_fill(sky[view] & ~valid, sky_error)
            count = valid | sky[view]
        errors.append(error)
        counted.append(count)
    return (errors[0], errors[1]), (counted[0], counted[1])


def pointmap_regression(
    pred: Pair, target: Pair, masks: Pair, metric: bool | Tensor = False
) -> tuple[Tensor, Monitors]:
    """Return the mean point error of each view, summed; arguments as in `pointmap_errors`."""
    errors, counted = pointmap_errors(pred, target, masks, metric)
    means = [_masked_mean(*view) for view in zip(errors, counted, strict=True)]
    return means[0] + means[1], _pointmap_monitors(errors, counted)


def confidence_weighted_regression(
    pred: Pair,
    target: Pair,
    masks: Pair,
    pred_confidence: Pair,
    metric: bool | Tensor = False,
    sky: Pair | None = None,
    alpha: float = 0.2,
) -> tuple[Tensor, Monitors]:
    """Return the mean of error * c - alpha * ln c of each view, summed (MASt3R's ConfLoss).

    Args:
        pred, target, masks, metric, sky: As in `pointmap_errors`.
        pred_confidence: Two (B, H, W), raw, >= 1.
        alpha: Reward of being sure.
    """
    errors, counted = pointmap_errors(pred, target, masks, metric, sky)
    losses = []
    for error, count, confidence in zip(errors, counted, pred_confidence, strict=True):
        confidence = confidence.float()
        losses.append(_masked_mean(error * confidence - alpha * confidence.log(), count))
    monitors = _pointmap_monitors(errors, counted)
    monitors.update(conf_loss1=losses[0].detach(), conf_loss2=losses[1].detach())
    return losses[0] + losses[1], monitors


def teacher_weighted_regression(
    pred: Pair,
    target: Pair,
    masks: Pair,
    pred_confidence: Pair,
    teacher_confidence: Pair,
    metric: bool | Tensor = False,
    sky: Pair | None = None,
    gamma: float = 0.2,
) -> tuple[Tensor, Monitors]:
    """Weight errors by the teacher's confidence, and teach that confidence.

    Of each view the mean of error * teacher confidence, plus gamma times the mean absolute
    difference of both confidences over the same pixels; the views are summed.

    Args:
        pred, target, masks, metric, sky: As in `pointmap_errors`.
        pred_confidence, teacher_confidence: Two (B, H, W) each, raw, >= 1.
        gamma: Weight of the confidence term.
    """
    errors, counted = pointmap_errors(pred, target, masks, metric, sky)
    weighted: list[Tensor] = []
    differences: list[Tensor] = []
    for view in (0, 1):
        teacher = teacher_confidence[view].float()
        weighted.append(_masked_mean(errors[view] * teacher.clamp(min=0.0), counted[view]))
        difference = (pred_confidence[view].float() - teacher).abs()
        differences.append(_masked_mean(difference, counted[view]))
    confidence_l1 = differences[0] + differences[1]
    monitors = _pointmap_monitors(errors, counted)
    monitors['conf_l1'] = confidence_l1.detach()
    return weighted[0] + weighted[1] + gamma * confidence_l1, monitors


def pointmap_gradient(
    pred: Pair, target: Pair, masks: Pair | None = None, xy_weight: float = 0.1
) -> tuple[Tensor, Monitors]:
    """Compare the image gradients of pointmaps, in both views.

    Of each view the mean absolute difference of Sobel gradients of z, along x and along y, plus
    `xy_weight` times the same of the x and y coordinates. Masks act on the z term alone, as in
    the published form; targets must be finite everywhere.

    Args:
        pred, target: Two (B, H, W, 3) each.
        masks: Two (B, H, W) bool, or None for all pixels.
        xy_weight: Weight of the x and y coordinates.

    Raises:
        InputError: A target is not finite (a teacher's pointmap always is).
    """
    losses = []
    for view in (0, 1):
        if not torch.isfinite(target[view]).all():
            raise InputError(f'gradient loss: target pointmap {view + 1} has values not finite')
        difference = sobel(pred[view].float()) - sobel(target[view].float())
        difference = difference.abs().sum(dim=1)  # (B, H, W, 3): along x and along y, added
        z = difference[..., 2]
        z_mean = z.mean() if masks is None else _masked_mean(z, masks[view])
        losses.append(z_mean + xy_weight * difference[..., :2].mean(dim=(0, 1, 2)).sum())
    monitors = {'gradient1': losses[0].detach(), 'gradient2': losses[1].detach()}
    return losses[0] + losses[1], monitors


def sobel(maps: Tensor) -> Tensor:
    """Return gradients (B, 2, H, W, C), along x then y, of maps (B, H, W, C); units per pixel."""
    kernel = maps.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4.0
    weight = torch.stack([kernel, kernel.T])[:, None]
    batch, height, width, channels = maps.shape
    planes = maps.permute(0, 3, 1, 2).reshape(-1, 1, height, width)
    padded = F.pad(planes, (1, 1, 1, 1), mode='replicate')
    gradients = F.conv2d(padded, weight).reshape(batch, channels, 2, height, width)
    return gradients.permute(0, 2, 3, 4, 1)


# --- Descriptors ---------------------------------------------------------------------------


def gather_pixels(maps: Tensor, pixels: Tensor) -> Tensor:
    """Return values (B, N, ...) of maps (B, H, W, ...) at integer pixels (B, N, 2), x then y."""
    batch = torch.arange(maps.shape[0], device=maps.device)[:, None]
    return maps[batch, pixels[..., 1], pixels[..., 0]]


def infonce(descriptors1: Tensor, descriptors2: Tensor, temperature: float = 0.05) -> Tensor:
    """Return (B, N) negative log probabilities of the N matches, in both directions.

    Args:
        descriptors1, descriptors2: (B, N, D) unit length, row i of one matching row i of the
            other. Every other row is a negative.
        temperature: Similarities are divided by it.
    """
    logits = torch.einsum('bnd,bmd->bnm', descriptors1.float(), descriptors2.float()) / temperature
    floor = torch.tensor(MIN_PROBABILITY, device=logits.device).log()
    rows = logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    columns = logits.log_softmax(dim=1).diagonal(dim1=1, dim2=2)
    return -torch.maximum(rows, floor) - torch.maximum(columns, floor)


def matching(
    descriptors: Pair, correspondences: Pair, valid: Tensor, temperature: float = 0.05
) -> tuple[Tensor, Monitors]:
    """Return the InfoNCE loss of descriptors at corresponding pixels.

    Args:
        descriptors: Two (B, H, W, D), unit length.
        correspondences: Two (B, N, 2) int64 pixels, x then y.
        valid: (B, N) bool, False for pixels that serve only as negatives.
        temperature: Similarities are divided by it.
    """
    losses = _match_losses(descriptors, correspondences, temperature)
    loss = _masked_mean(losses, valid)
    return loss, {'matching': loss.detach()}


def confidence_weighted_matching(
    descriptors: Pair,
    descriptor_confidence: Pair,
    correspondences: Pair,
    valid: Tensor,
    temperature: float = 0.05,
    alpha: float = 10.0,
) -> tuple[Tensor, Monitors]:
    """Return the mean of loss * c - alpha * ln c over valid matches.

    Args:
        descriptors, correspondences, valid, temperature: As in `matching`.
        descriptor_confidence: Two (B, H, W), positive; c is the mean of the two ends' values.
        alpha: Reward of being sure.
    """
    losses = _match_losses(descriptors, correspondences, temperature)
    ends = [
        gather_pixels(confidence.float(), pixels)
        for confidence, pixels in zip(descriptor_confidence, correspondences, strict=True)
    ]
    confidence = (ends[0] + ends[1]) / 2.0
    loss = _masked_mean(losses * confidence - alpha * confidence.log(), valid)
    monitors = {
        'matching': _masked_mean(losses, valid).detach(),
        'matching_conf': loss.detach(),
        'desc_conf_mean': _masked_mean(confidence, valid).detach(),
    }
    return loss, monitors


# --- Features ------------------------------------------------------------------------------


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
        self.steps += 1
        share = 1 / self.steps.clamp(max=MEAN_STEPS)
        self.student += share * (batch[0] - self.student)
        self.teacher += share * (batch[1] - self.teacher)


class FeatureProjector(nn.Module):
    """Bias-free linear map from a student's feature channels to its teacher's.

    Trained by the student's optimiser, dropped after training.

    Attributes:
        means: Of the projected and of the teacher's features.
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
    cosine = (student * F.normalize(teacher, dim=1)).sum(dim=1) / length
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


# --- The sum of a distillation -------------------------------------------------------------


@dataclass(frozen=True)
class LossWeights:
    """Weights of a distillation's terms; 0 switches a term off. Defaults are the paper's.

    Attributes:
        pointmap: Confidence-weighted pointmap regression.
        matching: Confidence-weighted InfoNCE at correspondences.
        encoder_features, decoder_features: Cosine-margin alignment of tokens, both views.
        gradient: Pointmap gradients, both views.
        relational: Relations between the views' last decoder tokens.
        teacher_confidence: Regression weighted by the teacher's confidence, an alternative to
            `pointmap` (with both on they add up).
        feature_margin: Cosine from which a feature counts as aligned.
        relational_samples: Positions drawn for the relational term.
        min_teacher_confidence: Raw confidence below which the teacher's points are not valid;
            0 takes all. Raw confidence is above 1 everywhere, so other values up to 1 are
            errors: they could never act.
    """

    pointmap: float = 1.0
    matching: float = 0.075
    encoder_features: float = 0.1
    decoder_features: float = 0.0
    gradient: float = 1.0
    relational: float = 0.0
    teacher_confidence: float = 0.0
    feature_margin: float = 0.9
    relational_samples: int = 512
    min_teacher_confidence: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not value >= 0:  # catches NaN too
                raise InputError(f'loss weight {item.name} is {value}; it must be >= 0')
        if not any(getattr(self, name) for name in TERMS):
            raise InputError(f'all loss weights are 0; set one of {", ".join(TERMS)}')
        if 0 < self.min_teacher_confidence <= RAW_CONFIDENCE_MIN:
            raise InputError(
                f'min_teacher_confidence is {self.min_teacher_confidence}, which no pixel is '
                f'below: raw confidence starts at {RAW_CONFIDENCE_MIN:g}; 0 switches it off'
            )


def distillation_loss(
    student: Mapping[str, object],
    teacher: Mapping[str, object],
    batch: Mapping[str, Tensor],
    weights: LossWeights,
    projectors: Mapping[str, nn.Module] | None = None,
    metric: bool = False,
) -> tuple[Tensor, Monitors]:
    """Return the weighted sum of the enabled terms, and each term under its name.

    Args:
        student, teacher: Outputs of both models with `pointmapN` (B, H, W, 3), `confN`,
            `descN` (B, H, W, D), `desc_confN` of views N = 1, 2, and for feature terms
            `tokensN`: the encoder's tokens (B, h * w, C), then one set a decoder block.
        batch: `valid1`, `valid2` (B, H, W) bool (all finite points where absent), `sky1`, `sky2`;
            for matching `matches1`, `matches2` (B, N, 2) int64 x then y and `matches_valid`
            (B, N); `grid` (2,) rows and columns of the token grid for feature terms.
        weights: Which terms act.
        projectors: `encoder` and `decoder`, where the channels differ.
        metric: The prediction is in the teacher's unit.

    Raises:
        ModelError: An enabled term lacks an entry; the message names both.
    """
    parts = _Parts(student, teacher, batch, projectors or {}, metric, weights)
    total: Tensor | None = None
    monitors: Monitors = {}
    for name, term in TERMS.items():
        weight = getattr(weights, name)
        if not weight:
            continue
        with _full_precision(student):
            loss, details = term(parts)
        total = weight * loss if total is None else total + weight * loss
        monitors[name] = loss.detach()
        monitors.update({f'{name}/{key}': value for key, value in details.items()})
    if total is None:  # LossWeights has checked that one is enabled
        raise InputError('no loss term is enabled')
    return total, monitors


@dataclass(frozen=True)
class _Parts:
    """What the terms draw on; each access names the term and entry that is missing."""

    student: Mapping[str, object]
    teacher: Mapping[str, object]
    batch: Mapping[str, Tensor]
    projectors: Mapping[str, nn.Module]
    metric: bool
    weights: LossWeights

    def pair(self, term: str, source: str, name: str) -> Pair:
        """Return entry `name`1 and `name`2 of the source, 'student', 'teacher' or 'batch'."""
        values = getattr(self, source)
        found = []
        for key in (f'{name}1', f'{name}2'):
            value = values.get(key)
            if not isinstance(value, Tensor):
                raise ModelError(f'loss {term!r} is enabled but the {source} has no {key!r}')
            found.append(value)
        return found[0], found[1]

    def tokens(self, term: str, source: str, level: int) -> Pair:
        """Return one level of both views' tokens as maps (B, C, h, w)."""
        values = getattr(self, source)
        if not isinstance(self.batch.get('grid'), Tensor):
            raise ModelError(f"loss {term!r} is enabled but the batch has no 'grid'")
        rows, columns = (int(side) for side in self.batch['grid'])
        found = []
        for key in ('tokens1', 'tokens2'):
            levels = values.get(key)
            if not isinstance(levels, (list, tuple)) or not levels:
                raise ModelError(f'loss {term!r} is enabled but the {source} has no {key!r}')
            found.append(feature_map(levels[level], (rows, columns)))
        return found[0], found[1]

    def masks(self) -> Pair:
        """Return where the target counts, and the teacher is sure enough."""
        if 'valid1' in self.batch:
            masks = self.pair('valid masks', 'batch', 'valid')
        else:
            points = self.pair('valid masks', 'teacher', 'pointmap')
            masks = (torch.isfinite(points[0]).all(-1), torch.isfinite(points[1]).all(-1))
        threshold = self.weights.min_teacher_confidence
        if not threshold:
            return masks
        sure = self.pair('min_teacher_confidence', 'teacher', 'conf')
        return masks[0] & (sure[0] >= threshold), masks[1] & (sure[1] >= threshold)

    def sky(self) -> Pair | None:
        """Return the sky masks, or None."""
        return self.pair('sky', 'batch', 'sky') if 'sky1' in self.batch else None


def _pointmap_term(parts: _Parts) -> tuple[Tensor, Monitors]:
    return confidence_weighted_regression(
        parts.pair('pointmap', 'student', 'pointmap'),
        parts.pair('pointmap', 'teacher', 'pointmap'),
        parts.masks(),
        parts.pair('pointmap', 'student', 'conf'),
        parts.metric,
        parts.sky(),
    )


def _teacher_confidence_term(parts: _Parts) -> tuple[Tensor, Monitors]:
    return teacher_weighted_regression(
        parts.pair('teacher_confidence', 'student', 'pointmap'),
        parts.pair('teacher_confidence', 'teacher', 'pointmap'),
        parts.masks(),
        parts.pair('teacher_confidence', 'student', 'conf'),
        parts.pair('teacher_confidence', 'teacher', 'conf'),
        parts.metric,
        parts.sky(),
    )


def _matching_term(parts: _Parts) -> tuple[Tensor, Monitors]:
    valid = parts.batch.get('matches_valid')
    if valid is None:
        raise ModelError("loss 'matching' is enabled but the batch has no 'matches_valid'")
    return confidence_weighted_matching(
        parts.pair('matching', 'student', 'desc'),
        parts.pair('matching', 'student', 'desc_conf'),
        parts.pair('matching', 'batch', 'matches'),
        valid,
    )


def _feature_term(parts: _Parts, kind: str, level: int) -> tuple[Tensor, Monitors]:
    term = f'{kind}_features'
    student = parts.tokens(term, 'student', level)
    teacher = parts.tokens(term, 'teacher', level)
    projector = parts.projectors.get(kind)
    means = projector.means if isinstance(projector, FeatureProjector) else None
    # Both views in one call: the mean then runs over all positions below the margin.
    return cosine_margin(
        torch.cat(student), torch.cat(teacher), projector, parts.weights.feature_margin, means
    )


def _gradient_term(parts: _Parts) -> tuple[Tensor, Monitors]:
    return pointmap_gradient(
        parts.pair('gradient', 'student', 'pointmap'),
        parts.pair('gradient', 'teacher', 'pointmap'),
        parts.masks(),
    )


def _relational_term(parts: _Parts) -> tuple[Tensor, Monitors]:
    student = parts.tokens('relational', 'student', -1)
    teacher = parts.tokens('relational', 'teacher', -1)
    batch, _, rows, columns = student[0].shape
    positions = sample_positions(batch, rows * columns, parts.weights.relational_samples)
    return relational(student, teacher, positions.to(student[0].device), centre=True)


TERMS = {
    'pointmap': _pointmap_term,
    'matching': _matching_term,
    'encoder_features': lambda parts: _feature_term(parts, 'encoder', 0),
    'decoder_features': lambda parts: _feature_term(parts, 'decoder', -1),
    'gradient': _gradient_term,
    'relational': _relational_term,
    'teacher_confidence': _teacher_confidence_term,
}


def _full_precision(outputs: Mapping[str, object]) -> torch.autocast:
    """Return a context without autocast, which would turn products back to half precision."""
    device = next((v.device.type for v in outputs.values() if isinstance(v, Tensor)), 'cpu')
    return torch.autocast(device, enabled=False)


# --- Pieces --------------------------------------------------------------------------------


def _length(vectors: Tensor) -> Tensor:
    # torch's norm has a zero gradient at zero, as masked points need.
    return torch.linalg.vector_norm(vectors, dim=-1)


def _divide(points: Tensor, factor: Tensor) -> Tensor:
    return points.float() / factor.view(-1, 1, 1, 1)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    # Zero, still part of the graph, where nothing is valid: one empty view must not stop a run.
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def _pointmap_monitors(errors: Pair, counted: Pair) -> Monitors:
    monitors = {}
    for view in (0, 1):
        monitors[f'error{view + 1}'] = _masked_mean(errors[view], counted[view]).detach()
        monitors[f'valid{view + 1}'] = counted[view].float().mean()
    return monitors


def _match_losses(descriptors: Pair, correspondences: Pair, temperature: float) -> Tensor:
    ends = [
        gather_pixels(maps, pixels)
        for maps, pixels in zip(descriptors, correspondences, strict=True)
    ]
    return infonce(ends[0], ends[1], temperature)


def _without_mean(features: Pair) -> Pair:
    mean = torch.cat([maps.float().flatten(2) for maps in features], dim=2).mean(dim=2)
    shape = (*mean.shape, 1, 1)
    return features[0].float() - mean.view(shape), features[1].float() - mean.view(shape)


def _relations(features: Pair, positions: Tensor | None, temperature: float) -> Tensor:
    views = []
    for maps in features:
        tokens = F.normalize(maps.float().flatten(2), dim=1)  # (B, C, h * w)
        if positions is not None:
            tokens = tokens.gather(2, positions[:, None].expand(-1, tokens.shape[1], -1))
        views.append(tokens)
    return torch.einsum('bcn,bcm->bnm', views[0], views[1]) / temperature
