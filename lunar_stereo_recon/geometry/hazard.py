"""Where a rover must not drive: slope and step hazards of a cloud, on a level grid.

Each cell gets the tilt of the plane through its surroundings, as large as the rover stands on,
and the height of the largest step beside it; after Goldberg, Maimone and Matthies, "Stereo vision
and rover navigation software for planetary exploration", 2002. The step is measured against the
ground's own slope, so that a hill is no step. That slope is taken from the window around the cell
or, where another one nearby is clearly smoother, from that (as in Kuwahara's filter): a window
astride a ledge or with a rock in it takes no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError

# 99 is left out: Nav2 takes it for a cell in which the middle of the rover must not stand.
UNKNOWN, MOST_DRIVABLE, LETHAL = -1, 98, 100
# Cells are numbered with 16 bits, so that they and the heights fit in 32 bits for sorting.
MAX_CELLS = 1 << 16
# Heights are sorted in steps of a millimetre, within 32 m above and below the middle.
HEIGHT_STEP_M = 1e-3
HEIGHT_LEVELS = 1 << 16
# A step reaches from the lowest to the highest twentieth of the points: single ones may be wrong.
TAIL = 0.05
# Steps come out lower than they are: matching rounds edges off, and the tails are left out. They
# are marked from this share of the clearance.
MARKED_FROM = 0.9
# Edge of the windows that the ground's slope is taken from, and how far from the cell they may be,
# cells. Another window must have less than this share of the variance, and of a centimetre's more.
GROUND_WINDOW = 5
GROUND_DISTANCES = (0, 2, 4)
CLEARLY_SMOOTHER = 0.5
SMOOTH_M = 0.01
# A plane through the cells of a window: as many are needed, and so wide (variance, cells²).
MIN_CELLS = 5
MIN_SPREAD = 0.25

Grid = NDArray[np.floating]
# Rows and columns of a part of a grid.
Part = tuple[slice, slice]


@dataclass(frozen=True)
class HazardOptions:
    """What the rover can do.

    Attributes:
        clearance_m: Steps of this height cannot be driven over, metres; they are marked from
            `MARKED_FROM` of it.
        max_slope_deg: Slopes of this angle cannot be driven, degrees.
        footprint_m: Edge of the square over which slope is taken, about the rover's size, metres.
        min_points: A cell with fewer is unknown.

    Raises:
        InputError: A value is not positive, or the slope is not below 90 degrees.
    """

    clearance_m: float = 0.3
    max_slope_deg: float = 20.0
    footprint_m: float = 1.0
    min_points: int = 3

    def __post_init__(self) -> None:
        for name in ('clearance_m', 'max_slope_deg', 'footprint_m', 'min_points'):
            if not getattr(self, name) > 0:
                raise InputError(f'hazard {name} is {getattr(self, name)}; it must be positive')
        if not self.max_slope_deg < 90:
            raise InputError(f'hazard max_slope_deg is {self.max_slope_deg}; below 90 is needed')


@dataclass(frozen=True)
class GridLayout:
    """Where the cells are: columns along x, rows along y.

    Attributes:
        x_m, y_m: Corner of the first cell, metres.
        columns, rows: Number of cells.
        cell_m: Edge of a cell, metres.

    Raises:
        InputError: There is no cell, or there are more than `MAX_CELLS`.
    """

    x_m: float
    y_m: float
    columns: int
    rows: int
    cell_m: float

    def __post_init__(self) -> None:
        if not self.cell_m > 0 or not 0 < self.columns * self.rows <= MAX_CELLS:
            raise InputError(
                f'hazard grid has {self.columns}x{self.rows} cells of {self.cell_m:g} m; between '
                f'1 and {MAX_CELLS} of a positive size are needed: take larger ones, or a '
                'shorter range'
            )


@dataclass(frozen=True)
class HazardMap:
    """Slope and steps of the cells, (rows, columns) each.

    Attributes:
        slope_deg: float32, tilt of the footprint's plane; NaN unknown.
        step_m: float32, largest step within a cell's distance; NaN unknown. Where the ground's
            slope is not known, against level ground.
        hazard: int8, 0 flat to 98 just drivable, 100 not; -1 unknown. Where the slope is not
            known (a wall has no ground beside it), 100 if no drivable slope explains the step.
        ground_m: Median height of the known cells; NaN where there is none.
    """

    slope_deg: NDArray[np.float32]
    step_m: NDArray[np.float32]
    hazard: NDArray[np.int8]
    ground_m: float


def hazard_map(
    points: NDArray[np.floating], layout: GridLayout, options: HazardOptions = HazardOptions()
) -> HazardMap:
    """Return the hazards of a cloud.

    Args:
        points: (N, 3), metres, z against gravity. Those outside of the grid, and NaN, are left
            out; so should those be whose depth is doubtful.
        layout: The grid.
        options: What the rover can do.
    """
    cells, x, y, z = _inside(points, layout)
    count = np.bincount(cells, minlength=layout.columns * layout.rows)
    known = count >= max(1, options.min_points)
    mean_x, mean_y, mean_z = (_means(cells, values, count) for values in (x, y, z))
    shape = (layout.rows, layout.columns)
    known_grid = known.reshape(shape)
    grid_x, grid_y, grid_z = (
        np.where(known, mean, 0.0).reshape(shape) for mean in (mean_x, mean_y, mean_z)
    )
    slope_deg = _footprint_slope_deg(known_grid, grid_x, grid_y, grid_z, layout.cell_m, options)
    planes = _planes(known_grid, grid_x, grid_y, grid_z, GROUND_WINDOW, layout.cell_m)
    ground_x, ground_y = _ground_slopes(planes, planes.variance(grid_z, GROUND_WINDOW))
    low, high = _height_ranges(
        cells,
        z
        - ground_x.reshape(-1)[cells] * (x - mean_x[cells])
        - ground_y.reshape(-1)[cells] * (y - mean_y[cells]),
        count,
    )
    # Means of a cell's points lie anywhere in it.
    rises = (
        (
            here,
            there,
            ground_x[here] * (grid_x[there] - grid_x[here])
            + ground_y[here] * (grid_y[there] - grid_y[here]),
        )
        for here, there, _, _ in _around(shape)
    )
    step_m = _steps(known_grid, low.reshape(shape), high.reshape(shape), rises)
    return HazardMap(
        slope_deg.astype(np.float32),
        step_m.astype(np.float32),
        hazard_values(slope_deg, step_m, layout.cell_m, options),
        float(np.median(mean_z[known])) if known.any() else math.nan,
    )


def hazards_of_heights(
    height: NDArray[np.floating],
    scatter: NDArray[np.floating],
    cell_m: float,
    options: HazardOptions = HazardOptions(),
) -> tuple[HazardMap, NDArray[np.float32]]:
    """Return the hazards of an elevation map, and how rough its ground is.

    Args:
        height: (rows, columns) metres, mean of each cell; NaN unknown. Columns run along x.
        scatter: (rows, columns) square metres, variance of the heights within a cell; 0 where it
            is not known.
        cell_m: Edge of a cell, metres.
        options: What the rover can do.

    Returns:
        The hazards, and (rows, columns) float32, metres: how far heights depart from the plane
        of the surroundings, root mean square; NaN unknown.
    """
    known = np.isfinite(height)
    middle = float(np.median(height[known])) if known.any() else math.nan
    part = _known_part(known)
    slope_deg, step_m, values, roughness = _hazards_of_part(
        height, scatter, known, middle, part, cell_m, options
    )

    def whole(values: NDArray[Any], unknown: float) -> NDArray[Any]:
        grid = np.full(height.shape, unknown, values.dtype)
        grid[part] = values
        return grid

    hazard = HazardMap(
        whole(slope_deg, math.nan), whole(step_m, math.nan), whole(values, UNKNOWN), middle
    )
    return hazard, whole(roughness, math.nan)


def _known_part(known: NDArray[np.bool_]) -> Part:
    """Return the rows and columns around the known cells; of a drive that is half of the map.

    With as many unknown cells around as the hazards of known ones look at.
    """
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return slice(0, 1), slice(0, 1)
    margin = GROUND_DISTANCES[-1]
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + 1 + margin),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + 1 + margin),
    )


def _hazards_of_part(
    height: NDArray[np.floating],
    scatter: NDArray[np.floating],
    known: NDArray[np.bool_],
    middle: float,
    part: Part,
    cell_m: float,
    options: HazardOptions,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int8], NDArray[np.float32]]:
    """Return slope, step, hazard and roughness of a part of the map that has all known cells."""
    # Single precision takes half the time; about the middle of the map it is precise enough.
    along_y, along_x = (
        cell_m * (np.arange(count, dtype=np.float32) - np.float32(0.5 * count))[cells]
        for count, cells in zip(height.shape, part, strict=True)
    )
    height, scatter, known = height[part], scatter[part], known[part]
    zero = np.float32(0)
    x, y = np.where(known, along_x[None, :], zero), np.where(known, along_y[:, None], zero)
    z = np.where(known, height - middle, zero).astype(np.float32)
    slope_deg = _footprint_slope_deg(known, x, y, z, cell_m, options)
    planes = _planes(known, x, y, z, GROUND_WINDOW, cell_m)
    variance = planes.variance(z, GROUND_WINDOW)
    ground_x, ground_y = _ground_slopes(planes, variance)
    # What the ground's own slope does within a cell is no step: uniform over the cell's edge.
    own = np.maximum(scatter - (ground_x**2 + ground_y**2) * np.float32(cell_m**2 / 12), zero)
    half_step = np.sqrt(np.where(known, own, zero))
    # Heights stand in the middles of their cells: the ground rises by the same for a cell's edge.
    flat = np.zeros_like(ground_x)
    along, across = (
        (flat, slope * np.float32(cell_m), slope * np.float32(-cell_m))
        for slope in (ground_x, ground_y)
    )
    rises = (
        (here, there, along[right][here] + across[down][here])
        for here, there, down, right in _around(known.shape)
    )
    step_m = _steps(known, z - half_step, z + half_step, rises)
    roughness = np.sqrt(np.where(known, variance + own, np.float32(np.nan)))
    return (
        slope_deg.astype(np.float32),
        step_m.astype(np.float32),
        hazard_values(slope_deg, step_m, cell_m, options),
        roughness.astype(np.float32),
    )


def _inside(
    points: NDArray[np.floating], layout: GridLayout
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return cell, x, y, z of the points on the grid; x and y from the grid's first corner."""
    x = points[:, 0] - layout.x_m
    y = points[:, 1] - layout.y_m
    column, row = np.floor(x / layout.cell_m), np.floor(y / layout.cell_m)
    # Comparisons with NaN are False: invalid points drop out here.
    inside = (column >= 0) & (column < layout.columns) & (row >= 0) & (row < layout.rows)
    inside &= np.isfinite(points[:, 2])
    kept = np.flatnonzero(inside)
    cells = (row.take(kept) * layout.columns + column.take(kept)).astype(np.int64)
    return cells, x.take(kept), y.take(kept), points[:, 2].take(kept)


