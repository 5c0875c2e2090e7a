"""An elevation map of a drive: heights on a grid, each with its expected deviation.

Frames are added with their poses `map_from_camera` (4x4, metres), the map's z points up. Cells
have integer keys, so that the map grows with the drive.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, Reconstruction
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.terrain import depth_deviation_m, height_deviation_m

MOST_CELLS = 100_000_000


@dataclass(frozen=True)
class ElevationMap:
    """Rows run from north to south, columns from west to east; NaN where nothing was seen.

    Attributes:
        west_m, north_m: The outer corner of the first cell.
        cell_m: Edge of a cell.
        height: (H, W) float32, metres.
        deviation: (H, W) float32, metres: expected standard deviation of the height.
        slope: (H, W) float32, degrees; NaN at the border of what was seen.
        count: (H, W) float32, points that were merged; 0 where nothing was seen.
        confidence: (H, W) float32 in [0, 1], mean of the points.
    """

    west_m: float
    north_m: float
    cell_m: float
    height: FloatImage
    deviation: FloatImage
    slope: FloatImage
    count: FloatImage
    confidence: FloatImage


class ElevationFusion:
    """Merges the points of posed frames into cells.

    A point's depth is uncertain by its sigma. Where the reconstruction has none, by z^2 / (f b)
    times the deviation of its disparity, which then follows from the confidence, the probability
    of an error below 1 px, for an error after Laplace. How much of it is height depends on the
    direction of the ray. Points weigh one over the variance. The points of a cell share their
    error, those of one frame and those of frames that look at the same ground through the same
    network: their number makes it no smaller.

    Args:
        cell_m: Edge of a cell, metres.
        max_range_m: Points deeper than this are left out, metres.

    Raises:
        InputError: A setting is not a positive number.
    """

    def __init__(self, cell_m: float = 0.05, max_range_m: float = 10.0) -> None:
        for name, value in (('cell size', cell_m), ('maximum range', max_range_m)):
            if not 0 < value < math.inf:
                raise InputError(f'{name} is {value} m; a positive number is needed')
        self.cell_m = cell_m
        self.max_range_m = max_range_m
        self._keys = np.empty((0, 2), np.int64)  # row to the north, column to the east
        self._sums = np.empty((0, 5))  # weight, w h, w h^2, count, confidence

    def add(self, result: Reconstruction, map_from_camera: NDArray[np.float64]) -> None:
        """Add the valid points of one frame."""
        keep = result.valid_mask & (result.depth <= self.max_range_m)
        if result.depth_sigma_m is not None:
            keep &= np.isfinite(result.depth_sigma_m)
        points = result.points[keep].astype(np.float64)
        confidence = result.confidence[keep].astype(np.float64)
        rotation, position = map_from_camera[:3, :3], map_from_camera[:3, 3]
        camera, depth = result.calibration, points[:, 2]
        if result.depth_sigma_m is None:
            sigma_m = depth_deviation_m(confidence, depth, camera.fx * camera.baseline_m)
        else:
            sigma_m = result.depth_sigma_m[keep].astype(np.float64)
        deviation_m = height_deviation_m(sigma_m, depth, points @ rotation[2])
        weight = 1.0 / deviation_m**2
        placed = points @ rotation.T + position
        height = placed[:, 2]
        keys = np.floor(placed[:, [1, 0]] / self.cell_m).astype(np.int64)
        terms = [weight, weight * height, weight * height**2, np.ones_like(weight), confidence]
        keys, sums = _sum_by_cell(keys, np.stack(terms, axis=1))
        self._keys, self._sums = _sum_by_cell(
            np.concatenate([self._keys, keys]), np.concatenate([self._sums, sums])
        )

    def map(self) -> ElevationMap:
        """Return the map of what was added so far.

        Raises:
            InputError: Nothing was added, or the area has too many cells.
        """
        if not len(self._keys):
            raise InputError(f'no point within {self.max_range_m} m was added to the map')
        low, high = self._keys.min(axis=0), self._keys.max(axis=0)
        rows, columns = (int(n) for n in high - low + 1)
        if rows * columns > MOST_CELLS:
            raise InputError(
                f'the map would have {columns}x{rows} cells of {self.cell_m} m; at most '
                f'{MOST_CELLS} are possible: take larger cells'
            )
        row, column = high[0] - self._keys[:, 0], self._keys[:, 1] - low[1]
        weight, first, second, count, confidence = self._sums.T
        height = first / weight
        scatter = np.maximum(second / weight - height**2, 0.0)
        deviation = np.sqrt(np.maximum(scatter, count / weight))

        def grid(values: NDArray[np.float64], empty: float = math.nan) -> FloatImage:
            image = np.full((rows, columns), empty, np.float32)
            image[row, column] = values
            return image

        heights = grid(height)
        return ElevationMap(
            west_m=float(low[1] * self.cell_m),
            north_m=float((high[0] + 1) * self.cell_m),
            cell_m=self.cell_m,
            height=heights,
            deviation=grid(deviation),
            slope=slope_deg(heights, self.cell_m),
            count=grid(count, 0.0),
            confidence=grid(confidence / count),
        )


def _sum_by_cell(
    keys: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (N, 2) keys, each once and in order, and (N, K) sums of the values under each."""
    cells, owner = np.unique(keys, axis=0, return_inverse=True)
    columns = [np.bincount(owner.ravel(), column, len(cells)) for column in values.T]
    return cells.astype(np.int64), np.stack(columns, axis=1)


