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


def test_where_nothing_is_known_nothing_flies(wall):
    seen = np.zeros(wall.shape, bool)
    assert not flying_points(wall + 5, wall, seen).any()
