"""The networks that a recipe can name: built from their configuration, read from a file."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from typing import Any

import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import InputError, ModelError
from training.models.flight import FlightConfig, FlightStudent
from training.models.heads import HeadConfig
from training.models.lunar_teacher import LUNAR_TEACHER
from training.models.mast3r import Mast3r, Mast3rConfig
from training.models.paper_students import PAPER_STUDENTS, PaperStudent
from training.models.sizes import check_sizes

# Configuration that each kind starts from; a recipe overrides single values of it.
CONFIGS: dict[str, Any] = {
    'flight': FlightConfig(),
    'lunar_teacher': LUNAR_TEACHER,
    'mast3r': Mast3rConfig(),
    **PAPER_STUDENTS,
}


def student_config(kind: str, overrides: dict[str, Any]) -> Any:
    """Return the configuration of a kind, with overrides from a recipe or a checkpoint.

    Raises:
        InputError: The kind or a key is unknown.
        ModelError: A size is beyond what can be built.
    """
    if kind not in CONFIGS:
        raise InputError(f'student kind is {kind!r}; known: {", ".join(CONFIGS)}')
    config = _overridden(CONFIGS[kind], overrides)
    check_sizes(config, f'student {kind}')
    return config


def build_student(kind: str, overrides: dict[str, Any]) -> nn.Module:
    """Return a network with random weights; arguments as for `student_config`."""
    config = student_config(kind, overrides)
    if isinstance(config, FlightConfig):
        return FlightStudent(config)
    return Mast3r(config) if isinstance(config, Mast3rConfig) else PaperStudent(config)


def config_values(student: nn.Module) -> dict[str, Any]:
    """Return a network's configuration as plain values, which `build_student` takes back."""
    if isinstance(student, PaperStudent):
        return dataclasses.asdict(student.student)
    if isinstance(student, (FlightStudent, Mast3r)):
        return dataclasses.asdict(student.config)
    raise ModelError(f'{type(student).__name__} is not a network of this package')


def encoder_modules(student: nn.Module) -> list[nn.Module]:
    """Return the modules that make a student's encoder."""
    if isinstance(student, (FlightStudent, PaperStudent)):
        return [student.encoder]
    if isinstance(student, Mast3r):
        return [student.patch_embed, student.enc_blocks, student.enc_norm]
    raise ModelError(f'{type(student).__name__} has no encoder that is known here')


def feature_widths(student: nn.Module) -> tuple[int, int]:
    """Return the channels of a network's encoder tokens and decoder tokens."""
    if isinstance(student, FlightStudent):
        return student.config.encoder_channels[3], student.config.decoder_width
    if isinstance(student, Mast3r):
        return student.config.encoder_width, student.config.decoder_width
    raise ModelError(f'{type(student).__name__} has no tokens that are known here')


def rgb(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) of grey or RGB images (B, 1 or 3, H, W)."""
    return images.expand(-1, 3, -1, -1)


def grey(images: Tensor) -> Tensor:
    """Return images (B, 1, H, W) of grey or RGB images (B, 1 or 3, H, W)."""
    if images.shape[1] == 1:
        return images
    luma = images.new_tensor([0.299, 0.587, 0.114])
    return torch.einsum('bchw,c->bhw', images, luma)[:, None]


def _overridden(config: Any, overrides: dict[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(config)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise InputError(
            f'{type(config).__name__} has no {", ".join(map(repr, unknown))}; '
            f'known: {", ".join(sorted(known))}'
        )
    return dataclasses.replace(config, **dict(_plain(config, overrides)))


def _plain(config: Any, overrides: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in overrides.items():
        if isinstance(getattr(config, name), HeadConfig):
            value = _overridden(getattr(config, name), dict(value))
        yield name, tuple(value) if isinstance(value, list) else value
