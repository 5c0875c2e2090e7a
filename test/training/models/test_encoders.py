"""The students' encoders compute what the published ones do, and take their weight files.

The figures were computed once with timm 1.0.31 and torchvision 0.28 on the same made-up weights.
"""

from __future__ import annotations

import json
from pathlib import Path
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from lunar_stereo_recon.errors import ModelError
from training.models.encoders import (
    encoder_state_from_official,
    ENCODERS,
    resample_position_table,
)

TORCHVISION_NAMES = Path(__file__).parent / 'data' / 'torchvision_mobilenet_v3_large.json'
# Mean, deviation, first value, value at a third of the flattened map, last value.
TIMM_MOBILENET = [0.035154, 1.234984, 3.032598, -0.895918, 0.428897]
TORCHVISION_MOBILENET = [0.006467, 0.215332, -0.06252, -0.300059, -0.002603]
TIMM_VIT_TINY = [-0.025061, 1.025513, -0.383614, -0.361551, 1.491271]
TIMM_DINOV2 = [-0.01141, 1.092791, -0.222539, -0.815401, 1.312083]
NORMS = ('norm.weight', 'norm1.weight', 'norm2.weight', 'gamma')


def made_up(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return values that depend on nothing but a parameter's name and shape."""
    phase = zlib.crc32(name.encode()) % 1000
    wave = np.sin(0.7 * np.arange(int(np.prod(shape))) + phase)
    values = torch.from_numpy(wave).float().reshape(shape)
    if name.endswith('running_var'):
        return 1 + 0.5 * values
    if len(shape) > 1 and name not in ('pos_embed', 'cls_token'):
        return values * (2.0 / np.prod(shape[1:])) ** 0.5
    if name.endswith(NORMS) or ('bn' in name and name.endswith('weight')):
        return 1 + 0.3 * values
    return 0.2 * values


def made_up_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {
        name: torch.zeros((), dtype=torch.int64)
        if name.endswith('num_batches_tracked')
        else made_up(name, tuple(shape))
        for name, shape in shapes.items()
    }


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device('meta'):
        state = ENCODERS[name].build().state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def figures(name: str, state: dict[str, Tensor]) -> list[float]:
    network = ENCODERS[name].build().eval()
    network.load_state_dict(encoder_state_from_official(network, state), strict=True)
    n = np.arange(3 * 64 * 96).reshape(1, 3, 64, 96)
    image = torch.from_numpy(np.sin(0.013 * n) * np.cos(0.0007 * n * n % 50)).float()
    with torch.no_grad():
        out = network(image)
    assert out.shape == (1, ENCODERS[name].channels, 4, 6)
    flat = out.double().flatten()
    return [flat.mean().item(), flat.std().item(), *flat[[0, len(flat) // 3, -1]].tolist()]


def test_mobilenet_is_timms():
    shapes = shapes_of('mobilenetv3_large')
    classifier = {'conv_head.weight': (1280, 960, 1, 1), 'classifier.bias': (1000,)}
    state = made_up_state(shapes | classifier)
    np.testing.assert_allclose(figures('mobilenetv3_large', state), TIMM_MOBILENET, atol=2e-5)


def test_mobilenet_takes_torchvisions_names_and_epsilon():
    state = made_up_state(json.loads(TORCHVISION_NAMES.read_text()))
    found = figures('mobilenetv3_large', state)
    np.testing.assert_allclose(found, TORCHVISION_MOBILENET, atol=2e-5)


def test_vit_tiny_is_timms_with_a_table_made_for_another_size():
    shapes = shapes_of('vit_tiny_patch16') | {'pos_embed': (1, 197, 192)}
    state = made_up_state(shapes | {'head.weight': (1000, 192), 'head.bias': (1000,)})
    np.testing.assert_allclose(figures('vit_tiny_patch16', state), TIMM_VIT_TINY, atol=2e-5)


def test_dinov2_is_the_published_one():
    state = made_up_state(shapes_of('dinov2_vits14') | {'mask_token': (1, 384)})
    np.testing.assert_allclose(figures('dinov2_vits14', state), TIMM_DINOV2, atol=2e-5)


def test_position_table_keeps_its_class_entry_and_a_constant():
    table = torch.cat([torch.full((1, 1, 3), 7.0), torch.full((1, 16, 3), 2.0)], dim=1)
    resampled = resample_position_table(table, (3, 9))
    assert resampled.shape == (1, 28, 3)
    torch.testing.assert_close(resampled[:, 0], table[:, 0])
    torch.testing.assert_close(resampled[:, 1:], torch.full((1, 27, 3), 2.0))
    assert resample_position_table(table, (4, 4)) is table


def test_position_table_follows_rows_and_columns():
    rows = torch.arange(4.0).repeat_interleave(4)[None, :, None]
    table = torch.cat([torch.zeros(1, 1, 1), rows], dim=1)
    grid = resample_position_table(table, (8, 4))[0, 1:, 0].reshape(8, 4)
    torch.testing.assert_close(grid, grid[:, :1].expand(8, 4))
    assert (grid[1:, 0] > grid[:-1, 0]).all()


def test_position_table_without_class_entry_is_refused():
    with pytest.raises(ModelError, match='16 entries'):
        resample_position_table(torch.zeros(1, 16, 3), (2, 2))
