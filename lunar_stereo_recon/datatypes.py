"""Data types of the pipeline; each is checked when it is made, and trusted from then on.

Images are indexed (row, column); integer coordinates are pixel centres. Points are in the
optical frame of the rectified left camera: x right, y down, z forward, metres.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import CalibrationError, InputError
from lunar_stereo_recon.limits import (
    MAX_BASELINE_M,
    MAX_FOCAL_SIDES,
    MAX_OFFSET_PX,
    MAX_PIXELS,
    MAX_SIDE_PX,
    MIN_BASELINE_M,
    MIN_FOCAL_SIDES,
)

FloatImage = NDArray[np.float32]


@dataclass(frozen=True)
class StereoCalibration:
    """Pinhole model of a rectified stereo rig (rows aligned, no distortion).

    Attributes:
        fx, fy: Focal lengths of both rectified cameras, pixels.
        cx, cy: Principal point of the left camera, pixels (pixel centres at integers).
        cx_right: Principal point of the right camera, pixels; equals `cx` on most rigs.
        baseline_m: Distance between the optical centres, metres, positive.
        width, height: Image size that the values above hold for, pixels.

    Raises:
        CalibrationError: A value is outside of its range in `limits`, or not a number.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    cx_right: float
    baseline_m: float
    width: int
    height: int

    def __post_init__(self) -> None:
        for name in ('width', 'height'):
            self._check(name, 1, MAX_SIDE_PX, 'pixels')
        if self.width * self.height > MAX_PIXELS:
            raise CalibrationError(
                f'calibration is for {self.width}x{self.height}; at most {MAX_PIXELS} pixels are '
                'taken'
            )
        side = max(self.width, self.height)
        for name in ('fx', 'fy'):
            what = f'pixels for images of {self.width}x{self.height}'
            self._check(name, MIN_FOCAL_SIDES * side, MAX_FOCAL_SIDES * side, what)
        for name, size in (('cx', self.width), ('cx_right', self.width), ('cy', self.height)):
            self._check(name, -MAX_OFFSET_PX, size + MAX_OFFSET_PX, 'pixels')
        self._check('baseline_m', MIN_BASELINE_M, MAX_BASELINE_M, 'metres')

    def _check(self, name: str, lowest: float, highest: float, unit: str) -> None:
        value = getattr(self, name)
        if not lowest <= value <= highest:  # nor is NaN
            raise CalibrationError(
                f'calibration {name} is {value:g}; {lowest:g} to {highest:g} {unit} are plausible'
            )

    @property
    def intrinsics(self) -> NDArray[np.float64]:
        """Return the left camera's 3x3 matrix K, pixels."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def disparity_offset_px(self) -> float:
        """Return cx_left - cx_right: raw column difference minus this is the disparity."""
        return self.cx - self.cx_right

    def resized(self, width: int, height: int) -> StereoCalibration:
        """Return the calibration of the same images resized to (width, height).

        Pixel centres stay pixel centres: c' = (c + 0.5) * scale - 0.5.
        """
        sx, sy = width / self.width, height / self.height
        return dataclasses.replace(
            self,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
            cx_right=(self.cx_right + 0.5) * sx - 0.5,
            width=width,
            height=height,
        )

    def padded(
        self, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0
    ) -> StereoCalibration:
        """Return the calibration after adding (or with negative values cutting) border pixels."""
        return dataclasses.replace(
            self,
            cx=self.cx + left,
            cy=self.cy + top,
            cx_right=self.cx_right + left,
            width=self.width + left + right,
            height=self.height + top + bottom,
        )


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, pixels.

    Attributes:
        x, y: Its first column and row.
        width, height: Its size.

    Raises:
        InputError: An offset is negative or a size not positive.
    """

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if min(self.x, self.y) < 0 or min(self.width, self.height) <= 0:
            raise InputError(
                f'region is {self.width}x{self.height} at ({self.x}, {self.y}); a positive size '
                'and offsets of 0 or more are needed'
            )

    def within(self, width: int, height: int) -> Region:
        """Return the part that lies in an image of this size.

        Raises:
            InputError: There is none.
        """
        if self.x >= width or self.y >= height:
            raise InputError(
                f'region of interest {self.width}x{self.height} at ({self.x}, {self.y}) lies '
                f'outside of the image of {width}x{height}'
            )
        right, bottom = min(self.x + self.width, width), min(self.y + self.height, height)
        return Region(self.x, self.y, right - self.x, bottom - self.y)

    def slices(self, step: int = 1) -> tuple[slice, slice]:
        """Return what cuts rows and columns of an image, every `step`-th."""
        return (
            slice(self.y, self.y + self.height, step),
            slice(self.x, self.x + self.width, step),
        )


