"""Does one shard: reads its frames, reconstructs them, writes the results, all or nothing."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
import resource
import socket
import time
from typing import Any

import numpy as np

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.bags.reader import frame_doubts
from lunar_stereo_recon.bags.writer import BagWriter
from lunar_stereo_recon.batch.frame_table import frame_row, parquet_bytes
from lunar_stereo_recon.batch.plan import Shard
from lunar_stereo_recon.batch.settings import BatchSettings
from lunar_stereo_recon.batch.store import content_of, new_shard, RECORD, Record
from lunar_stereo_recon.files.atomic import write_bytes, write_json
from lunar_stereo_recon.files.self_masks import read_self_mask
from lunar_stereo_recon.offline import FrameOutcome, outcomes, write_result
from lunar_stereo_recon.pipeline import StereoReconstructor

RESULT, TABLE = 'result', 'frames.parquet'


def do_shard(given: tuple[BatchSettings, Path], shard: Shard) -> Record:
    """Write the results of a shard to the store and return its record.

    A frame at a time is in memory. The rows of the right view are learnt anew in each shard, so
    that its results do not depend on what the process did before.

    Args:
        given: The settings, and the folder of the store.
        shard: The shard.

    Raises:
        InputError: The recording cannot be read.
        OSError: The results cannot be written.
    """
    settings, store = given
    started = time.perf_counter()
    backend = _backend(settings.backend, settings.model, settings.providers, settings.threads)
    engine = StereoReconstructor(backend, settings.options)
    if settings.self_mask:
        engine.self_mask = read_self_mask(*settings.self_mask)
    rows: list[dict[str, Any]] = []
    latencies_ms: list[float] = []
    errors: Counter[str] = Counter()
    doubts: list[str] = []
    with new_shard(store, shard) as folder:
        with settings.opened(shard.path) as reader, BagWriter(folder / RESULT) as writer:
            frames = reader.frames(shard.start_ns, shard.stop_ns)
            for outcome in outcomes(frames, engine, settings.pair):
                rows.append(frame_row(outcome, shard.bag, shard.number))
                if outcome.result is None:
                    errors[outcome.error] += 1
                    continue
                if not latencies_ms:
                    doubts = _doubts(outcome, settings)
                latencies_ms.append(outcome.latency_ms)
                write_result(writer, outcome.result, settings.outputs)
            images, losses = reader.images, reader.losses
        write_bytes(folder / TABLE, parquet_bytes(rows))
        record = {
            'bag': shard.bag,
            'start_ns': shard.start_ns,
            'stop_ns': shard.stop_ns,
            'frames': {'in': len(rows), 'out': len(latencies_ms), 'reasons': dict(errors)},
            'images': dict(images),
            'losses': losses,
            'doubts': doubts,
            'files': content_of(folder),
            'run': {
                'host': socket.gethostname(),
                'backend': f'{backend.name} on {backend.provider}',
                'seconds': time.perf_counter() - started,
                'latency_ms_p50': float(np.median(latencies_ms)) if latencies_ms else None,
                'peak_memory_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
        }
        write_json(folder / RECORD, record)
    return record


@lru_cache(maxsize=1)
def _backend(
    name: str, model: str | None, providers: tuple[str, ...] | None, threads: int
) -> Backend:
    """Return the matcher, loaded once in a process."""
    import cv2

    cv2.setNumThreads(threads)
    return load_backend(name, model, providers, threads)


def _doubts(outcome: FrameOutcome, settings: BatchSettings) -> list[str]:
    assert outcome.pair is not None
    pair = settings.pair
    return frame_doubts(
        outcome.frame,
        outcome.pair,
        pair.white_level,
        baseline_m=pair.baseline_m,
        rectify=pair.rectify,
    ).texts()
