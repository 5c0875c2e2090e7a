"""Shards and their store without Ray: what is there is whole, and goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
import resource

import numpy as np
import pytest

pytest.importorskip('pyarrow')

import pyarrow.parquet as parquet  # noqa: E402

from lunar_stereo_recon.bags.reader import StereoBagReader  # noqa: E402
from lunar_stereo_recon.batch.plan import plan_bag  # noqa: E402
from lunar_stereo_recon.batch.settings import BatchSettings  # noqa: E402
from lunar_stereo_recon.batch.shard_work import do_shard  # noqa: E402
from lunar_stereo_recon.batch.store import Store  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.pipeline import ReconstructionOptions  # noqa: E402


def opened(path, settings, bags=('a',), *, resume=False):
    return Store(path, settings.parameters(), bags, resume=resume)


def lasting(record):
    return {key: value for key, value in record.items() if key != 'run'}


def test_shards_have_every_frame_once_with_its_statistics(make_drive, settings, tmp_path):
    bag = make_drive(bad_frames=(2,))
    with opened(tmp_path / 'store', settings) as store:
        plan = plan_bag(settings, str(bag))
        shards = plan.shards()
        assert len(shards) > 3 and plan.frames == 21
        records = {shard.name: do_shard((settings, store.path), shard) for shard in shards}
        assert {shard.name: store.done(shard, verify=True) for shard in shards} == records
    rows = parquet.read_table(sorted(store.path.glob('shards/*/*/frames.parquet'))).to_pylist()
    with StereoBagReader(bag) as reader:
        assert [row['stamp_ns'] for row in rows] == [f.stamp_ns for f in reader.frames()]
    assert [row['error'] is not None for row in rows] == [index == 2 for index in range(21)]
    assert "unknown image encoding 'mono9'" in rows[2]['error'] and rows[2]['width'] is None
    assert {row['bag'] for row in rows} == {plan.bag}
    assert rows[0]['depth_p50_m'] == pytest.approx(300 * 0.2 / 12, rel=0.01)
    assert rows[0]['valid_share'] > 0.5
    results = [StereoRows(path) for path in sorted(store.path.glob('shards/*/*/result'))]
    assert sum(result.depths for result in results) == 20


class StereoRows:
    """How many depth images a result bag has."""

    def __init__(self, path: Path) -> None:
        from lunar_stereo_recon.bags.storage import Recording

        recording = Recording(path)
        self.depths = sum(1 for _ in recording.messages(['/depth/image']))
        recording.close()


def test_results_do_not_depend_on_what_was_done_before(make_drive, settings, tmp_path):
    """Files are the same to the byte, whatever the order; also in another place."""
    shards = plan_bag(settings, str(make_drive())).shards()
    found = []
    for name, order in (('first', shards), ('second', shards[::-1])):
        with opened(tmp_path / name, settings) as store:
            records = [do_shard((settings, store.path), shard) for shard in order]
            found.append(sorted(json.dumps(lasting(record)) for record in records))
    assert found[0] == found[1]


def test_the_rovers_own_parts_have_no_results(make_drive, settings, tmp_path):
    half = '[[0, 0], [159, 0], [159, 239], [0, 239]]'
    bag, shares = str(make_drive()), []
    for masks in ((), (half,)):
        chosen = dataclasses.replace(settings, self_mask=masks)
        with opened(tmp_path / f'store{len(masks)}', chosen) as store:
            shard = plan_bag(chosen, bag).shards()[0]
            do_shard((chosen, store.path), shard)
            [table] = store.path.glob('shards/*/*/frames.parquet')
            shares.append(parquet.read_table(table).to_pylist()[0]['valid_share'])
    assert shares[1] < 0.6 * shares[0]
    assert chosen.parameters()['self_mask'] == [half]
    mask = tmp_path / 'mask.png'
    digests = []
    for content in (b'one', b'two'):
        mask.write_bytes(content)
        named = dataclasses.replace(settings, self_mask=(str(mask),))
        digests.append(named.parameters()['self_mask'])
    assert digests[0] != digests[1]


def test_a_shard_that_two_do_is_there_once(make_drive, settings, tmp_path):
    shard = plan_bag(settings, str(make_drive())).shards()[0]
    with opened(tmp_path / 'store', settings) as store:
        first = do_shard((settings, store.path), shard)
        do_shard((settings, store.path), shard)
        assert store.done(shard, verify=True) == first
        assert not list((store.path / '.partial').iterdir())


def test_what_is_not_whole_is_done_again(make_drive, settings, tmp_path):
    shards = plan_bag(settings, str(make_drive())).shards()
    with opened(tmp_path / 'store', settings) as store:
        for shard in shards[:3]:
            do_shard((settings, store.path), shard)
        folders = [store.path / 'shards' / shard.name for shard in shards[:3]]
        table = folders[0] / 'frames.parquet'
        table.write_bytes(table.read_bytes()[:-1])
        (folders[1] / 'shard.json').unlink()
        changed = bytearray((folders[2] / 'frames.parquet').read_bytes())
        changed[100] ^= 1
        (folders[2] / 'frames.parquet').write_bytes(changed)
        assert store.done(shards[0]) is None and store.done(shards[1]) is None
        assert store.done(shards[2]) is not None and store.done(shards[2], verify=True) is None
        assert not any(folder.exists() for folder in folders)


def test_a_store_is_taken_once_and_under_the_same_parameters(settings, tmp_path):
    path = tmp_path / 'store'
    with opened(path, settings):
        with pytest.raises(InputError, match='another batch is writing'):
            opened(path, settings, resume=True)
    with pytest.raises(InputError, match='--resume goes on with it'):
        opened(path, settings)
    other = BatchSettings(
        backend='sgbm',
        outputs=('depth',),
        shard_frames=9,
        options=ReconstructionOptions(confidence_threshold=0.25),
    )
    with pytest.raises(InputError) as refused:
        opened(path, other, resume=True)
    assert 'options.confidence_threshold was 0.5 and is 0.25' in str(refused.value)
    assert 'shard_frames was 4 and is 9' in str(refused.value)
    with opened(path, settings, ('b', 'a'), resume=True) as store:
        assert store.recordings == ['a', 'b']
    with opened(path, settings, (), resume=True) as store:
        assert store.recordings == ['a', 'b']


def test_folders_of_others_are_left_alone(settings, tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(b'1')
    with pytest.raises(InputError, match=r'photo\.jpg and is no store'):
        opened(tmp_path, settings)
    with pytest.raises(InputError, match='no bags given'):
        opened(tmp_path / 'new', settings, ())


def test_what_was_being_written_is_cleared(settings, tmp_path):
    with opened(tmp_path / 'store', settings) as store:
        (store.path / '.partial' / 'x').mkdir()
    assert not (store.path / '.partial').exists()
    (store.path / '.partial' / 'of a killed driver').mkdir(parents=True)
    with opened(tmp_path / 'store', settings, resume=True) as store:
        assert not list((store.path / '.partial').iterdir())


def test_a_recording_that_changed_is_not_mixed_with_the_old_one(make_drive, settings, tmp_path):
    bag = make_drive()
    with opened(tmp_path / 'store', settings) as store:
        store.keep_plan(plan_bag(settings, str(bag)))
        store.keep_plan(plan_bag(settings, str(bag)))
        other = make_drive('other', seed=1)
        (bag / 'drive.mcap').write_bytes((other / 'other.mcap').read_bytes())
        with pytest.raises(InputError, match='not the recording that the batch began with'):
            store.keep_plan(plan_bag(settings, str(bag)))


def test_copies_have_one_key_and_other_bags_another(make_drive, settings, tmp_path):
    plan = plan_bag(settings, str(make_drive()))
    copy = tmp_path / 'elsewhere'
    (tmp_path / 'drive').rename(copy)
    assert plan_bag(settings, str(copy)).digest == plan.digest
    assert plan_bag(settings, str(make_drive(seed=1))).digest != plan.digest


def test_a_full_disk_leaves_nothing_behind(make_drive, settings, tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the middle."""
    shard = plan_bag(settings, str(make_drive())).shards()[0]
    with opened(tmp_path / 'store', settings) as store:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(OSError, match='too large'):
                do_shard((settings, store.path), shard)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert store.done(shard) is None and not list((store.path / '.partial').iterdir())
        do_shard((settings, store.path), shard)
        assert store.done(shard, verify=True)


