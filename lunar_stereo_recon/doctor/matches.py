"""Points that both views show, found without the calibration and without following the rows.

SIFT features (Lowe 2004) that are each other's nearest. What they say holds for any images:
whether the two views show one scene, which is the left one, how far rows are off and where they
bend, and which disparities there are, those beyond the search included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, StereoPair
from lunar_stereo_recon.doctor.findings import Finding, Severity

# Features of one view, and the width that larger images are scaled to, pixels.
FEATURES = 2000
MAX_WIDTH_PX = 1000
CONTRAST = 0.01
# The nearest feature must be this much nearer than the second (Lowe's ratio).
RATIO = 0.8
# Fewer matches in all pairs together say nothing.
FEWEST = 20
# A match is believed where it agrees with the rows' model to this, pixels.
AGREEMENT_PX = 12.0
# Share of the matches that agree in a pair of one scene.
SAME_SCENE_SHARE = 0.6
SAMPLES = 300
# Ranges of a good pair: brightness and sharpness of the right view over those of the left.
GAIN_RANGE = (0.7, 1.4)
SHARPNESS_RANGE = (0.6, 1.65)
PATCH_PX = 5
# Share of the matches on the wrong side of zero disparity.
WRONG_SIDE_SHARE = 0.5
SOME_BEHIND_SHARE = 0.1
BEHIND_PX = 1.0
UPSIDE_DOWN_CORRELATION = -0.6
LEAST_RELIEF_PX = 4.0


@dataclass(frozen=True)
class Matches:
    """Matched points of some pairs of one rig.

    Attributes:
        left, right: (N, 2) columns and rows, pixels of the full images.
        width, height: Size of the images, pixels.
        agree: (N,) bool: rows differ as the common model says, within `AGREEMENT_PX`.
        row_model: Rows of the right view minus those of the left one: offset in the middle of
            the right image, and what is added at its right and at its lower border, pixels.
        gain, sharpness: Right over left, medians.
    """

    left: NDArray[np.float64]
    right: NDArray[np.float64]
    width: int
    height: int
    agree: NDArray[np.bool_]
    row_model: tuple[float, float, float]
    gain: float
    sharpness: float

    @property
    def enough(self) -> bool:
        """Say whether the matches tell anything."""
        return int(self.agree.sum()) >= FEWEST

    @property
    def row_errors(self) -> NDArray[np.float64]:
        """Return (N,) rows of the right points minus those of the left ones, pixels."""
        return self.right[:, 1] - self.left[:, 1]

    @property
    def columns(self) -> NDArray[np.float64]:
        """Return (N,) columns of the left points minus those of the right ones, pixels."""
        return self.left[:, 0] - self.right[:, 0]


def find_matches(pairs: Sequence[StereoPair]) -> Matches:
    """Return the matches of all pairs, which must be of one size."""
    height, width = pairs[0].left.shape
    scale = min(1.0, MAX_WIDTH_PX / width)
    points, gains, sharpness = [np.zeros((0, 4))], [], []
    for pair in pairs:
        found = _matched(_scaled(pair.left, scale), _scaled(pair.right, scale))
        # Pixel centres stay pixel centres.
        found = (found + 0.5) / scale - 0.5
        points.append(found)
        if len(found):
            brightness, detail = _compared(pair, found)
            gains.append(brightness)
            sharpness.append(detail)
    all_points = np.concatenate(points)
    left, right = all_points[:, :2], all_points[:, 2:]
    model, agree = _row_model(left, right, width, height)
    return Matches(
        left,
        right,
        width,
        height,
        agree,
        model,
        float(np.median(gains)) if gains else 1.0,
        float(np.median(sharpness)) if sharpness else 1.0,
    )


def check_matches(matches: Matches, offset_px: float) -> list[Finding]:
    """Return what the matches say of the two views beside their rows.

    Args:
        matches: Of some pairs.
        offset_px: Column difference of what is infinitely far: cx of left minus right.
    """
    scene = _one_scene(matches)
    if scene.severity is not Severity.GOOD or not matches.enough:
        return [scene]
    disparity = (matches.columns - offset_px)[matches.agree]
    findings = [scene, _sides(disparity), _alike(matches)]
    if float(np.ptp(disparity)) < LEAST_RELIEF_PX:
        return findings
    below = float(np.corrcoef(disparity, matches.left[matches.agree, 1])[0, 1])
    if below < UPSIDE_DOWN_CORRELATION:
        findings.append(
            Finding(
                'upside down',
                Severity.WARNING,
                'near things are at the top of the image, far ones at the bottom',
                'a camera that is mounted upside down: turn both images by 180 deg and swap left '
                'and right, or the cloud stands on its head',
            )
        )
    return findings


def _one_scene(matches: Matches) -> Finding:
    count, agreeing = len(matches.agree), int(matches.agree.sum())
    text = f'{agreeing} of {count} points that both views show agree on how the rows lie'
    if count < FEWEST:
        return Finding(
            'one scene',
            Severity.NOTE,
            f'only {count} points are found in both views',
            'smooth ground or dark images: what is said about rows and range rests on little',
        )
    if agreeing < SAME_SCENE_SHARE * count:
        return Finding(
            'one scene',
            Severity.FAULT,
            text,
            'the two views do not show one scene at one time: wrong topics or files, cameras not '
            'triggered together, or views turned against each other',
        )
    return Finding('one scene', Severity.GOOD, text)


def _sides(disparity: NDArray[np.float64]) -> Finding:
    low, middle, high = np.percentile(disparity, [2, 50, 98])
    text = f'disparities from {low:.1f} over {middle:.1f} to {high:.1f} px'
    behind = float(np.mean(disparity < -BEHIND_PX))
    name = 'left and right'
    if behind > WRONG_SIDE_SHARE:
        return Finding(
            name,
            Severity.FAULT,
            f'{text}: {100 * behind:.0f} % are negative',
            'left and right are swapped: exchange the topics (or files), camera_infos too',
        )
    if behind > SOME_BEHIND_SHARE:
        return Finding(
            name,
            Severity.WARNING,
            f'{text}: {100 * behind:.0f} % are negative, that is behind infinity',
            'the principal points do not fit the images, or the cameras are turned inwards and '
            'the images are not rectified: recalibrate; rectify:=true for raw images',
        )
    if abs(high) < BEHIND_PX and abs(low) < BEHIND_PX:
        return Finding(
            name,
            Severity.FAULT,
            f'{text}: nothing differs between the views',
            'both views are of one camera, or everything is too far away for this baseline',
        )
    return Finding(name, Severity.GOOD, text)


def _alike(matches: Matches) -> Finding:
    text = (
        f'right over left: brightness {matches.gain:.2f}, sharpness {matches.sharpness:.2f}, '
        'at the same points'
    )
    name = 'views alike'
    if not SHARPNESS_RANGE[0] < matches.sharpness < SHARPNESS_RANGE[1]:
        side = 'right' if matches.sharpness < 1 else 'left'
        return Finding(
            name,
            Severity.WARNING,
            text,
            f'the {side} image is blurred: focus, dust or dew on that lens, or other compression',
        )
    if not GAIN_RANGE[0] < matches.gain < GAIN_RANGE[1]:
        return Finding(
            name,
            Severity.WARNING,
            text,
            'the cameras expose differently: one exposure time and gain for both, set by one '
            'camera or by hand',
        )
    return Finding(name, Severity.GOOD, text)


def _scaled(image: FloatImage, scale: float) -> NDArray[np.uint8]:
    if scale < 1:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _matched(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (N, 4) column and row in the left and in the right image."""
    sift = cv2.SIFT_create(FEATURES, contrastThreshold=CONTRAST)
    left_points, left_features = sift.detectAndCompute(left, None)
    right_points, right_features = sift.detectAndCompute(right, None)
    if len(left_points) < 2 or len(right_points) < 2:
        return np.zeros((0, 4))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    back = {m.queryIdx: m.trainIdx for m in matcher.match(right_features, left_features)}
    found = [
        (*left_points[best.queryIdx].pt, *right_points[best.trainIdx].pt)
        for best, second in matcher.knnMatch(left_features, right_features, k=2)
        if best.distance < RATIO * second.distance and back.get(best.trainIdx) == best.queryIdx
    ]
    return np.array(found, np.float64).reshape(-1, 4)


