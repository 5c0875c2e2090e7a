"""Flicker: how much the depth of the same ground point differs from frame to frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, StereoCalibration
from lunar_stereo_recon.geometry.earlier_view import in_earlier_view, sampled
from lunar_stereo_recon.geometry.pose_track import Pose

# Cells of the histograms: pixels, or shares of the depth.
CELLS = np.geomspace(1e-5, 1e3, 1601)
JUMP_PX = 1.0


def deviations(
    earlier: FloatImage, now: FloatImage, calibration: StereoCalibration, earlier_from_now: Pose
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return standard deviations (N,) of points seen in two frames: pixels, shares of the depth.

    Each is that of two measurements about their mean, taken in the earlier view.

    Args:
        earlier, now: (H, W) disparity of both frames, pixels; NaN invalid.
        calibration: Of both frames.
        earlier_from_now: The present left optical frame in the earlier one.
    """
    columns, rows, expected = in_earlier_view(now, calibration, earlier_from_now)
    measured = sampled(earlier, columns, rows)
    known = np.isfinite(measured) & (measured > 0)
    measured, expected = measured[known], expected[known]
    half = np.float32(np.sqrt(0.5))
    depths = 1 / measured, 1 / expected
    share = half * np.abs(depths[0] - depths[1]) / (0.5 * (depths[0] + depths[1]))
    return half * np.abs(measured - expected), share


class Flicker:
    """Deviations over a drive, frame after frame, in memory that does not grow."""

    def __init__(self) -> None:
        """Begin without frames."""
        self._before: tuple[FloatImage, StereoCalibration, Pose] | None = None
        self._pixels = np.zeros(len(CELLS) - 1, np.int64)
        self._shares = np.zeros(len(CELLS) - 1, np.int64)
        self._jumps = 0
        self._frames = 0

    def add(self, disparity: FloatImage, calibration: StereoCalibration, pose: Pose) -> None:
        """Add a frame: (H, W) pixels, NaN invalid, and where its left camera was."""
        if self._before is not None and self._before[1] == calibration:
            earlier, _, then = self._before
            pixels, shares = deviations(earlier, disparity, calibration, then.inverse().of(pose))
            for counts, values in ((self._pixels, pixels), (self._shares, shares)):
                counts += np.histogram(np.clip(values, CELLS[0], CELLS[-1]), CELLS)[0]
            self._jumps += int((pixels > JUMP_PX).sum())
            self._frames += 1
        self._before = disparity, calibration, pose

    def figures(self) -> dict[str, float]:
        """Return the figures for JSON; none where no two frames have common points."""
        points = int(self._pixels.sum())
        if not points:
            return {}
        return {
            'frame_pairs': self._frames,
            'points': points,
            'median_px': _quantile(self._pixels, 0.5),
            'p95_px': _quantile(self._pixels, 0.95),
            'median_depth_share': _quantile(self._shares, 0.5),
            'p95_depth_share': _quantile(self._shares, 0.95),
            'jump_share': self._jumps / points,
        }


def flicker_table(flicker: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a Markdown table of `Flicker.figures` by method; none without any."""
    if not any(flicker.values()):
        return []
    lines = [
        '| method | pairs of frames | median px | 95 % px | median % of depth | 95 % of depth % | '
        f'above {JUMP_PX:g} px % |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, of in flicker.items():
        if of:
            cells = [f'{of["frame_pairs"]:.0f}', f'{of["median_px"]:.3f}', f'{of["p95_px"]:.3f}']
            shares = ('median_depth_share', 'p95_depth_share', 'jump_share')
            cells += [f'{100 * of[key]:.3f}' for key in shares]
            lines.append(f'| {name} | {" | ".join(cells)} |')
    return ['\n'.join(lines)]


def _quantile(counts: NDArray[np.int64], share: float) -> float:
    """Return a quantile of a histogram over `CELLS`: the middle of its cell; 0 below the first."""
    cell = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return 0.0 if cell == 0 else float(np.sqrt(CELLS[cell] * CELLS[cell + 1]))
