"""Where the benchmark's pairs come from: the rendered definition, a manifest, or .npz files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.scores import GroundTruth, load_ground_truth
from lunar_stereo_recon.files.arrays import check_rendered_pair, load_arrays
from lunar_stereo_recon.files.manifests import load_manifest, ManifestEntry, REFERENCES
from lunar_stereo_recon.preprocess import grey_from_array

DEFINITION = Path(__file__).resolve().parent.parent / 'data' / 'benchmark.json'
# Ground farther away does not count, as in the manifests' ground truth.
MAX_DEPTH_M = 40.0


@dataclass(frozen=True)
class BenchmarkPair:
    """A pair with ground truth, read when asked for.

    Attributes:
        id: Unique name.
        stratum: Kind of ground and light, for the tables.
        source: Entry of a manifest, or an .npz file as the renderer writes it.
        upside_down: Images and truth are mirrored top to bottom: the same matching problem, for
            a student that has not learnt where the ground is.
    """

    id: str
    stratum: str
    source: ManifestEntry | Path
    upside_down: bool = False

    def size(self) -> tuple[int, int]:
        """Return width and height of the images."""
        if isinstance(self.source, Path):
            height, width = load_arrays(self.source, 'pair', ('left',))['left'].shape
            return width, height
        return self.source.calibration.width, self.source.calibration.height

    def load(self) -> tuple[StereoPair, GroundTruth]:
        """Return images and truth.

        Raises:
            InputError: A file is missing or does not hold what it should.
        """
        pair, truth = self._load()
        return _upside_down(pair, truth) if self.upside_down else (pair, truth)

    def _load(self) -> tuple[StereoPair, GroundTruth]:
        if isinstance(self.source, Path):
            return load_sample(self.source)
        pair = self.source.load_pair()
        if self.source.ground_truth is None:
            raise InputError(f'pair {self.id} has no ground truth')
        calibration = self.source.calibration
        factor = calibration.fx * calibration.baseline_m
        height, width = pair.left.shape
        return pair, load_ground_truth(self.source.ground_truth, height, width, factor)


@dataclass(frozen=True)
class BenchmarkSet:
    """Pairs that are judged together.

    Attributes:
        name: For the tables.
        pairs: With a reference each.
        reference: What that is, see `ManifestEntry`.
        mean_of_pairs: Figures are means over pairs; otherwise pixels are pooled. For pairs of
            unlike kinds and sizes, of which the largest would else decide.
        unscored: Pairs without any reference.
        degradation: What is done to the images, one of `degradations`; None leaves them.
    """

    name: str
    pairs: Sequence[BenchmarkPair]
    reference: str = 'ground truth'
    mean_of_pairs: bool = False
    unscored: tuple[str, ...] = ()
    degradation: str | None = None


@dataclass(frozen=True)
class Definition:
    """Which rendered pairs the benchmark is made of.

    Attributes:
        version: Changes whenever the benchmark is made of other pairs.
        rendering: Changes whenever the same numbers would give other pairs.
        split, seed: Of `simulation.dataset`; the split is used for nothing else.
        samples: Rays a pixel.
        strata: Numbers of the pairs of each stratum of `simulation.dataset`.
        added: The same of `simulation.added_strata`; each is a set of its own, so that figures
            over all of `strata` stay comparable.
    """

    version: int
    rendering: int
    split: str
    seed: int
    samples: int
    strata: dict[str, tuple[int, ...]]
    added: dict[str, tuple[int, ...]]


def load_definition(path: Path = DEFINITION) -> Definition:
    """Return the benchmark's definition."""
    document = json.loads(path.read_text(encoding='utf-8'))
    strata, added = (
        {name: tuple(indices) for name, indices in document[kind].items()}
        for kind in ('strata', 'added')
    )
    return Definition(
        document['version'],
        document['rendering'],
        document['split'],
        document['seed'],
        document['samples'],
        strata,
        added,
    )


def default_cache() -> Path:
    """Return the folder for rendered pairs: under XDG_CACHE_HOME, else ~/.cache."""
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'lunar_stereo_recon' / 'benchmark'


