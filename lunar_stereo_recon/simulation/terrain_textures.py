"""Albedo and normal maps of a terrain patch: the detail that its triangles leave out.

Images are north up: the first row is the largest y. Normal maps are in tangent space with x to
the east and green to the north, the convention of Gazebo's and most other renderers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.simulation.terrain import Terrain
from lunar_stereo_recon.simulation.terrain_mesh import FloatArray, mesh_slopes, TerrainPatch

# Texture rows that are worked on at a time; it bounds the memory.
_BLOCK_ROWS = 256


def patch_textures(
    terrain: Terrain, patch: TerrainPatch, texels: int, reflectance: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the albedo map and the normal map of a patch.

    Args:
        terrain: The terrain that the patch belongs to.
        patch: One of its patches.
        texels: Side of both images.
        reflectance: Linear reflectance of soil whose relative albedo is 1, 0..1.

    Returns:
        (texels, texels, 3) sRGB albedo and (texels, texels, 3) normals, colours in RGB order.
    """
    level = terrain.levels[patch.level]
    side = level.cells + 1
    surface = level.surface.cpu().numpy().reshape(side, side, 4)
    centres = -patch.half_size_m + (np.arange(texels) + 0.5) * 2 * patch.half_size_m / texels
    fine = (centres - level.origin_m) / level.cell_m
    coarse = (centres + patch.half_size_m) / patch.cell_m
    mesh_x, mesh_y = mesh_slopes(level, patch.cell_m)
    # The periodic texture below the finest cell belongs to the ground near the rover alone.
    micro = None
    if patch.level == 0:
        pitch = 2 * patch.half_size_m / texels
        micro, micro_texel_m = _thinned(terrain.micro.cpu().numpy(), terrain.micro_texel_m, pitch)
    albedo = np.empty((texels, texels, 3), np.uint8)
    normals = np.empty((texels, texels, 3), np.uint8)
    for start in range(0, texels, _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, texels))
        slope_x, slope_y, relative = (
            _bilinear(surface[..., channel], fine[rows], fine) for channel in (1, 2, 3)
        )
        if micro is not None:
            detail = _periodic(micro, centres[rows], centres, micro_texel_m)
            slope_x, slope_y = slope_x + detail[..., 0], slope_y + detail[..., 1]
            relative = relative * detail[..., 2]
        base_x, base_y = (_bilinear(s, coarse[rows], coarse) for s in (mesh_x, mesh_y))
        normals[rows] = _encoded(_tangent_space(slope_x, slope_y, base_x, base_y))
        albedo[rows] = _srgb(reflectance * relative)[..., None]
    return albedo[::-1].copy(), normals[::-1].copy()


def _bilinear(grid: FloatArray, rows: NDArray[Any], columns: NDArray[Any]) -> FloatArray:
    """Return grid values at every pair of fractional row and column indices."""
    row = np.clip(rows.astype(np.int64), 0, grid.shape[0] - 2)
    column = np.clip(columns.astype(np.int64), 0, grid.shape[1] - 2)
    down = (rows - row).astype(np.float32)[:, None]
    across = (columns - column).astype(np.float32)[None, :]
    lines = grid[row] + down * (grid[row + 1] - grid[row])
    return lines[:, column] + across * (lines[:, column + 1] - lines[:, column])


def _thinned(texture: FloatArray, texel_m: float, pitch_m: float) -> tuple[FloatArray, float]:
    """Return a square texture averaged over blocks no wider than a pitch, and its texel size."""
    block = 1
    while 2 * block * texel_m <= pitch_m * 1.01 and len(texture) % (2 * block) == 0:
        block *= 2
    count = len(texture) // block
    blocks = texture.reshape(count, block, count, block, -1)
    return blocks.mean((1, 3)), block * texel_m


def _periodic(
    texture: FloatArray, y_m: NDArray[Any], x_m: NDArray[Any], texel_m: float
) -> NDArray[np.float32]:
    """Return a periodic texture at every pair of y and x, (len(y), len(x), channels)."""
    count = len(texture)
    row = np.floor(y_m / texel_m).astype(np.int64) % count
    column = np.floor(x_m / texel_m).astype(np.int64) % count
    return texture[row[:, None], column[None, :]]


def _tangent_space(
    slope_x: FloatArray, slope_y: FloatArray, base_x: FloatArray, base_y: FloatArray
) -> NDArray[np.float32]:
    """Return unit normals of the terrain in the frame of the mesh: tangent, bitangent, normal."""
    detail = _unit(np.stack([-slope_x, -slope_y, np.ones_like(slope_x)], axis=-1))
    normal = _unit(np.stack([-base_x, -base_y, np.ones_like(base_x)], axis=-1))
    tangent = _unit(np.stack([np.ones_like(base_x), np.zeros_like(base_x), base_x], axis=-1))
    bitangent = np.cross(normal, tangent)
    return np.stack([(detail * axis).sum(-1) for axis in (tangent, bitangent, normal)], axis=-1)


def _unit(vectors: FloatArray) -> FloatArray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _encoded(normals: FloatArray) -> NDArray[np.uint8]:
    # The third component is rebuilt from the other two, so that it must not be negative.
    normals[..., 2] = np.maximum(normals[..., 2], 0.0)
    return np.rint(127.5 * (normals + 1)).astype(np.uint8)


def _srgb(linear: FloatArray) -> NDArray[np.uint8]:
    """Return 8-bit sRGB values of linear reflectance."""
    value = np.clip(linear, 0.0, 1.0)
    curve = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(np.uint8)
