"""Divides recordings into shards, which depend on the recording and the parameters alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import hashlib
import os
from pathlib import Path
import re

from lunar_stereo_recon.bags.storage import LATEST_NS
from lunar_stereo_recon.batch.settings import BatchSettings

# Of each file, at its start and at its end, where an mcap file has the index of all chunks.
_DIGEST_BYTES = 2**20


@dataclass(frozen=True)
class Shard:
    """A part of a recording, the unit of work.

    Attributes:
        bag: Key of the recording in the store.
        path: The recording.
        number: Position among the recording's shards.
        start_ns, stop_ns: Recording times of its left images; the second is outside.
        frames: About how many frames it has.
    """

    bag: str
    path: str
    number: int
    start_ns: int
    stop_ns: int
    frames: int

    @property
    def name(self) -> str:
        """Return the place of its results in the store."""
        return f'{self.bag}/{self.number:05d}'


@dataclass(frozen=True)
class BagPlan:
    """A recording and its shards.

    Attributes:
        bag: Key in the store: the recording's name and the start of its digest.
        path: Where it is.
        digest: See `bag_digest`.
        frames: Largest number of frames that it can have.
        starts: Recording times at which its shards begin, but for the first one.
        losses: What of it cannot be read, as far as opening tells.
    """

    bag: str
    path: str
    digest: str
    frames: int
    starts: tuple[int, ...]
    losses: tuple[str, ...]

    def shards(self) -> list[Shard]:
        """Return the shards, which cover all times."""
        edges = [0, *self.starts, LATEST_NS]
        share = -(-self.frames // (len(edges) - 1))
        return [
            Shard(self.bag, self.path, number, edges[number], edges[number + 1], share)
            for number in range(len(edges) - 1)
        ]


def plan_bag(settings: BatchSettings, path: str) -> BagPlan:
    """Look at a recording and divide it.

    Raises:
        InputError: It cannot be read, or has no rig.
    """
    with settings.opened(path) as reader:
        digest = bag_digest(reader.files)
        name = re.sub(r'[^A-Za-z0-9._-]', '_', Path(path).name).lstrip('.')[:80]
        return BagPlan(
            bag=f'{name}-{digest[:12]}',
            path=path,
            digest=digest,
            frames=reader.frame_count,
            starts=tuple(reader.frame_starts(settings.shard_frames)),
            losses=tuple(reader.losses),
        )


def bag_digest(files: Sequence[Path]) -> str:
    """Return what tells recordings apart, wherever they are: SHA-256 of sizes, heads and tails.

    Reading all of a mission's bags for a digest would take as long as the work itself.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open('rb') as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, 'little'))
            for start in (0, max(0, size - _DIGEST_BYTES)):
                file.seek(start)
                digest.update(file.read(_DIGEST_BYTES))
    return digest.hexdigest()
