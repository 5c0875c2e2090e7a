"""Starting a student from its teacher: truncation against reference figures, shared basis."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lunar_stereo_recon.errors import ModelError
from training.commands.svd_study import (
    GRID,
    measure,
    PatchStereo,
    Size,
    starts,
    synthetic_pairs,
    TEACHER,
)
from training.models.flight import FlightConfig, FlightStudent
from training.models.heads import HeadConfig
from training.models.mast3r import Mast3r, Mast3rConfig
from training.models.paper_students import paper_student_config, PaperStudent
from training.start.decoder_source import CalibrationTokens, DecoderLayout
from training.start.init_plan import format_plan, layer_mapping
from training.start.reduction import (
    assign_heads,
    merge_pairs,
    ridge_correction,
    rotary_groups,
    stream_basis,
    truncate_matrix,
)
from training.start.shared_basis import shared_basis
from training.start.svd_init import decoder_layout, initialise, SvdInit, truncate

REFERENCE = Path(__file__).resolve().parents[4] / 'shared' / 'fixtures'
HEAD = HeadConfig(descriptor_width=4, level_channels=(8, 8, 8, 8), fusion_width=8)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='module')
def reference() -> Path:
    if not REFERENCE.is_dir():
        pytest.skip(f'no reference figures at {REFERENCE}')
    return REFERENCE


@pytest.fixture(scope='module')
def cases(reference: Path) -> dict:
    return json.loads((reference / 'svd_init' / 'cases.json').read_text())


@pytest.fixture(scope='module')
def reference_teacher(reference: Path) -> dict[str, Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(reference / 'mast3r_tiny_a' / 'checkpoint.pth', weights_only=True)
    return {key: value.contiguous() for key, value in checkpoint['model'].items()}


def shake(model: torch.nn.Module, scale: float = 0.2) -> None:
    """Move all parameters off their start, gains and biases too."""
    with torch.no_grad():
        for value in model.parameters():
            value += (
                scale * torch.randn_like(value) / (value.shape[-1] if value.ndim else 1) ** 0.5
            )


def make_mast3r(width: int = 24, depth: int = 3, heads: int = 3, ratio: float = 2.0) -> Mast3r:
    config = Mast3rConfig(
        encoder_width=16,
        encoder_depth=1,
        encoder_heads=2,
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=heads,
        mlp_ratio=ratio,
        head=HEAD,
    )
    model = Mast3r(config).eval()
    shake(model)
    return model


def in_double(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model in float64, except the heads that insist on float32."""
    model.double()
    for name in ('downstream_head1', 'downstream_head2'):
        if hasattr(model, name):
            getattr(model, name).float()
    return model


def random_tokens(batch: int, grid: tuple[int, int], width: int) -> CalibrationTokens:
    shape = (batch, grid[0] * grid[1], width)
    return CalibrationTokens(torch.randn(shape), torch.randn(shape), grid)


# --- Truncation, against reference figures -------------------------------------------------


def test_primitives(reference, cases):
    arrays = np.load(reference / 'svd_init' / 'primitives.npz')
    compared = 0
    for case in cases['primitives']:
        name = case['name']
        matrix = torch.from_numpy(arrays[f'{name}_in'])
        for cut in ('svd', 'direct'):
            if f'{name}_{cut}' not in arrays:
                continue
            wanted = torch.from_numpy(arrays[f'{name}_{cut}'])
            found = truncate_matrix(matrix, tuple(case['target_shape']), cut)
            assert found.dtype == wanted.dtype and found.shape == wanted.shape, name
            bound = 2e-3 if name == 'half' else 1e-5
            torch.testing.assert_close(found, wanted, atol=bound, rtol=0, msg=name)
            compared += 1
    assert compared == 28


def test_layer_mapping_reference(cases):
    for text, wanted in cases['layer_mapping'].items():
        depths, strategy = text.split()
        teacher, student = map(int, depths.split('->'))
        assert layer_mapping(teacher, student, strategy) == wanted, text


