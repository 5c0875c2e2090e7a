"""Image encoders of the paper's students: DINOv2 ViT-S/14, ViT-Tiny/16, MobileNetV3-Large.

Parameter names are those of the published weights (torch.hub and timm for the ViTs, timm for
MobileNetV3), so files that a user has load as they are; torchvision's MobileNetV3 names are
translated. Every encoder returns one feature map at stride 16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import ModelError
from training.models.decoder import LAYER_NORM_EPS, Mlp

STRIDE = 16
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION_BATCH_NORM_EPS, TIMM_BATCH_NORM_EPS = 1e-3, 1e-5


class VitAttention(nn.Module):
    """Multi-head self attention without rotary positions; x is (B, N, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """A learned gain a channel on a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, C)."""
        return x * self.gamma


class VitBlock(nn.Module):
    """Pre-norm transformer block, with layer scale in DINOv2 and without in plain ViTs."""

    def __init__(self, width: int, heads: int, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = VitAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, 4 * width)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, C)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VitPatchEmbedding(nn.Module):
    """Convolution of kernel and stride `patch_size`."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C, h, w)."""
        return self.proj(image)


class VisionTransformer(nn.Module):
    """ViT with a class token and a learned position table, resampled to the image's grid.

    The heads make 16x16 pixels a token. How the paper's patch-14 encoder meets them is not
    published; here the image is resized to 14/16 of its size first, so that tokens fall exactly
    on the 16-pixel grid and the encoder sees the patches it was trained for.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        patch_size: int,
        table_grid: int,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + table_grid**2, width))
        self.patch_embed = VitPatchEmbedding(width, patch_size)
        self.blocks = nn.ModuleList(VitBlock(width, heads, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C, h, w), the normed patch tokens.

        Args:
            image: (B, 3, 16 h, 16 w), normalised as the encoder was trained.
        """
        grid = image.shape[-2] // STRIDE, image.shape[-1] // STRIDE
        size = grid[0] * self.patch_size, grid[1] * self.patch_size
        if size != tuple(image.shape[-2:]):
            image = F.interpolate(image, size, mode='bilinear', align_corners=False)
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + resample_position_table(self.pos_embed, grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, grid)


def resample_position_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a ViT's position table (1, 1 + h * w, C) for another grid (h, w), bicubic.

    Args:
        table: (1, 1 + n * n, C): the class token's entry, then a square grid's, row-major.
        grid: Rows and columns wanted.

    Raises:
        ModelError: The table is not of that form.
    """
    side = math.isqrt(table.shape[1] - 1)
    if 1 + side**2 != table.shape[1]:
        raise ModelError(
            f'position table has {table.shape[1]} entries; one class token and a square grid '
            'are needed'
        )
    if grid == (side, side):
        return table
    patches = table[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    patches = F.interpolate(patches, grid, mode='bicubic', align_corners=False, antialias=True)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


# Stages of MobileNetV3-Large, one row a block: kernel, stride, expanded width, output width,
# squeezed width (0: no squeeze-and-excitation), activation.
MOBILENET_STAGES: tuple[tuple[tuple[int, int, int, int, int, type[nn.Module]], ...], ...] = (
    ((3, 2, 64, 24, 0, nn.ReLU), (3, 1, 72, 24, 0, nn.ReLU)),
    ((5, 2, 72, 40, 24, nn.ReLU), (5, 1, 120, 40, 32, nn.ReLU), (5, 1, 120, 40, 32, nn.ReLU)),
    (
        (3, 2, 240, 80, 0, nn.Hardswish),
        (3, 1, 200, 80, 0, nn.Hardswish),
        (3, 1, 184, 80, 0, nn.Hardswish),
        (3, 1, 184, 80, 0, nn.Hardswish),
    ),
    ((3, 1, 480, 112, 120, nn.Hardswish), (3, 1, 672, 112, 168, nn.Hardswish)),
    (
        (5, 2, 672, 160, 168, nn.Hardswish),
        (5, 1, 960, 160, 240, nn.Hardswish),
        (5, 1, 960, 160, 240, nn.Hardswish),
    ),
)
STEM_WIDTH, LAST_WIDTH = 16, 960
# Stages after this one are at stride 32.
LAST_STAGE_AT_STRIDE_16 = 4


class SqueezeExcitation(nn.Module):
    """Channel gains from the image's mean, through a bottleneck."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(width, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        squeezed = F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.conv_expand(squeezed))


