"""Brings a recording, or two image files, into the form that the doctor examines.

Whatever cannot be read becomes a finding, and what can still be looked at is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses
from dataclasses import dataclass, field, replace
import math
from pathlib import Path
from typing import Any

import numpy as np

from lunar_stereo_recon.bags.reader import BagFrame, frame_doubts, StereoBagReader
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.doctor.calibration import check_calibration, check_raw
from lunar_stereo_recon.doctor.findings import Finding, Severity
from lunar_stereo_recon.doctor.streams import check_streams, fitting_tolerance_s, Stream
from lunar_stereo_recon.doubts import few_bits_doubt, files_look_raw
from lunar_stereo_recon.errors import CalibrationError, InputError, ReconError
from lunar_stereo_recon.files.calibrations import load_file_calibration
from lunar_stereo_recon.files.images import pair_from_images, read_image
from lunar_stereo_recon.messages import (
    baseline_of_camera_infos,
    cdr_stamp_ns,
    decode_image,
    raw_cameras_of_infos,
    StereoTopics,
)

# Serves where no calibration can be used: the images are examined nevertheless.
STAND_IN_BASELINE_M = 0.1


@dataclass
class Subject:
    """What is examined.

    Attributes:
        source: Bag or files, for the title.
        pairs: Some pairs of one rig, of one size.
        findings: What was found while they were collected.
        left, right: Times of the images; None where there is no recording.
        calibrated: Depths mean something: the calibration is the rig's own.
    """

    source: str
    pairs: list[StereoPair] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    left: Stream | None = None
    right: Stream | None = None
    calibrated: bool = True

    @property
    def period_s(self) -> float:
        """Return the distance of two images, seconds; NaN where unknown."""
        return self.left.period_s if self.left is not None else math.nan

    def findings_of(self, name: str) -> list[Finding]:
        """Return the findings of one name."""
        return [finding for finding in self.findings if finding.name == name]


@dataclass(frozen=True)
class BagSettings:
    """How a recording is read; see `StereoBagReader` and `BagFrame.pair`.

    Attributes:
        count: Pairs that are looked at, spread over the recording.
        calibration: Two camera_info files in place of the recording's camera_infos; or empty.
    """

    topics: StereoTopics | None = None
    tolerance_s: float = 0.0
    baseline_m: float = 0.0
    white_level: float | None = None
    rectify: bool | None = None
    count: int = 5
    calibration: tuple[Path, ...] = ()


def subject_of_bag(
    path: Path, settings: BagSettings, progress: Callable[[str], object] = lambda text: None
) -> Subject:
    """Return a recording's subject.

    Args:
        path: The bag.
        settings: How it is read.
        progress: Called with what is done next.

    Raises:
        InputError: Nothing of it can be read, or it has no stereo rig.
    """
    subject = Subject(str(path))
    progress('reading stamps')
    with StereoBagReader(path, settings.topics, calibration=settings.calibration) as reader:
        topics = reader.topics
        streams = _streams(reader)
        subject.left, subject.right = streams[topics.left_image], streams[topics.right_image]
        infos = streams.get(topics.left_info), streams.get(topics.right_info)
        subject.findings += check_streams(
            subject.left, subject.right, *infos, settings.tolerance_s
        )
        progress('reading images')
        frames = _frames(reader, settings, subject)
        if reader.losses:
            subject.findings.append(
                Finding(
                    'recording',
                    Severity.WARNING,
                    '; '.join(reader.losses),
                    '`lunar-stereo repair` writes a complete bag of what can be read',
                )
            )
    if frames:
        take_frames(frames, settings, subject)
    return subject


def subject_of_files(
    left: Path,
    right: Path,
    calibration_files: Sequence[Path],
    baseline_m: float | None = None,
    white_level: float | None = None,
    rectify: bool | None = None,
) -> Subject:
    """Return the subject of two image files.

    Args:
        left, right: Image files.
        calibration_files: As `load_calibration` takes them; empty where none is known.
        baseline_m: Overrides theirs, metres.
        white_level: Value of white; None is the type's.
        rectify: The images are raw, or are not; None follows names and distortion.

    Raises:
        InputError: An image cannot be read, or is to be rectified by numbers that do not do.
        CalibrationError: The calibration cannot be used.
    """
    subject = Subject(f'{left} and {right}')
    views = read_image(left), read_image(right)
    sizes = [f'{view.shape[1]}x{view.shape[0]}' for view in views]
    if sizes[0] != sizes[1]:
        subject.findings.append(_sizes_differ(str(left), str(right), sizes))
        return subject
    height, width = views[0].shape[:2]
    raw = None
    if calibration_files:
        files = load_file_calibration(calibration_files, width, height, baseline_m)
        calibration = files.rectified
        subject.findings += check_calibration(calibration, files.sources[1])
        infos = files.infos or ()
        if rectify and not infos:
            raise InputError(
                f'{files.sources[1]} has no camera_infos of both cameras (K, D, R, P), by which '
                'raw images are rectified; --rectify needs them'
            )
        topics = StereoTopics(str(left), str(right), *files.sources)
        looks_raw = files_look_raw((left, right), infos)
        if infos:
            subject.findings.append(check_raw(topics, *infos, rectify, looks_raw))
        elif files.distorted:
            subject.findings.append(
                Finding(
                    'raw or rectified',
                    Severity.NOTE,
                    f'{files.sources[1]} has distortion, and the images are taken as rectified '
                    'already',
                    'raw images are rectified with the calibration of both cameras: '
                    '--calibration LEFT.yaml RIGHT.yaml',
                )
            )
        if infos and (looks_raw if rectify is None else rectify):
            raw = raw_cameras_of_infos(*infos, calibration, topics)
    else:
        calibration = _stand_in(width, height)
        subject.calibrated = False
        subject.findings.append(
            Finding(
                'calibration',
                Severity.NOTE,
                'none given: depth and scale are not looked at',
                '--calibration LEFT.yaml RIGHT.yaml',
            )
        )
    names = (str(left), str(right))
    subject.pairs = [pair_from_images(*views, calibration, white_level, names, raw)]
    for view, name in zip(views, names, strict=True):
        doubt = few_bits_doubt(view, white_level, name)
        if doubt:
            subject.findings.append(_white_level(doubt))
            break
    return subject


def _streams(reader: StereoBagReader) -> dict[str, Stream]:
    """Return the times of the rig's four topics."""
    topics = reader.topics
    names = list(filter(None, dataclasses.astuple(topics)))
    stamps: dict[str, list[int]] = {name: [] for name in names}
    received: dict[str, list[int]] = {name: [] for name in names}
    for connection, time_ns, raw in reader.raw_messages(names):
        try:
            stamps[connection.topic].append(cdr_stamp_ns(raw))
        except InputError:
            continue  # a few bytes: it is counted where frames are made
        received[connection.topic].append(time_ns)
    return {
        name: Stream(name, np.array(stamps[name], np.int64), np.array(received[name], np.int64))
        for name in names
    }