def _compared(pair: StereoPair, points: NDArray[np.float64]) -> tuple[float, float]:
    """Return brightness and sharpness of the right view over the left one, at these points."""
    values = []
    for image, columns, rows in (
        (pair.left, points[:, 0], points[:, 1]),
        (pair.right, points[:, 2], points[:, 3]),
    ):
        mean = cv2.blur(image, (PATCH_PX, PATCH_PX))
        fine = cv2.blur(np.abs(image - cv2.GaussianBlur(image, (0, 0), 1.0)), (PATCH_PX, PATCH_PX))
        at = np.rint(rows).astype(int), np.rint(columns).astype(int)
        at = (np.clip(at[0], 0, image.shape[0] - 1), np.clip(at[1], 0, image.shape[1] - 1))
        values.append((mean[at], fine[at]))
    (left_mean, left_fine), (right_mean, right_fine) = values
    gain = float(np.median((right_mean + 1e-3) / (left_mean + 1e-3)))
    # What is brighter is sharper in numbers alone.
    sharpness = float(np.median((right_fine + 1e-4) / (left_fine + 1e-4))) / max(gain, 1e-3)
    return gain, sharpness


def _row_model(
    left: NDArray[np.float64], right: NDArray[np.float64], width: int, height: int
) -> tuple[tuple[float, float, float], NDArray[np.bool_]]:
    """Return the rows' model (least median of squares, then least squares) and who agrees."""
    count = len(left)
    if count < FEWEST:
        return (0.0, 0.0, 0.0), np.zeros(count, np.bool_)
    error = right[:, 1] - left[:, 1]
    across = (right[:, 0] - (width - 1) / 2) / (width / 2)
    down = (right[:, 1] - (height - 1) / 2) / (height / 2)
    design = np.stack([np.ones(count), across, down], axis=1)
    rng = np.random.default_rng(0)
    best = np.inf
    model: NDArray[Any] = np.zeros(3)
    for _ in range(SAMPLES):
        chosen = rng.choice(count, 3, replace=False)
        if abs(np.linalg.det(design[chosen])) < 1e-3:
            continue
        candidate = np.linalg.solve(design[chosen], error[chosen])
        middle = float(np.median(np.abs(error - design @ candidate)))
        if middle < best:
            best, model = middle, candidate
    near = np.abs(error - design @ model) < max(0.5, 2.5 * best)
    if near.sum() >= FEWEST:
        model = np.linalg.lstsq(design[near], error[near], rcond=None)[0]
    agree = np.abs(error - design @ model) < AGREEMENT_PX * max(1.0, width / MAX_WIDTH_PX)
    offset, at_right, at_bottom = map(float, model)
    return (offset, at_right, at_bottom), agree
