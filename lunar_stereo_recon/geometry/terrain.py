"""A map of the ground that goes with the rover: heights on a grid, fused over frames.

The map's frame has z up. Cells stay where they are in it while the rover moves: the arrays are
circular buffers, in which only the cells that leave the map are cleared. After Fankhauser,
Bloesch and Hutter, "Probabilistic terrain mapping for mobile robots with uncertain localization",
2018, whose conventions of grid_map the storage follows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.hazard import (
    GroundHazards,
    HazardOptions,
    hazards_of_heights,
    Part,
    reach_of_change,
    UNKNOWN,
)
from lunar_stereo_recon.limits import MAX_HEIGHT_M, MAX_MAP_CELLS

# Confidences are cut to this range: 0 and 1 would be infinitely wrong and infinitely right.
CONFIDENCE_RANGE = (0.05, 0.995)
# Camera poses and calibration are never better than this, metres.
SMALLEST_DEVIATION_M = 0.002
# A cell that as many frames in a row contradict holds what they say: the ground, or the pose,
# has changed.
MOST_CONTRADICTIONS = 3
# Points that are placed at once.
BLOCK = 32768
# Share of a new frame in the running means of confidence and scatter.
NEW_SHARE = 0.3


def depth_deviation_m(
    confidence: NDArray[np.floating], depth: NDArray[np.floating], focal_baseline: float
) -> NDArray[np.floating]:
    """Return the expected standard deviation of depths, metres, by what stereo can know.

    The confidence is the probability of a disparity error below 1 px; for an error after Laplace
    that gives a deviation in pixels, which the square of the depth turns into metres.

    Args:
        confidence: (N,) in [0, 1].
        depth: (N,) metres along the optical axis.
        focal_baseline: Focal length times baseline, pixels metres.
    """
    sigma_px = math.sqrt(2.0) / -np.log1p(-np.clip(confidence, *CONFIDENCE_RANGE))
    return sigma_px * depth**2 / focal_baseline


def height_deviation_m(
    sigma_m: NDArray[np.floating], depth: NDArray[np.floating], rise: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return how much of a depth's deviation is height: a point moves along its own ray.

    Args:
        sigma_m: (N,) standard deviation of the depth, metres.
        depth: (N,) metres along the optical axis.
        rise: (N,) height of the point above the camera, metres.
    """
    return np.maximum(sigma_m * np.abs(rise / depth), SMALLEST_DEVIATION_M)


@dataclass(frozen=True)
class TerrainOptions:
    """Extent of a map and what its heights are trusted with.

    Attributes:
        length_m: Edge of the square map, metres.
        cell_m: Edge of a cell, metres.
        max_range_m: Points deeper than this are left out, metres.
        min_confidence: Points with a lower confidence are left out.
        gate: A height that is farther from the map's than this many standard deviations of their
            difference is left out.
        tilt_deg: Standard deviation of the pose's roll and pitch, degrees.
        drift: Standard deviation of height that a metre of driving adds, metres; n metres add
            sqrt(n) of it.
        aging: Standard deviation of height that a second adds, metres; likewise.
        max_deviation_m: A cell with a larger standard deviation of its height is unknown.
        hazard: What the rover can do.

    Raises:
        InputError: A value is outside its range, or the map would have too many cells.
    """

    length_m: float = 20.0
    cell_m: float = 0.1
    max_range_m: float = 10.0
    min_confidence: float = 0.5
    gate: float = 3.0
    tilt_deg: float = 0.1
    drift: float = 0.005
    aging: float = 0.0005
    max_deviation_m: float = 0.15
    hazard: HazardOptions = field(default_factory=HazardOptions)

    def __post_init__(self) -> None:
        for name in ('length_m', 'cell_m', 'max_range_m', 'gate', 'max_deviation_m'):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f'terrain {name} is {getattr(self, name)}; it must be positive')
        for name in ('tilt_deg', 'drift', 'aging'):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f'terrain {name} is {getattr(self, name)}; 0 or more is needed')
        if not 0 <= self.min_confidence <= 1:
            raise InputError(
                f'terrain min_confidence is {self.min_confidence}; it must be in [0, 1]'
            )
        cells = self.length_m / self.cell_m
        if not 3 <= cells or (cells + 2 * self.margin) ** 2 > MAX_MAP_CELLS:
            raise InputError(
                f'a map of {self.length_m:g} m has {cells:.0f}x{cells:.0f} cells of '
                f'{self.cell_m:g} m; between 3x3 and {MAX_MAP_CELLS} of them are possible: take '
                'another size of the cells or of the map'
            )

    @property
    def margin(self) -> int:
        """Return how many cells are kept beyond each edge: surroundings of those within."""
        return reach_of_change(self.cell_m, self.hazard)

    @property
    def side(self) -> int:
        """Return the number of cells along an edge."""
        return math.ceil(self.length_m / self.cell_m - 1e-9)


