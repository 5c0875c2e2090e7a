"""Adapting a student to a camera: labels from a teacher, then training on them."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from torch import nn  # noqa: E402

from lunar_stereo_recon.bags.reader import StereoBagReader  # noqa: E402
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from training import adaptation as adaptation_module  # noqa: E402
from training.adaptation import judge, Split, split_frames, worse  # noqa: E402
from training.bag_labels import (  # noqa: E402
    chosen_frames,
    label_bag,
    label_drive,
    label_pointmaps,
    label_rows,
    with_neighbours,
)
from training.checkpoint import load_checkpoint, load_network, save_checkpoint  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.adapt import replay_folders  # noqa: E402
from training.data.batches import read_sample, RenderedPairs  # noqa: E402
from training.recipe import DataRecipe, Recipe, StartRecipe, StudentRecipe  # noqa: E402
from training.trainer import Trainer  # noqa: E402

WIDTH, HEIGHT = 96, 64


class Wall(nn.Module):
    """A perfect teacher of either kind for a wall at one disparity, px."""

    def __init__(self, disparity: float, calibration: StereoCalibration, unit_m: float = 1.0):
        super().__init__()
        self.disparity, self.rig, self.unit_m = disparity, calibration, unit_m
        self.anchor = nn.Parameter(torch.zeros(1))


class MatchingWall(Wall):
    """Sees the wall in the left view, and another disparity in right views' upper half."""

    def forward(self, left, right):
        disparity = torch.full((1, *left.shape[-2:]), self.disparity)
        self.calls = getattr(self, 'calls', 0) + 1
        if self.calls == 1:  # the mirrored pair comes first
            disparity[:, : HEIGHT // 2] += 3.0
        return {'disparity': disparity, 'confidence_logit': torch.full_like(disparity, 2.0)}


class PointmapWall(Wall):
    """Points in units of `unit_m`, descriptors that match exactly."""

    def forward(self, left, right):
        rows, width = left.shape[-2:]
        scale = width / self.rig.width
        rig = self.rig.resized(width, rows)
        depth = rig.fx * rig.baseline_m / (self.disparity * scale) / self.unit_m
        x = (torch.arange(width) - rig.cx) / rig.fx * depth
        y = (torch.arange(rows) - rig.cy)[:, None] / rig.fy * depth
        points = torch.stack(
            [x.expand(rows, width), y.expand(rows, width), torch.full((rows, width), depth)], -1
        )
        shift = round(self.disparity * scale)
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(rows, width + shift, 8, generator=generator)
        features = features / features.norm(dim=-1, keepdim=True)
        moved = points + torch.tensor([rig.baseline_m / self.unit_m, 0, 0])
        confidence = torch.full((1, rows, width), 4.0)
        return {
            'pointmap1': points[None],
            'pointmap2': moved[None],
            'conf1': confidence,
            'conf2': confidence,
            'desc1': features[None, :, :width],
            'desc2': features[None, :, shift:],
            'desc_conf1': confidence,
            'desc_conf2': confidence,
        }


@pytest.fixture
def pair() -> StereoPair:
    rig = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, WIDTH, HEIGHT)
    texture = np.random.default_rng(0).random((HEIGHT, WIDTH + 6), np.float32)
    return StereoPair(texture[:, :WIDTH].copy(), texture[:, 6:].copy(), rig)


