"""Students of one recipe against each other: seeds, tables, curves."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')
pytest.importorskip('matplotlib')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.ablate import (  # noqa: E402
    compare,
    curves_of,
    format_differences,
    format_table,
    train_seeds,
)
from training.curves import read_curves  # noqa: E402
from training.recipe import load_recipe, StartRecipe, StudentRecipe  # noqa: E402


@pytest.fixture
def recipe(make_recipe, flight_teacher, plane_pairs, tiny_flight):
    """Return a recipe of two students that differ in their start, validated at every step."""
    start = StartRecipe(method='shared_basis', pairs=1)
    students = {
        'random': StudentRecipe(model=tiny_flight, target='teacher'),
        'shared_basis': StudentRecipe(model=tiny_flight, target='teacher', start=start),
    }
    recipe = make_recipe(students, flight_teacher)
    recipe.validate_every, recipe.data.validation = 1, str(plane_pairs)
    recipe.name = 'mine'
    return recipe


def test_ablation_compares_students_over_seeds(recipe, tmp_path):
    folders = train_seeds(recipe, tmp_path / 'study', seeds=2, device='cpu')
    table = compare(folders, list(recipe.students), 'epe', total_steps=4)
    ends = [read_curves(folder)['random/validation/epe'][-1][1] for folder in folders]
    mean, spread = table['random'][-1]
    assert mean == pytest.approx(sum(ends) / 2)
    assert spread == pytest.approx(abs(ends[0] - ends[1]) / math.sqrt(2))
    assert ends[0] != ends[1]
    steps, values = curves_of(folders, 'random', 'epe')
    assert steps.tolist() == [1, 2, 3, 4]
    assert values[:, -1].tolist() == ends
    assert '| shared_basis |' in format_table(table, 'epe', 2)
    others = [read_curves(folder)['shared_basis/validation/epe'][-1][1] for folder in folders]
    by_seed = [a - b for a, b in zip(ends, others, strict=True)]
    half = 12.706 * abs(by_seed[0] - by_seed[1]) / 2  # Student's factor of two seeds
    differences = format_differences(folders, ['random', 'shared_basis'], 'epe')
    told = f'| random | shared_basis | {sum(by_seed) / 2:+.3g} ± {half:.2g} | '
    assert told in differences
    rows = len((folders[0] / 'metrics.jsonl').read_text().splitlines())
    train_seeds(recipe, tmp_path / 'study', seeds=1, device='cpu')  # finished: nothing is added
    assert len((folders[0] / 'metrics.jsonl').read_text().splitlines()) == rows
    with pytest.raises(InputError, match='no random/validation/bad7'):
        compare(folders, ['random'], 'bad7', total_steps=4)
    with pytest.raises(InputError, match='begins at step 1, after 25% of 2'):
        compare(folders, ['random'], 'epe', total_steps=2)
    with pytest.raises(InputError, match='--seeds is 0; 1 or more'):
        train_seeds(recipe, tmp_path / 'none', seeds=0, device='cpu')
    recipe.students.pop('random')
    with pytest.raises(InputError, match='at least two'):
        train_seeds(recipe, tmp_path / 'one', seeds=1, device='cpu')


def test_runs_of_another_recipe_are_not_taken_for_this_ones(recipe, tmp_path, capsys):
    from omegaconf import OmegaConf

    path, out = tmp_path / 'mine.yaml', tmp_path / 'out'
    OmegaConf.save(OmegaConf.create(recipe.as_dict()), path)
    command = ['ablate', str(path), '--seeds', '1', '--out', str(out), '--device', 'cpu']
    assert main(command) == 0
    table = (out / 'table_epe.md').read_text()
    changed = ['--set', 'optimizer.learning_rate=0.02']
    assert main([*command, *changed]) == 2
    assert 'optimizer.learning_rate was 0.001, is 0.02' in capsys.readouterr().err
    assert (out / 'table_epe.md').read_text() == table
    assert main([*command, *changed, '--anew']) == 0
    assert (out / 'table_epe.md').read_text() != table


def test_time_budget_holds_for_all_seeds_and_the_command_goes_on(recipe, tmp_path, capsys):
    from omegaconf import OmegaConf

    recipe.comparisons = {'start': ['random', 'shared_basis']}
    path, out = tmp_path / 'mine.yaml', tmp_path / 'out'
    OmegaConf.save(OmegaConf.create(recipe.as_dict()), path)
    command = ['ablate', str(path), '--seeds', '2', '--out', str(out), '--device', 'cpu']
    assert main([*command, '--minutes', '0']) == 0
    assert '0 of 2 seeds are trained' in capsys.readouterr().out
    assert not (out / 'seed_1').exists()
    assert main(command) == 0
    text = (out / 'table_epe.md').read_text()
    assert text in capsys.readouterr().out
    assert text.startswith('## start') and text.count('| random | shared_basis |') == 1
    assert (out / 'curves_epe.png').read_bytes()[:4] == b'\x89PNG'


def test_comparison_of_an_unknown_student_is_refused(recipe, tmp_path):
    recipe.comparisons = {'start': ['random', 'truncated']}
    with pytest.raises(InputError, match=r"comparisons.start is 'truncated'; known: random"):
        recipe.check()


def test_students_of_the_study_differ_in_what_their_names_say():
    from training.commands.train import recipe_path

    students = load_recipe(recipe_path('study')).students
    base = students['truncate']
    for name in ('random', 'direct', 'shared_basis'):
        assert students[name].start.method == name
        assert students[name].distillation == base.distillation
    assert students['frozen_encoder'].freeze_encoder and not base.freeze_encoder
    assert students['sparse_truth'].ground_truth_points > 0
    weights = {**base.distillation, 'gradient': 1.0}
    assert students['gradient'].distillation == weights
    assert students['gradient'].start == base.start
    assert students['cnn'].model['decoder_width'] == base.model['decoder_width']


def test_smallest_student_of_the_study_is_a_seventh_of_its_teacher():
    from training.commands.train import recipe_path
    from training.students import build_student

    sizes = []
    for recipe, name in (('study_teacher', 'teacher'), ('study', 'seventh')):
        student = load_recipe(recipe_path(recipe)).students[name]
        network = build_student(student.kind, student.model)
        sizes.append(sum(parameter.numel() for parameter in network.parameters()))
    assert 7 <= sizes[0] / sizes[1] <= 688.6 / 94.9
