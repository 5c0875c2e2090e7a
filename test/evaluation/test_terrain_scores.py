"""Hazards of a map against those of the true one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lunar_stereo_recon.evaluation.terrain_scores import hazard_figures, height_error, map_tables
from lunar_stereo_recon.geometry.hazard import HazardOptions, hazards_of_heights
from lunar_stereo_recon.geometry.terrain import TerrainLayers

CELL_M = 0.1


def layers(height):
    """Return the layers that a map of these heights has."""
    height = height.astype(np.float32)
    found = hazards_of_heights(height, np.zeros_like(height), CELL_M)
    sigma = np.where(np.isnan(height), np.nan, np.float32(0.01))
    known = np.ones_like(height)
    return TerrainLayers(
        0.0, 0.0, CELL_M, height, sigma, found.slope_deg, found.step_m, found.roughness_m, known,
        known, found.hazard,
    )  # fmt: skip


@pytest.fixture
def ground():
    """Return level ground of 4 m with a block of 0.25 m height."""
    height = np.zeros((40, 40))
    height[18:22, 18:22] = 0.25
    return height


# A block makes the plane of the footprint tilt; steps alone are looked at here.
STEPS_ONLY = HazardOptions(max_slope_deg=80.0)


def test_a_map_that_is_right_finds_all_steps_and_no_others(ground):
    figures = hazard_figures(layers(ground), layers(ground), STEPS_ONLY)
    assert figures['0.3 m']['steps'] == 0 and figures['0.3 m']['found'] is None
    assert figures['0.2 m']['steps'] >= 16 and figures['0.2 m']['found'] == 1.0
    assert figures['0.2 m']['unknown'] == figures['0.2 m']['missed'] == 0.0
    assert figures['0.2 m']['free'] > 1000 and figures['0.2 m']['false'] == 0.0


def test_flat_answers_miss_what_unknown_ones_leave_open(ground):
    flat = hazard_figures(layers(np.zeros_like(ground)), layers(ground), STEPS_ONLY)['0.2 m']
    assert flat['missed'] == 1.0 and flat['found'] == flat['unknown'] == 0.0
    unseen = ground.copy()
    unseen[14:26, 14:26] = np.nan
    unknown = hazard_figures(layers(unseen), layers(ground), STEPS_ONLY)['0.2 m']
    assert unknown['unknown'] == 1.0 and unknown['missed'] == 0.0


def test_an_imagined_block_is_a_false_alarm(ground):
    imagined = ground.copy()
    imagined[5:8, 5:8] = 0.4
    figures = hazard_figures(layers(imagined), layers(ground), STEPS_ONLY)
    assert 9 / 1600 < figures['0.3 m']['false'] < 60 / 1600


def test_tables_have_a_line_for_each_method_and_height(ground):
    true = layers(ground)
    off = dataclasses.replace(true, height=true.height + np.float32(0.015))
    figures = {
        'map_height_error': height_error(off, true),
        'map_hazards': hazard_figures(off, true, STEPS_ONLY),
    }
    heights, steps = map_tables({'student': figures, 'sgbm': {'map_cells': 3}})
    assert '| student | 1600 | 1.50 | 1.50 | 1.50 | 0.0 | 100.0 |' in heights
    assert [line.split(' | ')[1] for line in steps.splitlines()[2:]] == [
        '0.3 m',
        '0.2 m',
        '0.15 m',
    ]
    assert map_tables({'sgbm': {'map_cells': 3}}) == []
