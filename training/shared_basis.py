"""Start a student's decoder from its teacher's on one common basis of the residual stream.

All blocks of a decoder read and write one residual stream. With a basis Q (teacher width n,
student width s, orthonormal columns) the student's tokens z stand for teacher tokens Q z: a
matrix that writes the stream is multiplied by Q^T, one that reads it by Q. Between stream and
reader is a layer norm, which subtracts the mean over channels and so is not blind to rotation.
Q therefore takes the student's mean direction to the teacher's, Q 1/sqrt(s) = 1/sqrt(n): then
centring commutes with Q, and the norm's gain and bias are folded into the readers. With s = n
the student computes exactly what the teacher does.

Below full width, heads are selected and narrowed by rotary pairs, MLP units are selected, and,
with calibration tokens, what was lost is made up for by ridge regression: readers are refitted
to the teacher's normed tokens and writers to the teacher's residual stream, block after block on
the student's own activations. At full width there is nothing lost and the corrections are zero.

Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import math
import re

import torch
from torch import nn, Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.models.decoder import (
    DecoderBlock,
    grid_positions,
    LAYER_NORM_EPS,
    Mlp,
    rotary_tables,
)
from lunar_stereo_recon.models.heads import dpt_hooks
from training.init_plan import (
    decoder_depth,
    InitResult,
    layer_mapping,
    LEFT_ALONE,
    PlanEntry,
    StateDict,
    teacher_block_prefix,
)
from training.reduction import (
    assign_heads,
    Attention,
    head_importance,
    Linear,
    principal_directions,
    Read,
    reduce_attention,
    reduce_units,
    refit,
    ridge_correction,
    rotary_groups,
    stack,
    stream_basis,
    truncate_tensor,
)

Tables = tuple[Tensor, Tensor]

# What head layers read: the encoder's tokens, the normed last level, or a DPT hook's level.
STREAM_READERS = {
    r'downstream_head[12]\.dpt\.act_postprocess\.([0-3])\.0$': 'hook',
    r'downstream_head[12]\.head_local_features\.fc1$': 'encoder+normed',
    r'descriptors\.from_tokens$': 'normed',
    r'aggregation\.tokens(?:8|16)$': 'normed',
}


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


def shared_basis(
    student: Mapping[str, Tensor],
    teacher: StateDict,
    student_layout: DecoderLayout,
    teacher_layout: DecoderLayout,
    calibration: CalibrationTokens | None = None,
    strategy: str = 'uniform',
    heads: tuple[str, ...] = ('downstream_head1.', 'downstream_head2.'),
    ridge: float = 1e-3,
    refit: bool = True,
) -> InitResult:
    """Return a student's state dict on a common basis of its teacher's residual stream.

    Args:
        student, teacher: State dicts with the names of `models/decoder.py`. A decoder whose
            views share blocks has `dec_blocks` alone.
        student_layout, teacher_layout: Heads, prefix and positions of each.
        calibration: The teacher's encoder tokens on some pairs. Without, basis and importance
            come from the weights and nothing is refitted.
        strategy: Layer mapping, see `init_plan.layer_mapping`.
        heads: Prefixes of head entries to start from the teacher's of equal name.
        ridge: Strength of the refit's regularisation, relative to the mean feature variance.
        refit: Refit readers and writers on the calibration tokens.

    Raises:
        ModelError: The student is wider or deeper than the teacher, or sizes do not fit.
    """
    source = _Decoder.read(teacher, teacher_layout, 'teacher')
    target = _Decoder.read(student, student_layout, 'student')
    _check_sizes(source, target)
    build = _Build(source, target, calibration, strategy, ridge if refit else math.inf)
    with torch.no_grad():
        build.embed()
        for index in range(target.depth):
            build.block(index)
        build.final_norm()
        _HeadBuild(build, student, teacher, heads).run()
    state = {key: build.made.get(key, value).to(value) for key, value in student.items()}
    plan = [
        PlanEntry(key, tuple(value.shape), *build.notes.get(key, (None, _UNTOUCHED)))
        for key, value in student.items()
    ]
    return InitResult(state, plan, build.basis, build.encoder_read.matrix)


_UNTOUCHED = f'{LEFT_ALONE}: not from the teacher'


# --- Sizes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decoder:
    """A decoder's state dict with the sizes read off it."""

    state: StateDict
    layout: DecoderLayout
    width: int
    depth: int
    encoder_width: int | None
    two_decoders: bool

    @classmethod
    def read(cls, state: StateDict, layout: DecoderLayout, name: str) -> _Decoder:
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
            key[len(prefix) :]: value.detach().double()
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
        weight = self.state[f'{key}.weight'].detach().double()
        return weight, self.state[f'{key}.bias'].detach().double()

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


