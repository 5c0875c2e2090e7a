"""What a batch is asked to do with each recording: all that its results depend on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
import hashlib
import math
from pathlib import Path
from typing import Any

from lunar_stereo_recon import __version__
from lunar_stereo_recon.backends import model_file, STUDENT_BACKENDS
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.files.self_masks import mask_file
from lunar_stereo_recon.messages import StereoTopics
from lunar_stereo_recon.offline import PairOptions
from lunar_stereo_recon.pipeline import ReconstructionOptions

_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class BatchSettings:
    """How recordings are read, reconstructed and written.

    Attributes:
        topics: Of the rig; None finds them in each bag.
        tolerance_s: Largest difference of left and right stamps, seconds.
        calibration: Two camera_info files in place of the bags' own, or none.
        pair: How the pairs of the frames are made.
        options: What is wanted of the reconstructions.
        backend: Name of the matcher.
        model: Model file, or name of a shipped one; None is the default.
        providers: Execution providers of the backend onnx; None takes the CPU.
        threads: Threads of a worker.
        self_mask: Parts of the rover in the left and the right view, as `read_self_mask` takes
            them.
        outputs: Results that are written.
        shard_frames: About how many frames a shard has.
    """

    topics: StereoTopics | None = None
    tolerance_s: float = 0.0
    calibration: tuple[str, ...] = ()
    pair: PairOptions = field(default_factory=PairOptions)
    options: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    backend: str = 'onnx'
    model: str | None = None
    providers: tuple[str, ...] | None = None
    threads: int = 1
    self_mask: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ('points2', 'confidence', 'disparity', 'depth')
    shard_frames: int = 200

    def opened(self, path: str | Path) -> StereoBagReader:
        """Return a bag, opened.

        Raises:
            InputError: It cannot be read, or has no such rig.
        """
        return StereoBagReader(
            path, self.topics, tolerance_s=self.tolerance_s, calibration=self.calibration
        )

    def parameters(self) -> dict[str, Any]:
        """Return all that results depend on as plain values for JSON; files by their content.

        Raises:
            OSError: The model, a calibration or a self-mask cannot be read.
        """
        found = dataclasses.asdict(self)
        found['calibration'] = [content_digest(Path(path)) for path in self.calibration]
        masks = [(text, mask_file(text)) for text in self.self_mask]
        found['self_mask'] = [
            text if path is None else content_digest(path) for text, path in masks
        ]
        found['model'] = (
            content_digest(model_file(self.model)) if self.backend in STUDENT_BACKENDS else None
        )
        return {'version': __version__, **_plain(found)}


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def differences(was: Any, now: Any, name: str = '') -> list[str]:
    """Return what differs between two documents of JSON, one text for each value."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [*was, *(key for key in now if key not in was)]
        inner = [
            differences(was.get(key), now.get(key), f'{name}.{key}' if name else str(key))
            for key in keys
        ]
        return [text for texts in inner for text in texts]
    return [] if was == now else [f'{name} was {was!r} and is {now!r}']


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: infinity, which JSON lacks, as None."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isinf(value) else value