def test_toy_model(reference, cases):
    arrays = np.load(reference / 'svd_init' / 'toy_model.npz')

    def entries(prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): torch.from_numpy(arrays[key])
            for key in arrays.files
            if key.startswith(prefix)
        }

    teacher, student = entries('teacher/'), entries('student_before/')
    for text, case in cases['toy_model']['results'].items():
        mode, strategy = text.split('/')
        result = truncate(student, teacher, strategy, 'svd' if mode == 'svd' else 'direct')
        changed = {entry.student for entry in result.plan if entry.changed}
        assert len(changed) == case['changed']
        assert set(student) - changed == set(case['unchanged'])
        for key in case['unchanged']:
            assert torch.equal(result.state[key], student[key])
        for key, wanted in entries(f'after_{mode}_{strategy}/').items():
            torch.testing.assert_close(result.state[key], wanted, atol=1e-5, rtol=0, msg=key)


@pytest.mark.parametrize(
    ('name', 'strategy', 'cut'),
    [('svd_d32_l6_uniform', 'uniform', 'svd'), ('trunc_d32_l4_lastk', 'last_k', 'direct')],
)
def test_full_run(reference, reference_teacher, name, strategy, cut):
    rows = json.loads((reference / 'svd_init' / 'full_run.json').read_text())[name]['tensors']
    student = {row['student']: torch.zeros(row['shape']) for row in rows}
    result = truncate(student, reference_teacher, strategy, cut)
    plan = {entry.student: entry for entry in result.plan}
    for row in rows:
        key = row['student']
        if row['how'] == 'not from the teacher':
            assert not plan[key].changed
            continue
        assert (plan[key].teacher, plan[key].how) == (row['teacher'], row['how'])
        value = result.state[key].double().flatten()
        first = torch.tensor(row['first16'], dtype=torch.float64)
        torch.testing.assert_close(value[:16], first, atol=5e-5, rtol=0, msg=key)
        slack = 5e-5 * max(row['abs_sum'], 1.0)
        assert value.sum().item() == pytest.approx(row['sum'], abs=slack)
        assert value.abs().sum().item() == pytest.approx(row['abs_sum'], abs=slack)
    if cut == 'svd':
        arrays = np.load(reference / 'svd_init' / 'full_svd_d32_l6_uniform.npz')
        for key in arrays.files:
            value = result.state[key]
            value = value.flatten(1)[::50] if value.numel() > 100_000 else value
            wanted = torch.from_numpy(arrays[key])
            torch.testing.assert_close(
                value.reshape(wanted.shape), wanted, atol=5e-5, rtol=0, msg=key
            )


# --- Truncation ----------------------------------------------------------------------------


def test_truncation_of_equal_sizes_copies():
    teacher, student = make_mast3r(), make_mast3r()
    layout = DecoderLayout(3)
    result = initialise(student, teacher.state_dict(), layout, layout, SvdInit(method='truncate'))
    for key, value in teacher.state_dict().items():
        if key.startswith(('patch_embed', 'enc_')):
            assert not torch.equal(student.state_dict()[key], value)
        else:
            assert torch.equal(student.state_dict()[key], value), key
    assert result.stream_basis is None


def test_truncation_is_the_block_of_the_best_approximation():
    matrix = torch.randn(9, 7, dtype=torch.float64)
    u, s, vt = np.linalg.svd(matrix.numpy())
    best = (u[:, :4] * s[:4]) @ vt[:4]
    found = truncate_matrix(matrix, (4, 5))
    np.testing.assert_allclose(found.numpy(), best[:4, :5], atol=1e-12)


