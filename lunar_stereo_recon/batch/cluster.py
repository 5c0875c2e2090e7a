"""Runs functions on Ray: a bounded number at a time, failures isolated and retried.

Ray's usage statistics are off. A local cluster lives as long as this process and has no dashboard;
its processes ask for a token that Ray makes for the user.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import errno
from functools import lru_cache
import logging
import os
from pathlib import Path
import resource
import sys
from typing import Any, Generic, TypeVar

from lunar_stereo_recon import __version__
from lunar_stereo_recon.errors import InputError, ReconError
from lunar_stereo_recon.evaluation.machine import usable_cores

# Before ray is imported, which reads them then.
os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
os.environ.setdefault('RAY_AUTH_MODE', 'token')
os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')

import ray  # noqa: E402
from ray.exceptions import RayError  # noqa: E402

Job = TypeVar('Job')
# Nothing travels through Ray's object store but settings and records.
_OBJECT_STORE_BYTES = 80 * 2**20
_QUIET: dict[str, Any] = {'log_to_driver': False, 'logging_level': logging.ERROR}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Ray gives its own processes 15 s, which they exceed from a cold disk or while others load the
# machine; the next start finds its files in memory.
_STARTS = 3
# Jobs that wait at the workers beside those that run, so that none has to wait for the driver.
_AHEAD = 2


@dataclass(frozen=True)
class Limits:
    """What a worker may take, and how often a job is tried.

    Attributes:
        workers: How many work at a time; 0 takes all that the cluster has.
        threads: CPU threads of each.
        memory_bytes: That each may take on top of what it starts with.
        gpus: Of each; parts of one are possible.
        retries: Attempts after the first one.
    """

    workers: int = 0
    threads: int = 1
    memory_bytes: int = 2**31
    gpus: float = 0.0
    retries: int = 2


@dataclass(frozen=True)
class Answer(Generic[Job]):
    """What became of a job.

    Attributes:
        job: The job.
        value: What the function returned.
        error: Why it failed at last; empty where it did not.
        attempts: How often it was tried.
        disk_full: It failed because nothing more can be written.
    """

    job: Job
    value: Any = None
    error: str = ''
    attempts: int = 1
    disk_full: bool = False


@contextmanager
def connected(address: str | None, limits: Limits) -> Iterator[int]:
    """Start a local cluster, or connect to one; give the number of workers it has room for.

    Args:
        address: Of a running cluster, as `ray start` names it, or 'auto'; None starts one.
        limits: Of the workers; their number decides how large a local cluster is.

    Raises:
        InputError: There is no cluster at the address.
        ReconError: Ray does not start here, however often it is tried.
    """
    if address:
        try:
            ray.init(address=address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f'no Ray cluster at {address}: {error}') from error
    else:
        _start((limits.workers or max(1, usable_cores() // limits.threads)) * limits.threads)
    try:
        yield _room(limits)
    finally:
        ray.shutdown()


def _start(cores: int) -> None:
    """Start a local cluster; what a failed attempt leaves running ends with this process.

    Raises:
        ReconError: No attempt went well.
    """
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(
                address='local',  # else it joins whatever Ray runs here already
                num_cpus=cores,
                include_dashboard=False,
                dashboard_host='127.0.0.1',
                object_store_memory=_OBJECT_STORE_BYTES,
                **_QUIET,
            )
            return
        except Exception as error:  # noqa: BLE001 - Ray raises nothing narrower
            ray.shutdown()
            if attempt == _STARTS:
                raise ReconError(
                    f'Ray does not start on this machine, tried {_STARTS} times: {error} '
                    f'{os.getloadavg()[0]:.1f} processes want {usable_cores()} cores. Try again '
                    'with --resume, or start Ray before, with ports for its agents, and give '
                    '--address; see docs/batch.md'
                ) from error
            print(f'Ray did not start, attempt {attempt} of {_STARTS}: {error}', file=sys.stderr)


def _room(limits: Limits) -> int:
    """Return how many workers the cluster has room for at present, at least one."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    rooms = [there.get('CPU', 0.0) / limits.threads, there.get('memory', 0) / limits.memory_bytes]
    if limits.gpus > 0:
        rooms.append(there.get('GPU', 0.0) / limits.gpus)
    room = max(1, int(min(rooms)))
    return min(room, limits.workers) if limits.workers else room


def run_all(
    function: Callable[[Any, Job], Any], given: Any, jobs: Sequence[Job], limits: Limits
) -> Generator[Answer[Job], None, None]:
    """Yield what became of each job, as they end; closing the generator ends what still runs.

    An error of input fails a job at once, whatever else goes wrong is tried again: a file that
    cannot be read or written, a worker that was killed, a machine that is gone.

    Args:
        function: Called with `given` and a job, in a process of some machine.
        given: The same for all.
        jobs: What is to be done.
        limits: See `Limits`.
    """
    remote: Any = ray.remote(
        num_cpus=limits.threads,
        num_gpus=limits.gpus,
        memory=limits.memory_bytes,
        max_retries=0,  # they are counted here
        scheduling_strategy='SPREAD',
    )(_attempt)
    shared = ray.put(given)
    waiting = deque((job, 1) for job in jobs)
    running: dict[Any, tuple[Job, int]] = {}
    try:
        while waiting or running:
            room = limits.workers or _room(limits) + _AHEAD
            while waiting and len(running) < room:
                job, attempt = waiting.popleft()
                reference = remote.remote(function, shared, job, limits.memory_bytes, __version__)
                running[reference] = job, attempt
            # A second at most, so that machines that joined get work.
            ended, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for reference in ended:
                job, attempt = running.pop(reference)
                value, error, final, full = _outcome(reference)
                if error and not final and not full and attempt <= limits.retries:
                    waiting.append((job, attempt + 1))
                    continue
                yield Answer(job, value, error, attempt, full)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _outcome(reference: Any) -> tuple[Any, str, bool, bool]:
    """Return value, error, whether it is final, and whether the disk is full."""
    try:
        outcome: tuple[Any, str, bool, bool] = ray.get(reference)
    except RayError as error:  # a worker or a machine that died, or a fault of ours
        lines = str(error).strip().splitlines()
        return None, f'{type(error).__name__}: {lines[-1] if lines else ""}', False, False
    return outcome


def _attempt(
    function: Callable[[Any, Job], Any], given: Any, job: Job, memory_bytes: int, version: str
) -> tuple[Any, str, bool, bool]:
    """Call the function in a worker; see `_outcome`."""
    if version != __version__:
        text = f'this machine has lunar_stereo_recon {__version__}, the driver {version}'
        return None, text, True, False
    limit_memory(memory_bytes)
    try:
        return function(given, job), '', False, False
    except ReconError as error:
        return None, str(error), True, False
    except MemoryError as error:
        text = f'more than {memory_bytes / 2**30:.1f} GiB of memory are needed ({error})'
        return None, text, False, False
    except OSError as error:
        return None, f'{type(error).__name__}: {error}', False, error.errno in _FULL


@lru_cache(maxsize=1)  # a worker does many jobs: once in its life
def limit_memory(more_bytes: int) -> None:
    """Let this process take so much more memory than it has now; then allocations fail."""
    data_pages = int(Path('/proc/self/statm').read_text(encoding='ascii').split()[5])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data_pages * resource.getpagesize() + more_bytes
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
