"""Two processes on CPU compute what one does."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from training.checkpoint import load_checkpoint  # noqa: E402
from training.curves import read_curves  # noqa: E402
from training.recipe import LossRecipe, Recipe, StartRecipe, StudentRecipe  # noqa: E402
from training.trainer import Trainer  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10


def launch(recipe: Recipe, folder: Path, processes: int, *arguments: str) -> Path:
    """Run a recipe under torchrun; return its checkpoint."""
    folder.mkdir()
    path = folder / 'recipe.yaml'
    path.write_text(yaml.safe_dump(recipe.as_dict()))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += [f'--nproc-per-node={processes}', '-m', 'training', 'train', str(path)]
    command += ['--out', str(folder), '--device', 'cpu', '--threads', '1', *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / 'checkpoint'


@pytest.fixture
def recipe(make_recipe, flight_teacher) -> Recipe:
    """Return a distillation whose losses are plain means over equally many pixels.

    Those over pixels seen in both views are off: their number differs from pair to pair, and a
    mean of two means is then not the mean of all.
    """
    student = StudentRecipe(
        model={
            'encoder_channels': [8, 8, 16, 16],
            'decoder_width': 16,
            'decoder_depth': 1,
            'decoder_heads': 2,
            'disparity_bins': 8,
            'hourglass_channels': [8, 8, 16, 16],
            'local_radius': 2,
            'fine_channels': 8,
            'descriptor_channels': 8,
        },
        start=StartRecipe(method='shared_basis', pairs=1),
        losses=LossRecipe(
            correlation=0, match=0, soft_bins=0.3, decoder_features=0.1, feature_margin=1.1
        ),
    )
    recipe = make_recipe({'flight': student}, flight_teacher)
    recipe.optimizer.total_steps = STEPS
    recipe.optimizer.batch_size = 4
    recipe.optimizer.learning_rate = 1e-4
    return recipe


@pytest.mark.slow
def test_two_processes_train_as_one(recipe, tmp_path):
    # torchrun gives each process one thread; another order of summation would let bins that tie
    # in an untrained matcher fall the other way.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = Trainer(recipe, tmp_path / 'one')
        one.run()
    finally:
        torch.set_num_threads(threads)
    two = load_checkpoint(launch(recipe, tmp_path / 'two', 2))
    assert two['step'] == STEPS
    losses = [read_curves(tmp_path / name)['loss'][-1][1] for name in ('one', 'two')]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    mine, theirs = one.students['flight'].state(), two['students']['flight']
    start = Trainer(recipe, tmp_path / 'start').students['flight'].student.state_dict()
    moved = []
    for name, value in mine['student'].items():
        if not value.is_floating_point():
            assert torch.equal(value, theirs['student'][name])
            continue
        # Far nearer to each other than to where they started; running statistics too.
        apart = (value - theirs['student'][name]).abs().mean().item()
        way = (value - start[name]).abs().mean().item()
        moved.append((apart, way))
    apart, way = np.array(moved).T
    assert apart.sum() < 0.02 * way.sum()
    means = [f'decoder.means.{side}' for side in ('student', 'teacher')]
    assert set(theirs['projectors']) == {'decoder.linear.weight', 'decoder.means.steps', *means}
    for name in means:  # shared: each process alone sees half of the pairs
        torch.testing.assert_close(
            theirs['projectors'][name], mine['projectors'][name], rtol=1e-2, atol=1e-3
        )


@pytest.mark.slow
def test_time_budget_stops_all_processes(recipe, tmp_path):
    recipe.optimizer.accumulate = 2
    path = launch(recipe, tmp_path / 'two', 2, '--minutes', '0')
    assert load_checkpoint(path)['step'] == 1


def test_batch_that_processes_cannot_share_is_refused(make_recipe, monkeypatch, tmp_path):
    recipe = make_recipe({'flight': StudentRecipe()})
    recipe.optimizer.batch_size = 3
    monkeypatch.setattr('training.trainer.distributed.is_initialized', lambda: True)
    monkeypatch.setattr('training.trainer.distributed.get_rank', lambda: 0)
    monkeypatch.setattr('training.trainer.distributed.get_world_size', lambda: 2)
    with pytest.raises(InputError, match='batch_size is 3.*multiple of the number of processes'):
        Trainer(recipe, tmp_path)
