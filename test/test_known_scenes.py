"""Scenes whose disparity is known exactly, from the pair to the points, below 0.1 px."""

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
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


# Between onnxruntime and OpenVINO on one machine: mean over the pixels that both know, and the
# share of them that differ by more than a tenth of a pixel.
BACKENDS_MEAN_PX, BACKENDS_SHARE = 0.01, 0.02


def reconstruct(name: str, backend: str = 'onnx', threads: int = 1) -> Reconstruction:
    """Return what the whole pipeline makes of a scene."""
    pytest.importorskip({'onnx': 'onnxruntime'}.get(backend, backend))
    options = ReconstructionOptions(confidence_threshold=0.0)
    engine = StereoReconstructor(load_backend(backend, threads=threads), options)
    return engine.reconstruct(pair_of(SCENES[name]))


def inside(name: str) -> np.ndarray:
    """Return the pixels that count: both cameras see them, and no step is near."""
    pixels = np.zeros((HEIGHT, WIDTH), np.bool_)
    pixels[16:-16, 48:-16] = True
    if name == 'step':
        pixels[HEIGHT // 2 - 12 : HEIGHT // 2 + 12] = False
    return pixels


@pytest.mark.parametrize('backend', ['onnx', 'openvino'])
@pytest.mark.parametrize('name', SCENES)
def test_known_scene(name, backend):
    truth, known = SCENES[name], inside(name)
    result = reconstruct(name, backend)
    error = np.abs(result.disparity - truth)[known]
    print(
        name, backend, f'mean {error.mean():.4f} px, 99 % below {np.percentile(error, 99):.3f} px'
    )
    assert np.isfinite(error).all() and error.mean() < 0.1
    depth = RIG.fx * RIG.baseline_m / truth
    assert np.median(np.abs(result.depth - depth)[known] / depth[known]) < 0.01


def test_results_are_bit_equal_across_runs_and_threads():
    """Everything that leaves the pipeline, with one and two threads of each library."""
    before = cv2.getNumThreads()
    results = []
    try:
        for threads in (1, 1, 2):
            cv2.setNumThreads(threads)
            results.append(reconstruct('sine', threads=threads))
    finally:
        cv2.setNumThreads(before)
    for other in results[1:]:
        for field in ('disparity', 'depth', 'points', 'confidence', 'color'):
            np.testing.assert_array_equal(getattr(other, field), getattr(results[0], field))


@pytest.mark.parametrize('name', SCENES)
def test_backends_agree(name):
    one, other = (reconstruct(name, backend) for backend in ('onnx', 'openvino'))
    known = inside(name) & np.isfinite(one.disparity) & np.isfinite(other.disparity)
    apart = np.abs(one.disparity - other.disparity)[known]
    surer = np.abs(one.confidence - other.confidence)[known]
    print(
        f'{name}: mean {apart.mean():.5f} px, {100 * (apart > 0.1).mean():.3f} % over 0.1 px, '
        f'largest {apart.max():.3f} px; confidence {surer.mean():.4f}, largest {surer.max():.3f}'
    )
    assert apart.mean() < BACKENDS_MEAN_PX
    assert (apart > 0.1).mean() < BACKENDS_SHARE
    assert surer.mean() < 0.02
