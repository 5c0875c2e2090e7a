"""Distillation losses: reference values and gradients, and behaviour that a run relies on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lunar_stereo_recon.errors import InputError, ModelError
from training.losses import distillation as losses
from training.losses.distillation import (
    distillation_loss,
    FeatureMeans,
    FeatureProjector,
    LossWeights,
)

REFERENCE = Path(__file__).resolve().parents[4] / 'shared' / 'fixtures' / 'losses'

SHAPE = (2, 16, 24)
GRID = (2, 3)


class Reference:
    """Inputs, wanted values and wanted gradients."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / 'inputs.npz') as arrays:
            self.inputs = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        with np.load(folder / 'outputs.npz') as arrays:
            self.gradients = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.cases = json.loads((folder / 'cases.json').read_text())['cases']

    def leaf(self, name: str) -> Tensor:
        """Return an input that collects a gradient."""
        return self.inputs[name].clone().requires_grad_(True)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the inputs of both views; '#' stands for the view's number."""
        return self.inputs[name.replace('#', '1')], self.inputs[name.replace('#', '2')]

    def agrees(self, case: str, loss: Tensor) -> None:
        wanted = self.cases[case]['loss']
        assert loss.item() == pytest.approx(wanted, rel=1e-5, abs=1e-6), case

    def gradients_agree(self, loss: Tensor, leaves: dict[str, Tensor]) -> None:
        found = torch.autograd.grad(loss, list(leaves.values()))
        for (name, _), gradient in zip(leaves.items(), found, strict=True):
            torch.testing.assert_close(
                gradient, self.gradients[f'grad_{name}'], rtol=1e-4, atol=1e-7, msg=name
            )


@pytest.fixture(scope='module')
def reference() -> Reference:
    if not REFERENCE.is_dir():
        pytest.skip(f'no reference figures at {REFERENCE}')
    return Reference(REFERENCE)


@pytest.fixture
def pointmaps(reference: Reference) -> dict:
    """Return the arguments that all pointmap losses share, as leaves where gradients matter."""
    return {
        'pred': (reference.leaf('pred1_pts3d'), reference.leaf('pred2_pts3d_in_other_view')),
        'target': reference.pair('gt#_pts3d'),
        'masks': reference.pair('valid_mask#'),
    }


# --- Against reference figures -------------------------------------------------------------


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
    loss, monitors = losses.pointmap_regression(**pointmaps, metric=metric)
    reference.agrees(case, loss)
    for view in (1, 2):
        wanted = reference.cases[case]['details'][f'Regr3D_pts3d_{view}']
        assert monitors[f'error{view}'].item() == pytest.approx(wanted, rel=1e-5)


def test_ground_truth_in_the_world_is_brought_to_camera_1(reference, pointmaps):
    pose = reference.inputs['other_camera_pose']
    first, second = (losses.points_in_camera(view, pose) for view in pointmaps['target'])
    loss, _ = losses.pointmap_regression(pointmaps['pred'], (first, second), pointmaps['masks'])
    reference.agrees('regr3d_not_metric_pose', loss)


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


def test_matching(reference):
    descriptors = (reference.leaf('pred1_desc'), reference.leaf('pred2_desc'))
    confidence = (reference.leaf('pred1_desc_conf'), reference.leaf('pred2_desc_conf'))
    pixels, valid = reference.pair('corres#_xy'), reference.inputs['valid_corres']
    loss, _ = losses.matching(descriptors, pixels, valid)
    reference.agrees('matching_infonce_proper', loss)
    loss, monitors = losses.confidence_weighted_matching(descriptors, confidence, pixels, valid)
    reference.agrees('conf_matching', loss)
    assert monitors['matching'].item() == pytest.approx(3.045839548110962, rel=1e-5)
    names = ('match_desc1', 'match_desc2', 'match_dc1', 'match_dc2')
    leaves = dict(zip(names, (*descriptors, *confidence), strict=True))
    reference.gradients_agree(loss, leaves)


