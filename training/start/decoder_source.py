"""A decoder as its state dict holds it, run block by block on the tokens of a few pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import ModelError
from training.models.decoder import (
    DecoderBlock,
    grid_positions,
    LAYER_NORM_EPS,
    Mlp,
    rotary_tables,
)
from training.start.init_plan import decoder_depth, StateDict, teacher_block_prefix
from training.start.reduction import Linear

Tables = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DecoderLayout:
    """What a state dict does not say about its decoder.

    Attributes:
        heads: Attention heads.
        prefix: What stands before `decoder_embed`, `dec_blocks`, ... in the state dict.
        band_rows: Token rows that attend to each other; 0: all.
        column_first: Positions are (column, row), as in the paper's CNN student.
    """

    heads: int
    prefix: str = ''
    band_rows: int = 0
    column_first: bool = False


@dataclass(frozen=True)
class CalibrationTokens:
    """The teacher's encoder tokens on a few pairs, both views of one size.

    Attributes:
        left, right: (B, h * w, E) row-major.
        grid: Rows h and columns w.

    Raises:
        ModelError: Shapes disagree.
    """

    left: Tensor
    right: Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if self.left.shape != self.right.shape or self.left.ndim != 3:
            raise ModelError(
                f'calibration tokens have shapes {tuple(self.left.shape)} and '
                f'{tuple(self.right.shape)}; two equal (B, N, E) are needed'
            )
        if self.left.shape[1] != self.grid[0] * self.grid[1]:
            raise ModelError(
                f'calibration tokens: {self.left.shape[1]} a view, but the grid is {self.grid}'
            )


@dataclass(frozen=True)
class Decoder:
    """A decoder's state dict with the sizes read off it."""

    state: StateDict
    layout: DecoderLayout
    width: int
    depth: int
    encoder_width: int | None
    two_decoders: bool

    @classmethod
    def read(cls, state: StateDict, layout: DecoderLayout, name: str) -> Decoder:
        prefix = layout.prefix
        depth = decoder_depth(state, prefix, name)
        key = f'{prefix}dec_blocks.0.attn.proj.weight'
        if key not in state:
            raise ModelError(f'{name} state dict has no {key!r}: no decoder of the MASt3R kind')
        width = state[key].shape[0]
        if layout.heads < 1 or width % layout.heads or width // layout.heads % 4:
            raise ModelError(
                f'{name} decoder of width {width} with {layout.heads} heads: the width of a '
                'head must be a multiple of 4'
            )
        embed = state.get(f'{prefix}decoder_embed.weight')
        return cls(
            state,
            layout,
            width,
            depth,
            None if embed is None else embed.shape[1],
            any(item.startswith(f'{prefix}dec_blocks2.') for item in state),
        )

    @property
    def head_width(self) -> int:
        return self.width // self.layout.heads

    def block(self, decoder: str, index: int) -> DecoderBlock:
        """Return one block as a float64 module."""
        prefix = teacher_block_prefix(self.state, self.layout.prefix, decoder) + f'{index}.'
        entries = {
            key[len(prefix) :]: value.detach().to('cpu', torch.float64)
            for key, value in self.state.items()
            if key.startswith(prefix)
        }
        block = DecoderBlock(self.width, self.layout.heads, 1.0)
        block.mlp = Mlp(self.width, entries['mlp.fc1.weight'].shape[0])
        block.double().load_state_dict(entries, strict=True)
        return block.eval()

    def linear(self, name: str) -> Linear:
        """Return weight and bias of a linear layer, float64."""
        key = self.layout.prefix + name
        weight = self.state[f'{key}.weight'].detach().to('cpu', torch.float64)
        return weight, self.state[f'{key}.bias'].detach().to('cpu', torch.float64)

    def tables(self, grid: tuple[int, int]) -> Tables:
        """Return the rotary tables of one band of a token grid."""
        positions = grid_positions(self.layout.band_rows or grid[0], grid[1])
        if self.layout.column_first:
            positions = positions.flip(-1)
        return rotary_tables(positions, self.head_width)

    def banded(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens (B, h * w, C) as bands (B * bands, N, C) that attend within."""
        rows = self.layout.band_rows or grid[0]
        if grid[0] % rows:
            raise ModelError(f'token grid {grid} is not made of bands of {rows} rows')
        return tokens.reshape(-1, rows * grid[1], tokens.shape[-1])


def check_sizes(teacher: Decoder, student: Decoder) -> None:
    if teacher.encoder_width is None:
        raise ModelError(f'teacher has no {teacher.layout.prefix + "decoder_embed.weight"!r}')
    sizes = [('decoder width', student.width, teacher.width)]
    if student.encoder_width is not None:
        sizes.append(('encoder width', student.encoder_width, teacher.encoder_width))
    for what, small, large in sizes:
        if small > large:
            raise ModelError(
                f'student {what} is {small}, teacher {large}: a shared basis cannot grow it'
            )


def norm_tokens(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPS)


class Tap:
    """Records the input of a layer while the module that holds it runs."""

    def __init__(self, layer: nn.Module) -> None:
        self.value: Tensor | None = None
        self._handle = layer.register_forward_pre_hook(self._record)

    def _record(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.value = inputs[0]

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def read(self) -> Tensor:
        if self.value is None:
            raise RuntimeError('the tapped layer has not run')
        return self.value


@dataclass(frozen=True)
class Trace:
    """What one view's teacher block did: streams, and inputs of the layers that write them."""

    x: Tensor
    other: Tensor
    after_self: Tensor
    after_cross: Tensor
    self_heads: Tensor
    cross_heads: Tensor
    units: Tensor


def run_block(
    block: DecoderBlock, of: Decoder, x: Tensor, other: Tensor, grid: tuple[int, int]
) -> Tensor:
    tables = of.tables(grid)
    return block(of.banded(x, grid), of.banded(other, grid), tables, tables).reshape(x.shape)


def trace_block(
    block: DecoderBlock, of: Decoder, x: Tensor, other: Tensor, grid: tuple[int, int]
) -> Trace:
    layers = (block.attn.proj, block.cross_attn.proj, block.mlp.fc2)
    with Tap(layers[0]) as heads, Tap(layers[1]) as cross, Tap(layers[2]) as units:
        run_block(block, of, x, other, grid)
    self_heads, cross_heads = heads.read().reshape(x.shape), cross.read().reshape(x.shape)
    after_self = x + block.attn.proj(self_heads)
    after_cross = after_self + block.cross_attn.proj(cross_heads)
    activations = units.read().reshape(*x.shape[:2], -1)
    return Trace(x, other, after_self, after_cross, self_heads, cross_heads, activations)