def test_sizes_that_cannot_be_mapped_are_named():
    teacher = make_mast3r(24, 3)
    for other, message in (
        (make_mast3r(48, 3), r"cannot initialise 'mask_token'.*\(1, 1, 24\).*\(1, 1, 48\)"),
        (make_mast3r(24, 4), 'student decoder has 4 blocks, teacher 3'),
    ):
        with pytest.raises(ModelError, match=message):
            truncate(other.state_dict(), teacher.state_dict())
    with pytest.raises(ModelError, match="unknown layer mapping 'middle'"):
        truncate(teacher.state_dict(), teacher.state_dict(), 'middle')
    with pytest.raises(ModelError, match="unknown cut 'qr'"):
        truncate_matrix(torch.zeros(3, 3), (2, 2), 'qr')
    with pytest.raises(ModelError, match="unknown initialisation 'magic'"):
        SvdInit(method='magic')
    with pytest.raises(ModelError, match='teacher state dict has decoder blocks'):
        truncate(teacher.state_dict(), {'decoder_embed.weight': torch.zeros(2, 2)})


def test_plan_names_the_source_of_every_entry():
    teacher, student = make_mast3r(24, 3), make_mast3r(16, 2, 2)
    result = truncate(student.state_dict(), teacher.state_dict(), 'last_k')
    text = format_plan(result.plan)
    assert len(text.splitlines()) == len(student.state_dict()) + 1
    line = next(row for row in text.splitlines() if row.startswith('dec_blocks.0.attn.qkv.weight'))
    assert '48x16' in line and 'from dec_blocks.1.attn.qkv.weight' in line and 'svd' in line
    changed = sum(entry.changed for entry in result.plan)
    left = len(result.plan) - changed
    assert text.splitlines()[-1].startswith(f'{changed} entries initialised')
    assert f'{left} left alone' in text


# --- Pieces of the shared basis ------------------------------------------------------------


def test_stream_basis_keeps_mean_direction_and_strongest_directions():
    factors = torch.randn(10, 10, dtype=torch.float64) * torch.logspace(1, -2, 10)
    covariance = factors @ factors.T
    basis, kept = stream_basis(covariance, 6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6, dtype=torch.float64))
    ones = torch.ones(6, dtype=torch.float64) / 6**0.5
    torch.testing.assert_close(basis @ ones, torch.full((10,), 10**-0.5, dtype=torch.float64))
    # No other basis with the mean direction keeps more: compare with the eigenvalues off it.
    off = torch.eye(10, dtype=torch.float64) - 0.1
    energy = torch.linalg.eigvalsh(off @ covariance @ off)
    assert kept == pytest.approx((energy[-5:].sum() / energy.sum()).item())
    found = basis.T @ off @ covariance @ off @ basis
    assert found.trace().item() == pytest.approx(energy[-5:].sum().item())
    assert stream_basis(covariance, 10)[1] == pytest.approx(1.0)


def test_ridge_correction():
    features = torch.randn(200, 5, dtype=torch.float64)
    matrix = torch.randn(3, 5, dtype=torch.float64)
    residual = features @ matrix.T + 2.0
    found, offset = ridge_correction(features, residual, 1e-9)
    torch.testing.assert_close(found, matrix, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        offset, torch.full((3,), 2.0, dtype=torch.float64), atol=1e-6, rtol=0
    )
    found, offset = ridge_correction(features, residual, float('inf'))
    assert not found.any() and not offset.any()
    shrunk, _ = ridge_correction(features, residual, 1.0)
    assert 0.2 < (shrunk.norm() / matrix.norm()).item() < 0.8


def test_rotary_pairs_of_equal_frequency_meet():
    assert rotary_groups(16, 16, swap_axes=False) == [[j] for j in [0, 1, 2, 3, 8, 9, 10, 11]]
    swapped = rotary_groups(16, 16, swap_axes=True)
    assert swapped == [[j] for j in [8, 9, 10, 11, 0, 1, 2, 3]]
    # Frequencies 100^0, 100^-1/4, 100^-1/2, 100^-3/4 on 100^0 and 100^-1/2.
    halved = rotary_groups(16, 8, swap_axes=False)
    assert [group[0] for group in halved] == [0, 2, 8, 10]
    assert sorted(sum(halved, [])) == [0, 1, 2, 3, 8, 9, 10, 11]
    wider = rotary_groups(8, 16, swap_axes=False)
    assert wider == [[0], [], [1], [], [4], [], [5], []]


