"""One decoder block of a student, made from the teacher's; see `shared_basis.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from training.models.decoder import DecoderBlock
from training.start.decoder_source import Decoder, norm_tokens, Tap, Trace
from training.start.reduction import (
    assign_heads,
    Attention,
    head_importance,
    Linear,
    Read,
    reduce_attention,
    reduce_units,
    refit,
    ridge_correction,
    rotary_groups,
    stack,
)


@dataclass(frozen=True)
class Stream:
    """How a student's stream follows its teacher's, whose width is n.

    Attributes:
        basis: (n, s) orthonormal directions of the teacher's stream that the student keeps.
        kept: Share of the energy off the mean direction that they keep; see `stream_basis`.
        ridge: Regularisation of the regressions; inf switches them off.
    """

    basis: Tensor
    kept: float
    ridge: float

    def read(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Read:
        """Return how to read teacher tokens, normed, off student tokens, normed."""
        full, width = self.basis.shape
        zeros = torch.zeros(full, dtype=torch.float64)
        if not teacher:
            # Of the teacher's length sqrt(n), the part on the basis; the student's is sqrt(s).
            factor = math.sqrt(full * self.kept / width)
            return Read(factor * self.basis, zeros, torch.ones(width, dtype=torch.float64))
        large = torch.cat([part.flatten(0, 1) for part in teacher])  # (B * N, S)
        small = torch.cat([part.flatten(0, 1) for part in student])  # (B * N, s)
        energy = small.square().sum().clamp(min=1e-30)
        matrix = ((large @ self.basis) * small).sum() / energy * self.basis
        change, offset = ridge_correction(small, large - small @ matrix.T, self.ridge)
        return Read(matrix + change, offset, small.square().mean(dim=0).sqrt())

    def read_raw(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Read:
        """Return how to read teacher tokens off student tokens, no norm between."""
        full, width = self.basis.shape
        ones = torch.ones(width, dtype=torch.float64)
        if not teacher:
            return Read(self.basis, torch.zeros(full, dtype=torch.float64), ones)
        large = torch.cat([part.flatten(0, 1) for part in teacher])
        small = torch.cat([part.flatten(0, 1) for part in student])
        change, offset = ridge_correction(small, large - small @ self.basis.T, self.ridge)
        return Read(self.basis + change, offset, ones)

    def fitted(self, on_tokens: bool) -> str:
        """Return what a plan says of layers made with, or without, tokens of calibration pairs."""
        return 'refitted' if on_tokens and not math.isinf(self.ridge) else 'not refitted'


class BlockStart:
    """One student block in the making; runs on the student's tokens as it grows."""

    def __init__(
        self,
        decoders: tuple[Decoder, Decoder],
        stream: Stream,
        grid: tuple[int, int],
        blocks: tuple[DecoderBlock, DecoderBlock],
        traces: list[Trace],
        tokens: list[Tensor],
        others: list[Tensor],
        aims: list[Tensor],
    ) -> None:
        """Take what the block is made from; pairs are the teacher's, then the student's.

        Args:
            decoders: The whole decoders.
            stream: How the student's stream follows the teacher's.
            grid: Rows and columns of the tokens.
            blocks: The teacher's block, and the student's, which is changed.
            traces: What the teacher's block does, for each view of the calibration pairs.
            tokens, others: (B, N, s) the student's tokens before the block: of each view, and of
                the other view.
            aims: (B, N, s) where the student's tokens should be after it.
        """
        (self.large, self.small), self.stream, self.grid = decoders, stream, grid
        self.teacher, self.student = blocks
        self.traces, self.tokens, self.others, self.aims = traces, tokens, others, aims
        self.notes: dict[str, str] = {}
        self.groups = rotary_groups(
            self.large.head_width,
            self.small.head_width,
            self.large.layout.column_first != self.small.layout.column_first,
        )

    def run(self) -> None:
        """Make self attention, cross attention and MLP, in the order in which they run."""
        for name in ('norm1', 'norm2', 'norm3', 'norm_y'):
            ones = torch.ones(self.small.width, dtype=torch.float64)
            _set(self.student, name, (ones, torch.zeros_like(ones)))
            self.notes[name] = 'folded into its readers'
        self._self_attention()
        self._cross_attention()
        self._mlp()

    def _self_attention(self) -> None:
        teacher, basis = self.teacher.attn, self.stream.basis
        read = self.stream.read(
            [norm_tokens(t.x) for t in self.traces], [norm_tokens(z) for z in self.tokens]
        )
        # (3 S, s) and (3 S,): S channels of the teacher, s of the student.
        weight, bias = _fold(self.teacher.norm1, teacher.qkv.weight, teacher.qkv.bias, read)
        large = Attention(
            *_thirds((weight, bias)),
            (basis.T @ teacher.proj.weight, basis.T @ teacher.proj.bias),
        )
        start = Attention(
            *_thirds(layer_of(self.student, 'attn.qkv')), layer_of(self.student, 'attn.proj')
        )
        small, note = self._reduce(large, start, [t.self_heads for t in self.traces], (read, read))
        _set(self.student, 'attn.qkv', stack([small.query, small.key, small.value]))
        self._write('attn.proj', small.output, [t.after_self @ basis for t in self.traces])
        self.notes['attn.qkv'] = f'read on the basis, {note}'
        self.notes['attn.proj'] += f', {note}'

    def _cross_attention(self) -> None:
        teacher, basis = self.teacher.cross_attn, self.stream.basis
        read = self.stream.read(
            [norm_tokens(t.after_self) for t in self.traces], [norm_tokens(z) for z in self.tokens]
        )
        memory = self.stream.read(
            [norm_tokens(t.other) for t in self.traces], [norm_tokens(z) for z in self.others]
        )
        norm2, norm_y = self.teacher.norm2, self.teacher.norm_y
        large = Attention(
            _fold(norm2, teacher.projq.weight, teacher.projq.bias, read),
            _fold(norm_y, teacher.projk.weight, teacher.projk.bias, memory),
            _fold(norm_y, teacher.projv.weight, teacher.projv.bias, memory),
            (basis.T @ teacher.proj.weight, basis.T @ teacher.proj.bias),
        )
        start = Attention(
            layer_of(self.student, 'cross_attn.projq'),
            layer_of(self.student, 'cross_attn.projk'),
            layer_of(self.student, 'cross_attn.projv'),
            layer_of(self.student, 'cross_attn.proj'),
        )
        features = [t.cross_heads for t in self.traces]
        small, note = self._reduce(large, start, features, (read, memory))
        for name, made in zip('qkv', (small.query, small.key, small.value), strict=True):
            _set(self.student, f'cross_attn.proj{name}', made)
            self.notes[f'cross_attn.proj{name}'] = f'read on the basis, {note}'
        self._write('cross_attn.proj', small.output, [t.after_cross @ basis for t in self.traces])
        self.notes['cross_attn.proj'] += f', {note}'

    def _mlp(self) -> None:
        teacher, basis = self.teacher.mlp, self.stream.basis
        read = self.stream.read(
            [norm_tokens(t.after_cross) for t in self.traces],
            [norm_tokens(z) for z in self.tokens],
        )
        fc1, fc2, note = reduce_units(
            _fold(self.teacher.norm3, teacher.fc1.weight, teacher.fc1.bias, read),
            (basis.T @ teacher.fc2.weight, basis.T @ teacher.fc2.bias),
            [t.units for t in self.traces],
            read.scale,
            (layer_of(self.student, 'mlp.fc1'), layer_of(self.student, 'mlp.fc2')),
        )
        _set(self.student, 'mlp.fc1', fc1)
        self.notes['mlp.fc1'] = f'read on the basis, {note}'
        self._write('mlp.fc2', fc2, self.aims)
        self.notes['mlp.fc2'] += f', {note}'

    def _reduce(
        self, large: Attention, start: Attention, features: list[Tensor], reads: tuple[Read, Read]
    ) -> tuple[Attention, str]:
        importance = head_importance(large, features, self.large.layout.heads)
        slots = assign_heads(importance, self.small.layout.heads)
        note = 'heads ' + ' '.join(str(slot.head) for slot in slots)
        return reduce_attention(large, start, slots, reads, self.groups), note

    def _write(self, name: str, made: Linear, aims: list[Tensor]) -> None:
        """Set a layer that writes the stream, refit it, and move the tokens past it."""
        if self.traces:
            inputs = [self._inputs(name, index) for index in range(len(self.tokens))]
            lacks = [
                aim - tokens - F.linear(part, *made)
                for aim, tokens, part in zip(aims, self.tokens, inputs, strict=True)
            ]
            made = refit(made, inputs, lacks, self.stream.ridge)
            self.tokens = [
                tokens + F.linear(part, *made)
                for tokens, part in zip(self.tokens, inputs, strict=True)
            ]
        _set(self.student, name, made)
        self.notes[name] = f'written on the basis, {self.stream.fitted(bool(self.traces))}'

    def _inputs(self, name: str, index: int) -> Tensor:
        """Return what the named layer, itself not yet set, is given on the student's tokens."""
        of, grid, block = self.small, self.grid, self.student
        x = of.banded(self.tokens[index], grid)
        tables = of.tables(grid)
        with Tap(block.get_submodule(name)) as tap:
            if name == 'attn.proj':
                block.attn(block.norm1(x), tables)
            elif name == 'cross_attn.proj':
                memory = block.norm_y(of.banded(self.others[index], grid))
                block.cross_attn(block.norm2(x), memory, tables, tables)
            else:
                block.mlp(block.norm3(x))
        return tap.read().reshape(*self.tokens[index].shape[:2], -1)


def _fold(norm: nn.LayerNorm, weight: Tensor, bias: Tensor, read: Read) -> Linear:
    """Return weight and bias of a reader of student tokens, the teacher's norm folded in."""
    return (weight * norm.weight) @ read.matrix, bias + weight @ (
        norm.bias + norm.weight * read.offset
    )


def _layer(block: DecoderBlock, name: str) -> nn.Linear | nn.LayerNorm:
    layer = block.get_submodule(name)
    if not isinstance(layer, (nn.Linear, nn.LayerNorm)):
        raise TypeError(f'{name} is a {type(layer).__name__}')
    return layer


def layer_of(block: DecoderBlock, name: str) -> Linear:
    """Return weight and bias of a named linear layer or norm."""
    layer = _layer(block, name)
    return layer.weight, layer.bias


def _set(block: DecoderBlock, name: str, made: Linear) -> None:
    layer = _layer(block, name)
    layer.weight.copy_(made[0])
    layer.bias.copy_(made[1])


def _thirds(layer: Linear) -> tuple[Linear, Linear, Linear]:
    weights, biases = layer[0].chunk(3), layer[1].chunk(3)
    return (weights[0], biases[0]), (weights[1], biases[1]), (weights[2], biases[2])