class SeparableBlock(nn.Module):
    """MobileNetV3's first block: depthwise and pointwise convolution, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv_pw = nn.Conv2d(width, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return x + self.bn2(self.conv_pw(F.relu(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, squeeze-and-excitation, project."""

    def __init__(
        self,
        width_in: int,
        kernel: int,
        stride: int,
        expanded: int,
        width_out: int,
        squeezed: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.conv_pw = nn.Conv2d(width_in, expanded, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(expanded)
        self.conv_dw = nn.Conv2d(
            expanded, expanded, kernel, stride, kernel // 2, groups=expanded, bias=False
        )
        self.bn2 = nn.BatchNorm2d(expanded)
        self.se = SqueezeExcitation(expanded, squeezed) if squeezed else nn.Identity()
        self.conv_pwl = nn.Conv2d(expanded, width_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.activation = activation()
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width_out, H / stride, W / stride)."""
        y = self.activation(self.bn1(self.conv_pw(x)))
        y = self.se(self.activation(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


class PointwiseBlock(nn.Module):
    """MobileNetV3's last feature layer."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)


class MobileNetV3(nn.Module):
    """MobileNetV3-Large up to stride 16.

    The stages at stride 32 belong to the paper's student (they are in its parameter count and
    its checkpoints) although nothing reads them; they are kept frozen and are not run.
    """

    def __init__(self, factor: float = 1.0) -> None:
        """Build it with random weights.

        Args:
            factor: Factor of all widths; 1 is the published network.
        """
        super().__init__()

        def scaled(channels: int) -> int:
            return channels if factor == 1.0 else max(8, 8 * round(channels * factor / 8))

        width = scaled(STEM_WIDTH)
        self.conv_stem = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = [nn.Sequential(SeparableBlock(width))]
        for rows in MOBILENET_STAGES:
            blocks = []
            for kernel, stride, expanded, width_out, squeezed, activation in rows:
                sizes = scaled(expanded), scaled(width_out), squeezed and scaled(squeezed)
                blocks.append(InvertedResidual(width, kernel, stride, *sizes, activation))
                width = scaled(width_out)
            stages.append(nn.Sequential(*blocks))
        stages.append(nn.Sequential(PointwiseBlock(width, scaled(LAST_WIDTH))))
        self.blocks = nn.Sequential(*stages)
        for parameter in self.blocks[LAST_STAGE_AT_STRIDE_16 + 1 :].parameters():
            parameter.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, 112 times the factor, H / 16, W / 16) of normalised images (B, 3, H, W)."""
        x = F.hardswish(self.bn1(self.conv_stem(image)))
        return self.blocks[: LAST_STAGE_AT_STRIDE_16 + 1](x)


@dataclass(frozen=True)
class EncoderSpec:
    """How a student uses one encoder.

    Attributes:
        build: Makes the encoder with random weights.
        channels: Channels of its feature map.
        module_name, backbone_name: Prefix in the paper's checkpoints, e.g. tiny_vit.vit.
        mean, std: Normalisation of RGB in [0, 1]. The paper's public encoders take images in
            [-1, 1]; for DINOv2 nothing is published, and its own statistics are used.
        column_first: The paper's wrapper of CNN encoders numbers tokens (column, row), the other
            way round from the teacher; for the ViTs nothing is published, and the teacher's
            order is used, which a decoder initialised from it needs.
    """

    build: Callable[[], nn.Module]
    channels: int
    module_name: str
    backbone_name: str
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    column_first: bool = False


ENCODERS: dict[str, EncoderSpec] = {
    'mobilenetv3_large': EncoderSpec(MobileNetV3, 112, 'tiny_enc', 'backbone', column_first=True),
    'dinov2_vits14': EncoderSpec(
        lambda: VisionTransformer(384, 12, 6, 14, table_grid=37, layer_scale=True),
        384,
        'tiny_vit',
        'vit',
        IMAGENET_MEAN,
        IMAGENET_STD,
    ),
    # The paper's count holds for a position table of a 512x512 image.
    'vit_tiny_patch16': EncoderSpec(
        lambda: VisionTransformer(192, 12, 3, 16, table_grid=32), 192, 'tiny_vit', 'vit'
    ),
    # Of no published network: for comparisons at a scale where a CPU can train several.
    'mobilenetv3_mini': EncoderSpec(
        lambda: MobileNetV3(0.75), 80, 'tiny_enc', 'backbone', column_first=True
    ),
    'vit_mini_patch16': EncoderSpec(
        lambda: VisionTransformer(96, 3, 3, 16, table_grid=8), 96, 'tiny_vit', 'vit'
    ),
    'vit_micro_patch16': EncoderSpec(
        lambda: VisionTransformer(48, 2, 3, 16, table_grid=8), 48, 'tiny_vit', 'vit'
    ),
}


def encoder_spec(name: str) -> EncoderSpec:
    """Return the encoder of this name.

    Raises:
        ModelError: No encoder has this name; the message lists those that exist.
    """
    if name not in ENCODERS:
        raise ModelError(f'encoder is {name!r}; known are {", ".join(ENCODERS)}')
    return ENCODERS[name]


class AdaptedEncoder(nn.Module):
    """An encoder and the adapter that brings its map to the decoder's width.

    The adapter is a 1x1 convolution without bias and a group norm of one group; an encoder
    of the decoder's width goes without.
    """

    def __init__(self, spec: EncoderSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.add_module(spec.backbone_name, spec.build())
        self.adapter: nn.Module = nn.Identity()
        if spec.channels != width:
            self.adapter = nn.Sequential(
                nn.Conv2d(spec.channels, width, 1, bias=False), nn.GroupNorm(1, width)
            )

    @property
    def network(self) -> nn.Module:
        """Return the encoder proper, which state dicts call backbone or vit."""
        return self.get_submodule(self.spec.backbone_name)

    def forward(self, image: Tensor) -> Tensor:
        """Return tokens (B, H/16 * W/16, width) of images (B, 3, H, W) in [0, 1]."""
        mean = image.new_tensor(self.spec.mean)[:, None, None]
        std = image.new_tensor(self.spec.std)[:, None, None]
        features = self.network((image - mean) / std)
        grid = image.shape[-2] // STRIDE, image.shape[-1] // STRIDE
        if tuple(features.shape[-2:]) != grid:
            features = F.interpolate(features, grid, mode='bilinear', align_corners=False)
        return self.adapter(features).flatten(2).transpose(1, 2)


def encoder_state_from_official(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a published encoder's state dict in this module's names and sizes.

    Drops what only classification or pre-training needs, resamples a ViT's position table, and
    translates torchvision's MobileNetV3.

    Args:
        encoder: A `VisionTransformer` or `MobileNetV3`.
        state: The published state dict: DINOv2 (torch.hub or timm), timm or torchvision.
    """
    if isinstance(encoder, MobileNetV3):
        if 'features.0.0.weight' in state:
            return _mobilenet_from_torchvision(state)
        return _without(state, ('conv_head.', 'classifier.'))
    state = _without(state, ('head.', 'fc_norm.', 'mask_token'))
    if isinstance(encoder, VisionTransformer) and 'pos_embed' in state:
        side = math.isqrt(encoder.pos_embed.shape[1] - 1)
        state['pos_embed'] = resample_position_table(state['pos_embed'], (side, side))
    return state


def _without(state: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def _mobilenet_from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    prefixes = _torchvision_prefixes()
    for name, value in state.items():
        if name.startswith('classifier.'):
            continue
        # A name that is not of this network stays as it is, so that loading reports it.
        prefix = next((p for p in prefixes if name.startswith(p)), '')
        target = prefixes.get(prefix, '') + name[len(prefix) :]
        if name.endswith('running_var'):
            # Same function with the smaller epsilon: var + 1e-3 == (var + 0.99e-3) + 1e-5.
            value = value + (TORCHVISION_BATCH_NORM_EPS - TIMM_BATCH_NORM_EPS)
        renamed[target] = value
    return renamed


def _torchvision_prefixes() -> dict[str, str]:
    """Return torchvision's layer prefixes of MobileNetV3-Large and timm's for the same layers."""
    names = {
        'features.0.0.': 'conv_stem.',
        'features.0.1.': 'bn1.',
        'features.1.block.0.0.': 'blocks.0.0.conv_dw.',
        'features.1.block.0.1.': 'blocks.0.0.bn1.',
        'features.1.block.1.0.': 'blocks.0.0.conv_pw.',
        'features.1.block.1.1.': 'blocks.0.0.bn2.',
    }
    feature = 2
    for stage, rows in enumerate(MOBILENET_STAGES, start=1):
        for block, (*_, squeezed, _activation) in enumerate(rows):
            source, target = f'features.{feature}.block.', f'blocks.{stage}.{block}.'
            last = 3 if squeezed else 2
            for index, conv, norm in ((0, 'pw', 1), (1, 'dw', 2), (last, 'pwl', 3)):
                names[f'{source}{index}.0.'] = f'{target}conv_{conv}.'
                names[f'{source}{index}.1.'] = f'{target}bn{norm}.'
            if squeezed:
                names[f'{source}2.fc1.'] = f'{target}se.conv_reduce.'
                names[f'{source}2.fc2.'] = f'{target}se.conv_expand.'
            feature += 1
    last_stage = len(MOBILENET_STAGES) + 1
    names[f'features.{feature}.0.'] = f'blocks.{last_stage}.0.conv.'
    names[f'features.{feature}.1.'] = f'blocks.{last_stage}.0.bn1.'
    return names