def rendered_pairs(definition: Definition, cache: Path) -> list[BenchmarkPair]:
    """Return the defined pairs as files under `cache`, whether they are there yet or not."""
    folder = cache / f'v{definition.rendering}'
    pairs = [
        BenchmarkPair(f'{index:06d}', stratum, folder / f'{index:06d}.npz')
        for stratum, indices in definition.strata.items()
        for index in indices
    ]
    for stratum, indices in definition.added.items():
        for index in indices:
            name = f'{stratum}_{index:06d}'
            pairs.append(BenchmarkPair(name, stratum, folder / f'{name}.npz'))
    return pairs


def rendered_sets(definition: Definition, pairs: Sequence[BenchmarkPair]) -> list[BenchmarkSet]:
    """Return the set of all old strata and one of each added one, as far as there are pairs."""
    groups = {'rendered': [pair for pair in pairs if pair.stratum in definition.strata]}
    for stratum in definition.added:
        members = [pair for pair in pairs if pair.stratum == stratum]
        groups[f'rendered, {stratum}'] = members
    return [BenchmarkSet(name, members) for name, members in groups.items() if members]


def render_missing(
    definition: Definition, pairs: Sequence[BenchmarkPair], workers: int
) -> Iterator[int]:
    """Render those pairs that are not there yet; yields how many were written, as they come.

    One process holds one terrain and one pair at a time, about 1 GB.

    Raises:
        InputError: Pairs are missing and what renders them is not installed.
    """
    missing: dict[str, list[Path]] = {}
    for pair in pairs:
        if isinstance(pair.source, Path) and not pair.source.exists():
            added = pair.stratum if pair.stratum in definition.added else ''
            missing.setdefault(added, []).append(pair.source)
    if not missing:
        return
    try:
        from lunar_stereo_recon.simulation.added_strata import write_stratum
        from lunar_stereo_recon.simulation.dataset import DatasetOptions, write_pairs
    except ModuleNotFoundError as error:
        count = sum(len(paths) for paths in missing.values())
        raise InputError(
            f'{count} pairs have to be rendered, which needs the extra [sim] '
            f'({error.name} is not installed); or give pairs of your own with --data'
        ) from error
    for added, paths in missing.items():
        indices = [int(path.stem.split('_')[-1]) for path in paths]
        seed, split, samples = definition.seed, definition.split, definition.samples
        if added:
            yield from write_stratum(paths, added, indices, seed, split, workers, samples)
        else:
            folder = paths[0].parent
            options = DatasetOptions(seed, split, None, samples)
            yield from write_pairs(folder, indices, options, workers)


def sets_at(path: Path) -> list[BenchmarkSet]:
    """Return the sets of a manifest, of a folder with `manifest.json`, or of one with .npz files.

    A manifest is one set, unless it says what kind of reference its pairs have: then there is a
    set for each kind.

    Raises:
        InputError: There are no pairs with ground truth.
    """
    manifest = path / 'manifest.json' if path.is_dir() else path
    name = manifest.parent.resolve().name if manifest.is_file() else path.resolve().name
    if manifest.is_file():
        return _sets_of_manifest(manifest, name)
    files = sorted(path.glob('*.npz')) if path.is_dir() else []
    if not files:
        raise InputError(
            f'{path} is not a manifest and contains neither manifest.json nor .npz pairs'
        )
    return [
        BenchmarkSet(name, [BenchmarkPair(file.stem, _stratum_of(file), file) for file in files])
    ]


def _sets_of_manifest(manifest: Path, name: str) -> list[BenchmarkSet]:
    entries = load_manifest(manifest)
    unscored = tuple(entry.id for entry in entries if entry.ground_truth is None)
    if len(unscored) == len(entries):
        raise InputError(f'no pair of {manifest} has ground truth ("gt")')
    named = any(entry.says_reference for entry in entries)
    sets: list[BenchmarkSet] = []
    for reference in REFERENCES:
        members = [e for e in entries if e.ground_truth is not None and e.reference == reference]
        if members:
            pairs = [BenchmarkPair(e.id, e.tag or 'untagged', e) for e in members]
            title = f'{name}, {reference}' if named else name
            left_out = () if sets else unscored
            sets.append(BenchmarkSet(title, pairs, reference, named, left_out))
    return sets


def pairs_at(path: Path) -> list[BenchmarkPair]:
    """Return the pairs of all sets of `sets_at`."""
    return [pair for each in sets_at(path) for pair in each.pairs]


