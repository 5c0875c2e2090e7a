"""Topics over time: rates, gaps, stamps that go back, and how left and right fit together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.doctor.findings import Finding, Severity

# Stamps further apart than this many usual distances have a gap between them; up to this
# share of lost messages may be chance.
GAP_PERIODS = 1.8
GAP_SHARE = 0.02
# Share of images that may be missing on one side.
MISSING_SHARE = 0.05
# A rover that moves sees another ground after this, seconds.
HARMLESS_OFFSET_S = 0.002
# Stamps and recorder's clock that differ by more are of different clocks.
CLOCKS_APART_S = 10.0


@dataclass(frozen=True)
class Stream:
    """The times of one topic's messages, in the order they were received.

    Attributes:
        topic: Name.
        stamps_ns: (N,) int64, of their headers.
        received_ns: (N,) int64, when they were recorded or received.
    """

    topic: str
    stamps_ns: NDArray[np.int64]
    received_ns: NDArray[np.int64]

    @property
    def period_s(self) -> float:
        """Return the usual distance of two stamps, seconds; NaN for fewer than two."""
        steps = np.diff(self.stamps_ns)
        steps = steps[steps > 0]
        return float(np.median(steps)) * 1e-9 if steps.size else float('nan')


def offsets_s(left: Stream, right: Stream) -> NDArray[np.float64]:
    """Return for each left stamp the nearest right one minus it, seconds; empty without any."""
    if not (left.stamps_ns.size and right.stamps_ns.size):
        return np.zeros(0)
    there = np.sort(right.stamps_ns)
    after = np.clip(np.searchsorted(there, left.stamps_ns), 1, max(1, there.size - 1))
    near = np.stack([there[after - 1], there[np.minimum(after, there.size - 1)]])
    differences = near - left.stamps_ns
    best = np.abs(differences).argmin(axis=0)
    return differences[best, np.arange(best.size)] * 1e-9


def fitting_tolerance_s(left: Stream, right: Stream) -> float:
    """Return the tolerance with which most images get a partner, seconds; 0 where stamps agree."""
    found = np.abs(offsets_s(left, right))
    if not found.size or np.mean(found == 0) > 0.5:
        return 0.0
    wanted = float(np.percentile(found, 90)) * 1.1
    period_s = left.period_s
    return min(wanted, 0.45 * period_s) if np.isfinite(period_s) else wanted


def check_streams(
    left: Stream,
    right: Stream,
    left_info: Stream | None,
    right_info: Stream | None,
    tolerance_s: float = 0.0,
) -> list[Finding]:
    """Return what the times of a rig's topics say.

    Args:
        left, right: The images.
        left_info, right_info: Their camera_infos; None where files serve.
        tolerance_s: What the user allows between left and right stamps.
    """
    findings = [_rates(left, right)]
    findings += [_stamps(stream) for stream in (left, right) if stream.stamps_ns.size]
    if left.stamps_ns.size and right.stamps_ns.size:
        findings.append(_left_right(left, right, tolerance_s))
    if left_info is not None and right_info is not None:
        findings.append(_infos(left_info, right_info))
    clock = _clock(left)
    return [*findings, clock] if clock else findings


def _rates(left: Stream, right: Stream) -> Finding:
    counts = [stream.stamps_ns.size for stream in (left, right)]
    text = ', '.join(
        f'{s.topic}: {s.stamps_ns.size} images'
        + (f' at {1 / s.period_s:.3g} Hz' if np.isfinite(s.period_s) else '')
        for s in (left, right)
    )
    if min(counts) == 0:
        silent = left if counts[0] == 0 else right
        return Finding(
            'topics',
            Severity.FAULT,
            text,
            f'{silent.topic} is silent: start that camera, or record and remap its topic',
        )
    if min(counts) < (1 - MISSING_SHARE) * max(counts):
        fewer = left if counts[0] < counts[1] else right
        return Finding(
            'topics',
            Severity.WARNING,
            text,
            f'{fewer.topic} has fewer images: look for a slow bus or a lossy network, and record '
            'both sides with the same QoS',
        )
    return Finding('topics', Severity.GOOD, text)


def _stamps(stream: Stream) -> Finding:
    stamps = stream.stamps_ns
    name = 'stamps'
    if not stamps.any():
        return Finding(
            name,
            Severity.FAULT,
            f'{stream.topic}: every stamp is 0',
            'the driver does not set header.stamp: nothing can be paired by it',
        )
    steps = np.diff(stamps)
    if stamps.size > 2 and not steps.any():
        return Finding(
            name,
            Severity.FAULT,
            f'{stream.topic}: every image has one stamp',
            'the driver does not renew header.stamp: nothing can be paired by it',
        )
    back = int(np.sum(steps < 0))
    if back:
        return Finding(
            name,
            Severity.WARNING,
            f'{stream.topic}: stamps go back {back} times, by up to {-steps.min() * 1e-9:.3g} s',
            'a bag that looped, a clock that was set, or messages out of order: set clocks before '
            'recording (NTP, PTP), record each drive alone',
        )
    period_ns = stream.period_s * 1e9
    gaps = steps[steps > GAP_PERIODS * period_ns] if steps.size else steps
    lost = int(np.rint(gaps / period_ns - 1).sum()) if gaps.size else 0
    if lost > GAP_SHARE * (stamps.size + lost):
        return Finding(
            name,
            Severity.WARNING,
            f'{stream.topic}: about {lost} of {stamps.size + lost} images are missing; the '
            f'longest gap is {gaps.max() * 1e-9:.3g} s',
            'images are lost on the way: a larger queue, another QoS, the Fast DDS profile for '
            'large messages, or a lower rate',
        )
    return Finding(name, Severity.GOOD, f'{stream.topic}: stamps rise evenly')


def _left_right(left: Stream, right: Stream, tolerance_s: float) -> Finding:
    found = offsets_s(left, right)
    distances = np.abs(found)
    equal = float(np.mean(distances <= max(tolerance_s, 0.0)))
    offset_s = float(np.median(found))
    spread_s = float(np.percentile(distances, 90))
    text = (
        f'right stamps are {1e3 * offset_s:+.3g} ms from the left ones (median), 90 % within '
        f'{1e3 * spread_s:.3g} ms; {100 * equal:.0f} % pair'
    )
    name = 'left and right stamps'
    if equal > 1 - MISSING_SHARE:
        return Finding(name, Severity.GOOD, text)
    period_s = left.period_s
    if spread_s <= (0.5 * period_s if np.isfinite(period_s) else 0.5):
        shown = fitting_tolerance_s(left, right)
        late = ''
        if abs(offset_s) > HARMLESS_OFFSET_S:
            late = '. A rover that drives sees two different scenes: trigger the cameras together'
        return Finding(
            name,
            Severity.WARNING,
            text,
            f'approximate_sync:=true approximate_sync_tolerance_seconds:={shown:.3g} (offline: '
            f'--tolerance {shown:.3g}){late}',
        )
    return Finding(
        name,
        Severity.FAULT,
        text,
        'the two cameras are stamped by different clocks, or one side was not recorded: '
        'synchronise them (PTP), or stamp both where they are triggered',
    )


def _infos(left: Stream, right: Stream) -> Finding:
    silent = [stream.topic for stream in (left, right) if not stream.stamps_ns.size]
    if silent:
        return Finding(
            'camera_info',
            Severity.FAULT,
            f'no message on {" and ".join(silent)}',
            'record the camera_infos too; live, left_camera_info_url and right_camera_info_url '
            'take them from files',
        )
    return Finding(
        'camera_info',
        Severity.GOOD,
        ', '.join(f'{s.topic}: {s.stamps_ns.size} messages' for s in (left, right)),
    )


def _clock(left: Stream) -> Finding | None:
    if not left.stamps_ns.any():
        return None
    apart_s = float(np.median(left.received_ns - left.stamps_ns)) * 1e-9
    if abs(apart_s) <= CLOCKS_APART_S:
        return None
    return Finding(
        'clock',
        Severity.NOTE,
        f'images are stamped {abs(apart_s):.4g} s {"before" if apart_s > 0 else "after"} they '
        'were recorded',
        'simulation time, or a camera with a clock of its own: nodes that use TF need the same '
        'clock (`use_sim_time` with `ros2 bag play --clock`)',
    )
