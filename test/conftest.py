"""A small recorded drive, written by the tests that need one."""

from __future__ import annotations

from collections.abc import Callable
import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.bags.writer import BagWriter, make_message, pose_message, transform_message
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.result_messages import camera_info_message, image_message

BAG_WIDTH, BAG_HEIGHT = 96, 64
BAG_DISPARITY_PX = 6.0
BAG_CALIBRATION = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, BAG_WIDTH, BAG_HEIGHT)
BAG_START_NS = 1_700_000_000_000_000_000
BAG_PERIOD_NS = 100_000_000
FRAME_ID = 'left_camera_optical_frame'
# A rover has no torch: there, `colcon test` leaves out what trains, renders and defines models.
TORCH_ONLY = ['models', 'simulation', 'training']
# What renders needs numba too; everything that trains runs on pairs that are there already.
NUMBA_ONLY = ['simulation']
if not importlib.util.find_spec('torch'):
    collect_ignore = TORCH_ONLY
elif not importlib.util.find_spec('numba'):
    collect_ignore = NUMBA_ONLY
else:
    collect_ignore = []


def pytest_report_header() -> str:
    """Say what is left out."""
    missing = 'numba' if collect_ignore is NUMBA_ONLY else 'torch'
    ignored = ', '.join(collect_ignore)
    return f'without {missing}, not collected: {ignored}' if ignored else ''


def frontal_views(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return left and right (H, W) uint8 of a textured wall with one disparity everywhere."""
    noise = np.random.default_rng(seed).standard_normal((BAG_HEIGHT, BAG_WIDTH + 16))
    texture = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.0)
    grey = np.clip(128 + 90 * texture, 0, 255).astype(np.uint8)
    shift = int(BAG_DISPARITY_PX)
    return grey[:, :BAG_WIDTH].copy(), grey[:, shift : BAG_WIDTH + shift].copy()


@pytest.fixture
def make_bag(tmp_path) -> Callable[..., Path]:
    """Return a function that writes a bag of a wall at 2 m and returns its path."""

    def make(
        name: str = 'drive',
        frames: int = 3,
        *,
        right_offset_ns: int = 0,
        infos: bool = True,
        right_tx: float | None = None,
        skip_right: tuple[int, ...] = (),
        encoding: str = 'mono8',
        right_rows_low: int = 0,
        result_topics: tuple[str, ...] = (),
    ) -> Path:
        calibration = BAG_CALIBRATION
        depth_m = calibration.fx * calibration.baseline_m / BAG_DISPARITY_PX
        depth = np.full((BAG_HEIGHT, BAG_WIDTH), depth_m, np.float32)
        depth[:4] = 0.0
        with BagWriter(tmp_path / name) as writer:
            for index in range(frames):
                stamp = BAG_START_NS + index * BAG_PERIOD_NS
                views = zip(('left', 'right'), frontal_views(index), strict=True)
                for side, view in views:
                    if side == 'right' and index in skip_right:
                        continue
                    if side == 'right':
                        view = np.roll(view, right_rows_low, axis=0)
                    own = stamp + (right_offset_ns if side == 'right' else 0)
                    message = image_message(make_message, view, encoding, own, FRAME_ID)
                    writer.write(f'/rig/{side}/image_rect', message, stamp)
                    info = camera_info_message(
                        make_message, calibration, own, FRAME_ID, right=side == 'right'
                    )
                    if side == 'right' and right_tx is not None:
                        info.p[3] = right_tx
                    if side == 'right':
                        info.k[5] += right_rows_low
                    if infos:
                        writer.write(f'/rig/{side}/camera_info', info, stamp)
                truth = image_message(make_message, depth, '32FC1', stamp, FRAME_ID)
                writer.write('/ground_truth/depth', truth, stamp)
                for topic in result_topics:
                    writer.write(topic, truth, stamp)
                # Looking along x of the map, z up.
                position = np.array([0.1 * index, 0.0, 1.0])
                orientation = np.array([-0.5, 0.5, -0.5, 0.5])
                pose = pose_message(position, orientation, stamp)
                writer.write('/ground_truth/pose', pose, stamp)
                writer.write('/tf', transform_message(position, orientation, stamp), stamp)
        return tmp_path / name

    return make
