"""Edges, thin things and flying points of made-up surfaces."""

import numpy as np
import pytest

from lunar_stereo_recon.geometry.surfaces import depth_edges, flying_points, thin_surfaces


@pytest.fixture
def wall():
    """Return a wall at 20 px before ground at 10 px, from column 20 on."""
    disparity = np.full((24, 40), 10.0)
    disparity[:, 20:] = 20.0
    return disparity


def test_edges_reach_three_pixels_to_both_sides(wall):
    edges = depth_edges(wall)
    assert edges[:, 17:23].all() and edges.sum() == 24 * 6
    assert not depth_edges(np.where(wall == 20, 11.5, 10.0)).any()


def test_edge_to_the_unknown_is_none(wall):
    wall[:, 20:] = np.nan
    assert not depth_edges(wall).any()


def test_stick_is_thin_and_wall_is_not(wall):
    assert not thin_surfaces(wall).any()
    wall[:, 5:8] = 13.0
    wall[12:15, 25:] = 22.0
    thin = thin_surfaces(wall)
    assert thin[:, 5:8].all() and thin[12:15, 25:].all()
    assert thin.sum() == 24 * 3 + 3 * 15


@pytest.mark.parametrize('width, is_thin', [(8, True), (9, False)])
def test_thin_ends_at_eight_pixels(width, is_thin):
    disparity = np.full((24, 40), 10.0)
    disparity[:, 10 : 10 + width] = 14.0
    assert thin_surfaces(disparity).any() == is_thin


def test_slope_and_border_of_the_known_are_not_thin():
    disparity = np.broadcast_to(5 + 0.4 * np.arange(24.0)[:, None], (24, 40)).copy()
    assert not thin_surfaces(disparity).any()
    disparity[:, :15] = disparity[:, 18:] = np.nan
    assert not thin_surfaces(disparity).any()


def test_points_between_two_surfaces_fly(wall):
    estimate = wall.copy()
    estimate[5, 19] = 15.0
    # A surface seen one to three pixels away is none of it.
    estimate[6, 17], estimate[7, 16] = 20.0, 20.0
    estimate[8, 2], estimate[8, 3] = 10.25, 10.4
    flying = flying_points(estimate, wall, np.isfinite(wall))
    assert flying[5, 19] and flying[7, 16] and flying[8, 3]
    assert flying.sum() == 3


def test_a_mean_of_two_surfaces_flies_and_neither_of_them_does(wall):
    everywhere = np.isfinite(wall)
    assert not flying_points(wall, wall, everywhere).any()
    near_edge = flying_points(np.full(wall.shape, 15.0), wall, everywhere)
    assert near_edge.all()
    # Near surface everywhere: right up to 3 px before the edge, and what stands there flies not.
    spread = flying_points(np.full(wall.shape, 20.0), wall, everywhere)
    assert spread[:, :17].all() and not spread[:, 17:].any()


def test_limit_is_three_percent_of_depth_whatever_the_distance(wall):
    for scale in (0.2, 1.0, 5.0):
        truth = wall[:, :10] * scale
        for share, flies in ((0.971, False), (1.029, False), (0.969, True), (1.031, True)):
            # Depth is that share of the true one.
            found = flying_points(truth / share, truth, np.isfinite(truth))
            assert found.all() == found.any() == flies


def test_far_away_three_percent_is_less_than_a_pixel(wall):
    truth = wall / 5  # 2 and 4 px
    estimate = truth + 0.5
    everywhere = np.isfinite(truth)
    assert flying_points(estimate, truth, everywhere).all()
    assert not flying_points(estimate, truth, everywhere, beyond_px=1.0).any()
    assert flying_points(wall + 1.5, wall, everywhere, beyond_px=1.0).all()


def test_occluded_ground_counts_like_the_rest(wall):
    # To the left of the wall the right view sees nothing. A matcher may continue either surface.
    hidden = np.zeros(wall.shape, bool)
    hidden[:, 10:20] = True
    continued = np.where(hidden, 20.0, wall)
    flying = flying_points(continued, wall, np.isfinite(wall))
    # The wall, continued, is beside its true place within 3 px alone.
    assert flying[:, 10:17].all() and flying.sum() == 24 * 7
    ground = np.where(hidden, 10.0, wall)
    assert not flying_points(ground, wall, np.isfinite(wall)).any()


def test_far_surface_that_does_not_count_keeps_points_from_flying(wall):
    counts = wall == 20.0
    estimate = np.where(np.arange(40) == 20, 10.0, wall)
    assert not flying_points(estimate, wall, counts).any()
    assert flying_points(estimate, np.where(counts, wall, np.nan), counts)[:, 20].all()


def test_where_nothing_is_known_nothing_flies(wall):
    seen = np.zeros(wall.shape, bool)
    assert not flying_points(wall + 5, wall, seen).any()
