"""The shipped student reaches a quarter of the image width; beyond it doubts, and never wraps."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor

WIDTH, HEIGHT = 640, 256


def wall(disparity_px: int) -> StereoPair:
    """Return a textured wall with this disparity everywhere."""
    rng = np.random.default_rng(4)
    noise = rng.standard_normal((HEIGHT, WIDTH + disparity_px)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 1.5) + cv2.GaussianBlur(noise, (0, 0), 8) * 2
    texture = np.clip(0.5 + 0.5 * texture, 0.02, 0.98)
    rig = StereoCalibration(500, 500, 319.5, 127.5, 319.5, 0.3, WIDTH, HEIGHT)
    left = np.ascontiguousarray(texture[:, :WIDTH])
    return StereoPair(left, np.ascontiguousarray(texture[:, disparity_px:]), rig)


@pytest.fixture(scope='module')
def engine():
    return StereoReconstructor(load_backend(), ReconstructionOptions(dense=True))


@pytest.mark.parametrize('disparity_px', [0, 40, 160])
def test_disparities_up_to_a_quarter_of_the_width(engine, disparity_px):
    result = engine.reconstruct(wall(disparity_px))
    seen = (slice(16, -16), slice(disparity_px + 16, -16))
    error = np.abs(result.disparity[seen] - disparity_px)
    assert np.median(error) < 0.25
    assert (error > 2).mean() < 0.02
    assert result.confidence[seen].mean() > 0.7


@pytest.mark.parametrize('disparity_px', [230, 300])
def test_more_than_can_be_searched_is_doubted_and_does_not_wrap(engine, disparity_px):
    result = engine.reconstruct(wall(disparity_px))
    seen = (slice(16, -16), slice(disparity_px + 16, -16))
    assert np.mean(result.confidence[seen] > 0.5) < 0.05
    # A search that wraps would find the wall at its disparity less the search range.
    wrapped = disparity_px - (engine.backend.max_disparity_px + 4)
    assert (np.abs(result.disparity[seen] - wrapped) < 2).mean() < 0.05


@pytest.mark.parametrize('offset_px', [0.0, 30.25, -30.25])
def test_searched_range_is_that_of_the_disparities(offset_px):
    """Principal points move the search: its range is of disparities, at the image's size."""
    pair = wall(40)
    rig = dataclasses.replace(pair.calibration, cx_right=pair.calibration.cx - offset_px)
    backend = load_backend('sgbm', threads=1)
    engine = StereoReconstructor(backend, ReconstructionOptions())
    engine.network_width_px = WIDTH // 2
    result = engine.reconstruct(dataclasses.replace(pair, calibration=rig))
    rest = offset_px - math.floor(offset_px)
    assert result.searched_px == pytest.approx((-rest, 2 * backend.max_disparity_px - rest))
    found = result.disparity[np.isfinite(result.disparity)]
    assert result.searched_px[0] <= found.min() <= found.max() <= result.searched_px[1]
