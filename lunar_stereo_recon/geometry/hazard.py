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

from lunar_stereo_recon.datatypes import Reconstruction
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
# Edge of the windows that the ground's slope is taken from, and how far from the cell others may
# be, cells. These must have less than this share of the variance, and of a centimetre's more.
GROUND_WINDOW = 5
GROUND_DISTANCES = (2, 4)
CLEARLY_SMOOTHER = 0.5
SMOOTH_M = 0.01
# A disparity that was filled in is not measured where matching found one this far from it, pixels.
MOST_FILLED_PX = 1.0
# A pixel shows ground plainly if its disparity and those around it are within so many pixels, or
# so many times what is usual in the frame. Level ground has twice the baseline over the camera's
# height, at any distance and with any lens.
PLAIN_PX = 1.0
PLAIN_TIMES = 2.0
# Heights of an elevation map are taken in steps of a quarter of a millimetre.
QUANTUM_M = 2.0**-12
# A plane through the cells of a window: as many are needed, and so wide (variance, cells²).
MIN_CELLS = 5
MIN_SPREAD = 0.25
# Directions to the neighbours of a cell: down and right.
AROUND = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right)

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
        min_free_points: A cell with fewer plain ones is marked or unknown, never free: the errors
            of points at the edge of what is seen put some of them into ground that nobody sees.

    Raises:
        InputError: A value is not positive, or the slope is not below 90 degrees.
    """

    clearance_m: float = 0.3
    max_slope_deg: float = 20.0
    footprint_m: float = 1.0
    min_points: int = 3
    min_free_points: int = 8

    def __post_init__(self) -> None:
        names = ('clearance_m', 'max_slope_deg', 'footprint_m', 'min_points', 'min_free_points')
        for name in names:
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
    points: NDArray[np.floating],
    layout: GridLayout,
    options: HazardOptions = HazardOptions(),
    plain: NDArray[np.bool_] | None = None,
) -> HazardMap:
    """Return the hazards of a cloud.

    Args:
        points: (N, 3), metres, z against gravity. Those outside of the grid, and NaN, are left
            out; so should those be whose depth is doubtful.
        layout: The grid.
        options: What the rover can do.
        plain: (N,) points that can make a cell free, see `MeasuredPoints`; None is all.
    """
    kept, cells, x, y, z = _inside(points, layout)
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
    variance = planes.variance(grid_z, GROUND_WINDOW)
    ground_x, ground_y = _ground_slopes(count.reshape(shape) > 0, planes, variance)
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
    hidden = _rises_over_hidden(known_grid, grid_x, grid_y, ground_x, ground_y)
    step_m = _steps(known_grid, low.reshape(shape), high.reshape(shape), (*rises, *hidden))
    values = hazard_values(slope_deg, step_m, layout.cell_m, options)
    if plain is not None:
        count = np.bincount(cells[plain.take(kept)], minlength=count.size)
    few = (count < options.min_free_points).reshape(shape)
    values[few & (values != LETHAL)] = UNKNOWN
    return HazardMap(
        slope_deg.astype(np.float32),
        step_m.astype(np.float32),
        values,
        float(np.median(mean_z[known])) if known.any() else math.nan,
    )


@dataclass(frozen=True)
class MeasuredPoints:
    """Points that were measured, where they were measured.

    Attributes:
        points: (N, 3) metres, optical frame.
        plain: (N,) bool, the pixel shows ground plainly. At an edge, and where the view grazes
            the ground, a point's error along its ray is as large as what lies hidden behind: it
            may be a step, but says of no place that it is free.
    """

    points: NDArray[np.float32]
    plain: NDArray[np.bool_]


def measured_points(result: Reconstruction, min_confidence: float = 0.0) -> MeasuredPoints:
    """Return the valid points of a reconstruction that were measured.

    Its own points are dense: unsure ones go over into their surroundings, which makes low rocks
    lower and ledges longer. Here they are where matching found them, and those whose surroundings
    say something else by more than `MOST_FILLED_PX` are left out.

    Args:
        result: The reconstruction.
        min_confidence: Points below it are left out.
    """
    counts = result.valid_mask & (result.confidence >= np.float32(min_confidence))
    matched = result.matched_px
    if matched is not None:
        counts &= (np.abs(result.disparity - matched) <= MOST_FILLED_PX) & (matched > 0)
    kept = np.flatnonzero(counts)
    points = result.points.reshape(-1, 3).take(kept, axis=0)
    if matched is not None:
        # A point moves along its ray, with one over the disparity.
        points *= (result.disparity.take(kept) / matched.take(kept))[:, None]
    return MeasuredPoints(
        points, plainly_seen(matched if matched is not None else result.disparity, kept)
    )


def plainly_seen(disparity: NDArray[np.float32], kept: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return (N,) bool, which pixels show ground plainly; see `MeasuredPoints`.

    Args:
        disparity: (H, W) pixels; NaN is left out.
        kept: (N,) pixels that are asked for, numbered row by row.
    """
    known, square = np.isfinite(disparity), np.ones((3, 3), np.uint8)
    nearest = cv2.dilate(np.where(known, disparity, np.float32(-np.inf)), square)
    farthest = cv2.erode(np.where(known, disparity, np.float32(np.inf)), square)
    spread = nearest.take(kept) - farthest.take(kept)
    usual = float(np.median(spread)) if spread.size else 0.0
    return np.asarray(spread <= max(PLAIN_PX, PLAIN_TIMES * usual))