def first_of_each(pairs: Sequence[BenchmarkPair], count: int) -> list[BenchmarkPair]:
    """Return the first `count` pairs of each stratum."""
    seen: Counter[str] = Counter()
    chosen = []
    for pair in pairs:
        seen[pair.stratum] += 1
        if seen[pair.stratum] <= count:
            chosen.append(pair)
    return chosen


def with_variants(
    sets: Sequence[BenchmarkSet], upside_down: bool, degradations: Sequence[str]
) -> list[BenchmarkSet]:
    """Return each set and, after it, the same upside down and with each degradation."""
    found = []
    for each in sets:
        found.append(each)
        if upside_down:
            turned = [replace(pair, upside_down=True) for pair in each.pairs]
            found.append(replace(each, name=f'{each.name}, upside down', pairs=turned))
        for name in degradations:
            found.append(replace(each, name=f'{each.name}, {name}', degradation=name))
    return found


def load_sample(path: Path) -> tuple[StereoPair, GroundTruth]:
    """Return the pair and the truth of a rendered .npz file.

    Its `meta` may say that the shadows are not known (`shadow_known`), and that disparities were
    drawn in pixels, so that no depth is too far to count (`depth_limited`).

    Raises:
        InputError: The file is missing, unreadable or lacks an array.
        CalibrationError: Its calibration is impossible.
    """
    names = ('left', 'right', 'disparity', 'shadow', 'occlusion', 'intrinsics', 'baseline_m')
    arrays, meta = load_arrays(path, 'pair', names, ('rock', 'parts')), _read_meta(path)
    check_rendered_pair(arrays, path, ('disparity', 'shadow', 'occlusion', 'rock', 'parts'))
    rock, parts = (
        arrays[name].astype(bool) if name in arrays else None for name in ('rock', 'parts')
    )
    intrinsics, baseline_m = arrays['intrinsics'], float(arrays['baseline_m'])
    height, width = arrays['left'].shape
    calibration = StereoCalibration(
        float(intrinsics[0, 0]),
        float(intrinsics[1, 1]),
        float(intrinsics[0, 2]),
        float(intrinsics[1, 2]),
        float(intrinsics[0, 2]),
        baseline_m,
        width,
        height,
    )
    left, right = (grey_from_array(arrays[side]) for side in ('left', 'right'))
    pair = StereoPair(left, right, calibration)
    disparity = arrays['disparity']
    seen = np.isfinite(disparity) & (disparity > 0)
    depth = np.full(disparity.shape, np.nan, np.float32)
    depth[seen] = calibration.fx * baseline_m / disparity[seen]
    valid = seen
    if meta.get('depth_limited', True):
        valid = seen & (np.nan_to_num(depth, nan=np.inf) <= MAX_DEPTH_M)
    truth = GroundTruth(
        # Too far to count is still a surface: what is seen there does not fly.
        np.where(seen, disparity, np.float32(np.nan)),
        np.where(valid, depth, np.float32(np.nan)),
        valid,
        arrays['shadow'].astype(bool) if meta.get('shadow_known', True) else None,
        arrays['occlusion'],
        rock,
        parts,
    )
    return pair, truth


def _upside_down(pair: StereoPair, truth: GroundTruth) -> tuple[StereoPair, GroundTruth]:
    """Return images and truth mirrored top to bottom; disparities stay what they are."""
    calibration = pair.calibration
    turned = StereoPair(
        np.ascontiguousarray(pair.left[::-1]),
        np.ascontiguousarray(pair.right[::-1]),
        replace(calibration, cy=calibration.height - 1 - calibration.cy),
    )
    return turned, GroundTruth(
        truth.disparity[::-1],
        truth.depth[::-1],
        truth.valid[::-1],
        None if truth.shadow is None else truth.shadow[::-1],
        None if truth.occlusion is None else truth.occlusion[::-1],
        None if truth.rock is None else truth.rock[::-1],
        None if truth.parts is None else truth.parts[::-1],
    )


def _stratum_of(path: Path) -> str:
    return str(_read_meta(path).get('stratum', 'untagged'))


def _read_meta(path: Path) -> dict[str, Any]:
    """Return what a rendered pair says of itself."""
    text = str(load_arrays(path, 'pair', ('meta',))['meta'])
    try:
        meta = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'pair {path} has meta {text[:40]!r}, which is not JSON') from error
    return meta if isinstance(meta, dict) else {}
