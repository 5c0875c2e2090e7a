"""Cells with two surfaces: their targets lie on a surface, and the bins may have two peaks."""

import numpy as np
import torch

from training.data.batches import bend_rows
from training.losses.stereo import bin_histogram_entropy, cell_median, cells, edge_weights


def two_surfaces():
    disparity = torch.full((1, 4, 8), 4.0)
    disparity[:, :, 5:] = 20.0  # the second cell: one column of four is far, three are near
    return disparity


def test_median_of_a_cell_lies_on_a_surface():
    assert cell_median(two_surfaces(), 4).tolist() == [[[4.0, 20.0]]]


def test_a_cell_with_a_gap_has_no_target():
    disparity = two_surfaces()
    disparity[0, 0, 0] = torch.nan
    found = cell_median(disparity, 4)
    assert found[0, 0, 0].isnan()
    assert found[0, 0, 1] == 20


def test_two_peaks_cost_less_than_one_between_two_surfaces():
    positions = cells(two_surfaces(), 4) / 4  # bins 1 and 5
    both, between = torch.full((2, 1, 8, 1, 2), -10.0)
    both[:, [1, 5]] = 0.0
    between[:, 4] = 0.0  # where the mean of the second cell lies
    assert bin_histogram_entropy(both, positions) < bin_histogram_entropy(between, positions)


def test_unknown_pixels_and_disparities_beyond_the_bins_do_not_count():
    positions = torch.tensor([1.0, torch.nan, 99.0]).reshape(1, 3, 1, 1)
    logits = torch.zeros(1, 4, 1, 1)
    found = bin_histogram_entropy(logits, positions)
    assert torch.isclose(found, torch.tensor(4.0).log())


def test_edges_count_more_and_ground_does_not():
    ground = torch.arange(40.0)[None, :, None].expand(1, 40, 40) * 0.1
    assert edge_weights(ground, 2.0).unique().tolist() == [1.0]
    step = ground.clone()
    step[:, :, 20:] += 5
    weights = edge_weights(step, 2.0)
    assert weights[0, 20, [10, 19, 20, 30]].tolist() == [1.0, 3.0, 3.0, 1.0]


def test_rows_bend_by_no_more_than_is_said():
    rows = np.repeat(np.arange(40, dtype=np.float32)[:, None], 60, axis=1)
    moved = np.stack([bend_rows(rows, np.random.default_rng(k), 1.0) - rows for k in range(20)])
    inner = np.abs(moved[:, 2:-2])
    assert inner.max() <= 1.01
    assert inner.max() > 0.3
