"""Models of toy size, and the reference figures kept beside the clone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.models.heads import HeadConfig
from training.models.mast3r import Mast3r, Mast3rConfig

REFERENCE = Path(__file__).resolve().parents[4] / 'shared' / 'fixtures'
TOY_HEAD = HeadConfig(descriptor_width=8, level_channels=(8, 8, 16, 16), fusion_width=16)
TOY_CONFIG = Mast3rConfig(
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=2,
    decoder_width=16,
    decoder_depth=4,
    decoder_heads=2,
    head=TOY_HEAD,
)


@pytest.fixture(scope='session')
def reference() -> Path:
    """Return the folder of reference figures; skip where a clone has none."""
    if not REFERENCE.is_dir():
        pytest.skip(f'no reference figures at {REFERENCE}')
    return REFERENCE


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def toy_head() -> HeadConfig:
    return TOY_HEAD


@pytest.fixture
def toy_teacher() -> Mast3r:
    return Mast3r(TOY_CONFIG).eval()


@pytest.fixture
def views() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a left and a right image, (1, 3, 48, 64) in [0, 1]."""
    return torch.rand(1, 3, 48, 64), torch.rand(1, 3, 48, 64)