@dataclass(frozen=True)
class TerrainLayers:
    """The map at a time. Rows run along y, columns along x; NaN where the ground is unknown.

    Attributes:
        x_m, y_m: Corner of the first cell, metres.
        cell_m: Edge of a cell, metres.
        height: (rows, columns) float32, metres.
        deviation: float32, metres: expected standard deviation of the height.
        slope: float32, degrees, over the rover's footprint.
        step: float32, metres, largest within a cell's distance, against the ground's slope.
        roughness: float32, metres: root mean square about the plane of the surroundings.
        confidence: float32 in [0, 1], of the points.
        age: float32, seconds since the cell was seen last.
        cost: int8, 0 flat to 98 just drivable, 100 not; -1 unknown.
    """

    x_m: float
    y_m: float
    cell_m: float
    height: FloatImage
    deviation: FloatImage
    slope: FloatImage
    step: FloatImage
    roughness: FloatImage
    confidence: FloatImage
    age: FloatImage
    cost: NDArray[np.int8]


# What is said of cells that were not looked at yet.
UNKNOWN_HAZARDS = {
    'slope_deg': math.nan,
    'step_m': math.nan,
    'hazard': UNKNOWN,
    'roughness_m': math.nan,
}


def _nothing_known(shape: tuple[int, ...]) -> GroundHazards:
    return GroundHazards(
        *(
            np.full(shape, unknown, np.int8 if name == 'hazard' else np.float32)
            for name, unknown in UNKNOWN_HAZARDS.items()
        )
    )


@dataclass(frozen=True)
class _Done:
    """Hazards of the map as it was.

    Attributes:
        corner: Column and row of its first cell.
        known: (rows, columns) bool, the cells whose height was known.
        stale: Cells beyond the map's edges whose hazards are not those of their surroundings now.
        hazards: Of them.
    """

    corner: tuple[int, int]
    known: NDArray[np.bool_]
    stale: NDArray[np.bool_]
    hazards: GroundHazards