def test_merged_pair_is_the_best_single_one():
    generator = torch.Generator().manual_seed(1)

    def rows(count: int) -> Tensor:
        return torch.randn(count, 6, dtype=torch.complex128, generator=generator)

    query, key = rows(1), rows(1)
    turn = torch.polar(torch.tensor(1.0), torch.tensor(0.7)).to(torch.complex128)
    ones = torch.ones(6, dtype=torch.float64)
    # Three pairs that are one pair in truth: the sum of their products has rank one.
    many_q = torch.cat([query, 2 * turn * query, -query])
    many_k = torch.cat([key, turn * key, 0.5 * key])
    merged_q, merged_k = merge_pairs(many_q, many_k, ones, 2 * ones)
    product = many_q.conj().T @ many_k
    torch.testing.assert_close(torch.outer(merged_q.conj(), merged_k), product)
    # In general what is left is the rest of the singular values.
    many_q, many_k = rows(2), rows(2)
    merged_q, merged_k = merge_pairs(many_q, many_k, ones, ones)
    left = many_q.conj().T @ many_k - torch.outer(merged_q.conj(), merged_k)
    strength = torch.linalg.svdvals(many_q.conj().T @ many_k)
    assert left.norm().item() == pytest.approx(strength[1].item())


def test_heads_are_assigned_by_importance():
    importance = torch.tensor([0.1, 5.0, 3.0, 0.2])
    assert [slot.head for slot in assign_heads(importance, 2)] == [1, 2]
    slots = assign_heads(importance, 6)
    assert [(slot.head, slot.copy, slot.copies) for slot in slots] == [
        (0, 0, 1),
        (1, 0, 2),
        (1, 1, 2),
        (2, 0, 2),
        (2, 1, 2),
        (3, 0, 1),
    ]


# --- Full width: the teacher's function ----------------------------------------------------


@pytest.mark.parametrize('calibrated', [True, False])
def test_at_full_width_the_student_computes_what_the_teacher_does(calibrated):
    teacher, student = make_mast3r(), make_mast3r()
    views = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48)
    layout = DecoderLayout(3)
    with torch.no_grad():
        tokens = CalibrationTokens(*teacher.encode_pair(*views), (2, 3))
        in_double(teacher), in_double(student)
        state = {k: v for k, v in teacher.state_dict().items() if k.startswith(('patch', 'enc_'))}
        student.load_state_dict(state, strict=False)
        result = initialise(
            student,
            teacher.state_dict(),
            layout,
            layout,
            SvdInit(),
            tokens if calibrated else None,
        )
        doubles = [view.double() for view in views]
        wanted, found = (model(*doubles, with_tokens=True) for model in (teacher, student))
    basis = result.stream_basis
    for view in '12':
        for level in (1, 2):  # raw streams; the last level is normed
            mapped = found[f'tokens{view}'][level] @ basis.T
            torch.testing.assert_close(mapped, wanted[f'tokens{view}'][level], atol=1e-10, rtol=0)
    # Not by copying: the weights are others, and so are the tokens.
    key = 'dec_blocks.0.attn.qkv.weight'
    assert not torch.allclose(student.state_dict()[key], teacher.state_dict()[key], atol=0.05)
    assert not torch.allclose(found['tokens1'][1], wanted['tokens1'][1], atol=0.05)
    for name in ('pointmap1', 'pointmap2', 'conf1', 'desc1', 'desc_conf2'):  # float32 heads
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-4, msg=name)
    student.float()
    with torch.no_grad():
        single = student(*views)
    torch.testing.assert_close(single['pointmap1'], wanted['pointmap1'], atol=2e-4, rtol=2e-4)


