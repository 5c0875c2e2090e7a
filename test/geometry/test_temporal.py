"""The frame before: what it improves, and when it is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.geometry.pose_track import Pose
from lunar_stereo_recon.geometry.rotation import BODY_FROM_OPTICAL, rotation_from_rpy
from lunar_stereo_recon.geometry.temporal import EarlierFrame, steadied

CAMERA = StereoCalibration(200.0, 200.0, 159.5, 119.5, 159.5, 0.3, 320, 240)
SIGMA_PX = 0.1
LOOKING_DOWN = rotation_from_rpy(0.0, 0.5, 0.0) @ BODY_FROM_OPTICAL
TURNED = rotation_from_rpy(0.0, 0.5, 2.0) @ BODY_FROM_OPTICAL
SURE = np.full((240, 320), 0.9, np.float32)


def frame(number, error=0.0, step_m=0.1, pitch=0.5):
    """Return level ground seen on a drive, with errors, and the truth."""
    rotation = rotation_from_rpy(0.0, pitch, 0.02 * number) @ BODY_FROM_OPTICAL
    pose = Pose(rotation, np.array([step_m * number, 0.0, 1.4]))
    v, u = np.mgrid[0:240, 0:320].astype(np.float32)
    rays = np.stack([(u - 159.5) / 200, (v - 119.5) / 200, np.ones_like(u)])
    true = (np.maximum(-np.tensordot(rotation[2], rays, axes=1), 0.02) * 60 / 1.4).astype('f4')
    sigma = np.full_like(true, SIGMA_PX)
    return EarlierFrame((true + error).astype('f4'), sigma, CAMERA, 5 * 10**8 * number, pose), true


def test_the_mean_of_two_measurements_has_less_error():
    rng = np.random.default_rng(0)
    errors = [rng.normal(0, SIGMA_PX, (240, 320)) for _ in range(2)]
    before, _ = frame(0, errors[0])
    now, true = frame(1, errors[1])
    found, reason = steadied(now, SURE, before)
    assert reason == '' and found.dtype == np.float32
    deviation = (found - true)[40:200, 40:280].std()
    assert deviation < 0.8 * SIGMA_PX
    # Never stronger than the present frame: exact and wrong ones meet in the middle.
    found, _ = steadied(frame(1, 0.1)[0], SURE, replace(frame(0)[0], sigma_px=before.sigma_px / 9))
    assert np.median(found - true) == pytest.approx(0.05, abs=0.003)


def test_what_disagrees_keeps_the_word_of_the_present_images():
    now, true = frame(1)
    changed = np.zeros_like(true)
    changed[100:130, 100:140] = 3.0  # something stood there, 2 % of the view
    found, reason = steadied(now, SURE, frame(0, changed)[0])
    # Half of what two sigma allow, where the border of the thing is between two pixels.
    assert reason == '' and np.abs(found - true).max() < 0.15
    assert np.abs(found - true)[108:122, 108:132].max() < 1e-4
    vague = replace(now, sigma_px=np.full_like(true, 5.0))
    found, reason = steadied(vague, SURE, frame(0, changed)[0])
    assert reason == '' and np.abs(found - true)[108:122, 108:132].max() < 1e-4


def test_unknown_pixels_stay_unknown_and_spread_no_further():
    now, true = frame(1, 0.05)
    hole = np.zeros_like(true)
    hole[50:60, 50:60] = np.nan
    found, _ = steadied(replace(now, disparity=now.disparity + hole), SURE, frame(0)[0])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(hole))
    found, reason = steadied(now, SURE, frame(0, hole)[0])
    assert reason == '' and np.isfinite(found).all()


@pytest.mark.parametrize(
    'change, text',
    [
        ({'stamp_ns': -4 * 10**9}, '4.50 s older; 0 to 3 s'),
        ({'stamp_ns': 10**9}, '-0.50 s older'),
        ({'calibration': replace(CAMERA, fx=201.0)}, 'calibration'),
        ({'pose': Pose(LOOKING_DOWN, np.array([9.0, 0, 1.4]))}, 'moved'),
        ({'pose': Pose(TURNED, np.array([0.1, 0, 1.4]))}, 'turned'),
    ],
)
def test_frames_that_are_not_of_one_drive_are_left_out(change, text):
    now, _ = frame(1, 0.05)
    found, reason = steadied(now, SURE, replace(frame(0)[0], **change))
    assert text in reason and found is now.disparity


def test_wrong_poses_and_new_scenes_are_left_out():
    before, _ = frame(0)
    now, _ = frame(1)
    # A camera that nods, a rover that climbs by its pose alone, another scene. (A wrong way over
    # level ground changes no depth.)
    climbed = replace(now, pose=Pose(now.pose.rotation, now.pose.position + [0, 0, 0.05]))
    nodded = replace(now, pose=frame(1, pitch=0.51)[0].pose)
    rough = np.random.default_rng(0).normal(0, 2, (240, 320))
    for wrong in (climbed, nodded, frame(1, rough)[0]):
        found, reason = steadied(wrong, SURE, before)
        assert 'of the points disagree' in reason and found is wrong.disparity
    _, reason = steadied(now, 0 * SURE, before)
    assert reason == 'too little of the frame before is seen again'
