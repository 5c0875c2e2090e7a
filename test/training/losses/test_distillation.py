"""The sum of a distillation: every term acts, or says what it lacks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lunar_stereo_recon.errors import InputError, ModelError
from training.losses.distillation import distillation_loss, LossWeights, TERMS
from training.losses.features import FeatureProjector

SHAPE = (2, 16, 24)
GRID = (2, 3)


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
    return LossWeights(**{**dict.fromkeys(TERMS, 0.0), name: 1.0, **others})


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
    assert set(REACHES) == set(TERMS)


@pytest.mark.parametrize('name', sorted(REACHES))
def test_each_enabled_term_is_positive_and_reaches_both_views(make_outputs, name):
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
def test_a_term_that_lacks_its_input_raises(make_outputs, name, source, key):
    parts = {
        'student': make_outputs(1, width=8),
        'teacher': make_outputs(2, width=8),
        'batch': make_batch(),
    }
    del parts[source][key]
    with pytest.raises(ModelError, match=f'{name}.*{source} has no .*{key}'):
        distillation_loss(**parts, weights=only(name))


def test_features_of_other_width_need_a_projector(make_outputs):
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
        LossWeights(**dict.fromkeys(TERMS, 0.0))
    with pytest.raises(InputError, match='no pixel is below'):
        LossWeights(min_teacher_confidence=0.2)


def test_teacher_confidence_threshold_removes_pixels(make_outputs):
    student, teacher = make_outputs(1, width=8), make_outputs(2, width=8)
    sure = (teacher['conf1'] >= 2.0).float().mean().item()
    assert 0.1 < sure < 0.9
    weights = only('pointmap', min_teacher_confidence=2.0)
    _, monitors = distillation_loss(student, teacher, make_batch(), weights)
    assert monitors['pointmap/valid1'].item() == pytest.approx(sure)


def test_half_precision_outputs_are_summed_in_float32(make_outputs):
    student, teacher = make_outputs(1, width=8), make_outputs(2, width=8)
    wanted, _ = distillation_loss(student, teacher, make_batch(), LossWeights())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found, _ = distillation_loss(student, teacher, make_batch(), LossWeights())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