def test_at_full_width_the_reference_teacher_is_reproduced(reference, reference_teacher):
    config = Mast3rConfig(
        encoder_width=64,
        encoder_depth=4,
        encoder_heads=4,
        decoder_width=48,
        decoder_depth=12,
        decoder_heads=4,
    )
    arrays = np.load(reference / 'mast3r_tiny_a' / 'io.npz')
    student, layout = Mast3r(config).eval(), DecoderLayout(4)
    state = {k: v for k, v in reference_teacher.items() if k.startswith(('patch', 'enc_'))}
    student.load_state_dict(state, strict=False)
    initialise(student, reference_teacher, layout, layout, SvdInit())
    views = (torch.from_numpy(arrays[f'image{n}_uint8'])[None] / 255 for n in (1, 2))
    with torch.no_grad():
        found = student(*views)
    # The bounds that the reference suggests for an implementation of the teacher itself.
    for name, key, bound in (
        ('pointmap1', 'view1_pts3d', 2e-4),
        ('pointmap2', 'view2_pts3d_in_other_view', 2e-4),
        ('conf1', 'view1_conf', 1e-4),
        ('desc2', 'view2_desc', 5e-5),
        ('desc_conf1', 'view1_desc_conf', 2e-3),
    ):
        wanted = torch.from_numpy(arrays[key])
        torch.testing.assert_close(found[name], wanted, atol=bound, rtol=0, msg=name)


def test_flight_decoder_and_its_readers_are_reproduced():
    config = FlightConfig(
        encoder_channels=(4, 8, 8, 12),
        decoder_width=24,
        decoder_depth=2,
        decoder_heads=2,
        disparity_bins=8,
        hourglass_channels=(8, 8, 8, 8),
        local_radius=1,
    )
    teacher, student = FlightStudent(config).eval(), FlightStudent(config).eval()
    shake(teacher)
    left, right = torch.rand(2, 1, 64, 96), torch.rand(2, 1, 64, 96)
    layout = decoder_layout(teacher)
    assert layout == DecoderLayout(2, prefix='decoder.', band_rows=config.band_rows)
    teacher.double(), student.double()
    with torch.no_grad():
        views = left.double(), right.double()
        maps = [teacher.encoder(view)[-1] for view in views]
        tokens = [part.flatten(2).transpose(1, 2) for part in maps]
        heads = {k.partition('.')[0] for k in teacher.state_dict()} - {'encoder', 'decoder'}
        encoder = {k: v for k, v in teacher.state_dict().items() if k.startswith('encoder.')}
        student.load_state_dict(encoder, strict=False)
        initialise(
            student,
            teacher.state_dict(),
            layout,
            layout,
            SvdInit(),
            CalibrationTokens(*tokens, (4, 6)),
            heads=tuple(heads),
        )
        wanted, found = teacher(*views), student(*views)
    assert wanted['disparity'].std() > 0
    torch.testing.assert_close(found['disparity'], wanted['disparity'], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found['logits'], wanted['logits'], atol=1e-9, rtol=1e-9)


class SwappedPositions(Mast3r):
    """A student whose positions are (column, row)."""

    def positions(self, grid, device):
        return super().positions(grid, device).flip(-1)


def test_column_first_positions_are_swapped():
    teacher = make_mast3r()
    student = SwappedPositions(teacher.config).eval()
    tokens = random_tokens(1, (2, 5), 16)
    result = initialise(
        student,
        teacher.state_dict(),
        DecoderLayout(3, column_first=True),
        DecoderLayout(3),
        SvdInit(),
    )
    in_double(teacher), in_double(student)
    views = tokens.left.double(), tokens.right.double()
    with torch.no_grad():
        wanted, found = (
            m.decode_pair(*views, tokens.grid, tokens.grid) for m in (teacher, student)
        )
    mapped = found[0][2] @ result.stream_basis.T
    torch.testing.assert_close(mapped, wanted[0][2], atol=1e-5, rtol=0)


def test_layouts_of_the_models():
    assert decoder_layout(make_mast3r()) == DecoderLayout(3)
    student = paper_student_config('S1')
    small = dataclasses.replace(student, decoder_width=16, decoder_depth=1, head=HEAD)
    assert decoder_layout(PaperStudent(small)) == DecoderLayout(4, column_first=True)
    with pytest.raises(ModelError, match='Linear has no decoder'):
        decoder_layout(torch.nn.Linear(1, 1))


