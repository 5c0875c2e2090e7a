"""The row-alignment monitor on pairs whose right image was moved and turned by known amounts."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.datatypes import (
    DisparityPrediction,
    RowAlignment,
    StereoCalibration,
    StereoPair,
)
from lunar_stereo_recon.geometry.row_alignment import (
    estimate_row_alignment,
    FRAMES,
    RowMonitor,
    SKIP,
    with_rows_aligned,
)
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor

HEIGHT, WIDTH = 192, 256
CALIBRATION = StereoCalibration(200.0, 200.0, 127.5, 95.5, 127.5, 0.2, WIDTH, HEIGHT)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return left and right images of sloping ground, and the left disparity."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((HEIGHT, WIDTH + 60)).astype(np.float32)
    texture = 0.5 + cv2.GaussianBlur(noise, (0, 0), 1.5)
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    disparity = np.repeat(6 + 0.1 * rows, WIDTH, axis=1)
    right = texture[:, 60:]
    # The disparity is the same along a row, so the left image follows by shifting each row.
    columns = np.arange(WIDTH, dtype=np.float32)[None] - disparity + 60
    grid = np.repeat(rows, WIDTH, axis=1)
    left = cv2.remap(texture, columns, grid, cv2.INTER_CUBIC)
    return left, np.ascontiguousarray(right), disparity


def misaligned(right: np.ndarray, low_px: float, clockwise_deg: float) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D(((WIDTH - 1) / 2, (HEIGHT - 1) / 2), -clockwise_deg, 1.0)
    matrix[1, 2] += low_px
    size = (WIDTH, HEIGHT)
    return cv2.warpAffine(
        right, matrix, size, flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE
    )


@pytest.mark.parametrize(
    ('low_px', 'clockwise_deg'), [(0, 0), (0.4, 0), (-0.8, 0), (1.6, 0), (0, 0.2), (0.5, -0.15)]
)
def test_offset_and_roll_are_found(low_px, clockwise_deg):
    left, right, disparity = scene()
    found = estimate_row_alignment(left, misaligned(right, low_px, clockwise_deg), disparity)
    assert found.offset_px == pytest.approx(low_px, abs=0.03)
    assert found.roll_deg == pytest.approx(clockwise_deg, abs=0.02)
    assert found.deviation_px < 0.05


@pytest.mark.parametrize('moved_px', [0.0, 0.2, -0.6, 1.5])
def test_a_known_rig_is_found_again_wherever_it_moved(moved_px):
    left, right, disparity = scene()
    before = RowAlignment(0.5, 0.0, 0.01)
    found = estimate_row_alignment(left, misaligned(right, 0.5 + moved_px, 0), disparity, before)
    assert found.offset_px == pytest.approx(0.5 + moved_px, abs=0.03)
    assert found.roll_deg == pytest.approx(0.0, abs=0.02)


def test_correcting_undoes_the_misalignment_and_leaves_good_rows_alone():
    left, right, _ = scene()
    pair = StereoPair(left, misaligned(right, 0.7, 0.1), CALIBRATION)
    mended = with_rows_aligned(pair, RowAlignment(0.7, 0.1, 0.01)).right
    inner = np.s_[10:-10, 10:-10]
    assert np.abs(mended - right)[inner].mean() < 0.2 * np.abs(pair.right - right)[inner].mean()
    for nothing_to_do in (RowAlignment(), RowAlignment(0.02, 0.0, 0.01)):
        assert with_rows_aligned(pair, nothing_to_do).right is pair.right
    # Too far off to be mended here.
    assert with_rows_aligned(pair, RowAlignment(2.5, 0.0, 0.01)).right is pair.right


def test_without_texture_nothing_is_claimed():
    flat = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    found = estimate_row_alignment(flat, flat, np.full_like(flat, 8.0))
    monitor = RowMonitor()
    monitor.update(found)
    assert not monitor.alignment.known
    assert monitor.alignment.describe(WIDTH) == 'row alignment not known yet'


def test_the_median_bears_a_wrong_frame_and_old_frames_are_forgotten():
    monitor = RowMonitor()
    for offset in (0.5, 0.52, -1.9, 0.48, 0.5):
        monitor.update(RowAlignment(offset, 0.0, 0.01))
    assert monitor.alignment.offset_px == pytest.approx(0.5)
    for _ in range(FRAMES):
        monitor.update(RowAlignment(0.1, 0.0, 0.01))
    assert monitor.alignment.offset_px == pytest.approx(0.1)
    # Once settled it looks at one frame in SKIP.
    assert [monitor.due() for _ in range(SKIP)] == [False] * (SKIP - 1) + [True]


@pytest.mark.parametrize(
    ('alignment', 'text'),
    [
        (RowAlignment(0.1, 0.0, 0.01), 'rows aligned within 0.10 px'),
        (RowAlignment(0.6, 0.0, 0.01), 'right rows 0.6 px low: recalibrate'),
        (RowAlignment(-0.6, 0.0, 0.01), 'right rows 0.6 px high: recalibrate'),
        (RowAlignment(0.0, 0.2, 0.01), 'right rows turned 0.20 deg clockwise: recalibrate'),
        (
            RowAlignment(3.0, 0.0, 0.01),
            'right rows 3.0 px low, more than can be corrected: recalibrate',
        ),
    ],
)
def test_the_rig_is_judged_in_words(alignment, text):
    assert alignment.describe(WIDTH) == text
    assert alignment.poor(WIDTH) == ('recalibrate' in text)


class TrueDisparity:
    """A backend that answers the same disparity always and keeps what it was shown."""

    name = provider = 'truth'
    provider_fallback = ''
    size_multiple = 32
    max_width_px = None
    max_disparity_px = 64.0
    confidence_calibration = None

    def __init__(self, disparity: np.ndarray) -> None:
        self.disparity, self.shown = disparity, []

    def predict(self, left, right) -> DisparityPrediction:
        self.shown.append(right)
        return DisparityPrediction(self.disparity, np.full_like(self.disparity, 0.9))


def test_the_pipeline_corrects_the_next_frame_and_reports():
    left, right, disparity = scene()
    backend = TrueDisparity(disparity.astype(np.float32))
    engine = StereoReconstructor(backend)
    pair = StereoPair(left, misaligned(right, 0.6, 0.0), CALIBRATION)
    first = engine.reconstruct(pair)
    assert first.row_alignment.describe(WIDTH) == 'right rows 0.6 px low: recalibrate'
    engine.reconstruct(pair)
    inner = np.s_[10:-10, 10:-10]
    errors = [np.abs(shown - right)[inner].mean() for shown in backend.shown]
    assert errors[1] < 0.3 * errors[0]
    # Another rig starts anew; switched off, nothing is watched.
    other = dataclasses.replace(CALIBRATION, baseline_m=0.3)
    engine.reconstruct(dataclasses.replace(pair, calibration=other))
    np.testing.assert_array_equal(backend.shown[-1], pair.right)
    off = StereoReconstructor(backend, ReconstructionOptions(align_rows=False))
    assert not off.reconstruct(pair).row_alignment.known
