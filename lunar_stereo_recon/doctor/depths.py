"""What the matcher makes of the pairs: range, confidence, scale against a known distance, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np

from lunar_stereo_recon.datatypes import Reconstruction
from lunar_stereo_recon.doctor.findings import Finding, Severity
from lunar_stereo_recon.doctor.matches import Matches
from lunar_stereo_recon.errors import InputError

# Shares of the matched points that are nearer than what is searched.
BEYOND_SHARE, BEYOND_FAULT = 0.02, 0.2
TRUSTED = 0.5
LOW_CONFIDENCE = 0.3
# Relative errors of depth at the known distance.
SCALE_SHARE, SCALE_FAULT = 0.05, 0.2
PATCH_PX = 3
# Depths that are wrong by this factor or more are in another unit.
LARGE_FACTOR = 30
# Depths of a rover's surroundings, metres.
NEAREST_M, FARTHEST_M = 0.05, 500.0


@dataclass(frozen=True)
class KnownDistance:
    """A distance that somebody has measured.

    Attributes:
        metres: Along the optical axis.
        column, row: Pixel of the (rectified) left image of the first pair.
    """

    metres: float
    column: int
    row: int

    def __post_init__(self) -> None:
        if not 0 < self.metres < math.inf:
            raise InputError(f'known distance is {self.metres} m; a positive one is needed')


def check_range(results: Sequence[Reconstruction], matches: Matches) -> Finding:
    """Return whether the search covers what the images show."""
    low, high = results[0].searched_px
    text = f'searched: {low:.0f} to {high:.0f} px'
    name = 'disparity range'
    if not matches.enough:
        return Finding(name, Severity.GOOD, text)
    disparity = matches.columns - results[0].calibration.disparity_offset_px
    disparity = disparity[matches.agree]
    nearest = float(np.percentile(disparity, 99))
    beyond = float(np.mean(disparity > high))
    text += f'; 99 % of the matched points are below {nearest:.0f} px'
    if beyond <= BEYOND_SHARE:
        return Finding(name, Severity.GOOD, text)
    calibration = results[0].calibration
    closest_m = calibration.fx * calibration.baseline_m / high
    return Finding(
        name,
        Severity.FAULT if beyond > BEYOND_FAULT else Severity.WARNING,
        f'{text}, {100 * beyond:.0f} % are beyond the search: nearer than {closest_m:.2g} m',
        'such near ground gets wrong depth: a shorter baseline, images of half the width (halve '
        'them with their camera_info), or a camera that looks farther out (roi leaves the near '
        'rows away)',
    )


def check_confidence(results: Sequence[Reconstruction]) -> Finding:
    """Return how sure the matcher is, on the whole."""
    mean = float(np.mean([result.confidence.mean() for result in results]))
    share = float(np.mean([(result.confidence >= TRUSTED).mean() for result in results]))
    text = f'mean {mean:.2f}; {100 * share:.0f} % of the pixels are at {TRUSTED:g} or above'
    if mean < LOW_CONFIDENCE:
        return Finding(
            'confidence',
            Severity.WARNING,
            text,
            'the views do not match well: mend what is said about rows, stamps, exposure and '
            'sides first; compare with --backend sgbm',
        )
    return Finding('confidence', Severity.GOOD, text)


def check_depths(results: Sequence[Reconstruction]) -> Finding:
    """Return whether the depths are those of a rover's surroundings."""
    depths = np.concatenate(
        [result.depth[(result.confidence >= TRUSTED) & result.valid_mask] for result in results]
    )
    if not depths.size:
        return Finding('depth', Severity.WARNING, 'no pixel has a depth to trust', '')
    near, middle, far = np.percentile(depths, [2, 50, 98])
    text = f'from {near:.3g} over {middle:.3g} to {far:.3g} m'
    if NEAREST_M <= middle <= FARTHEST_M:
        return Finding('depth', Severity.GOOD, text)
    return Finding(
        'depth',
        Severity.WARNING,
        text,
        'hardly what a rover sees: look at baseline and focal length, and measure one distance '
        '(--known-distance M --at U V)',
    )


def check_scale(result: Reconstruction, known: KnownDistance) -> Finding:
    """Return depth against a known distance.

    Raises:
        InputError: The pixel is not in the image.
    """
    height, width = result.depth.shape
    if not (0 <= known.column < width and 0 <= known.row < height):
        raise InputError(
            f'--at {known.column} {known.row} is not in the image of {width}x{height}'
        )
    rows = slice(max(known.row - PATCH_PX, 0), known.row + PATCH_PX + 1)
    columns = slice(max(known.column - PATCH_PX, 0), known.column + PATCH_PX + 1)
    sure = float(np.median(result.confidence[rows, columns]))
    depths = result.depth[rows, columns]
    depths = depths[np.isfinite(depths)]
    if not depths.size or sure < TRUSTED:
        return Finding(
            'scale',
            Severity.NOTE,
            f'the depth at ({known.column}, {known.row}) has a confidence of {sure:.2f}',
            'choose a pixel with texture that both cameras see',
        )
    measured_m = float(np.median(depths))
    ratio = measured_m / known.metres
    text = (
        f'{measured_m:.3f} m at ({known.column}, {known.row}), where {known.metres:g} m are '
        f'known: {ratio:.3f} times'
    )
    error = abs(math.log(ratio))
    if error < SCALE_SHARE:
        return Finding('scale', Severity.GOOD, text)
    baseline_m = result.calibration.baseline_m / ratio
    return Finding(
        'scale',
        Severity.FAULT if error > SCALE_FAULT else Severity.WARNING,
        text,
        f'{_reason(ratio)} If all distances are wrong by that factor, baseline:={baseline_m:.4g} '
        'mends it; if only far ones are, the principal points (P[2] of left and right) are wrong',
    )


def check_time(results: Sequence[Reconstruction], period_s: float) -> Finding:
    """Return how long a pair takes here, and whether that keeps up with the cameras.

    Args:
        results: Of some pairs; the first one, which warms things up, does not count.
        period_s: Distance of two images; NaN where unknown.
    """
    times = [sum(result.timings_ms.values()) for result in (results[1:] or results)]
    middle = float(np.median(times))
    text = f'a pair takes {middle:.0f} ms here'
    if not math.isfinite(period_s) or middle <= 1e3 * period_s:
        return Finding('time', Severity.GOOD, text)
    return Finding(
        'time',
        Severity.NOTE,
        f'{text}, and one comes each {1e3 * period_s:.0f} ms: the node drops the others',
        f'target_ms:={1e3 * period_s:.0f} trades detail for it; threads, providers or the backend '
        'openvino may be faster',
    )


def _reason(ratio: float) -> str:
    factor = max(ratio, 1 / ratio)
    if factor > LARGE_FACTOR:
        return 'Millimetres taken for metres, or another unit, in P[3] or in your distance?'
    if any(abs(factor / power - 1) < SCALE_SHARE for power in (2, 4)):
        return 'A power of two: the camera_info is for another image size (binning, resizing).'
    return 'The baseline (P[3]) or the focal length is wrong.'
