"""Batches on a real Ray: two nodes on this machine, workers and drivers that are killed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip('pyarrow')
# Before ray itself, whose environment it sets.
pytest.importorskip('lunar_stereo_recon.batch.cluster')

import pyarrow.parquet as parquet  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from lunar_stereo_recon.batch import cluster  # noqa: E402
from lunar_stereo_recon.batch.cluster import connected, Limits, run_all  # noqa: E402
from lunar_stereo_recon.batch.plan import plan_bag  # noqa: E402
from lunar_stereo_recon.batch.shard_work import do_shard  # noqa: E402
from lunar_stereo_recon.batch.store import Store  # noqa: E402
from lunar_stereo_recon.cli import main  # noqa: E402
from lunar_stereo_recon.errors import ReconError  # noqa: E402

WORDS = ('--backend', 'sgbm', '--outputs', 'depth', '--shard-frames', '4', '--memory', '1')
PATIENCE_S = 600.0


@pytest.fixture(scope='module')
def address():
    """Return the address of a cluster of two nodes with a core each."""
    nodes = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def files_of(store):
    """Return the SHA-256 of each result, by shard and name."""
    manifest = json.loads((store / 'manifest.json').read_text())
    return {
        (shard['name'], name): file['sha256']
        for bag in manifest['bags']
        for shard in bag['shards']
        for name, file in shard['files'].items()
    }


def undisturbed(settings, bags, path):
    """Return the same for a batch that this process does alone."""
    with Store(path, settings.parameters(), [str(bag) for bag in bags], resume=False) as store:
        plans = [plan_bag(settings, str(bag)) for bag in bags]
        records = {
            shard.name: do_shard((settings, store.path), shard)
            for plan in plans
            for shard in plan.shards()
        }
        store.write_manifest(plans, records)
    return files_of(path)


def kill_first_writer(store, killed):
    """Kill the first process that is seen to write a shard."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends and not killed:
        for partial in (store / '.partial').glob('*'):
            pid = int(partial.name.split('.')[-2])
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            break
        time.sleep(0.001)


def test_two_nodes_do_a_batch_and_a_killed_worker_loses_nothing(
    address, make_drive, settings, tmp_path, capsys
):
    bags = [make_drive('one', 28), make_drive('two', 14, seed=1)]
    store, killed = tmp_path / 'store', []
    killer = threading.Thread(target=kill_first_writer, args=(store, killed))
    killer.start()
    words = [str(bags[0]), str(bags[0]), str(bags[1]), '--out', str(store), *WORDS]
    assert main(['batch', *words, '--address', address]) == 0
    killer.join()
    assert killed and files_of(store) == undisturbed(settings, bags, tmp_path / 'alone')
    assert json.loads((store / 'failures.json').read_text()) == []
    assert not (store / '.partial').exists()
    said = capsys.readouterr().out
    assert '2 bags, 2 workers' in said and 'given 2 times, taken once' in said
    assert '42 frames in, 42 out' in said
    rows = parquet.read_table(sorted(store.glob('shards/*/*/frames.parquet')))
    assert rows.num_rows == 42
    # Again: refused; with --resume: nothing is left to do.
    assert main(['batch', *words, '--address', address]) == 2
    assert main(['batch', '--resume', '--out', str(store), *WORDS, '--address', address]) == 0
    shards = len(list(store.glob('shards/*/*')))
    assert f'{shards} of {shards} shards ({shards} were there)' in capsys.readouterr().out


def test_failures_are_isolated_and_listed(address, make_drive, tmp_path, capsys):
    """A file that is no bag, a bag without a usable frame, and one that is whole."""
    broken = tmp_path / 'broken.mcap'
    broken.write_bytes(b'nothing')
    bad, good = make_drive('bad', 3, bad_frames=range(3)), make_drive('good', 7, seed=2)
    store = tmp_path / 'store'
    words = [str(broken), str(bad), str(good), '--out', str(store), *WORDS]
    assert main(['batch', *words, '--address', address]) == 1
    failures = {Path(f['path']).name: f for f in json.loads((store / 'failures.json').read_text())}
    assert set(failures) == {'broken.mcap', 'bad'}
    assert 'none of 3 frames can be used' in failures['bad']['error']
    said = capsys.readouterr().out
    assert 'FAILED' in said and 'broken.mcap: cannot be read' in said
    assert '10 frames in, 7 out' in said