@dataclass(frozen=True)
class StereoPair:
    """One rectified, synchronized pair of grey images with its calibration.

    Attributes:
        left, right: (H, W) float32 in [0, 1].
        calibration: Rectified calibration for exactly this image size.
        stamp_ns: Time of the left image, nanoseconds since the epoch; 0 where unknown.
        frame_id: Optical frame of the left camera; '' where unknown.
        color: (H, W, 3) uint8 RGB of the left image for colouring the cloud; None where the
            source is grey.
        left_mask, right_mask: (H, W) bool: pixels that the camera saw; None is all of them. A
            rectified raw image has others too.
        own_mask: (H, W) bool: pixels of the left image that show the rover itself. They never get
            a result. None is none.

    Raises:
        InputError: Shapes or types differ from the above.
        CalibrationError: The calibration is for another image size.
    """

    left: FloatImage
    right: FloatImage
    calibration: StereoCalibration
    stamp_ns: int = 0
    frame_id: str = ''
    color: NDArray[np.uint8] | None = None
    left_mask: NDArray[np.bool_] | None = None
    right_mask: NDArray[np.bool_] | None = None
    own_mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for name in ('left', 'right'):
            image = getattr(self, name)
            if image.ndim != 2 or image.dtype != np.float32:
                raise InputError(
                    f'{name} image has shape {image.shape} and type {image.dtype}; '
                    '(H, W) float32 in [0, 1] is needed'
                )
        if self.left.shape != self.right.shape:
            raise InputError(
                f'left image is {_size(self.left)} but right image is {_size(self.right)}; '
                'both views of a pair must have one size'
            )
        expected = (self.calibration.height, self.calibration.width)
        if self.left.shape != expected:
            raise CalibrationError(
                f'images are {_size(self.left)} but the calibration is for '
                f'{self.calibration.width}x{self.calibration.height}'
            )
        if self.color is not None and (
            self.color.shape != (*expected, 3) or self.color.dtype != np.uint8
        ):
            raise InputError(
                f'colour image has shape {self.color.shape} and type {self.color.dtype}; '
                f'{(*expected, 3)} uint8 is needed'
            )
        for name in ('left_mask', 'right_mask', 'own_mask'):
            mask = getattr(self, name)
            if mask is not None and (mask.shape != expected or mask.dtype != np.bool_):
                raise InputError(
                    f'{name} has shape {mask.shape} and type {mask.dtype}; {expected} bool is '
                    'needed'
                )


@dataclass(frozen=True)
class DisparityPrediction:
    """What a matching backend returns, at the size of the images it was given.

    Attributes:
        disparity: (H, W) float32, pixels, column left minus column right (principal points not
            yet considered). NaN where the backend has no estimate.
        confidence: (H, W) float32 in [0, 1], the backend's own belief; NaN where no estimate.
    """

    disparity: FloatImage
    confidence: FloatImage

    def __post_init__(self) -> None:
        for name in ('disparity', 'confidence'):
            array = getattr(self, name)
            if array.ndim != 2 or array.dtype != np.float32:
                raise InputError(
                    f'prediction {name} has shape {array.shape} and type {array.dtype}; '
                    '(H, W) float32 is needed'
                )
        if self.disparity.shape != self.confidence.shape:
            raise InputError(
                f'predicted disparity is {_size(self.disparity)} but confidence is '
                f'{_size(self.confidence)}'
            )


