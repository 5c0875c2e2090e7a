"""The hazard grid against the true ground: steps found, false alarms, slopes and heights.

A step is what the grid's own rule makes of the whole true ground, sampled every 5 cm. It counts
where the left camera truly sees the cell, and it is found where the grid marks the cell or one
beside it: at a border of cells either may hold it. A cell is free where neither it nor one beside
it has a step or slope of that size; a mark there is a false alarm. A cell was not seen where the
left camera has fewer than `HazardOptions.min_points` pixels of it. It is hidden where it has none
and no sample of its ground is in sight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.benchmark.bootstrap import wilson_interval
from lunar_stereo_recon.datatypes import FloatImage, StereoCalibration, StereoPair
from lunar_stereo_recon.files.arrays import check_rendered_pair, load_arrays
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.hazard import (
    hazard_map,
    HazardOptions,
    LETHAL,
)
from lunar_stereo_recon.preprocess import grey_from_array
from lunar_stereo_recon.simulation.hazard_ground import (
    CELL_M,
    fine_places,
    LAYOUT,
    RANGE_M,
)

VERSION = 1
STEPS_M = (0.3, 0.2, 0.15)
NEAR_M = 4.0
# Steps that are this much smaller than the clearance are no matter of opinion.
CLEARLY_BELOW = 2 / 3
BESIDE = np.ones((3, 3), np.uint8)
# Ground is in sight up to so much behind what a pixel shows, metres along the axis.
SIGHT_M = 0.03


@dataclass(frozen=True)
class HazardScene:
    """A pair with the true ground.

    Attributes:
        name: Of the file.
        group: Kind of ground and light, for the tables.
        pair: The images.
        depth: (H, W) true depth, metres; NaN in the sky.
        shadow: (H, W) bool.
        level_from_optical: (3, 3), to axes with x forward and z up.
        ground: (rows, columns) of `FINE_SHAPE`, true heights, metres above the camera, of hidden
            ground too.
    """

    name: str
    group: str
    pair: StereoPair
    depth: FloatImage
    shadow: NDArray[np.bool_]
    level_from_optical: NDArray[np.float64]
    ground: FloatImage


def load_scene(path: Path) -> HazardScene:
    """Return the pair of a file.

    Raises:
        InputError: The file is missing, unreadable or lacks an array.
    """
    names = ('left', 'right', 'depth', 'shadow', 'level_from_optical', 'ground')
    arrays = load_arrays(path, 'hazard scene', (*names, 'intrinsics', 'baseline_m'))
    check_rendered_pair(arrays, path, ('depth', 'shadow'))
    height, width = arrays['left'].shape
    (fx, _, cx), (_, fy, cy), _ = arrays['intrinsics'].tolist()
    calibration = StereoCalibration(fx, fy, cx, cy, cx, float(arrays['baseline_m']), width, height)
    left, right = (grey_from_array(arrays[side]) for side in ('left', 'right'))
    return HazardScene(
        path.stem,
        path.stem.rsplit('-', 1)[0].replace('-', ', ').replace('_', ' '),
        StereoPair(left, right, calibration),
        arrays['depth'],
        arrays['shadow'],
        arrays['level_from_optical'],
        arrays['ground'],
    )


@dataclass(frozen=True)
class Cells:
    """All cells of some scenes, and what a grid says of them; every array is (N,).

    Attributes:
        range_m: From below the camera to the cell's middle.
        seen: The left camera truly sees the cell.
        pixels: How many pixels it has of it.
        hidden: It has none, and nothing of the cell's ground is in sight.
        shadow: Most of what it sees there is in shadow.
        negative: The largest step goes down: a crater, a drop.
        true_step_m, true_slope_deg: Of the true ground; NaN where that ends.
        around_step_m, around_slope_deg: The largest of the cell and those beside it.
        known: The grid says something of the cell.
        slope_deg: Of the grid; NaN where it does not know.
        height_error_m: Mean height of the grid's points less that of the true ones that are seen;
            NaN where there are none.
        marked: For each of `STEPS_M` as clearance: the grid marks the cell.
        found: The same of the cell or one beside it.
    """

    range_m: NDArray[np.float64]
    seen: NDArray[np.bool_]
    pixels: NDArray[np.int64]
    hidden: NDArray[np.bool_]
    shadow: NDArray[np.bool_]
    negative: NDArray[np.bool_]
    true_step_m: NDArray[np.float64]
    true_slope_deg: NDArray[np.float64]
    around_step_m: NDArray[np.float64]
    around_slope_deg: NDArray[np.float64]
    known: NDArray[np.bool_]
    slope_deg: NDArray[np.float64]
    height_error_m: NDArray[np.float64]
    marked: Mapping[float, NDArray[np.bool_]]
    found: Mapping[float, NDArray[np.bool_]]


def graded_cells(
    scene: HazardScene, points: FloatImage, plain: NDArray[np.bool_] | None = None
) -> Cells:
    """Return the cells of a scene.

    Args:
        scene: The truth.
        points: (N, 3) what a method believes, metres, left optical frame; NaN is left out.
        plain: (N,) points that can make a cell free; None is all.
    """
    places = fine_places()
    ground = np.column_stack([places, scene.ground.reshape(-1).astype(np.float64)])
    true = hazard_map(ground, LAYOUT)
    true_points = _levelled(scene, points_from_depth(scene.depth, scene.pair.calibration))
    count, seen_height = _cell_means(true_points, true_points[:, 2])
    _, shadow = _cell_means(true_points, scene.shadow.reshape(-1).astype(np.float64))
    levelled = _levelled(scene, points)
    _, height = _cell_means(levelled, levelled[:, 2])
    grids = {
        step: hazard_map(levelled, LAYOUT, HazardOptions(clearance_m=step), plain)
        for step in STEPS_M
    }
    marked = {step: grid.hazard == LETHAL for step, grid in grids.items()}
    estimated = grids[STEPS_M[0]]
    y, x = np.mgrid[: LAYOUT.rows, : LAYOUT.columns] * CELL_M + 0.5 * CELL_M
    step_m, slope_deg = (np.nan_to_num(grid) for grid in (true.step_m, true.slope_deg))

    def flat(grid: NDArray[Any]) -> NDArray[Any]:
        return grid.reshape(-1)

    return Cells(
        range_m=flat(np.hypot(LAYOUT.x_m + x, LAYOUT.y_m + y)),
        seen=count >= HazardOptions().min_points,
        pixels=count,
        hidden=(count == 0) & ~_in_sight(scene, ground),
        shadow=shadow > 0.5,
        negative=flat(_negative(ground)),
        true_step_m=flat(true.step_m).astype(np.float64),
        true_slope_deg=flat(true.slope_deg).astype(np.float64),
        around_step_m=flat(cv2.dilate(step_m, BESIDE)).astype(np.float64),
        around_slope_deg=flat(cv2.dilate(slope_deg, BESIDE)).astype(np.float64),
        known=flat(estimated.hazard >= 0),
        slope_deg=flat(estimated.slope_deg).astype(np.float64),
        height_error_m=np.where(count >= HazardOptions().min_points, height - seen_height, np.nan),
        marked={step: flat(grid) for step, grid in marked.items()},
        found={
            step: flat(cv2.dilate(grid.astype(np.uint8), BESIDE) > 0)
            for step, grid in marked.items()
        },
    )


def together(cells: Sequence[Cells]) -> Cells:
    """Return the cells of all."""

    def joined(name: str) -> Any:
        values = [getattr(each, name) for each in cells]
        if isinstance(values[0], Mapping):
            return {step: np.concatenate([value[step] for value in values]) for step in STEPS_M}
        return np.concatenate(values)

    return Cells(**{name: joined(name) for name in Cells.__dataclass_fields__})


def step_figures(cells: Cells, clearance_m: float) -> dict[str, dict[str, Any]]:
    """Return the figures of each subset of the cells within `RANGE_M`.

    `steps` that are seen, shares of them `found` (with its 95 % interval `found_interval`, as if
    steps were independent), `unknown` (the grid says nothing of the cell) and `missed` (it calls
    it free); `free` cells that are seen and known, and the shares of them
    `false` marked, and `false_clear` of those where nothing comes near to the clearance.
    """
    near = (cells.range_m <= RANGE_M) & np.isfinite(cells.true_step_m)
    subsets = {
        'all': np.ones(near.shape, bool),
        '0-5 m': cells.range_m <= 5,
        '5-10 m': cells.range_m > 5,
        'up to 1.5 times the height': cells.true_step_m < 1.5 * clearance_m,
        'higher': cells.true_step_m >= 1.5 * clearance_m,
        'lit': ~cells.shadow,
        'shadow': cells.shadow,
        'upwards': ~cells.negative,
        'downwards': cells.negative,
    }
    max_slope_deg = HazardOptions().max_slope_deg
    step = near & cells.seen & (cells.true_step_m >= clearance_m)
    flat = cells.around_slope_deg < max_slope_deg
    free = near & cells.seen & cells.known & flat & (cells.around_step_m < clearance_m)
    clear = free & (cells.around_step_m < CLEARLY_BELOW * clearance_m)
    clear &= cells.around_slope_deg < CLEARLY_BELOW * max_slope_deg
    found, marked = cells.found[clearance_m], cells.marked[clearance_m]
    figures = {}
    for name, subset in subsets.items():
        # Sizes are of steps: free cells have none.
        sized = name in ('up to 1.5 times the height', 'higher')
        there = step & subset
        none = np.zeros(near.shape, bool)
        figures[name] = {
            'steps': float(there.sum()),
            'found': _share(found, there),
            'found_interval': wilson_interval(_share(found, there) or 0.0, int(there.sum())),
            'unknown': _share(~found & ~cells.known, there),
            'missed': _share(~found & cells.known, there),
            'free': float((none if sized else free & subset).sum()),
            'false': _share(marked, none if sized else free & subset),
            'false_clear': _share(marked, none if sized else clear & subset),
        }
    return figures


def ground_figures(cells: Cells) -> dict[str, dict[str, float | None]]:
    """Return errors of height and slope to 4 m and 10 m, and what is said of unseen ground."""
    figures = {}
    for name, reach_m in ((f'to {NEAR_M:g} m', NEAR_M), (f'to {RANGE_M:g} m', RANGE_M)):
        near = cells.range_m <= reach_m
        error = cells.height_error_m[near & np.isfinite(cells.height_error_m) & cells.known]
        slopes = cells.slope_deg - cells.true_slope_deg
        slope = np.abs(slopes[near & cells.seen & np.isfinite(slopes)])
        free = near & cells.known & ~cells.marked[STEPS_M[0]]
        known = bool(error.size)
        figures[name] = {
            'cells': float(error.size),
            'height_mean_cm': 100 * float(np.abs(error).mean()) if known else None,
            'height_p95_cm': 100 * float(np.percentile(np.abs(error), 95)) if known else None,
            'height_bias_cm': 100 * float(error.mean()) if known else None,
            'slope_mean_deg': float(slope.mean()) if slope.size else None,
            'seen_known': _share(cells.known, near & cells.seen),
            'free_unseen': _share(~cells.seen, free),
            'free_no_pixel': _share(cells.pixels == 0, free),
            'free_hidden': _share(cells.hidden, free),
        }
    return figures


def hazard_tables(results: Mapping[str, Cells]) -> str:
    """Return the figures of each method as Markdown."""
    lines = []
    for step in STEPS_M:
        lines += [f'## Steps of {step:g} m and more', '']
        headers = ['method', 'subset', 'steps', 'found %', '95 % interval']
        headers += ['unknown %', 'called free %']
        headers += ['free cells', 'false %', 'false where clearly free %']
        lines += _head(headers)
        for method, cells in results.items():
            for subset, figures in step_figures(cells, step).items():
                values = [_percent(figures[key]) for key in ('found', 'unknown', 'missed')]
                ends = figures['found_interval']
                values.insert(1, ' to '.join(map(_percent, ends)) if ends else '')
                wrong = [_percent(figures[key]) for key in ('false', 'false_clear')]
                steps, free = (f'{figures[key]:.0f}' for key in ('steps', 'free'))
                lines.append(_line([method, subset, steps, *values, free, *wrong]))
        lines.append('')
    lines += ['## Heights, slopes and what was not seen', '']
    headers = ['method', 'range', 'cells', 'height error cm', '95 % cm', 'bias cm']
    headers += ['slope error deg', 'known of the seen %', 'not seen of the free %']
    headers += ['without a pixel %', 'hidden %']
    lines += _head(headers)
    for method, cells in results.items():
        for reach, figures in ground_figures(cells).items():
            numbers = [
                '' if figures[key] is None else f'{figures[key]:.2f}'
                for key in ('height_mean_cm', 'height_p95_cm', 'height_bias_cm', 'slope_mean_deg')
            ]
            shares = [_percent(figures['seen_known'])]
            unseen = [figures[key] for key in ('free_unseen', 'free_no_pixel', 'free_hidden')]
            shares += ['' if share is None else f'{100 * share:.2f}' for share in unseen]
            lines.append(_line([method, reach, f'{figures["cells"]:.0f}', *numbers, *shares]))
    return '\n'.join(lines)


def _head(headers: Sequence[str]) -> list[str]:
    return [_line(headers), _line(['---'] * len(headers))]


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _percent(share: float | None) -> str:
    return '' if share is None else f'{100 * share:.1f}'


def _share(what: NDArray[np.bool_], of: NDArray[np.bool_]) -> float | None:
    count = int(of.sum())
    return float((what & of).sum() / count) if count else None


def _levelled(scene: HazardScene, points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (N, 3) points in the grid's axes, the camera at the origin."""
    return points.reshape(-1, 3).astype(np.float64) @ scene.level_from_optical.T


