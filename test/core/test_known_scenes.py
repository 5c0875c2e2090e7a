"""Scenes whose disparity is known exactly, from the pair to the points, below 0.1 px."""

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor

HEIGHT, WIDTH = 192, 320
RIG = StereoCalibration(300.0, 300.0, 159.5, 95.5, 159.5, 0.2, WIDTH, HEIGHT)
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
SCENES = {
    'plane': np.full((HEIGHT, WIDTH), 12.3, np.float32),
    'ramp': 6.0 + 0.06 * ROWS,
    'step': np.where(ROWS < HEIGHT / 2, np.float32(8.0), np.float32(14.0)),
    'sine': 12.0 + 2.0 * np.sin(2 * np.pi * ROWS / 96.0).astype(np.float32),
}


def pair_of(disparity: np.ndarray) -> StereoPair:
    """Return views of a texture; the left one is sampled where the right one shows it."""
    noise = np.random.default_rng(3).standard_normal((HEIGHT, WIDTH + 32)).astype(np.float32)
    texture = np.clip(0.5 + 0.4 * cv2.GaussianBlur(noise, (0, 0), 1.2), 0, 1)
    columns = (COLUMNS - disparity + 32).astype(np.float32)
    left = cv2.remap(texture, columns, ROWS, cv2.INTER_LANCZOS4)
    return StereoPair(np.clip(left, 0, 1), np.ascontiguousarray(texture[:, 32:]), RIG)


@pytest.mark.parametrize('name', SCENES)
def test_known_scene(name):
    truth = SCENES[name]
    options = ReconstructionOptions(confidence_threshold=0.0)
    engine = StereoReconstructor(load_backend('onnx', threads=1), options)
    result = engine.reconstruct(pair_of(truth))
    inside = np.zeros(truth.shape, np.bool_)
    inside[16:-16, 48:-16] = True
    if name == 'step':
        inside[HEIGHT // 2 - 12 : HEIGHT // 2 + 12] = False
    error = np.abs(result.disparity - truth)[inside]
    print(name, f'mean {error.mean():.4f} px, 99 % below {np.percentile(error, 99):.3f} px')
    assert np.isfinite(error).all() and error.mean() < 0.1
    depth = RIG.fx * RIG.baseline_m / truth
    assert np.median(np.abs(result.depth - depth)[inside] / depth[inside]) < 0.01