def _check_sizes(teacher: _Decoder, student: _Decoder) -> None:
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


# --- Teacher statistics ----------------------------------------------------------------------


def _moments_from_weights(teacher: _Decoder) -> Tensor:
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


def _norm(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPS)


def _fold(norm: nn.LayerNorm, weight: Tensor, bias: Tensor, read: Read) -> Linear:
    """Return weight and bias of a reader of student tokens, the teacher's norm folded in."""
    return (weight * norm.weight) @ read.matrix, bias + weight @ (
        norm.bias + norm.weight * read.offset
    )


# --- Building the decoder ------------------------------------------------------------------


@dataclass
class _View:
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


class _Tap:
    """Records the input of a layer while the module that holds it runs."""

    def __init__(self, layer: nn.Module) -> None:
        self.value: Tensor | None = None
        self._handle = layer.register_forward_pre_hook(self._record)

    def _record(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.value = inputs[0]

    def __enter__(self) -> _Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def read(self) -> Tensor:
        if self.value is None:
            raise RuntimeError('the tapped layer has not run')
        return self.value


class _Build:
    """The student's decoder in the making: its entries, notes, and tokens on the pairs."""

    def __init__(
        self,
        teacher: _Decoder,
        student: _Decoder,
        calibration: CalibrationTokens | None,
        strategy: str,
        ridge: float,
    ) -> None:
        self.teacher, self.student, self.ridge = teacher, student, ridge
        self.mapping = layer_mapping(teacher.depth, student.depth, strategy)
        self.grid = calibration.grid if calibration else (0, 0)
        self.views = self._teacher_pass(calibration) if calibration else []
        if self.views:
            depth = range(teacher.depth + 1)
            moments = _moments_from_levels([[v.levels[i] for v in self.views] for i in depth])
        else:
            moments = _moments_from_weights(teacher)
        self.basis, self.kept = stream_basis(moments, student.width)
        self.encoder_read = self._read_encoder()
        self.made: dict[str, Tensor] = {}
        self.notes: dict[str, tuple[str | None, str]] = {}

    # -- the teacher on the calibration pairs

    def _teacher_pass(self, calibration: CalibrationTokens) -> list[_View]:
        teacher, grid = self.teacher, calibration.grid
        weight, bias = teacher.linear('decoder_embed')
        encoders = [calibration.left.detach().double(), calibration.right.detach().double()]
        if encoders[0].shape[-1] != weight.shape[1]:
            raise ModelError(
                f'calibration tokens have {encoders[0].shape[-1]} channels, the teacher encoder '
                f'{weight.shape[1]}'
            )
        levels = [[F.linear(tokens, weight, bias)] for tokens in encoders]
        for index in range(teacher.depth):
            x1, x2 = levels[0][-1], levels[1][-1]
            block1, block2 = (teacher.block(name, index) for name in ('dec_blocks', 'dec_blocks2'))
            levels[0].append(_run(block1, teacher, x1, x2, grid))
            levels[1].append(_run(block2, teacher, x2, x1, grid))
        return [_View(n, encoders[n], levels[n], levels[n][0]) for n in (0, 1)]

    # -- how student tokens are read

    def _read_encoder(self) -> Read:
        full = self.teacher.encoder_width or 0
        width = self.student.encoder_width or full
        if self.views:
            tokens = torch.cat([view.encoder.flatten(0, 1) for view in self.views])
            basis = principal_directions(tokens.T @ tokens, width)
            offset = tokens.mean(dim=0) - basis @ (basis.T @ tokens.mean(dim=0))
        else:
            weight, _ = self.teacher.linear('decoder_embed')
            basis = principal_directions(weight.T @ weight, width)
            offset = torch.zeros(full, dtype=torch.float64)
        return Read(basis, offset, torch.ones(width, dtype=torch.float64))

    def encode(self, view: _View) -> Tensor:
        """Return the student's encoder tokens: the teacher's on the encoder basis."""
        return view.encoder @ self.encoder_read.matrix

    def read(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Read:
        """Return how to read teacher tokens, normed, off student tokens, normed."""
        full, width = self.basis.shape
        zeros = torch.zeros(full, dtype=torch.float64)
        if not teacher:
            # Of the teacher's length sqrt(n), the part on the basis; the student's is sqrt(s).
            factor = math.sqrt(full * self.kept / width)
            return Read(factor * self.basis, zeros, torch.ones(width, dtype=torch.float64))
        large = torch.cat([part.flatten(0, 1) for part in teacher])
        small = torch.cat([part.flatten(0, 1) for part in student])
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
            self.made[key] = token.detach().double() @ self.basis
            self.notes[key] = (f'{prefix}mask_token', 'on the basis')
        if self.student.encoder_width is None:
            for view in self.views:
                view.tokens = view.levels[start] @ self.basis
            return
        weight, bias = self.teacher.linear('decoder_embed')
        read = self.encoder_read
        layer = nn.Linear(*reversed((self.basis.T @ weight @ read.matrix).shape)).double()
        layer.weight.copy_(self.basis.T @ weight @ read.matrix)
        layer.bias.copy_(self.basis.T @ (bias + weight @ read.offset))
        if self.views:
            inputs = [self.encode(view) for view in self.views]
            lacks = [
                view.levels[start] @ self.basis - layer(tokens)
                for view, tokens in zip(self.views, inputs, strict=True)
            ]
            _set(layer, refit((layer.weight, layer.bias), inputs, lacks, self.ridge))
            for view, tokens in zip(self.views, inputs, strict=True):
                view.tokens = layer(tokens)
        self.put(
            'decoder_embed',
            (layer.weight, layer.bias),
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
        self, name: str, index: int, views: list[_View], before: list[Tensor]
    ) -> dict[int, Tensor]:
        source = self.mapping[index]
        last = index + 1 == self.student.depth
        aim = self.teacher.depth if last else self.mapping[index + 1]
        teacher = self.teacher.block(name, source)
        traces = [
            _trace(
                # A student that shares its blocks still aims at what each view's teacher does.
                self.teacher.block(('dec_blocks', 'dec_blocks2')[view.number], source),
                self.teacher,
                view.levels[source],
                self.views[1 - view.number].levels[source],
                self.grid,
            )
            for view in views
        ]
        block = _BlockBuild(
            self,
            teacher,
            self.student.block(name, index),
            traces,
            [before[view.number] for view in views],
            [before[1 - view.number] for view in views],
            [view.levels[aim] @ self.basis for view in views],
        )
        block.run()
        prefix = teacher_block_prefix(self.teacher.state, self.teacher.layout.prefix, name)
        for key, how in block.notes.items():
            layer = block.student.get_submodule(key)
            self.put(
                f'{name}.{index}.{key}', (layer.weight, layer.bias), f'{prefix}{source}.{key}', how
            )
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
        return 'refitted' if self.views and not math.isinf(self.ridge) else 'not refitted'


@dataclass(frozen=True)
class _Trace:
    """What one view's teacher block did: streams, and inputs of the layers that write them."""

    x: Tensor
    other: Tensor
    after_self: Tensor
    after_cross: Tensor
    self_heads: Tensor
    cross_heads: Tensor
    units: Tensor


def _run(block: DecoderBlock, of: _Decoder, x: Tensor, other: Tensor, grid) -> Tensor:
    tables = of.tables(grid)
    return block(of.banded(x, grid), of.banded(other, grid), tables, tables).reshape(x.shape)


def _trace(block: DecoderBlock, of: _Decoder, x: Tensor, other: Tensor, grid) -> _Trace:
    layers = (block.attn.proj, block.cross_attn.proj, block.mlp.fc2)
    with _Tap(layers[0]) as heads, _Tap(layers[1]) as cross, _Tap(layers[2]) as units:
        _run(block, of, x, other, grid)
    self_heads, cross_heads = (tap.read().reshape(x.shape) for tap in (heads, cross))
    after_self = x + block.attn.proj(self_heads)
    after_cross = after_self + block.cross_attn.proj(cross_heads)
    activations = units.read().reshape(*x.shape[:2], -1)
    return _Trace(x, other, after_self, after_cross, self_heads, cross_heads, activations)


class _BlockBuild:
    """One student block in the making; runs on the student's tokens as it grows."""

    def __init__(
        self,
        build: _Build,
        teacher: DecoderBlock,
        student: DecoderBlock,
        traces: list[_Trace],
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
            norm = self.student.get_submodule(name)
            norm.weight.fill_(1.0)
            norm.bias.zero_()
            self.notes[name] = 'folded into its readers'
        self._self_attention()
        self._cross_attention()
        self._mlp()

    def _self_attention(self) -> None:
        teacher, student, basis = self.teacher.attn, self.student.attn, self.build.basis
        read = self.build.read([_norm(t.x) for t in self.traces], [_norm(z) for z in self.tokens])
        weight, bias = _fold(self.teacher.norm1, teacher.qkv.weight, teacher.qkv.bias, read)
        large = Attention(
            *zip(weight.chunk(3), bias.chunk(3), strict=True),
            (basis.T @ teacher.proj.weight, basis.T @ teacher.proj.bias),
        )
        start = Attention(
            *zip(student.qkv.weight.chunk(3), student.qkv.bias.chunk(3), strict=True),
            (student.proj.weight, student.proj.bias),
        )
        small, note = self._reduce(large, start, [t.self_heads for t in self.traces], (read, read))
        _set(student.qkv, stack([small.query, small.key, small.value]))
        self._write('attn.proj', small.output, [t.after_self @ basis for t in self.traces])
        self.notes['attn.qkv'] = f'read on the basis, {note}'
        self.notes['attn.proj'] += f', {note}'

    def _cross_attention(self) -> None:
        teacher, student, basis = (
            self.teacher.cross_attn,
            self.student.cross_attn,
            self.build.basis,
        )
        read = self.build.read(
            [_norm(t.after_self) for t in self.traces], [_norm(z) for z in self.tokens]
        )
        memory = self.build.read(
            [_norm(t.other) for t in self.traces], [_norm(z) for z in self.others]
        )
        norm2, norm_y = self.teacher.norm2, self.teacher.norm_y
        large = Attention(
            _fold(norm2, teacher.projq.weight, teacher.projq.bias, read),
            _fold(norm_y, teacher.projk.weight, teacher.projk.bias, memory),
            _fold(norm_y, teacher.projv.weight, teacher.projv.bias, memory),
            (basis.T @ teacher.proj.weight, basis.T @ teacher.proj.bias),
        )
        layers = (student.projq, student.projk, student.projv, student.proj)
        start = Attention(*((layer.weight, layer.bias) for layer in layers))
        features = [t.cross_heads for t in self.traces]
        small, note = self._reduce(large, start, features, (read, memory))
        for name, made in zip('qkv', (small.query, small.key, small.value), strict=True):
            _set(student.get_submodule(f'proj{name}'), made)
            self.notes[f'cross_attn.proj{name}'] = f'read on the basis, {note}'
        self._write('cross_attn.proj', small.output, [t.after_cross @ basis for t in self.traces])
        self.notes['cross_attn.proj'] += f', {note}'

    def _mlp(self) -> None:
        teacher, student, basis = self.teacher.mlp, self.student.mlp, self.build.basis
        read = self.build.read(
            [_norm(t.after_cross) for t in self.traces], [_norm(z) for z in self.tokens]
        )
        fc1, fc2, note = reduce_units(
            _fold(self.teacher.norm3, teacher.fc1.weight, teacher.fc1.bias, read),
            (basis.T @ teacher.fc2.weight, basis.T @ teacher.fc2.bias),
            [t.units for t in self.traces],
            read.scale,
            ((student.fc1.weight, student.fc1.bias), (student.fc2.weight, student.fc2.bias)),
        )
        _set(student.fc1, fc1)
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
        layer = self.student.get_submodule(name)
        _set(layer, made)
        if self.traces:
            inputs = [self._inputs(name, index) for index in range(len(self.tokens))]
            lacks = [
                aim - tokens - layer(part)
                for aim, tokens, part in zip(aims, self.tokens, inputs, strict=True)
            ]
            _set(layer, refit((layer.weight, layer.bias), inputs, lacks, self.build.ridge))
            self.tokens = [
                tokens + layer(part) for tokens, part in zip(self.tokens, inputs, strict=True)
            ]
        self.notes[name] = f'written on the basis, {self.build.fitted}'

    def _inputs(self, name: str, index: int) -> Tensor:
        """Return what the named layer is given on the student's tokens."""
        of, grid, block = self.build.student, self.build.grid, self.student
        x = of.banded(self.tokens[index], grid)
        tables = of.tables(grid)
        with _Tap(block.get_submodule(name)) as tap:
            if name == 'attn.proj':
                block.attn(block.norm1(x), tables)
            elif name == 'cross_attn.proj':
                memory = block.norm_y(of.banded(self.others[index], grid))
                block.cross_attn(block.norm2(x), memory, tables, tables)
            else:
                block.mlp(block.norm3(x))
        return tap.read().reshape(*self.tokens[index].shape[:2], -1)


def _set(layer: nn.Module, made: Linear) -> None:
    layer.weight.copy_(made[0])
    layer.bias.copy_(made[1])


# --- Heads ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What a head layer reads: teacher and student tokens on the pairs, and the map between."""

    read: Read
    teacher: list[Tensor]
    student: list[Tensor]
    fold: Linear | None = None  # gain and bias of the teacher's norm in between

    def linear(self, weight: Tensor, bias: Tensor) -> Linear:
        """Return a teacher layer so that it reads the student's tokens."""
        if self.fold is None:
            return weight @ self.read.matrix, bias + weight @ self.read.offset
        gain, shift = self.fold
        return (weight * gain) @ self.read.matrix, bias + weight @ (
            shift + gain * self.read.offset
        )

    def teacher_tokens(self) -> list[Tensor]:
        """Return the tokens as the teacher's layer gets them."""
        if self.fold is None:
            return self.teacher
        return [tokens * self.fold[0] + self.fold[1] for tokens in self.teacher]


class _HeadBuild:
    """Head entries of equal name: readers of the stream moved to the basis, the rest as is."""

    def __init__(
        self,
        build: _Build,
        student: StateDict,
        teacher: StateDict,
        heads: tuple[str, ...],
    ) -> None:
        self.build, self.student, self.teacher = build, student, teacher
        self.keys = [key for key in student if key.startswith(heads) and key in teacher]

    def run(self) -> None:
        """Make every head entry."""
        layers = dict.fromkeys(key.rpartition('.')[0] for key in self.keys)
        for layer in layers:
            role = next((r for p, r in STREAM_READERS.items() if re.search(p, layer)), None)
            if role == 'hook':
                self._reader(layer, [self._hook(layer)])
            elif role == 'normed':
                self._reader(layer, [self._normed(layer)])
            elif role == 'encoder+normed':
                self._mlp(layer, [self._encoder(layer), self._normed(layer)])
        for key in self.keys:
            if key not in self.build.notes:
                self._plain(key)

    def _plain(self, key: str) -> None:
        shape = tuple(self.student[key].shape)
        try:
            made, how = truncate_tensor(self.teacher[key].detach(), shape)
        except ModelError as error:
            if len(shape) == 2:
                raise ModelError(f'cannot initialise {key!r}: {error}') from error
            self.build.notes[key] = (key, f'{LEFT_ALONE}: {error}')
            return
        self.build.made[key], self.build.notes[key] = made, (key, how)

    # -- what is read

    def _views(self, layer: str) -> list[_View]:
        """Return the views that a layer serves: head 1 the left, head 2 the right, else both."""
        match = re.match(r'downstream_head([12])\.', layer)
        views = self.build.views
        return [v for v in views if v.number == int(match[1]) - 1] if match else views

    def _encoder(self, layer: str) -> _Source:
        views = self._views(layer)
        student = [self.build.encode(view) for view in views]
        return _Source(self.build.encoder_read, [view.encoder for view in views], student)

    def _normed(self, layer: str) -> _Source:
        views = self._views(layer)
        teacher = [_norm(view.levels[-1]) for view in views]
        student = [_norm(view.tokens) for view in views]
        norm = self.build.teacher.linear('dec_norm')
        return _Source(self.build.read(teacher, student), teacher, student, norm)

    def _hook(self, layer: str) -> _Source | None:
        number = int(layer.rpartition('act_postprocess.')[2][0])
        depths = self.build.teacher.depth, self.build.student.depth
        large, small = (dpt_hooks(depth)[number] for depth in depths)
        if number == 0:
            return self._encoder(layer)
        if number == 3:
            return self._normed(layer)
        if small == 0 or large == 0:
            return None
        views = self._views(layer)
        teacher = [view.levels[large] for view in views]
        student = [view.hooks[small - 1] for view in views]
        return _Source(self.build.read_raw(teacher, student), teacher, student)

    # -- what is made of it

    def _folded(self, layer: str, sources: list[_Source]) -> Linear:
        """Return the teacher's layer, reading the student's tokens from all sources."""
        weight = self.teacher[f'{layer}.weight'].detach().double().flatten(1)
        widths = [source.read.matrix.shape[0] for source in sources]
        if weight.shape[1] != sum(widths):
            raise ModelError(
                f'teacher {layer + ".weight"!r} reads {weight.shape[1]} channels; '
                f'{" + ".join(map(str, widths))} are there'
            )
        nothing = torch.zeros(len(weight), dtype=torch.float64)
        stored = self.teacher.get(f'{layer}.bias')
        bias = nothing if stored is None else stored.detach().double()
        parts = []
        for source, columns in zip(sources, weight.split(widths, dim=1), strict=True):
            part, bias = source.linear(columns, bias)
            parts.append(part)
        return torch.cat(parts, dim=1), bias

    def _reader(self, layer: str, sources: list[_Source | None]) -> None:
        known = [source for source in sources if source is not None]
        if len(known) < len(sources):
            for part in ('weight', 'bias'):
                how = f'{LEFT_ALONE}: reads the decoder in one model, the encoder in the other'
                self.build.notes[f'{layer}.{part}'] = (f'{layer}.{part}', how)
            return
        self._put(layer, self._folded(layer, known), 'read on the basis')

    def _mlp(self, layer: str, sources: list[_Source]) -> None:
        """Make fc1 and the fc2 behind it, with the units that matter most."""
        after = layer.removesuffix('fc1') + 'fc2'
        if f'{after}.weight' not in self.student or f'{after}.weight' not in self.teacher:
            self._reader(layer, list(sources))
            return
        fc1, fc2, start1, start2 = (
            (state[f'{name}.weight'].detach().double(), state[f'{name}.bias'].detach().double())
            for state, name in (
                (self.teacher, layer),
                (self.teacher, after),
                (self.student, layer),
                (self.student, after),
            )
        )
        views = range(len(sources[0].teacher))
        inputs = [torch.cat([s.teacher_tokens()[v] for s in sources], dim=-1) for v in views]
        units = [F.gelu(F.linear(tokens, *fc1)) for tokens in inputs]
        scale = torch.cat([source.read.scale for source in sources])
        small1, small2, note = reduce_units(
            self._folded(layer, sources), fc2, units, scale, (start1, start2)
        )
        if units and len(small2[0]) == len(fc2[0]):
            tokens = [torch.cat([s.student[v] for s in sources], dim=-1) for v in views]
            features = [F.gelu(F.linear(part, *small1)) for part in tokens]
            lacks = [
                F.linear(large, *fc2) - F.linear(part, *small2)
                for large, part in zip(units, features, strict=True)
            ]
            small2 = refit(small2, features, lacks, self.build.ridge)
        self._put(layer, small1, f'read on the basis, {note}')
        self._put(after, small2, f'{note}, {self.build.fitted}')

    def _put(self, layer: str, made: Linear, how: str) -> None:
        """Take a layer; rows that the student has not are truncated away."""
        for part, value in zip(('weight', 'bias'), made, strict=True):
            key = f'{layer}.{part}'
            if key not in self.student:
                continue
            shape = tuple(self.student[key].shape)
            rows = shape[0]
            if rows != len(value) or value[0].numel() != self.student[key][0].numel():
                flat = (rows, self.student[key][0].numel()) if value.ndim == 2 else (rows,)
                try:
                    value, cut = truncate_tensor(value, flat)
                except ModelError as error:
                    raise ModelError(f'cannot initialise {key!r}: {error}') from error
                how = f'{how}, then {cut}'
            self.build.made[key] = value.reshape(shape)
            self.build.notes[key] = (key, how)
