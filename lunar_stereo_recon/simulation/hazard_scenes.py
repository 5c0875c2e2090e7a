"""Rendered pairs with the whole true ground around the rover, seen or not, to grade hazards on.

Every kind of ground in `presets`, its rocks as meshes, under its typical sun and under a low one.
Each pair is a file; those that are there are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
import itertools
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import atomic_file
from lunar_stereo_recon.geometry.rotation import rotation_from_rpy
from lunar_stereo_recon.simulation.hazard_ground import (
    fine_places,
    FINE_SHAPE,
    LOW_SUN_DEG,
    scene_file,
)
from lunar_stereo_recon.simulation.presets import PRESETS
from lunar_stereo_recon.simulation.scene import Lighting
from lunar_stereo_recon.simulation.terrain import make_terrain, Terrain
from lunar_stereo_recon.simulation.traverse import (
    check_pose,
    demo_traverse,
    render_frame,
    RoverPose,
    TraverseConfig,
    TraverseFrame,
)

# No terrain of a data set has it.
SEED = 7_210_000
# Azimuths of the two suns, counterclockwise from the rover's heading, degrees.
SUN_AZIMUTHS_DEG = (115.0, 150.0)
FARTHEST_START_M = 6.0
TRIES = 50


def _scenes(per_sun: int) -> list[tuple[str, bool, int]]:
    """Return preset, whether the sun is low, and number of all pairs."""
    return list(itertools.product(PRESETS, (False, True), range(per_sun)))


def scene_files(folder: Path, per_sun: int) -> list[Path]:
    """Return the files of all pairs, whether they are there yet or not."""
    return [scene_file(folder, *scene) for scene in _scenes(per_sun)]


def missing_scenes(folder: Path, per_sun: int) -> list[tuple[str, bool, int]]:
    """Return preset, whether the sun is low, and number of the pairs that are not there yet."""
    return [s for s in _scenes(per_sun) if not scene_file(folder, *s).exists()]


def render_scenes(folder: Path, wanted: Sequence[tuple[str, bool, int]]) -> Iterator[Path]:
    """Render pairs and yield their files, as they come."""
    folder.mkdir(parents=True, exist_ok=True)
    for preset in dict.fromkeys(name for name, _, _ in wanted):
        site = PRESETS[preset]
        ground = replace(site.terrain_config(SEED), rock_form='mesh')
        terrain = make_terrain(ground)
        for _, low_sun, number in (each for each in wanted if each[0] == preset):
            pose = _pose(preset, number, terrain)
            elevation_deg = LOW_SUN_DEG if low_sun else site.sun_elevation_deg
            azimuth_deg = math.degrees(pose.heading_rad) + SUN_AZIMUTHS_DEG[low_sun]
            config = replace(
                demo_traverse(SEED),
                terrain=ground,
                lighting=Lighting(elevation_deg, azimuth_deg, ambient=0.004, bounce=0.004),
                samples=1,
                speed_m_s=0.0,
                turn_deg_s=0.0,
            )
            frame, _ = render_frame(config, terrain, pose, 0.0, number)
            path = scene_file(folder, preset, low_sun, number)
            _write(path, config, terrain, frame)
            yield path


def _pose(preset: str, number: int, terrain: Terrain) -> RoverPose:
    """Return a random place on the ground from which the cameras see something.

    Raises:
        InputError: None was found.
    """
    rng = np.random.default_rng([SEED, list(PRESETS).index(preset), number])
    config = demo_traverse(SEED)
    for _ in range(TRIES):
        x_m, y_m = rng.uniform(-FARTHEST_START_M, FARTHEST_START_M, 2)
        pose = RoverPose(0.0, float(x_m), float(y_m), float(rng.uniform(-math.pi, math.pi)))
        try:
            check_pose(config, terrain, pose)
        except InputError:
            continue  # a camera in a rock
        return pose
    raise InputError(f'no place for a rover on the ground {preset!r} of seed {SEED}')


def _write(path: Path, config: TraverseConfig, terrain: Terrain, frame: TraverseFrame) -> None:
    calibration = config.rig.calibration
    forward = frame.rotation[:, 2]
    yaw = math.atan2(forward[1], forward[0])
    map_from_level = rotation_from_rpy(0.0, 0.0, yaw)
    with atomic_file(path) as file:
        np.savez_compressed(
            file,
            left=frame.left,
            right=frame.right,
            depth=frame.depth,
            shadow=frame.shadow,
            level_from_optical=map_from_level.T @ frame.rotation,
            ground=_ground(terrain, frame.position_m, map_from_level),
            intrinsics=np.array(
                [
                    [calibration.fx, 0.0, calibration.cx],
                    [0.0, calibration.fy, calibration.cy],
                    [0.0, 0.0, 1.0],
                ]
            ),
            baseline_m=np.float64(calibration.baseline_m),
        )


def _ground(
    terrain: Terrain, position_m: NDArray[np.float64], map_from_level: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the true heights of `FINE_SHAPE`, metres above the camera."""
    places = fine_places()
    level = np.column_stack([places, np.zeros(len(places))])
    x, y, _ = (level @ map_from_level.T + position_m).T
    height = terrain.height_at(
        torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))
    )
    relative = height.numpy().astype(np.float64) - position_m[2]
    return relative.reshape(FINE_SHAPE).astype(np.float32)
