"""Losses over pointmaps: reference values and gradients, scale, invalid points."""

from __future__ import annotations

import math

import pytest
import torch

from lunar_stereo_recon.errors import InputError
from training.losses import pointmaps as losses

SHAPE = (2, 16, 24)


def regression(pred, target, masks, metric):
    """Return the plain regression: with a confidence of 1 everywhere nothing else is left."""
    ones = tuple(torch.ones(mask.shape) for mask in masks)
    return losses.confidence_weighted_regression(pred, target, masks, ones, metric)


@pytest.mark.parametrize('metric', [True, False])
def test_normalised_pointmaps(reference, pointmaps, metric):
    pred, target = losses.normalise_pointmaps(**pointmaps, metric=metric)
    case = reference.cases[f'normalised_points_metric_{metric}']
    factor = losses.average_distance(pointmaps['target'], pointmaps['masks'])
    assert factor.item() == pytest.approx(case['gt_factor'], rel=1e-6)
    factor = losses.average_distance(pointmaps['pred'], pointmaps['masks'])
    assert metric or factor.item() == pytest.approx(case['pred_factor'], rel=1e-6)
    for name, views in (('pred', pred), ('gt', target)):
        for number, view in enumerate(views, start=1):
            wanted = case[f'sum_abs_{name}{number}']
            assert view.abs().sum().item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ('case', 'metric'), [('regr3d_metric', True), ('regr3d_not_metric', False)]
)
def test_pointmap_regression(reference, pointmaps, case, metric):
    loss, monitors = regression(**pointmaps, metric=metric)
    reference.agrees(case, loss)
    for view in (1, 2):
        wanted = reference.cases[case]['details'][f'Regr3D_pts3d_{view}']
        assert monitors[f'error{view}'].item() == pytest.approx(wanted, rel=1e-5)


def test_confidence_weighted_regression(reference, pointmaps):
    confidence = (reference.leaf('pred1_conf'), reference.leaf('pred2_conf'))
    arguments = {
        **pointmaps,
        'pred_confidence': confidence,
        'sky': reference.pair('sky_mask#'),
    }
    loss, _ = losses.confidence_weighted_regression(**arguments, metric=False)
    reference.agrees('confloss_regr3d_not_metric', loss)
    loss, monitors = losses.confidence_weighted_regression(**arguments, metric=True)
    reference.agrees('confloss_regr3d_metric', loss)
    details = reference.cases['confloss_regr3d_metric']['details']
    assert monitors['conf_loss1'].item() == pytest.approx(details['conf_loss_1'], rel=1e-5)
    assert monitors['error2'].item() == pytest.approx(details['Regr3D_pts3d_2'], rel=1e-5)
    leaves = dict(
        zip(
            ('conf_pts1', 'conf_pts2', 'conf_conf1', 'conf_conf2'),
            (*pointmaps['pred'], *confidence),
            strict=True,
        )
    )
    reference.gradients_agree(loss, leaves)


@pytest.mark.parametrize('gamma', [0.2, 1.0])
def test_teacher_weighted_regression(reference, pointmaps, gamma):
    confidence = (reference.leaf('pred1_conf'), reference.leaf('pred2_conf'))
    loss, monitors = losses.teacher_weighted_regression(
        **pointmaps,
        pred_confidence=confidence,
        teacher_confidence=reference.pair('teacher_conf#'),
        metric=True,
        sky=reference.pair('sky_mask#'),
        gamma=gamma,
    )
    case = f'teacher_conf_gamma_{gamma}'
    reference.agrees(case, loss)
    wanted = reference.cases[case]['details']['conf_l1']
    assert monitors['conf_l1'].item() == pytest.approx(wanted, rel=1e-5)
    if gamma == 0.2:
        names = ('tconf_pts1', 'tconf_pts2', 'tconf_conf1', 'tconf_conf2')
        leaves = dict(zip(names, (*pointmaps['pred'], *confidence), strict=True))
        reference.gradients_agree(loss, leaves)


@pytest.mark.parametrize('masked', [False, True])
def test_pointmap_gradient(reference, masked):
    pred, target = reference.leaf('pred1_pts3d'), reference.inputs['gt1_pts3d']
    masks = (reference.inputs['valid_mask1'],) * 2 if masked else None
    suffix = '_masked' if masked else ''
    for case, xy_weight in (('gradient_z', 0.0), ('depth_gradient', 0.1)):
        loss, monitors = losses.pointmap_gradient((pred, pred), (target,) * 2, masks, xy_weight)
        reference.agrees(case + suffix, monitors['gradient1'])
        reference.agrees(case + suffix, monitors['gradient2'])
    if masked:
        # The same view twice: each half of the sum is the reference loss.
        reference.gradients_agree(loss / 2, {'depth_gradient_pred1': pred})


def test_scale_is_free_unless_metric(make_outputs):
    teacher = make_outputs(2, width=8)
    target = (teacher['pointmap1'].detach(), teacher['pointmap2'].detach())
    masks = tuple(torch.ones(SHAPE, dtype=torch.bool) for _ in target)
    pred = tuple(3.0 * view for view in target)
    loss, _ = regression(pred, target, masks, metric=False)
    assert loss.item() < 1e-5
    loss, _ = regression(pred, target, masks, metric=True)
    assert loss.item() == pytest.approx(2.0 * 2.0, rel=0.02)  # twice off, in each of two views
    one_of_two = torch.tensor([True, False])
    loss, _ = regression(pred, target, masks, metric=one_of_two)
    assert loss.item() == pytest.approx(2.0, rel=0.05)


def test_invalid_points_do_not_matter_even_as_nan(make_outputs):
    pred, target = make_outputs(1, width=8), make_outputs(2, width=8)
    preds = (pred['pointmap1'], pred['pointmap2'])
    masks = [torch.ones(SHAPE, dtype=torch.bool) for _ in preds]
    masks[0][:, :4] = False
    clean = (target['pointmap1'].detach(), target['pointmap2'].detach())
    spoilt = (clean[0].masked_fill(~masks[0][..., None], math.nan), clean[1])
    wanted, _ = regression(preds, clean, tuple(masks), metric=False)
    found, _ = regression(preds, spoilt, tuple(masks), metric=False)
    assert found.item() == pytest.approx(wanted.item())
    found.backward()
    assert torch.isfinite(preds[0].grad).all()
    assert preds[0].grad[:, :4].abs().sum() == 0
    with pytest.raises(InputError, match='pointmap 1 has values not finite'):
        losses.pointmap_gradient(preds, spoilt, tuple(masks))


def test_no_valid_pixel_gives_zero_and_finite_gradients(make_outputs):
    pred, target = make_outputs(1, width=8), make_outputs(2, width=8)
    preds = (pred['pointmap1'], pred['pointmap2'])
    masks = tuple(torch.zeros(SHAPE, dtype=torch.bool) for _ in preds)
    confidence = (pred['conf1'], pred['conf2'])
    targets = (target['pointmap1'], target['pointmap2'])
    loss, monitors = losses.confidence_weighted_regression(preds, targets, masks, confidence)
    assert loss.item() == 0.0 and monitors['valid1'].item() == 0.0
    loss.backward()
    assert torch.isfinite(preds[0].grad).all()