@dataclass(frozen=True)
class GroundHazards:
    """Hazards of an elevation map or of a part of it, (rows, columns) each.

    Attributes:
        slope_deg, step_m, hazard: As of a `HazardMap`.
        roughness_m: float32, how far heights depart from the plane of the surroundings, root mean
            square; NaN unknown.
    """

    slope_deg: NDArray[np.float32]
    step_m: NDArray[np.float32]
    hazard: NDArray[np.int8]
    roughness_m: NDArray[np.float32]


def hazards_of_heights(
    height: NDArray[np.floating],
    scatter: NDArray[np.floating],
    cell_m: float,
    options: HazardOptions = HazardOptions(),
    part: Part | None = None,
) -> GroundHazards:
    """Return the hazards of an elevation map, and how rough its ground is.

    They are the same to the last bit whether they are asked for at once or part by part: heights
    are taken in whole steps of `QUANTUM_M`, whose sums are exact to 128 m above and below zero.

    Args:
        height: (rows, columns) metres, mean of each cell; NaN unknown. Columns run along x.
        scatter: (rows, columns) square metres, variance of the heights within a cell; 0 where it
            is not known.
        cell_m: Edge of a cell, metres.
        options: What the rover can do.
        part: Rows and columns that are wanted, both ends given; None for all.
    """
    rows, columns = part or (slice(0, height.shape[0]), slice(0, height.shape[1]))
    reach = reach_of_change(cell_m, options)
    around = tuple(slice(max(0, p.start - reach), p.stop + reach) for p in (rows, columns))
    height, scatter = height[around], scatter[around]
    unknown = np.isnan(height)
    known, zero = ~unknown, np.float32(0)
    z = np.rint(height * (1 / QUANTUM_M)).astype(np.float64)
    np.copyto(z, 0, where=unknown)
    places = _Places(known, z)
    slope_deg = places.planes(_footprint_cells(cell_m, options), cell_m, about=False).slope_deg()
    slope_deg[unknown] = np.nan
    planes = places.planes(GROUND_WINDOW, cell_m)
    ground_x, ground_y = _ground_slopes(known, planes, planes.variance)
    # What the ground's own slope does within a cell is no step: uniform over the cell's edge.
    own = np.maximum(scatter - (ground_x**2 + ground_y**2) * np.float32(cell_m**2 / 12), zero)
    np.copyto(own, zero, where=unknown)
    half_step = np.sqrt(own)
    z_m = z.astype(np.float32) * np.float32(QUANTUM_M)
    # Heights stand in the middles of their cells: the ground rises by the same for a cell's edge.
    along, across = (
        (np.zeros_like(slope), slope * np.float32(cell_m), slope * np.float32(-cell_m))
        for slope in (ground_x, ground_y)
    )
    rises = (
        (here, there, along[right][here] + across[down][here])
        for here, there, down, right in _around(known.shape)
    )
    step_m = _steps(known, z_m - half_step, z_m + half_step, rises)
    roughness_m = np.sqrt(planes.variance + own)
    np.copyto(roughness_m, np.nan, where=unknown)
    inner = tuple(
        slice(p.start - a.start, p.stop - a.start)
        for p, a in zip((rows, columns), around, strict=True)
    )
    slope_deg, step_m = slope_deg[inner], step_m[inner]
    values = hazard_values(slope_deg, step_m, cell_m, options)
    return GroundHazards(slope_deg, step_m, values, roughness_m[inner])


