"""The teacher's architecture: official names and sizes, reference figures, what it computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lunar_stereo_recon.errors import InputError
from training.models.checkpoints import load_teacher
from training.models.decoder import grid_positions, rotary_tables
from training.models.heads import dpt_hooks, exponential_points
from training.models.mast3r import Mast3r, Mast3rConfig, token_grid

# Largest differences that rounding explains; any mistake in the architecture costs more.
BOUNDS = {'pointmap': 2e-4, 'conf': 1e-4, 'desc': 5e-5, 'desc_conf': 2e-3}
TOKEN_BOUND = 1e-4
REFERENCE_POINTS = {1: 'view1_pts3d', 2: 'view2_pts3d_in_other_view'}


@pytest.fixture(scope='module')
def tiny_teacher(reference):
    return load_teacher(reference / 'mast3r_tiny_a' / 'checkpoint.pth')


def reference_views(arrays) -> list[torch.Tensor]:
    return [torch.from_numpy(arrays[f'image{view}_uint8'])[None] / 255 for view in (1, 2)]


def assert_agrees(predicted: torch.Tensor, wanted: np.ndarray, bound: float) -> None:
    assert predicted.shape == wanted.shape
    np.testing.assert_allclose(predicted.numpy(), wanted, rtol=0, atol=bound)


def test_full_size_has_the_official_names_shapes_and_count(reference):
    with torch.device('meta'):
        teacher = Mast3r(Mast3rConfig())
    shapes = {name: list(value.shape) for name, value in teacher.state_dict().items()}
    assert shapes == json.loads((reference / 'teacher_state_keys.json').read_text())
    assert len(shapes) == 1017
    assert sum(p.numel() for p in teacher.parameters()) == 688_638_856


@pytest.mark.parametrize('file', ['io.npz', 'io_mixed_sizes.npz'])
def test_outputs_agree_with_the_reference(reference, tiny_teacher, file):
    arrays = np.load(reference / 'mast3r_tiny_a' / file)
    with torch.no_grad():
        out = tiny_teacher(*reference_views(arrays))
    for view in (1, 2):
        assert_agrees(out[f'pointmap{view}'], arrays[REFERENCE_POINTS[view]], BOUNDS['pointmap'])
        for name in ('conf', 'desc', 'desc_conf'):
            assert_agrees(out[f'{name}{view}'], arrays[f'view{view}_{name}'], BOUNDS[name])


def test_tokens_agree_with_the_reference(reference, tiny_teacher):
    arrays = np.load(reference / 'mast3r_tiny_a' / 'io.npz')
    with torch.no_grad():
        out = tiny_teacher(*reference_views(arrays), with_tokens=True)
    levels = {
        'encoder_tokens': 0,
        'decoder_first_block': 1,
        'decoder_hook2': 6,
        'decoder_hook3': 9,
        'decoder_last': 12,
    }
    for view in (1, 2):
        assert len(out[f'tokens{view}']) == 13
        for name, level in levels.items():
            assert_agrees(out[f'tokens{view}'][level], arrays[f'view{view}_{name}'], TOKEN_BOUND)
    positions = tiny_teacher.positions((6, 8), torch.device('cpu'))
    np.testing.assert_array_equal(positions.numpy(), arrays['view1_positions'][0])


def test_views_of_different_size_keep_their_own(toy_teacher):
    with torch.no_grad():
        out = toy_teacher(torch.rand(2, 3, 48, 64), torch.rand(2, 3, 80, 32))
    assert out['pointmap1'].shape == (2, 48, 64, 3)
    assert out['pointmap2'].shape == (2, 80, 32, 3)
    assert out['desc2'].shape == (2, 80, 32, 8)
    assert out['desc_conf2'].shape == out['conf2'].shape == (2, 80, 32)


def test_ranges_hold(toy_teacher, views):
    with torch.no_grad():
        out = toy_teacher(*views)
    assert out['conf1'].min() >= 1 and out['conf2'].min() >= 1
    assert out['desc_conf1'].min() >= 0
    torch.testing.assert_close(out['desc1'].norm(dim=-1), torch.ones(1, 48, 64))


def test_batch_items_do_not_mix(toy_teacher):
    left, right = torch.rand(3, 3, 32, 48), torch.rand(3, 3, 32, 48)
    with torch.no_grad():
        together = toy_teacher(left, right)
        alone = toy_teacher(left[1:2], right[1:2])
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1:2], value, atol=1e-5, rtol=1e-5)


def test_each_view_sees_the_other(toy_teacher, views):
    left, right = views
    with torch.no_grad():
        before = toy_teacher(left, right)
        after = toy_teacher(left, 1 - right)
    assert (before['pointmap1'] - after['pointmap1']).abs().max() > 1e-4


class PositionTables(torch.nn.Module):
    """What of the decoder depends on the image's size; exporting all takes a minute."""

    def forward(self, image):
        return rotary_tables(grid_positions(*token_grid(image, 'left')), 16)


