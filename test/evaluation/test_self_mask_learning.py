"""Learning the self-mask: on drives made of textures, and on one of the simulator."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.cli import main
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.self_mask_learning import SelfMaskLearner
from lunar_stereo_recon.geometry.camera import points_from_depth

CAMERA = StereoCalibration(150.0, 150.0, 95.5, 63.5, 95.5, 0.3, 192, 128)
ROW, _ = np.mgrid[0:128, 0:192]
# Level ground: nothing above row 30, 45 px at the lower border.
GROUND_PX = np.where(ROW > 30, 45.0 * (ROW - 30) / 97, 0.0).astype(np.float32)
PART = np.zeros((128, 192), bool)
PART[90:120, 60:130] = True
PART_PX = 70.0


def frame(number, *, part=True, still=False, shadow=False):
    """Return a pair and its reconstruction: ground that moves, and a part of the rover."""
    rng = np.random.default_rng(0 if still else number)
    texture = cv2.GaussianBlur(rng.standard_normal((128, 192)).astype(np.float32), (0, 0), 1.5)
    look = np.where(ROW > 30, np.clip(0.4 + 0.5 * texture, 0, 1), 0).astype(np.float32)
    disparity = GROUND_PX + rng.normal(0, 0.2, GROUND_PX.shape).astype(np.float32)
    if shadow:
        look[100:128, 140:190] = 0.01
    if part:
        look[PART], disparity[PART] = 0.7, PART_PX
    noise = np.random.default_rng(100 + number).normal(0, 0.004, look.shape)
    look = np.clip(look + noise, 0, 1).astype(np.float32)
    confidence = np.where(disparity > 1, 0.9, 0.1).astype(np.float32)
    depth = np.where(disparity > 1, 45.0 / np.maximum(disparity, 1), np.nan).astype(np.float32)
    grey = np.repeat((255 * look).astype(np.uint8)[..., None], 3, axis=2)
    points = points_from_depth(depth, CAMERA)
    result = Reconstruction(disparity, depth, confidence, points, grey, CAMERA)
    return StereoPair(look, look, CAMERA), result


def learnt(count=12, **change):
    learner = SelfMaskLearner()
    for number in range(count):
        learner.add(*frame(number, **change))
    return learner.learn()


def overlap(found, true):
    return (found & true).sum() / (found | true).sum()


def test_a_part_is_found_and_its_place_in_the_right_view():
    found = learnt()
    assert (found.left & PART).sum() > 0.99 * PART.sum()
    assert overlap(found.left, PART) > 0.75  # it is grown over its edges
    right = np.roll(PART, -int(PART_PX), axis=1)
    right[:, 192 - int(PART_PX) :] = False
    # What it is grown over lies on the ground, and so elsewhere in the right view.
    assert (found.right & right).sum() > 0.99 * right.sum() and overlap(found.right, right) > 0.6
    assert found.persistence > 0.9 and found.agreement > 0.9 and found.frames == 12


def test_the_shadow_of_the_rover_is_no_part_of_it():
    found = learnt(shadow=True)
    assert not found.left[105:125, 150:185].any()
    assert overlap(found.left, PART) > 0.75


def test_a_view_without_parts_has_an_empty_mask():
    found = learnt(part=False)
    assert not found.left.any() and not found.right.any() and found.agreement == 1.0


def test_a_drive_in_which_nothing_moved_is_refused():
    with pytest.raises(InputError, match=r'nothing moved: 0\.\d % of the lit pixels'):
        learnt(still=True)


def test_too_few_frames_and_another_rig_are_refused():
    with pytest.raises(InputError, match='3 frames can be used; at least 8'):
        learnt(count=3)
    learner = SelfMaskLearner()
    learner.add(*frame(0))
    pair, result = frame(1)
    smaller = StereoPair(pair.left[:64], pair.right[:64], replace(CAMERA, height=64))
    with pytest.raises(InputError, match='192x64, those before were 192x128'):
        learner.add(smaller, result)


@pytest.mark.slow
def test_the_command_learns_the_parts_of_a_simulated_rover(tmp_path, capsys):
    pytest.importorskip('embreex')
    pytest.importorskip('torch')
    pytest.importorskip('numba')
    from lunar_stereo_recon.simulation import traverse
    from lunar_stereo_recon.simulation.renderer import render
    from lunar_stereo_recon.simulation.rock_mesh import joined
    from lunar_stereo_recon.simulation.rover_parts import sample_rover_parts
    from lunar_stereo_recon.simulation.terrain import make_terrain

    demo = traverse.demo_traverse(4)
    rig = replace(demo.rig, calibration=demo.rig.calibration.resized(320, 240), pitch_deg=-30.0)
    parts = sample_rover_parts(rig.height_m, np.random.default_rng(5))
    config = replace(demo, rig=rig, frames=10, rate_hz=1.0, samples=1, parts=parts)
    traverse.write_bag(tmp_path / 'drive', config)
    terrain, pose = make_terrain(config.terrain), traverse.drive(config)[0]
    view = traverse.left_camera(terrain, rig, pose)
    stand = traverse.rover_frame(view, pose.heading_rad, rig.height_m, rig.calibration.baseline_m)
    stones = 0 if terrain.rocks is None else len(terrain.rocks.triangles)
    seen = render(
        replace(terrain, rocks=joined([terrain.rocks, parts.moved(stand.numpy())])),
        view, config.lighting, 1, config.rover, stand,
    )  # fmt: skip
    true = seen.triangle.numpy() >= stones
    assert 0.01 < true.mean() < 0.5
    assert main(['mask', str(tmp_path / 'drive'), '--out', str(tmp_path / 'out')]) == 0
    found = cv2.imread(str(tmp_path / 'out' / 'mask.png'), cv2.IMREAD_GRAYSCALE) > 0
    assert 'of the left image shows the rover' in capsys.readouterr().out
    print(f'found {found.mean():.3f}, true {true.mean():.3f}, both {(found & true).mean():.3f}')
    # Its poles are nearer than what is searched, and so thin that the ground shines through.
    assert (found & true).sum() > 0.6 * true.sum()
    assert (found & ~true).sum() < 0.05 * (~true).sum()
    from lunar_stereo_recon.files.self_masks import read_self_mask

    names = [str(tmp_path / 'out' / name) for name in ('mask.png', 'mask_right.png')]
    assert (read_self_mask(*names).left == found).all()
