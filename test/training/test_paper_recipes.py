"""The recipes of the paper's students, from the command line at toy size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')
OpenEXR = pytest.importorskip('OpenEXR')

from training.cli import main  # noqa: E402
from training.commands.train import recipe_path  # noqa: E402
from training.models.checkpoints import save_model  # noqa: E402
from training.models.encoders import encoder_spec  # noqa: E402
from training.models.heads import HeadConfig  # noqa: E402
from training.models.mast3r import Mast3r, Mast3rConfig  # noqa: E402
from training.models.paper_students import PAPER_STUDENTS  # noqa: E402
from training.recipe import DataRecipe, load_recipe  # noqa: E402
from training.validation import validate_student  # noqa: E402

SIDE = 64
TOY_HEAD = HeadConfig(descriptor_width=4, level_channels=(8, 8, 8, 8), fusion_width=8)


@pytest.fixture
def views(tmp_path: Path) -> Path:
    """Return a StereoLunar folder of two views of a slope."""
    folder = tmp_path / 'views'
    folder.mkdir()
    ground = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE + 8), np.uint8)
    depth = np.linspace(900, 1100, SIDE, dtype=np.float32)[:, None].repeat(SIDE, axis=1)
    for number in range(2):
        stem = folder / f'im_{number:05d}'
        cv2.imwrite(f'{stem}.jpg', ground[:, 8 * number : 8 * number + SIDE])
        header = {'compression': OpenEXR.ZIP_COMPRESSION, 'type': OpenEXR.scanlineimage}
        OpenEXR.File(header, {'Y': depth}).write(f'{stem}.exr')
        pose = np.eye(4)
        pose[0, 3] = number * 8 * 1000 / 60
        intrinsics = np.array([[60.0, 0, 31.5], [0, 60.0, 31.5], [0, 0, 1]])
        np.savez(f'{stem}.npz', intrinsics=intrinsics, cam2world=pose)
    return folder


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Return the file of a MASt3R of toy size."""
    torch.manual_seed(0)
    path = tmp_path / 'teacher.safetensors'
    save_model(Mast3r(Mast3rConfig(32, 1, 2, 24, 4, 2, head=TOY_HEAD)), path)
    return path


@pytest.mark.parametrize('name', ['s1', 's2', 's3', 's4'])
def test_dry_run(name, views, teacher, tmp_path, capsys):
    student = name.upper()
    weights = tmp_path / 'encoder.pth'
    torch.save(encoder_spec(PAPER_STUDENTS[student].encoder).build().state_dict(), weights)
    values = {
        'teacher.checkpoint': teacher,
        'data.train': f'[{views}]',
        'data.crop_height': SIDE,
        'data.crop_width': SIDE,
        'data.workers': 0,
        'data.matches': 64,
        'optimizer.batch_size': 1,
        f'students.{student}.start.encoder': weights,
        f'students.{student}.model.decoder_width': 16,
        f'students.{student}.model.decoder_depth': 2,
        f'students.{student}.model.decoder_heads': 2,
        f'students.{student}.model.head': '{descriptor_width: 4, level_channels: [8, 8, 8, 8], '
        'fusion_width: 8}',
    }
    out = tmp_path / 'run'
    command = ['train', name, '--dry-run', '--device', 'cpu', '--out', str(out), '--set']
    assert main([*command, *(f'{key}={value}' for key, value in values.items())]) == 0
    printed = capsys.readouterr().out
    assert f'{student} starts from its teacher' in printed
    steps = [line for line in printed.splitlines() if line.startswith("{'loss'")]
    assert len(steps) == 2
    for term in ('pointmap', 'matching', 'encoder_features', 'gradient'):
        assert f"'{term}'" in steps[1]
    assert not out.exists()


def test_recipes_have_the_papers_settings():
    for name in ('s1', 's2', 's3', 's4'):
        recipe = load_recipe(recipe_path(name))
        student = recipe.students[name.upper()]
        assert student.kind == name.upper() and student.start.method == 'truncate'
        weights = {'pointmap': 1.0, 'matching': 0.075, 'encoder_features': 0.1, 'gradient': 1.0}
        assert student.distillation == weights
        optimizer = recipe.optimizer
        assert (optimizer.learning_rate, optimizer.beta2) == (3e-5, 0.95)
        assert (optimizer.weight_decay, optimizer.clip_norm) == (0.05, 1.0)


def test_pointmap_students_are_validated_on_stereolunar(views):
    class Slope(Mast3r):
        """Knows the slope up to scale."""

        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, left, right):
            rows = torch.linspace(9, 11, SIDE)[None, :, None].expand(1, SIDE, SIDE)
            return {'pointmap1': torch.stack([rows, rows, rows], dim=-1)}

    recipe = DataRecipe(
        kind='stereolunar', validation=str(views), crop_height=SIDE, crop_width=SIDE
    )
    figures = validate_student(Slope(), recipe, torch.device('cpu'))
    assert figures['abs_rel'] == pytest.approx(0, abs=1e-3)
    assert figures['delta1.05'] == 100