def test_views_that_contradict_each_other_make_no_label(pair):
    labels = label_rows(MatchingWall(6.0, pair.calibration), pair, torch.device('cpu'))
    confidence = labels['confidence'].astype(np.float32)
    # Left of the wall's own disparity the match lies outside the right view.
    assert (confidence[: HEIGHT // 2] == 0).all()
    assert confidence[HEIGHT // 2 :, 6:] == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-3)
    assert (labels['disparity'] == 6.0).all()
    assert labels['left'].dtype == np.uint16
    np.testing.assert_allclose(labels['left'] / 65535, pair.left, atol=1e-5)
    assert (labels['occlusion'][:, :6] == 2).all() and (labels['occlusion'][:, 6:] == 0).all()


def test_pointmaps_become_disparities_of_the_rig(pair):
    # At 512 columns the disparity is 32 px; the unit of the pointmap must not matter.
    network = PointmapWall(6.0, pair.calibration, unit_m=3.7)
    labels = label_pointmaps(network, pair)
    assert labels['left'].shape == labels['disparity'].shape
    assert labels['disparity'].shape[1] == 512
    np.testing.assert_allclose(labels['disparity'], 32.0, rtol=0.02)
    assert labels['confidence'] == pytest.approx(0.75, abs=1e-2)


def test_frames_are_spread_over_the_recording(make_bag):
    with StereoBagReader(make_bag(frames=7)) as reader:
        assert [frame.index for frame in chosen_frames(reader, 3)] == [0, 3, 6]
    with StereoBagReader(make_bag('short', frames=2)) as reader:
        assert [frame.index for frame in chosen_frames(reader, 10)] == [0, 1]


def test_labels_are_training_pairs_and_are_kept(make_bag, flight_teacher, tmp_path):
    bag, folder = make_bag(), tmp_path / 'labels'
    shares = label_bag(bag, flight_teacher, folder, count=2)
    assert len(shares) == 2 and all(0 <= share <= 1 for share in shares)
    paths = sorted(folder.glob('*.npz'))
    assert [path.name for path in paths] == ['000000.npz', '000002.npz']
    sample = read_sample(paths[0])
    assert sample['confidence'].shape == sample['left'].shape == (64, 96)
    batch = RenderedPairs(DataRecipe(train=[str(folder)], crop_height=64, crop_width=96), 0, 2)[0]
    assert batch['confidence'].shape == (2, 64, 96) and batch['intrinsics'].shape == (2, 3, 3)
    written = paths[0].stat().st_mtime_ns
    label_bag(bag, flight_teacher, folder, count=2)
    assert paths[0].stat().st_mtime_ns == written
    with pytest.raises(InputError, match='holds files made from'):
        label_bag(make_bag('other'), flight_teacher, folder, count=2)
    # The same teacher elsewhere is the same; another one in its place is not.
    moved = flight_teacher.rename(tmp_path / 'moved')
    label_bag(bag, moved, folder, count=2)
    content = load_checkpoint(moved)
    content['students']['teacher']['average']['module.encoder.stem.0.weight'] += 1.0
    save_checkpoint(moved, content)
    with pytest.raises(InputError, match='holds files made from'):
        label_bag(bag, moved, folder, count=2)


def test_neighbours_are_those_before_and_after():
    found = dict(with_neighbours(range(6), 2))
    assert found == {
        0: [1, 2],
        1: [0, 2, 3],
        2: [0, 1, 3, 4],
        3: [1, 2, 4, 5],
        4: [2, 3, 5],
        5: [3, 4],
    }
    assert list(with_neighbours(range(2), 5)) == [(0, [1]), (1, [0])]
    assert not list(with_neighbours([], 5))


def test_a_drive_labels_its_own_frames(make_bag, tmp_path, flight_teacher):
    # The poses move by 0.1 m towards a wall that stays at 2 m: 0.3 px a frame, so they agree.
    bag, folder = make_bag(frames=3), tmp_path / 'labels'
    shares = label_drive(bag, folder, count=3)
    assert len(shares) == 3 and min(shares) > 0.5
    sample = read_sample(folder / '000001.npz')
    sure = sample['confidence'] == 1
    assert sure.mean() == pytest.approx(shares[1])
    assert set(np.unique(sample['confidence'])) <= {0, 1}
    assert np.median(sample['disparity'][sure]) == pytest.approx(6.0, abs=0.3)
    with pytest.raises(InputError, match='holds files made from'):
        label_bag(bag, flight_teacher, folder, count=3)
    with pytest.raises(InputError, match='1 stereo frames with a pose; at least 2'):
        label_drive(make_bag('one', frames=1), tmp_path / 'one', count=3)


@pytest.fixture
def adaptation(make_bag, make_recipe, flight_teacher, plane_pairs, tmp_path):
    """Return a start, the folder of the run and the command that adapts it."""
    start = Trainer(make_recipe({'flight': StudentRecipe(model=TINY)}), tmp_path / 'start')
    start.save()
    out = tmp_path / 'adapted'
    command = f'adapt --bag {make_bag(frames=5)} --teacher {flight_teacher} --student {start.path}'
    settings = (
        'optimizer.total_steps=4 optimizer.batch_size=2 optimizer.warmup_steps=1 '
        'data.crop_height=64 data.crop_width=96 data.workers=0 validate_every=2 '
        'students.flight.min_confidence=0.0'
    )
    arguments = [*command.split(), '--frames', '5', '--replay', str(plane_pairs)]
    return start, out, [*arguments, '--out', str(out), '--set', *settings.split()]


def judgements(monkeypatch, *figures: dict) -> None:
    """Let the students be judged so, one after the other; the first is the start."""
    names = 'held_back_epe', 'held_back_contradicting', 'replay_epe'
    answers = iter([{**dict.fromkeys(names, 1.0), **given} for given in figures])
    monkeypatch.setattr(adaptation_module, 'judge', lambda *_: next(answers))


def test_better_student_is_written_and_starts_from_the_given_one(adaptation, monkeypatch, capsys):
    start, out, arguments = adaptation
    judgements(monkeypatch, {}, {'held_back_epe': 0.8}, {'held_back_epe': 0.9})
    assert main(arguments) == 0
    assert 'held_back_epe: 1 -> 0.8' in capsys.readouterr().out
    # The better of the two, not the last.
    assert load_checkpoint(out / 'checkpoint')['step'] == 2
    adapted, _ = load_network(out / 'checkpoint')
    before = start.students['flight'].student.state_dict()
    after = adapted.state_dict()
    assert adapted.config.decoder_width == TINY['decoder_width']
    key = 'encoder.stem.0.weight'
    # Two small steps: near where it started, not there.
    assert 0 < (after[key] - before[key]).abs().max() < 0.01


@pytest.mark.parametrize('harm', ['replay_epe', 'held_back_contradicting', 'held_back_epe'])
def test_student_that_got_worse_anywhere_is_not_written(adaptation, monkeypatch, capsys, harm):
    _, out, arguments = adaptation
    judgements(monkeypatch, {}, *[{'held_back_epe': 0.8, harm: 1.1}] * 2)
    assert main(arguments) == 2
    assert f'{harm} 1 -> 1.1' in capsys.readouterr().err
    assert not (out / 'checkpoint' / 'index.json').exists()


def test_adapting_ends_when_it_gets_no_better(adaptation, monkeypatch, capsys):
    _, out, arguments = adaptation
    judgements(monkeypatch, {}, {})
    assert main([*arguments, 'validate_every=1', '--patience', '1']) == 2
    assert 'after 1 steps none was better' in capsys.readouterr().err


def test_harmful_labels_are_refused_for_real(adaptation, capsys):
    # An untrained teacher's labels, and a student that knows no better: whatever is written was
    # measured to be better, and what is not better is refused.
    _, out, arguments = adaptation
    status = main(arguments)
    assert status in (0, 2)
    assert (status == 0) == (out / 'checkpoint' / 'index.json').exists()
    state = json.loads((out / 'adapt.json').read_text())
    if status == 0:
        assert state['best']['held_back_epe'] < state['start']['held_back_epe']
        assert worse(state['best'], state['start']) == []


def test_frames_kept_back_are_the_last_and_are_not_trained_on(plane_pairs, tmp_path):
    labels = tmp_path / 'labels'
    labels.mkdir()
    for number, path in enumerate(sorted(plane_pairs.glob('*.npz')) * 2):
        (labels / f'{number:06d}.npz').write_bytes(path.read_bytes())
    split = split_frames(tmp_path / 'split', labels, [plane_pairs])
    names = [
        [path.resolve().name for path in sorted(folder.glob('*.npz'))]
        for folder in (split.train, split.held_back)
    ]
    assert names == [[f'{i:06d}.npz' for i in range(6)], ['000006.npz', '000007.npz']]
    replay = {path.resolve() for path in split.replay.glob('*.npz')}
    kept = {path.resolve() for path in split.replay_held_back.glob('*.npz')}
    assert not replay & kept and len(replay | kept) == 4
    single = tmp_path / 'single'
    single.mkdir()
    (single / '0.npz').write_bytes(b'')
    with pytest.raises(InputError, match='1 labelled frames; at least 2'):
        split_frames(tmp_path / 'other', single, [plane_pairs])


def test_figure_that_cannot_be_told_counts_as_worse():
    assert worse({'epe': 0.9, 'bad': 2.0}, {'epe': 1.0, 'bad': 2.0}) == []
    assert worse({'epe': 1.1}, {'epe': 1.0}) == ['epe 1 -> 1.1']
    assert worse({'epe': float('nan')}, {'epe': 1.0}) and worse({}, {'epe': 1.0})


def test_student_is_judged_against_labels_and_truth(plane_pairs, tmp_path, pair):
    split = Split(tmp_path, plane_pairs, tmp_path, plane_pairs)
    for path in plane_pairs.glob('*.npz'):
        with np.load(path) as arrays:
            kept = dict(arrays)
        kept['confidence'] = np.ones(kept['disparity'].shape, np.float16)
        kept['disparity'] = np.full(kept['disparity'].shape, 5.0, np.float32)
        np.savez(path, **kept)
    figures = judge(Level(6.0, pair.calibration), split, 0.5, torch.device('cpu'))
    assert figures['held_back_epe'] == pytest.approx(1.0)
    assert figures['held_back_contradicting'] == 0.0  # a wall is the same from both sides
    assert figures['replay_epe'] == pytest.approx(1.0)


class Level(Wall):
    """Sees the wall at one disparity in every image."""

    def forward(self, left, right):
        disparity = torch.full((1, *left.shape[-2:]), self.disparity)
        return {'disparity': disparity, 'confidence_logit': torch.zeros_like(disparity)}


def test_half_of_the_items_are_replayed(plane_pairs, tmp_path):
    labels = tmp_path / 'labels'
    labels.mkdir()
    for path in sorted(plane_pairs.glob('*.npz'))[:3]:
        (labels / path.name).write_bytes(path.read_bytes())
    data = DataRecipe(train=[str(labels)], replay=[str(plane_pairs)], replay_share=0.5)
    pairs = RenderedPairs(data, seed=0, batch_size=4)
    read = []
    pairs.read = lambda entry, rng: read.append(entry) or {}
    for number in range(24):
        pairs.item(number)
    new, old = ([path for path in read if path.parent == f] for f in (labels, plane_pairs))
    assert len(new) == len(old) == 12
    # Every pair of either comes as often as the others.
    assert {new.count(path) for path in new} == {4} and {old.count(path) for path in old} == {3}
    recipe = Recipe(students={'flight': StudentRecipe()}, data=DataRecipe(replay_share=0.5))
    with pytest.raises(InputError, match='one has no effect without the other'):
        recipe.check()


def test_anchor_holds_a_student_to_its_start(make_recipe, tmp_path):
    start = Trainer(make_recipe({'flight': StudentRecipe(model=TINY)}), tmp_path / 'start')
    start.save()
    ways = []
    for anchor in (0.01, 1e4):
        student = StudentRecipe(anchor=anchor, start=StartRecipe(checkpoint=str(start.path)))
        trainer = Trainer(make_recipe({'flight': student}), tmp_path / str(anchor))
        trainer.run()
        ways.append(trainer.students['flight'].learner.distance_from_start().item())
        again = Trainer(make_recipe({'flight': student}), tmp_path / str(anchor), resume=True)
        assert again.students['flight'].learner.distance_from_start().item() == ways[-1]
    assert 0 < ways[1] < ways[0]
    with pytest.raises(InputError, match='start.checkpoint, whose weights hold it'):
        Trainer(make_recipe({'flight': StudentRecipe(anchor=1.0)}), tmp_path / 'none')


def test_student_that_is_not_shipped_is_named(make_bag, flight_teacher, capsys):
    command = ['adapt', '--bag', str(make_bag()), '--teacher', str(flight_teacher)]
    assert main([*command, '--student', 'nameless']) == 2
    assert 'nameless.safetensors' in capsys.readouterr().err


def test_student_of_another_architecture_is_refused(
    make_bag, flight_teacher, mast3r_teacher, capsys
):
    command = ['adapt', '--bag', str(make_bag()), '--teacher', str(flight_teacher)]
    assert main([*command, '--student', str(mast3r_teacher)]) == 2
    assert 'is a Mast3r; a flight one is needed' in capsys.readouterr().err


TINY = {
    'encoder_channels': [8, 8, 16, 16],
    'decoder_width': 16,
    'decoder_depth': 1,
    'decoder_heads': 2,
    'disparity_bins': 8,
    'hourglass_channels': [8, 8, 16, 16],
    'local_radius': 2,
    'fine_channels': 8,
}


def test_pairs_to_replay_are_written_where_none_are_named(tmp_path, monkeypatch):
    pytest.importorskip('numba')
    from lunar_stereo_recon.simulation import dataset

    written = []

    def write(folder, count, options):
        for number in range(count):
            written.append((folder, number, options.split))
            yield 1

    monkeypatch.setattr(dataset, 'write_dataset', write)
    assert replay_folders(argparse.Namespace(replay=[], out=tmp_path)) == [tmp_path / 'replay']
    assert written[0] == (tmp_path / 'replay', 0, 'train') and len(written) > 1


def test_stopped_run_goes_on_against_the_student_that_it_began_as(adaptation, monkeypatch, capsys):
    _, out, arguments = adaptation

    def killed(*_):
        raise KeyboardInterrupt

    # Killed while the student is judged for the first time; the trainer's checkpoint is there.
    answers = iter([{'held_back_epe': 1.0}])
    monkeypatch.setattr(adaptation_module, 'judge', lambda *_: next(answers, None) or killed())
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    position = arguments.index('--set')
    judgements(monkeypatch, {'held_back_epe': 0.9})
    assert main([*arguments[:position], '--resume', *arguments[position:]]) == 0
    assert 'held_back_epe: 1 -> 0.9' in capsys.readouterr().out