def _means(cells: NDArray[np.int64], values: NDArray[Any], count: NDArray[np.int64]) -> Grid:
    """Return the mean of the values of each cell; of an empty one something finite."""
    return np.bincount(cells, values, minlength=len(count)) / np.maximum(count, 1)


@dataclass(frozen=True)
class _Planes:
    """Least-squares planes of the windows around all cells; NaN where there are too few cells.

    Attributes:
        along_x, along_y: Their slopes.
        count: Known cells of each window, and at least 1.
        mean_z, xz, yz: Mean of the heights, and their covariances with the places.
    """

    along_x: Grid
    along_y: Grid
    count: Grid
    mean_z: Grid
    xz: Grid
    yz: Grid

    def variance(self, z: Grid, window: int) -> Grid:
        """Return that of the heights about the planes.

        Args:
            z: Heights that the planes were fitted to.
            window: Edge of the windows that they were fitted in.
        """
        zz = _summed(z * z, window) / self.count - self.mean_z * self.mean_z
        rest = zz - self.along_x * self.xz - self.along_y * self.yz
        # Three numbers are fitted; rounding may leave a plane's variance below zero.
        return np.maximum(rest, 0.0) * self.count / np.maximum(self.count - 3, 1)


def _summed(values: Grid, window: int) -> Grid:
    """Return the sum over the square window around each cell."""
    return cv2.boxFilter(
        values, -1, (window, window), normalize=False, borderType=cv2.BORDER_CONSTANT
    )


