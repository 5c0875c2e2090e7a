"""Where the pairs of an evaluation come from: a bag, a manifest, or a folder of .npz pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lunar_stereo_recon.benchmark.pairs import BenchmarkPair, sets_at
from lunar_stereo_recon.datatypes import StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.recordings import ground_truth_of
from lunar_stereo_recon.evaluation.scores import GroundTruth
from lunar_stereo_recon.files.manifests import load_manifest, ManifestEntry

if TYPE_CHECKING:
    from lunar_stereo_recon.bags.reader import BagFrame, Pose, StereoBagReader

BAG_SUFFIXES = ('.mcap', '.db3', '.zstd')
MANIFEST = 'manifest.json'
# What another method found where that is beyond doubt is good enough to score by; what is only
# approximately true is not.
TRUSTED_REFERENCES = ('ground truth', 'silver')
Loaded = tuple[StereoPair, GroundTruth | None]


@dataclass(frozen=True)
class SourcePair:
    """One pair, read when asked for.

    Attributes:
        id: Unique name within the source, fit for a file.
        stratum: Group for the tables.
        load: Returns the images and, where it is known, the truth. Raises ReconError.
        pose: Of the left camera in a fixed frame; None where it is unknown.
        stamp_ns: Time of the left image; 0 where it is unknown.
    """

    id: str
    stratum: str
    load: Callable[[], Loaded]
    pose: Pose | None = None
    stamp_ns: int = 0


@dataclass(frozen=True)
class Source:
    """Pairs that are evaluated together.

    Attributes:
        path: Where they are.
        count: How many there can be.
        pairs: Yields them, from the first again at each call.
        one_rig: They follow each other in a recording.
        mean_of_pairs: Every pair counts alike; otherwise every pixel does.
        losses: What could not be read so far, one sentence each.
    """

    path: Path
    count: int
    pairs: Callable[[], Iterator[SourcePair]]
    one_rig: bool = False
    mean_of_pairs: bool = False
    losses: list[str] = field(default_factory=list)


def source_at(
    path: Path,
    open_bag: Callable[[Path], StereoBagReader],
    pair_of: Callable[[BagFrame], StereoPair],
) -> Source:
    """Return the pairs of a path.

    Args:
        path: A rosbag2 folder or file, a manifest, a folder with manifest.json or .npz pairs.
        open_bag: Opens a bag as the command's arguments say.
        pair_of: Decodes a frame as these say.

    Raises:
        InputError: It is none of these, or cannot be read.
    """
    if not path.exists():
        raise InputError(
            f'{path} does not exist; a bag, a manifest or a folder of pairs is needed'
        )
    if (path / MANIFEST).is_file() or path.suffix == '.json':
        return _of_manifest(path if path.is_file() else path / MANIFEST)
    if path.is_file() or _is_bag(path):
        return _of_bag(path, open_bag, pair_of)
    if any(path.glob('*.npz')):
        return _of_samples(path)
    raise InputError(
        f'{path} is neither a bag (metadata.yaml, .mcap or .db3) nor a folder with {MANIFEST} or '
        '.npz pairs'
    )


def _is_bag(folder: Path) -> bool:
    return any(p.name == 'metadata.yaml' or p.suffix in BAG_SUFFIXES for p in folder.iterdir())


def _of_manifest(path: Path) -> Source:
    entries = load_manifest(path)
    # Those with truth are read as the benchmark reads them.
    scored: dict[str, BenchmarkPair] = {}
    if any(entry.ground_truth is not None for entry in entries):
        for each in sets_at(path):
            if each.reference in TRUSTED_REFERENCES:
                scored |= {pair.id: pair for pair in each.pairs}

    def pairs() -> Iterator[SourcePair]:
        for entry in entries:
            known = scored.get(entry.id)
            load = partial(_without_truth, entry) if known is None else known.load
            yield SourcePair(entry.id, entry.tag or 'untagged', load)

    # A manifest that names kinds of reference holds pairs of unlike kinds and sizes.
    return Source(path, len(entries), pairs, mean_of_pairs=any(e.says_reference for e in entries))


def _without_truth(entry: ManifestEntry) -> Loaded:
    return entry.load_pair(), None


def _of_samples(path: Path) -> Source:
    members = sets_at(path)[0].pairs

    def pairs() -> Iterator[SourcePair]:
        for pair in members:
            yield SourcePair(pair.id, pair.stratum, pair.load)

    return Source(path, len(members), pairs)


def _of_bag(
    path: Path,
    open_bag: Callable[[Path], StereoBagReader],
    pair_of: Callable[[BagFrame], StereoPair],
) -> Source:
    losses: list[str] = []
    name = path.resolve().stem

    def load(frame: BagFrame) -> Loaded:
        pair = pair_of(frame)
        return pair, ground_truth_of(frame, pair.calibration)

    def pairs() -> Iterator[SourcePair]:
        losses.clear()
        with open_bag(path) as reader:
            try:
                for frame in reader.frames():
                    loaded = partial(load, frame)
                    yield SourcePair(
                        f'{frame.index:06d}', name, loaded, frame.pose, frame.stamp_ns
                    )
            except InputError as error:  # what came before it is good
                losses.append(f'nothing is read after this: {error}')
            losses.extend(reader.losses)
            alone = Counter(f'{item.side} {item.reason}' for item in reader.unpaired)
            losses.extend(
                f'{number} images without a partner: {why}' for why, number in alone.items()
            )

    with open_bag(path) as reader:
        count = reader.frame_count
    return Source(path, count, pairs, one_rig=True, losses=losses)
