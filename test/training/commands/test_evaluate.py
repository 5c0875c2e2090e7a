"""The paper's tables: the published form, perfect networks, refusals."""

from __future__ import annotations

import csv
import math

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')
OpenEXR = pytest.importorskip('OpenEXR')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.evaluate import (  # noqa: E402
    check_rectified,
    evaluate,
    latex,
    markdown,
    named,
    official_size,
    Prediction,
    read_pair,
    retention,
    summary,
    view_pairs,
)
from training.data.batches import list_samples  # noqa: E402
from training.data.stereolunar import list_view_pairs  # noqa: E402
from training.models.checkpoints import save_model  # noqa: E402
from training.models.heads import HeadConfig  # noqa: E402
from training.models.mast3r import Mast3r, Mast3rConfig  # noqa: E402

SIDE, FOCAL, ALTITUDE = 64, 80.0, 100.0


def ground(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return heights at places, all in metres."""
    return 4 * np.sin(x / 15) * np.cos(y / 11)


def write_view(stem, place: tuple[float, float], turn_deg: float = 0.0) -> None:
    """Write a view straight down on the ground from above a place."""
    angle = np.radians(turn_deg)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    rows, columns = np.indices((SIDE, SIDE), dtype=np.float64)
    middle = (SIDE - 1) / 2
    rays = np.stack([(columns - middle) / FOCAL, (rows - middle) / FOCAL, np.ones_like(rows)], -1)
    rays = rays @ turn.T
    depth = np.full((SIDE, SIDE), ALTITUDE)
    for _ in range(50):  # fixed point: the ground is gentle
        spot = rays * depth[..., None] + (*place, 0)
        depth = ALTITUDE - ground(spot[..., 0], spot[..., 1])
    shade = 128 + 8 * ground(spot[..., 0], spot[..., 1])
    shade += 20 * np.sin(spot[..., 0] * 3) * np.sin(spot[..., 1] * 2)
    stem.parent.mkdir(parents=True, exist_ok=True)
    image = np.clip(shade, 0, 255).astype(np.uint8)
    cv2.imwrite(f'{stem}.jpg', cv2.merge([image] * 3))
    header = {'compression': OpenEXR.ZIP_COMPRESSION, 'type': OpenEXR.scanlineimage}
    OpenEXR.File(header, {'Y': depth.astype(np.float32)}).write(f'{stem}.exr')
    pose = np.eye(4)
    pose[:3, :3], pose[:2, 3] = turn, place
    camera = np.array([[FOCAL, 0, middle], [0, FOCAL, middle], [0, 0, 1]])
    np.savez(f'{stem}.npz', intrinsics=camera, cam2world=pose)


@pytest.fixture
def published(tmp_path):
    """Return a root in the published form: scenes, and a split file with its pairs."""
    root = tmp_path / 'StereoLunar'
    for scene in (0, 1):
        write_view(root / f'scene_{scene}' / 'im_0', (0.0, 0.0))
        # The right camera of the first pair stands to the left of the left one, and turned.
        write_view(root / f'scene_{scene}' / 'im_1', (-12.0, 5.0) if scene else (10.0, 0.0), 0.0)
    np.savez(
        root / 'test.npz',
        scenes=np.array(['scene_0', 'scene_1']),
        images=np.array(['im_0', 'im_1']),
        pairs=np.array([[0, 0, 1, 90], [1, 0, 1, 80]]),
    )
    return root


def perfect(pair) -> Prediction:
    """Know the truth, in another unit and frame of mind."""
    left, right = pair.points
    return Prediction(0.01 * left, 0.01 * right)


def pairs_of(root, names=None):
    stems = view_pairs(root, names)
    return [(stem[0].parent.name, read_pair(stem, 64, 100)) for stem in stems]


def test_perfect_network_scores_perfectly_on_the_published_form(published):
    found = evaluate(perfect, iter(pairs_of(published, published / 'test.npz')))
    assert list(found) == ['scene_0', 'scene_1']
    mean = summary(list(found.values()))
    assert mean['pairs'] == 2
    for name in ('scale_abs_rel', 'sim3_rmse', 'chamfer', 'slope_mae', 'roughness_mae'):
        assert mean[name] == pytest.approx(0, abs=1e-4), name
    for name in ('scale_delta1', 'accuracy_under_0.1%', 'hazard_agree_10'):
        assert mean[name] == 100, name
    for name in ('scale_ssim', 'sim3_pearson', 'slope_corr', 'relief_corr', 'curvature_corr'):
        assert mean[name] == pytest.approx(1, abs=1e-4), name


def test_known_error_scores_its_value_after_alignment(published):
    def ramp(pair):
        left, right = (view.copy() for view in pair.points)
        # Depth off by a share that is +2 % on one half and -2 % on the other.
        share = np.where(np.arange(left.shape[1]) < left.shape[1] // 2, 1.02, 0.98)[:, None]
        return Prediction(left * share, right * share)

    (scores, _) = evaluate(ramp, iter(pairs_of(published, published / 'test.npz'))).values()
    assert scores['scale_abs_rel'] == pytest.approx(0.02, abs=0.003)
    assert scores['scale_silog'] == pytest.approx(0.02, abs=0.001)
    assert scores['scale_delta1'] == 100


def test_descriptors_that_match_give_the_pose(published):
    def sure(pair):
        left, right = pair.points
        # Descriptors are places on the ground: equal where both views see the same.
        features = []
        for points in (left, right):
            phase = points[..., :2, None] * np.array([0.05, 0.11, 0.4, 1.3])
            waves = np.concatenate([np.sin(phase), np.cos(phase)], -1).reshape(48, 64, -1)
            features.append(waves / np.linalg.norm(waves, axis=-1, keepdims=True))
        one, two = (feature.astype(np.float32) for feature in features)
        ones = np.ones((48, 64), np.float32)
        return Prediction(left, right, (one, two), (ones, ones))

    rows = list(evaluate(sure, iter(pairs_of(published, published / 'test.npz'))).values())
    # Matches of whole pixels on nearly flat ground: a rough pose, but none is missing.
    assert all(row['rra'] < 20 and np.isfinite(row['rta']) for row in rows)
    assert summary(rows)['rra_median'] == np.median([row['rra'] for row in rows])
    assert {'auc_5', 'auc_10', 'auc_20', 'rta_median'} <= set(summary(rows))


def test_official_size_and_crop(published):
    assert official_size(512, 512) == (384, 512)
    assert official_size(480, 640) == (384, 512)
    assert official_size(1000, 700) == (512, 352)
    with pytest.raises(InputError, match='no 16 pixels left'):
        official_size(4, 4000)
    ((_, pair), _) = pairs_of(published, published / 'test.npz')
    assert pair.left.depth.shape == (48, 64)
    assert pair.left.intrinsics[1, 2] == pytest.approx((SIDE - 1) / 2 - 8)


def test_depth_beyond_the_percentile_is_unknown(published):
    stems = view_pairs(published, published / 'test.npz')[0]
    whole, cut = (read_pair(stems, 64, percentile) for percentile in (100, 90))
    assert np.isfinite(whole.left.depth).all()
    assert 0.02 < np.isnan(cut.left.depth).mean() < 0.25
    assert np.nanmax(cut.left.depth) < whole.left.depth.max()


def test_rectified_pairs_are_told_from_others(published):
    (_, first), (_, second) = pairs_of(published, published / 'test.npz')
    check_rectified(first)
    with pytest.raises(InputError, match=r'not rectified.*-12 m along the row, 5 m off it'):
        check_rectified(second)


def test_command_writes_the_tables_for_a_mast3r_and_a_student_of_it(
    published, flight_teacher, tmp_path, capsys
):
    torch.manual_seed(0)
    head = HeadConfig(descriptor_width=8, level_channels=(8, 8, 16, 16), fusion_width=16)
    model = Mast3r(Mast3rConfig(32, 1, 2, 16, 4, 2, head=head))
    for part in (model.downstream_head1, model.downstream_head2):
        with torch.no_grad():  # points in front of the camera
            part.dpt.head[4].bias.copy_(torch.tensor([0.0, 0.0, 2.0, 0.0]))
    weights, out = tmp_path / 'mine.safetensors', tmp_path / 'out'
    save_model(model, weights)
    command = ['evaluate', str(weights), str(published), '--pairs', 'test.npz']
    command += ['--size', '64', '--device', 'cpu', '--out', str(out), '--percentile', '100']
    command += ['--teacher', f'again={weights}', '--also', f'rows={flight_teacher}']
    assert main(command) == 0
    text = capsys.readouterr().out
    assert '| | mine | rows | again |' in text
    with (out / 'retention.csv').open() as file:
        kept = {row['score']: row for row in csv.DictReader(file)}
    (own,) = (name for name in kept['chamfer'] if name.startswith('mine'))
    # A student that is its teacher retains all of it.
    values = [float(row[own]) for row in kept.values() if row[own] not in ('', 'nan')]
    assert values and all(value == pytest.approx(100) for value in values)
    assert (out / 'evaluation.tex').read_text().count('&') > 20
    assert len((out / 'pairs_mine.csv').read_text().splitlines()) > 30
    # The pair that is not rectified is left out of the flight network's mean.
    with (out / 'evaluation.csv').open() as file:
        pairs = {row['score']: row for row in csv.DictReader(file)}['pairs']
    assert float(pairs['rows']) == 1 and float(pairs['again']) == 2


def test_two_networks_of_one_name_are_refused(published, mast3r_teacher, capsys):
    command = ['evaluate', str(mast3r_teacher), str(published), '--teacher', str(mast3r_teacher)]
    assert main(command) == 2
    assert "are both named 'mast3r_teacher'; give one as NAME=PATH" in capsys.readouterr().err
    assert named('best=a/b.pth:S2')[0] == 'best' and named('best=a/b.pth:S2')[2] == 'S2'
    assert named('runs/s2/checkpoint')[0] == 's2'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--limit', '0'], '--limit is 0; 1 or more'),
        (['--limit', '-3'], '--limit is -3; 1 or more'),
        (['--percentile', '200'], '--percentile is 200; above 0 and up to 100'),
        (['--also', 'a/b={}'], "is named 'a/b'; a name of files"),
        (['--also', '={}'], "is named ''; a name of files"),
        (['--also', 'x=nothing.pth'], 'x: there is no checkpoint nothing.pth'),
    ],
)
def test_arguments_that_mean_nothing_are_refused_before_work(
    published, mast3r_teacher, capsys, arguments, message
):
    filled = [text.format(mast3r_teacher) for text in arguments]
    assert main(['evaluate', str(mast3r_teacher), str(published), *filled]) == 2
    assert message in capsys.readouterr().err


def test_split_files_and_folders_that_cannot_be_meant_are_refused(published, tmp_path):
    with np.load(published / 'test.npz') as arrays:
        split = dict(arrays)
    (published / 'scene_1' / 'im_1.jpg').unlink()
    with pytest.raises(InputError, match=r'1 of 4 images that it names are not.*scene_1/im_1.jpg'):
        view_pairs(published, published / 'test.npz')
    np.savez(published / 'far.npz', **{**split, 'pairs': np.array([[0, 0, 7, 1]])})
    with pytest.raises(InputError, match='not a list of pairs'):
        view_pairs(published, published / 'far.npz')
    np.savez(published / 'back.npz', **{**split, 'pairs': np.array([[0, 0, -1, 1]])})
    with pytest.raises(InputError, match='number -1 of a scene or view'):
        view_pairs(published, published / 'back.npz')
    np.savez(published / 'short.npz', scenes=split['scenes'], images=split['images'])
    with pytest.raises(InputError, match='pairs'):
        view_pairs(published, published / 'short.npz')
    np.savez(published / 'objects.npz', **{**split, 'scenes': split['scenes'].astype(object)})
    with pytest.raises(InputError):
        view_pairs(published, published / 'objects.npz')
    with pytest.raises(InputError, match='StereoLunar views'):
        list_samples([published / 'scene_0'])
    np.savez(published / 'scene_0' / '0000.npz', left=np.zeros(1))
    with pytest.raises(InputError, match=r'2 views and 1 .npz without depth \(0000.npz\)'):
        list_view_pairs([published / 'scene_0'])


def test_loose_views_are_scored_in_one_order(published):
    assert len(list_view_pairs([published / 'scene_0'])) == 2
    assert len(view_pairs(published / 'scene_0', None)) == 1


def test_network_that_no_pair_suits_is_an_error(published):
    def nothing(pair):
        raise InputError('not rectified')

    with pytest.raises(InputError, match='none of 2 pairs can be scored'):
        evaluate(nothing, iter(pairs_of(published, published / 'test.npz')))


def test_retention_and_tables_read_right():
    teacher = {'chamfer': 1.0, 'slope_corr': 0.8, 'pairs': 3.0, 'rmse': 0.0}
    student = {'chamfer': 2.0, 'slope_corr': 0.6, 'pairs': 3.0, 'rmse': 0.0}
    kept = retention(student, teacher)
    assert kept == {'chamfer': 50.0, 'slope_corr': pytest.approx(75.0), 'rmse': 100.0}
    table = {'S_2': {'auc_5': 12.3456, 'miss': math.nan}, 'T': {'auc_5': 50.0}}
    assert '| auc_5 | 12.35 | 50 |' in markdown(table) and '| miss | - | - |' in markdown(table)
    assert r'auc\_5 & 12.35 & 50 \\' in latex(table) and r'S\_2' in latex(table)