def test_one_shared_decoder_serves_both_ways():
    teacher = make_mast3r().state_dict()
    shared = {k: v for k, v in teacher.items() if not k.startswith('dec_blocks2')}
    layout = DecoderLayout(3)
    tokens = random_tokens(2, (2, 3), 16)
    # A teacher with one decoder fills both of a student.
    full = shared_basis(teacher, shared, layout, layout, tokens).state
    for key in ('attn.qkv.weight', 'mlp.fc2.bias', 'cross_attn.projk.weight'):
        first, second = full[f'dec_blocks.1.{key}'], full[f'dec_blocks2.1.{key}']
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    # And a student with one is refitted on both views.
    both = shared_basis(shared, teacher, layout, layout, tokens)
    assert set(both.state) == set(shared)
    one_view = shared_basis(teacher, teacher, layout, layout, tokens).state
    key = 'dec_blocks.2.mlp.fc2.weight'
    assert not torch.allclose(both.state[key], one_view[key], atol=1e-4)


# --- Below full width: nothing that matters is lost ----------------------------------------


@pytest.mark.parametrize('calibrated', [True, False])
def test_a_small_decoder_hidden_in_a_large_one_is_found(calibrated):
    """A student blown up to a teacher, with dead heads and units, is found again."""
    hidden = PatchStereo(Size(16, 3, 2, 1.0)).double()
    shake(hidden)
    teacher = blow_up(hidden, Size(40, 3, 5, 2.0))
    student = PatchStereo(Size(16, 3, 2, 1.0)).double()
    student.encoder.load_state_dict(teacher.encoder.state_dict())
    student.enc_norm.load_state_dict(teacher.enc_norm.state_dict())
    with torch.no_grad():
        left, right, _ = synthetic_pairs(4, torch.Generator().manual_seed(3))
        tokens = CalibrationTokens(
            teacher.encode(left.double()), teacher.encode(right.double()), GRID
        )
        result = shared_basis(
            student.state_dict(),
            teacher.state_dict(),
            DecoderLayout(2),
            DecoderLayout(5),
            tokens if calibrated else None,
            heads=('head.',),
            readers={'^head$': 'normed'},
        )
        student.load_state_dict(result.state)
        views = left.double(), right.double()
        wanted, found = teacher(*views), student(*views)
        x = student.decode(tokens.left, tokens.right)[0] @ result.stream_basis.T
        torch.testing.assert_close(
            x, teacher.decode(tokens.left, tokens.right)[0], atol=2e-4, rtol=0
        )
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
    assert wanted.std() > 0.1


