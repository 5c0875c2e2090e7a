"""A terrain as triangles: one square patch per grid, the coarser ones with a hole for the finer.

The vertices are vertices of the terrain's own grids, so their heights are the renderer's. Where
two patches meet, the coarser one takes up every border vertex of the finer one: no cracks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.terrain import GridLevel, Terrain

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class TerrainPatch:
    """Triangles of one grid of the terrain; world frame (x east, y north, z up), metres.

    Attributes:
        level: Index of the terrain's grid, finest first.
        cell_m: Distance of neighbouring vertices.
        half_size_m: Half of the patch's side; it is centred on the origin.
        hole_m: Half of the side of the hole that the finer patches fill; 0 for none.
        vertices: (N, 3) float32.
        normals: (N, 3) float32, unit length, up; those of the mesh, not of the finer terrain.
        triangles: (M, 3) int32, counterclockwise seen from above.
    """

    level: int
    cell_m: float
    half_size_m: float
    hole_m: float
    vertices: FloatArray
    normals: FloatArray
    triangles: NDArray[np.int32]

    @property
    def texture_coordinates(self) -> FloatArray:
        """Return (N, 2) u, v: 0 at the west and south edge, 1 at the east and north edge."""
        return 0.5 + self.vertices[:, :2] / (2 * self.half_size_m)


def terrain_patches(terrain: Terrain, cells: int) -> list[TerrainPatch]:
    """Return the terrain as patches, finest first.

    Args:
        terrain: Nested heightfields.
        cells: Cells along a side of the two finest patches, a power of two; the others get half
            as many. A grid that has fewer cells is taken whole.

    Raises:
        InputError: `cells` is not a power of two of at least 4.
    """
    if cells < 4 or cells & (cells - 1):
        raise InputError(
            f'a terrain mesh of {cells} cells a side; a power of two from 4 is needed'
        )
    patches: list[TerrainPatch] = []
    inner: GridLevel | None = None
    for k, level in enumerate(terrain.levels):
        wanted = cells if k < 2 else cells // 2
        stride = _stride(level, inner, wanted)
        finer_cell = patches[-1].cell_m if patches else 0.0
        patches.append(_patch(k, level, inner, stride, finer_cell))
        inner = level
    return patches


def grid_heights(level: GridLevel) -> FloatArray:
    """Return (N + 1, N + 1) vertex heights of a grid, row is y, metres."""
    side = level.cells + 1
    return level.heights.cpu().numpy().reshape(side, side)


def mesh_slopes(level: GridLevel, cell_m: float) -> tuple[FloatArray, FloatArray]:
    """Return dz/dx and dz/dy, (n + 1, n + 1), of the grid thinned out to a cell size."""
    stride = round(cell_m / level.cell_m)
    heights = grid_heights(level)[::stride, ::stride]
    along_x, along_y = (np.asarray(np.gradient(heights, cell_m, axis=axis)) for axis in (1, 0))
    return along_x, along_y


def _stride(level: GridLevel, inner: GridLevel | None, wanted: int) -> int:
    """Return the largest thinning that leaves the hole's border on vertices."""
    stride = max(level.cells // wanted, 1)
    hole = 0 if inner is None else round(inner.half_size_m / level.cell_m)
    while hole % stride:
        stride //= 2
    return stride


def _patch(
    index: int, level: GridLevel, inner: GridLevel | None, stride: int, finer_cell_m: float
) -> TerrainPatch:
    cell = stride * level.cell_m
    side = level.cells // stride + 1
    slope_x, slope_y = mesh_slopes(level, cell)
    rows, columns = np.indices((side, side), dtype=np.int32)
    vertices, normals = _surface(columns, rows, level, stride, slope_x, slope_y)
    hole = 0 if inner is None else round(inner.half_size_m / cell)
    low, high = (side - 1) // 2 - hole, (side - 1) // 2 + hole
    cell_rows, cell_columns = np.indices((side - 1, side - 1))
    in_hole = _within(cell_rows, low, high) & _within(cell_columns, low, high)
    beside = np.zeros_like(in_hole)
    if hole:
        beside[low:high, [low - 1, high]] = True
        beside[[low - 1, high], low:high] = True
    at = cell_rows * side + cell_columns
    triangles = _cell_triangles(at[~in_hole & ~beside], side)
    if inner is not None:
        border = _Border(low, high, side, round(cell / finer_cell_m))
        extra, stitches = border.stitch(vertices, normals, inner)
        vertices = np.concatenate([vertices, extra[0]])
        normals = np.concatenate([normals, extra[1]])
        triangles = np.concatenate([triangles, stitches])
    vertices, normals, triangles = _without_unused(vertices, normals, triangles)
    hole_m = 0.0 if inner is None else inner.half_size_m
    return TerrainPatch(
        index, cell, level.half_size_m, hole_m, vertices, normals, _upward(vertices, triangles)
    )


def _surface(
    columns: NDArray[Any],
    rows: NDArray[Any],
    level: GridLevel,
    stride: int,
    slope_x: FloatArray,
    slope_y: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    cell = stride * level.cell_m
    heights = grid_heights(level)[::stride, ::stride]
    vertices = np.stack(
        [level.origin_m + columns * cell, level.origin_m + rows * cell, heights], axis=-1
    )
    normals = np.stack([-slope_x, -slope_y, np.ones_like(slope_x)], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return (
        vertices.reshape(-1, 3).astype(np.float32),
        normals.reshape(-1, 3).astype(np.float32),
    )


def _within(index: NDArray[Any], low: int, high: int) -> NDArray[np.bool_]:
    return (index >= low) & (index < high)


def _cell_triangles(at: NDArray[Any], side: int) -> NDArray[np.int32]:
    lower = np.stack([at, at + 1, at + side + 1], axis=-1)
    upper = np.stack([at, at + side + 1, at + side], axis=-1)
    return np.concatenate([lower, upper]).astype(np.int32)


@dataclass(frozen=True)
class _Border:
    """The cells around the hole, whose edge towards it is cut into the finer patch's edges.

    Attributes:
        low, high: First and last vertex of the hole's border, rows and columns alike.
        side: Vertices along a side of the patch.
        ratio: Edges of the finer patch along one edge of this one.
    """

    low: int
    high: int
    side: int
    ratio: int

    def stitch(
        self, vertices: FloatArray, normals: FloatArray, inner: GridLevel
    ) -> tuple[tuple[FloatArray, FloatArray], NDArray[np.int32]]:
        """Return the border's vertices and normals between this patch's, and the triangles."""
        count, triangles = len(vertices), []
        extra_vertices, extra_normals = [], []
        steps = np.arange(self.low, self.high)
        for fixed, outward in ((self.low, -1), (self.high, 1)):
            for along_row in (True, False):
                first = self._at(steps, fixed, along_row)
                second = self._at(steps + 1, fixed, along_row)
                far_first = self._at(steps, fixed + outward, along_row)
                far_second = self._at(steps + 1, fixed + outward, along_row)
                shape = (len(steps), self.ratio - 1)
                new = count + np.arange(shape[0] * shape[1]).reshape(shape)
                count += new.size
                between = _between(vertices, first, second, self.ratio)
                between[:, 2] = _heights_at(inner, between)
                extra_vertices.append(between)
                extra_normals.append(_between(normals, first, second, self.ratio))
                edge = np.column_stack([first, new, second])
                triangles.append(_fans(edge, far_first, far_second))
        return (
            (np.concatenate(extra_vertices), np.concatenate(extra_normals)),
            np.concatenate(triangles),
        )

    def _at(self, along: NDArray[Any], fixed: int, along_row: bool) -> NDArray[Any]:
        return fixed * self.side + along if along_row else along * self.side + fixed


def _between(
    values: FloatArray, first: NDArray[Any], second: NDArray[Any], ratio: int
) -> FloatArray:
    """Return (len(first) * (ratio - 1), 3) values evenly between pairs of vertices."""
    share = (np.arange(1, ratio) / ratio).astype(np.float32)[None, :, None]
    start, end = values[first][:, None], values[second][:, None]
    return (start + share * (end - start)).reshape(-1, 3).astype(np.float32)


def _heights_at(level: GridLevel, points: FloatArray) -> FloatArray:
    """Return the heights of a grid at points that are its vertices."""
    index = np.rint((points[:, :2] - level.origin_m) / level.cell_m).astype(np.int64)
    return grid_heights(level)[index[:, 1], index[:, 0]]


def _fans(
    edge: NDArray[Any], far_first: NDArray[Any], far_second: NDArray[Any]
) -> NDArray[np.int32]:
    """Return the triangles of cells whose one edge is cut into pieces.

    Args:
        edge: (n, ratio + 1) vertices along the cut edge of each cell.
        far_first, far_second: (n,) the two other corners, beside the edge's first and last.
    """
    ratio = edge.shape[1] - 1
    middle = ratio // 2
    triangles = [np.column_stack([edge[:, middle], far_second, far_first])]
    for i in range(ratio):
        apex = far_first if i < middle else far_second
        triangles.append(np.column_stack([edge[:, i], edge[:, i + 1], apex]))
    return np.concatenate(triangles).astype(np.int32)


def _without_unused(
    vertices: FloatArray, normals: FloatArray, triangles: NDArray[np.int32]
) -> tuple[FloatArray, FloatArray, NDArray[np.int32]]:
    used = np.zeros(len(vertices), bool)
    used[triangles] = True
    renumbered = np.cumsum(used, dtype=np.int32) - 1
    return vertices[used], normals[used], renumbered[triangles]


def _upward(vertices: FloatArray, triangles: NDArray[Any]) -> NDArray[np.int32]:
    """Return the triangles turned so that they are counterclockwise seen from above."""
    corners = vertices[triangles, :2].astype(np.float64)
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    down = one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0] < 0
    turned = triangles.copy()
    turned[down] = turned[down][:, ::-1]
    return turned.astype(np.int32)


def _triangle_heights(
    patch: TerrainPatch, x_m: NDArray[Any], y_m: NDArray[Any]
) -> NDArray[np.float64]:
    """Return heights by looking in the few triangles whose centre's cell is a point's cell."""
    corners = patch.vertices[patch.triangles].astype(np.float64)
    side = round(2 * patch.half_size_m / patch.cell_m)
    centre_cell = _cell_of(patch, corners[..., 0].mean(1), corners[..., 1].mean(1), side)
    order = np.argsort(centre_cell, kind='stable')
    starts = np.searchsorted(centre_cell[order], np.arange(side * side + 1))
    point_cell = _cell_of(patch, x_m, y_m, side)
    height = np.full(len(x_m), np.nan)
    for nth in range(int(np.diff(starts).max())):
        at = starts[point_cell] + nth
        there = at < starts[point_cell + 1]
        one, two, three = (corners[order[at[there]], i] for i in range(3))
        values, inside = _on_triangle(one, two, three, x_m[there], y_m[there])
        index = np.flatnonzero(there)[inside]
        height[index] = values[inside]
    return height


def _cell_of(
    patch: TerrainPatch, x_m: NDArray[Any], y_m: NDArray[Any], side: int
) -> NDArray[np.int64]:
    column = ((x_m + patch.half_size_m) / patch.cell_m).astype(np.int64).clip(0, side - 1)
    row = ((y_m + patch.half_size_m) / patch.cell_m).astype(np.int64).clip(0, side - 1)
    return row * side + column


def _on_triangle(
    one: NDArray[Any], two: NDArray[Any], three: NDArray[Any], x_m: NDArray[Any], y_m: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return heights of triangle planes at points, and which points lie on their triangle."""
    ax, ay = two[:, 0] - one[:, 0], two[:, 1] - one[:, 1]
    bx, by = three[:, 0] - one[:, 0], three[:, 1] - one[:, 1]
    px, py = x_m - one[:, 0], y_m - one[:, 1]
    area = ax * by - ay * bx
    second, third = (px * by - py * bx) / area, (ax * py - ay * px) / area
    height = one[:, 2] + second * (two[:, 2] - one[:, 2]) + third * (three[:, 2] - one[:, 2])
    # The slack, a thousandth of a cell, takes up the rounding of float32 vertices.
    slack = 1e-3
    return height, (second >= -slack) & (third >= -slack) & (second + third <= 1 + slack)


def height_differences(
    terrain: Terrain, patch: TerrainPatch, samples: int = 20000, seed: int = 0
) -> NDArray[np.float64]:
    """Return mesh minus height of the ground (metres) at random points of a patch, (n,)."""
    rng = np.random.default_rng(seed)
    half = patch.half_size_m
    x, y = rng.uniform(-half, half, (2, samples))
    outside_hole = np.maximum(np.abs(x), np.abs(y)) > patch.hole_m
    x, y = x[outside_hole], y[outside_hole]
    truth = terrain.ground_at(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    return _triangle_heights(patch, x, y) - truth.cpu().numpy()
