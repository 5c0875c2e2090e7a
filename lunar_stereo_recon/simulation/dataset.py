"""Random rendered stereo pairs with exact ground truth; `lunar-stereo dataset` writes them.

Pair number i of a seed and split is always the same, so a stopped run continues where it was.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
import json
import multiprocessing
from pathlib import Path
import sys
from typing import Any

import cv2
import numpy as np
import torch

from lunar_stereo_recon import __version__
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_json
from lunar_stereo_recon.simulation.camera_faults import CameraFaults
from lunar_stereo_recon.simulation.dataset_forms import (
    remove_unfinished,
    write_pair_files,
    write_pair_index,
    write_scene_bag,
    write_view_folder,
)
from lunar_stereo_recon.simulation.renderer import rendering_device
from lunar_stereo_recon.simulation.sample import NO_FAULTS, render_sample, Sample
from lunar_stereo_recon.simulation.scene_drawing import (
    FRAME,
    sample_scene_config,
    sample_terrain_config,
    STRATA,
)
from lunar_stereo_recon.simulation.terrain import make_terrain, Terrain
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig

SPLITS = {'train': 1, 'calibration': 2, 'test': 3}
# Pairs that share a terrain: making one takes longer than rendering a pair on it. All of one
# group belong to one stratum, because the stratum also shapes the ground.
VIEWS_PER_TERRAIN = 8
# How the pairs are stored; see `dataset_forms`.
FORMS = {'pairs': write_pair_files, 'stereolunar': write_view_folder, 'bags': write_scene_bag}
# What is done when all pairs are there.
FINISH = {'stereolunar': write_pair_index, 'bags': remove_unfinished}
MANIFEST = 'dataset.json'


@dataclass(frozen=True)
class DatasetOptions:
    """Which pairs a data set holds, and how they are taken and stored.

    Attributes:
        seed, split: Which pairs; no terrain of one split occurs in another.
        size: Width and height of the windows; None renders whole frames.
        samples: Rays a pixel.
        form: One of FORMS.
        faults: What the cameras do wrong; raw images go into bags only.
        rocks: One of `terrain_config.ROCK_FORMS`. Places, sizes and views come from the same
            numbers; meshes are worn by chance too.
        device: What renders, 'cpu' or 'cuda'. The pairs are the same to a rounding error.
    """

    seed: int
    split: str = 'train'
    size: tuple[int, int] | None = (384, 256)
    samples: int = 2
    form: str = 'pairs'
    faults: CameraFaults = NO_FAULTS
    rocks: str = 'heightfield'
    device: str = 'cpu'

    def check(self) -> None:
        """Refuse options that cannot be met here.

        Raises:
            InputError: One is unknown, two exclude each other, or the device is not there or
                cannot render such rocks.
        """
        rendering_device(self.device, self.rocks)
        if self.form not in FORMS:
            raise InputError(f'form is {self.form!r}; one of {sorted(FORMS)} is needed')
        size = self.size
        if size and not (0 < size[0] <= FRAME[0] and 0 < size[1] <= FRAME[1]):
            raise InputError(f'window {size[0]}x{size[1]} does not fit in {FRAME[0]}x{FRAME[1]}')
        if self.faults.distortion and self.form != 'bags':
            raise InputError(f'form {self.form!r} holds no distortion; raw images go into bags')
        if self.faults.colour == 'bayer_rggb' and size is not None:
            raise InputError(
                'a window may begin at any colour filter; Bayer images need whole frames'
            )

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest says of them, in JSON's types."""
        return {
            'version': __version__,
            'form': self.form,
            'split': self.split,
            'seed': self.seed,
            'size': list(self.size) if self.size else None,
            'samples': self.samples,
            # As JSON gives them back.
            'faults': json.loads(json.dumps(asdict(self.faults))),
            'rocks': self.rocks,
        }


@dataclass(frozen=True)
class _Group:
    """Pairs of one terrain, written by one process."""

    out: Path
    number: int
    indices: list[int]
    options: DatasetOptions


def make_sample(options: DatasetOptions, index: int) -> Sample:
    """Return pair number `index`.

    The last terrain is kept: pairs of one terrain in turn cost less.
    """
    group = index // VIEWS_PER_TERRAIN
    stratum, terrain = _group_ground(options.seed, options.split, group, options.rocks)
    return _sample_on(terrain, stratum, options, index)