def slope_deg(height: FloatImage, cell_m: float) -> FloatImage:
    """Return (H, W) slopes in degrees, from the differences to both sides; NaN at borders."""
    slope = np.full_like(height, np.nan)
    north = (height[:-2, 1:-1] - height[2:, 1:-1]) / (2 * cell_m)
    east = (height[1:-1, 2:] - height[1:-1, :-2]) / (2 * cell_m)
    slope[1:-1, 1:-1] = np.degrees(np.arctan(np.hypot(north, east)))
    return slope


def shaded_relief(elevation: ElevationMap, sun_elevation_deg: float = 30.0) -> NDArray[np.uint8]:
    """Return (H, W) grey values of the ground lit from the north-west; black where not seen."""
    down, right = np.gradient(elevation.height.astype(np.float64), elevation.cell_m)
    angle = math.radians(sun_elevation_deg)
    side = math.cos(angle) / math.sqrt(2)
    # The normal is (-right, down, 1) east, north, up; the light comes from (-1, 1) and above.
    light = (right * side + down * side + math.sin(angle)) / np.sqrt(right**2 + down**2 + 1)
    return np.nan_to_num(np.clip(light, 0, 1) * 255, nan=0.0).astype(np.uint8)


def height_errors(estimated: ElevationMap, true: ElevationMap) -> dict[str, float]:
    """Return how far the heights are from the true ones, on the cells that both maps have.

    Returns:
        Cells, error's median, mean, root mean square and 95th percentile in metres (absolute but
        for `bias_m`), the shares within one and two expected deviations, and `explained_share`:
        the part of the squared errors that is no more than the expected variance of each cell.

    Raises:
        InputError: The maps differ in cell size, or have no cell in common.
    """
    if estimated.cell_m != true.cell_m:
        raise InputError(f'cells are {estimated.cell_m} m and {true.cell_m} m; must be equal')
    rows = round((estimated.north_m - true.north_m) / true.cell_m)
    columns = round((true.west_m - estimated.west_m) / true.cell_m)
    row, column = np.nonzero(np.isfinite(estimated.height))
    there_row, there_column = row - rows, column - columns
    inside = (there_row >= 0) & (there_row < true.height.shape[0])
    inside &= (there_column >= 0) & (there_column < true.height.shape[1])
    row, column = row[inside], column[inside]
    error = estimated.height[row, column] - true.height[there_row[inside], there_column[inside]]
    deviation = estimated.deviation[row, column]
    known = np.isfinite(error)
    error, deviation = error[known].astype(np.float64), deviation[known]
    if not error.size:
        raise InputError('the estimated and the true map have no cell in common')
    size = np.abs(error)
    return {
        'cells': float(error.size),
        'bias_m': float(error.mean()),
        'median_m': float(np.median(size)),
        'mean_m': float(size.mean()),
        'rms_m': float(np.sqrt(np.square(error).mean())),
        'p95_m': float(np.percentile(size, 95)),
        'explained_share': _explained_share(size, deviation),
        'within_1_deviation': float((size <= deviation).mean()),
        'within_2_deviations': float((size <= 2 * deviation).mean()),
    }


def _explained_share(size: NDArray[np.float64], deviation: NDArray[np.float32]) -> float:
    """Return the share of squared errors that expected variances cover; 1 where none is wrong."""
    total = float(np.square(size).sum())
    covered = float(np.square(np.minimum(size, deviation)).sum())
    return covered / total if total > 0 else 1.0
