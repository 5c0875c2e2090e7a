"""The folder with the results of a batch; whatever is killed, a shard is there whole or not.

batch.json            parameters and recordings
bags/KEY.json         a recording: path, digest, where its shards begin
shards/KEY/NNNNN/     a shard: result/ (an mcap bag), frames.parquet, shard.json
manifest.json         all of it with the SHA-256 of each file, written at the end
failures.json         what could not be done, written at the end
.partial/             shards that are being written
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import dataclasses
import fcntl
import os
from pathlib import Path
import secrets
import shutil
import socket
from typing import Any, TextIO

from lunar_stereo_recon.batch.plan import BagPlan, Shard
from lunar_stereo_recon.batch.settings import content_digest, differences
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_json
from lunar_stereo_recon.files.bounded import read_json

FORMAT = 1
BATCH, MANIFEST, FAILURES, RECORD = 'batch.json', 'manifest.json', 'failures.json', 'shard.json'
BAGS, SHARDS, PARTIAL, LOCK = 'bags', 'shards', '.partial', '.lock'
Record = dict[str, Any]


class Store:
    """The store of one batch, held by one driver. A context manager.

    Attributes:
        path: The folder.
        recordings: Paths of the recordings that were given so far, in order.
    """

    def __init__(
        self, path: Path, parameters: dict[str, Any], recordings: Sequence[str], *, resume: bool
    ) -> None:
        """Take the folder, or go on with what is in it.

        Args:
            path: The folder; made where it is not there.
            parameters: All that results depend on.
            recordings: Paths; they are added to those that a store knows already.
            resume: Go on with a batch that is there.

        Raises:
            InputError: It is no store, holds a batch and `resume` is not set, was made with
                other parameters, is in use, or there is no recording.
        """
        self.path = path.resolve()
        batch = self.path / BATCH
        if not batch.exists() and self.path.exists():
            foreign = [entry.name for entry in self.path.iterdir() if entry.name != LOCK]
            if foreign:
                raise InputError(
                    f'{path}: holds {foreign[0]} and is no store of a batch; an empty or new '
                    'folder is needed'
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        try:
            self.recordings = self._taken(batch, parameters, recordings, resume)
            if not self.recordings:
                raise InputError(f'no bags given, and none in {path}')
            write_json(
                batch, {'format': FORMAT, 'parameters': parameters, 'bags': self.recordings}
            )
            # Whoever wrote them is gone, or will find them gone and fail.
            shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
            for name in (BAGS, SHARDS, PARTIAL):
                (self.path / name).mkdir(exist_ok=True)
        except BaseException:
            self._lock.close()
            raise

    def _locked(self) -> TextIO:
        lock = (self.path / LOCK).open('a', encoding='utf-8')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise InputError(f'{self.path}: another batch is writing into this store') from error
        return lock

    def _taken(
        self, batch: Path, parameters: dict[str, Any], recordings: Sequence[str], resume: bool
    ) -> list[str]:
        """Return the recordings of the batch."""
        known: list[str] = []
        if batch.exists():
            document = _read(batch)
            if document.get('format') != FORMAT:
                raise InputError(f'{batch}: format {document.get("format")}, {FORMAT} is needed')
            if not resume:
                raise InputError(f'{self.path}: holds a batch; --resume goes on with it')
            changed = differences(document['parameters'], parameters)
            if changed:
                raise InputError(
                    f'{self.path}: its batch has other parameters: {"; ".join(changed)}. Give '
                    'those that it began with, or another --out'
                )
            known = document['bags']
        return list(dict.fromkeys([*known, *recordings]))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        # Left by workers that were killed.
        shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
        self._lock.close()

    def keep_plan(self, plan: BagPlan) -> None:
        """Write down how a recording is divided.

        Raises:
            InputError: The recording was another one when the batch began.
        """
        path = self.path / BAGS / f'{plan.bag}.json'
        if path.exists():
            return
        for other in sorted((self.path / BAGS).iterdir()):
            known = _read(other)
            if known['path'] == plan.path:
                raise InputError(
                    f'{plan.path}: is not the recording that the batch began with (digest '
                    f'{plan.digest[:12]}, was {known["digest"][:12]}); its results are in '
                    f'{self.path / SHARDS / known["bag"]}'
                )
        write_json(path, dataclasses.asdict(plan))

    def done(self, shard: Shard, verify: bool = False) -> Record | None:
        """Return the record of a shard that is there; None where it is not, or not whole.

        What is not whole, which only somebody else can have done, is removed.

        Args:
            shard: The shard.
            verify: Compare the content of its files, too, not only their sizes.
        """
        folder = self.path / SHARDS / shard.name
        if not folder.exists():
            return None
        try:
            record: Record = _read(folder / RECORD)
            for name, file in record['files'].items():
                path = folder / name
                whole = path.stat().st_size == file['bytes']
                if not whole or (verify and content_digest(path) != file['sha256']):
                    raise InputError(f'{path}: changed since it was written')
        except (InputError, LookupError, OSError):
            shutil.rmtree(folder)
            return None
        return record

    def write_manifest(self, plans: Sequence[BagPlan], records: dict[str, Record]) -> Path:
        """Write the list of all results; it depends on recordings and parameters alone.

        Args:
            plans: The recordings.
            records: By the names of the shards that are done.
        """
        bags = [
            {
                'bag': plan.bag,
                'path': plan.path,
                'digest': plan.digest,
                'shards': [
                    {'name': shard.name, **_lasting(records[shard.name])}
                    for shard in plan.shards()
                    if shard.name in records
                ],
            }
            for plan in plans
        ]
        path = self.path / MANIFEST
        parameters = _read(self.path / BATCH)['parameters']
        write_json(path, {'format': FORMAT, 'parameters': parameters, 'bags': bags})
        return path

    def write_failures(self, failures: Sequence[dict[str, Any]]) -> Path:
        """Write the list of what could not be done."""
        path = self.path / FAILURES
        write_json(path, list(failures))
        return path


@contextmanager
def new_shard(store: Path, shard: Shard) -> Iterator[Path]:
    """Give an empty folder which becomes that of the shard when all went well.

    Any process may do this, on any machine that shares the store. If two do the same shard, one
    that had been given up after all, the first one's results stay.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    owner = f'{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}'
    partial = store / PARTIAL / f'{shard.bag}.{shard.number:05d}.{owner}'
    final = store / SHARDS / shard.name
    partial.mkdir(parents=True)
    try:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        final.parent.mkdir(exist_ok=True)
        try:
            partial.rename(final)
        except OSError:
            if not (final / RECORD).exists():
                raise
        else:
            _sync(final.parent)
            _sync(final.parent.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def content_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of each file below a folder, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): {
            'bytes': path.stat().st_size,
            'sha256': content_digest(path),
        }
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def _lasting(record: Record) -> Record:
    """Return what of a record is the same whenever and wherever the shard is done."""
    return {key: value for key, value in record.items() if key != 'run'}


def _sync(path: Path) -> None:
    """Have a file or the entries of a folder on the disk before anything goes on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise InputError(f'{path}: not the JSON of a batch: {error}') from error
