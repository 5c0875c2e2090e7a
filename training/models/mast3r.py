"""MASt3R: two views of one scene to pointmaps in the first camera's frame, and descriptors.

Written from the published architecture, with the parameter names of official checkpoints (MASt3R,
MOONSt3R), which `checkpoints.load_teacher` reads. Any size can be built.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import InputError
from training.models.decoder import (
    DecoderBlock,
    grid_positions,
    LAYER_NORM_EPS,
    Mlp,
    rotary_tables,
    SelfAttention,
)
from training.models.heads import DenseHead, HeadConfig, PATCH_SIZE


@dataclass(frozen=True)
class Mast3rConfig:
    """Sizes of a MASt3R network; the defaults are those of the official ViT-Large model.

    Attributes:
        encoder_width, encoder_depth, encoder_heads: The encoder that both views share.
        decoder_width, decoder_depth, decoder_heads: Each view's decoder.
        mlp_ratio: Hidden width of every block's MLP over the block's width.
        head: Sizes of the two dense heads.
    """

    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    mlp_ratio: float = 4.0
    head: HeadConfig = field(default_factory=HeadConfig)


class PatchEmbedding(nn.Module):
    """One token for each 16x16 patch; (B, 3, H, W) to (B, H/16 * W/16, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_SIZE, PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        """Return tokens in row-major order."""
        return self.proj(image).flatten(2).transpose(1, 2)


class EncoderBlock(nn.Module):
    """Self attention with rotary positions and MLP, both residual."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Return (B, N, C)."""
        x = x + self.attn(self.norm1(x), tables)
        return x + self.mlp(self.norm2(x))


class Mast3r(nn.Module):
    """Encoder, two decoders that look at each other, two heads.

    With `encoder_depth` 0 this is also the shell of the paper's students, which replace
    `encode_view`.
    """

    def __init__(self, config: Mast3rConfig) -> None:
        super().__init__()
        self.config = config
        width, depth = config.decoder_width, config.decoder_depth
        self.patch_embed = PatchEmbedding(config.encoder_width)
        # Read by nothing here: official state dicts hold it from pre-training.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=False)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(config.encoder_width, config.encoder_heads, config.mlp_ratio)
            for _ in range(config.encoder_depth)
        )
        self.enc_norm = nn.LayerNorm(config.encoder_width, eps=LAYER_NORM_EPS)
        self.decoder_embed = nn.Linear(config.encoder_width, width)
        self.dec_blocks, self.dec_blocks2 = (
            nn.ModuleList(
                DecoderBlock(width, config.decoder_heads, config.mlp_ratio) for _ in range(depth)
            )
            for _ in range(2)
        )
        self.dec_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.downstream_head1, self.downstream_head2 = (
            DenseHead(config.encoder_width, width, depth, config.head) for _ in range(2)
        )
        self._initialise()

    def forward(
        self, left: Tensor, right: Tensor, with_tokens: bool = False
    ) -> dict[str, Tensor | list[Tensor]]:
        """Return pointmaps of both views in the left camera's frame.

        Args:
            left: (B, 3, H, W) RGB in [0, 1]; sides are multiples of 16.
            right: The same for the other view, which may differ in size.
            with_tokens: Add the token levels that feature distillation needs.

        Returns:
            For view N of 1 (left) and 2 (right): `pointmapN` (B, H, W, 3) in camera 1's frame,
            `confN` (B, H, W) raw confidence >= 1, `descN` (B, H, W, 24) of unit length,
            `desc_confN` (B, H, W); with_tokens adds `tokensN`, a list of (B, H/16 * W/16, C):
            the encoder's, then one a decoder block, the last after the final norm.

        Raises:
            InputError: An image is not RGB, is empty, or has a side that is no multiple of 16.
        """
        grids = [token_grid(left, 'left'), token_grid(right, 'right')]
        encoded = self.encode_pair(left, right)
        levels = self.decode_pair(*encoded, *grids)
        heads = (self.downstream_head1, self.downstream_head2)
        out: dict[str, Tensor | list[Tensor]] = {}
        for view, head in enumerate(heads):
            maps = head(levels[view], grids[view])
            out.update({f'{name}{view + 1}': value for name, value in maps.items()})
            if with_tokens:
                out[f'tokens{view + 1}'] = levels[view]
        return out

    def encode_pair(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views' encoder tokens (B, N, C); views of one size share a batch."""
        if left.shape != right.shape:
            return self.encode_view(left), self.encode_view(right)
        tokens_left, tokens_right = self.encode_view(torch.cat([left, right])).chunk(2)
        return tokens_left, tokens_right

    def encode_view(self, image: Tensor) -> Tensor:
        """Return encoder tokens (B, H/16 * W/16, C) of images (B, 3, H, W) in [0, 1]."""
        grid = image.shape[-2] // PATCH_SIZE, image.shape[-1] // PATCH_SIZE
        x = self.patch_embed(image * 2.0 - 1.0)
        tables = rotary_tables(
            self.positions(grid, image.device),
            self.config.encoder_width // self.config.encoder_heads,
        )
        for block in self.enc_blocks:
            x = block(x, tables)
        return self.enc_norm(x)

    def decode_pair(
        self,
        left: Tensor,
        right: Tensor,
        left_grid: tuple[int, int],
        right_grid: tuple[int, int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return both views' token levels from their encoder tokens (B, N, C).

        Level 0 is the encoder's output itself, level i the output of block i, the last normed.
        """
        head_width = self.config.decoder_width // self.config.decoder_heads
        tables1 = rotary_tables(self.positions(left_grid, left.device), head_width)
        tables2 = rotary_tables(self.positions(right_grid, right.device), head_width)
        levels1, levels2 = [left], [right]
        x1, x2 = self.decoder_embed(left), self.decoder_embed(right)
        for block1, block2 in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            x1, x2 = block1(x1, x2, tables1, tables2), block2(x2, x1, tables2, tables1)
            levels1.append(x1)
            levels2.append(x2)
        levels1[-1], levels2[-1] = self.dec_norm(x1), self.dec_norm(x2)
        return levels1, levels2

    def positions(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return (h * w, 2) integer positions, (row, column), of a token grid (h, w)."""
        return grid_positions(*grid, device=device)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # As a linear layer of the flattened patch, so that tokens start with unit-like scale.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.mask_token, std=0.02)


def token_grid(image: Tensor, name: str) -> tuple[int, int]:
    """Return rows and columns of the token grid of images (B, 3, H, W).

    Raises:
        InputError: The image is not RGB, is empty, or has a side that is no multiple of 16.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise InputError(f'{name} image has shape {tuple(image.shape)}; (B, 3, H, W) is needed')
    height, width = image.shape[-2:]
    if height < PATCH_SIZE or width < PATCH_SIZE or height % PATCH_SIZE or width % PATCH_SIZE:
        raise InputError(
            f'{name} image is {width}x{height}; sides must be positive multiples of {PATCH_SIZE}'
        )
    return height // PATCH_SIZE, width // PATCH_SIZE