def _cell_means(
    points: NDArray[np.float64], values: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how many points lie in each cell, and the mean of their values; NaN for none."""
    column = np.floor((points[:, 0] - LAYOUT.x_m) / CELL_M)
    row = np.floor((points[:, 1] - LAYOUT.y_m) / CELL_M)
    inside = (column >= 0) & (column < LAYOUT.columns) & (row >= 0) & (row < LAYOUT.rows)
    inside &= np.isfinite(points[:, 2])
    cells = (row[inside] * LAYOUT.columns + column[inside]).astype(np.int64)
    size = LAYOUT.rows * LAYOUT.columns
    count = np.bincount(cells, minlength=size)
    total = np.bincount(cells, values[inside], minlength=size)
    return count, np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _in_sight(scene: HazardScene, ground: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (rows * columns,) bool: the left camera sees a sample of the cell's ground.

    Args:
        scene: The truth.
        ground: (N, 3) samples, metres, in the grid's axes.
    """
    camera = scene.pair.calibration
    x, y, z = (ground @ scene.level_from_optical).T
    with np.errstate(divide='ignore', invalid='ignore'):
        column, row = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
    inside = (z > 0) & (column >= 0) & (column <= camera.width - 1)
    inside &= (row >= 0) & (row <= camera.height - 1)
    # What the pixels around show may be nearer at an edge; the sky is far.
    reach = cv2.dilate(np.nan_to_num(scene.depth, nan=np.inf), BESIDE)
    pixel = np.rint(row[inside]).astype(np.intp), np.rint(column[inside]).astype(np.intp)
    inside[inside] = z[inside] <= reach[pixel] + SIGHT_M
    _, share = _cell_means(ground, inside.astype(np.float64))
    return np.asarray(share > 0)


def _negative(ground: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (rows, columns) bool: cells whose surroundings go farther down than up.

    Both from the median of five by five cells.
    """
    _, mean = _cell_means(ground, ground[:, 2])
    height = mean.reshape(LAYOUT.rows, LAYOUT.columns).astype(np.float32)
    height = np.where(np.isfinite(height), height, np.float32(0))
    departure = height - cv2.medianBlur(height, 5)
    up, down = cv2.dilate(departure, BESIDE), cv2.dilate(-departure, BESIDE)
    return np.asarray(down > up)
