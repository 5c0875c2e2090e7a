"""The right view explains the left at the true disparity, and nowhere else."""

import pytest
import torch

from lunar_stereo_recon.errors import ModelError
from training.losses.photometric import DARK, explained, photometric_mask
from training.losses.stereo import flight_losses
from training.recipe import LossRecipe
from training.students import build_student

DISPARITY = 6


@pytest.fixture
def views():
    """Return a textured pair (1, 1, 32, 64), all of it at one disparity."""
    wide = torch.rand(1, 1, 32, 80, generator=torch.Generator().manual_seed(3)) * 0.6 + 0.3
    wide = torch.nn.functional.avg_pool2d(wide, 3, 1, 1)
    return wide[..., :64], wide[..., DISPARITY : 64 + DISPARITY]


def level(value: float) -> torch.Tensor:
    return torch.full((1, 32, 64), float(value))


def inside() -> torch.Tensor:
    return (torch.arange(64) >= 12).expand(1, 32, 64)


def test_true_disparity_costs_nothing_and_a_wrong_one_does(views):
    costs = [explained(*views, level(DISPARITY + e), inside()) for e in (0, 0.25, 0.5, 1, 2)]
    assert costs[0] < 1e-5
    assert all(costs[i] < costs[i + 1] for i in range(3))
    assert costs[3] > 0.1 and costs[4] > 0.1


def test_gradient_points_to_the_true_disparity(views):
    for error in (-0.6, 0.6):
        disparity = level(DISPARITY + error).requires_grad_()
        explained(*views, disparity, inside()).backward()
        assert disparity.grad.sum() * error > 0


def test_exposure_of_one_view_hardly_counts(views):
    left, right = views
    assert explained(left, right * 1.1 - 0.05, level(DISPARITY), inside()) < 0.01


def test_masked_pixels_get_no_gradient_and_give_none(views):
    mask = inside().clone()
    mask[:, 10:20, 30:40] = False
    disparity = level(DISPARITY + 0.5).requires_grad_()
    loss = explained(*views, disparity, mask)
    loss.backward()
    assert (disparity.grad[~mask] == 0).all()
    assert (disparity.grad[mask] != 0).any()
    other = disparity.detach().clone()
    other[~mask] = torch.nan  # whatever stands there
    assert explained(*views, other, mask) == loss
    assert explained(*views, other, torch.zeros_like(mask)) == 0


def test_mask_leaves_out_hidden_dark_and_far_from_the_label(views):
    left, right = (view.clone() for view in views)
    left[..., 5, 40] = DARK / 2
    right[..., 6, 41 - DISPARITY] = DARK / 2
    label, hidden = level(DISPARITY), torch.zeros(1, 32, 64, dtype=torch.bool)
    label[:, 7, 42] += 3
    label[:, 8, 43] = torch.nan
    hidden[:, 9, 44] = True
    mask = photometric_mask(left, right, level(DISPARITY), label, hidden)
    left_out = [(5, 40), (6, 41), (7, 42), (9, 44)]
    assert not any(mask[0, row, column] for row, column in left_out)
    assert mask[0, :, DISPARITY:].sum() == 32 * (64 - DISPARITY) - len(left_out)


def test_flight_student_learns_from_it_alone(views, tiny_flight):
    left, right = views
    student = build_student('flight', tiny_flight)
    unknown = torch.full((1, 32, 64), torch.nan)
    batch = {'disparity': unknown, 'occlusion': torch.zeros(1, 32, 64, dtype=torch.uint8)}
    off = {name: 0.0 for name in vars(LossRecipe()) if name not in ('feature_margin',)}
    weights = LossRecipe(**{**off, 'photometric': 1.0})
    output = student(left, right)
    loss, terms = flight_losses(output, {**batch, 'left': left, 'right': right}, weights)
    assert list(terms) == ['photometric'] and loss > 0
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    with pytest.raises(ModelError, match="'photometric' is enabled but the batch has no 'left'"):
        flight_losses(output, batch, weights)