@torch.no_grad()
def blow_up(small: PatchStereo, size: Size) -> PatchStereo:
    """Return a wide model that computes what a narrow one does, up to the norm's epsilon."""
    large = PatchStereo(size).double()
    n, s = size.width, small.size.width
    covariance = torch.randn(n, n, dtype=torch.float64)
    basis, _ = stream_basis(covariance @ covariance.T, s)
    # A token on the basis has a smaller variance over n channels than over s.
    read = basis.T * (s / n) ** 0.5
    width = n // size.heads
    assert width == s // small.size.heads
    used = 2 * width  # the last two of the teacher's heads do something, the others are dead
    live = slice(n - used, n)
    state, narrow = large.state_dict(), small.state_dict()
    for key in state:
        if key.startswith('enc'):
            state[key] = narrow[key].clone()
        elif 'norm' in key:
            state[key] = torch.ones(n) if key.endswith('weight') else torch.zeros(n)
    for decoder in ('dec_blocks', 'dec_blocks2'):
        for index in range(size.depth):
            block = f'{decoder}.{index}.'
            norms = {
                name: (narrow[f'{block}{name}.weight'], narrow[f'{block}{name}.bias'])
                for name in ('norm1', 'norm2', 'norm3', 'norm_y')
            }
            qkv = folded(narrow, block + 'attn.qkv', norms['norm1'])
            for part, weight, bias in zip(range(3), qkv[0].chunk(3), qkv[1].chunk(3), strict=True):
                rows = slice(part * n + n - used, part * n + n)
                state[block + 'attn.qkv.weight'][rows] = weight @ read
                state[block + 'attn.qkv.bias'][rows] = bias
            for name, norm in (('projq', 'norm2'), ('projk', 'norm_y'), ('projv', 'norm_y')):
                weight, bias = folded(narrow, f'{block}cross_attn.{name}', norms[norm])
                state[f'{block}cross_attn.{name}.weight'][live] = weight @ read
                state[f'{block}cross_attn.{name}.bias'][live] = bias
            for name in ('attn', 'cross_attn'):
                out = torch.zeros(n, n, dtype=torch.float64)
                out[:, live] = basis @ narrow[f'{block}{name}.proj.weight']
                state[f'{block}{name}.proj.weight'] = out
                state[f'{block}{name}.proj.bias'] = basis @ narrow[f'{block}{name}.proj.bias']
            weight, bias = folded(narrow, block + 'mlp.fc1', norms['norm3'])
            units = slice(3, 3 + len(weight))
            state[block + 'mlp.fc1.weight'][units] = weight @ read
            state[block + 'mlp.fc1.bias'][units] = bias
            out = torch.zeros_like(state[block + 'mlp.fc2.weight'])
            out[:, units] = basis @ narrow[block + 'mlp.fc2.weight']
            state[block + 'mlp.fc2.weight'] = out
            state[block + 'mlp.fc2.bias'] = basis @ narrow[block + 'mlp.fc2.bias']
    for part in ('weight', 'bias'):
        state[f'decoder_embed.{part}'] = basis @ narrow[f'decoder_embed.{part}']
    norm = narrow['dec_norm.weight'], narrow['dec_norm.bias']
    weight, bias = folded(narrow, 'head', norm)
    state['head.weight'], state['head.bias'] = weight @ read, bias
    large.load_state_dict(state)
    return large.eval()


