"""Few labels against a teacher's word: which pairs, which students, which differences."""

from __future__ import annotations

import json
import math
import re

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.label_study import (  # noqa: E402
    figures_of,
    parts,
    table,
    UNLABELLED,
)
from training.data.batches import RenderedPairs  # noqa: E402
from training.paired import interval  # noqa: E402
from training.recipe import DataRecipe, load_recipe, StudentRecipe  # noqa: E402


@pytest.fixture
def recipe(make_recipe, flight_teacher, plane_pairs, tiny_flight):
    students = {
        'labels': StudentRecipe(model=tiny_flight),
        'pseudo': StudentRecipe(model=tiny_flight, target='teacher', min_confidence=0.0),
    }
    recipe = make_recipe(students, flight_teacher)
    recipe.data.validation, recipe.name = str(plane_pairs), 'mine'
    recipe.optimizer.total_steps = 2
    return recipe


def test_fewer_pairs_are_part_of_more_and_depend_on_the_seed(plane_pairs):
    def drawn(count: int, seed: int) -> set:
        data = DataRecipe(train=[str(plane_pairs)], max_pairs=count)
        return set(RenderedPairs(data, seed, 1).entries)

    assert drawn(1, 0) < drawn(2, 0) < drawn(4, 0)
    assert len({frozenset(drawn(2, seed)) for seed in range(8)}) > 1
    with pytest.raises(InputError, match='max_pairs is 5, but there are 4 pairs'):
        drawn(5, 0)


def test_students_with_a_teacher_see_all_pairs_the_others_a_few(recipe):
    runs = dict(parts(recipe, [1, 2]))
    assert list(runs) == [UNLABELLED, 'labels_1', 'labels_2']
    assert list(runs[UNLABELLED].students) == ['pseudo']
    assert runs[UNLABELLED].data.max_pairs == 0
    assert list(runs['labels_2'].students) == ['labels'] and runs['labels_2'].data.max_pairs == 2
    del recipe.students['pseudo']
    with pytest.raises(InputError, match='no student whose target is teacher'):
        list(parts(recipe, [1]))


def test_differences_are_those_of_the_same_seed():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(interval([1.0])[1])
    # Seeds differ by much, students of one seed by little and always the same way.
    found = {(UNLABELLED, 'pseudo'): [1.0, 2.0, 3.0], ('labels_8', 'labels'): [1.1, 2.1, 3.12]}
    text = table(found, 'epe', 0.5)
    assert '| pseudo | labels_8, labels | -0.107 ± 0.029 | better |' in text
    found['labels_8', 'labels'] = [1.1, 1.9, 3.0]
    assert 'not clear' in table(found, 'epe', 0.5)
    # One seed tells nothing apart.
    assert 'not clear' in table({key: value[:1] for key, value in found.items()}, 'epe', 1)


def test_command_goes_on_and_writes_its_table(recipe, tmp_path, capsys):
    from omegaconf import OmegaConf

    path, out = tmp_path / 'mine.yaml', tmp_path / 'out'
    OmegaConf.save(OmegaConf.create(recipe.as_dict()), path)
    command = ['label-study', str(path), '--seeds', '2', '--labels', '1', '2', '--out', str(out)]
    command += ['--device', 'cpu']
    assert main([*command, '--minutes', '0']) == 0
    assert '0 of 2 seeds are trained' in capsys.readouterr().out
    assert main(command) == 0
    text = (out / 'table.md').read_text()
    assert text in capsys.readouterr().out
    assert '2 paired seeds' in text and '| labels_2 | labels |' in text
    assert text.count('| pseudo | labels_1, labels |') == 3  # one a figure
    rows = (out / 'results.csv').read_text().splitlines()
    assert rows[0] == 'seed,pairs,student,epe,bad1,bad2'
    assert len(rows) == 1 + 2 * 3 and rows[2].startswith('1,unlabelled,pseudo,')
    # Begun anew, the teacher may be another one.
    (out / 'teacher.json').write_text(json.dumps({'epe': 123.0, 'bad1': 0.0, 'bad2': 0.0}))
    assert main([*command, '--anew']) == 0
    assert 'the teacher has 123' not in (out / 'table.md').read_text()


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (['--labels', '0', '8'], r'--labels is \[0, 8\]'),
        (['--labels', '8', '8'], r'--labels is \[8, 8\]'),
        (['--seeds', '0'], '--seeds is 0'),
    ],
)
def test_numbers_that_mean_something_else_are_refused(recipe, tmp_path, arguments, named, capsys):
    from omegaconf import OmegaConf

    path = tmp_path / 'mine.yaml'
    OmegaConf.save(OmegaConf.create(recipe.as_dict()), path)
    assert main(['label-study', str(path), '--out', str(tmp_path / 'out'), *arguments]) == 2
    assert re.search(named, capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


def test_recipe_of_the_study_compares_starts_with_and_without_labels():
    from training.commands.train import recipe_path

    recipe = load_recipe(recipe_path('scarce_labels'))
    runs = dict(parts(recipe, [8]))
    assert set(runs['labels_8'].students) == {'labels', 'labels_shared_basis'}
    assert set(runs[UNLABELLED].students) == {'pseudo_shared_basis', 'pseudo_features'}
    assert len({str(s.model) for s in recipe.students.values()}) == 1


def test_study_of_the_papers_form_needs_no_label_for_a_teachers_word():
    from training.commands.train import recipe_path

    recipe = load_recipe(recipe_path('scarce_planes'))
    runs = dict(parts(recipe, [8]))
    assert set(runs['labels_8'].students) == {'labels', 'labels_truncate'}
    # True matches are labels.
    assert all(s.distillation['matching'] == 0 for s in recipe.students.values())
    assert recipe.data.matches == 0
    assert figures_of(recipe) == ('abs_rel',)
    recipe.students['other'] = StudentRecipe()
    with pytest.raises(InputError, match='no figure in common'):
        figures_of(recipe)
