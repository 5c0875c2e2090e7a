"""Adapting a student to a camera: labels from a teacher, then training on them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from torch import nn  # noqa: E402

from lunar_stereo_recon.bags.reader import StereoBagReader  # noqa: E402
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from training.checkpoint import load_checkpoint, load_network  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.adapt import chosen_frames, label_bag, label_pointmaps, label_rows  # noqa: E402
from training.data.batches import read_sample, RenderedPairs  # noqa: E402
from training.recipe import DataRecipe, StudentRecipe  # noqa: E402
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
    with pytest.raises(InputError, match='holds labels made from'):
        label_bag(make_bag('other'), flight_teacher, folder, count=2)


def test_adapt_goes_on_from_the_given_student(make_bag, make_recipe, flight_teacher, tmp_path):
    start = Trainer(make_recipe({'flight': StudentRecipe(model=TINY)}), tmp_path / 'start')
    start.save()
    out = tmp_path / 'adapted'
    command = f'adapt --bag {make_bag()} --teacher {flight_teacher} --student {start.path}'
    settings = (
        'optimizer.total_steps=2 optimizer.batch_size=2 optimizer.warmup_steps=1 '
        'data.crop_height=64 data.crop_width=96 data.workers=0 '
        'students.flight.min_confidence=0.0'
    )
    arguments = [*command.split(), '--frames', '2', '--out', str(out), '--set', *settings.split()]
    assert main(arguments) == 0
    assert load_checkpoint(out / 'checkpoint')['step'] == 2
    adapted, _ = load_network(out / 'checkpoint')
    before = start.students['flight'].student.state_dict()
    after = adapted.state_dict()
    assert adapted.config.decoder_width == TINY['decoder_width']
    key = 'encoder.stem.0.weight'
    # Two small steps: near where it started, not there.
    assert 0 < (after[key] - before[key]).abs().max() < 0.01


def test_student_that_is_not_shipped_is_named(make_bag, flight_teacher, capsys):
    command = ['adapt', '--bag', str(make_bag()), '--teacher', str(flight_teacher)]
    assert main([*command, '--student', 'nameless']) == 2
    assert 'nameless.safetensors' in capsys.readouterr().err


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
