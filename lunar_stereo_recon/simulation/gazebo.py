"""Writes a terrain as a Gazebo world: meshes, textures, SDF, and a description for launch files.

The world's frame is the renderer's (x east, y north, z up, metres), so that ground truth of one
holds in the other. Gazebo Harmonic is the target; the file is SDF 1.9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import atomic_file, write_json, write_text
from lunar_stereo_recon.files.results import write_png
from lunar_stereo_recon.simulation.collada import write_collada
from lunar_stereo_recon.simulation.gazebo_rover import (
    DESCRIPTION_FILE,
    DROP_M,
    START_HEIGHTS_FILE,
)
from lunar_stereo_recon.simulation.rock_mesh import RockMeshes
from lunar_stereo_recon.simulation.terrain import Terrain
from lunar_stereo_recon.simulation.terrain_mesh import (
    height_differences,
    terrain_patches,
    TerrainPatch,
)
from lunar_stereo_recon.simulation.terrain_textures import patch_textures

WORLD_NAME = 'lunar'
WORLD_FILE = 'world.sdf'
LUNAR_GRAVITY_MS2 = 1.62
# Gazebo's cameras have no exposure control. Soil is painted brighter than the Moon's 0.12 so that
# 8 bits hold its shades, and the sun's intensity is set as an exposure control would.
_SOIL_REFLECTANCE = 0.45
_GROUND_BRIGHTNESS = 0.22
_MAX_SUN_INTENSITY = 5.0
_ROCKS = 'rocks'
# Reach of the rover around its centre, where a good place to stand is looked for, and the reach
# and step of the table of heights to start from.
_FOOTPRINT_M = 0.6
_SEARCH_M = 4.0
_TABLE_REACH_M = 60.0
_TABLE_STEP_M = 0.25


@dataclass(frozen=True)
class WorldOptions:
    """How a terrain becomes a Gazebo world.

    Attributes:
        sun_elevation_deg: Height of the sun above the horizon, degrees.
        sun_azimuth_deg: Direction to the sun, counterclockwise from +x, degrees.
        cells: Cells along a side of the two finest patches, a power of two.
        texels: Side of the textures of the finest patch; the others get half as many.
    """

    sun_elevation_deg: float = 25.0
    sun_azimuth_deg: float = 120.0
    cells: int = 512
    texels: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.sun_elevation_deg <= 90:
            raise InputError(
                f'sun elevation is {self.sun_elevation_deg} degrees; more than 0 and at most 90 '
                'are needed'
            )
        if self.texels < 16:
            raise InputError(f'textures of {self.texels} texels; at least 16 are needed')

    def sun_direction(self) -> tuple[float, float, float]:
        """Return the unit vector towards the sun."""
        elevation = math.radians(self.sun_elevation_deg)
        azimuth = math.radians(self.sun_azimuth_deg)
        return (
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        )

    def sun_intensity(self) -> float:
        """Return the light's intensity at which level ground has a middle brightness."""
        level_ground = _SOIL_REFLECTANCE * math.sin(math.radians(self.sun_elevation_deg))
        return min(_GROUND_BRIGHTNESS / level_ground, _MAX_SUN_INTENSITY)


@dataclass(frozen=True)
class Spawn:
    """Where the rover starts: a point on the ground below it and its heading in the world."""

    x_m: float
    y_m: float
    z_m: float
    yaw_rad: float


