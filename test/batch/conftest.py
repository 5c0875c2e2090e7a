"""Small recordings for batches: textured walls in several chunks, with damage where wanted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.bags.writer import BagWriter, make_message
from lunar_stereo_recon.batch.settings import BatchSettings
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.result_messages import camera_info_message, image_message

WIDTH, HEIGHT, DISPARITY_PX = 320, 240, 12
CALIBRATION = StereoCalibration(300.0, 300.0, 159.5, 119.5, 159.5, 0.2, WIDTH, HEIGHT)
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 500_000_000


@pytest.fixture
def make_drive(tmp_path):
    """Return a function that writes a bag whose shards have some 7 frames each."""

    def make(name='drive', frames=21, *, seed=0, bad_frames=()) -> Path:
        with BagWriter(tmp_path / name) as writer:
            for index in range(frames):
                stamp = START_NS + index * PERIOD_NS
                noise = np.random.default_rng([seed, index]).standard_normal((HEIGHT, WIDTH + 16))
                texture = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.0)
                grey = np.clip(128 + 90 * texture, 0, 255).astype(np.uint8)
                for side, shift in (('left', 0), ('right', DISPARITY_PX)):
                    view = np.ascontiguousarray(grey[:, shift : shift + WIDTH])
                    encoding = 'mono9' if index in bad_frames else 'mono8'
                    image = image_message(make_message, view, encoding, stamp, 'camera')
                    info = camera_info_message(
                        make_message, CALIBRATION, stamp, 'camera', right=side == 'right'
                    )
                    writer.write(f'/rig/{side}/image_rect', image, stamp)
                    writer.write(f'/rig/{side}/camera_info', info, stamp)
        return tmp_path / name

    return make


@pytest.fixture
def settings() -> BatchSettings:
    return BatchSettings(backend='sgbm', outputs=('depth',), shard_frames=4)
