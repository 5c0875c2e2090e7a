"""The sum of a distillation's loss terms, as a recipe weighs them.

`distillation_loss` adds the enabled terms up and raises where one lacks what it needs: a term
that is switched on acts, or the run stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import InputError, ModelError
from training.losses.descriptors import confidence_weighted_matching
from training.losses.features import (
    cosine_margin,
    feature_map,
    FeatureProjector,
    relational,
    sample_positions,
)
from training.losses.pointmaps import (
    confidence_weighted_regression,
    pointmap_gradient,
    teacher_weighted_regression,
)
from training.losses.terms import Monitors, Pair

RAW_CONFIDENCE_MIN = 1.0


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