def export_world(
    terrain: Terrain,
    folder: Path,
    options: WorldOptions | None = None,
    about: dict[str, Any] | None = None,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> Path:
    """Write a world that `gz sim` loads, and return the path of its SDF file.

    Args:
        terrain: The ground.
        folder: Folder to write to; made where it is missing.
        options: Sun and resolution.
        about: What the world came from (JSON types), for the description.
        progress: Called with what is written next, and the share of the work that is done.

    Raises:
        InputError: The folder cannot be written, or an option does not fit the terrain.
    """
    options = options or WorldOptions()
    patches = terrain_patches(terrain, options.cells)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, patch in enumerate(patches):
            progress(f'ground to {patch.half_size_m:g} m', number / len(patches))
            _write_patch(terrain, patch, folder, options)
        rocks = terrain.rocks
        if rocks is not None and len(rocks.triangles):
            progress(f'{len(rocks.triangles)} triangles of rocks', 1.0)
            # No texture: one colour, the mean of the rocks'.
            no_texture = np.zeros((len(rocks.vertices), 2), np.float32)
            write_collada(
                folder / f'{_ROCKS}.dae',
                rocks.vertices,
                rocks.normals,
                no_texture,
                rocks.triangles,
            )
        write_text(folder / WORLD_FILE, world_sdf(patches, options, rocks))
        axis, highest, _ = _ground_below(terrain, _TABLE_REACH_M, _TABLE_STEP_M)
        with atomic_file(folder / START_HEIGHTS_FILE) as file:
            np.savez_compressed(file, position_m=axis, highest_m=highest)
        description = _description(terrain, patches, options, about or {})
        # Last, because its presence says that the world is complete.
        write_json(folder / DESCRIPTION_FILE, description)
    except OSError as error:
        raise InputError(f'cannot write the world to {folder}: {error.strerror}') from error
    return folder / WORLD_FILE


def find_spawn(terrain: Terrain, yaw_rad: float = 0.0) -> Spawn:
    """Return the most level place near the terrain's centre to put the rover down."""
    axis, highest, lowest = _ground_below(terrain, _SEARCH_M, 0.1)
    row, column = np.unravel_index(np.argmin(highest - lowest), highest.shape)
    return Spawn(
        round(float(axis[column]), 3),
        round(float(axis[row]), 3),
        round(float(highest[row, column]) + DROP_M, 3),
        yaw_rad,
    )


def _ground_below(
    terrain: Terrain, reach_m: float, step_m: float
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    """Return positions along x and y, and the extremes of the ground under a rover there.

    Args:
        terrain: The ground.
        reach_m: Largest |x| and |y| of the positions; the terrain's edge limits it.
        step_m: Distance of neighbouring positions.

    Returns:
        (n,) positions, (n, n) highest and (n, n) lowest height, row is y, metres.
    """
    margin = math.ceil(_FOOTPRINT_M / step_m)
    limit = math.floor(terrain.levels[-1].half_size_m / step_m)
    count = min(math.floor(reach_m / step_m) + margin, limit)
    if count <= margin:
        raise InputError(
            f'the terrain reaches {terrain.levels[-1].half_size_m:g} m from its centre; a rover '
            f'needs more than {_FOOTPRINT_M + step_m:g} m'
        )
    axis = np.linspace(-count * step_m, count * step_m, 2 * count + 1)
    y, x = np.meshgrid(axis, axis, indexing='ij')
    points = (torch.from_numpy(v.reshape(-1)).float() for v in (x, y))
    heights = terrain.height_at(*points).cpu().numpy().reshape(x.shape)
    footprint = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    inside = slice(margin, len(axis) - margin)
    highest, lowest = cv2.dilate(heights, footprint), cv2.erode(heights, footprint)
    return axis[inside], highest[inside, inside], lowest[inside, inside]


def world_sdf(
    patches: list[TerrainPatch], options: WorldOptions, rocks: RockMeshes | None = None
) -> str:
    """Return the text of the SDF world: sun, black sky, lunar gravity, ground and rocks."""
    to_sun = options.sun_direction()
    direction = ' '.join(f'{-value:.6f}' for value in to_sun)
    intensity = options.sun_intensity()
    parts = [_patch_sdf(patch) for patch in patches]
    if rocks is not None and len(rocks.triangles):
        parts.append(_rocks_sdf(rocks))
    ground = '\n'.join(parts)
    return f"""<?xml version="1.0"?>
<sdf version="1.9">
  <world name="{WORLD_NAME}">
    <gravity>0 0 -{LUNAR_GRAVITY_MS2}</gravity>
    <magnetic_field>0 0 0</magnetic_field>
    <physics name="lunar" type="ode">
      <max_step_size>0.004</max_step_size>
      <real_time_factor>1.0</real_time_factor>
    </physics>
    <plugin filename="gz-sim-physics-system" name="gz::sim::systems::Physics"/>
    <plugin filename="gz-sim-user-commands-system" name="gz::sim::systems::UserCommands"/>
    <plugin filename="gz-sim-scene-broadcaster-system" name="gz::sim::systems::SceneBroadcaster"/>
    <plugin filename="gz-sim-imu-system" name="gz::sim::systems::Imu"/>
    <plugin filename="gz-sim-sensors-system" name="gz::sim::systems::Sensors">
      <render_engine>ogre2</render_engine>
      <background_color>0 0 0 1</background_color>
      <ambient_light>0 0 0 1</ambient_light>
    </plugin>
    <scene>
      <ambient>0 0 0 1</ambient>
      <background>0 0 0 1</background>
      <shadows>true</shadows>
      <grid>false</grid>
      <origin_visual>false</origin_visual>
    </scene>
    <light name="sun" type="directional">
      <cast_shadows>true</cast_shadows>
      <pose>0 0 100 0 0 0</pose>
      <diffuse>1 1 1 1</diffuse>
      <specular>0 0 0 1</specular>
      <intensity>{intensity:.4f}</intensity>
      <direction>{direction}</direction>
    </light>
    <model name="terrain">
      <static>true</static>
      <link name="ground">
{ground}
      </link>
    </model>
  </world>
</sdf>
"""


def _patch_sdf(patch: TerrainPatch) -> str:
    name = _patch_name(patch)
    return _mesh_sdf(
        name,
        f"""
            <diffuse>1 1 1 1</diffuse>
            <specular>0 0 0 1</specular>
            <pbr>
              <metal>
                <albedo_map>{name}_albedo.png</albedo_map>
                <normal_map>{name}_normal.png</normal_map>
                <roughness>1.0</roughness>
                <metalness>0.0</metalness>
              </metal>
            </pbr>""",
    )


def _rocks_sdf(rocks: RockMeshes) -> str:
    grey = min(_SOIL_REFLECTANCE * float(rocks.albedo.mean()), 1.0)
    return _mesh_sdf(
        _ROCKS,
        f"""
            <diffuse>{grey:.4f} {grey:.4f} {grey:.4f} 1</diffuse>
            <specular>0 0 0 1</specular>
            <pbr>
              <metal>
                <roughness>1.0</roughness>
                <metalness>0.0</metalness>
              </metal>
            </pbr>""",
    )


def _mesh_sdf(name: str, material: str) -> str:
    return f"""        <collision name="{name}_collision">
          <geometry>
            <mesh>
              <uri>{name}.dae</uri>
            </mesh>
          </geometry>
          <surface>
            <friction>
              <ode>
                <mu>0.8</mu>
                <mu2>0.8</mu2>
              </ode>
            </friction>
          </surface>
        </collision>
        <visual name="{name}_visual">
          <geometry>
            <mesh>
              <uri>{name}.dae</uri>
            </mesh>
          </geometry>
          <material>{material}
          </material>
        </visual>"""


def _patch_name(patch: TerrainPatch) -> str:
    return f'terrain_{patch.level}'


def _write_patch(
    terrain: Terrain, patch: TerrainPatch, folder: Path, options: WorldOptions
) -> None:
    name = _patch_name(patch)
    write_collada(
        folder / f'{name}.dae',
        patch.vertices,
        patch.normals,
        patch.texture_coordinates,
        patch.triangles,
    )
    texels = options.texels if patch.level == 0 else options.texels // 2
    albedo, normals = patch_textures(terrain, patch, texels, _SOIL_REFLECTANCE)
    for kind, image in (('albedo', albedo), ('normal', normals)):
        path = folder / f'{name}_{kind}.png'
        write_png(path, image)


def _description(
    terrain: Terrain, patches: list[TerrainPatch], options: WorldOptions, about: dict[str, Any]
) -> dict[str, Any]:
    """Return what a launch file or a user wants to know about the world (JSON types)."""
    spawn = find_spawn(terrain)
    return {
        'world': WORLD_FILE,
        'name': WORLD_NAME,
        **about,
        'gravity_ms2': LUNAR_GRAVITY_MS2,
        'sun_elevation_deg': options.sun_elevation_deg,
        'sun_azimuth_deg': options.sun_azimuth_deg,
        'spawn': {'x': spawn.x_m, 'y': spawn.y_m, 'z': spawn.z_m, 'yaw': spawn.yaw_rad},
        'rock_triangles': 0 if terrain.rocks is None else len(terrain.rocks.triangles),
        'patches': [_patch_description(terrain, patch) for patch in patches],
    }


def _patch_description(terrain: Terrain, patch: TerrainPatch) -> dict[str, Any]:
    differences = np.abs(height_differences(terrain, patch))
    return {
        'mesh': f'{_patch_name(patch)}.dae',
        'half_size_m': patch.half_size_m,
        'cell_m': patch.cell_m,
        'triangles': len(patch.triangles),
        'height_difference_m': {
            'median': round(float(np.median(differences)), 5),
            'p99': round(float(np.percentile(differences, 99)), 5),
            'max': round(float(differences.max()), 5),
        },
    }