def test_positions_export_to_onnx_for_any_size(tmp_path):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    sides = {2: 16 * torch.export.Dim('rows'), 3: 16 * torch.export.Dim('columns')}
    path = tmp_path / 'positions.onnx'
    torch.onnx.export(
        PositionTables(),
        (torch.rand(1, 3, 48, 64),),
        path,
        input_names=['image'],
        dynamic_shapes=(sides,),
        dynamo=True,
        verbose=False,
    )
    image = torch.rand(1, 3, 80, 112)
    found = onnxruntime.InferenceSession(path).run(None, {'image': image.numpy()})
    for value, tensor in zip(found, PositionTables()(image), strict=True):
        np.testing.assert_allclose(value, tensor.numpy(), atol=1e-6)


def test_every_trainable_parameter_is_reached(toy_teacher, views):
    sum(value.sum() for value in toy_teacher(*views).values()).backward()
    without = [
        name
        for name, parameter in toy_teacher.named_parameters()
        if parameter.requires_grad and not parameter.grad.abs().any()
    ]
    assert without == []


def test_unread_official_parameters_are_frozen(toy_teacher):
    frozen = {name for name, p in toy_teacher.named_parameters() if not p.requires_grad}
    assert {name.split('.conv')[0] for name in frozen} == {
        'mask_token',
        'downstream_head1.dpt.scratch.refinenet4.resConfUnit1',
        'downstream_head2.dpt.scratch.refinenet4.resConfUnit1',
    }


def test_heads_stay_in_float32_under_autocast(toy_teacher, views):
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        half = toy_teacher(*views)
    with torch.no_grad():
        full = toy_teacher(*views)
    assert all(value.dtype == torch.float32 for value in half.values())
    torch.testing.assert_close(half['pointmap1'], full['pointmap1'], atol=0.2, rtol=0.2)


@pytest.mark.parametrize(
    ('shape', 'says'),
    [
        ((1, 1, 32, 32), 'B, 3, H, W'),
        ((3, 32, 32), 'B, 3, H, W'),
        ((1, 3, 32, 40), '40x32'),
        ((1, 3, 0, 32), '32x0'),
    ],
)
def test_images_that_do_not_fit_are_refused(toy_teacher, shape, says):
    good = torch.rand(1, 3, 32, 32)
    with pytest.raises(InputError, match=says):
        toy_teacher(torch.rand(shape), good)
    with pytest.raises(InputError, match='right'):
        toy_teacher(good, torch.rand(shape))


@pytest.mark.parametrize(
    ('depth', 'hooks'),
    [(12, (0, 6, 9, 12)), (10, (0, 5, 7, 10)), (6, (0, 3, 4, 6)), (4, (0, 2, 3, 4))],
)
def test_hooks(depth, hooks):
    assert dpt_hooks(depth) == hooks


def test_exponential_points():
    raw = torch.tensor([[0.0, 0.0, 2.0], [0.3, -0.4, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    points = exponential_points(raw)
    wanted = torch.tensor([[0, 0, np.expm1(2.0)], [0.6, -0.8, 0.0], [0, 0, 0]])
    wanted[1] *= np.expm1(0.5)
    torch.testing.assert_close(points, wanted.float())
    points.sum().backward()
    assert torch.isfinite(raw.grad).all()