@dataclass(frozen=True)
class RowAlignment:
    """Where the rows of the right view are, against the left ones.

    What should appear in the right image at (x, y) appears in row
    y + offset_px + tan(roll) (x - x_centre).

    Attributes:
        offset_px: Pixels at the image's centre; positive where the right rows are low.
        roll_deg: Positive where the right view is turned clockwise.
        deviation_px: Standard deviation of the offset by image noise; infinite where nothing is
            known.
    """

    # Pixels: rows farther off than the first are not corrected; from the second on, the owner is
    # told to recalibrate.
    MAX_CORRECTION_PX: ClassVar[float] = 2.0
    WARNING_PX: ClassVar[float] = 0.3

    offset_px: float = 0.0
    roll_deg: float = 0.0
    deviation_px: float = math.inf

    @property
    def known(self) -> bool:
        """Say whether the images told anything."""
        return math.isfinite(self.deviation_px)

    def largest_px(self, width: int) -> float:
        """Return the largest row error in an image so wide, pixels."""
        return abs(self.offset_px) + math.radians(abs(self.roll_deg)) * width / 2

    def minus(self, other: RowAlignment) -> RowAlignment:
        """Return the difference of two alignments."""
        return dataclasses.replace(
            self,
            offset_px=self.offset_px - other.offset_px,
            roll_deg=self.roll_deg - other.roll_deg,
        )

    def poor(self, width: int) -> bool:
        """Say whether the rig needs calibrating again."""
        return self.known and self.largest_px(width) >= self.WARNING_PX

    def describe(self, width: int) -> str:
        """Return a sentence for people who look after the rig.

        Args:
            width: Width of the image, pixels.
        """
        if not self.known:
            return 'row alignment not known yet'
        if not self.poor(width):
            return f'rows aligned within {max(self.largest_px(width), 0.05):.2f} px'
        found = []
        if abs(self.offset_px) >= self.WARNING_PX / 2:
            found.append(f'{abs(self.offset_px):.1f} px {"low" if self.offset_px > 0 else "high"}')
        if self.largest_px(width) - abs(self.offset_px) >= self.WARNING_PX / 2:
            sense = 'clockwise' if self.roll_deg > 0 else 'counter-clockwise'
            found.append(f'turned {abs(self.roll_deg):.2f} deg {sense}')
        beyond = self.largest_px(width) > self.MAX_CORRECTION_PX
        advice = ', more than can be corrected: recalibrate' if beyond else ': recalibrate'
        return f'right rows {" and ".join(found)}{advice}'


@dataclass(frozen=True)
class Reconstruction:
    """Metric result for one pair, every map at the size of the input images.

    Attributes:
        disparity: (H, W) float32, pixels, x_left - x_right - (cx_left - cx_right). NaN invalid.
        depth: (H, W) float32, metres along the optical axis. NaN invalid.
        confidence: (H, W) float32 in [0, 1]: probability that the disparity error is below
            one pixel. Finite everywhere; kept also where the estimate was rejected.
        points: (H, W, 3) float32, metres, left optical frame. NaN invalid.
        color: (H, W, 3) uint8 RGB of the left image.
        calibration: Calibration of the input images.
        stamp_ns, frame_id: Copied from the pair.
        timings_ms: Milliseconds spent in each stage, in the order of the stages.
        row_alignment: How well the rows of the views are aligned, over the last frames.
        region: Where results were wanted; everything outside is invalid. None is everywhere.
        searched_px: Smallest and largest disparity that was searched, pixels; infinite where
            nothing limits it.
        sigma_px: (H, W) float32, one standard deviation of the disparity, pixels; NaN invalid.
            None where the model has no calibration of it, or it was not asked for.
        depth_sigma_m: (H, W) float32, the same of depth, metres.
        matched_px: (H, W) float32, disparity as matching found it, before unsure pixels went over
            into their surroundings, pixels; also where nothing was accepted. None where that is
            not known.
        earlier_frame: What became of the frame before: 'used', or why it was left out; '' where
            it was not asked for.
    """

    disparity: FloatImage
    depth: FloatImage
    confidence: FloatImage
    points: FloatImage
    color: NDArray[np.uint8]
    calibration: StereoCalibration
    stamp_ns: int = 0
    frame_id: str = ''
    timings_ms: dict[str, float] = field(default_factory=dict)
    row_alignment: RowAlignment = field(default_factory=RowAlignment)
    region: Region | None = None
    searched_px: tuple[float, float] = (0.0, math.inf)
    sigma_px: FloatImage | None = None
    depth_sigma_m: FloatImage | None = None
    matched_px: FloatImage | None = None
    earlier_frame: str = ''

    @property
    def valid_mask(self) -> NDArray[np.bool_]:
        """Return (H, W) bool: True where depth is given."""
        return np.isfinite(self.depth)


def _size(image: NDArray[Any]) -> str:
    return f'{image.shape[1]}x{image.shape[0]}'