def write_dataset(
    out: Path, count: int, options: DatasetOptions, workers: int = 1
) -> Generator[int, None, None]:
    """Write pairs 0..count-1 with a manifest; existing pairs are kept.

    The manifest `dataset.json` holds the options, and seed and parameters of every terrain.

    Args:
        out: Folder, made if it is not there.
        count: Number of pairs, those that are there included.
        options: Which pairs, and how.
        workers: Processes; 0 or 1 works in this one. They share the device: making terrains,
            exposing and compressing stay work for the CPU, and more of it than rendering on a GPU.

    Yields:
        How many pairs were written, each time that those of one terrain are done.

    Raises:
        InputError: See `DatasetOptions.check`; the count does not fit, or the folder holds pairs
            of other options.
    """
    options.check()
    if count < 1:
        raise InputError(f'{count} pairs asked for; 1 or more are needed')
    if options.form == 'bags' and count % VIEWS_PER_TERRAIN:
        raise InputError(
            f'{count} pairs asked for; a bag holds the {VIEWS_PER_TERRAIN} pairs of one terrain, '
            'a multiple of which is needed'
        )
    _write_manifest(out, options.recorded(), count)
    yield from write_pairs(out, range(count), options, workers)
    if options.form in FINISH:
        FINISH[options.form](out)


def _write_manifest(out: Path, options: dict[str, Any], count: int) -> None:
    """Write or extend the manifest.

    Raises:
        InputError: The one that is there says other options, or cannot be read.
    """
    path = out / MANIFEST
    if path.exists():
        try:
            # Older manifests do not say what all rocks were then.
            there = {'rocks': 'heightfield', **json.loads(path.read_text(encoding='utf-8'))}
            differing = [name for name in options if there[name] != options[name]]
            count = max(count, there['count'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}: not a readable manifest of a data set: {error}') from error
        if differing:
            was, wanted = (
                ', '.join(f'{name} {source[name]}' for name in differing)
                for source in (there, options)
            )
            raise InputError(f'{out} holds pairs of {was}; {wanted} belongs in another folder')
    terrains = []
    for group in range(-(-count // VIEWS_PER_TERRAIN)):
        stratum, config = _group_config(options['seed'], options['split'], group, options['rocks'])
        last = min((group + 1) * VIEWS_PER_TERRAIN, count) - 1
        pairs = [group * VIEWS_PER_TERRAIN, last]
        terrains.append({'stratum': stratum, 'pairs': pairs, 'terrain': asdict(config)})
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {**options, 'count': count, 'terrains': terrains}, indent=1)


def write_pairs(
    out: Path, indices: Iterable[int], options: DatasetOptions, workers: int = 1
) -> Iterator[int]:
    """Write chosen pairs as `write_dataset` does, without a manifest."""
    out.mkdir(parents=True, exist_ok=True)
    wanted: dict[int, list[int]] = {}
    for index in indices:
        wanted.setdefault(index // VIEWS_PER_TERRAIN, []).append(index)
    groups = [_Group(out, number, chosen, options) for number, chosen in wanted.items()]
    if workers <= 1:
        yield from map(_write_group, groups)
        return
    with multiprocessing.get_context('spawn').Pool(workers, start_worker) as pool:
        yield from pool.imap_unordered(_write_group, groups)


def start_worker() -> None:
    """Keep a process to one core: there may be as many of them as cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _write_group(group: _Group) -> int:
    options = group.options
    stratum, config = _group_config(options.seed, options.split, group.number, options.rocks)
    # Made when the first pair is missing: it takes longer than the pair.
    ground = cache(lambda: make_terrain(config))
    rendered = cache(lambda: ground().to(rendering_device(options.device, options.rocks)))

    def make(index: int) -> Sample:
        return _sample_on(ground(), stratum, options, index, rendered())

    scene = f'{group.number:05d}_{stratum}'
    return FORMS[options.form](group.out, scene, group.indices, make)


def _group_config(
    seed: int, split: str, group: int, rocks: str = 'heightfield'
) -> tuple[str, TerrainConfig]:
    """Return stratum and ground of a group of pairs."""
    if split not in SPLITS:
        raise InputError(f'split is {split!r}; one of {sorted(SPLITS)} is needed')
    # The split is part of the seed: no terrain of one split occurs in another.
    rng = np.random.default_rng([SPLITS[split], seed, group, 0x6E0])
    stratum = STRATA[group % len(STRATA)]
    config = sample_terrain_config(stratum, rng)
    if rocks != 'heightfield':
        config = replace(config, rock_form=rocks, rock_wear=rng.uniform(0.0, 0.8))
    return stratum, config


@lru_cache(maxsize=1)
def _group_ground(seed: int, split: str, group: int, rocks: str) -> tuple[str, Terrain]:
    stratum, config = _group_config(seed, split, group, rocks)
    return stratum, make_terrain(config)


def _sample_on(
    terrain: Terrain,
    stratum: str,
    options: DatasetOptions,
    index: int,
    rendered: Terrain | None = None,
) -> Sample:
    seed, split = options.seed, options.split
    rng = np.random.default_rng([SPLITS[split], seed, index, 0x5A3])
    for _ in range(200):
        scene = sample_scene_config(stratum, rng)
        sample = render_sample(
            terrain, scene, rng, options.size, options.samples, options.faults, rendered
        )
        if sample is not None:
            return sample
    raise InputError(f'no usable view found for pair {index} of seed {seed}, split {split}')


if __name__ == '__main__':
    from lunar_stereo_recon.cli import main

    sys.exit(main(['dataset', *sys.argv[1:]]))
