"""Head entries of a student from its teacher's; see `shared_basis.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import re

import torch
from torch import Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import ModelError
from training.models.heads import dpt_hooks
from training.start.decoder_source import norm_tokens
from training.start.decoder_start import DecoderStart, View
from training.start.init_plan import LEFT_ALONE, StateDict
from training.start.reduction import Linear, Read, reduce_units, refit, truncate_tensor

# What head layers read: the encoder's tokens, the normed last level, or a DPT hook's level.
STREAM_READERS = {
    r'downstream_head[12]\.dpt\.act_postprocess\.([0-3])\.0$': 'hook',
    r'downstream_head[12]\.head_local_features\.fc1$': 'encoder+normed',
    r'descriptors\.from_tokens$': 'normed',
    r'aggregation\.tokens(?:8|16)$': 'normed',
}


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


class HeadStart:
    """Head entries of equal name: readers of the stream moved to the basis, the rest as is."""

    def __init__(
        self,
        build: DecoderStart,
        student: StateDict,
        teacher: StateDict,
        heads: tuple[str, ...],
        readers: Mapping[str, str],
    ) -> None:
        self.build, self.student, self.teacher, self.readers = build, student, teacher, readers
        self.keys = [key for key in student if key.startswith(heads) and key in teacher]

    def run(self) -> None:
        """Make every head entry."""
        layers = dict.fromkeys(key.rpartition('.')[0] for key in self.keys)
        for layer in layers:
            role = next((r for p, r in self.readers.items() if re.search(p, layer)), None)
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

    def _views(self, layer: str) -> list[View]:
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
        teacher = [norm_tokens(view.levels[-1]) for view in views]
        student = [norm_tokens(view.tokens) for view in views]
        norm = self.build.teacher.linear('dec_norm')
        return _Source(self.build.stream.read(teacher, student), teacher, student, norm)

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
        return _Source(self.build.stream.read_raw(teacher, student), teacher, student)

    # -- what is made of it

    def _folded(self, layer: str, sources: list[_Source]) -> Linear:
        """Return the teacher's layer, reading the student's tokens from all sources."""
        weight = self.teacher[f'{layer}.weight'].detach().to('cpu', torch.float64).flatten(1)
        widths = [source.read.matrix.shape[0] for source in sources]
        if weight.shape[1] != sum(widths):
            raise ModelError(
                f'teacher {layer + ".weight"!r} reads {weight.shape[1]} channels; '
                f'{" + ".join(map(str, widths))} are there'
            )
        nothing = torch.zeros(len(weight), dtype=torch.float64)
        stored = self.teacher.get(f'{layer}.bias')
        bias = nothing if stored is None else stored.detach().to('cpu', torch.float64)
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
            (
                state[f'{name}.weight'].detach().to('cpu', torch.float64),
                state[f'{name}.bias'].detach().to('cpu', torch.float64),
            )
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
            small2 = refit(small2, features, lacks, self.build.stream.ridge)
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
