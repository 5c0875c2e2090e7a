"""Sparse ground truth: points at corners, and a student that learns from them alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from training.data.texture_pairs import plane_pair  # noqa: E402
from training.learner import true_pointmaps  # noqa: E402
from training.losses.sparse_points import strongest_corners  # noqa: E402
from training.models.lunar_teacher import FARTHEST  # noqa: E402
from training.recipe import DataRecipe, OptimizerRecipe, Recipe, StudentRecipe  # noqa: E402
from training.trainer import Trainer  # noqa: E402

TINY_MAST3R = {
    'encoder_width': 32,
    'encoder_depth': 1,
    'encoder_heads': 2,
    'decoder_width': 24,
    'decoder_depth': 2,
    'decoder_heads': 2,
    'head': {'descriptor_width': 4, 'level_channels': [8, 8, 8, 8], 'fusion_width': 8},
}


def test_points_are_at_corners_among_valid_pixels():
    image = torch.zeros(2, 1, 32, 48)
    image[:, :, 8:20, 10:30] = 1.0  # four corners
    valid = torch.ones(2, 32, 48, dtype=torch.bool)
    valid[1, :, 20:] = False
    chosen = strongest_corners(image, valid, 4)
    assert chosen.sum(dim=(1, 2)).tolist()[0] == 4
    rows, columns = chosen[0].nonzero(as_tuple=True)
    corners = torch.tensor([[8, 10], [8, 29], [19, 10], [19, 29]]).float()
    found = torch.stack([rows, columns], dim=1).float()
    assert torch.cdist(found, corners).min(dim=1).values.max() < 3
    assert not (chosen[1] & ~valid[1]).any() and chosen[1].any()
    assert not strongest_corners(torch.full((1, 3, 16, 16), 0.5), valid[:1, :16, :16], 9).any()


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """Return a pointmap student on ground truth of two planes."""
    folder = tmp_path / 'planes'
    folder.mkdir()
    for number in range(2):
        np.savez(folder / f'{number}.npz', **plane_pair(1, number, 64, 48))
    weights = {'encoder_features': 0.0, 'gradient': 0.0, 'matching': 0.0}
    student = StudentRecipe(kind='mast3r', model=TINY_MAST3R, distillation=weights)
    data = DataRecipe(
        train=[str(folder)],
        crop_height=48,
        crop_width=64,
        photometric=False,
        max_vertical_offset_px=0.0,
        max_roll_deg=0.0,
        workers=0,
    )
    optimizer = OptimizerRecipe(warmup_steps=4, total_steps=60, batch_size=2, learning_rate=1e-3)
    return Recipe(students={'student': student}, data=data, optimizer=optimizer)


def sparse(recipe: Recipe, points: int, **changes) -> Recipe:
    student = dataclasses.replace(
        recipe.students['student'], ground_truth_points=points, **changes
    )
    return dataclasses.replace(recipe, students={'student': student})


def test_disparities_of_both_views_are_one_surface(recipe, tmp_path):
    batch = Trainer(recipe, tmp_path / 'run').data[0]
    truth = true_pointmaps(batch)
    assert truth['valid1'].all() and truth['valid2'].all()
    for item in range(2):
        views = [truth[name][item].reshape(-1, 3).double() for name in ('pointmap1', 'pointmap2')]
        normal = torch.linalg.lstsq(views[0], torch.ones(len(views[0]), 1).double()).solution
        for points in views:
            torch.testing.assert_close(
                points @ normal, torch.ones_like(points[:, :1]), rtol=0, atol=1e-3
            )
        # The right camera stands to the right of the left one and sees further there.
        assert views[1][:, 0].mean() > views[0][:, 0].mean()
    batch['disparity'][0, 0, 0] = torch.nan
    assert (~true_pointmaps(batch)['valid1']).sum() == 1
    with pytest.raises(InputError, match='no disparity_right'):
        true_pointmaps({name: batch[name] for name in ('disparity', 'intrinsics')})


def test_only_points_count(recipe, tmp_path):
    trainer = Trainer(sparse(recipe, 12), tmp_path / 'run')
    learner = trainer.students['student'].learner
    batch = trainer.data[0]
    seen = {}
    forward = learner.student.forward

    def watched(left, right, with_tokens=False):
        output = forward(left, right, with_tokens)
        for name in ('pointmap1', 'pointmap2', 'conf1', 'conf2'):
            output[name].retain_grad()
            seen[name] = output[name]
        return output

    learner.student.forward = watched
    loss, terms = learner(batch, {})
    loss.backward()
    share = 12 / (48 * 64)
    for view in (1, 2):
        assert terms[f'pointmap/valid{view}'].item() == pytest.approx(share)
        taught = seen[f'conf{view}'].grad.ne(0).flatten(1).sum(dim=1)
        assert taught.tolist() == [12, 12]
    assert math.isfinite(loss.item())


def test_settings_that_contradict_sparse_truth_are_refused(recipe, tmp_path):
    with pytest.raises(InputError, match='its target is .teacher'):
        sparse(recipe, 12, target='teacher').check()
    with pytest.raises(InputError, match='points is -1'):
        sparse(recipe, -1).check()
    with pytest.raises(InputError, match='gradient to 0'):
        weights = {'encoder_features': 0.0, 'matching': 0.0}
        Trainer(sparse(recipe, 12, distillation=weights), tmp_path)
    with pytest.raises(InputError, match='for students of the MASt3R kind'):
        Trainer(sparse(recipe, 12, kind='flight', model={}, distillation={}), tmp_path)


def test_unknown_ground_has_no_part_in_the_unit():
    disparity = torch.full((1, 8, 6), torch.nan)
    disparity[:, 5:] = torch.tensor([4.0, 8.0, 16.0])[:, None]  # three rows of eight are known
    intrinsics = torch.tensor([[[50.0, 0, 2.5], [0, 50, 3.5], [0, 0, 1]]])
    batch = {'disparity': disparity, 'disparity_right': disparity, 'intrinsics': intrinsics}
    depth = true_pointmaps(batch)['pointmap1'][0, ..., 2]
    torch.testing.assert_close(depth[5:, 0], torch.tensor([2.0, 1.0, 0.5]))
    torch.testing.assert_close(depth[0, 0], torch.tensor(FARTHEST))
