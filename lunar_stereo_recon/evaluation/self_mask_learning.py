"""Learns which pixels show the rover itself: what stays still while everything else moves.

A part of the rover stands at one disparity over a whole drive, much nearer than the ground would
be at its pixels, and looks the same from frame to frame. The rover's shadow is still too, but
lies on the ground; far hills hardly move, but are not near.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, Reconstruction, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.self_mask import BoolImage

LEAST_FRAMES = 8
# Grey levels of 1: the mean of 3x3 pixels changes less by noise alone.
NOISE = 0.01
# A drive in which fewer of the lit pixels change shows nothing.
LEAST_MOVING = 0.1
LIT = 0.05
# A still disparity keeps to its median within this, in as many of the frames.
STILL_PX, STILL_SHARE_OF_DISPARITY = 0.75, 0.03
STILL_FRAMES = 0.8
# Parts look at most this much as changing as what moves does.
STILL_LOOK = 0.5
# Parts are nearer than the ground at their pixels by this much, pixels and share.
ABOVE_PX, ABOVE_SHARE = 2.0, 0.15
# Edges of parts blur into what is behind them; small specks are no parts. Shares of the width
# and of the image.
GROWN, CLOSED, SPECK = 0.01, 0.02, 0.0005
FIT_ITERATIONS = 6


@dataclass(frozen=True)
class LearntMask:
    """The rover's own pixels, and how sure that is.

    Attributes:
        left, right: (H, W) bool.
        share: Of the left image that is masked.
        persistence: Share of the frames in which a masked pixel kept its disparity, on average.
        agreement: How much the masks of every other frame and of those between agree:
            intersection over union; 1 where both are empty.
        moving: Share of the lit pixels that changed from frame to frame.
        frames: How many were looked at.
    """

    left: BoolImage
    right: BoolImage
    share: float
    persistence: float
    agreement: float
    moving: float
    frames: int


class SelfMaskLearner:
    """Collects frames of one drive; see `learn`.

    Args:
        within_m: Parts of the rover are nearer than this, metres.
        min_confidence: Disparities with a lower confidence say nothing.
    """

    def __init__(self, within_m: float = 3.0, min_confidence: float = 0.3) -> None:
        if not within_m > 0:
            raise InputError(f'the distance of the parts is {within_m} m; it must be positive')
        self._within_m, self._min_confidence = within_m, min_confidence
        self._looks: list[FloatImage] = []
        self._disparities: list[FloatImage] = []
        self._nearest_px = 0.0

    def add(self, pair: StereoPair, result: Reconstruction) -> None:
        """Add a frame.

        Raises:
            InputError: Its size is not that of the frames before.
        """
        if self._looks and pair.left.shape != self._looks[0].shape:
            raise InputError(
                f'a frame is {pair.left.shape[1]}x{pair.left.shape[0]}, those before were '
                f'{self._looks[0].shape[1]}x{self._looks[0].shape[0]}: one rig is needed'
            )
        camera = pair.calibration
        self._nearest_px = camera.fx * camera.baseline_m / self._within_m
        self._looks.append(np.asarray(cv2.blur(pair.left, (3, 3)), np.float32))
        sure = result.confidence >= self._min_confidence
        self._disparities.append(np.where(sure, result.disparity, np.float32(np.nan)))

    def learn(self) -> LearntMask:
        """Return the mask.

        Raises:
            InputError: There are too few frames, or nothing moved in them.
        """
        count = len(self._looks)
        if count < LEAST_FRAMES:
            raise InputError(
                f'{count} frames can be used; at least {LEAST_FRAMES} of a drive are needed'
            )
        looks, disparities = np.stack(self._looks), np.stack(self._disparities)
        moving = self._moving(looks)
        if moving < LEAST_MOVING:
            raise InputError(
                f'nothing moved: {100 * moving:.1f} % of the lit pixels change from frame to '
                f'frame, at least {100 * LEAST_MOVING:g} % are needed. Take a recording in which '
                'the rover drives'
            )
        mask, stillness, middle = self._found(looks, disparities)
        halves = [self._found(looks[k::2], disparities[k::2])[0] for k in (0, 1)]
        union = (halves[0] | halves[1]).sum()
        return LearntMask(
            mask,
            _in_right_view(mask, middle),
            float(mask.mean()),
            float(stillness[mask].mean()) if mask.any() else 1.0,
            float((halves[0] & halves[1]).sum() / union) if union else 1.0,
            moving,
            count,
        )

    def _moving(self, looks: FloatImage) -> float:
        """Return the share of the lit pixels that change."""
        lit = looks.max(axis=0) > LIT
        return float((_change(looks)[lit] > NOISE).mean()) if lit.any() else 0.0

    def _found(
        self, looks: FloatImage, disparities: FloatImage
    ) -> tuple[BoolImage, FloatImage, FloatImage]:
        """Return mask, stillness, and the median disparity."""
        known = np.isfinite(disparities)
        # Half of the frames must know a pixel's disparity: the others count as below it.
        middle = np.median(np.where(known, disparities, np.float32(-1.0)), axis=0)
        margin = np.maximum(STILL_PX, STILL_SHARE_OF_DISPARITY * middle)
        with np.errstate(invalid='ignore'):
            stillness = (np.abs(disparities - middle) < margin).mean(axis=0)
        change = _change(looks)
        moves = (change > NOISE) & (middle > 0)
        ground = _ground_disparity(middle, moves & (stillness < STILL_FRAMES))
        if ground is None:
            ground = _ground_disparity(middle, moves)
        above, level = np.zeros((2, *moves.shape), np.bool_)
        if ground is not None:
            margin = np.maximum(ground, 0) * ABOVE_SHARE + ABOVE_PX
            above, level = middle > ground + margin, np.abs(middle - ground) <= margin
        typical = float(np.median(change[moves])) if moves.any() else 0.0
        looks_still = change <= max(NOISE, STILL_LOOK * typical)
        part = (stillness >= STILL_FRAMES) & above & looks_still & (middle >= self._nearest_px)
        # What is too near to be matched has no disparity, or a wrong one: it belongs to a part
        # that it hangs together with, if it is lit, looks still and is not on the ground.
        far = (middle > 0) & (middle < self._nearest_px)
        lit = np.median(looks, axis=0) > LIT
        part = _joined_to(part, part | (looks_still & lit & ~level & ~far))
        return _cleaned(part), stillness.astype(np.float32), middle.astype(np.float32)


def _change(looks: FloatImage) -> FloatImage:
    """Return (H, W), the median of how much pixels change from frame to frame."""
    return np.asarray(np.median(np.abs(np.diff(looks, axis=0)), axis=0), np.float32)


def _ground_disparity(middle: FloatImage, usable: BoolImage) -> FloatImage | None:
    """Return the (H, W) disparities of the plane of the ground; None where too little is seen."""
    if usable.sum() < 100:
        return None
    row, column = np.nonzero(usable)
    few = slice(None, None, max(1, len(row) // 20_000))
    points = np.stack([column[few], row[few], np.ones(len(row[few]))], axis=1)
    values = middle[row[few], column[few]]
    weight = np.ones(len(values))
    for _ in range(FIT_ITERATIONS):  # Cauchy weights: rocks do not tilt the plane
        weighted = points * weight[:, None]
        plane = np.linalg.lstsq(weighted.T @ points, weighted.T @ values, rcond=None)[0]
        weight = 1 / (1 + ((values - points @ plane) / 2.0) ** 2)
    height, width = middle.shape
    columns, rows = np.arange(width)[None, :], np.arange(height)[:, None]
    return np.asarray(plane[0] * columns + plane[1] * rows + plane[2], np.float32)


def _joined_to(seeds: BoolImage, candidates: BoolImage) -> BoolImage:
    """Return the connected candidates among which there are seeds, more than specks."""
    count, labels = cv2.connectedComponents(candidates.astype(np.uint8), connectivity=4)
    many = np.bincount(labels[seeds], minlength=count) >= max(1, SPECK * seeds.size)
    many[0] = False
    return np.asarray(many[labels], np.bool_)


def _cleaned(part: BoolImage) -> BoolImage:
    """Return the parts without specks and holes, grown over their edges."""
    width = part.shape[1]

    def disc(share: float) -> NDArray[np.uint8]:
        size = 2 * max(1, round(share * width)) + 1
        return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.uint8)

    image = cv2.morphologyEx(part.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    image = cv2.morphologyEx(image, cv2.MORPH_CLOSE, disc(CLOSED))
    count, labels, figures, _ = cv2.connectedComponentsWithStats(image)
    large = figures[:, cv2.CC_STAT_AREA] >= SPECK * part.size
    large[0] = False  # what is no part
    kept = large[labels].astype(np.uint8)
    return np.asarray(cv2.dilate(kept, disc(GROWN)) > 0, np.bool_)


def _in_right_view(mask: BoolImage, disparity: FloatImage) -> BoolImage:
    """Return where the masked pixels are in the right view."""
    row, column = np.nonzero(mask & (disparity > 0))
    there = np.rint(column - disparity[row, column]).astype(int)
    inside = (there >= 0) & (there < mask.shape[1])
    right = np.zeros(mask.shape, np.bool_)
    right[row[inside], there[inside]] = True
    return _cleaned(right)