def _planes(
    known: NDArray[np.bool_], x: Grid, y: Grid, z: Grid, window: int, cell_m: float
) -> _Planes:
    """Return the planes through the mean points of the known cells in windows (zero elsewhere)."""
    n = _summed(known.astype(x.dtype), window)
    many = np.maximum(n, 1)
    mean_x, mean_y, mean_z = (_summed(values, window) / many for values in (x, y, z))
    xx = _summed(x * x, window) / many - mean_x * mean_x
    xy = _summed(x * y, window) / many - mean_x * mean_y
    yy = _summed(y * y, window) / many - mean_y * mean_y
    xz = _summed(x * z, window) / many - mean_x * mean_z
    yz = _summed(y * z, window) / many - mean_y * mean_z
    # The smaller eigenvalue of the positions' covariance: cells in one line carry no plane.
    spread = 0.5 * (xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy * xy))
    sure = (n >= MIN_CELLS) & (spread > MIN_SPREAD * cell_m**2)
    determinant = np.where(sure, xx * yy - xy * xy, np.nan)
    along_x = (xz * yy - yz * xy) / determinant
    along_y = (yz * xx - xz * xy) / determinant
    return _Planes(along_x, along_y, many, mean_z, xz, yz)


def _footprint_slope_deg(
    known: NDArray[np.bool_], x: Grid, y: Grid, z: Grid, cell_m: float, options: HazardOptions
) -> Grid:
    """Return the tilt of the plane through the footprint around each known cell; else NaN."""
    footprint = 2 * round(0.5 * (options.footprint_m / cell_m - 1)) + 1
    wide = _planes(known, x, y, z, max(3, footprint), cell_m)
    slope_deg = np.degrees(np.arctan(np.sqrt(wide.along_x**2 + wide.along_y**2)))
    slope_deg[~known] = np.nan
    return slope_deg