@pytest.mark.parametrize('metric', [True, False])
def test_training_total_of_the_paper(reference, metric):
    names = {
        'pointmap1': 'pred1_pts3d',
        'pointmap2': 'pred2_pts3d_in_other_view',
        'conf1': 'pred1_conf',
        'conf2': 'pred2_conf',
        'desc1': 'pred1_desc',
        'desc2': 'pred2_desc',
        'desc_conf1': 'pred1_desc_conf',
        'desc_conf2': 'pred2_desc_conf',
    }
    student = {key: reference.leaf(name) for key, name in names.items()}
    teacher = dict(zip(('pointmap1', 'pointmap2'), reference.pair('gt#_pts3d'), strict=True))
    batch = {
        **dict(zip(('valid1', 'valid2'), reference.pair('valid_mask#'), strict=True)),
        **dict(zip(('sky1', 'sky2'), reference.pair('sky_mask#'), strict=True)),
        **dict(zip(('matches1', 'matches2'), reference.pair('corres#_xy'), strict=True)),
        'matches_valid': reference.inputs['valid_corres'],
    }
    weights = LossWeights(encoder_features=0, gradient=0)
    loss, monitors = distillation_loss(student, teacher, batch, weights, metric=metric)
    case = f'train_criterion_{"metric" if metric else "not_metric"}'
    reference.agrees(case, loss)
    assert set(monitors) >= {'pointmap', 'matching', 'pointmap/error1', 'matching/matching_conf'}
    if metric:
        short = {'pointmap': 'pts', 'desc_conf': 'dc'}
        leaves = {}
        for key, leaf in student.items():
            name, view = key[:-1], key[-1]
            leaves[f'total_{short.get(name, name)}{view}'] = leaf
        reference.gradients_agree(loss, leaves)


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


def test_relational(reference):
    student, teacher = reference.pair('rfd_student#'), reference.pair('rfd_teacher#')
    loss, _ = losses.relational(student, teacher)
    reference.agrees('relational', loss)
    loss, _ = losses.relational(student, teacher, reference.inputs['rfd_subset'])
    reference.agrees('relational_subset', loss)


# --- On data made here ---------------------------------------------------------------------