def folded(
    state: dict[str, Tensor], key: str, norm: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a linear layer with the gain and bias of the norm before it taken in."""
    weight, bias = state[f'{key}.weight'], state[f'{key}.bias']
    return weight * norm[0], bias + weight @ norm[1]


@pytest.fixture(scope='module')
def structured_teacher() -> PatchStereo:
    """Return a teacher whose matrices have decaying spectra, as trained ones do."""
    torch.manual_seed(4)
    teacher = PatchStereo(TEACHER).eval()
    with torch.no_grad():
        for name, value in teacher.named_parameters():
            if value.ndim == 2 and 'blocks' in name:
                u, s, vt = torch.linalg.svd(value, full_matrices=False)
                decay = torch.exp(-torch.arange(len(s)) / 8.0)
                value.copy_((u * decay * 3.0) @ vt)
    return teacher


@pytest.mark.parametrize('size', [Size(32, 6, 2, 1.0), Size(48, 3, 4, 2.0)])
def test_reduced_decoder_is_nearer_than_truncated_or_random(structured_teacher, size):
    teacher, generator = structured_teacher, torch.Generator().manual_seed(6)
    with torch.no_grad():
        fit, held = (
            [teacher.encode(view) for view in synthetic_pairs(count, generator)[:2]]
            for count in (12, 8)
        )
    student = PatchStereo(size)
    errors = {}
    tokens = CalibrationTokens(fit[0], fit[1], GRID)
    for name, state in starts(student, teacher, tokens, 'uniform').items():
        student.load_state_dict(state)
        errors[name] = measure(student, teacher, fit, held)
    basis = errors.pop('basis')
    for name in ('random', 'truncate', 'direct'):
        assert basis.stream < 0.8 * errors[name].stream, (name, basis, errors[name])
        assert basis.own < 0.8 * errors[name].own, (name, basis, errors[name])
    assert basis.own < errors['basis, no refit'].own


@pytest.mark.parametrize('strategy', ['uniform', 'last_k', 'first_k'])
@pytest.mark.parametrize('calibrated', [True, False])
@pytest.mark.parametrize(
    ('width', 'depth', 'heads', 'ratio'),
    [
        (24, 2, 3, 1.0),  # fewer units
        (16, 3, 4, 2.0),  # more and narrower heads
        (24, 3, 1, 2.0),  # one wide head
        (8, 2, 2, 8.0),  # more units than there are
    ],
)
def test_any_smaller_student_starts_finite_and_can_learn(
    strategy, calibrated, width, depth, heads, ratio
):
    teacher, student = make_mast3r(), make_mast3r(width, depth, heads, ratio)
    tokens = random_tokens(3, (2, 3), 16) if calibrated else None
    encoder = {k: v.clone() for k, v in student.state_dict().items() if k.startswith('enc_')}
    result = initialise(
        student,
        teacher.state_dict(),
        DecoderLayout(heads),
        DecoderLayout(3),
        SvdInit(strategy=strategy),
        tokens,
    )
    for key, value in encoder.items():
        assert torch.equal(student.state_dict()[key], value)
    made = {entry.student for entry in result.plan if entry.changed}
    for key in student.state_dict():
        if not key.startswith(('patch_embed', 'enc_')):
            assert key in made, key
    out = student(torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48))
    loss = sum(value.square().mean() for value in out.values())
    assert torch.isfinite(loss)
    loss.backward()
    for name, value in student.named_parameters():
        if name.startswith(('dec_blocks', 'decoder_embed')):
            assert torch.isfinite(value.grad).all() and value.grad.any(), name
    blocks = [name for name in made if name.startswith('dec_blocks.0.')]
    teachers = {e.teacher for e in result.plan if e.student in blocks}
    first = layer_mapping(3, depth, strategy)[0]
    assert all(name.startswith(f'dec_blocks.{first}.') for name in teachers)


def test_a_head_layer_that_reads_something_else_in_the_student_is_left_alone():
    # With one block, a DPT's second level is the encoder's; the teacher's is its decoder's.
    teacher, student = make_mast3r(16, 4, 2), make_mast3r(16, 1, 2)
    layout = DecoderLayout(2)
    result = shared_basis(student.state_dict(), teacher.state_dict(), layout, layout)
    plan = {entry.student: entry for entry in result.plan}
    key = 'downstream_head1.dpt.act_postprocess.1.0.weight'
    assert 'reads the decoder in one model' in plan[key].how and not plan[key].changed
    assert torch.equal(result.state[key], student.state_dict()[key])
    assert plan['downstream_head1.dpt.act_postprocess.3.0.weight'].changed


def test_bad_sizes_and_tokens_are_refused():
    teacher = make_mast3r().state_dict()
    layout = DecoderLayout(3)
    with pytest.raises(ModelError, match='decoder width is 48, teacher 24'):
        shared_basis(make_mast3r(48).state_dict(), teacher, layout, layout)
    with pytest.raises(ModelError, match='width 24 with 5 heads'):
        shared_basis(teacher, teacher, DecoderLayout(5), layout)
    with pytest.raises(ModelError, match='student decoder has 4 blocks, teacher 3'):
        shared_basis(make_mast3r(24, 4).state_dict(), teacher, layout, layout)
    with pytest.raises(ModelError, match='calibration tokens have 7 channels'):
        shared_basis(teacher, teacher, layout, layout, random_tokens(1, (2, 3), 7))
    with pytest.raises(ModelError, match='the grid is'):
        CalibrationTokens(torch.zeros(1, 6, 4), torch.zeros(1, 6, 4), (2, 4))
    with pytest.raises(ModelError, match='two equal'):
        CalibrationTokens(torch.zeros(1, 6, 4), torch.zeros(1, 8, 4), (2, 3))
    with pytest.raises(ModelError, match='bands of 4 rows'):
        shared_basis(
            teacher, teacher, DecoderLayout(3, band_rows=4), layout, random_tokens(1, (2, 3), 16)
        )
    with pytest.raises(ModelError, match='no decoder of the MASt3R kind'):
        shared_basis({'dec_blocks.0.fc.weight': torch.zeros(2, 2)}, teacher, layout, layout)
