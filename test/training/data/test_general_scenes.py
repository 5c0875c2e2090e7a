"""General scenes: their truth is the truth of their images, in both views."""

import cv2
import numpy as np
import pytest

from training.cli import build_parser, main
from training.data.batches import exchange_views, flip_rows, zoom
from training.data.general_scenes import general_scene, HIDDEN, Photographs, SEEN, write_scenes

SIZE = (160, 128)


def scene(number, split='train'):
    sample = general_scene(3, number, Photographs(None), split, *SIZE)
    del sample['baseline_m']  # which no batch has
    return sample


def photometric_error(sample):
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float32)
    left, right = (sample[view].astype(np.float32) for view in ('left', 'right'))
    warped = cv2.remap(right, columns - sample['disparity'], rows, cv2.INTER_CUBIC)
    return np.abs(warped - left)


@pytest.mark.parametrize('number', range(4))
def test_views_agree_by_the_disparity_where_both_see_and_not_where_shifted(number):
    sample = scene(number)
    seen = sample['occlusion'] == SEEN
    error = np.mean(photometric_error(sample)[seen])
    moved = dict(sample, disparity=sample['disparity'] + 3)
    assert error < 0.7 * np.mean(photometric_error(moved)[seen])


def test_scenes_follow_from_their_numbers_and_splits_share_none():
    assert np.array_equal(scene(5)['left'], scene(5)['left'])
    assert not np.array_equal(scene(5)['left'], scene(6)['left'])
    assert not np.array_equal(scene(5)['left'], scene(5, 'test')['left'])


def test_in_a_mirror_the_right_view_has_its_own_truth():
    sample = scene(2)
    mirrored = exchange_views(sample)
    seen = mirrored['occlusion'] == SEEN
    assert np.array_equal(mirrored['left'], sample['right'][:, ::-1])
    assert np.median(photometric_error(mirrored)[seen]) <= 4
    assert np.array_equal(exchange_views(mirrored)['disparity'], sample['disparity'])


def test_exchanged_views_hide_what_stands_behind():
    near = np.zeros((4, 40), np.float32)
    near[:, 20:25] = 8
    right_near = np.zeros((4, 40), np.float32)
    right_near[:, 12:17] = 8
    grey = np.zeros((4, 40), np.uint8)
    sample = {
        'left': grey,
        'right': grey,
        'disparity': near,
        'disparity_right': right_near,
        'shadow': grey > 0,
        'occlusion': grey,
    }
    mirrored = exchange_views(sample)
    # Seen from the right, the ground at columns 20 to 24 is behind the post of the left view.
    hidden = np.flatnonzero((mirrored['occlusion'][0] == HIDDEN)[::-1])
    assert hidden.tolist() == [20, 21, 22, 23, 24]


def test_upside_down_is_upside_down():
    sample = scene(2)
    flipped = flip_rows(sample)
    assert np.array_equal(flipped['disparity'], sample['disparity'][::-1])
    assert flipped['intrinsics'][1, 2] == SIZE[1] - 1 - sample['intrinsics'][1, 2]


def test_a_larger_pair_has_larger_disparities():
    sample = scene(2)
    larger = zoom(sample, 1.5)
    assert larger['left'].shape == (192, 240)
    assert np.median(larger['disparity']) == pytest.approx(
        1.5 * np.median(sample['disparity']), rel=0.02
    )


def test_files_are_whole_and_kept(tmp_path):
    assert sorted(write_scenes(tmp_path, 1, 3, None, 'test', 1)) == [0]
    path = tmp_path / '000000.npz'
    before = path.stat().st_mtime_ns
    list(write_scenes(tmp_path, 1, 3, None, 'test', 1))
    assert path.stat().st_mtime_ns == before
    with np.load(path) as arrays:
        assert arrays['disparity'].shape == arrays['left'].shape


def test_command_writes_scenes_and_says_whether_all_are_there(tmp_path):
    command = ['general-scenes', '--out', str(tmp_path), '--count', '2', '--split', 'test']
    assert main(command) == 0
    assert len(list(tmp_path.glob('*.npz'))) == 2
    args = build_parser().parse_args([*command[:-4], '--count', '3', '--minutes', '0'])
    assert not args.work(args)
