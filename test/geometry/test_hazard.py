"""Slope and steps of grounds whose hazards are known."""

import dataclasses
import math
import time

import numpy as np
import pytest

from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.hazard import (
    GridLayout,
    hazard_map,
    hazard_values,
    HazardOptions,
    hazards_of_heights,
    measured_points,
    plainly_seen,
    reach_of_change,
)

LAYOUT = GridLayout(x_m=0.0, y_m=-2.0, columns=30, rows=20, cell_m=0.2)
OPTIONS = HazardOptions(clearance_m=0.3, max_slope_deg=20.0, footprint_m=1.0)


def ground(height, seed=0, count=60_000):
    """Return (N, 3) points at random places of the grid, and something beyond it."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-0.5, 6.5, count), rng.uniform(-2.5, 2.5, count)
    return np.stack([x, y, np.broadcast_to(height(x, y), x.shape)], axis=1).astype(np.float32)


def cell(x, y):
    return math.floor((y + 2.0) / 0.2), math.floor(x / 0.2)


@pytest.mark.parametrize('slope_deg', [0.0, 5.0, 15.0, 35.0])
@pytest.mark.parametrize('heading_deg', [0.0, 90.0, 130.0])
def test_plane_has_its_slope_and_no_step(slope_deg, heading_deg):
    gradient = math.tan(math.radians(slope_deg))
    along = np.array([math.cos(math.radians(heading_deg)), math.sin(math.radians(heading_deg))])
    points = ground(lambda x, y: gradient * (along[0] * x + along[1] * y) - 0.7)
    result = hazard_map(points, LAYOUT, OPTIONS)
    np.testing.assert_allclose(result.slope_deg, slope_deg, atol=0.01)
    np.testing.assert_allclose(result.step_m, 0.0, atol=0.003)
    expected = 100 if slope_deg >= 20 else math.floor(98 * slope_deg / 20)
    assert np.abs(result.hazard - expected).max() <= 1
    assert (result.hazard == 100).all() == (slope_deg > 20)
    middle = gradient * along @ [3.0, 0.0] - 0.7
    assert result.ground_m == pytest.approx(middle, abs=0.15 * gradient + 1e-3)


@pytest.mark.parametrize('slope', [0.0, 0.2])
@pytest.mark.parametrize('height_m', [0.15, 0.4])
def test_ledge_has_its_height(slope, height_m):
    points = ground(lambda x, y: slope * x + np.where(x > 3.0, height_m, 0.0))
    result = hazard_map(points, LAYOUT, OPTIONS)
    for column in (14, 15):  # the cells on either side of x = 3
        np.testing.assert_allclose(result.step_m[1:-1, column], height_m, rtol=0.06)
    away = np.r_[0:12, 18:30]
    np.testing.assert_allclose(result.step_m[:, away], 0.0, atol=0.01)
    if slope == 0:  # On the slope the footprint's tilt is too much as well.
        assert (result.hazard[1:-1, 14:16] == 100).all() == (height_m > 0.3)


@pytest.mark.parametrize('rock_m', [0.2, 0.5])
def test_rock_is_a_step_where_it_stands(rock_m):
    def height(x, y):
        return np.where(np.hypot(x - 2.5, y - 0.3) < 0.25, rock_m, 0.02 * x)

    result = hazard_map(ground(height), LAYOUT, OPTIONS)
    row, column = cell(2.5, 0.3)
    assert result.step_m[row, column] == pytest.approx(rock_m - 0.05, rel=0.15)
    assert (result.hazard[row, column] == 100) == (rock_m > 0.4)
    far = np.ones(result.hazard.shape, bool)
    far[row - 5 : row + 6, column - 5 : column + 6] = False
    assert result.hazard[far].max() < 15


def test_steps_are_marked_from_nine_tenths_of_the_clearance_and_no_grade_is_99():
    step_m = np.linspace(0.0, 0.4, 401)
    values = hazard_values(np.zeros_like(step_m), step_m, 0.2, HazardOptions(clearance_m=0.3))
    assert (values[step_m > 0.271] == 100).all() and (values[step_m < 0.269] <= 98).all()
    assert values[0] == 0 and (np.diff(values) >= 0).all() and 99 not in values


def test_crater_is_steep_on_its_walls_alone():
    # A bowl of radius 1.5 m: the slope grows from 0 to atan(2 * 0.3 * 1.5) = 42 degrees.
    def height(x, y):
        radius = np.hypot(x - 3.0, y)
        return np.where(radius < 1.5, 0.3 * radius**2 - 0.675, 0.0)

    result = hazard_map(ground(height), LAYOUT, OPTIONS)
    rows, columns = np.mgrid[0:20, 0:30]
    radius = np.hypot(0.2 * (columns + 0.5) - 3.0, 0.2 * (rows + 0.5) - 2.0)
    walls = (radius > 0.4) & (radius < 0.9)
    truth = np.degrees(np.arctan(0.6 * radius))
    np.testing.assert_allclose(result.slope_deg[walls], truth[walls], atol=1.0)
    assert result.slope_deg[radius < 0.15].max() < 5
    assert (result.hazard[(radius > 0.75) & (radius < 1.3)] == 100).all()
    assert (result.hazard[radius > 2.3] == 0).all()


def test_noise_of_the_depth_is_no_hazard():
    points = ground(lambda x, y: 0.1 * x)
    points[:, 2] += np.random.default_rng(1).normal(0.0, 0.02, len(points))
    result = hazard_map(points, LAYOUT, OPTIONS)
    np.testing.assert_allclose(result.slope_deg, math.degrees(math.atan(0.1)), atol=1.0)
    assert result.step_m.max() < 0.12  # four standard deviations, and what the slope is off
    # Single wrong points, a metre up, change nothing.
    points[::200, 2] += 1.0
    assert hazard_map(points, LAYOUT, OPTIONS).step_m.mean() < 0.12


def test_what_is_not_seen_is_unknown():
    points = ground(lambda x, y: 0.0 * x)
    points[points[:, 0] > 4.0] = np.nan
    points = points[np.abs(points[:, 1]) < 1.0]
    lonely = np.array([[5.5, 1.5, 0.0]] * 9, np.float32)  # a cell without neighbours
    scarce = np.array([[1.1, 1.3, 9.0]] * 2, np.float32)  # too few points to count
    result = hazard_map(np.concatenate([points, lonely, scarce]), LAYOUT, OPTIONS)
    rows, columns = np.mgrid[0:20, 0:30]
    seen = (columns < 20) & (rows >= 5) & (rows < 15)
    np.testing.assert_array_equal(result.hazard, np.where(seen, 0, -1))
    assert np.isnan(result.slope_deg[~seen]).all()


def test_a_cell_of_few_points_is_never_free_but_may_be_marked():
    points = ground(lambda x, y: np.where(x > 5.0, 0.4, 0.0))
    rng = np.random.default_rng(3)
    for x in (2.0, 5.0):  # on level ground, and on the ledge
        row, column = cell(x + 0.1, 0.1)
        few = (np.floor(points[:, 0] / 0.2) == column) & (np.floor(points[:, 1] / 0.2 + 10) == row)
        dropped = rng.permutation(np.flatnonzero(few))[5:]
        points[dropped] = np.nan
    result = hazard_map(points, LAYOUT, OPTIONS)
    assert result.hazard[cell(2.1, 0.1)] == -1 and result.hazard[cell(2.3, 0.1)] == 0
    assert result.hazard[cell(5.1, 0.1)] == 100
    bold = hazard_map(points, LAYOUT, dataclasses.replace(OPTIONS, min_free_points=3))
    assert bold.hazard[cell(2.1, 0.1)] == 0


def test_a_drop_whose_foot_is_hidden_is_a_step():
    points = ground(lambda x, y: np.where(x > 3.0, -0.4, 0.05 * x))
    points[(points[:, 0] > 3.0) & (points[:, 0] < 3.2)] = np.nan  # one column of cells
    result = hazard_map(points, LAYOUT, OPTIONS)
    edge, hidden, beyond = (cell(x, 0.1)[1] for x in (2.9, 3.1, 3.3))
    assert (result.hazard[1:-1, hidden] == -1).all()
    for column in (edge, beyond):
        np.testing.assert_allclose(result.step_m[1:-1, column], 0.55, atol=0.03)
        assert (result.hazard[1:-1, column] == 100).all()
    # A slope goes on behind what is hidden.
    points = ground(lambda x, y: 0.3 * x)
    points[(points[:, 0] > 3.0) & (points[:, 0] < 3.2)] = np.nan
    assert np.nanmax(hazard_map(points, LAYOUT, OPTIONS).step_m) < 0.03


def test_measured_points_are_where_matching_found_them():
    camera = StereoCalibration(100.0, 100.0, 1.0, 0.5, 1.0, 0.2, 3, 2)
    disparity = np.array([[4.0, 4.0, 4.0], [4.0, np.nan, 4.0]], np.float32)
    depth = 20.0 / disparity
    result = Reconstruction(
        disparity,
        depth,
        np.array([[0.9, 0.6, 0.6], [0.4, 0.9, 0.9]], np.float32),
        points_from_depth(depth, camera),
        np.zeros((2, 3, 3), np.uint8),
        camera,
        matched_px=np.array([[4.0, 5.0, 5.1], [4.0, 4.0, np.nan]], np.float32),
    )
    found = measured_points(result, 0.5).points
    # The second pixel moves along its ray; the third one was filled in.
    np.testing.assert_allclose(found, [[-0.05, -0.025, 5.0], [0.0, -0.02, 4.0]], rtol=1e-6)
    assert len(measured_points(result).points) == 3
    unknown = dataclasses.replace(result, matched_px=None)
    np.testing.assert_array_equal(measured_points(unknown, 0.5).points[:, 2], 5.0)
    assert len(measured_points(unknown, 0.5).points) == 4


@pytest.mark.parametrize('rise_px', [0.1, 0.5, 1.5])
def test_ground_is_plainly_seen_except_at_an_edge(rise_px):
    """However much disparity a row of level ground adds: baseline over height of the camera."""
    disparity = np.tile((20.0 + rise_px * np.arange(40.0, dtype=np.float32))[:, None], (1, 30))
    disparity[10, 3] = np.nan
    kept = np.flatnonzero(np.isfinite(disparity))
    assert plainly_seen(disparity, kept).all()
    disparity[:, 15:] += 3 * rise_px + 2  # a rock's side
    plain = np.zeros(disparity.size, bool)
    plain[kept] = plainly_seen(disparity, kept)
    plain = plain.reshape(disparity.shape)
    assert not plain[:, 14:16].any()
    assert np.delete(plain, [3, 14, 15], axis=1).all()
    assert plainly_seen(disparity, kept[:0]).shape == (0,)


def test_what_is_not_plainly_seen_is_never_free_but_may_be_marked():
    points = ground(lambda x, y: np.where(x > 5.0, 0.4, 0.0))
    plain = np.ones(len(points), bool)
    for x in (2.0, 5.0):  # on level ground, and on the ledge
        row, column = cell(x + 0.1, 0.1)
        plain[
            (np.floor(points[:, 0] / 0.2) == column) & (np.floor(points[:, 1] / 0.2 + 10) == row)
        ] = False
    result = hazard_map(points, LAYOUT, OPTIONS, plain)
    assert result.hazard[cell(2.1, 0.1)] == -1 and result.hazard[cell(2.3, 0.1)] == 0
    assert result.hazard[cell(5.1, 0.1)] == 100
    other = np.ones(result.hazard.shape, bool)
    other[cell(2.1, 0.1)] = False
    everything = hazard_map(points, LAYOUT, OPTIONS)
    np.testing.assert_array_equal(result.hazard[other], everything.hazard[other])
    np.testing.assert_array_equal(result.step_m, everything.step_m)


def test_wall_without_any_ground_is_lethal():
    rng = np.random.default_rng(0)
    wall = np.stack(
        [np.full(4000, 2.05), rng.uniform(-1, 1, 4000), rng.uniform(0, 1.5, 4000)], axis=1
    )
    result = hazard_map(wall.astype(np.float32), LAYOUT, OPTIONS)
    rows = slice(cell(2, -0.9)[0], cell(2, 0.9)[0])
    assert (result.hazard[rows, cell(2.05, 0)[1]] == 100).all()
    assert (np.delete(result.hazard, cell(2.05, 0)[1], axis=1) == -1).all()
    # A low curb could be a drivable slope.
    wall[:, 2] *= 0.4
    assert (hazard_map(wall.astype(np.float32), LAYOUT, OPTIONS).hazard == -1).all()


def test_nothing_seen_is_an_unknown_grid():
    result = hazard_map(np.full((10, 3), np.nan, np.float32), LAYOUT)
    assert (result.hazard == -1).all()
    assert math.isnan(result.ground_m)
    assert (hazard_map(np.empty((0, 3), np.float32), LAYOUT).hazard == -1).all()


def test_grid_may_be_smaller_than_a_window():
    small = GridLayout(2.0, 0.0, 3, 2, 0.2)
    result = hazard_map(ground(lambda x, y: 0.1 * x), small, OPTIONS)
    np.testing.assert_allclose(result.slope_deg, math.degrees(math.atan(0.1)), atol=0.01)


def test_a_frame_takes_less_than_20_ms():
    """Of the processor, whatever else it does: as many points as 640x480 pixels."""
    points = ground(lambda x, y: 0.05 * np.sin(3 * x), count=640 * 480)
    layout = GridLayout(0.0, -10.0, 50, 100, 0.2)
    spent = []
    for _ in range(5):
        start = time.thread_time()
        hazard_map(points, layout)
        spent.append(time.thread_time() - start)
    assert min(spent) < 0.04  # measured 15 ms; machines differ


HAZARDS = ('slope_deg', 'step_m', 'hazard', 'roughness_m')


@pytest.fixture
def patchy_heights():
    """Return heights and scatter of waves with a ledge; a fifth of the cells are unknown."""
    rng = np.random.default_rng(2)
    height = np.tile(0.3 * np.sin(np.arange(60) / 5), (45, 1)).astype(np.float32)
    height[:, 30:] += np.float32(0.4)
    height += (0.01 * rng.standard_normal(height.shape)).astype(np.float32)
    height[rng.random(height.shape) < 0.2] = np.nan
    return height, (1e-4 * rng.random(height.shape)).astype(np.float32)


def test_hazards_of_a_map_do_not_depend_on_where_it_begins(patchy_heights):
    height, scatter = patchy_heights
    small = hazards_of_heights(height, scatter, 0.1, OPTIONS)
    large, there = np.full((160, 180), np.nan, np.float32), np.s_[53:98, 91:151]
    large[there] = height
    wide_scatter = np.zeros_like(large)
    wide_scatter[there] = scatter
    found = hazards_of_heights(large, wide_scatter, 0.1, OPTIONS)
    for name in HAZARDS:
        np.testing.assert_array_equal(getattr(found, name)[there], getattr(small, name), name)
    assert (small.hazard >= 0).sum() == (found.hazard >= 0).sum() > 1500
    nothing = hazards_of_heights(np.full((5, 6), np.nan), np.zeros((5, 6)), 0.1)
    assert (nothing.hazard == -1).all()


@pytest.mark.parametrize('part', [np.s_[0:9, 0:60], np.s_[17:31, 22:39], np.s_[44:45, 59:60]])
def test_hazards_of_a_part_are_those_of_the_whole(patchy_heights, part):
    whole = hazards_of_heights(*patchy_heights, 0.1, OPTIONS)
    found = hazards_of_heights(*patchy_heights, 0.1, OPTIONS, part)
    for name in HAZARDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[part], name)


@pytest.mark.parametrize('footprint_m', [0.5, 1.0, 2.1])
def test_a_height_changes_no_hazard_beyond_its_reach(patchy_heights, footprint_m):
    height, scatter = patchy_heights
    options = HazardOptions(footprint_m=footprint_m)
    height[22, 27] = 0.1
    before = hazards_of_heights(height, scatter, 0.1, options)
    height[22, 27] = 2.0
    after = hazards_of_heights(height, scatter, 0.1, options)
    for name in HAZARDS:
        one, other = getattr(before, name), getattr(after, name)
        rows, columns = np.nonzero((one != other) & ~(np.isnan(one) & np.isnan(other)))
        reach = max(np.abs(rows - 22).max(), np.abs(columns - 27).max())
        assert 0 < reach <= reach_of_change(0.1, options), name


@pytest.mark.parametrize(
    ('build', 'words'),
    [
        (lambda: HazardOptions(clearance_m=0.0), 'clearance_m is 0.0; it must be positive'),
        (lambda: HazardOptions(max_slope_deg=90.0), 'max_slope_deg is 90.0; below 90'),
        (lambda: GridLayout(0, 0, 300, 300, 0.1), '300x300 cells of 0.1 m'),
        (lambda: GridLayout(0, 0, 3, 0, 0.1), '3x0 cells'),
    ],
)
def test_impossible_options_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
