"""A frozen network that teaches students: its outputs for a batch are a lesson.

A lesson is a dict of tensors with one item a pair: `encoder1`, `encoder2`, `decoder1`,
`decoder2`, tokens (B, h * w, C) of both views at stride 16, row-major; `pointmap1`, `pointmap2`
(B, H, W, 3) in the left camera's frame and `conf1`, `conf2` (B, H, W) raw; and of a network that
matches rows `disparity` (B, H, W) px, `confidence` (B, H, W) in [0, 1] and `logits`.
Only what the enabled losses ask for is computed and kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Set
import hashlib
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import InputError, ModelError
from training.checkpoint import trained_network
from training.models.flight import FlightStudent
from training.models.lunar_teacher import match_both_views, pointmaps_from_disparity
from training.models.mast3r import Mast3r
from training.recipe import TeacherRecipe
from training.students import feature_widths, grey, rgb

Batch = dict[str, Tensor]
TOKENS = frozenset({'encoder1', 'encoder2', 'decoder1', 'decoder2'})
POINTMAPS = frozenset({'pointmap1', 'pointmap2', 'conf1', 'conf2'})
DISPARITIES = frozenset({'disparity', 'confidence', 'logits'})
# What a lesson is a function of; a cache entry is named by it.
CACHE_KEYS = ('left', 'right', 'intrinsics')
# To be raised when a lesson changes for the same network and images.
CACHE_VERSION = '1'


class FrozenTeacher(ABC):
    """A network in evaluation mode, without gradients."""

    offers: frozenset[str]

    def __init__(self, network: nn.Module, device: torch.device, amp: str = 'none') -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.device, self.amp = device, amp
        self.encoder_width, self.decoder_width = feature_widths(network)

    @torch.no_grad()
    def lesson(self, batch: Batch, wanted: Set[str]) -> Batch:
        """Return the wanted entries for a batch with `left` and `right` (B, C, H, W).

        Raises:
            ModelError: This network does not give an entry; names it.
        """
        lacking = sorted(wanted - self.offers)
        if lacking:
            raise ModelError(
                f'{", ".join(lacking)} asked of a teacher of kind {type(self.network).__name__}, '
                f'which gives {", ".join(sorted(self.offers))}'
            )
        if not wanted:
            return {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp == 'bf16'):
            found = self._look(batch, wanted)
        return {name: found[name].float() for name in wanted}

    @torch.no_grad()
    def encoder_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the encoder's tokens of both views, (B, h * w, C) in host memory."""
        found = self.lesson(batch, {'encoder1', 'encoder2'})
        return found['encoder1'].cpu(), found['encoder2'].cpu()

    @abstractmethod
    def _look(self, batch: Batch, wanted: Set[str]) -> Batch:
        """Return at least the wanted entries."""


# A raw confidence of 150 is as sure as MASt3R's get.
LARGEST_LOGIT = 5.0


class RowMatchingTeacher(FrozenTeacher):
    """A flight network, usually the lunar teacher."""

    offers = TOKENS | POINTMAPS | DISPARITIES
    network: FlightStudent

    def _look(self, batch: Batch, wanted: Set[str]) -> Batch:
        left, right = grey(batch['left']), grey(batch['right'])
        if wanted & POINTMAPS:
            output, other = match_both_views(self.network, left, right)
            found = self._pointmaps(batch, output, other)
        else:
            output, found = self.network(left, right), {}
        tokens = flight_tokens(output)
        confidence = output['confidence_logit'].float().sigmoid()
        return {**output, **tokens, **found, 'confidence': confidence}

    @staticmethod
    def _pointmaps(batch: Batch, output: Batch, other: Batch) -> Batch:
        if 'intrinsics' not in batch:
            raise InputError('pointmaps of a row-matching teacher need pairs with intrinsics')
        disparities = output['disparity'].float(), other['disparity'].float()
        points = pointmaps_from_disparity(*disparities, batch['intrinsics'])
        # MASt3R's raw confidence is 1 + exp(x); with the logit for x it is 1 / (1 - p). It weighs
        # losses, so that no pixel may count a million times as much as another.
        logits = [
            view['confidence_logit'].float().clamp_max(LARGEST_LOGIT) for view in (output, other)
        ]
        return {
            'pointmap1': points[0],
            'pointmap2': points[1],
            'conf1': 1 + logits[0].exp(),
            'conf2': 1 + logits[1].exp(),
        }


