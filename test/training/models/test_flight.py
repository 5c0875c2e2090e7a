"""The flight student: matching by construction, sizes, gradients, and the exported file."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

import torch.nn.functional as F  # noqa: E402

from training.models.flight import (  # noqa: E402
    BilinearUpsample2,
    box_mean,
    convex_upsample2,
    FlightConfig,
    FlightStudent,
    normalise_contrast,
    peak_expectation,
    row_correlation,
    upsample2,
    warp_row,
)

TINY = FlightConfig(
    encoder_channels=(8, 8, 16, 16),
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
    descriptor_channels=8,
    disparity_bins=12,
    hourglass_channels=(8, 8, 16, 16),
    local_radius=2,
)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return FlightStudent(TINY)


def test_row_correlation_is_the_product_at_each_disparity():
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(2, 5, 3, 9, generator=generator) for _ in range(2))
    result = row_correlation(left, right, 4)
    for disparity in range(4):
        for column in range(9):
            expected = torch.zeros(2, 3)
            if column >= disparity:
                expected = (left[..., column] * right[..., column - disparity]).sum(dim=1)
            torch.testing.assert_close(result[:, disparity, :, column], expected)


def test_peak_expectation_ignores_a_second_surface():
    logits = torch.full((1, 12, 1, 1), -20.0)
    logits[0, 2:4] = 5.0  # the stronger surface, between bins 2 and 3
    logits[0, 9] = 4.9
    expected, peak = peak_expectation(logits)
    assert expected.item() == pytest.approx(2.5, abs=1e-3)
    assert peak.item() in (2, 3)


def test_convex_upsampling_keeps_a_constant_and_stays_between_neighbours():
    weights = torch.randn(1, 9 * 4, 5, 6)
    constant = convex_upsample2(torch.full((1, 1, 5, 6), 7.5), weights)
    assert constant.shape == (1, 1, 10, 12)
    torch.testing.assert_close(constant, torch.full_like(constant, 7.5))
    ramp = torch.arange(6.0).expand(1, 1, 5, 6)
    fine = convex_upsample2(ramp, weights)
    nearest = ramp.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (fine - nearest).abs().max() <= 1.0


@pytest.mark.parametrize('radius', [1, 2, 4, 6])
def test_box_mean_counts_what_is_inside_the_image(radius):
    x = torch.rand(2, 1, 17, 23, generator=torch.Generator().manual_seed(0))
    expected = F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)
    torch.testing.assert_close(box_mean(x, radius), expected)


def test_bilinear_upsampling_by_convolution_is_that_by_interpolation():
    x = torch.randn(2, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(BilinearUpsample2()(x), upsample2(x))


def test_convex_upsampling_weighs_the_nine_neighbours():
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.rand(1, 1, 4, 5, generator=generator), torch.randn(1, 36, 4, 5)
    patches = F.unfold(F.pad(x, (1, 1, 1, 1), mode='replicate'), 3).reshape(1, 9, 1, 4, 5)
    shares = weights.reshape(1, 9, 4, 4, 5).softmax(dim=1)
    expected = F.pixel_shuffle((shares * patches).sum(dim=1), 2)
    torch.testing.assert_close(convex_upsample2(x, weights), expected)


def test_warping_samples_between_columns_and_is_zero_outside():
    right = torch.arange(6.0).expand(1, 2, 3, 6)
    warped = warp_row(right, torch.full((1, 1, 3, 6), 1.5))
    torch.testing.assert_close(
        warped, torch.tensor([0.0, 0.0, 0.5, 1.5, 2.5, 3.5]).expand(1, 2, 3, 6)
    )


def test_a_disparity_that_is_not_a_number_stays_one():
    disparity = torch.full((1, 1, 3, 6), 1.5)
    disparity[..., 2] = torch.nan
    warped = warp_row(torch.arange(6.0).expand(1, 2, 3, 6), disparity)
    assert warped[..., 2].isnan().all() and warped[..., 3:].isfinite().all()


def test_fine_match_finds_which_way_the_disparity_is_off(student):
    texture = torch.rand(1, 8, 6, 60, generator=torch.Generator().manual_seed(3)) - 0.5
    left, right = texture[..., 10:50], texture[..., 16:56]  # disparity 6 columns at stride 2
    fine = student.fine
    wrong = torch.full((1, 1, 6, 40), 2.0 * (6 - 2))  # two columns short, in full pixels
    *_, match = fine(wrong, left, right, torch.zeros(1, 8, 3, 20))
    best = match[0, :, :, 12:30].mean(dim=(1, 2)).argmax().item()
    assert best - fine.radius == 2


def test_match_and_features_are_read_as_if_they_were_one_array(student):
    fine, generator = student.fine, torch.Generator().manual_seed(0)
    match, f2 = torch.randn(1, 5, 6, 7, generator=generator), torch.randn(1, 8, 6, 7)
    padding = torch.zeros(1, fine.from_match.in_channels - 13, 6, 7)
    expected = fine.from_match(torch.cat([match, f2, padding], dim=1))
    torch.testing.assert_close(fine._match_features(match, f2), expected, atol=1e-5, rtol=1e-5)


def test_contrast_does_not_depend_on_gain():
    image = 0.2 + 0.3 * torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(2))
    contrast = [normalise_contrast(image * gain)[:, 1] for gain in (1.0, 0.6)]
    assert (contrast[0] - contrast[1]).abs().mean() < 0.05 * contrast[0].abs().mean()


def test_every_parameter_gets_a_gradient(student):
    from training.losses.stereo import flight_losses
    from training.recipe import LossRecipe

    left, right = torch.rand(2, 1, 64, 96), torch.rand(2, 1, 64, 96)
    batch = {
        'disparity': torch.full((2, 64, 96), 9.0),
        'occlusion': torch.zeros(2, 64, 96, dtype=torch.uint8),
    }
    loss, terms = flight_losses(student(left, right), batch, LossRecipe())
    assert all(term > 0 for term in terms.values())
    loss.backward()
    silent = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a softmax over positions, or before keys, has no effect by construction.
    assert all(name.endswith('projk.bias') for name in silent), silent


def test_mixed_precision_keeps_the_disparity(student):
    generator = torch.Generator().manual_seed(4)
    left = torch.rand(1, 1, 64, 160, generator=generator)
    right = torch.roll(left, -9, dims=3)
    student.eval()
    with torch.no_grad():
        exact = student(left, right)
        with torch.autocast('cpu', torch.bfloat16):
            mixed = student(left, right)
    for name in ('correlation', 'logits', 'disparity', 'log_scale'):
        assert mixed[name].dtype == torch.float32, name
    # bfloat16 has steps of 1/2 px at 100 px: what becomes pixels must not pass through it.
    difference = (mixed['disparity'] - exact['disparity']).abs()
    assert 0 < difference.median() < 0.02


@pytest.mark.parametrize('size', [(64, 96), (96, 64), (32, 160)])
def test_output_sizes_follow_the_input(student, size):
    with torch.no_grad():
        output = student.eval()(torch.rand(1, 1, *size), torch.rand(1, 1, *size))
    assert output['disparity'].shape == (1, *size)
    assert output['confidence_logit'].shape == (1, *size)
    assert output['descriptors_left'].shape == (1, 8, size[0] // 4, size[1] // 4)
    assert (output['disparity'] >= 0).all()


def test_exported_file_agrees_with_torch_at_other_sizes(student, tmp_path):
    pytest.importorskip('onnxruntime')
    from training.commands.export import export_onnx, parity

    path = tmp_path / 'tiny.onnx'
    export_onnx(student.eval(), path, {'format_version': '1', 'name': 'tiny'})
    for size in ((64, 96), (96, 224)):
        assert parity(student, path, size) < 1e-3


def test_exported_metadata_describes_the_model(student, tmp_path):
    onnx = pytest.importorskip('onnx')
    from training.commands.export import export_onnx, metadata_of

    content = {'recipe': {'name': 'tiny'}, 'step': 3, 'seconds': 1.0, 'git_commit': ''}
    path = tmp_path / 'tiny.onnx'
    export_onnx(student.eval(), path, metadata_of(student, content, None))
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert properties['name'] == 'tiny'
    assert properties['max_disparity_px'] == '44'
    assert json.loads(properties['config'])['disparity_bins'] == 12
    assert len(properties['weights_sha256']) == 64
    kept = json.loads(properties['float32_nodes'])
    assert {'/student/fine/out/Conv', '/student/enlarge/Conv'} < set(kept) and len(kept) == 6


def test_openvino_rounds_layers_but_not_what_becomes_pixels(student, tmp_path):
    openvino = pytest.importorskip('openvino')
    pytest.importorskip('onnx')
    from lunar_stereo_recon.backends import load_backend
    from lunar_stereo_recon.backends.openvino_backend import round_layers
    from training.commands.export import export_onnx, metadata_of

    content = {'recipe': {'name': 'tiny'}, 'step': 3, 'seconds': 1.0, 'git_commit': ''}
    path = tmp_path / 'tiny.onnx'
    export_onnx(student.eval(), path, metadata_of(student, content, None))
    exact, fast = (load_backend(name, path, threads=1) for name in ('onnx', 'openvino'))
    kept = json.loads(fast.metadata['float32_nodes'])

    model = openvino.Core().read_model(path)
    model.reshape({'left': [1, 1, 64, 160], 'right': [1, 1, 64, 160]})
    round_layers(model, kept)
    types = {
        node.get_friendly_name().removesuffix('/WithoutBiases'): (
            node.get_output_element_type(0).get_type_name()
        )
        for node in model.get_ops()
        if node.get_type_name() == 'Convolution'
    }
    assert {name for name, kind in types.items() if kind == 'f32'} == set(kept)
    assert len(types) > 30 and set(types.values()) == {'f32', 'bf16'}
    assert all(port.get_element_type() == openvino.Type.f32 for port in model.outputs)

    rng = np.random.default_rng(0)
    texture = rng.random((64, 172), np.float32)
    left, right = texture[:, :160], np.ascontiguousarray(texture[:, 12:])
    found = [backend.predict(left, right).disparity for backend in (exact, fast)]
    difference = np.median(np.abs(found[0] - found[1]))
    if 'bfloat16' in fast.provider:
        assert 0 < difference < 0.02
    else:
        assert difference < 1e-4


def test_overfits_one_shifted_texture():
    from training.losses.stereo import flight_losses
    from training.recipe import LossRecipe

    torch.manual_seed(0)
    student = FlightStudent(TINY)
    texture = torch.from_numpy(np.random.default_rng(0).random((1, 1, 64, 128), np.float32))
    batch = {
        'disparity': torch.full((1, 64, 96), 12.0),
        'occlusion': torch.zeros(1, 64, 96, dtype=torch.uint8),
    }
    left, right = texture[..., 20:116], texture[..., 32:128]
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        output = student(left, right)
        loss, _ = flight_losses(output, batch, LossRecipe())
        loss.backward()
        optimizer.step()
    assert (output['disparity'] - 12.0).abs().mean() < 0.5
