"""What `lunar-stereo bench --hazards` does: the hazard grid against the true ground."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.benchmark.hazards import (
    Cells,
    graded_cells,
    ground_figures,
    hazard_tables,
    HazardScene,
    load_scene,
    step_figures,
    STEPS_M,
    together,
    VERSION,
)
from lunar_stereo_recon.benchmark.methods import FILL, filled, load_estimator
from lunar_stereo_recon.benchmark.pairs import default_cache
from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_json, write_text
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from lunar_stereo_recon.geometry.hazard import measured_points, MeasuredPoints, plainly_seen
from lunar_stereo_recon.pipeline import StereoReconstructor

# Pairs of each kind of ground under each sun.
PAIRS_PER_SUN = 2
STUDENT, RIVAL = 'student', 'SGBM 3WAY'


def run_hazards(args: argparse.Namespace, setting: dict[str, Any]) -> None:
    """Print the tables; write hazards.md and hazards.json.

    Args:
        args: Of the command: `cache`, `pairs`, `model`, `backend`, `threads`, `out`.
        setting: What the figures depend on; goes with them.
    """
    scenes = [load_scene(path) for path in _files(args)]
    student = StereoReconstructor(load_backend(args.backend, args.model, threads=args.threads))
    rival = load_estimator(RIVAL, None, args.threads)
    graded: dict[str, dict[str, list[Cells]]] = {STUDENT: {}, RIVAL + FILL: {}}
    for scene in tqdm(scenes, unit='pair'):
        student.reset_rows()
        student.match(scene.pair)  # tells how the rows of this rig are aligned
        found = {
            STUDENT: measured_points(student.reconstruct(scene.pair)),
            RIVAL + FILL: _points(scene, filled(rival(scene.pair)).disparity),
        }
        for method, cloud in found.items():
            cells = graded_cells(scene, cloud.points, cloud.plain)
            graded[method].setdefault(scene.group, []).append(cells)
    groups = {method: {g: together(c) for g, c in of.items()} for method, of in graded.items()}
    everything = {method: together(list(of.values())) for method, of in groups.items()}
    report = f'# Hazards: {len(scenes)} pairs\n\n{hazard_tables(everything)}\n'
    print(report)
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / 'hazards.md', report)
    document = {
        'setting': setting,
        'overall': {method: _document(cells) for method, cells in everything.items()},
        'groups': {
            method: {group: _document(cells) for group, cells in of.items()}
            for method, of in groups.items()
        },
    }
    write_json(args.out / 'hazards.json', document, indent=1)
    print(f'Written to {args.out}: hazards.md, hazards.json.')


def _points(scene: HazardScene, disparity: FloatImage) -> MeasuredPoints:
    """Return the points of every pixel with a disparity."""
    positive = np.where(disparity > 0, disparity, np.float32(np.nan))
    calibration = scene.pair.calibration
    points = points_from_depth(depth_from_disparity(positive, calibration), calibration)
    kept = np.flatnonzero(disparity > 0)
    return MeasuredPoints(points.reshape(-1, 3).take(kept, axis=0), plainly_seen(positive, kept))


def _document(cells: Cells) -> dict[str, Any]:
    return {
        'steps': {f'{step:g} m': step_figures(cells, step) for step in STEPS_M},
        'ground': ground_figures(cells),
    }


def _files(args: argparse.Namespace) -> list[Path]:
    """Return the files of the pairs, rendered where they have to be.

    Raises:
        InputError: What renders is not installed.
    """
    folder = (args.cache or default_cache()) / f'hazards_v{VERSION}'
    per_sun = args.pairs or PAIRS_PER_SUN
    try:
        from lunar_stereo_recon.simulation import hazard_scenes
    except ModuleNotFoundError as error:
        raise InputError(
            f'the pairs have to be rendered, which needs the extra [sim] ({error.name} is not '
            'installed)'
        ) from error
    missing = hazard_scenes.missing_scenes(folder, per_sun)
    with tqdm(total=len(missing), desc='rendering', unit='pair', disable=not missing) as bar:
        for _ in hazard_scenes.render_scenes(folder, missing):
            bar.update()
    return hazard_scenes.scene_files(folder, per_sun)
