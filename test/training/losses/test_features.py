"""Losses over features: reference values, and tokens that are nearly all mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.losses import features as losses
from training.losses.features import FeatureMeans, FeatureProjector


def test_cosine_margin(reference):
    student, teacher = reference.leaf('feat_student'), reference.inputs['feat_teacher']
    loss, monitors = losses.cosine_margin(student, teacher, margin=0.9)
    case = reference.cases['feature_cosine_margin_0.9']
    reference.agrees('feature_cosine_margin_0.9', loss)
    below = monitors['below_margin'].item() * case['positions']
    assert round(below) == case['positions_below_margin']
    reference.gradients_agree(loss, {'feat_student': student})
    loss, _ = losses.cosine_margin(student, teacher, margin=1.0)
    reference.agrees('feature_cosine_margin_1.0', loss)
    loss, _ = losses.cosine_margin(2 * teacher, teacher)
    assert loss.item() == 0.0
    loss, _ = losses.cosine_margin(student, reference.inputs['feat_teacher_large'])
    reference.agrees('feature_cosine_margin_resized', loss)
    projector = FeatureProjector(20, 32)
    projector.start_from(reference.inputs['projector_weight'])
    loss, _ = losses.cosine_margin(reference.inputs['feat_student_20ch'], teacher, projector)
    reference.agrees('feature_cosine_margin_projected', loss)


def tokens_around_a_mean(seed: int) -> Tensor:
    """Return tokens (2, 16, 4, 6) of which 99 % of the energy is one vector."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(16, generator=generator)
    return 10 * mean[:, None, None] + torch.randn(2, 16, 4, 6, generator=generator)


def test_constant_features_are_punished():
    teacher = tokens_around_a_mean(0)
    constant = teacher.mean(dim=(0, 2, 3), keepdim=True).expand_as(teacher).clone()
    constant.requires_grad_(True)
    loss, monitors = losses.cosine_margin(constant, teacher)
    assert loss.item() == 0 and monitors['below_margin'].item() == 0  # as published
    loss, monitors = losses.cosine_margin(constant, teacher, means=FeatureMeans(16))
    assert loss.item() > 0.9 and monitors['below_margin'].item() == 1
    (gradient,) = torch.autograd.grad(loss, [constant])
    assert torch.isfinite(gradient).all() and gradient.any()
    loss, _ = losses.cosine_margin(teacher.clone(), teacher, means=FeatureMeans(16))
    assert loss.item() == 0
    # Another mean is no difference of direction.
    loss, _ = losses.cosine_margin(2 * teacher + 5, teacher, means=FeatureMeans(16))
    assert loss.item() == 0


def test_means_of_features_run_over_the_data_and_rest_in_evaluation():
    means = FeatureMeans(16)
    first, second = tokens_around_a_mean(1), tokens_around_a_mean(2)
    means(first, second)
    means(second, first)
    both = (first + second).mean(dim=(0, 2, 3)) / 2
    torch.testing.assert_close(means.student, both)
    torch.testing.assert_close(means.teacher, both)
    means.eval()
    means(10 * first, first)
    torch.testing.assert_close(means.student, both)


def test_constant_features_have_no_relations():
    one = tokens_around_a_mean(0)
    noise = torch.randn(one.shape, generator=torch.Generator().manual_seed(4))
    same = one, one + 0.3 * noise
    constant = tuple(torch.ones(2, 8, 4, 6) for _ in range(2))
    assert losses.relational(constant, same)[0].item() < 0.05  # as published
    assert losses.relational(constant, same, centre=True)[0].item() > 0.5
    assert losses.relational(same, same, centre=True)[0].item() == pytest.approx(0, abs=1e-6)


def test_relational(reference):
    student, teacher = reference.pair('rfd_student#'), reference.pair('rfd_teacher#')
    loss, _ = losses.relational(student, teacher)
    reference.agrees('relational', loss)
    loss, _ = losses.relational(student, teacher, reference.inputs['rfd_subset'])
    reference.agrees('relational_subset', loss)


def test_sampled_positions_are_different():
    positions = losses.sample_positions(3, 10, 6, torch.Generator().manual_seed(0))
    assert positions.shape == (3, 6)
    assert all(len(set(row.tolist())) == 6 for row in positions)
    assert losses.sample_positions(1, 4, 512).shape == (1, 4)


def test_a_batch_that_is_not_finite_leaves_the_means_alone():
    means = FeatureMeans(2)
    ones = torch.ones(1, 2, 1, 1)
    means(ones, 2 * ones)
    means(ones * torch.nan, ones)
    means(3 * ones, 2 * ones)
    torch.testing.assert_close(means.student, torch.full((2,), 2.0))
    torch.testing.assert_close(means.teacher, torch.full((2,), 2.0))