def reach_of_change(cell_m: float, options: HazardOptions) -> int:
    """Return how far a change of a height changes hazards, cells to each side."""
    # A step looks at the ground's slope around the cells beside it.
    ground = GROUND_WINDOW // 2 + GROUND_DISTANCES[-1] + 1
    return max(_footprint_cells(cell_m, options) // 2, ground)


@dataclass(frozen=True)
class _GridPlanes:
    """Least-squares planes of the windows around all cells of an elevation map; NaN: too few.

    Attributes:
        along_x, along_y: Their slopes, float32.
        variance: Of the heights about them, square metres, float32.
    """

    along_x: NDArray[np.float32]
    along_y: NDArray[np.float32]
    variance: NDArray[np.float32]

    def slope_deg(self) -> NDArray[np.float32]:
        """Return their tilts."""
        return np.degrees(np.arctan(np.sqrt(self.along_x**2 + self.along_y**2)))


class _Places:
    """Cells of an elevation map as whole numbers, of which windows have exact sums.

    Args:
        known: (rows, columns) bool.
        z: (rows, columns) float64, heights in `QUANTUM_M`; 0 where unknown.
    """

    def __init__(self, known: NDArray[np.bool_], z: NDArray[np.float64]) -> None:
        row, column = (np.arange(count, dtype=np.float64) for count in known.shape)
        n = known.astype(np.float64)
        x, y = n * column, n * row[:, None]
        self._n, self._x, self._y, self._z = n, x, y, z
        self._products = x * x, x * y, y * y, z * x, z * y, z * z

    def planes(self, window: int, cell_m: float, about: bool = True) -> _GridPlanes:
        """Return the planes through the known cells of square windows.

        Args:
            window: Edge of the windows, cells.
            cell_m: Edge of a cell, metres.
            about: The variance about the planes is wanted; else it is NaN.
        """
        n, x, y, z = (_summed(values, window) for values in (self._n, self._x, self._y, self._z))

        def covariance(product: Grid, a: Grid, b: Grid) -> NDArray[np.float32]:
            """Return it times n²: a whole number, and so the same wherever the map begins."""
            total = _summed(product, window)
            total *= n
            total -= a * b
            return total.astype(np.float32)

        xx, xy, yy, xz, yz = (
            covariance(product, a, b)
            for product, a, b in zip(
                self._products, (x, x, y, z, z), (x, y, y, x, y), strict=False
            )
        )
        count = n.astype(np.float32)
        # The smaller eigenvalue of the positions' covariance: cells in one line carry no plane.
        spread = xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy * xy)
        determinant = xx * yy - xy * xy
        unsure = (count < MIN_CELLS) | ~(spread > 2 * MIN_SPREAD * count * count)
        np.copyto(determinant, np.nan, where=unsure)
        along_x = (xz * yy - yz * xy) / determinant
        along_y = (yz * xx - xz * xy) / determinant
        variance = np.full_like(count, np.nan)
        if about:
            rest = covariance(self._products[-1], z, z) - along_x * xz - along_y * yz
            # Three numbers are fitted; rounding may leave a plane's variance below zero.
            variance = np.maximum(rest, 0) * np.float32(QUANTUM_M**2)
            variance /= np.maximum(count * (count - 3), 1)
        slope = np.float32(QUANTUM_M / cell_m)
        return _GridPlanes(along_x * slope, along_y * slope, variance)


