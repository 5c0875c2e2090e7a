"""Distillation in the trainer: lessons, cache, starts, several students, logs."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import json
import math
import re

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from lunar_stereo_recon.errors import InputError, ModelError  # noqa: E402
from training.checkpoint import load_network, trained_network  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.export import write_safetensors  # noqa: E402
from training.curves import draw_curves, read_curves  # noqa: E402
from training.frozen_teacher import CachedTeacher, TOKENS  # noqa: E402
from training.learner import build_learner, FLIGHT_TERMS  # noqa: E402
from training.losses.stereo import (  # noqa: E402
    bin_divergence,
    HIDDEN,
    LARGEST_ERROR_PX,
    occlusion_from_disparity,
    scale_loss,
)
from training.models.lunar_teacher import pointmaps_from_disparity  # noqa: E402
from training.models.mast3r import Mast3r  # noqa: E402
from training.recipe import LossRecipe, StartRecipe, StudentRecipe, TEACHER_TERMS  # noqa: E402
from training.trainer import SILENT_STEPS, Trainer  # noqa: E402
from training.validation import rendered_frames, validate_pointmaps  # noqa: E402

ALL_TEACHER_LOSSES = LossRecipe(soft_bins=0.3, encoder_features=0.1, decoder_features=0.1)


@pytest.fixture
def flight_student(tiny_flight) -> Callable[..., StudentRecipe]:
    """Return a function that makes the recipe of a tiny flight student."""
    return functools.partial(StudentRecipe, kind='flight', model=tiny_flight)


@pytest.fixture
def pointmap_student(tiny_head) -> Callable[..., StudentRecipe]:
    """Return a function that makes the recipe of a tiny S4."""
    model = {'decoder_width': 16, 'decoder_depth': 1, 'decoder_heads': 2, 'head': tiny_head}
    return functools.partial(StudentRecipe, kind='S4', model=model)


def weights(trainer: Trainer, name: str) -> dict:
    return {k: v.clone() for k, v in trainer.students[name].student.state_dict().items()}


# --- Learning from a teacher ---------------------------------------------------------------


def test_every_trained_parameter_gets_a_gradient(
    make_recipe, flight_teacher, tmp_path, flight_student
):
    student = flight_student(target='teacher', min_confidence=0.0, losses=ALL_TEACHER_LOSSES)
    trainer = Trainer(make_recipe({'flight': student}, flight_teacher), tmp_path)
    member = trainer.students['flight']
    batch = trainer.data[0]
    lesson = trainer.teacher.lesson(batch, member.learner.wanted)
    loss, terms = member.learner(batch, lesson)
    loss.backward()
    assert {'soft_bins', 'encoder_features', 'decoder_features'} <= set(terms)
    assert all(term > 0 for term in terms.values())
    optimized = {id(p) for group in member.optimizer.param_groups for p in group['params']}
    silent = [
        name
        for name, p in member.learner.named_parameters()
        if p.requires_grad and (id(p) not in optimized or p.grad is None or not p.grad.any())
    ]
    # A bias before keys has no effect by construction.
    assert all(name.endswith('projk.bias') for name in silent), silent
    assert not any(p.requires_grad for p in trainer.teacher.network.parameters())


def test_each_loss_of_a_flight_student_acts_alone(
    make_recipe, flight_teacher, tmp_path, flight_student
):
    trainer = Trainer(make_recipe({'flight': flight_student()}, flight_teacher), tmp_path)
    batch, teacher = trainer.data[0], trainer.teacher
    lesson = teacher.lesson(batch, teacher.offers - {'pointmap1', 'pointmap2', 'conf1', 'conf2'})
    nothing = dict.fromkeys(FLIGHT_TERMS, 0.0)
    for name in FLIGHT_TERMS:
        losses = LossRecipe(**{**nothing, name: 1.0})
        learner = build_learner(flight_student(losses=losses), teacher)
        loss, terms = learner(batch, {key: lesson[key] for key in learner.wanted})
        assert {term for term in terms if '/' not in term} == {name} and loss.item() > 0
        loss.backward()
        reached = [p.grad for p in learner.student.parameters() if p.grad is not None]
        assert any(gradient.any() for gradient in reached), name
        if name in TEACHER_TERMS:
            with pytest.raises(ModelError, match='need logits|no teacher'):
                build_learner(flight_student(losses=losses), None)
            with pytest.raises((ModelError, KeyError)):
                learner(batch, {})
    for weights in (nothing, {**nothing, 'disparity': -1.0}):
        with pytest.raises(InputError, match='none below 0, one above is needed'):
            build_learner(flight_student(losses=LossRecipe(**weights)), teacher)


def test_students_share_one_look_of_the_teacher(
    make_recipe, flight_teacher, tmp_path, flight_student
):
    students = {
        'a': flight_student(target='teacher'),
        'b': flight_student(losses=LossRecipe(soft_bins=1.0)),
    }
    trainer = Trainer(make_recipe(students, flight_teacher), tmp_path)
    looks = []
    look = trainer.teacher._look
    trainer.teacher._look = lambda *args: looks.append(1) or look(*args)
    before = {name: weights(trainer, name) for name in students}
    terms = trainer.train_step([trainer.data[0], trainer.data[1]])
    assert len(looks) == 2  # one a batch
    assert {'a/loss', 'b/loss', 'b/soft_bins'} <= set(terms) and 'a/soft_bins' not in terms
    for name in students:
        key = 'encoder.stem.0.weight'
        assert not torch.equal(before[name][key], weights(trainer, name)[key])
    trainer.save()
    for name in students:
        loaded, _ = load_network(trainer.path, name)
        average = trainer.students[name].average.module
        torch.testing.assert_close(loaded.state_dict(), average.state_dict(), rtol=0, atol=0)
    with pytest.raises(ModelError, match='holds a, b'):
        load_network(trainer.path, 'c')


def test_pointmap_student_learns_from_a_row_matching_teacher(
    make_recipe, flight_teacher, tmp_path, pointmap_student
):
    student = pointmap_student(
        target='teacher',
        distillation={
            'decoder_features': 0.1,
            'relational': 0.1,
            'teacher_confidence': 0.1,
            'min_teacher_confidence': 1.01,
        },
    )
    trainer = Trainer(make_recipe({'S4': student}, flight_teacher, matches=32), tmp_path)
    terms = trainer.train_step([trainer.data[0]])
    for name in ('pointmap', 'matching', 'encoder_features', 'decoder_features', 'gradient'):
        assert math.isfinite(terms[name]) and terms[name] != 0, name
    assert terms['relational'] > 0 and terms['teacher_confidence'] > 0
    assert terms['grad_norm'] > 0


def test_flight_student_aligns_with_tokens_of_a_mast3r(
    make_recipe, mast3r_teacher, tmp_path, flight_student
):
    losses = LossRecipe(encoder_features=0.1, decoder_features=0.1)
    recipe = make_recipe({'flight': flight_student(losses=losses)}, mast3r_teacher)
    trainer = Trainer(recipe, tmp_path)
    terms = trainer.train_step([trainer.data[0]])
    assert terms['encoder_features'] > 0 and terms['decoder_features'] > 0
    assert 0 < terms['decoder_features/below_margin'] <= 1


def test_term_that_stays_at_zero_is_reported(
    make_recipe, flight_teacher, tmp_path, caplog, flight_student
):
    # No cosine is below a margin of -1: the term is on and cannot act.
    losses = LossRecipe(decoder_features=0.1, feature_margin=-1.0)
    trainer = Trainer(
        make_recipe({'flight': flight_student(losses=losses)}, flight_teacher), tmp_path
    )
    batch = [trainer.data[0]]
    for _ in range(SILENT_STEPS - 1):
        trainer.train_step(batch)
    assert 'teaches nothing' not in caplog.text
    trainer.train_step(batch)
    trainer.train_step(batch)
    assert caplog.text.count('decoder_features of flight has been 0 for 50 steps') == 1


def test_loss_that_its_teacher_cannot_serve_is_refused(
    make_recipe, mast3r_teacher, tmp_path, flight_student, pointmap_student
):
    recipe = make_recipe(
        {'flight': flight_student(losses=LossRecipe(soft_bins=1))}, mast3r_teacher
    )
    with pytest.raises(ModelError, match='logits.*Mast3r does not give'):
        Trainer(recipe, tmp_path)
    recipe = make_recipe({'S4': pointmap_student(distillation={'relational': 1.0})})
    with pytest.raises(ModelError, match='encoder_features is enabled but there is no teacher'):
        Trainer(recipe, tmp_path)
    recipe = make_recipe({'S4': pointmap_student(distillation={'pointmaps': 1.0})})
    with pytest.raises(InputError, match='pointmaps'):
        Trainer(recipe, tmp_path)


def test_losses_of_the_other_kind_of_student_are_refused(
    make_recipe, tmp_path, flight_student, pointmap_student
):
    with pytest.raises(InputError, match='flight has losses'):
        Trainer(make_recipe({'a': flight_student(distillation={'gradient': 1.0})}), tmp_path)
    with pytest.raises(InputError, match='this one has distillation'):
        losses = LossRecipe(disparity=2.0)
        Trainer(make_recipe({'a': pointmap_student(losses=losses)}), tmp_path)


def test_bins_of_different_number_are_refused():
    with pytest.raises(ModelError, match='soft_bins'):
        bin_divergence(torch.zeros(1, 8, 2, 2), torch.zeros(1, 9, 2, 2))
    logits = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    assert bin_divergence(logits, logits + 3.0).item() == pytest.approx(0.0, abs=1e-6)
    assert bin_divergence(logits, -logits) > 0.1


def test_scale_loss_is_least_where_the_scale_is_the_error():
    target = torch.full((1, 1, 4), 5.0)
    scales = torch.linspace(-3, 3, 61)
    losses = [
        scale_loss(torch.full((1, 1, 4), float(s)), target + 0.5, target).item() for s in scales
    ]
    assert scales[int(np.argmin(losses))].item() == pytest.approx(math.log(0.5), abs=0.06)
    sky = torch.full((1, 1, 4), torch.nan)
    doubt, trust = (scale_loss(torch.full((1, 1, 4), s), target, sky) for s in (2.7, -2.0))
    assert doubt < trust


def test_unsure_teacher_makes_agreement_count_less():
    target, log_scale = torch.full((1, 1, 4), 5.0), torch.full((1, 1, 4), -1.0)
    sure, unsure = (
        scale_loss(log_scale, target, target, torch.full((1, 1, 4), p)) for p in (1.0, 0.2)
    )
    assert sure.item() == pytest.approx(-1.0, rel=1e-5)
    assert unsure.item() == pytest.approx(-1.0 + 0.8 * LARGEST_ERROR_PX * math.e, rel=1e-5)


def test_foreground_hides_what_is_behind_it():
    disparity = torch.full((1, 1, 12), 1.0)
    disparity[..., 6:9] = 4.0  # lands on columns 2 to 4
    occlusion = occlusion_from_disparity(disparity)[0, 0].tolist()
    # Column 0 leaves the frame; 3, 4 and 5 land where the foreground stands.
    assert occlusion == [2, 0, 0, HIDDEN, HIDDEN, HIDDEN, 0, 0, 0, 0, 0, 0]
    assert (occlusion_from_disparity(torch.full((1, 1, 4), torch.nan)) == 2).all()


def test_pointmaps_of_both_views_are_one_surface():
    intrinsics = torch.tensor([[[50.0, 0, 11.5], [0, 50, 7.5], [0, 0, 1]]])
    columns = torch.arange(24.0).expand(1, 16, 24)
    # A slanted plane: d = 4 + 0.1 x in the left view, so d = (4 + 0.1 x') / 0.9 in the right.
    left, right = 4 + 0.1 * columns, (4 + 0.1 * columns) / 0.9
    one, two = pointmaps_from_disparity(left, right, intrinsics)
    assert one[..., 2].median().item() == pytest.approx(1.0, rel=0.02)
    # The left pixel x = 20 has d = 6, so it is the right view's x = 14.
    torch.testing.assert_close(one[0, :, 20], two[0, :, 14], rtol=1e-5, atol=1e-6)
    far, _ = pointmaps_from_disparity(torch.cat([left, 0 * left], 1), right, intrinsics)
    assert torch.isfinite(far).all()


# --- Cache ---------------------------------------------------------------------------------


def test_cached_lessons_equal_computed_ones(make_recipe, flight_teacher, tmp_path, flight_student):
    student = flight_student(target='teacher', losses=ALL_TEACHER_LOSSES)
    recipe = make_recipe({'flight': student}, flight_teacher, fixed_crops=1)
    recipe.teacher.cache = str(tmp_path / 'cache')
    trainer = Trainer(recipe, tmp_path)
    teacher = trainer.teacher
    assert isinstance(teacher, CachedTeacher)
    wanted = trainer.students['flight'].learner.wanted
    batches = [trainer.data[step] for step in range(4)]  # two epochs of four pairs
    first = [teacher.lesson(batch, wanted) for batch in batches]
    assert (teacher.hits, teacher.misses) == (4, 4)
    again = Trainer(recipe, tmp_path).teacher
    second = [again.lesson(batch, wanted) for batch in batches]
    assert (again.hits, again.misses) == (8, 0)
    for one, two, batch in zip(first, second, batches, strict=True):
        assert set(one) == set(two) == set(wanted)
        computed = teacher.teacher.lesson(batch, wanted)
        for name in wanted:
            # A run learns the same whether the cache was full or empty.
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
            tolerance = 1e-2 if name in TOKENS else 0.0
            torch.testing.assert_close(one[name], computed[name], rtol=tolerance, atol=0)
    again.lesson(batches[0], wanted | {'pointmap1'})  # an entry that lacks something is renewed
    assert again.misses == 2


def test_damaged_cache_entry_is_named(make_recipe, flight_teacher, tmp_path, flight_student):
    recipe = make_recipe(
        {'flight': flight_student(target='teacher')}, flight_teacher, fixed_crops=1
    )
    recipe.teacher.cache = str(tmp_path / 'cache')
    trainer = Trainer(recipe, tmp_path)
    trainer.train_step([trainer.data[0]])
    for path in (tmp_path / 'cache').rglob('*.safetensors'):
        path.write_bytes(b'cut')
    with pytest.raises(InputError, match='cache.*delete it'):
        trainer.train_step([trainer.data[0]])


# --- Starts --------------------------------------------------------------------------------


@pytest.mark.parametrize('method', ['shared_basis', 'truncate', 'direct'])
def test_student_starts_from_its_teacher(
    method, make_recipe, flight_teacher, tmp_path, capsys, flight_student
):
    at_random = Trainer(make_recipe({'flight': flight_student()}, flight_teacher), tmp_path)
    start = StartRecipe(method=method, pairs=1)
    losses = LossRecipe(encoder_features=0.1, decoder_features=0.1)
    recipe = make_recipe({'flight': flight_student(start=start, losses=losses)}, flight_teacher)
    trainer = Trainer(recipe, tmp_path)
    plan = capsys.readouterr().out
    assert 'flight starts from its teacher' in plan and 'decoder.dec_blocks.0.attn.qkv' in plan
    key = 'decoder.dec_blocks.0.attn.qkv.weight'
    assert not torch.equal(weights(trainer, 'flight')[key], weights(at_random, 'flight')[key])
    if method == 'shared_basis':
        projector = trainer.students['flight'].learner.projectors['decoder'].linear.weight
        torch.testing.assert_close(projector.T @ projector, torch.eye(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize('method', ['shared_basis', 'truncate'])
def test_student_of_the_paper_starts_with_its_heads(
    method, make_recipe, mast3r_teacher, tmp_path, capsys, pointmap_student
):
    start = StartRecipe(method=method, pairs=1, mapping='last_k')
    student = pointmap_student(target='teacher', start=start)
    trainer = Trainer(make_recipe({'S4': student}, mast3r_teacher, matches=16), tmp_path)
    plan = capsys.readouterr().out
    # One block of the teacher's two: the last.
    assert 'from dec_blocks.1.attn.qkv.weight' in plan
    assert 'downstream_head2.head_local_features.fc1.weight' in plan
    ours = weights(trainer, 'S4')
    theirs = trainer.teacher.network.state_dict()
    key = 'downstream_head1.dpt.scratch.refinenet1.out_conv.weight'
    torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)  # equal shapes: copied
    assert math.isfinite(trainer.train_step([trainer.data[0]])['loss'])


def test_wider_student_than_teacher_is_a_clear_error(
    make_recipe, flight_teacher, tmp_path, flight_student, tiny_flight
):
    student = flight_student(start=StartRecipe(method='shared_basis', pairs=1))
    student.model = {**tiny_flight, 'decoder_width': 64}
    with pytest.raises(ModelError, match='student decoder width is 64, teacher 32'):
        Trainer(make_recipe({'flight': student}, flight_teacher), tmp_path)


def test_going_on_from_a_trained_student(make_recipe, tmp_path, flight_student):
    trainer = Trainer(make_recipe({'flight': flight_student()}), tmp_path / 'first')
    trainer.train_step([trainer.data[0]])
    trainer.save()
    write_safetensors(trainer.path, tmp_path / 'flight.safetensors')
    wanted = trainer.students['flight'].average.module.state_dict()
    for path in (trainer.path, tmp_path / 'flight.safetensors'):
        recipe = make_recipe({'mine': StudentRecipe(start=StartRecipe(checkpoint=str(path)))})
        started = Trainer(recipe, tmp_path / 'second').students['mine'].student
        torch.testing.assert_close(started.state_dict(), wanted, rtol=0, atol=0)


def test_frozen_encoder_keeps_weights_and_statistics(make_recipe, tmp_path, flight_student):
    recipe = make_recipe({'flight': flight_student(freeze_encoder=True)})
    trainer = Trainer(recipe, tmp_path)
    before = weights(trainer, 'flight')
    trainer.train_step([trainer.data[0]])
    after = weights(trainer, 'flight')
    for name, value in before.items():
        if name.startswith('encoder.'):
            torch.testing.assert_close(after[name], value, rtol=0, atol=0)
    assert not torch.equal(
        after['decoder.decoder_embed.weight'], before['decoder.decoder_embed.weight']
    )


def test_pointmap_student_round_trip_through_safetensors(make_recipe, tmp_path, pointmap_student):
    recipe = make_recipe(
        {'S4': pointmap_student(distillation={'encoder_features': 0.0, 'gradient': 0.0})}
    )
    trainer = Trainer(recipe, tmp_path)
    trainer.save()
    write_safetensors(trainer.path, tmp_path / 's4.safetensors')
    loaded = trained_network(tmp_path / 's4.safetensors')
    wanted = trainer.students['S4'].average.module.state_dict()
    torch.testing.assert_close(loaded.state_dict(), wanted, rtol=0, atol=0)
    with pytest.raises(InputError, match='pointmap1'):
        trainer.train_step([trainer.data[0]])  # ground truth of rendered pairs has no pointmaps


# --- The loop ------------------------------------------------------------------------------


def test_resumed_distillation_equals_an_uninterrupted_one(
    make_recipe, flight_teacher, tmp_path, flight_student
):
    student = flight_student(target='teacher', losses=ALL_TEACHER_LOSSES)
    recipe = make_recipe({'flight': student}, flight_teacher)
    whole = Trainer(recipe, tmp_path / 'whole')
    whole.run()
    first = Trainer(recipe, tmp_path / 'parts')
    first.run(minutes=0.0)
    second = Trainer(recipe, tmp_path / 'parts', resume=True)
    assert second.step == 1
    second.run()
    ours, theirs = (t.students['flight'].learner.state_dict() for t in (second, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    other = Trainer(make_recipe({'other': flight_student()}), tmp_path / 'parts')
    with pytest.raises(ModelError, match='holds students flight; the recipe has other'):
        other.resume()


def test_two_equal_batches_accumulate_to_one(make_recipe, tmp_path, flight_student):
    one, two = (Trainer(make_recipe({'flight': flight_student()}), tmp_path) for _ in range(2))
    batch = one.data[0]
    terms = one.train_step([batch]), two.train_step([batch, batch])
    assert terms[0]['loss'] == pytest.approx(terms[1]['loss'], rel=1e-5)
    for name, value in one.students['flight'].student.named_parameters():
        # Adam's first step is the sign of the gradient: compare where that is not rounding.
        other = dict(two.students['flight'].student.named_parameters())[name]
        assert (value - other).abs().median() < 1e-6, name


def test_bf16_agrees_with_full_precision(make_recipe, flight_teacher, tmp_path, flight_student):
    student = flight_student(target='teacher', losses=ALL_TEACHER_LOSSES)
    recipe = make_recipe({'flight': student}, flight_teacher)
    half = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, amp='bf16'))
    losses = []
    for version in (recipe, half):
        trainer = Trainer(version, tmp_path)
        losses.append(trainer.train_step([trainer.data[0]])['loss'])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1] != losses[0]


def test_figures_go_to_metrics_events_and_curves(
    make_recipe, plane_pairs, tmp_path, capsys, flight_student
):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = make_recipe({'flight': flight_student()})
    recipe.optimizer.total_steps = 10
    recipe.data.validation = str(plane_pairs)
    assert Trainer(recipe, tmp_path).run()
    bar = capsys.readouterr().err.split('\r')[-1]
    # Steps, elapsed and remaining time, speed, terms.
    assert re.search(r'10/10 \[\d+:\d+<\d+:\d+, .*pairs_per_s=.*loss=.*disparity=', bar), bar
    curves = read_curves(tmp_path)
    assert [step for step, _ in curves['loss']] == [10]
    assert curves['validation/epe'][0][1] > 0
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars('loss')[0].value == pytest.approx(curves['loss'][0][1], rel=1e-5)
    draw_curves([tmp_path], tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').read_bytes()[:4] == b'\x89PNG'


def test_damaged_log_is_named(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'loss': 2.0}) + '\n{"st')
    with pytest.raises(InputError, match='line 2'):
        read_curves(tmp_path)


@pytest.mark.slow
def test_smoke_distils_to_onnx(tmp_path, capsys):
    assert main(['smoke', '--out', str(tmp_path)]) == 0
    assert 'agrees with torch' in capsys.readouterr().out
    curve = [loss for _, loss in read_curves(tmp_path / 'student')['loss']]
    assert curve[-1] < curve[0]
    assert (tmp_path / 'smoke.onnx').stat().st_size > 1000


# --- Validation ----------------------------------------------------------------------------


def test_depth_of_a_pointmap_student_is_validated_up_to_scale(plane_pairs):
    class Planes(Mast3r):
        """Knows the depth up to scale, with a tilt of 10 % from side to side."""

        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, left, right):
            tilt = torch.linspace(0.9, 1.1, left.shape[-1]).expand(1, *left.shape[-2:])
            return {'pointmap1': torch.stack([tilt, tilt, 7.3 * tilt], dim=-1)}

    figures = validate_pointmaps(Planes(), rendered_frames(plane_pairs), torch.device('cpu'))
    assert figures['abs_rel'] == pytest.approx(5.0, abs=0.1)
    assert figures['delta1.05'] == pytest.approx(49, abs=2)


@pytest.mark.parametrize('content', [None, b'{', b'[1]'])
def test_export_names_a_calibration_that_is_none(tmp_path, capsys, content):
    path = tmp_path / 'calibration.json'
    if content is not None:
        path.write_bytes(content)
    assert main(['export', 'nowhere', str(tmp_path / 'a.onnx'), '--confidence', str(path)]) == 2
    assert f'--confidence {path}' in capsys.readouterr().err