class PointmapTeacher(FrozenTeacher):
    """A MASt3R network, as published or trained here."""

    offers = TOKENS | POINTMAPS
    network: Mast3r

    def _look(self, batch: Batch, wanted: Set[str]) -> Batch:
        output = self.network(rgb(batch['left']), rgb(batch['right']), with_tokens=True)
        tokens = {
            f'{part}{view}': output[f'tokens{view}'][level]
            for part, level in (('encoder', 0), ('decoder', -1))
            for view in (1, 2)
        }
        return {**output, **tokens}


class CachedTeacher:
    """A teacher whose lessons are kept on disk, one file a pair.

    A file is named by the digest of the network and of the pair's images, so an entry can never
    be of another network or crop. Tokens are kept in bfloat16, the rest as computed; a lesson is
    what is kept, whether it was there before or not.
    """

    def __init__(self, teacher: FrozenTeacher, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder
        self.encoder_width, self.decoder_width = teacher.encoder_width, teacher.decoder_width
        self.offers = teacher.offers
        self.network = teacher.network
        self.hits = self.misses = 0
        start = f'{CACHE_VERSION} {teacher.amp}'
        self._network_digest = _digest(teacher.network.state_dict().values(), start)

    def encoder_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the encoder's tokens, computed again."""
        return self.teacher.encoder_tokens(batch)

    def lesson(self, batch: Batch, wanted: Set[str]) -> Batch:
        """Return what the teacher says, from disk where it is there."""
        if not wanted:
            return {}
        paths = [self._path(batch, item) for item in range(len(batch['left']))]
        entries = {}
        for item, path in enumerate(paths):
            entry = self._read(path, wanted)
            if entry is not None:
                entries[item] = entry
        missing = [item for item in range(len(paths)) if item not in entries]
        self.hits, self.misses = self.hits + len(entries), self.misses + len(missing)
        if missing:
            part = {name: value[missing] for name, value in batch.items()}
            lesson = self.teacher.lesson(part, wanted)
            for place, item in enumerate(missing):
                entry = {name: value[place] for name, value in lesson.items()}
                entries[item] = self._write(paths[item], entry)
        device = self.teacher.device
        return {
            name: torch.stack([entries[i][name].to(device).float() for i in range(len(paths))])
            for name in wanted
        }

    def _path(self, batch: Batch, item: int) -> Path:
        inputs = [batch[name][item] for name in CACHE_KEYS if name in batch]
        name = _digest(inputs, self._network_digest)
        return self.folder / name[:2] / f'{name}.safetensors'

    @staticmethod
    def _read(path: Path, wanted: Set[str]) -> Batch | None:
        if not path.exists():
            return None
        try:
            entry = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f'{path}: not a readable cache entry, delete it: {error}') from error
        return entry if wanted <= set(entry) else None

    @staticmethod
    def _write(path: Path, entry: Batch) -> Batch:
        """Write an entry; return it as it is kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {
            name: value.to('cpu', torch.bfloat16 if name in TOKENS else value.dtype).contiguous()
            for name, value in entry.items()
        }
        partial = path.with_suffix(f'.{os.getpid()}.part')
        try:
            save_file(stored, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return stored


Teacher = FrozenTeacher | CachedTeacher


def load_frozen_teacher(recipe: TeacherRecipe, device: torch.device) -> Teacher | None:
    """Return the teacher of a recipe, None where it names none.

    Raises:
        ModelError: The file is missing, damaged or of another form.
    """
    if not recipe.checkpoint:
        return None
    network = trained_network(recipe.checkpoint, recipe.student)
    kind = RowMatchingTeacher if isinstance(network, FlightStudent) else PointmapTeacher
    teacher = kind(network, device, recipe.amp)
    return CachedTeacher(teacher, Path(recipe.cache).expanduser()) if recipe.cache else teacher


def flight_tokens(output: dict[str, Any]) -> Batch:
    """Return the tokens of a flight network's output under the names of a lesson."""
    encoder = output['encoder_features'].flatten(2).transpose(1, 2)  # (2B, h * w, C)
    decoder = output['decoder_levels'][-1]
    decoder = decoder.reshape(len(encoder), -1, decoder.shape[-1])
    named = {}
    for part, tokens in (('encoder', encoder), ('decoder', decoder)):
        named[f'{part}1'], named[f'{part}2'] = tokens.chunk(2)
    return named


def network_digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights: what a teacher says depends on nothing else."""
    return _digest(network.state_dict().values())


def _digest(tensors: Iterable[Tensor], start: str = '') -> str:
    digest = hashlib.sha256(start.encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