def _inside(
    points: NDArray[np.floating], layout: GridLayout
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return number, cell, x, y, z of the points on the grid; x and y from its first corner."""
    x = points[:, 0] - layout.x_m
    y = points[:, 1] - layout.y_m
    column, row = np.floor(x / layout.cell_m), np.floor(y / layout.cell_m)
    # Comparisons with NaN are False: invalid points drop out here.
    inside = (column >= 0) & (column < layout.columns) & (row >= 0) & (row < layout.rows)
    inside &= np.isfinite(points[:, 2])
    kept = np.flatnonzero(inside)
    cells = (row.take(kept) * layout.columns + column.take(kept)).astype(np.int64)
    return kept, cells, x.take(kept), y.take(kept), points[:, 2].take(kept)


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

    def mean(values: Grid) -> Grid:
        total = _summed(values, window)
        total /= many
        return total

    def covariance(a: Grid, b: Grid, mean_a: Grid, mean_b: Grid) -> Grid:
        product = mean(a * b)
        product -= mean_a * mean_b
        return product

    mean_x, mean_y, mean_z = mean(x), mean(y), mean(z)
    xx, xy = covariance(x, x, mean_x, mean_x), covariance(x, y, mean_x, mean_y)
    yy, xz = covariance(y, y, mean_y, mean_y), covariance(x, z, mean_x, mean_z)
    yz = covariance(y, z, mean_y, mean_z)
    # The smaller eigenvalue of the positions' covariance: cells in one line carry no plane.
    spread = 0.5 * (xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy * xy))
    determinant = xx * yy - xy * xy
    unsure = (n < MIN_CELLS) | ~(spread > MIN_SPREAD * cell_m**2)
    np.copyto(determinant, np.nan, where=unsure)
    along_x = (xz * yy - yz * xy) / determinant
    along_y = (yz * xx - xz * xy) / determinant
    return _Planes(along_x, along_y, many, mean_z, xz, yz)


def _footprint_cells(cell_m: float, options: HazardOptions) -> int:
    """Return the edge of the footprint's window, an odd number of cells."""
    return max(3, 2 * round(0.5 * (options.footprint_m / cell_m - 1)) + 1)


def _footprint_slope_deg(
    known: NDArray[np.bool_], x: Grid, y: Grid, z: Grid, cell_m: float, options: HazardOptions
) -> Grid:
    """Return the tilt of the plane through the footprint around each known cell; else NaN."""
    wide = _planes(known, x, y, z, _footprint_cells(cell_m, options), cell_m)
    slope_deg = np.degrees(np.arctan(np.sqrt(wide.along_x**2 + wide.along_y**2)))
    slope_deg[~known] = np.nan
    return slope_deg


def _ground_slopes(
    wanted: NDArray[np.bool_], planes: _Planes | _GridPlanes, variance: Grid
) -> tuple[Grid, Grid]:
    """Return the slope along x and y of the ground around cells, without ledges and rocks.

    Zero where no window around has a plane.

    Args:
        wanted: (rows, columns) bool, where it is needed.
        planes: Of windows of `GROUND_WINDOW` cells.
        variance: Of the heights about them.
    """
    # Of the cells that another window may suit better: its variance must be below `limit`.
    limit = (variance * CLEARLY_SMOOTHER).reshape(-1)
    np.copyto(limit, np.inf, where=np.isnan(limit))
    rough = np.flatnonzero(wanted.reshape(-1) & (limit > SMOOTH_M**2))
    along_x, along_y = planes.along_x.copy(), planes.along_y.copy()
    if rough.size:
        best = _smoothest_windows(variance, rough, limit.take(rough))
        for slope, own in ((along_x, planes.along_x), (along_y, planes.along_y)):
            slope.reshape(-1)[rough] = own.take(best)
    for slope in (along_x, along_y):
        np.copyto(slope, 0, where=np.isnan(slope))
    return along_x, along_y


def _smoothest_windows(variance: Grid, cells: NDArray[np.int64], limit: Grid) -> NDArray[np.int64]:
    """Return around which cells the ground's slope of some cells is taken.

    Args:
        variance: (rows, columns), of the windows around all cells; NaN where there is no plane.
        cells: (N,) numbers of the cells.
        limit: (N,) what the variance of another window, and a centimetre's more, must be below;
            it is changed.

    Returns:
        (N,) numbers of cells: the cell's own, or that of a window that is clearly smoother.
    """
    columns, margin = variance.shape[1], GROUND_DISTANCES[-1]
    padded = np.pad(variance, margin, constant_values=np.inf)
    np.copyto(padded, np.inf, where=np.isnan(padded))
    width = padded.shape[1]
    places = cells // columns * width + cells % columns + margin * (width + 1)
    best = places.copy()
    for distance in GROUND_DISTANCES:
        for down, right in AROUND:
            there = places + distance * (down * width + right)
            found = padded.take(there)
            better = np.flatnonzero(found + found.dtype.type(SMOOTH_M**2) < limit)
            limit[better] = found[better] * CLEARLY_SMOOTHER
            best[better] = there[better]
    best -= margin * (width + 1)
    return best // width * columns + best % width


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


def _rises_over_hidden(
    known: NDArray[np.bool_], x: Grid, y: Grid, ground_x: Grid, ground_y: Grid
) -> Iterator[tuple[Part, Part, Grid]]:
    """Yield what `_steps` takes for cells beyond one that is unknown: an edge hides what is below.

    Args:
        known: (rows, columns).
        x, y: Places of the cells' means, metres.
        ground_x, ground_y: Slopes of the ground around them.
    """
    between = np.pad(~known, 1)
    for down, right in AROUND:
        here, there = _shifted(known.shape, 2 * down, 2 * right)
        rise = ground_x[here] * (x[there] - x[here]) + ground_y[here] * (y[there] - y[here])
        rows, columns = slice(1 + down, None), slice(1 + right, None)
        hidden = between[rows, columns][: known.shape[0], : known.shape[1]][here]
        yield here, there, np.where(hidden, rise, np.nan)


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
            slope makes the neighbours higher, NaN for no neighbour; for each direction.
    """
    unknown = ~known
    high, low = high.copy(), low.copy()
    np.copyto(high, -np.inf, where=unknown)
    np.copyto(low, np.inf, where=unknown)
    top, bottom = (np.full(known.shape, value, low.dtype) for value in (-np.inf, np.inf))
    for here, there, rise in rises:
        # Of a number and NaN, these take the number.
        np.fmax(top[here], high[there] - rise, out=top[here])
        np.fmin(bottom[here], low[there] - rise, out=bottom[here])
    top[unknown] = bottom[unknown] = np.nan
    top -= bottom
    return np.maximum(top, 0.0, out=top)


def hazard_values(
    slope_deg: Grid, step_m: Grid, cell_m: float, options: HazardOptions
) -> NDArray[np.int8]:
    """Return the hazard of each cell by its slope and its step; see `HazardMap`."""
    marked_m = MARKED_FROM * options.clearance_m
    ratio = np.maximum(slope_deg / options.max_slope_deg, step_m / marked_m)
    # The height that the steepest drivable slope gains from corner to corner of three cells.
    rise_m = 3 * math.sqrt(2) * cell_m * math.tan(math.radians(options.max_slope_deg))
    ratio[step_m - rise_m >= marked_m] = np.inf
    # Of a ratio and NaN, fmin takes the ratio's end; the values are not below zero.
    values = (np.fmin(ratio, 1.0) * MOST_DRIVABLE).astype(np.int8)
    np.copyto(values, LETHAL, where=ratio >= 1)
    np.copyto(values, UNKNOWN, where=np.isnan(ratio))
    return values


def _around(shape: tuple[int, ...]) -> Iterator[tuple[Part, Part, int, int]]:
    """Yield the slices and the direction of cells and of themselves and their neighbours.

    The direction is down and right.
    """
    for down, right in ((0, 0), *AROUND):
        yield *_shifted(shape, down, right), down, right


def _shifted(shape: tuple[int, ...], down: int, right: int) -> tuple[Part, Part]:
    """Return the slices of the cells that have a cell down and right of them, and of those."""
    rows, columns = (
        (
            slice(max(0, -shift), max(0, length - max(0, shift))),
            slice(max(0, shift), max(0, length - max(0, -shift))),
        )
        for length, shift in zip(shape, (down, right), strict=True)
    )
    return (rows[0], columns[0]), (rows[1], columns[1])