def test_a_bag_that_was_cut_off_gives_what_is_there(make_drive, settings, tmp_path):
    file = make_drive() / 'drive.mcap'
    cut = tmp_path / 'cut.mcap'
    cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    plan = plan_bag(settings, str(cut))
    assert 'the index of cut.mcap' in plan.losses[0] and len(plan.shards()) == 1
    with opened(tmp_path / 'store', settings) as store:
        record = do_shard((settings, store.path), plan.shards()[0])
    assert 5 < record['frames']['out'] < 21 and record['losses']


def test_a_damaged_chunk_is_lost_and_said(make_drive, settings, tmp_path):
    bag = make_drive()
    file = bag / 'drive.mcap'
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with opened(tmp_path / 'store', settings) as store:
        plan = plan_bag(settings, str(bag))
        records = [do_shard((settings, store.path), shard) for shard in plan.shards()]
    assert len({loss for record in records for loss in record['losses']}) == 1
    assert 12 <= sum(record['frames']['out'] for record in records) < 21


def test_a_shard_without_a_usable_frame_is_done(make_drive, settings, tmp_path):
    bag = make_drive(frames=3, bad_frames=range(3))
    with opened(tmp_path / 'store', settings) as store:
        (shard,) = plan_bag(settings, str(bag)).shards()
        record = do_shard((settings, store.path), shard)
        assert store.done(shard, verify=True) == record
    assert record['frames']['out'] == 0 and sum(record['frames']['reasons'].values()) == 3


def test_tables_are_the_same_for_the_same_frames(make_drive, settings, tmp_path):
    shard = plan_bag(settings, str(make_drive())).shards()[1]
    found = []
    for name in ('one', 'two'):
        with opened(tmp_path / name, settings) as store:
            do_shard((settings, store.path), shard)
            (table,) = store.path.glob('shards/*/*/frames.parquet')
            found.append(table.read_bytes())
    assert found[0] == found[1]
    assert np.frombuffer(found[0][:4], np.uint8).tobytes() == b'PAR1'
