"""The doctor's round: every check in order, on the pairs of one rig."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
import time

from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.datatypes import Reconstruction, StereoPair
from lunar_stereo_recon.doctor.collect import Subject
from lunar_stereo_recon.doctor.depths import (
    check_confidence,
    check_depths,
    check_range,
    check_scale,
    check_time,
    KnownDistance,
)
from lunar_stereo_recon.doctor.findings import Finding, Picture, Report, Severity
from lunar_stereo_recon.doctor.images import check_images
from lunar_stereo_recon.doctor.matches import check_matches, find_matches
from lunar_stereo_recon.doctor.pictures import (
    depth_picture,
    exposure_picture,
    rows_picture,
    stamps_picture,
    views_picture,
)
from lunar_stereo_recon.doctor.rows import check_rows, measure_rows
from lunar_stereo_recon.errors import ReconError
from lunar_stereo_recon.geometry.self_mask import SelfMask
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor


def examine(
    subject: Subject,
    backend: Backend,
    known: KnownDistance | None = None,
    progress: Callable[[str], object] = lambda text: None,
    self_mask: SelfMask | None = None,
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Report:
    """Return everything that is found about a rig.

    Args:
        subject: Its pairs and what collecting them found.
        backend: The matcher.
        known: A distance that somebody measured, in the first pair.
        progress: Called with what is done next.
        self_mask: Parts of the rover in the views, which get no depth.
        turn: Entered around each pair that is matched, where others use the matcher too.

    Raises:
        InputError: The known distance is at a pixel outside of the image.
    """
    findings, pictures = list(subject.findings), _stamps(subject)
    if subject.pairs:
        more, seen = _examine_pairs(subject, backend, known, progress, self_mask, turn)
        findings += more
        pictures = seen + pictures
    findings.sort(key=lambda finding: -finding.severity)
    return Report(subject.source, _facts(subject), findings, pictures)


def _examine_pairs(
    subject: Subject,
    backend: Backend,
    known: KnownDistance | None,
    progress: Callable[[str], object],
    self_mask: SelfMask | None,
    turn: Callable[[], AbstractContextManager[None]],
) -> tuple[list[Finding], list[Picture]]:
    pairs = subject.pairs
    progress('looking at the images')
    findings = check_images(pairs)
    progress('looking for points that both views show')
    matches = find_matches(pairs)
    of_matches = check_matches(matches, pairs[0].calibration.disparity_offset_px)
    findings += of_matches
    results = _reconstructed(pairs, backend, findings, self_mask, progress, turn)
    rows = measure_rows(pairs, results, matches)
    # Of views of different scenes, or swapped ones, rows and depths say nothing.
    comparable = all(
        finding.severity < Severity.FAULT
        for finding in of_matches
        if finding.name in ('one scene', 'left and right')
    )
    if comparable:
        findings += check_rows(rows)
    pictures = [views_picture(pairs[0]), rows_picture(pairs[0], rows)]
    if results:
        if comparable:
            findings.append(check_range(results, matches))
        findings.append(check_confidence(results))
        if subject.calibrated and comparable:
            findings.append(check_depths(results))
            if known is not None:
                findings.append(check_scale(results[0], known))
        findings.append(check_time(results, subject.period_s))
        pictures.append(depth_picture(results[0], subject.calibrated))
    return findings, [*pictures, exposure_picture(pairs[0])]


def _reconstructed(
    pairs: Sequence[StereoPair],
    backend: Backend,
    findings: list[Finding],
    self_mask: SelfMask | None,
    progress: Callable[[str], object],
    turn: Callable[[], AbstractContextManager[None]],
) -> list[Reconstruction]:
    """Return the dense results; none, and a finding, where the matcher refuses the pairs.

    The first pair is matched twice, to warm up what is lazy.
    """
    engine = StereoReconstructor(backend, ReconstructionOptions(dense=True))
    engine.self_mask = self_mask

    def reconstructed(pair: StereoPair) -> Reconstruction:
        with turn():
            return engine.reconstruct(pair)

    results = []
    try:
        progress(f'matching {len(pairs)} pairs')
        reconstructed(pairs[0])
        engine.reset_rows()
        start = time.monotonic()
        for number, pair in enumerate(pairs, start=1):
            results.append(reconstructed(pair))
            left_s = (len(pairs) - number) * (time.monotonic() - start) / number
            progress(f'matching {len(pairs)} pairs: {number} done, {left_s:.0f} s left')
    except ReconError as error:
        findings.append(
            Finding('matcher', Severity.FAULT, str(error), 'other images, or another --backend')
        )
        return []
    return results


def _stamps(subject: Subject) -> list[Picture]:
    if subject.left is None or subject.right is None:
        return []
    picture = stamps_picture(subject.left, subject.right)
    return [picture] if picture else []


def _facts(subject: Subject) -> str:
    if not subject.pairs:
        return 'no pair could be looked at'
    calibration = subject.pairs[0].calibration
    facts = f'{len(subject.pairs)} pairs of {calibration.width}x{calibration.height} looked at'
    if subject.calibrated:
        facts += f'; baseline {calibration.baseline_m:.4g} m, fx {calibration.fx:.4g} px'
    return facts
