"""Reconstructs a recording frame by frame, as fast as it goes: for `replay`, `fuse` and `batch`.

A frame that cannot be used is no reason to stop: it leaves with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
import time
from typing import TYPE_CHECKING

from lunar_stereo_recon import result_messages
from lunar_stereo_recon.bags.reader import BagFrame
from lunar_stereo_recon.bags.writer import BagWriter, make_message
from lunar_stereo_recon.datatypes import Reconstruction, StereoPair
from lunar_stereo_recon.errors import ReconError

if TYPE_CHECKING:
    from lunar_stereo_recon.pipeline import StereoReconstructor


@dataclass(frozen=True)
class PairOptions:
    """How the pair of a frame is made; see `BagFrame.pair`.

    Attributes:
        baseline_m: Metres, instead of that of the recording where positive.
        white_level: Pixel value of white; None takes that of the encoding.
        rectify: Whether the images are rectified here; None decides by the recording.
    """

    baseline_m: float = 0.0
    white_level: float | None = None
    rectify: bool | None = None


@dataclass(frozen=True)
class FrameOutcome:
    """What became of a frame.

    Attributes:
        frame: The frame.
        pair: Its pair; None where it cannot be used.
        result: Its reconstruction; None where it cannot be used.
        error: Why it cannot be used; empty otherwise.
        latency_ms: From the undecoded frame to the end of its reconstruction.
    """

    frame: BagFrame
    pair: StereoPair | None
    result: Reconstruction | None
    error: str
    latency_ms: float


def outcomes(
    frames: Iterable[BagFrame], engine: StereoReconstructor, options: PairOptions
) -> Iterator[FrameOutcome]:
    """Yield what becomes of each frame, in order."""
    for frame in frames:
        pair, result, error = None, None, ''
        start = time.perf_counter()
        try:
            pair = frame.pair(
                baseline_m=options.baseline_m,
                white_level=options.white_level,
                rectify=options.rectify,
            )
            result = engine.reconstruct(pair)
        except ReconError as reason:
            error = str(reason)
        yield FrameOutcome(frame, pair, result, error, 1e3 * (time.perf_counter() - start))


def write_result(writer: BagWriter, result: Reconstruction, outputs: Sequence[str]) -> None:
    """Write the messages that the reconstruction node would publish, at the frame's stamp."""
    stamp = result.stamp_ns
    if 'points2' in outputs:
        cloud = result_messages.point_cloud_message(make_message, result)
        writer.write('/points2', cloud, stamp)
    if 'confidence' in outputs:
        confidence = result_messages.confidence_message(make_message, result)
        writer.write('/confidence', confidence, stamp)
    if 'disparity' in outputs:
        disparity = result_messages.disparity_message(make_message, result)
        writer.write('/disparity', disparity, stamp)
    if 'depth' in outputs:
        depth = result_messages.depth_message(make_message, result)
        writer.write('/depth/image', depth, stamp)
        info = result_messages.depth_info_message(make_message, result)
        writer.write('/depth/camera_info', info, stamp)
