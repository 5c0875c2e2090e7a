"""Small networks, recipes and pairs for tests of the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from training.commands.smoke import write_plane_pairs  # noqa: E402
from training.recipe import (  # noqa: E402
    DataRecipe,
    OptimizerRecipe,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
)
from training.trainer import Trainer  # noqa: E402

TINY_FLIGHT = {
    'encoder_channels': [8, 8, 16, 16],
    'decoder_width': 16,
    'decoder_depth': 1,
    'decoder_heads': 2,
    'descriptor_channels': 8,
    'disparity_bins': 8,
    'hourglass_channels': [8, 8, 16, 16],
    'local_radius': 2,
    'fine_channels': 8,
}
TINY_TEACHER = {
    **TINY_FLIGHT,
    'encoder_channels': [8, 8, 16, 24],
    'decoder_width': 32,
    'decoder_depth': 2,
    'band_rows': 0,
}
TINY_HEAD = {'descriptor_width': 4, 'level_channels': [8, 8, 8, 8], 'fusion_width': 8}
TINY_MAST3R = {
    'encoder_width': 32,
    'encoder_depth': 1,
    'encoder_heads': 2,
    'decoder_width': 24,
    'decoder_depth': 2,
    'decoder_heads': 2,
    'mlp_ratio': 1.0,
    'head': TINY_HEAD,
}


@pytest.fixture
def tiny_head():
    """Return the settings of a DPT head that trains in no time."""
    return dict(TINY_HEAD)


@pytest.fixture
def tiny_flight():
    """Return the settings of a flight student that trains in no time."""
    return dict(TINY_FLIGHT)


@pytest.fixture
def plane_pairs(tmp_path: Path) -> Path:
    """Return a folder of pairs (64x128) of random texture at one disparity each."""
    folder = tmp_path / 'planes'
    write_plane_pairs(folder, count=4)
    return folder


@pytest.fixture
def make_recipe(plane_pairs: Path) -> Callable[..., Recipe]:
    """Return a function that makes a recipe of students on the plane pairs."""

    def make(students: dict[str, StudentRecipe], teacher: Path | None = None, **data) -> Recipe:
        return Recipe(
            students=students,
            data=DataRecipe(
                train=[str(plane_pairs)], crop_height=64, crop_width=96, workers=0, **data
            ),
            teacher=TeacherRecipe(checkpoint=str(teacher or '')),
            optimizer=OptimizerRecipe(warmup_steps=1, total_steps=4, batch_size=2, ema_decay=0.5),
            checkpoint_every=100,
            validate_every=100,
        )

    return make


@pytest.fixture
def flight_teacher(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> Path:
    """Return the checkpoint of an untrained, tiny row-matching teacher."""
    recipe = make_recipe({'teacher': StudentRecipe(kind='lunar_teacher', model=TINY_TEACHER)})
    trainer = Trainer(recipe, tmp_path / 'flight_teacher')
    trainer.save()
    return trainer.path


@pytest.fixture
def mast3r_teacher(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> Path:
    """Return the checkpoint of an untrained, tiny MASt3R."""
    student = StudentRecipe(
        kind='mast3r', model=TINY_MAST3R, distillation={'encoder_features': 0.0}
    )
    recipe = make_recipe({'teacher': student})
    trainer = Trainer(recipe, tmp_path / 'mast3r_teacher')
    trainer.save()
    return trainer.path
