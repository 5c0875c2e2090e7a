"""The map of a recorded drive: picture and figures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration
from lunar_stereo_recon.evaluation.terrain_drive import TerrainDrive
from lunar_stereo_recon.files.images import read_image
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.rotation import BODY_FROM_OPTICAL, rotation_from_rpy

CAMERA = StereoCalibration(80.0, 80.0, 63.5, 47.5, 63.5, 0.3, 128, 96)
ROTATION = rotation_from_rpy(0.0, 0.5, 0.0) @ BODY_FROM_OPTICAL


def seen(number, posed=True, true=True):
    """Return level ground that is seen 1 % too deep, with its truth."""
    v, u = np.mgrid[0:96, 0:128].astype(np.float32)
    rays = np.stack([(u - 63.5) / 80, (v - 47.5) / 80, np.ones_like(u)])
    down = np.tensordot(ROTATION[2], rays, axes=1)
    depth = np.where(down < -0.1, -1.4 / down, np.nan).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = ROTATION, (0.2 * number, 0.0, 1.4)
    frame = SimpleNamespace(
        stamp_ns=number * 10**9,
        pose=SimpleNamespace(matrix=matrix) if posed else None,
        depth=lambda: depth if true else None,
    )
    found = (1.01 * depth).astype(np.float32)
    grey, sure = np.zeros((96, 128, 3), np.uint8), np.full_like(depth, 0.95)
    points = points_from_depth(found, CAMERA)
    return Reconstruction(found, found, sure, points, grey, CAMERA), frame


def test_the_map_is_drawn_and_compared_with_the_truth(tmp_path):
    drive = TerrainDrive()
    for number in range(4):
        drive.add_result(*seen(number, true=number % 2 == 0))
    figures = drive.write(tmp_path)
    error = figures['map_height_error']
    assert figures['map_cells'] > 500 and error['cells'] > 500
    assert error['median_m'] == pytest.approx(0.014, abs=0.004)  # 1 % of 1.4 m
    assert 0 <= error['within_1_sigma'] <= error['within_2_sigma'] <= 1
    hazards = figures['map_hazards']['0.3 m']
    assert hazards['steps'] == 0 and hazards['free'] > 500 and hazards['false'] == 0
    picture = read_image(tmp_path / 'map.png')
    assert picture.shape[1] > 4 * 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_a_drive_without_poses_has_no_map(tmp_path):
    drive = TerrainDrive()
    drive.add_result(*seen(0, posed=False))
    assert drive.write(tmp_path) == {} and not (tmp_path / 'map.png').exists()
