"""The hazard grid graded on ground whose steps are known."""

import dataclasses

import numpy as np
import pytest

from lunar_stereo_recon.benchmark.bootstrap import wilson_interval
from lunar_stereo_recon.benchmark.hazards import (
    graded_cells,
    ground_figures,
    hazard_tables,
    HazardScene,
    load_scene,
    step_figures,
    together,
)
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.rotation import BODY_FROM_OPTICAL
from lunar_stereo_recon.simulation.hazard_ground import (
    CELL_M,
    fine_places,
    FINE_SHAPE,
    LAYOUT,
    scene_file,
)

CAMERA_M = 1.4
CALIBRATION = StereoCalibration(230.0, 230.0, 159.5, 40.0, 159.5, 0.3, 320, 240)


def ground_with(box_m, height_m):
    """Return true heights, level but for a box: x from, x to, y from, y to."""
    x, y = fine_places().T
    west, east, south, north = box_m
    inside = (x > west) & (x < east) & (y > south) & (y < north)
    ground = np.where(inside, height_m - CAMERA_M, -CAMERA_M)
    return ground.reshape(FINE_SHAPE).astype(np.float32)


def seen_points(ground):
    """Return the places of the true ground between 2 and 9 m, in the optical frame."""
    points = np.column_stack([fine_places(), ground.reshape(-1)])
    near = (points[:, 0] > 2) & (points[:, 0] < 9) & (np.abs(points[:, 1]) < 0.6 * points[:, 0])
    return points[near] @ BODY_FROM_OPTICAL


@pytest.fixture
def scene():
    """Return a level scene with a box of 0.5 m height whose whole surface the camera sees."""
    ground = ground_with((4.0, 5.0, -0.5, 0.5), 0.5)
    depth = np.full((240, 320), np.nan, np.float32)
    pair = StereoPair(*np.zeros((2, 240, 320), np.float32), CALIBRATION)
    scene = HazardScene('a', 'box', pair, depth, depth > 0, BODY_FROM_OPTICAL, ground)
    # Depth from above: each column of the image goes down the ground before it.
    rows, columns = np.mgrid[:240, :320]
    down, right = (rows - CALIBRATION.cy) / CALIBRATION.fy, (columns - 159.5) / CALIBRATION.fx
    with np.errstate(divide='ignore'):
        flat = np.where(down > 0, CAMERA_M / down, np.nan)
        top = np.where(down > 0, (CAMERA_M - 0.5) / down, np.nan)
    on_top = (top > 4) & (top < 5) & (np.abs(right * top) < 0.5)
    front = (flat > 4) & (top <= 4) & (np.abs(right * 4) < 0.5)
    depth = np.where(on_top, top, np.where(front, 4.0, flat)).astype(np.float32)
    return dataclasses.replace(scene, depth=depth, shadow=np.zeros_like(depth, bool))


def test_true_points_find_every_step_and_nothing_else(scene):
    cells = graded_cells(scene, seen_points(scene.ground).astype(np.float32))
    figures = step_figures(cells, 0.3)
    assert figures['all']['steps'] > 10
    assert figures['all']['found'] == 1.0 and figures['all']['missed'] == 0.0
    low, high = figures['all']['found_interval']
    assert 0.7 < low < 1.0 and high == pytest.approx(1.0)
    assert figures['all']['free'] > 200 and figures['all']['false'] == 0.0
    assert figures['downwards']['steps'] < figures['upwards']['steps']
    assert figures['shadow']['steps'] == 0 and figures['shadow']['found'] is None
    assert figures['shadow']['found_interval'] is None
    near = ground_figures(cells)['to 10 m']
    assert near['height_mean_cm'] < 3 and near['slope_mean_deg'] < 3
    text = hazard_tables({'truth': cells})
    assert '| truth | all |' in text and 'nan' not in text


def test_steps_that_go_down_are_counted_apart(scene):
    pit = dataclasses.replace(scene, ground=ground_with((4.0, 5.0, -0.5, 0.5), -0.5))
    figures = step_figures(graded_cells(pit, seen_points(pit.ground).astype(np.float32)), 0.3)
    down, up = figures['downwards'], figures['upwards']
    assert down['steps'] > 10 and down['found'] == 1.0
    assert down['steps'] > 2 * up['steps']
    assert down['steps'] + up['steps'] == figures['all']['steps']


