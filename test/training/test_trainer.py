"""The trainer: resumed equals uninterrupted, bad data is counted, recipes are strict."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from lunar_stereo_recon.errors import InputError, ModelError  # noqa: E402
import training  # noqa: E402
from training.checkpoint import (  # noqa: E402
    git_commit,
    INDEX,
    load_checkpoint,
    save_checkpoint,
)
from training.curves import read_curves  # noqa: E402
from training.data.batches import ARRAYS, PairsOnTheFly, RenderedPairs  # noqa: E402
from training.learner import build_learner  # noqa: E402
from training.losses.distillation import LossWeights  # noqa: E402
from training.recipe import (  # noqa: E402
    AMP,
    DataRecipe,
    load_recipe,
    LossRecipe,
    OptimizerRecipe,
    Recipe,
    StudentRecipe,
)
from training.students import student_config  # noqa: E402
from training.trainer import learning_rate, Trainer, TrainingDivergedError  # noqa: E402
from training.validation import check_frames  # noqa: E402

RECIPES = Path(training.__file__).parent / 'recipes'

TINY_MODEL = {
    'encoder_channels': [8, 8, 16, 16],
    'decoder_width': 16,
    'decoder_depth': 1,
    'decoder_heads': 2,
    'descriptor_channels': 8,
    'disparity_bins': 8,
    'hourglass_channels': [8, 8, 16, 16],
    'local_radius': 2,
}


@pytest.fixture
def pairs(tmp_path):
    """Four pairs of a random texture at a constant disparity."""
    folder = tmp_path / 'pairs'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        texture = rng.integers(0, 255, (72, 160), np.uint8)
        disparity = 4 + 3 * number
        np.savez(
            folder / f'{number:04d}.npz',
            left=texture[:, 32 - disparity : 136 - disparity],
            right=texture[:, 32:136],
            disparity=np.full((72, 104), disparity, np.float32),
            shadow=np.zeros((72, 104), bool),
            occlusion=np.zeros((72, 104), np.uint8),
        )
    return folder


@pytest.fixture
def recipe(pairs):
    return Recipe(
        students={'flight': StudentRecipe(model=TINY_MODEL)},
        data=DataRecipe(
            train=[str(pairs)], crop_height=64, crop_width=96, workers=0, max_unreadable_fraction=0
        ),
        optimizer=OptimizerRecipe(warmup_steps=2, total_steps=6, batch_size=2),
        checkpoint_every=3,
        validate_every=100,
    )


def test_resumed_run_equals_an_uninterrupted_one(recipe, tmp_path):
    whole = Trainer(recipe, tmp_path / 'whole')
    whole.run()
    first = Trainer(recipe, tmp_path / 'parts')
    first.run(minutes=0.0)  # stops with a checkpoint after one step
    assert first.step == 1
    second = Trainer(recipe, tmp_path / 'parts')
    second.resume()
    second.run()
    assert second.step == whole.step == 6
    ours, theirs = second.students['flight'], whole.students['flight']
    for name, value in theirs.student.state_dict().items():
        torch.testing.assert_close(ours.student.state_dict()[name], value, rtol=0, atol=0)
    for name, value in theirs.average.state_dict().items():
        torch.testing.assert_close(ours.average.state_dict()[name], value, rtol=0, atol=0)


def test_run_goes_on_under_its_own_recipe_only(recipe, tmp_path, caplog):
    Trainer(recipe, tmp_path).run(minutes=0.0)
    changed = copy.deepcopy(recipe)
    changed.optimizer.learning_rate, changed.seed = 5e-4, 3
    changed.data.workers, changed.checkpoint_every = 1, 1  # no part in what is learnt
    words = 'another recipe: seed was 0, is 3; optimizer.learning_rate was 0.001, is 0.0005'
    with pytest.raises(InputError, match=words):
        Trainer(changed, tmp_path, resume=True)
    changed.seed, changed.optimizer.learning_rate = 0, 1e-3
    assert Trainer(changed, tmp_path, resume=True).step == 1
    changed.students['flight'].model = {**TINY_MODEL, 'local_radius': 3}
    with pytest.raises(InputError, match=r'students.flight.model.local_radius was 2, is 3'):
        Trainer(changed, tmp_path, resume=True)
    # On purpose: the settings are then the new recipe's, the moments the run's.
    changed = copy.deepcopy(recipe)
    changed.optimizer.weight_decay, changed.optimizer.beta2 = 0.5, 0.9
    trainer = Trainer(changed, tmp_path, resume=True, accept_changes=True)
    assert 'optimizer.weight_decay was 0.01, is 0.5' in caplog.text
    groups = trainer.students['flight'].optimizer.param_groups
    assert [group['weight_decay'] for group in groups] == [0.5, 0.0]
    assert groups[0]['betas'] == (0.9, 0.9)
    assert trainer.students['flight'].optimizer.state


def test_run_does_not_overwrite_its_teacher(recipe, tmp_path):
    Trainer(recipe, tmp_path).run(minutes=0.0)
    recipe.teacher.checkpoint = str(tmp_path / 'checkpoint')
    with pytest.raises(InputError, match='where this run would write its own'):
        Trainer(recipe, tmp_path)


def test_fresh_run_leaves_the_old_figures_aside(recipe, tmp_path):
    recipe.validate_every = 2
    recipe.data.validation = str(whole_frames(Path(recipe.data.train[0]), tmp_path / 'frames'))
    Trainer(recipe, tmp_path).run()
    old = (tmp_path / 'metrics.jsonl').read_text()
    Trainer(recipe, tmp_path)  # nothing is written yet, nothing moved
    assert (tmp_path / 'metrics.jsonl').read_text() == old
    Trainer(recipe, tmp_path).run()
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == len(old.splitlines())
    assert (tmp_path / 'before' / 'metrics.jsonl').read_text() == old
    # A run that goes on adds to its own.
    path = tmp_path / 'parts'
    Trainer(recipe, path).run(minutes=0.0)
    Trainer(recipe, path, resume=True).run()
    assert [step for step, _ in read_curves(path)['validation/epe']] == [2, 4, 6]
    assert not (path / 'before').exists()


def whole_frames(pairs: Path, folder: Path) -> Path:
    """Return a folder of the pairs, cut to sizes that a network takes as they are."""
    folder.mkdir()
    for path in pairs.glob('*.npz'):
        with np.load(path) as arrays:
            np.savez(folder / path.name, **{name: arrays[name][:64, :96] for name in ARRAYS})
    return folder


def test_batches_depend_only_on_seed_and_step(recipe):
    data = RenderedPairs(recipe.data, seed=3, batch_size=2)
    again = RenderedPairs(recipe.data, seed=3, batch_size=2)
    torch.testing.assert_close(data[5]['left'], again[5]['left'])
    assert not torch.equal(data[5]['left'], data[6]['left'])


def test_processes_share_a_batch_without_overlap(recipe):
    whole = RenderedPairs(recipe.data, 0, 2)[1]
    halves = [RenderedPairs(recipe.data, 0, 2, rank, 2)[1] for rank in range(2)]
    torch.testing.assert_close(whole['left'], torch.cat([half['left'] for half in halves]))


def test_pairs_on_the_fly_are_those_of_the_data_set(tmp_path):
    pytest.importorskip('numba')
    from lunar_stereo_recon.simulation.dataset import DatasetOptions, make_sample

    settings = DataRecipe(
        kind='on_the_fly',
        crop_height=32,
        crop_width=64,
        matches=16,
        photometric=False,
        max_vertical_offset_px=0.0,
        max_roll_deg=0.0,
    )
    batch = PairsOnTheFly(settings, seed=4, batch_size=2)[0]
    again = PairsOnTheFly(settings, 4, 2, rank=1, world_size=2)[0]
    pair = make_sample(DatasetOptions(4, 'train', (64, 32)), 1)
    np.testing.assert_array_equal(batch['disparity'][1], pair.disparity)
    np.testing.assert_allclose(batch['left'][1, 0] * 255, pair.left, atol=1e-3)
    torch.testing.assert_close(batch['left'][1:], again['left'], rtol=0, atol=0)
    # A match is where both views' disparities say.
    valid = batch['matches_valid'][1]
    assert valid.any()
    (left_x, y), right_x = batch['matches1'][1][valid].T, batch['matches2'][1][valid][:, 0]
    there = batch['disparity_right'][1][y, right_x]
    here = batch['disparity'][1][y, left_x]
    assert (there - here).abs().median() < 0.2
    assert ((left_x - right_x) - here).abs().max() <= 0.51


def test_unreadable_pairs_stop_the_run_above_the_set_fraction(recipe, pairs):
    (pairs / '0001.npz').write_bytes(b'not a zip file')
    data = RenderedPairs(recipe.data, 0, 4)
    with pytest.raises(InputError, match='1 of 4 pairs cannot be read.*0001'):
        data[0]
    recipe.data.max_unreadable_fraction = 0.5
    assert RenderedPairs(recipe.data, 0, 4)[0]['left'].shape == (4, 1, 64, 96)


def test_loader_processes_count_unreadable_pairs_together(recipe, pairs, tmp_path, caplog):
    (pairs / '0001.npz').write_bytes(b'not a zip file')
    (pairs / '0003.npz').unlink()
    np.savez(pairs / '0003.npz', **{name: np.zeros((0, 0), np.uint8) for name in ARRAYS})
    recipe.data.workers, recipe.data.max_unreadable_fraction = 2, 0.5
    recipe.optimizer.total_steps = 4
    trainer = Trainer(recipe, tmp_path)
    assert trainer.run()
    assert [path.name for path in trainer.data.unreadable] == ['0001.npz', '0003.npz']
    assert '2 of 4 pairs could not be read' in caplog.text
    recipe.data.workers, recipe.data.max_unreadable_fraction = 0, 0.25
    with pytest.raises(InputError, match='2 of 4 pairs cannot be read'):
        Trainer(recipe, tmp_path / 'other').run()


def test_loader_processes_start_where_threads_have_run(recipe, tmp_path):
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    image = np.ones((2000, 2000), np.float32)
    rows, columns = np.indices(image.shape, np.float32)
    cv2.remap(image, columns, rows, cv2.INTER_LINEAR)
    tensor = torch.ones(1000, 1000)
    (tensor @ tensor).sum()
    recipe.data.workers, recipe.optimizer.total_steps = 1, 1
    assert Trainer(recipe, tmp_path).run()
    cv2.setNumThreads(before)


def test_image_of_size_zero_is_an_unreadable_pair(recipe, pairs):
    for path in pairs.iterdir():
        np.savez(path, **{name: np.zeros((0, 104), np.uint8) for name in ARRAYS})
    with pytest.raises(InputError, match='pair is 104x0, smaller than the crop 96x64'):
        RenderedPairs(recipe.data, 0, 1)[0]


def test_crop_larger_than_the_pairs_is_an_error(recipe):
    recipe.data.crop_width = 512
    with pytest.raises(InputError, match='smaller than the crop 512x64'):
        RenderedPairs(recipe.data, 0, 1)[0]


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match='nothing'):
        RenderedPairs(DataRecipe(train=[str(tmp_path / 'nothing')]), 0, 1)


def test_missing_validation_frames_are_found_before_training(recipe, tmp_path):
    recipe.data.validation = str(tmp_path / 'nothing')
    with pytest.raises(InputError, match='nothing: no .npz pairs found'):
        Trainer(recipe, tmp_path)
    recipe.data.kind = 'stereolunar'
    pytest.importorskip('OpenEXR')
    with pytest.raises(InputError, match='nothing: 0 views'):
        check_frames(recipe.data)


def test_a_step_never_leaves_its_device(monkeypatch):
    """No tensor of a step is made on the CPU or read there: on `meta` either would raise."""
    monkeypatch.setattr('torch.is_autocast_enabled', lambda *_: False)  # knows no meta device
    with torch.device('meta'):
        learner = build_learner(StudentRecipe(model=TINY_MODEL), None)
        batch = {view: torch.rand(2, 1, 64, 96) for view in ('left', 'right')}
        batch['disparity'] = torch.rand(2, 64, 96)
        batch['occlusion'] = torch.zeros(2, 64, 96, dtype=torch.uint8)
    loss, terms = learner.train()(batch, {})
    loss.backward()
    assert {tensor.device.type for tensor in (loss, *terms.values())} == {'meta'}


def test_loss_of_weight_zero_is_not_computed(recipe, tmp_path):
    recipe.students['flight'].losses = LossRecipe(first=0.0)
    trainer = Trainer(recipe, tmp_path)
    terms = trainer.train_step([trainer.data[0]])
    assert 'first' not in terms
    assert terms['disparity'] > 0


def test_loss_that_stays_infinite_stops_the_run(recipe, tmp_path):
    recipe.students['flight'].losses = LossRecipe(disparity=float('inf'))
    trainer = Trainer(recipe, tmp_path)
    batch = trainer.data[0]
    student = trainer.students['flight'].student
    before = {name: value.clone() for name, value in student.named_parameters()}
    with pytest.raises(TrainingDivergedError, match='learning_rate'):
        for _ in range(30):
            trainer.train_step([batch])
    for name, value in student.named_parameters():
        torch.testing.assert_close(value, before[name])


def test_one_bad_step_is_skipped_and_training_goes_on(recipe, tmp_path, caplog, monkeypatch):
    trainer = Trainer(recipe, tmp_path)
    batch = trainer.data[0]
    learner = trainer.students['flight'].learner
    forward, factors = learner.forward, iter([torch.nan, 1.0])

    def spoilt_once(batch, lesson):
        loss, terms = forward(batch, lesson)
        return loss * next(factors), terms

    monkeypatch.setattr(learner, 'forward', spoilt_once)
    parameters = trainer.students['flight'].student.named_parameters

    def weights() -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in parameters()}

    before = weights()
    assert not math.isfinite(trainer.train_step([batch])['loss'])
    assert 'loss of flight is nan, skipped' in caplog.text
    torch.testing.assert_close(weights(), before, rtol=0, atol=0)
    assert math.isfinite(trainer.train_step([batch])['loss'])
    assert trainer.students['flight'].bad_steps == 0
    assert any(not torch.equal(value, before[name]) for name, value in parameters())


def test_averaged_weights_follow_the_decay(recipe, tmp_path):
    recipe.optimizer.ema_decay = 0.75
    key = 'decoder.decoder_embed.weight'
    trainer = Trainer(recipe, tmp_path)
    member = trainer.students['flight']
    wanted = None
    for step in range(3):
        trainer.train_step([trainer.data[step]])
        value = member.student.state_dict()[key].clone()
        # The average begins with the weights after the first step.
        wanted = value if wanted is None else 0.75 * wanted + 0.25 * value
    torch.testing.assert_close(member.average.module.state_dict()[key], wanted)


def test_learning_rate_rises_then_falls():
    recipe = OptimizerRecipe(learning_rate=1.0, warmup_steps=10, total_steps=110)
    rates = [learning_rate(step, recipe) for step in range(111)]
    assert rates[9] == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[110] == pytest.approx(recipe.final_fraction)


def test_time_ends_the_schedule_over_several_calls(recipe, tmp_path, monkeypatch):
    recipe.optimizer.total_steps, recipe.optimizer.warmup_steps = 10_000, 0
    clock = iter(range(0, 100_000, 6))  # each look is a tenth of a minute later
    monkeypatch.setattr('training.trainer.time.monotonic', lambda: float(next(clock)))
    rates = []

    def run(**arguments) -> Trainer:
        trainer = Trainer(recipe, tmp_path, resume=True)
        step = trainer.train_step
        trainer.train_step = lambda batches: rates.append(step(batches)['learning_rate'])
        trainer.finished = trainer.run(**arguments)
        return trainer

    first = run(minutes=0.45, finish_in=1.0)
    assert not first.finished and first.step == 5
    assert load_checkpoint(first.path)['progress'] == pytest.approx(0.5)
    # Half of the way is left, and less time for it than was planned.
    second = run(minutes=9.0, finish_in=0.3)
    assert second.finished and second.step == 8
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 8
    peak, floor = recipe.optimizer.learning_rate, recipe.optimizer.final_fraction
    assert rates[0] == peak
    assert rates[5] == pytest.approx(peak * (floor + (1 - floor) * 0.5), rel=1e-3)
    done = load_checkpoint(second.path)
    assert done['progress'] == 1.0
    third = run(minutes=9.0, finish_in=5.0)
    assert third.finished and third.step == 8 and len(rates) == 8


def test_start_from_a_checkpoint_is_what_there_is_to_be_better_than(
    recipe, pairs, tmp_path, caplog
):
    for path in pairs.iterdir():
        arrays = dict(np.load(path))
        np.savez(path, **{name: array[:64, :96] for name, array in arrays.items()})
    recipe.data.validation, recipe.optimizer.total_steps = str(pairs), 1
    assert Trainer(recipe, tmp_path / 'first').run()
    ((_, before),) = read_curves(tmp_path / 'first')['validation/epe']
    recipe.students['flight'].start.checkpoint = str(tmp_path / 'first' / 'checkpoint')
    told = set()
    for rate in (1e-3, 10.0):
        caplog.clear()
        folder = tmp_path / f'rate_{rate}'
        recipe.optimizer.learning_rate = rate
        assert Trainer(recipe, folder).run()
        first, last = read_curves(folder)['validation/epe']
        assert first == (0, before)
        worse = not last[1] < before
        assert ('no better than what it began with' in caplog.text) == worse
        told.add(worse)
    assert told == {True, False}


def test_recipe_rejects_unknown_keys_and_wrong_types(tmp_path):
    path = tmp_path / 'recipe.yaml'
    path.write_text('optimizer: {learning_rte: 0.1}\n')
    with pytest.raises(InputError, match='learning_rte'):
        load_recipe(path)
    path.write_text('optimizer: {total_steps: many}\n')
    with pytest.raises(InputError, match='total_steps'):
        load_recipe(path)
    path.write_text(f'optimizer: {{learning_rate: {"9" * 400}}}\n')
    with pytest.raises(InputError, match='too large'):
        load_recipe(path)
    path.write_text('students: {a: {losses: {disparty: 1}}}\n')
    with pytest.raises(InputError, match='disparty'):
        load_recipe(path)
    path.write_text('name: mine\nstudents: {flight: {}}\n')
    recipe = load_recipe(path, ['optimizer.learning_rate=0.5'])
    assert (recipe.name, recipe.optimizer.learning_rate) == ('mine', 0.5)


@pytest.mark.parametrize('amp', AMP)
def test_every_precision_can_be_set_from_the_command_line(tmp_path, amp):
    path = tmp_path / 'recipe.yaml'
    other = AMP[AMP.index(amp) - 1]
    path.write_text(f'students: {{flight: {{}}}}\noptimizer: {{amp: {other}}}\n')
    assert load_recipe(path).optimizer.amp == other
    recipe = load_recipe(path, [f'optimizer.amp={amp}', f'teacher.amp={amp}'])
    assert (recipe.optimizer.amp, recipe.teacher.amp) == (amp, amp)


@pytest.mark.parametrize('writer', ['os.fsync', 'os.replace'])
def test_failed_save_leaves_the_old_checkpoint(writer, tmp_path, monkeypatch):
    folder = tmp_path / 'checkpoint'
    save_checkpoint(folder, {'step': torch.tensor([1])})
    before = sorted(folder.iterdir())

    def full_disk(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(f'training.checkpoint.{writer}', full_disk)
    with pytest.raises(ModelError, match='checkpoint cannot be written: .*No space'):
        save_checkpoint(folder, {'step': torch.tensor([2])})
    assert load_checkpoint(folder)['step'] == 1
    assert sorted(folder.iterdir()) == before


def test_stop_before_the_index_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / 'checkpoint'
    save_checkpoint(folder, {'step': torch.tensor([1])})
    replace = os.replace

    def killed(source, target):
        if Path(target).name == INDEX:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr('training.checkpoint.os.replace', killed)
        save_checkpoint(folder, {'step': torch.tensor([2])})
    assert load_checkpoint(folder)['step'] == 1
    save_checkpoint(folder, {'step': torch.tensor([3])})
    assert load_checkpoint(folder)['step'] == 3
    assert len(list(folder.iterdir())) == 2  # what the stopped ones left is gone


def test_checkpoint_is_cut_into_shards_of_bounded_size(tmp_path, monkeypatch):
    limit = 4096
    monkeypatch.setattr('training.checkpoint.SHARD_BYTES', limit)
    twice = torch.arange(3)
    content = {
        'a': {'large': torch.rand(70, 50), 'small': torch.rand(3, 2).T},
        'many': [torch.full((100,), n, dtype=torch.int16) for n in range(40)],
        'nothing': torch.zeros(0, 5),
        'one': torch.tensor(2.5, dtype=torch.bfloat16),
        'twice': [twice, twice],
        'plain': {'text': 'x', 'number': 0.1, 'none': None, 'list': [1, [2]]},
    }
    save_checkpoint(tmp_path / 'checkpoint', content)
    sizes = [path.stat().st_size for path in (tmp_path / 'checkpoint').glob('*.safetensors')]
    assert len(sizes) > 5 and max(sizes) <= limit
    found = load_checkpoint(tmp_path / 'checkpoint')
    assert found.keys() == content.keys()
    assert found['plain'] == content['plain']
    for name in ('a', 'many', 'nothing', 'one', 'twice'):
        torch.testing.assert_close(found[name], content[name], rtol=0, atol=0)


def test_checkpoint_holds_all_that_made_it(recipe, tmp_path):
    trainer = Trainer(recipe, tmp_path)
    trainer.train_step([trainer.data[0]])
    trainer.save()
    content = load_checkpoint(trainer.path)
    assert content['recipe'] == recipe.as_dict() and content['recipe']['seed'] == recipe.seed
    assert content['git_commit'] == git_commit()
    assert len(git_commit()) in (0, 40)
    assert torch.equal(content['torch_rng'], torch.get_rng_state())
    state = content['students']['flight']['optimizer']['state']
    assert len(state) == len(list(trainer.students['flight'].student.parameters()))
    assert all(moments['step'] == 1 for moments in state.values())


def test_damaged_checkpoint_is_refused_by_the_name_of_the_file(recipe, tmp_path):
    trainer = Trainer(recipe, tmp_path)
    trainer.save()
    index = trainer.path / INDEX
    (shard,) = trainer.path.glob('*.safetensors')
    whole, listed = shard.read_bytes(), index.read_text()
    spoilt = whole[:-1] + bytes([whole[-1] ^ 1])
    for content in (whole[: len(whole) // 2], spoilt, b''):
        shard.write_bytes(content)
        with pytest.raises(ModelError, match=f'{shard}: not the shard that index.json lists'):
            Trainer(recipe, tmp_path, resume=True)
    shard.unlink()
    with pytest.raises(ModelError, match=f'{shard}: this shard .* cannot be read'):
        Trainer(recipe, tmp_path, resume=True)
    shard.write_bytes(whole)
    for text in (listed[:-9], '', '[]', '{"format_version": 2}', '{"format_version": 3}'):
        index.write_text(text)
        with pytest.raises(ModelError, match=f'{index}: '):
            Trainer(recipe, tmp_path, resume=True)
    tree = json.loads(listed)
    tree['content']['students']['flight']['student']['more'] = {'$shape': [1], '$pieces': 1}
    index.write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=f'{index}: not the index of its shards: .*more'):
        Trainer(recipe, tmp_path, resume=True)


def test_checkpoint_of_another_network_names_the_first_entries(recipe, tmp_path):
    trainer = Trainer(recipe, tmp_path)
    trainer.save()
    content = load_checkpoint(trainer.path)
    weights = content['students']['flight']['student']
    for name in [name for name in weights if name.startswith('decoder.')]:
        weights[f'other.{name}'] = weights.pop(name)
    save_checkpoint(trainer.path, content)
    with pytest.raises(ModelError, match='student flight does not fit') as caught:
        Trainer(recipe, tmp_path, resume=True)
    message = str(caught.value)
    assert 'missing: decoder.' in message and 'unexpected: other.decoder.' in message
    assert len(message) < 1000
    recipe.students['flight'].model = {**TINY_MODEL, 'decoder_width': 32}
    trainer.save()
    with pytest.raises(ModelError, match='of another shape: decoder'):
        Trainer(recipe, tmp_path, resume=True)


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        ('students: {}', 'students is empty'),
        ('students: {a: {kind: S9}}', "kind is 'S9'"),
        ('students: {a: {target: teacher}}', 'students.a.target needs a teacher'),
        ('students: {a: {losses: {soft_bins: 1}}}', 'students.a.losses.soft_bins needs a teacher'),
        ('students: {a: {start: {method: truncate}}}', 'start.method needs a teacher'),
        ('students: {a: {min_confidence: 2}}', 'students.a.min_confidence is 2'),
        ('{students: {a: {}}, data: {kind: video}}', "data.kind is 'video'"),
        ('{students: {a: {}}, data: {kind: on_the_fly, train: [a]}}', 'data.train has no effect'),
    ],
)
def test_recipe_that_cannot_act_is_refused(tmp_path, text, named):
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        load_recipe(path)


@pytest.mark.parametrize('path', sorted(RECIPES.glob('*.yaml')), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path):
    overrides = ['teacher.checkpoint=any'] if path.stem == 'smoke' else []
    recipe = load_recipe(path, overrides)
    for student in recipe.students.values():
        student_config(student.kind, student.model)
        if student.distillation:
            LossWeights(**student.distillation)


def test_statistics_of_a_bad_batch_are_taken_back(recipe, tmp_path):
    trainer = Trainer(recipe, tmp_path)
    member = trainer.students['flight']
    good, bad = trainer.data[0], dict(trainer.data[1])
    bad['left'] = bad['left'].clone()
    bad['left'][0, 0, 0, 0] = torch.nan
    trainer.train_step([good])
    assert not math.isfinite(trainer.train_step([bad])['loss'])
    trainer.train_step([good])
    for network in (member.student, member.average.module):
        assert all(torch.isfinite(value).all() for value in network.buffers())


def test_a_run_is_not_held_to_weights_that_it_overwrites(recipe, tmp_path):
    Trainer(recipe, tmp_path).save()
    student = recipe.students['flight']
    student.anchor, student.start.checkpoint = 1.0, str(tmp_path / 'checkpoint')
    with pytest.raises(InputError, match=r'flight.start.checkpoint is .*anchor'):
        Trainer(recipe, tmp_path)
