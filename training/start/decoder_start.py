"""A student's decoder in the making, block after block; see `shared_basis.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import ModelError
from training.start.block_start import BlockStart, layer_of, Stream
from training.start.decoder_source import CalibrationTokens, Decoder, run_block, trace_block
from training.start.init_plan import layer_mapping, teacher_block_prefix
from training.start.reduction import (
    Linear,
    principal_directions,
    Read,
    refit,
    stream_basis,
)


@dataclass
class View:
    """One view of the calibration pairs at the level being built.

    Attributes:
        number: 0 left, 1 right.
        levels: Teacher tokens before block 0, 1, ..., and after the last.
        tokens: The student's tokens at the level being built.
        hooks: The student's tokens after each block built.
    """

    number: int
    encoder: Tensor
    levels: list[Tensor]
    tokens: Tensor
    hooks: list[Tensor] = field(default_factory=list)


class DecoderStart:
    """The student's decoder in the making: its entries, notes, and tokens on the pairs."""

    def __init__(
        self,
        teacher: Decoder,
        student: Decoder,
        calibration: CalibrationTokens | None,
        strategy: str,
        ridge: float,
    ) -> None:
        self.teacher, self.student = teacher, student
        self.mapping = layer_mapping(teacher.depth, student.depth, strategy)
        self.grid = calibration.grid if calibration else (0, 0)
        self.views = self._teacher_pass(calibration) if calibration else []
        if self.views:
            depth = range(teacher.depth + 1)
            moments = _moments_from_levels([[v.levels[i] for v in self.views] for i in depth])
        else:
            moments = _moments_from_weights(teacher)
        self.stream = Stream(*stream_basis(moments, student.width), ridge)
        self.encoder_read = self._read_encoder()
        self.made: dict[str, Tensor] = {}
        self.notes: dict[str, tuple[str | None, str]] = {}

    # -- the teacher on the calibration pairs

    def _teacher_pass(self, calibration: CalibrationTokens) -> list[View]:
        teacher, grid = self.teacher, calibration.grid
        weight, bias = teacher.linear('decoder_embed')
        encoders = [
            calibration.left.detach().to('cpu', torch.float64),
            calibration.right.detach().to('cpu', torch.float64),
        ]
        if encoders[0].shape[-1] != weight.shape[1]:
            raise ModelError(
                f'calibration tokens have {encoders[0].shape[-1]} channels, the teacher encoder '
                f'{weight.shape[1]}'
            )
        levels = [[F.linear(tokens, weight, bias)] for tokens in encoders]
        for index in range(teacher.depth):
            x1, x2 = levels[0][-1], levels[1][-1]
            block1, block2 = (teacher.block(name, index) for name in ('dec_blocks', 'dec_blocks2'))
            levels[0].append(run_block(block1, teacher, x1, x2, grid))
            levels[1].append(run_block(block2, teacher, x2, x1, grid))
        return [View(n, encoders[n], levels[n], levels[n][0]) for n in (0, 1)]

    # -- how student tokens are read

    def _read_encoder(self) -> Read:
        full = self.teacher.encoder_width or 0
        width = self.student.encoder_width or full
        if self.views:
            tokens = torch.cat([view.encoder.flatten(0, 1) for view in self.views])  # (2 B N, E)
            basis = principal_directions(tokens.T @ tokens, width)
            offset = tokens.mean(dim=0) - basis @ (basis.T @ tokens.mean(dim=0))
        else:
            weight, _ = self.teacher.linear('decoder_embed')
            basis = principal_directions(weight.T @ weight, width)
            offset = torch.zeros(full, dtype=torch.float64)
        return Read(basis, offset, torch.ones(width, dtype=torch.float64))

    def encode(self, view: View) -> Tensor:
        """Return the student's encoder tokens: the teacher's on the encoder basis."""
        return view.encoder @ self.encoder_read.matrix

    # -- entries

    def put(self, name: str, layer: Linear, source: str, how: str) -> None:
        """Take weight and bias of a decoder layer, with their notes."""
        for part, value in zip(('weight', 'bias'), layer, strict=True):
            key = f'{self.student.layout.prefix}{name}.{part}'
            self.made[key] = value.detach().clone()
            self.notes[key] = (f'{source}.{part}', how)

    def embed(self) -> None:
        """Make decoder embedding and mask token; start the student's tokens."""
        start = self.mapping[0]
        prefix = self.teacher.layout.prefix
        token = self.teacher.state.get(f'{prefix}mask_token')
        key = f'{self.student.layout.prefix}mask_token'
        if token is not None and key in self.student.state:
            self.made[key] = token.detach().to('cpu', torch.float64) @ self.stream.basis
            self.notes[key] = (f'{prefix}mask_token', 'on the basis')
        if self.student.encoder_width is None:
            for view in self.views:
                view.tokens = view.levels[start] @ self.stream.basis
            return
        weight, bias = self.teacher.linear('decoder_embed')
        read = self.encoder_read
        layer = (
            self.stream.basis.T @ weight @ read.matrix,
            self.stream.basis.T @ (bias + weight @ read.offset),
        )
        if self.views:
            inputs = [self.encode(view) for view in self.views]
            lacks = [
                view.levels[start] @ self.stream.basis - F.linear(tokens, *layer)
                for view, tokens in zip(self.views, inputs, strict=True)
            ]
            layer = refit(layer, inputs, lacks, self.stream.ridge)
            for view, tokens in zip(self.views, inputs, strict=True):
                view.tokens = F.linear(tokens, *layer)
        self.put(
            'decoder_embed',
            layer,
            f'{prefix}decoder_embed',
            f'written on the basis, {self.fitted}',
        )

    def block(self, index: int) -> None:
        """Make one block of each decoder and move the student's tokens through it."""
        groups = [('dec_blocks', self.views)]
        if self.student.two_decoders:
            groups = [
                (name, [view for view in self.views if view.number == number])
                for number, name in enumerate(('dec_blocks', 'dec_blocks2'))
            ]
        before = [view.tokens for view in self.views]
        after: dict[int, Tensor] = {}
        for name, views in groups:
            after.update(self._one_block(name, index, views, before))
        for view in self.views:
            view.tokens = after[view.number]
            view.hooks.append(after[view.number])

    def _one_block(
        self, name: str, index: int, views: list[View], before: list[Tensor]
    ) -> dict[int, Tensor]:
        source = self.mapping[index]
        last = index + 1 == self.student.depth
        aim = self.teacher.depth if last else self.mapping[index + 1]
        teacher = self.teacher.block(name, source)
        traces = [
            trace_block(
                # A student that shares its blocks still aims at what each view's teacher does.
                self.teacher.block(('dec_blocks', 'dec_blocks2')[view.number], source),
                self.teacher,
                view.levels[source],
                self.views[1 - view.number].levels[source],
                self.grid,
            )
            for view in views
        ]
        block = BlockStart(
            (self.teacher, self.student),
            self.stream,
            self.grid,
            (teacher, self.student.block(name, index)),
            traces,
            [before[view.number] for view in views],
            [before[1 - view.number] for view in views],
            [view.levels[aim] @ self.stream.basis for view in views],
        )
        block.run()
        prefix = teacher_block_prefix(self.teacher.state, self.teacher.layout.prefix, name)
        for key, how in block.notes.items():
            made = layer_of(block.student, key)
            self.put(f'{name}.{index}.{key}', made, f'{prefix}{source}.{key}', how)
        return {view.number: z for view, z in zip(views, block.tokens, strict=True)}

    def final_norm(self) -> None:
        """Make the decoder's last norm; its readers carry gain and bias."""
        key = f'{self.student.layout.prefix}dec_norm.weight'
        if key not in self.student.state:
            return
        ones = torch.ones(self.student.width, dtype=torch.float64)
        source = f'{self.teacher.layout.prefix}dec_norm'
        self.put('dec_norm', (ones, torch.zeros_like(ones)), source, 'folded into its readers')

    @property
    def fitted(self) -> str:
        """Say in a plan's words whether layers are refitted."""
        return self.stream.fitted(bool(self.views))


def _moments_from_weights(teacher: Decoder) -> Tensor:
    """Return second moments of the stream if all that writes it read white noise."""
    writers = [teacher.linear('decoder_embed')]
    for decoder in ('dec_blocks', 'dec_blocks2') if teacher.two_decoders else ('dec_blocks',):
        for index in range(teacher.depth):
            block = teacher.block(decoder, index)
            writers += [
                (layer.weight, layer.bias)
                for layer in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2)
            ]
    moments = torch.zeros(teacher.width, teacher.width, dtype=torch.float64)
    for weight, bias in writers:
        moments += weight @ weight.T + torch.outer(bias, bias)
    return moments


def _moments_from_levels(levels: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return second moments of the stream, every level of equal weight.

    Readers see normed tokens: the stream's growth from block to block says nothing about what
    matters to them.
    """
    width = levels[0][0].shape[-1]
    moments = torch.zeros(width, width, dtype=torch.float64)
    for level in levels:
        tokens = torch.cat([view.flatten(0, 1) for view in level])
        variance = tokens.var(dim=0).sum().clamp(min=1e-30)
        moments += tokens.T @ tokens / (len(tokens) * variance)
    return moments
