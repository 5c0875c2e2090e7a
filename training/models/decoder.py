"""Cross-view decoder blocks of the MASt3R kind, shared by teacher, paper students and flight.

Parameter names are those of official MASt3R state dicts, so one SVD initialisation serves every
teacher and student. Positions are integer (row, column) pairs; see `rotary_tables`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn, Tensor
import torch.nn.functional as F

LAYER_NORM_EPS = 1e-6
ROTARY_BASE = 100.0


def grid_positions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return (height * width, 2) int64 positions (row, column) of a row-major token grid."""
    # Expanded, not repeated: the ONNX exporter fixes repeat counts to the example's size.
    rows = torch.arange(height, device=device)[:, None].expand(height, width)
    columns = torch.arange(width, device=device)[None].expand(height, width)
    return torch.stack([rows, columns], dim=-1).flatten(0, 1)


def rotary_tables(positions: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine tables of the 2-D rotary embedding (RoPE).

    The first half of a head is rotated by the row, the second by the column. Within a half of
    width m, component j pairs with j + m/2 and turns by position * 100^(-2j/m).

    Args:
        positions: (..., N, 2) integers, row and column of each token.
        head_width: Width of one attention head; a multiple of 4.

    Returns:
        Two float32 tensors (..., N, head_width).
    """
    if head_width % 4:
        raise ValueError(f'head width is {head_width}; rotary embedding needs a multiple of 4')
    half = head_width // 2
    exponent = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
    angles = positions[..., None].float() * ROTARY_BASE**-exponent  # (..., N, 2, half / 2)
    angles = torch.cat([angles, angles], dim=-1).flatten(-2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the rotary embedding to x (B, heads, N, head width)."""
    cos, sin = tables
    if cos.ndim == 3:  # one table for each item of the batch
        cos, sin = cos[:, None], sin[:, None]
    a, b, c, d = x.chunk(4, dim=-1)
    turned = torch.cat([-b, a, -d, c], dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def in_float32(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return the function of tensors, computed in float32 where mixed precision is switched on."""
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return function(*inputs)
    with torch.autocast(device, enabled=False):
        return function(*(tensor.float() for tensor in inputs))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type == 'cpu':
        # On a CPU the gradient of the attention is ten times slower in bfloat16.
        return in_float32(F.scaled_dot_product_attention, q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """Multi-head self attention with rotary positions; x is (B, N, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Return attended tokens (B, N, C)."""
        # (B, heads, N, C / heads) each.
        q, k, v = (_split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        out = _attention(rotate(q, tables), rotate(k, tables), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention from one view's tokens to the other's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        tables: tuple[Tensor, Tensor],
        memory_tables: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return (B, N, C): tokens x (B, N, C) attending to memory (B, M, C)."""
        # q (B, heads, N, C / heads); k and v (B, heads, M, C / heads).
        q = rotate(_split_heads(self.projq(x), self.heads), tables)
        k = rotate(_split_heads(self.projk(memory), self.heads), memory_tables)
        v = _split_heads(self.projv(memory), self.heads)
        out = _attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class DecoderBlock(nn.Module):
    """Self attention, cross attention with its own memory norm, MLP; all residual.

    The other view's tokens are read, never changed: both views of a level must read the
    outputs of the level before.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm3 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.norm_y = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(
        self,
        x: Tensor,
        other: Tensor,
        tables: tuple[Tensor, Tensor],
        other_tables: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return this view's tokens (B, N, C) after looking at the other view's (B, M, C)."""
        x = x + self.attn(self.norm1(x), tables)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(other), tables, other_tables)
        return x + self.mlp(self.norm3(x))
