"""One point for each cube: the mean of those in it."""

import numpy as np
import pytest

from lunar_stereo_recon.geometry.voxel import voxel_means, weights_of_sigma


def test_voxels_hold_the_mean_of_their_points():
    points = np.array(
        [[0.1, 0.1, 5.1], [0.3, 0.5, 5.3], [-0.1, 0.1, 5.1], [0.1, 0.1, 6.1]], np.float32
    )
    attributes = np.array([[1.0], [2.0], [4.0], [8.0]], np.float32)
    means, means_of_attributes = voxel_means(points, attributes, 1.0)
    order = np.argsort(means_of_attributes[:, 0])
    np.testing.assert_allclose(
        means[order], [[0.2, 0.3, 5.2], [-0.1, 0.1, 5.1], [0.1, 0.1, 6.1]], rtol=1e-6
    )
    np.testing.assert_allclose(means_of_attributes[order, 0], [1.5, 4.0, 8.0])


def test_voxels_far_out_keep_their_millimetres():
    rng = np.random.default_rng(0)
    offsets = rng.uniform(0.0, 0.05, (20_000, 3))
    points = (offsets + [0.0, 0.0, 900.0]).astype(np.float32)
    mean, _ = voxel_means(points, np.zeros((20_000, 1), np.float32), 0.05)
    assert len(mean) <= 8  # float32 may put points at the very border next door
    largest = mean[np.argmin(np.abs(mean - [0.025, 0.025, 900.025]).sum(axis=1))]
    np.testing.assert_allclose(largest, [0.025, 0.025, 900.025], atol=1e-3)


def test_points_beyond_the_keys_are_left_out():
    points = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1e5]], np.float32)
    means, _ = voxel_means(points, np.zeros((2, 1), np.float32), 0.01)
    assert len(means) == 1


def test_the_better_known_point_decides_its_voxel():
    points = np.float32([[0.2, 0.5, 0.5], [0.8, 0.5, 0.5]])
    attributes = np.float32([[0.01], [0.02]])
    weights = weights_of_sigma(attributes[:, 0])
    means, _ = voxel_means(points, attributes, 1.0, weights)
    assert means[0, 0] == pytest.approx((4 * 0.2 + 0.8) / 5)


def test_a_sigma_of_zero_or_nan_weighs_neither_all_nor_nothing_unknown():
    zero, smallest, unknown, some = weights_of_sigma(np.float32([0.0, 0.002, np.nan, 0.1]))
    assert np.isfinite(zero) and zero == pytest.approx(smallest)
    assert 0 < unknown < 1e-3 * some
