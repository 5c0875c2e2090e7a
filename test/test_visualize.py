"""Colour scales, contact sheet, cloud view."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.visualize import (
    ColorScale,
    contact_sheet,
    depth_scale,
    NO_VALUE_COLOR,
    PAPER_COLOR,
    render_cloud,
    SheetRow,
    SPACE_COLOR,
)


@pytest.fixture
def scale():
    return ColorScale('depth, m', 1.0, 100.0, cv2.COLORMAP_TURBO, logarithmic=True)


def test_equal_ratios_are_equal_steps_on_a_logarithmic_scale(scale):
    np.testing.assert_allclose(scale.position(np.array([1, 10, 100, 1e4, 0.1])), [0, 0.5, 1, 1, 0])


def test_missing_values_have_a_colour_of_their_own(scale):
    colors = scale.colors(np.array([[np.nan, 2.0]]))
    assert tuple(colors[0, 0]) == NO_VALUE_COLOR
    assert tuple(colors[0, 1]) != NO_VALUE_COLOR


def test_reversed_scale_swaps_the_ends():
    forward = ColorScale('', 0.0, 1.0, cv2.COLORMAP_VIRIDIS)
    backward = ColorScale('', 0.0, 1.0, cv2.COLORMAP_VIRIDIS, reverse=True)
    ends = np.array([[0.0, 1.0]])
    np.testing.assert_array_equal(forward.colors(ends), backward.colors(ends[:, ::-1]))


@pytest.mark.parametrize(
    ('low', 'high', 'logarithmic', 'expected'),
    [
        (0.0, 1.0, False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 3.0, False, [0.0, 1.0, 2.0, 3.0]),
        (-0.42, 0.35, False, [-0.4, -0.2, 0.0, 0.2]),
        (1.8, 61.0, True, [2.0, 5.0, 10.0, 20.0, 50.0]),
    ],
)
def test_ticks_are_round(low, high, logarithmic, expected):
    ticks = ColorScale('', low, high, cv2.COLORMAP_TURBO, logarithmic=logarithmic).ticks()
    np.testing.assert_allclose(ticks, expected, atol=1e-9)


def test_bar_shows_the_colours_of_the_scale_in_order(scale):
    bar = scale.bar(228)
    ends = scale.colors(np.array([[1.0, 100.0]]))[0]
    np.testing.assert_array_equal(bar[28, [14, 213]], ends)


def test_numbers_of_a_bar_stand_apart():
    bar = ColorScale('', 1.0, 1e6, cv2.COLORMAP_TURBO, logarithmic=True).bar(300)
    inked = (bar[42:] != PAPER_COLOR).any(axis=(0, 2))
    # Numbers that run into each other leave few gaps of more than two columns.
    starts = np.flatnonzero(np.diff(np.concatenate([[0], inked.astype(int)])) == 1)
    ends = np.flatnonzero(np.diff(np.concatenate([inked.astype(int), [0]])) == -1)
    gaps = starts[1:] - ends[:-1]
    assert (gaps >= 4).sum() >= 5


def test_sky_does_not_stretch_the_depths_of_a_sheet():
    left = np.full((24, 32, 3), 120, np.uint8)
    depth = np.repeat(np.linspace(20, 2, 24)[:, None], 32, axis=1)
    confidence = np.ones((24, 32))
    depth[:8], confidence[:8] = 20000.0, 0.02
    sheet = contact_sheet('a', [SheetRow('', left, depth, confidence)], 64)
    picture = sheet[-58 - 48 : -58, 80:144]  # above the legends, right of the left image
    expected = depth_scale([depth[8:]]).colors(depth)[-1, 0]
    np.testing.assert_array_equal(picture[-1, 32], expected)
    middle = depth_scale([depth[8:]]).colors(depth)[16, 0].astype(int)
    assert np.abs(picture[32:34, 32].astype(int) - middle).max() < 40


def test_depth_scale_spans_all_maps_and_survives_none():
    near, far = np.full((8, 8), 2.0), np.full((8, 8), 30.0)
    far[0, 0] = np.nan
    scale = depth_scale([near, far])
    assert (scale.low, scale.high) == pytest.approx((2.0, 30.0))
    empty = depth_scale([np.full((8, 8), np.nan)])
    assert 0 < empty.low < empty.high


def test_contact_sheet_has_an_error_column_only_with_ground_truth():
    left = np.full((24, 32, 3), 120, np.uint8)
    depth = np.linspace(2, 20, 24 * 32).reshape(24, 32)
    plain = SheetRow('frame 0', left, depth, np.ones((24, 32)))
    scored = SheetRow('frame 1', left, depth, np.ones((24, 32)), np.zeros((24, 32)))
    three, four = contact_sheet('a', [plain], 64), contact_sheet('a', [plain, scored], 64)
    assert three.shape[1] == 3 * 64 + 4 * 8
    assert four.shape[1] == 4 * 64 + 5 * 8
    # The left image itself is on the sheet, at the left.
    assert (three[:, 8:72] == 120).all(axis=2).sum() >= 64 * 48


def test_cloud_view_puts_points_where_they_are_and_the_nearer_in_front():
    points = np.array([[4.0, 0.0, 0.0], [8.0, 0.0, 0.0], [4.0, -1.0, 0.0], [-2.0, 0.0, 0.0]])
    colors = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]])
    view = render_cloud(
        points,
        colors,
        np.zeros(3),
        np.array([1.0, 0.0, 0.0]),
        size=(101, 101),
        field_of_view_deg=90.0,
        point_size_m=0.01,
    )
    assert tuple(view[50, 50]) == (255, 0, 0)
    # One metre to the right at four metres: 50.5 px * 1/4 right of the centre.
    assert tuple(view[50, 63]) == (0, 0, 255)
    assert tuple(view[0, 0]) == SPACE_COLOR
    assert (view == (9, 9, 9)).all(axis=2).sum() == 0