def _ground_slopes(planes: _Planes, variance: Grid) -> tuple[Grid, Grid]:
    """Return the slope along x and y of the ground around each cell, without ledges and rocks.

    Zero where no window around has a plane.

    Args:
        planes: Of windows of `GROUND_WINDOW` cells.
        variance: Of the heights about them.
    """
    # What another window's variance must be below, and where the best window is, flattened.
    limit = np.full(variance.shape, np.inf, variance.dtype)
    index = np.arange(variance.size, dtype=np.int32).reshape(variance.shape)
    best = index.copy()
    raised, lowered = variance + SMOOTH_M**2, variance * CLEARLY_SMOOTHER
    for distance in GROUND_DISTANCES:
        for here, there, _, _ in _shifts(variance.shape, distance):
            better = raised[there] < limit[here]
            np.copyto(limit[here], lowered[there], where=better)
            np.copyto(best[here], index[there], where=better)
    along_x, along_y = planes.along_x.take(best), planes.along_y.take(best)
    for slope in (along_x, along_y):
        np.copyto(slope, 0, where=np.isnan(slope))
    return along_x, along_y


def _height_ranges(
    cells: NDArray[np.int64], heights: NDArray[Any], count: NDArray[np.int64]
) -> tuple[Grid, Grid]:
    """Return the height that a twentieth of each cell's points is below, and above; else NaN."""
    if cells.size == 0:
        return np.full(len(count), np.nan), np.full(len(count), np.nan)
    middle = float(np.median(heights[:: max(1, len(heights) // 1000)]))
    levels = (heights - middle) / HEIGHT_STEP_M + HEIGHT_LEVELS // 2
    keys = np.clip(levels + 0.5, 0, HEIGHT_LEVELS - 1).astype(np.uint32)
    keys |= cells.astype(np.uint32) << np.uint32(16)
    keys.sort()
    starts = np.cumsum(count) - count
    skipped = (TAIL * count).astype(np.int64)
    lowest = np.minimum(starts + skipped, len(keys) - 1)
    highest = np.clip(starts + count - 1 - skipped, 0, len(keys) - 1)
    return tuple(  # type: ignore[return-value]
        np.where(
            count > 0,
            ((keys[index] & (HEIGHT_LEVELS - 1)) - float(HEIGHT_LEVELS // 2)) * HEIGHT_STEP_M
            + middle,
            np.nan,
        )
        for index in (lowest, highest)
    )


def _steps(
    known: NDArray[np.bool_],
    low: Grid,
    high: Grid,
    rises: Iterable[tuple[Part, Part, Grid]],
) -> Grid:
    """Return how far the ground of a cell and its eight neighbours departs from the slope.

    Args:
        known: (rows, columns).
        low, high: Between which heights the ground of each cell is.
        rises: Slices of cells and of their neighbours in one direction, and how much the ground's
            slope makes the neighbours higher; for each direction.
    """
    top, bottom = (np.full(known.shape, value, low.dtype) for value in (-np.inf, np.inf))
    high, low = np.where(known, high, -np.inf), np.where(known, low, np.inf)
    for here, there, rise in rises:
        np.maximum(top[here], high[there] - rise, out=top[here])
        np.minimum(bottom[here], low[there] - rise, out=bottom[here])
    return np.where(known, np.maximum(top - bottom, 0.0), np.nan)


def hazard_values(
    slope_deg: Grid, step_m: Grid, cell_m: float, options: HazardOptions
) -> NDArray[np.int8]:
    """Return the hazard of each cell by its slope and its step; see `HazardMap`."""
    marked_m = MARKED_FROM * options.clearance_m
    ratio = np.maximum(slope_deg / options.max_slope_deg, step_m / marked_m)
    # The height that the steepest drivable slope gains from corner to corner of three cells.
    rise_m = 3 * math.sqrt(2) * cell_m * math.tan(math.radians(options.max_slope_deg))
    ratio[step_m - rise_m >= marked_m] = np.inf
    drivable = np.floor(np.nan_to_num(ratio, posinf=1.0) * MOST_DRIVABLE)
    values = np.where(ratio >= 1, LETHAL, drivable)
    return np.where(np.isnan(ratio), UNKNOWN, values).astype(np.int8)


def _around(shape: tuple[int, ...]) -> Iterator[tuple[Part, Part, int, int]]:
    """Yield the slices and the direction of cells and of themselves and their neighbours."""
    yield from _shifts(shape, 0)
    yield from _shifts(shape, 1)


def _shifts(shape: tuple[int, ...], distance: int) -> Iterator[tuple[Part, Part, int, int]]:
    """Yield slices of cells and of those `distance` away, and the direction: down and right.

    In each of eight directions; at distance 0 the cells themselves, once.
    """

    def slices(length: int, shift: int) -> tuple[slice, slice]:
        return (
            slice(max(0, -shift), max(0, length - max(0, shift))),
            slice(max(0, shift), max(0, length - max(0, -shift))),
        )

    around = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
    for down, right in around if distance else [(0, 0)]:
        rows, columns = slices(shape[0], down * distance), slices(shape[1], right * distance)
        yield (rows[0], columns[0]), (rows[1], columns[1]), down, right