class TerrainMap:
    """Heights around the rover, fused frame by frame; see `add` and `layers`.

    Each cell is a Kalman filter of one height. A frame measures it once, by the mean of its
    points in the cell, weighted by one over their variance; they share their error, so their
    number makes the measurement no better. Its variance is that of the points or the scatter of
    their heights, whichever is larger, and what the tilt of the pose does at that distance.
    Frames that look at the same ground through the same network share its errors too, so that
    a cell gets no more certain than the best of them; errors of poses do average out. Between
    frames the variance grows with the way and the time.

    Attributes:
        options: Extent and trust.
    """

    def __init__(self, options: TerrainOptions = TerrainOptions()) -> None:
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._margin = self.options.margin
        self._side = side = self.options.side + 2 * self._margin
        # [column of y, row of x]: flattened, this is grid_map's order, whose indices run against
        # x and y. The cell of x, y is at (-1 - floor(y / cell)) mod side, and likewise x.
        self._height = np.full((side, side), np.nan, np.float32)
        self._variance = np.full((side, side), np.nan, np.float32)
        self._scatter = np.zeros((side, side), np.float32)
        self._confidence = np.zeros((side, side), np.float32)
        self._seen_s = np.zeros((side, side), np.float64)
        self._contradicted = np.zeros((side, side), np.uint8)
        self._touched = np.zeros((side, side), bool)
        self._done: _Done | None = None
        self._base_m = 0.0  # hazards are computed about this height
        self._corner: tuple[int, int] | None = None  # cell of smallest x and y, in cells
        self._place: NDArray[np.float64] | None = None
        self._time_s = 0.0

    @property
    def empty(self) -> bool:
        """Say whether nothing was added since the start or the last reset."""
        return self._corner is None

    @property
    def time_s(self) -> float:
        """Return the time of the newest frame, seconds; 0 where there is none."""
        return self._time_s

    def add(
        self,
        points: NDArray[np.float32],
        sigma_m: NDArray[np.floating],
        confidence: NDArray[np.floating],
        rotation: NDArray[np.float64],
        position: NDArray[np.float64],
        time_s: float,
    ) -> int:
        """Add the points of a frame; return how many cells they measured.

        Args:
            points: (N, 3) metres, optical frame of the camera; NaN is left out.
            sigma_m: (N,) standard deviation of the depths, metres. Points whose sigma is not a
                positive number are left out: nothing says how far they can be trusted.
            confidence: (N,) in [0, 1].
            rotation: (3, 3), map from optical frame; the map's z points up.
            position: (3,) camera in the map, metres.
            time_s: Time of the frame, seconds; not before that of the last one.

        Raises:
            InputError: The time goes back, or the pose is no finite one.
        """
        self._check(rotation, position, time_s)
        self._move(position, time_s)
        kept = [
            self._measurements(
                points[block], sigma_m[block], confidence[block], rotation, position
            )
            for block in _blocks(len(points))
        ]
        cells, rise, weight, sure = map(np.concatenate, zip(*kept, strict=True))
        return self._fuse(cells, rise, weight, sure, position)

    def _measurements(
        self,
        points: NDArray[np.float32],
        sigma_m: NDArray[np.floating],
        confidence: NDArray[np.floating],
        rotation: NDArray[np.float64],
        position: NDArray[np.float64],
    ) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return cells, heights above the camera, weights and confidences of points that count."""
        depth = points[:, 2]
        # Comparisons with NaN are False: invalid points drop out here.
        keep = (depth > 0) & (depth <= self.options.max_range_m)
        keep &= (confidence >= self.options.min_confidence) & (sigma_m > 0) & (sigma_m < np.inf)
        kept = np.flatnonzero(keep)
        # Rows of x, y and z: columns of points would be strided in all that follows.
        seen = np.stack([points[:, axis].take(kept) for axis in range(3)])
        # Relative to the camera: far from the origin of a map float32 knows centimetres only.
        placed = rotation.astype(np.float32) @ seen
        rise = placed[2]
        weight = 1.0 / np.square(height_deviation_m(sigma_m.take(kept), seen[2], rise))
        cells, inside = self._cells(placed, position)
        confidence = confidence.take(kept)
        if inside.all():
            return cells, rise, weight, confidence
        return cells[inside], rise[inside], weight[inside], confidence[inside]

    def layers(self) -> TerrainLayers:
        """Return the map as it is now.

        Raises:
            InputError: Nothing was added yet.
        """
        if self._corner is None:
            raise InputError('nothing was added to the map')
        # The cell of smallest x and y stands last once the buffer begins at its corner.
        shift = self._corner[1], self._corner[0]

        def ordered(buffer: NDArray[Any]) -> NDArray[Any]:
            return np.ascontiguousarray(np.roll(buffer, shift, (0, 1))[::-1, ::-1])

        inner = slice(self._margin, self._side - self._margin)

        def published(values: NDArray[Any]) -> NDArray[Any]:
            return np.ascontiguousarray(values[inner, inner])

        height, deviation = ordered(self._height), np.sqrt(ordered(self._variance))
        unknown = ~(deviation <= self.options.max_deviation_m)
        height[unknown] = np.nan
        deviation[unknown] = np.nan
        hazards = self._hazards(height, ordered(self._scatter), ordered(self._touched))
        confidence = ordered(self._confidence)
        age = (self._time_s - ordered(self._seen_s)).astype(np.float32)
        for values in (confidence, age):
            values[unknown] = np.nan
        x_m, y_m = (self.options.cell_m * (first + self._margin) for first in self._corner)
        return TerrainLayers(
            x_m,
            y_m,
            self.options.cell_m,
            *map(
                published,
                (
                    height,
                    deviation,
                    hazards.slope_deg,
                    hazards.step_m,
                    hazards.roughness_m,
                    confidence,
                    age,
                    hazards.hazard,
                ),
            ),
        )

    def _hazards(
        self, height: FloatImage, scatter: FloatImage, touched: NDArray[np.bool_]
    ) -> GroundHazards:
        """Return the hazards; computed anew is only what may have changed since the last time.

        Args:
            height: (rows, columns) metres, NaN unknown.
            scatter: Of the heights within a cell, square metres.
            touched: Cells that were measured since the last time.
        """
        assert self._corner is not None
        height = height - np.float32(self._base_m)
        known = np.isfinite(height)
        margin, done = self._margin, self._done
        inner = np.zeros(known.shape, bool)
        inner[margin:-margin, margin:-margin] = True
        if done is None:
            found, stale = _nothing_known(known.shape), known
        else:
            right, down = (new - old for new, old in zip(self._corner, done.corner, strict=True))
            found = GroundHazards(
                *(
                    _moved(getattr(done.hazards, name), down, right, unknown)
                    for name, unknown in UNKNOWN_HAZARDS.items()
                )
            )
            stale = touched | (known != _moved(done.known, down, right, False))
            stale = cv2.dilate(stale.view(np.uint8), np.ones((2 * margin + 1,) * 2)).view(bool)
            stale |= _moved(done.stale, down, right, False)
            # Cells that lost surroundings over an edge, should they come into the map again.
            for shift, lines in ((down, stale), (right, stale.T)):
                if shift:
                    lines[:margin] |= shift > 0
                    lines[-margin:] |= shift < 0
        part = _around(stale & inner)
        if part is not None:
            new = hazards_of_heights(
                height, scatter, self.options.cell_m, self.options.hazard, part
            )
            for name in UNKNOWN_HAZARDS:
                getattr(found, name)[part] = getattr(new, name)
            stale[part] = False
        self._done = _Done(self._corner, known, stale, found)
        self._touched[:] = False
        return found

    def _check(
        self, rotation: NDArray[np.float64], position: NDArray[np.float64], time_s: float
    ) -> None:
        orthogonal = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-4
        if not orthogonal or not (np.abs(position) < MAX_HEIGHT_M).all():
            raise InputError(
                f'the pose of the camera has the position {position.tolist()} and the rotation '
                f'{np.round(rotation, 3).tolist()}; a rotation and metres below {MAX_HEIGHT_M:g} '
                'are needed'
            )
        if not math.isfinite(time_s) or (not self.empty and time_s < self._time_s):
            raise InputError(
                f'time goes back from {self._time_s:.3f} s to {time_s:.3f} s; the map must be '
                'reset first'
            )

    def _move(self, position: NDArray[np.float64], time_s: float) -> None:
        """Bring the map over the camera and let its heights grow less certain."""
        side = self._side
        there = [math.floor(value / self.options.cell_m) - side // 2 for value in position[:2]]
        corner = there[0], there[1]
        if self._corner is None or self._place is None:
            self._corner = corner
            self._base_m = float(np.floor(position[2]))
        else:
            way_m = float(np.linalg.norm(position - self._place))
            waited_s = time_s - self._time_s
            self._variance += np.float32(
                self.options.drift**2 * way_m + self.options.aging**2 * waited_s
            )
        for axis, (old, new) in enumerate(zip(self._corner, corner, strict=True)):
            # Cells that came in, at either end, stand where those stood that left.
            first, last = (old + side, new + side) if new > old else (new, old)
            came = (-1 - np.arange(first, min(last, first + side))) % side
            where = (slice(None), came) if axis == 0 else (came, slice(None))
            self._height[where] = np.nan
            self._variance[where] = np.nan
            self._contradicted[where] = 0
        self._corner, self._place, self._time_s = corner, position.copy(), time_s

    def _cells(
        self, placed: NDArray[np.float32], position: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the places in the flattened buffer, and which points are on the map at all.

        Args:
            placed: (3, N) from the camera, in the map's axes, metres.
            position: (3,) of the camera, metres.
        """
        assert self._corner is not None
        side, cell_m = self._side, self.options.cell_m
        inside = np.ones(placed.shape[1], bool)
        cells = np.zeros(placed.shape[1], np.intp)
        for axis, (corner, stride) in enumerate(zip(self._corner, (1, side), strict=True)):
            offset = np.float32(position[axis] / cell_m - corner)
            index = placed[axis] * np.float32(1 / cell_m)
            index += offset
            inside &= (index >= 0) & (index < side)
            # Not below zero where it counts: there to cut is to round down.
            places = (-1 - (corner + np.arange(side))) % side * stride
            cells += places.take(index.astype(np.intp), mode='clip')
        return cells, inside

    def _fuse(
        self,
        cells: NDArray[np.intp],
        rise: NDArray[np.floating],
        weight: NDArray[np.floating],
        confidence: NDArray[np.floating],
        position: NDArray[np.float64],
    ) -> int:
        """Measure each cell by the points in it and correct its height."""
        size = self._height.size
        count = np.bincount(cells, minlength=size)
        measured = np.flatnonzero(count)
        count = count.take(measured)

        def summed(values: NDArray[np.floating]) -> NDArray[np.float64]:
            return np.asarray(np.bincount(cells, values, size).take(measured), np.float64)

        total = summed(weight)
        weighted = weight * rise
        mean = summed(weighted) / total
        weighted *= rise
        scatter = np.maximum(summed(weighted) / total - mean**2, 0.0)
        height = mean + position[2]
        noise = count / total
        tilt = math.radians(self.options.tilt_deg) * self._distance_m(measured, position)
        shared = np.maximum(scatter, noise)
        variance = shared + tilt**2
        # Flat views: indexing by one number is faster than `flat`, and they write through.
        heights, variances, contradictions, scatters, confidences, seen_s = (
            buffer.reshape(-1)
            for buffer in (
                self._height,
                self._variance,
                self._contradicted,
                self._scatter,
                self._confidence,
                self._seen_s,
            )
        )
        before, prior = heights.take(measured), variances.take(measured)
        new = np.isnan(before)
        apart = np.abs(height - before)
        contradicts = apart > self.options.gate * np.sqrt(prior + variance)
        contradicted = np.where(contradicts, contradictions.take(measured) + 1, 0)
        new |= contradicted >= MOST_CONTRADICTIONS
        contradicted[new] = 0
        gain = np.where(new, 1.0, np.where(contradicts, 0.0, prior / (prior + variance)))
        self._touched.reshape(-1)[measured] = True
        heights[measured] = np.where(new, height, before + gain * (height - before))
        corrected = np.where(
            new, variance, np.maximum((1 - gain) * prior, np.minimum(prior, shared))
        )
        variances[measured] = np.maximum(corrected, SMALLEST_DEVIATION_M**2)
        contradictions[measured] = contradicted
        used = new | ~contradicts
        taken = measured[used]
        share = np.where(new, 1.0, NEW_SHARE)[used]
        own = np.maximum(scatter - noise, 0.0)  # what the points' own errors do not explain
        for buffer, values in ((scatters, own), (confidences, summed(confidence) / count)):
            old = buffer.take(taken)
            buffer[taken] = old + share * (values[used] - old)
        seen_s[taken] = self._time_s
        return len(measured)

    def _distance_m(
        self, cells: NDArray[np.int64], position: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the horizontal distance of cells, by their places in the buffer, metres."""
        assert self._corner is not None
        side = self._side
        row, column = (
            np.square(
                (corner + (-1 - np.arange(side) - corner) % side + 0.5) * self.options.cell_m
                - here
            )
            for corner, here in zip(self._corner[::-1], position[1::-1], strict=True)
        )
        return np.sqrt((row[:, None] + column).reshape(-1).take(cells))


def _moved(grid: NDArray[Any], down: int, right: int, empty: float) -> NDArray[Any]:
    """Return the cells of a map that moves on by some; those that come in are `empty`."""
    moved = np.full(grid.shape, empty, grid.dtype)
    (rows, new_rows), (columns, new_columns) = (
        _staying(count, shift) for count, shift in zip(grid.shape, (down, right), strict=True)
    )
    moved[new_rows, new_columns] = grid[rows, columns]
    return moved


def _staying(count: int, shift: int) -> tuple[slice, slice]:
    """Return which of a row of cells stay in a map that moves on, and where they are then."""
    first, last = min(max(0, shift), count), max(0, min(count, count + shift))
    return slice(first, last), slice(first - shift, last - shift) if first < last else slice(0)


def _around(cells: NDArray[np.bool_]) -> Part | None:
    """Return the rectangle around some cells; None for no cell."""
    rows, columns = (np.flatnonzero(cells.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _blocks(count: int) -> list[slice]:
    """Return slices of so many points as the processor's cache holds; one at least."""
    return [slice(first, first + BLOCK) for first in range(0, max(count, 1), BLOCK)]