def test_jobs_that_kill_their_worker_are_tried_so_often_and_no_more(address, tmp_path):
    def work(folder, job):
        (folder / f'{job}.{time.time_ns()}').touch()
        if job == 'deadly':
            os.kill(os.getpid(), signal.SIGKILL)
        if job == 'full':
            raise OSError(errno.ENOSPC, 'No space left on device')
        if job == 'large':
            return len(bytearray(2**30))
        return job.upper()

    limits = Limits(workers=2, memory_bytes=2**28, retries=1)
    with connected(address, limits):
        jobs = ['good', 'deadly', 'full', 'large', 'fine']
        answers = {answer.job: answer for answer in run_all(work, tmp_path, jobs, limits)}
    assert answers['good'].value == 'GOOD' and answers['fine'].value == 'FINE'
    assert answers['deadly'].error and answers['deadly'].attempts == 2
    assert len(list(tmp_path.glob('deadly.*'))) == 2
    assert answers['full'].disk_full and answers['full'].attempts == 1
    assert 'more than 0.2 GiB of memory' in answers['large'].error


def test_no_cluster_at_the_address(tmp_path, make_drive, capsys):
    ray.shutdown()
    words = [str(make_drive()), '--out', str(tmp_path / 'store'), *WORDS]
    assert main(['batch', *words, '--address', 'nonsense']) == 2
    assert 'no Ray cluster at nonsense' in capsys.readouterr().err


def test_ray_is_started_again_where_it_does_not_start(monkeypatch, capsys):
    """It gives itself too little time where others load the machine."""
    attempts = []

    def init(**options):
        attempts.append(options)
        if len(attempts) < 3:
            raise Exception('The current node timed out during startup.')

    monkeypatch.setattr(cluster.ray, 'init', init)
    monkeypatch.setattr(cluster.ray, 'shutdown', lambda: None)
    monkeypatch.setattr(cluster, '_room', lambda limits: limits.workers)
    with connected(None, Limits(workers=2, threads=3)) as workers:
        assert workers == 2
    assert len(attempts) == 3 and attempts[-1]['num_cpus'] == 6
    assert attempts[-1]['address'] == 'local'  # not what runs on the machine already
    said = capsys.readouterr().err
    assert 'attempt 1 of 3: The current node' in said and 'attempt 2 of 3' in said
    monkeypatch.setattr(cluster.ray, 'init', never)
    with pytest.raises(ReconError, match=r'tried 3 times: no room\. .* want \d+ cores'):
        with connected(None, Limits(workers=1)):
            pass


def never(**options):
    raise RuntimeError('no room.')


def test_nothing_is_sent_and_strangers_are_refused(address):
    assert os.environ['RAY_USAGE_STATS_ENABLED'] == '0'
    stranger = subprocess.run(
        [sys.executable, '-c', f'import ray; ray.init(address={address!r})'],
        env={
            **os.environ,
            'RAY_AUTH_MODE': 'disabled',
            'RAY_gcs_rpc_server_connect_timeout_s': '1',
        },
        capture_output=True,
        text=True,
    )
    assert stranger.returncode != 0 and 'InvalidAuthToken' in stranger.stderr


# A driver that is killed when it has the answers of three shards, whatever else the machine does.
KILLED_DRIVER = """
import os, signal, sys
from lunar_stereo_recon.batch import cluster
from lunar_stereo_recon.cli import main

run_all = cluster.run_all

def run_some(function, given, jobs, limits):
    for number, answer in enumerate(run_all(function, given, jobs, limits)):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield answer

cluster.run_all = run_some
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_driver_is_resumed(make_drive, settings, tmp_path):
    """Its local Ray dies with it; what was done stays, what was not is done."""
    bag, store = make_drive('long', 70), tmp_path / 'store'
    words = ['batch', str(bag), '--out', str(store), *WORDS, '--workers', '1']
    killed = subprocess.run(
        [sys.executable, '-c', KILLED_DRIVER, *words], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {path: path.stat().st_mtime_ns for path in store.glob('shards/*/*/shard.json')}
    assert len(before) >= 3 and not (store / 'manifest.json').exists()
    command = [sys.executable, '-m', 'lunar_stereo_recon.cli', *words, '--resume']
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    # The worker may have ended another shard before it noticed that the driver was gone.
    shards, there = map(int, re.search(r'of (\d+) shards \((\d+) were', ended.stdout).groups())
    assert len(before) <= there < shards
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files_of(store) == undisturbed(settings, [bag], tmp_path / 'alone')
