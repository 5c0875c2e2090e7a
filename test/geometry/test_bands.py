from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.geometry.bands import bands_of, over_bands
from lunar_stereo_recon.geometry.refine import refine_disparity, RefineOptions
from lunar_stereo_recon.geometry.residual import candidates_around, evidence


@contextmanager
def threads(count):
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    yield
    cv2.setNumThreads(before)


def views(height, width=160):
    """Return left, right and the prior of a slope with a block that the prior does not have."""
    rng = np.random.default_rng(4)
    white = rng.standard_normal((height, width)).astype(np.float32)
    right = np.clip(0.5 + 0.5 * cv2.GaussianBlur(white, (0, 0), 1.0), 0, 1)
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    prior = 6 + 0.04 * rows
    truth = prior.copy()
    truth[::, 60:90] += 3
    columns = np.arange(width, dtype=np.float32) - truth
    left = cv2.remap(right, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(left, 0, 1), right, prior


@pytest.mark.parametrize('height', [1, 7, 8, 120, 481])
@pytest.mark.parametrize('halo', [0, 30])
@pytest.mark.parametrize('count', [1, 2, 5])
def test_bands_write_each_row_once_and_see_what_is_around(height, halo, count):
    written = np.zeros(height, int)
    bands = bands_of(height, halo, count)
    assert 1 <= len(bands) <= count
    for band in bands:
        written[band.rows] += 1
        seen = np.arange(height)[band.seen]
        np.testing.assert_array_equal(seen[band.own], np.arange(height)[band.rows])
        assert seen[0] <= max(0, band.rows.start - halo)
        assert seen[-1] >= min(height, band.rows.stop + halo) - 1
    assert (written == 1).all()


def test_a_failure_in_any_band_is_told():
    def fail_first(band):
        if band.rows.start == 0:
            raise ValueError('first')

    with threads(2), pytest.raises(ValueError, match='first'):
        over_bands(64, 0, fail_first)


def test_results_are_those_of_a_single_thread():
    left, right, prior = views(480)
    results = []
    for count in (1, 2, 4):
        with threads(count):
            candidates, answered = candidates_around(left, right, prior)
            planes = evidence(left, right, candidates, answered)
            refinement = refine_disparity(left, right, candidates[1], RefineOptions())
        results.append((candidates, answered, planes, *vars(refinement).values()))
    assert results[0][1].any()
    for other in results[1:]:
        for one, several in zip(results[0], other, strict=True):
            # Sums over windows begin elsewhere.
            np.testing.assert_allclose(one, several, atol=3e-4)


def test_iterations_and_wide_windows_look_farther():
    left, right, prior = views(480)
    options = RefineOptions(iterations=2, windows_px=(41, 9), offsets_px=(0.2, 0.1))
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(refine_disparity(left, right, prior, options).disparity)
    np.testing.assert_allclose(*results, atol=1e-4)