def test_the_interval_of_a_share_is_wilsons():
    low, high = wilson_interval(0.9, 10)
    assert (low, high) == pytest.approx((0.596, 0.982), abs=1e-3)
    assert wilson_interval(1.0, 70) == pytest.approx((0.948, 1.0), abs=1e-3)
    assert wilson_interval(0.0, 0) is None


def test_flat_answer_misses_the_box(scene):
    flat = seen_points(ground_with((0, 0, 0, 0), 0.0)).astype(np.float32)
    figures = step_figures(graded_cells(scene, flat), 0.3)['all']
    assert figures['found'] == 0.0 and figures['missed'] == 1.0


def test_an_imagined_rock_is_a_false_alarm(scene):
    other = seen_points(ground_with((6.0, 7.0, 1.0, 2.0), 0.5)).astype(np.float32)
    assert step_figures(graded_cells(scene, other), 0.3)['all']['false'] > 0.02


def test_what_nobody_says_anything_of_is_unknown_and_never_free(scene):
    cells = graded_cells(scene, np.full((5, 3), np.nan, np.float32))
    figures = step_figures(cells, 0.3)['all']
    assert figures['unknown'] == 1.0 and figures['missed'] == 0.0 and figures['free'] == 0
    for kind in ('free_unseen', 'free_no_pixel', 'free_hidden'):
        assert ground_figures(cells)['to 10 m'][kind] is None


def test_ground_that_is_hidden_and_called_free_is_counted(scene):
    """The camera sees over the box of 0.5 m again from 7.8 m on."""
    everywhere = seen_points(ground_with((0, 0, 0, 0), 0.0)).astype(np.float32)
    cells = graded_cells(scene, everywhere)
    x, y = LAYOUT.x_m + CELL_M * (np.arange(LAYOUT.columns) + 0.5), 0.1
    behind = round((y - LAYOUT.y_m) / CELL_M - 0.5) * LAYOUT.columns + np.arange(LAYOUT.columns)
    hidden = cells.hidden[behind]
    assert hidden[(x > 5.3) & (x < 7.4)].all()
    assert not hidden[(x > 2.3) & (x < 4.9) | (x > 8.0)].any()
    assert not (cells.hidden & (cells.pixels > 0)).any()
    figures = ground_figures(cells)['to 10 m']
    assert 0 < figures['free_hidden'] <= figures['free_no_pixel'] <= figures['free_unseen']
    # Points that are not plainly seen make nothing free.
    doubtful = graded_cells(scene, everywhere, np.zeros(len(everywhere), bool))
    assert ground_figures(doubtful)['to 10 m']['free_hidden'] is None


def test_a_height_that_is_off_is_said_in_centimetres(scene):
    raised = scene.ground + np.float32(0.05)
    cells = graded_cells(scene, seen_points(raised).astype(np.float32))
    flat = ground_figures(graded_cells(scene, seen_points(scene.ground).astype(np.float32)))
    bias = ground_figures(together([cells, cells]))['to 10 m']['height_bias_cm']
    assert bias == pytest.approx(5.0 + flat['to 10 m']['height_bias_cm'], abs=0.1)


def test_a_scene_is_read_from_its_file(scene, tmp_path):
    path = scene_file(tmp_path, 'south_pole', True, 3)
    np.savez(
        path,
        left=np.zeros((240, 320), np.uint8),
        right=np.zeros((240, 320), np.uint8),
        depth=scene.depth,
        shadow=scene.shadow,
        level_from_optical=BODY_FROM_OPTICAL,
        ground=scene.ground,
        intrinsics=np.array([[230.0, 0, 159.5], [0, 230.0, 40.0], [0, 0, 1]]),
        baseline_m=0.3,
    )
    read = load_scene(path)
    assert read.group == 'south pole, low sun'
    assert read.pair.calibration == CALIBRATION
    np.testing.assert_array_equal(read.ground, scene.ground)


def test_options_of_the_other_reports_are_refused(capsys):
    assert main(['bench', '--hazards', '--speed']) != 0
    assert '--hazards has pairs' in capsys.readouterr().err


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError):
        load_scene(tmp_path / 'x-typical_sun-00.npz')
