"""The flight student: the small network that a rover runs.

Encoder at strides 2 to 16, MASt3R decoder blocks at stride 16 that attend inside bands of token
rows (on a rectified rig the match of a row lies in the same row), descriptors at stride 4, their
correlation along the row, a 2-D hourglass over correlation and left features, correction of the
disparity at strides 4 and 2 by matching around it, and learned convex upsampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from training.models.decoder import (
    DecoderBlock,
    grid_positions,
    in_float32,
    LAYER_NORM_EPS,
    rotary_tables,
)

MATCH_STRIDE = 4
SIZE_MULTIPLE = 32
# One grey level of an 8-bit image: contrast below it is noise, not texture.
CONTRAST_FLOOR = 1.0 / 255.0
# Logarithm of the expected error in pixels: from a fiftieth to fifty.
LOG_SCALE_RANGE = (-4.0, 4.0)
# onnxruntime has its fast convolutions for inputs of a multiple of 4 channels only.
CHANNEL_MULTIPLE = 4
# Beyond this a neighbour's weight is practically 0 or 1.
LARGEST_WEIGHT_LOGIT = 20.0


@dataclass(frozen=True)
class FlightConfig:
    """Sizes of a `FlightStudent`; stored in every checkpoint and model file.

    Attributes:
        encoder_channels: Channels at strides 2, 4, 8 and 16.
        decoder_width, decoder_depth, decoder_heads, mlp_ratio: The cross-view decoder.
        band_rows: Token rows that attend to each other; must divide H / 16 (2 always does).
            0: all rows, as in MASt3R.
        descriptor_channels: Length of the matching descriptors at stride 4.
        disparity_bins: Bins of 4 px each; the largest disparity is 4 * (bins - 1) px.
        hourglass_channels: Channels of the aggregation at strides 4, 8, 16 and 32.
        local_radius: Bins looked at on either side of the first estimate.
        fine_channels: Channels of the correction at stride 2.
        fine_descriptor_channels: Length of its descriptors.
        fine_radius: Columns at stride 2 looked at on either side of the estimate.
    """

    encoder_channels: tuple[int, int, int, int] = (16, 32, 48, 96)
    decoder_width: int = 96
    decoder_depth: int = 3
    decoder_heads: int = 4
    mlp_ratio: float = 2.0
    band_rows: int = 2
    descriptor_channels: int = 24
    disparity_bins: int = 48
    hourglass_channels: tuple[int, int, int, int] = (32, 64, 96, 128)
    local_radius: int = 3
    fine_channels: int = 16
    fine_descriptor_channels: int = 8
    fine_radius: int = 2

    @property
    def max_disparity_px(self) -> int:
        """Return the largest disparity that can be matched, pixels at network size."""
        return MATCH_STRIDE * (self.disparity_bins - 1)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return convolution, batch norm, ReLU; the norm folds into the convolution on export."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Float32Conv(nn.Conv2d):
    """Convolution that stays in float32 in mixed precision: what it computes becomes pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return in_float32(super().forward, x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return F.relu(x + self.second(self.first(x)))


def box_mean(x: Tensor, radius: int) -> Tensor:
    """Return the mean of (B, 1, H, W) over a square; outside the image does not count."""
    side = 2 * radius + 1
    # Rows stand as channels: runtimes take channels together, and of an image there is only one.
    rows = F.avg_pool2d(x.transpose(1, 2), (1, side), 1, (0, radius), count_include_pad=False)
    height = x.shape[2]
    row = torch.arange(height, device=x.device)
    count = (row + radius).clamp_max(height - 1) - (row - radius).clamp_min(0) + 1
    return sum_over_rows(rows.transpose(1, 2), side) / count.to(x.dtype)[:, None]


def sum_over_rows(x: Tensor, side: int) -> Tensor:
    """Return sums over windows of an odd number of rows of (B, C, H, W), zero outside.

    Made from sums over 2, 4, 8 ... rows: pooling down a column is the slow direction.
    """
    height = x.shape[2]
    doubled = F.pad(x, (0, 0, side // 2, side // 2))
    total, first, span = doubled[:, :, :height], 1, 1
    while first < side:
        doubled = doubled[:, :, :-span] + doubled[:, :, span:]
        span *= 2
        if side & span:
            total = total + doubled[:, :, first : first + height]
            first += span
    return total


def normalise_contrast(image: Tensor) -> Tensor:
    """Return two channels made from a grey image (B, 1, H, W) in [0, 1].

    The square root spreads dark tones; local contrast normalisation removes gain and exposure
    differences between the views and makes faint regolith texture as loud as rock edges.
    """
    difference = image - box_mean(image, 4)
    variance = box_mean(difference * difference, 4)
    contrast = difference / (variance.sqrt() + CONTRAST_FLOOR)
    return torch.cat([2.0 * image.clamp_min(0.0).sqrt() - 1.0, contrast], dim=1)


class Encoder(nn.Module):
    """Features of one view at strides 2 to 16; the views share it."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        c2, c4, c8, c16 = channels
        self.stem = conv(2, c2, kernel=6, stride=2)
        self.stage4 = nn.Sequential(conv(c2, c4, stride=2), ResidualBlock(c4))
        self.stage8 = nn.Sequential(conv(c4, c8, stride=2), ResidualBlock(c8))
        self.stage16 = nn.Sequential(conv(c8, c16, stride=2), ResidualBlock(c16))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features at strides 2, 4, 8 and 16 of a grey image (B, 1, H, W) in [0, 1]."""
        f2 = self.stem(normalise_contrast(image))  # (B, c2, H/2, W/2)
        f4 = self.stage4(f2)  # (B, c4, H/4, W/4)
        f8 = self.stage8(f4)  # (B, c8, H/8, W/8)
        return f2, f4, f8, self.stage16(f8)  # (B, c16, H/16, W/16)


class CrossViewDecoder(nn.Module):
    """Decoder blocks over both views' tokens; weights shared by the views."""

    def __init__(self, inputs: int, config: FlightConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.band_rows = config.band_rows
        self.heads = config.decoder_heads
        self.decoder_embed = nn.Linear(inputs, width)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(width, config.decoder_heads, config.mlp_ratio)
            for _ in range(config.decoder_depth)
        )
        self.dec_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Let the views look at each other.

        Args:
            features: (2B, C, h, w), the left views first, then the right views.

        Returns:
            Normed tokens as a map (2B, width, h, w), and the tokens after each block
            (2B * bands, N, width) for feature alignment with a teacher.
        """
        views, _, height, width = features.shape
        rows = self.band_rows or height
        # Bands of rows attend within: (2B * bands, N, C), N = rows * w.
        tokens = features.permute(0, 2, 3, 1).reshape(views * (height // rows), rows * width, -1)
        tokens = self.decoder_embed(tokens)  # (2B * bands, N, width)
        tables = rotary_tables(
            grid_positions(rows, width, features.device), tokens.shape[-1] // self.heads
        )
        levels = []
        for block in self.dec_blocks:
            left, right = tokens.chunk(2)  # (B * bands, N, width) each
            tokens = block(tokens, torch.cat([right, left]), tables, tables)
            levels.append(tokens)
        tokens = self.dec_norm(tokens)
        return tokens.reshape(views, height, width, -1).permute(0, 3, 1, 2), levels


class DescriptorHead(nn.Module):
    """Unit-length descriptors at stride 4 from tokens and encoder features."""

    def __init__(self, config: FlightConfig) -> None:
        super().__init__()
        _, c4, c8, _ = config.encoder_channels
        self.from_tokens = nn.Conv2d(config.decoder_width, c8, 1)
        self.merge8 = conv(c8, c8)
        self.from8 = nn.Conv2d(c8, c4, 1)
        self.merge4 = conv(c4, c4)
        self.out = Float32Conv(c4, config.descriptor_channels, 1)

    def forward(self, f4: Tensor, f8: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return descriptors (B, D, H/4, W/4) and the features that they were made from."""
        x = self.merge8(f8 + upsample2(self.from_tokens(tokens)))  # (B, c8, H/8, W/8)
        x = self.merge4(f4 + upsample2(self.from8(x)))  # (B, c4, H/4, W/4)
        return F.normalize(self.out(x), dim=1, eps=1e-4), x


def upsample2(x: Tensor) -> Tensor:
    """Return x at twice the size, bilinear about pixel centres."""
    return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)


def row_correlation(left: Tensor, right: Tensor, bins: int) -> Tensor:
    """Correlate descriptors along the row.

    Args:
        left, right: (B, D, H, W).
        bins: Number of disparities, 0 to bins - 1 columns.

    Returns:
        (B, bins, H, W): <left(x), right(x - d)>, zero where x - d is outside the image.
    """
    batch, _, height, width = left.shape
    rows_left = left.permute(0, 2, 3, 1)  # (B, H, W, D)
    mirrored = F.pad(right, (bins - 1, 0)).flip(-1).permute(0, 2, 1, 3)  # (B, H, D, span)
    products = in_float32(torch.matmul, rows_left, mirrored)  # (B, H, W, span)
    # Entry (x, width - 1 - x + d) of each matrix is wanted. In rows one shorter than the matrix
    # is wide, each next x ends one column earlier, so the diagonal band is a block.
    span = width + bins - 1
    start, length = width - 1, width * (span - 1)
    band = products.reshape(batch, height, width * span)[..., start : start + length]
    return band.reshape(batch, height, width, span - 1)[..., :bins].permute(0, 3, 1, 2)


class Aggregation(nn.Module):
    """Hourglass over correlation and left features: bin logits and context at stride 4."""

    def __init__(self, config: FlightConfig) -> None:
        super().__init__()
        bins, c4 = config.disparity_bins, config.encoder_channels[1]
        h4, h8, h16, h32 = config.hourglass_channels
        self.down8 = conv(bins + c4, h8, stride=2)
        self.tokens8 = nn.Conv2d(config.decoder_width, h8, 1)
        self.mix8 = ResidualBlock(h8)
        self.down16 = conv(h8, h16, stride=2)
        self.tokens16 = nn.Conv2d(config.decoder_width, h16, 1)
        self.mix16 = ResidualBlock(h16)
        self.mix32 = nn.Sequential(
            conv(h16, h32, stride=2), ResidualBlock(h32), ResidualBlock(h32)
        )
        self.up16 = nn.Conv2d(h32, h16, 1)
        self.out16 = conv(h16, h16)
        self.up8 = nn.Conv2d(h16, h8, 1)
        self.out8 = conv(h8, h8)
        self.up4 = nn.Conv2d(h8, h4, 1)
        self.skip4 = nn.Conv2d(bins + c4, h4, 1)
        self.out4 = nn.Sequential(nn.ReLU(inplace=True), conv(h4, h4))
        self.logits = Float32Conv(h4, bins, 1)

    def forward(self, correlation: Tensor, f4: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, bins, H/4, W/4) and context (B, h4, H/4, W/4)."""
        volume = torch.cat([correlation, f4], dim=1)  # (B, bins + c4, H/4, W/4)
        x8 = self.mix8(self.down8(volume) + upsample2(self.tokens8(tokens)))  # (B, h8, H/8, W/8)
        x16 = self.mix16(self.down16(x8) + self.tokens16(tokens))  # (B, h16, H/16, W/16)
        x32 = self.mix32(x16)  # (B, h32, H/32, W/32)
        x16 = self.out16(x16 + upsample2(self.up16(x32)))
        x8 = self.out8(x8 + upsample2(self.up8(x16)))
        context = self.out4(self.skip4(volume) + upsample2(self.up4(x8)))
        # The raw match is the starting point; the hourglass learns what to add to it.
        return correlation + self.logits(context), context


def peak_expectation(logits: Tensor, radius: int = 2) -> tuple[Tensor, Tensor]:
    """Return the expected bin around the strongest one, and that one's index.

    The softmax is taken over the strongest bin and `radius` neighbours on either side: the mean
    of two surfaces' disparities lies on neither.

    Args:
        logits: (B, bins, H, W).
        radius: Neighbours on either side, bins.

    Returns:
        (B, 1, H, W) float expectation in bins, (B, 1, H, W) int64 strongest bin.
    """
    peak = logits.argmax(dim=1, keepdim=True)
    offsets = torch.arange(-radius, radius + 1, device=logits.device).view(1, -1, 1, 1)
    index = peak + offsets  # (B, 2 * radius + 1, H, W)
    inside = index.clamp(0, logits.shape[1] - 1)
    nearby = logits.gather(1, inside)
    weights = (nearby - nearby[:, radius : radius + 1]).exp() * (index == inside)
    return weighted_mean(index.to(weights.dtype), weights), peak


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of values (B, C, ...) over dimension 1, kept as size 1.

    Written out because a softmax over any dimension but the last is slow in onnxruntime.
    """
    return (values * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)


class CoarseRefinement(nn.Module):
    """Correct the first estimate at stride 4 from the correlation around it.

    Bins are looked at relative to the estimate, so what is learned holds at any disparity.
    """

    def __init__(self, config: FlightConfig) -> None:
        super().__init__()
        h4 = config.hourglass_channels[0]
        self.radius = config.local_radius
        # Relative correlation and logits, and the fraction of a bin that rounding took off.
        inputs = 2 * (2 * self.radius + 1) + 1 + h4
        first = conv(_aligned(inputs), h4)
        _silence(next(first.parameters()), inputs)
        self.mix = nn.Sequential(first, conv(h4, h4))
        self.residual = Float32Conv(h4, 1, 3, padding=1)
        self.weights = Float32Conv(h4, 9 * 4, 1)

    def forward(
        self, correlation: Tensor, logits: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return first and corrected disparity (px), features and weights of the upsampling."""
        first, peak = peak_expectation(logits)  # (B, 1, H/4, W/4) each
        nearest = first.detach().round()
        offsets = torch.arange(-self.radius, self.radius + 1, device=logits.device)
        # (B, 2 * radius + 1, H/4, W/4): the bins around the estimate.
        index = nearest.long() + offsets.view(1, -1, 1, 1)
        index = index.clamp(0, logits.shape[1] - 1)
        log_probability = logits.gather(1, index) - logits.gather(1, peak)
        x = torch.cat(
            [
                correlation.gather(1, index),
                log_probability.clamp_min(-10.0) * 0.1,
                first.detach() - nearest,
                context,
            ],
            dim=1,
        )
        x = self.mix(_padded(x))  # (B, h4, H/4, W/4)
        refined = F.relu(first.detach() + self.residual(x))
        return first * MATCH_STRIDE, refined * MATCH_STRIDE, x, self.weights(x)


class FineRefinement(nn.Module):
    """Correct the disparity at stride 2: warp the right view by it and match what is left over."""

    def __init__(self, config: FlightConfig) -> None:
        super().__init__()
        c2, h4 = config.encoder_channels[0], config.hourglass_channels[0]
        channels = config.fine_channels
        self.radius = config.fine_radius
        self.descriptor = nn.Conv2d(c2, config.fine_descriptor_channels, 3, padding=1)
        self.log_temperature = nn.Parameter(torch.tensor(2.3))
        self.from_context = nn.Conv2d(h4, channels, 1)
        inputs = 2 * self.radius + 1 + c2
        self.from_match = nn.Conv2d(_aligned(inputs), channels, 3, padding=1)
        _silence(self.from_match.weight, inputs)
        self.mix = nn.Sequential(nn.ReLU(inplace=True), conv(channels, channels))
        # Residual, logarithm of its expected error, weights of the upsampling.
        self.out = Float32Conv(channels, 2 + 9 * 4, 1)

    def forward(
        self, disparity: Tensor, f2_left: Tensor, f2_right: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Correct a disparity.

        Args:
            disparity: (B, 1, H/2, W/2) px of the full image.
            f2_left, f2_right: (B, C, H/2, W/2).
            context: (B, h4, H/4, W/4).

        Returns:
            Corrected disparity (px) and the logarithm of its error's expected size (px),
            (B, 1, H/2, W/2); weights of the upsampling; and for the loss the match at each offset
            (B, 2 * radius + 1, H/2, W/2), the offset growing with the disparity.
        """
        left, right = (
            F.normalize(self.descriptor(f2), dim=1, eps=1e-4) for f2 in (f2_left, f2_right)
        )
        warped = warp_row(right, disparity.detach() / 2)
        match = self.log_temperature.exp() * self._shifted_products(left, warped)
        x = self._match_features(match, f2_left)  # (B, fine_channels, H/2, W/2)
        x = self.mix(x + upsample2(self.from_context(context)))
        residual, log_scale, weights = self.out(x).split([1, 1, 9 * 4], dim=1)
        log_scale = log_scale.clamp(*LOG_SCALE_RANGE)
        return F.relu(disparity.detach() + residual), log_scale, weights, match

    def _match_features(self, match: Tensor, f2: Tensor) -> Tensor:
        """Return `from_match` of both inputs, as a sum: it spares putting them into one array."""
        weight, offsets = self.from_match.weight, 2 * self.radius + 1
        of_f2 = weight[:, offsets : offsets + f2.shape[1]]
        # Zeros for the padding. Made so that the exporter knows their shape.
        silent = weight.new_zeros(len(weight), _aligned(offsets) - offsets, 3, 3)
        of_match = torch.cat([weight[:, :offsets], silent], dim=1)
        x = F.conv2d(_padded(match), of_match, padding=1)
        return x + F.conv2d(f2, of_f2, self.from_match.bias, padding=1)

    def _shifted_products(self, left: Tensor, warped: Tensor) -> Tensor:
        # Shifting the warped view stands in for warping it anew: exact where disparity does not
        # change along the row, and it changes little there.
        radius, width = self.radius, left.shape[3]
        padded = F.pad(warped, (radius, radius))
        products = [
            (left * padded[..., radius - offset : radius - offset + width]).sum(1, keepdim=True)
            for offset in range(-radius, radius + 1)
        ]
        return torch.cat(products, dim=1)


def _aligned(channels: int) -> int:
    return channels + -channels % CHANNEL_MULTIPLE


def _padded(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) with channels of zeros up to a multiple of `CHANNEL_MULTIPLE`."""
    return F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % CHANNEL_MULTIPLE))


@torch.no_grad()
def _silence(weight: Tensor, inputs: int) -> None:
    # What would read the padding must not say anything when a wider network puts channels there.
    weight[:, inputs:] = 0.0


def warp_row(right: Tensor, disparity: Tensor) -> Tensor:
    """Return right (B, C, H, W) sampled at x - disparity (B, 1, H, W), zero outside; linear."""
    columns = torch.arange(right.shape[3], device=right.device, dtype=disparity.dtype)
    position = columns - disparity
    inside = position >= 0
    position = position.clamp(0, right.shape[3] - 1)
    lower = position.floor()
    fraction = position - lower
    # Clamped again as integers: a NaN must reach the loss, not fail as an index.
    index = lower.long().clamp(0, right.shape[3] - 1).expand_as(right)
    above = (index + 1).clamp_max(right.shape[3] - 1)
    sampled = right.gather(3, index) * (1 - fraction) + right.gather(3, above) * fraction
    return sampled * inside


def convex_upsample2(x: Tensor, weights: Tensor) -> Tensor:
    """Upsample by 2: each fine value is a convex combination of its 3x3 coarse neighbours.

    Args:
        x: (B, 1, H, W).
        weights: (B, 9 * 4, H, W) logits of the combination.

    Returns:
        (B, 1, 2H, 2W).
    """
    height, width = x.shape[2:]
    weights = weights.clamp(-LARGEST_WEIGHT_LOGIT, LARGEST_WEIGHT_LOGIT).exp()
    padded = F.pad(x, (1, 1, 1, 1), mode='replicate')
    # Summed one after another: a softmax, or any reduction over channels, is slow in runtimes.
    shares = [weights[:, k : k + 4] for k in range(0, 9 * 4, 4)]
    # Nine (B, 4, H, W), times as many (B, 1, H, W): the four fine pixels of each coarse one.
    neighbours = (padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
    values = reduce(torch.add, (a * b for a, b in zip(shares, neighbours, strict=True)))
    return F.pixel_shuffle(values / reduce(torch.add, shares), 2)


class BilinearUpsample2(nn.Module):
    """What `upsample2` does, of a single channel: runtimes resize one slowly and convolve fast."""

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])
        kernels = taps[:, None, :, None] * taps[None, :, None, :]
        self.register_buffer('kernels', kernels.reshape(4, 1, 3, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1, 2H, 2W) float32 of (B, 1, H, W)."""
        padded = F.pad(x, (1, 1, 1, 1), mode='replicate')
        return F.pixel_shuffle(in_float32(F.conv2d, padded, self.kernels), 2)


def confidence_logit(log_scale: Tensor) -> Tensor:
    """Return the log odds that the error is below one pixel.

    The error is taken to be distributed after Laplace with the scale b = exp(log_scale) px:
    P(error < 1) = 1 - exp(-1 / b), so that the odds are exp(1 / b) - 1.
    """
    inverse = (-log_scale).exp()
    return inverse + (-(-inverse).exp()).log1p()


class FlightStudent(nn.Module):
    """Disparity, confidence and descriptors of a rectified grey pair."""

    def __init__(self, config: FlightConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder_channels)
        self.decoder = CrossViewDecoder(config.encoder_channels[3], config)
        self.descriptors = DescriptorHead(config)
        self.aggregation = Aggregation(config)
        self.coarse = CoarseRefinement(config)
        self.fine = FineRefinement(config)
        self.enlarge = BilinearUpsample2()
        # Descriptors have unit length: their products need a learned sharpness.
        self.log_temperature = nn.Parameter(torch.tensor(2.3))

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Match a pair.

        Args:
            left, right: (B, 1, H, W) in [0, 1]; H and W multiples of 32.

        Returns:
            `disparity` (B, H, W) px; `confidence_logit` (B, H, W), the log odds that it is right
            to one pixel; and for the losses `log_scale` (B, H, W), log of its expected error in
            px,
            `correlation` and `logits` (B, bins, H/4, W/4), `disparity_first` and
            `disparity_coarse` (B, 1, H/4, W/4) px before and after the correction at stride 4,
            `disparity_upsampled` and `disparity_fine` (B, 1, H/2, W/2) px before and after that
            at stride 2, `match` (B, offsets, H/2, W/2), `descriptors_left`, `descriptors_right`
            (B, D, H/4, W/4), `encoder_features` (2B, C, H/16, W/16) and `decoder_levels`.
        """
        batch = left.shape[0]
        f2, f4, f8, f16 = self.encoder(torch.cat([left, right]))  # 2B: left views, then right
        tokens, levels = self.decoder(f16)  # (2B, width, H/16, W/16)
        descriptors, f4 = self.descriptors(f4, f8, tokens)
        left_descriptors, right_descriptors = descriptors.chunk(2)
        correlation = row_correlation(
            self.log_temperature.exp() * left_descriptors,
            right_descriptors,
            self.config.disparity_bins,
        )
        logits, context = self.aggregation(correlation, f4[:batch], tokens[:batch])
        first, coarse, context, weights = self.coarse(correlation, logits, context)
        upsampled = convex_upsample2(coarse, weights)  # (B, 1, H/2, W/2)
        fine, log_scale, weights, match = self.fine(upsampled, f2[:batch], f2[batch:], context)
        log_scale = self.enlarge(log_scale)[:, 0]  # (B, H, W)
        return {
            'disparity': convex_upsample2(fine, weights)[:, 0],
            'confidence_logit': confidence_logit(log_scale),
            'log_scale': log_scale,
            'correlation': correlation,
            'logits': logits,
            'disparity_first': first,
            'disparity_coarse': coarse,
            'disparity_upsampled': upsampled,
            'disparity_fine': fine,
            'match': match,
            'descriptors_left': left_descriptors,
            'descriptors_right': right_descriptors,
            'encoder_features': f16,
            'decoder_levels': levels,
        }
