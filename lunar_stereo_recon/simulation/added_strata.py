"""Strata of the benchmark that data sets do not have: boulder fields, and the rover's own parts.

All rocks are meshes, which Embree traces on a CPU. Pair number i of a stratum, seed and split is
always the same.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
import multiprocessing
from pathlib import Path

import numpy as np

from lunar_stereo_recon import __version__
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_json
from lunar_stereo_recon.files.bounded import read_json
from lunar_stereo_recon.simulation.dataset import MANIFEST, SPLITS, start_worker
from lunar_stereo_recon.simulation.presets import PRESETS
from lunar_stereo_recon.simulation.rock_mesh import RockMeshes
from lunar_stereo_recon.simulation.rover_parts import sample_rover_parts
from lunar_stereo_recon.simulation.sample import render_sample, Sample
from lunar_stereo_recon.simulation.scene_drawing import (
    log_uniform,
    sample_rover,
    sample_scene_config,
    sample_terrain_config,
    SceneConfig,
)
from lunar_stereo_recon.simulation.terrain import make_terrain, Terrain
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig

# Their numbers are part of the seeds.
STRATA = {'boulders': 1, 'rover': 2}
VIEWS_PER_TERRAIN = 8
_TRIES = 200


@dataclass(frozen=True)
class _Group:
    """Pairs of one terrain (number and file of each), written by one process."""

    stratum: str
    seed: int
    split: str
    number: int
    wanted: list[tuple[int, Path]]
    samples: int


def write_stratum(
    paths: Sequence[Path],
    stratum: str,
    indices: Sequence[int],
    seed: int,
    split: str,
    workers: int = 1,
    samples: int = 2,
) -> Iterator[int]:
    """Write pairs, terrain by terrain; yield how many were written, as they come.

    Args:
        paths: Files to write, one for each index; their folder is made.
        stratum: One of STRATA.
        indices: Numbers of the pairs; eight in turn share a terrain.
        seed, split: As in `dataset`; no terrain of one split occurs in another.
        workers: Processes; 0 or 1 works in this one.
        samples: Rays a pixel.

    Raises:
        InputError: The stratum or the split is unknown, or meshes cannot be traced here.
    """
    _check(stratum, split)
    groups: dict[int, list[tuple[int, Path]]] = {}
    for index, path in zip(indices, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        groups.setdefault(index // VIEWS_PER_TERRAIN, []).append((index, path))
    jobs = [
        _Group(stratum, seed, split, number, wanted, samples) for number, wanted in groups.items()
    ]
    if workers <= 1:
        yield from map(_write_group, jobs)
        return
    with multiprocessing.get_context('spawn').Pool(workers, start_worker) as pool:
        yield from pool.imap_unordered(_write_group, jobs)


def _check(stratum: str, split: str) -> None:
    if stratum not in STRATA:
        raise InputError(f'stratum is {stratum!r}; one of {", ".join(STRATA)} is needed')
    if split not in SPLITS:
        raise InputError(f'split is {split!r}; one of {", ".join(SPLITS)} is needed')


def write_stratum_dataset(
    out: Path,
    count: int,
    stratum: str,
    seed: int,
    split: str = 'train',
    samples: int = 2,
    workers: int = 1,
) -> Generator[int, None, None]:
    """Write pairs 0..count-1 of a stratum, `NNNNNN.npz`, with a manifest; existing ones are kept.

    Yields:
        How many pairs were written, each time that those of one terrain are done.

    Raises:
        InputError: See `write_stratum`; the count is not positive, or the folder holds pairs of
            other options.
    """
    # Before anything is written.
    _check(stratum, split)
    if count < 1:
        raise InputError(f'{count} pairs asked for; 1 or more are needed')
    options = {'stratum': stratum, 'split': split, 'seed': seed, 'samples': samples}
    path, known = out / MANIFEST, 0
    if path.exists():
        try:
            there = read_json(path)
            was = {name: there[name] for name in options}
            known = int(there['count'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}: not a readable manifest of a data set: {error}') from error
        if was != options:
            raise InputError(f'{out} holds pairs of {was}; {options} belongs in another folder')
    missing = [n for n in range(count) if not (out / f'{n:06d}.npz').exists()]
    paths = [out / f'{n:06d}.npz' for n in missing]
    written = write_stratum(paths, stratum, missing, seed, split, workers, samples)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {'version': __version__, **options, 'count': max(count, known)})
    yield from written


def make_pair(
    terrain: Terrain, stratum: str, seed: int, split: str, index: int, samples: int = 2
) -> Sample:
    """Return one pair on its terrain.

    Raises:
        InputError: No view of this number is usable.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index, 0xADD, STRATA[stratum]])
    for _ in range(_TRIES):
        scene, parts = sample_scene(stratum, rng)
        sample = render_sample(terrain, scene, rng, None, samples, parts=parts)
        if sample is not None and (parts is None or _is_seen(sample)):
            return sample
    raise InputError(f'no usable view found for pair {index} of {stratum}, seed {seed}, {split}')


def sample_ground(stratum: str, rng: np.random.Generator) -> TerrainConfig:
    """Return random ground whose rocks are meshes."""
    if stratum == 'rover':
        ground = sample_terrain_config('nominal', rng)
    else:
        ground = replace(
            PRESETS['boulder_field'].ground,
            seed=int(rng.integers(0, 2**62)),
            roughness_m=log_uniform(rng, 0.02, 0.08),
            crater_density=rng.uniform(0.1, 0.6),
            rock_area=rng.uniform(0.08, 0.2),
            rock_max_m=log_uniform(rng, 0.8, 2.5),
            rock_brightness=rng.uniform(0.9, 1.5),
            albedo_noise=log_uniform(rng, 0.02, 0.12),
        )
    return replace(ground, rock_form='mesh', rock_wear=rng.uniform(0.0, 0.8))


def sample_scene(stratum: str, rng: np.random.Generator) -> tuple[SceneConfig, RockMeshes | None]:
    """Return camera, light and pose, and the parts of the rover that are in view."""
    if stratum == 'boulders':
        light = 'nominal' if rng.random() < 0.6 else 'lowsun'
        return replace(sample_scene_config(light, rng), stratum=stratum), None
    # With the sun behind, the rover's shadow lies in view.
    light = 'opposition' if rng.random() < 0.5 else 'nominal'
    scene = sample_scene_config(light, rng)
    scene = replace(
        scene,
        stratum=stratum,
        focal=rng.uniform(0.55, 0.9),
        height_m=rng.uniform(0.9, 2.0),
        pitch_deg=rng.uniform(-35.0, -15.0),
    )
    scene = replace(scene, rover=sample_rover(scene.height_m, rng))
    return scene, sample_rover_parts(scene.height_m, rng)


def _is_seen(sample: Sample) -> bool:
    """Return whether the parts are 1 to 40 % of the image."""
    share = 0.0 if sample.parts is None else float(sample.parts.mean())
    return 0.01 <= share <= 0.4


def _write_group(group: _Group) -> int:
    stratum, seed, split = group.stratum, group.seed, group.split
    rng = np.random.default_rng([SPLITS[split], seed, group.number, 0xADD0, STRATA[stratum]])
    terrain = make_terrain(sample_ground(stratum, rng))
    for index, path in group.wanted:
        make_pair(terrain, stratum, seed, split, index, group.samples).save(path)
    return len(group.wanted)
