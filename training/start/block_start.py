"""One decoder block of a student, made from the teacher's; see `shared_basis.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from training.models.decoder import DecoderBlock
from training.start.decoder_source import norm_tokens, Tap, Trace
from training.start.reduction import (
    assign_heads,
    Attention,
    head_importance,
    Linear,
    Read,
    reduce_attention,
    reduce_units,
    refit,
    rotary_groups,
    stack,
)

if TYPE_CHECKING:
    from training.start.decoder_start import DecoderStart


class BlockStart:
    """One student block in the making; runs on the student's tokens as it grows."""

    def __init__(
        self,
        build: DecoderStart,
        teacher: DecoderBlock,
        student: DecoderBlock,
        traces: list[Trace],
        tokens: list[Tensor],
        others: list[Tensor],
        aims: list[Tensor],
    ) -> None:
        self.build, self.teacher, self.student = build, teacher, student
        self.traces, self.tokens, self.others, self.aims = traces, tokens, others, aims
        self.notes: dict[str, str] = {}
        self.groups = rotary_groups(
            build.teacher.head_width,
            build.student.head_width,
            build.teacher.layout.column_first != build.student.layout.column_first,
        )

    def run(self) -> None:
        """Make self attention, cross attention and MLP, in the order in which they run."""
        for name in ('norm1', 'norm2', 'norm3', 'norm_y'):
            ones = torch.ones(self.build.student.width, dtype=torch.float64)
            _set(self.student, name, (ones, torch.zeros_like(ones)))
            self.notes[name] = 'folded into its readers'
        self._self_attention()
        self._cross_attention()
        self._mlp()

    def _self_attention(self) -> None:
        teacher, basis = self.teacher.attn, self.build.basis
        read = self.build.read(
            [norm_tokens(t.x) for t in self.traces], [norm_tokens(z) for z in self.tokens]
        )
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
        teacher, basis = self.teacher.cross_attn, self.build.basis
        read = self.build.read(
            [norm_tokens(t.after_self) for t in self.traces], [norm_tokens(z) for z in self.tokens]
        )
        memory = self.build.read(
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
        teacher, basis = self.teacher.mlp, self.build.basis
        read = self.build.read(
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
        importance = head_importance(large, features, self.build.teacher.layout.heads)
        slots = assign_heads(importance, self.build.student.layout.heads)
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
            made = refit(made, inputs, lacks, self.build.ridge)
            self.tokens = [
                tokens + F.linear(part, *made)
                for tokens, part in zip(self.tokens, inputs, strict=True)
            ]
        _set(self.student, name, made)
        self.notes[name] = f'written on the basis, {self.build.fitted}'

    def _inputs(self, name: str, index: int) -> Tensor:
        """Return what the named layer, itself not yet set, is given on the student's tokens."""
        of, grid, block = self.build.student, self.build.grid, self.student
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