def _frames(reader: StereoBagReader, settings: BagSettings, subject: Subject) -> list[BagFrame]:
    """Return some frames, spread over the recording."""
    assert subject.left and subject.right
    reader.tolerance_s = settings.tolerance_s or fitting_tolerance_s(subject.left, subject.right)
    most = max(reader.frame_count - 1, 0)
    wanted = set(np.linspace(0, most, settings.count).round().astype(int).tolist())
    found = []
    try:
        for frame in reader.frames():
            if frame.index in wanted:
                found.append(frame)
            if frame.index == max(wanted):
                break
    except InputError as error:
        if not found:
            subject.findings.append(Finding('recording', Severity.FAULT, str(error)))
    if not found and not subject.findings_of('recording'):
        subject.findings.append(
            Finding(
                'pairs',
                Severity.FAULT,
                'no left and right image belong together',
                'see the stamps; --tolerance S allows a difference',
            )
        )
    return found


def take_frames(frames: Sequence[BagFrame], settings: BagSettings, subject: Subject) -> None:
    """Add the pairs of the frames and what their messages say."""
    first = frames[0]
    topics = first.topics
    baseline_m = _baseline(first, settings, subject)
    subject.findings.append(check_raw(topics, first.left_info, first.right_info, settings.rectify))
    errors: Counter[str] = Counter()
    for frame in frames:
        try:
            pair = frame.pair(
                baseline_m=baseline_m, white_level=settings.white_level, rectify=settings.rectify
            )
        except CalibrationError as error:
            errors[str(error)] += 1
            stand_in = _uncalibrated(frame, settings.white_level)
            if stand_in is not None:
                subject.calibrated = False
                subject.pairs.append(stand_in)
        except ReconError as error:
            errors[str(error)] += 1
        else:
            subject.pairs.append(pair)
    for text, number in errors.items():
        subject.findings.append(
            Finding(
                'unusable pairs',
                Severity.FAULT,
                f'{number} of {len(frames)}: {text}',
                'no depth comes of these pairs: mend what the text names',
            )
        )
    if not subject.pairs:
        return
    size = subject.pairs[0].left.shape
    subject.pairs = [pair for pair in subject.pairs if pair.left.shape == size]
    if subject.calibrated:
        found = check_calibration(subject.pairs[0].calibration, topics.right_info)
        known = subject.findings_of('baseline')
        subject.findings += [each for each in found if each.name != 'baseline' or not known]
        doubts = frame_doubts(first, subject.pairs[0], settings.white_level)
        if doubts.white_level:
            subject.findings.append(_white_level(doubts.white_level))