def make_outputs(seed: int, width: int) -> dict:
    """Return a model's outputs on two pairs, leaves that collect gradients."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    outputs: dict = {}
    for view in '12':
        points = noise(*SHAPE, 3) * 0.2
        points[..., 2] += 4.0
        outputs[f'pointmap{view}'] = points
        outputs[f'conf{view}'] = 1.0 + noise(*SHAPE).exp()
        outputs[f'desc{view}'] = torch.nn.functional.normalize(noise(*SHAPE, 8), dim=-1)
        outputs[f'desc_conf{view}'] = noise(*SHAPE).exp()
        outputs[f'tokens{view}'] = [noise(2, 6, width) for _ in range(3)]
    for name, value in outputs.items():
        values = value if name.startswith('tokens') else [value]
        for leaf in values:
            leaf.requires_grad_(True)
    return outputs


def make_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.stack(
        [
            torch.randint(0, SHAPE[2], (2, 12), generator=generator),
            torch.randint(0, SHAPE[1], (2, 12), generator=generator),
        ],
        dim=-1,
    )
    return {
        'matches1': pixels,
        'matches2': pixels.flip(1),
        'matches_valid': torch.ones(2, 12, dtype=torch.bool),
        'grid': torch.tensor(GRID),
    }


def only(name: str, **others: float) -> LossWeights:
    """Return weights with one term on."""
    return LossWeights(**{**dict.fromkeys(losses.TERMS, 0.0), name: 1.0, **others})


REACHES = {
    'pointmap': ['pointmap1', 'pointmap2', 'conf1', 'conf2'],
    'matching': ['desc1', 'desc2', 'desc_conf1', 'desc_conf2'],
    'encoder_features': ['tokens1/0', 'tokens2/0'],
    'decoder_features': ['tokens1/2', 'tokens2/2'],
    'gradient': ['pointmap1', 'pointmap2'],
    'relational': ['tokens1/2', 'tokens2/2'],
    'teacher_confidence': ['pointmap1', 'pointmap2', 'conf1', 'conf2'],
}


def test_every_term_is_covered_here():
    assert set(REACHES) == set(losses.TERMS)


@pytest.mark.parametrize('name', sorted(REACHES))
def test_each_enabled_term_is_positive_and_reaches_both_views(name):
    student, teacher = make_outputs(1, width=8), make_outputs(2, width=12)
    projectors = {'encoder': FeatureProjector(8, 12), 'decoder': FeatureProjector(8, 12)}
    loss, monitors = distillation_loss(student, teacher, make_batch(), only(name), projectors)
    assert monitors[name].item() == pytest.approx(loss.item())
    # Rewarding confidence can make a weighted term negative; it must not be nothing.
    assert abs(loss.item()) > 1e-3
    loss.backward()
    for key in REACHES[name]:
        key, _, level = key.partition('/')
        leaf = student[key][int(level)] if level else student[key]
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0, key
    gradients = [teacher['pointmap1'].grad, teacher['tokens1'][0].grad, teacher['tokens1'][2].grad]
    if name.endswith('features'):
        assert gradients == [None, None, None]
        projector = projectors[name.removesuffix('_features')]
        assert projector.linear.weight.grad.abs().sum() > 0


MISSING = [
    ('pointmap', 'student', 'pointmap2'),
    ('pointmap', 'student', 'conf1'),
    ('matching', 'student', 'desc2'),
    ('matching', 'batch', 'matches_valid'),
    ('matching', 'batch', 'matches1'),
    ('encoder_features', 'teacher', 'tokens1'),
    ('decoder_features', 'student', 'tokens2'),
    ('decoder_features', 'batch', 'grid'),
    ('gradient', 'student', 'pointmap2'),
    ('relational', 'teacher', 'tokens2'),
    ('teacher_confidence', 'teacher', 'conf1'),
]


@pytest.mark.parametrize(('name', 'source', 'key'), MISSING)
def test_a_term_that_lacks_its_input_raises(name, source, key):
    parts = {
        'student': make_outputs(1, width=8),
        'teacher': make_outputs(2, width=8),
        'batch': make_batch(),
    }
    del parts[source][key]
    with pytest.raises(ModelError, match=f'{name}.*{source} has no .*{key}'):
        distillation_loss(**parts, weights=only(name))


def test_features_of_other_width_need_a_projector():
    student, teacher = make_outputs(1, width=8), make_outputs(2, width=12)
    with pytest.raises(ModelError, match='8 channels, teacher 12'):
        distillation_loss(student, teacher, make_batch(), only('encoder_features'))
    with pytest.raises(ModelError, match='basis has shape'):
        FeatureProjector(8, 12).start_from(torch.zeros(8, 12))


def test_weights_that_cannot_act_are_refused():
    with pytest.raises(InputError, match='gradient is -1'):
        LossWeights(gradient=-1.0)
    with pytest.raises(InputError, match='matching is nan'):
        LossWeights(matching=math.nan)
    with pytest.raises(InputError, match='all loss weights are 0'):
        LossWeights(**dict.fromkeys(losses.TERMS, 0.0))
    with pytest.raises(InputError, match='no pixel is below'):
        LossWeights(min_teacher_confidence=0.2)


def test_teacher_confidence_threshold_removes_pixels():
    student, teacher = make_outputs(1, width=8), make_outputs(2, width=8)
    sure = (teacher['conf1'] >= 2.0).float().mean().item()
    assert 0.1 < sure < 0.9
    weights = only('pointmap', min_teacher_confidence=2.0)
    _, monitors = distillation_loss(student, teacher, make_batch(), weights)
    assert monitors['pointmap/valid1'].item() == pytest.approx(sure)


def test_scale_is_free_unless_metric():
    teacher = make_outputs(2, width=8)
    target = (teacher['pointmap1'].detach(), teacher['pointmap2'].detach())
    masks = tuple(torch.ones(SHAPE, dtype=torch.bool) for _ in target)
    pred = tuple(3.0 * view for view in target)
    loss, _ = losses.pointmap_regression(pred, target, masks, metric=False)
    assert loss.item() < 1e-5
    loss, _ = losses.pointmap_regression(pred, target, masks, metric=True)
    assert loss.item() == pytest.approx(2.0 * 2.0, rel=0.02)  # twice off, in each of two views
    one_of_two = torch.tensor([True, False])
    loss, _ = losses.pointmap_regression(pred, target, masks, metric=one_of_two)
    assert loss.item() == pytest.approx(2.0, rel=0.05)


def test_invalid_points_do_not_matter_even_as_nan():
    pred, target = make_outputs(1, width=8), make_outputs(2, width=8)
    preds = (pred['pointmap1'], pred['pointmap2'])
    masks = [torch.ones(SHAPE, dtype=torch.bool) for _ in preds]
    masks[0][:, :4] = False
    clean = (target['pointmap1'].detach(), target['pointmap2'].detach())
    spoilt = (clean[0].masked_fill(~masks[0][..., None], math.nan), clean[1])
    wanted, _ = losses.pointmap_regression(preds, clean, tuple(masks))
    found, _ = losses.pointmap_regression(preds, spoilt, tuple(masks))
    assert found.item() == pytest.approx(wanted.item())
    found.backward()
    assert torch.isfinite(preds[0].grad).all()
    assert preds[0].grad[:, :4].abs().sum() == 0
    with pytest.raises(InputError, match='pointmap 1 has values not finite'):
        losses.pointmap_gradient(preds, spoilt, tuple(masks))


def test_no_valid_pixel_gives_zero_and_finite_gradients():
    pred, target = make_outputs(1, width=8), make_outputs(2, width=8)
    preds = (pred['pointmap1'], pred['pointmap2'])
    masks = tuple(torch.zeros(SHAPE, dtype=torch.bool) for _ in preds)
    confidence = (pred['conf1'], pred['conf2'])
    targets = (target['pointmap1'], target['pointmap2'])
    loss, monitors = losses.confidence_weighted_regression(preds, targets, masks, confidence)
    assert loss.item() == 0.0 and monitors['valid1'].item() == 0.0
    loss.backward()
    assert torch.isfinite(preds[0].grad).all()


def test_matching_of_equal_unit_descriptors_is_near_its_minimum():
    eye = torch.eye(8)[None]
    loss = losses.infonce(eye, eye)
    assert loss.max().item() < 1e-4
    assert losses.infonce(eye, eye.roll(1, 1)).min().item() > 30.0
    # Impossible matches are floored: a wrong label cannot blow up a step.
    assert losses.infonce(eye, eye.roll(1, 1), temperature=0.01).max().item() == pytest.approx(
        -2 * math.log(1e-8), rel=1e-4
    )


def test_half_precision_outputs_are_summed_in_float32():
    student, teacher = make_outputs(1, width=8), make_outputs(2, width=8)
    wanted, _ = distillation_loss(student, teacher, make_batch(), LossWeights())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found, _ = distillation_loss(student, teacher, make_batch(), LossWeights())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_sampled_positions_are_different():
    positions = losses.sample_positions(3, 10, 6, torch.Generator().manual_seed(0))
    assert positions.shape == (3, 6)
    assert all(len(set(row.tolist())) == 6 for row in positions)
    assert losses.sample_positions(1, 4, 512).shape == (1, 4)
