"""Dense heads of the MASt3R kind: a DPT for pointmap and confidence, an MLP for descriptors.

Parameter names are those of official MASt3R state dicts. One head serves one view; it reads a
list of token levels (entry 0 the encoder's tokens, entry i the output of decoder block i) and
returns maps at image size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn, Tensor
import torch.nn.functional as F

PATCH_SIZE = 16
MIN_NORM = 1e-8


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of one dense head; the defaults are those of MASt3R and of the paper's students.

    Attributes:
        descriptor_width: Channels of the local descriptor.
        level_channels: Channels of the four DPT levels, finest first.
        fusion_width: Channels inside the fusion blocks; even.
        hidden_factor: Hidden width of the descriptor MLP over its input width.
        conf_min: Lower bound of the pointmap's raw confidence, min + exp(x).
        desc_conf_min: The same for the descriptor's raw confidence.
    """

    descriptor_width: int = 24
    level_channels: tuple[int, int, int, int] = (96, 192, 384, 768)
    fusion_width: int = 256
    hidden_factor: float = 4.0
    conf_min: float = 1.0
    desc_conf_min: float = 0.0


def dpt_hooks(decoder_depth: int) -> tuple[int, int, int, int]:
    """Return the four token levels that a DPT reads, e.g. (0, 6, 9, 12) for twelve blocks."""
    return 0, 2 * decoder_depth // 4, 3 * decoder_depth // 4, decoder_depth


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, around an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """Add a finer level to the coarse path and double its size.

    `resConfUnit1` acts on the finer level only, so the coarsest block, which has none, keeps it
    unused (it is in official state dicts all the same).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        """Return (B, C, 2H, 2W) from x and finer, both (B, C, H, W)."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        return self.out_conv(_upsample_twice(self.resConfUnit2(x)))


class FusionPyramid(nn.Module):
    """Four levels to one width, then fused from the coarsest to the finest."""

    def __init__(self, level_channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(channels, width, 3, padding=1, bias=False) for channels in level_channels
        )
        # Official state dicts list the same four under these names as well.
        self.layer_rn = nn.ModuleList(
            [self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn]
        )
        self.refinenet1, self.refinenet2, self.refinenet3, self.refinenet4 = (
            FusionBlock(width) for _ in range(4)
        )
        # No finer level reaches the coarsest block, see FusionBlock.
        self.refinenet4.resConfUnit1.requires_grad_(False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return (B, C, 8 h, 8 w) of maps at 4, 2, 1 and 1/2 times the token grid (h, w)."""
        l1, l2, l3, l4 = (rn(x) for rn, x in zip(self.layer_rn, maps, strict=True))
        path = self.refinenet4(l4)[..., : l3.shape[-2], : l3.shape[-1]]  # odd grids rounded up
        path = self.refinenet3(path, l3)
        path = self.refinenet2(path, l2)
        return self.refinenet1(path, l1)


class DptHead(nn.Module):
    """Dense prediction transformer: four token levels to a map of 4 channels at image size."""

    def __init__(self, encoder_width: int, decoder_width: int, config: HeadConfig) -> None:
        super().__init__()
        c1, c2, c3, c4 = config.level_channels
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(encoder_width, c1, 1), nn.ConvTranspose2d(c1, c1, 4, 4)),
                nn.Sequential(nn.Conv2d(decoder_width, c2, 1), nn.ConvTranspose2d(c2, c2, 2, 2)),
                nn.Sequential(nn.Conv2d(decoder_width, c3, 1)),
                nn.Sequential(
                    nn.Conv2d(decoder_width, c4, 1), nn.Conv2d(c4, c4, 3, stride=2, padding=1)
                ),
            ]
        )
        self.scratch = FusionPyramid(config.level_channels, config.fusion_width)
        width = config.fusion_width
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.Upsample(scale_factor=2.0, mode='bilinear', align_corners=True),
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, 4, 1),
        )

    def forward(self, levels: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Return (B, 4, 16 h, 16 w) from four token sets (B, h * w, C) of grid (h, w)."""
        maps = [tokens.transpose(1, 2).unflatten(2, grid) for tokens in levels]  # (B, C, h, w)
        # (B, c1, 4 h, 4 w), (B, c2, 2 h, 2 w), (B, c3, h, w), (B, c4, h / 2, w / 2).
        maps = [stage(x) for stage, x in zip(self.act_postprocess, maps, strict=True)]
        return self.head(self.scratch(maps))


class LocalFeatures(nn.Module):
    """MLP that expands each token to the descriptors of its 16x16 pixels."""

    def __init__(self, width: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, channels * PATCH_SIZE**2)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, channels, 16 h, 16 w) from tokens (B, h * w, C) of grid (h, w)."""
        x = self.fc2(F.gelu(self.fc1(tokens)))  # (B, h * w, channels * 256)
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, grid), PATCH_SIZE)


class DenseHead(nn.Module):
    """Pointmap, confidence, descriptors and their confidence for one view, in float32."""

    def __init__(
        self,
        encoder_width: int,
        decoder_width: int,
        decoder_depth: int,
        config: HeadConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.hooks = dpt_hooks(decoder_depth)
        self.dpt = DptHead(encoder_width, decoder_width, config)
        width = encoder_width + decoder_width
        self.head_local_features = LocalFeatures(
            width, int(config.hidden_factor * width), config.descriptor_width + 1
        )

    def forward(self, levels: list[Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        """Return the maps of one view.

        Args:
            levels: Token levels (B, h * w, C): the encoder's, then one a decoder block.
            grid: Rows h and columns w of the token grid.

        Returns:
            `pointmap` (B, H, W, 3), camera 1's frame, up to scale unless the training was metric;
            `conf` (B, H, W) >= conf_min; `desc` (B, H, W, D) of unit length; `desc_conf`
            (B, H, W) >= desc_conf_min. H = 16 h, W = 16 w; float32.
        """
        # The exponentials below overflow in half precision.
        with torch.autocast(levels[0].device.type, enabled=False):
            levels = [level.float() for level in levels]
            geometry = self.dpt([levels[hook] for hook in self.hooks], grid)  # (B, 4, H, W)
            # (B, D + 1, H, W): descriptors and their confidence.
            local = self.head_local_features(torch.cat([levels[0], levels[-1]], dim=-1), grid)
            return self._read_out(geometry.movedim(1, -1), local.movedim(1, -1))

    def _read_out(self, geometry: Tensor, local: Tensor) -> dict[str, Tensor]:
        descriptor = local[..., :-1]
        return {
            'pointmap': exponential_points(geometry[..., :3]),
            'conf': self.config.conf_min + geometry[..., 3].exp(),
            'desc': descriptor / descriptor.norm(dim=-1, keepdim=True),
            'desc_conf': self.config.desc_conf_min + local[..., -1].exp(),
        }


def exponential_points(raw: Tensor) -> Tensor:
    """Return points (..., 3): direction of raw (..., 3), distance exp(length of raw) - 1."""
    length = raw.norm(dim=-1, keepdim=True)
    return raw / length.clamp(min=MIN_NORM) * torch.expm1(length)


def _upsample_twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode='bilinear', align_corners=True)
