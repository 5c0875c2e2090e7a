"""The rolling elevation map: heights, variances, moving, contradictions, bad input."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.hazard import HazardOptions
from lunar_stereo_recon.geometry.rotation import BODY_FROM_OPTICAL, rotation_from_rpy
from lunar_stereo_recon.geometry.terrain import (
    depth_deviation_m,
    MOST_CONTRADICTIONS,
    SMALLEST_DEVIATION_M,
    TerrainLayers,
    TerrainMap,
    TerrainOptions,
)

# Down at 30 degrees, x ahead; the camera stands 1.5 m over the ground.
ROTATION = rotation_from_rpy(0.0, math.radians(30), 0.0) @ BODY_FROM_OPTICAL
HEIGHT_M = 1.5
OPTIONS = TerrainOptions(length_m=6.0, cell_m=0.1, max_range_m=5.0, tilt_deg=0.0)


def seen_ground(ground, position, rng=None, noise_m=0.0):
    """Return points (N, 3) in the optical frame of ground z = ground(x, y) around a camera."""
    x, y = np.meshgrid(np.arange(0.6, 2.9, 0.02), np.arange(-1.0, 1.0, 0.02))
    x, y = x.ravel() + position[0], y.ravel() + position[1]
    points = (np.stack([x, y, ground(x, y)], axis=1) - position) @ ROTATION
    if rng is not None:
        points *= 1 + noise_m * rng.standard_normal((len(points), 1)) / points[:, 2:]
    return points.astype(np.float32)


def add(terrain, ground, x_m=0.0, y_m=0.0, time_s=0.0, sigma_m=0.02, **noise):
    position = np.array([x_m, y_m, HEIGHT_M])
    points = seen_ground(ground, position, **noise)
    sigma = np.full(len(points), sigma_m, np.float32)
    sure = np.full(len(points), 0.9, np.float32)
    return terrain.add(points, sigma, sure, ROTATION, position, time_s)


def level(x, y):
    return np.zeros_like(x)


def at(layers: TerrainLayers, name: str, x_m: float, y_m: float):
    row, column = (
        math.floor((value - corner) / layers.cell_m)
        for value, corner in ((y_m, layers.y_m), (x_m, layers.x_m))
    )
    return getattr(layers, name)[row, column]


def test_a_slope_is_mapped_where_it_is():
    terrain = TerrainMap(OPTIONS)
    add(terrain, lambda x, y: 0.2 * x - 0.1 * y)
    layers = terrain.layers()
    for x, y in ((1.05, 0.55), (2.35, -0.75), (0.85, 0.05)):
        assert at(layers, 'height', x, y) == pytest.approx(0.2 * x - 0.1 * y, abs=0.004)
    inner = layers.slope[np.isfinite(layers.slope)]
    assert np.median(inner) == pytest.approx(math.degrees(math.atan(math.hypot(0.2, 0.1))), 0.03)
    assert at(layers, 'confidence', 1.05, 0.55) == pytest.approx(0.9)
    assert 0 <= at(layers, 'cost', 1.05, 0.05) < 99


def test_unseen_ground_is_unknown_in_every_layer():
    terrain = TerrainMap(OPTIONS)
    add(terrain, level)
    layers = terrain.layers()
    for name in ('height', 'deviation', 'slope', 'step', 'roughness', 'confidence', 'age'):
        assert math.isnan(at(layers, name, -1.0, 0.0)), name
    assert at(layers, 'cost', -1.0, 0.0) == -1


def test_the_deviation_says_how_far_heights_are_off():
    """Frames share an error, as those of one network do: to add more makes nothing better."""
    rng, errors, deviations = np.random.default_rng(1), [], []
    for _ in range(40):
        terrain, error_m = TerrainMap(OPTIONS), 0.05 * rng.standard_normal()
        for frame in range(4):
            points = seen_ground(level, np.array([0.0, 0.0, HEIGHT_M]))
            points *= 1 + error_m / points[:, 2:]
            sigma, sure = np.full(len(points), 0.05), np.ones(len(points))
            terrain.add(points, sigma, sure, ROTATION, np.array([0, 0, HEIGHT_M]), 0.5 * frame)
        layers = terrain.layers()
        known = np.isfinite(layers.height)
        errors.append(np.abs(layers.height[known]))
        deviations.append(layers.deviation[known])
    error, deviation = np.concatenate(errors), np.concatenate(deviations)
    assert 0.55 < (error <= deviation).mean() < 0.85
    assert 0.9 < (error <= 2 * deviation).mean()


def test_errors_of_poses_average_out_down_to_what_matching_leaves():
    options = TerrainOptions(6.0, 0.1, 5.0, tilt_deg=2.0, drift=0.0, aging=0.0)
    terrain, found = TerrainMap(options), []
    for frame in range(60):
        add(terrain, level, time_s=0.1 * frame, sigma_m=0.02)
        found.append(at(terrain.layers(), 'deviation', 2.05, 0.05))
    assert found[0] == pytest.approx(math.radians(2.0) * 2.05, rel=0.1)
    assert found[3] == pytest.approx(found[0] / 2, rel=0.1)
    least = TerrainMap(OPTIONS)
    add(least, level, sigma_m=0.02)
    assert found[-1] == pytest.approx(at(least.layers(), 'deviation', 2.05, 0.05), rel=0.1)


def test_cells_stay_where_they_are_while_the_map_moves_on():
    terrain = TerrainMap(OPTIONS)

    def ground(x, y):
        return 0.05 * np.sin(2 * x) + 0.03 * y

    for frame in range(60):  # 6 m: once around the buffer and more
        add(terrain, ground, 0.13 * frame, -0.05 * frame, 0.5 * frame)
    layers = terrain.layers()
    x = layers.x_m + layers.cell_m * (np.arange(layers.height.shape[1]) + 0.5)
    y = layers.y_m + layers.cell_m * (np.arange(layers.height.shape[0]) + 0.5)
    error = layers.height - ground(*np.meshgrid(x, y))
    known = np.isfinite(error)
    assert known.sum() > 800
    assert np.abs(error[known]).max() < 0.02
    assert x.mean() == pytest.approx(0.13 * 59, abs=0.1)
    # Behind the rover the map ends with its edge, and what left it did not come back ahead.
    assert np.isnan(layers.height[:, x > 0.13 * 59 + 2.95]).all()


def test_ground_that_left_the_map_is_forgotten():
    terrain = TerrainMap(OPTIONS)
    add(terrain, level)
    add(terrain, lambda x, y: level(x, y) + 1.0, 50.0, -70.0, 1.0)
    add(terrain, lambda x, y: level(x, y) + 2.0, 0.0, 0.0, 2.0)
    height = terrain.layers().height
    assert np.isnan(height).any() and height[np.isfinite(height)] == pytest.approx(2.0, abs=0.01)


def test_a_single_contradiction_is_left_out_and_a_lasting_one_holds():
    terrain = TerrainMap(OPTIONS)
    for frame in range(4):
        add(terrain, level, time_s=0.1 * frame)
    raised = 0.4
    for frame in range(MOST_CONTRADICTIONS):
        assert at(terrain.layers(), 'height', 1.05, 0.05) == pytest.approx(0.0, abs=0.01)
        add(terrain, lambda x, y: level(x, y) + raised, time_s=0.5 + 0.1 * frame)
    assert at(terrain.layers(), 'height', 1.05, 0.05) == pytest.approx(raised, abs=0.01)


@pytest.mark.parametrize('aging', [0.0, 0.05])
def test_layers_by_and_by_are_those_of_all_at_once(aging):
    """To and fro, so that cells come back that have lost their surroundings over an edge."""
    rng = np.random.default_rng(5)
    options = TerrainOptions(6.0, 0.1, 5.0, aging=aging, max_deviation_m=0.1)
    often, once = TerrainMap(options), TerrainMap(options)

    def ground(x, y):
        return 0.1 * np.sin(3 * x) + 0.05 * y + np.where(np.hypot(x - 2, y) < 0.4, 0.3, 0.0) + 90

    places = [*np.arange(0, 3, 0.23), *np.arange(3, -3, -0.31), 40.0, 40.1]
    for frame, x_m in enumerate(places):
        position = np.array([x_m, 0.7 * x_m, 90 + HEIGHT_M])
        points = seen_ground(ground, position, rng, 0.03)
        points[rng.random(len(points)) < 0.9] = np.nan
        sigma, sure = rng.uniform(0.01, 0.2, len(points)), np.ones(len(points))
        for terrain in (often, once):
            terrain.add(points, sigma, sure, ROTATION, position, 0.5 * frame)
        layers = often.layers()
        if frame in (len(places) // 4, len(places) // 2, 3 * len(places) // 4, len(places) - 1):
            # As if it had never been asked before.
            whole = copy.deepcopy(once).layers()
            for name in ('height', 'deviation', 'slope', 'step', 'roughness', 'cost', 'age'):
                np.testing.assert_array_equal(getattr(layers, name), getattr(whole, name), name)
            assert np.isfinite(layers.slope).sum() > 100


def test_way_and_age_make_heights_less_certain():
    options = TerrainOptions(6.0, 0.1, 5.0, tilt_deg=0.0, drift=0.01, aging=0.002)
    terrain = TerrainMap(options)
    add(terrain, level, sigma_m=0.004)
    before = at(terrain.layers(), 'deviation', 1.05, 0.05)
    nothing = np.empty((0, 3), np.float32), np.empty(0), np.empty(0)
    terrain.add(*nothing, ROTATION, np.array([-1.0, 0.0, HEIGHT_M]), 9.0)
    layers = terrain.layers()
    expected = math.sqrt(before**2 + 0.01**2 * 1.0 + 0.002**2 * 9.0)
    assert at(layers, 'deviation', 1.05, 0.05) == pytest.approx(expected, rel=1e-3)
    assert at(layers, 'age', 1.05, 0.05) == pytest.approx(9.0)


def test_the_tilt_of_the_pose_counts_with_the_distance():
    terrain = TerrainMap(TerrainOptions(6.0, 0.1, 5.0, tilt_deg=1.0))
    add(terrain, level, sigma_m=0.004)
    layers = terrain.layers()
    near, far = (at(layers, 'deviation', x, 0.05) for x in (0.75, 2.65))
    assert far == pytest.approx(math.radians(1.0) * 2.65, rel=0.1)
    assert near < 0.4 * far


def test_uncertain_cells_are_unknown():
    terrain = TerrainMap(OPTIONS)
    add(terrain, level, sigma_m=1.0)
    assert np.isnan(terrain.layers().height).all()
    assert (terrain.layers().cost == -1).all()


def test_a_ledge_is_a_step_and_a_slope_is_none():
    hazard = HazardOptions(clearance_m=0.25, max_slope_deg=25.0, footprint_m=0.5)
    terrain = TerrainMap(TerrainOptions(6.0, 0.1, 5.0, tilt_deg=0.0, hazard=hazard))
    add(terrain, lambda x, y: np.where(x > 1.75, 0.3, 0.0))  # within a cell
    ledge = terrain.layers()
    assert at(ledge, 'step', 1.75, 0.05) == pytest.approx(0.3, abs=0.06)
    assert at(ledge, 'cost', 1.75, 0.05) == 100
    assert at(ledge, 'cost', 1.05, 0.05) < 50
    assert at(ledge, 'roughness', 1.75, 0.05) > 5 * at(ledge, 'roughness', 1.05, 0.05)
    terrain.reset()
    add(terrain, lambda x, y: 0.3 * x)
    slope = terrain.layers()
    assert at(slope, 'step', 1.75, 0.05) < 0.03
    assert 50 < at(slope, 'cost', 1.75, 0.05) < 99


@pytest.mark.parametrize('sigma_m', [0.0, -1.0, math.nan, math.inf])
def test_points_without_a_usable_sigma_are_left_out(sigma_m):
    terrain = TerrainMap(OPTIONS)
    assert add(terrain, level, sigma_m=sigma_m) == 0
    assert np.isnan(terrain.layers().height).all()


def test_far_unsure_and_invalid_points_are_left_out():
    terrain = TerrainMap(OPTIONS)
    points = np.array([[0, 0.5, 1], [0, 0.5, 9], [np.nan] * 3, [0, 0.5, 1.5]], np.float32)
    sure = np.array([0.9, 0.9, 0.9, 0.1])
    pose = ROTATION, np.array([0.0, 0.0, HEIGHT_M])
    assert terrain.add(points, np.full(4, 0.01), sure, *pose, 0.0) == 1


def test_time_that_goes_back_and_poses_that_are_none_are_refused():
    terrain = TerrainMap(OPTIONS)
    add(terrain, level, time_s=5.0)
    with pytest.raises(InputError, match='time goes back from 5.000 s to 4.000 s'):
        add(terrain, level, time_s=4.0)
    terrain.reset()
    assert terrain.empty
    add(terrain, level, time_s=4.0)
    for rotation, x_m in ((2 * ROTATION, 0.0), (ROTATION, math.nan), (ROTATION, 1e9)):
        with pytest.raises(InputError, match='pose of the camera'):
            terrain.add(
                np.zeros((1, 3), np.float32),
                np.ones(1),
                np.ones(1),
                rotation,
                np.array([x_m, 0.0, 0.0]),
                6.0,
            )


@pytest.mark.parametrize(
    'change, text',
    [
        ({'length_m': 1000.0, 'cell_m': 0.1}, '10000x10000 cells of 0.1 m'),
        ({'cell_m': 0.0}, 'cell_m is 0.0'),
        ({'length_m': math.inf}, 'length_m is inf'),
        ({'tilt_deg': -1.0}, 'tilt_deg is -1.0'),
        ({'min_confidence': 2.0}, 'min_confidence is 2.0'),
    ],
)
def test_options_out_of_range_are_refused(change, text):
    with pytest.raises(InputError, match=text):
        TerrainOptions(**change)


def test_an_empty_map_has_no_layers():
    with pytest.raises(InputError, match='nothing was added'):
        TerrainMap(OPTIONS).layers()


def test_depth_deviation_grows_with_the_square_of_the_depth_and_with_doubt():
    sigma = depth_deviation_m(np.array([0.9, 0.9, 0.5]), np.array([2.0, 4.0, 2.0]), 138.0)
    assert sigma[1] == pytest.approx(4 * sigma[0])
    assert sigma[2] > 2 * sigma[0] > 10 * SMALLEST_DEVIATION_M