def _baseline(frame: BagFrame, settings: BagSettings, subject: Subject) -> float:
    """Return what overrides the baseline of the camera_infos, metres; 0 where nothing does."""
    if settings.baseline_m > 0:
        return settings.baseline_m
    try:
        baseline_of_camera_infos(frame.left_info, frame.right_info, topics=frame.topics)
    except CalibrationError as error:
        if frame.static_baseline_m > 0:
            subject.findings.append(
                Finding(
                    'baseline',
                    Severity.WARNING,
                    frame.static_baseline_text,
                    'write -fx * baseline to P[3] of the right camera_info, or give the parameter '
                    "'baseline'",
                )
            )
            return 0.0
        subject.findings.append(
            Finding(
                'baseline',
                Severity.FAULT,
                str(error),
                "measure the distance of the two lenses and set 'baseline' (--baseline) in "
                'metres; rows, range and images are looked at without it',
            )
        )
        subject.calibrated = False
        return STAND_IN_BASELINE_M
    return 0.0


def _uncalibrated(frame: BagFrame, white_level: float | None) -> StereoPair | None:
    """Return the frame's images as a pair, without its calibration; None where that fails too."""
    try:
        left = decode_image(frame.left, frame.topics.left_image)
        right = decode_image(frame.right, frame.topics.right_image)
        if left.shape[:2] != right.shape[:2]:
            return None
        height, width = left.shape[:2]
        pair = pair_from_images(left, right, _stand_in(width, height), white_level)
    except ReconError:
        return None
    return replace(pair, stamp_ns=frame.stamp_ns)


def _stand_in(width: int, height: int) -> StereoCalibration:
    """Return a calibration of nothing: the principal points in the middle."""
    cx = (width - 1) / 2
    return StereoCalibration(
        width, width, cx, (height - 1) / 2, cx, STAND_IN_BASELINE_M, width, height
    )


def _sizes_differ(left: str, right: str, sizes: Sequence[Any]) -> Finding:
    return Finding(
        'unusable pairs',
        Severity.FAULT,
        f'{left} is {sizes[0]} but {right} is {sizes[1]}',
        'both views must have one size: is one of them resized or a thumbnail?',
    )


def _white_level(doubt: str) -> Finding:
    return Finding(
        'bits',
        Severity.WARNING,
        doubt.partition(' Then ')[0],
        "the parameter 'white_level' (--white-level): 1023 for 10-bit, 4095 for 12-bit data",
    )
