"""The paper's students: counts to the unit, reference figures, what trains and what does not."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from lunar_stereo_recon.errors import ModelError
from training.models import encoders
from training.models.checkpoints import load_state, read_tensors
from training.models.encoders import EncoderSpec, VisionTransformer
from training.models.paper_students import (
    paper_student_config,
    PAPER_STUDENTS,
    PaperStudent,
    PaperStudentConfig,
)

COUNTS = {'S1': 135_712_440, 'S2': 154_935_944, 'S3': 94_906_760, 'S4': 138_464_840}
BOUNDS = {'pointmap': 1e-3, 'conf': 2e-4, 'desc': 2e-5, 'desc_conf': 1e-4}
POINTS = {1: 'view1_pts3d', 2: 'view2_pts3d_in_other_view'}


class GivenFeatures(torch.nn.Module):
    """Stands for a backbone: returns one feature map whatever the images are."""

    features: torch.Tensor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert len(image) == len(self.features)
        return self.features


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def toy_encoders(monkeypatch, toy_head):
    toy = {
        'toy_vit14': dataclasses.replace(
            encoders.ENCODERS['dinov2_vits14'],
            build=lambda: VisionTransformer(16, 2, 2, 14, table_grid=5, layer_scale=True),
            channels=16,
        ),
        'toy_vit16': dataclasses.replace(
            encoders.ENCODERS['vit_tiny_patch16'],
            build=lambda: VisionTransformer(16, 2, 2, 16, table_grid=4),
            channels=16,
        ),
    }
    monkeypatch.setattr(encoders, 'ENCODERS', encoders.ENCODERS | toy)


def toy_student(encoder: str, head, width: int = 24) -> PaperStudent:
    config = PaperStudentConfig(encoder, width, decoder_depth=4, decoder_heads=2, head=head)
    return PaperStudent(config)


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_count_is_the_papers(name):
    with torch.device('meta'):
        student = PaperStudent(PAPER_STUDENTS[name])
    assert count(student) == COUNTS[name]


@pytest.mark.parametrize('name', COUNTS)
def test_every_part_has_the_reference_count(reference, name):
    facts = json.loads((reference / 'paper_students.json').read_text())['models'][name]
    with torch.device('meta'):
        student = PaperStudent(PAPER_STUDENTS[name])
    heads = (student.downstream_head1, student.downstream_head2)
    assert count(student) == facts['total']
    assert count(student.encoder.network) == facts['encoder']
    assert count(student.encoder.adapter) == facts['adapter']
    assert count(student.dec_blocks) + count(student.dec_blocks2) == facts['decoder']
    assert count(student.decoder_embed) == facts['decoder_embed']
    assert sum(count(head.dpt) for head in heads) == facts['dpt_heads_both']
    assert sum(count(head.head_local_features) for head in heads) == facts['descriptor_mlps_both']
    assert list(heads[0].hooks) == facts['dpt_hooks']


@pytest.mark.parametrize('depth', [4, 6])
def test_outputs_agree_with_the_reference(reference, monkeypatch, depth):
    folder = reference / 'student_tiny'
    spec = EncoderSpec(GivenFeatures, 20, 'tiny_enc', 'backbone', column_first=True)
    monkeypatch.setattr(encoders, 'ENCODERS', {'given': spec})
    student = PaperStudent(PaperStudentConfig('given', 32, decoder_depth=depth)).eval()
    path = folder / f'checkpoint_depth{depth}.pth'
    load_state(student, read_tensors(path)[0], path)
    arrays = np.load(folder / f'io_depth{depth}.npz')
    student.encoder.network.features = torch.from_numpy(arrays['backbone_features'])
    images = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        out = student(images, images, with_tokens=True)
    positions = student.positions((4, 6), torch.device('cpu'))
    np.testing.assert_array_equal(positions.numpy(), arrays['positions_xy'][0])
    for view in (1, 2):
        wanted = {'pointmap': POINTS[view]}
        wanted |= {name: f'view{view}_{name}' for name in ('conf', 'desc', 'desc_conf')}
        for name, key in wanted.items():
            np.testing.assert_allclose(
                out[f'{name}{view}'].numpy(), arrays[key], rtol=0, atol=BOUNDS[name]
            )
        tokens = out[f'tokens{view}'][0].numpy()
        np.testing.assert_allclose(tokens, arrays[f'view{view}_encoder_tokens'], atol=1e-5)


@pytest.mark.parametrize('encoder', ['toy_vit14', 'toy_vit16', 'mobilenetv3_large'])
def test_every_trainable_parameter_is_reached(toy_encoders, toy_head, views, encoder):
    student = toy_student(encoder, toy_head)
    sum(value.sum() for value in student(*views).values()).backward()
    without = [
        name
        for name, parameter in student.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert without == []


@pytest.mark.parametrize('encoder', ['toy_vit14', 'toy_vit16', 'mobilenetv3_large'])
def test_output_shapes(toy_encoders, toy_head, views, encoder):
    student = toy_student(encoder, toy_head).eval()
    with torch.no_grad():
        out = student(*views, with_tokens=True)
    assert out['pointmap1'].shape == out['pointmap2'].shape == (1, 48, 64, 3)
    assert [tuple(level.shape) for level in out['tokens2']] == [(1, 12, 24)] * 5


def test_encoder_of_the_decoders_width_has_no_adapter(toy_encoders, toy_head):
    student = toy_student('toy_vit16', toy_head, width=16)
    assert count(student.encoder.adapter) == 0
    assert count(toy_student('toy_vit16', toy_head).encoder.adapter) == 16 * 24 + 2 * 24


def test_state_names_are_the_papers(toy_head):
    with torch.device('meta'):
        names = {
            name: set(PaperStudent(config).state_dict()) for name, config in PAPER_STUDENTS.items()
        }
    assert 'tiny_enc.backbone.blocks.4.1.conv_pwl.weight' in names['S1']
    assert 'tiny_enc.adapter.1.bias' in names['S1']
    assert 'tiny_vit.vit.blocks.11.ls2.gamma' in names['S2']
    assert 'tiny_vit.vit.pos_embed' in names['S4']
    for student in names.values():
        assert {'mask_token', 'enc_norm.weight', 'patch_embed.proj.bias'} <= student


def test_only_the_cnn_student_numbers_columns_first():
    with torch.device('meta'):
        students = {name: PaperStudent(config) for name, config in PAPER_STUDENTS.items()}
    cpu = torch.device('cpu')
    first = {
        name: student.positions((2, 3), cpu)[1].tolist() for name, student in students.items()
    }
    assert first == {'S1': [1, 0], 'S2': [0, 1], 'S3': [0, 1], 'S4': [0, 1]}


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ModelError, match='S5.*S1, S2, S3, S4'):
        paper_student_config('S5')
    with pytest.raises(ModelError, match='resnet.*dinov2_vits14'):
        PaperStudent(PaperStudentConfig('resnet'))
