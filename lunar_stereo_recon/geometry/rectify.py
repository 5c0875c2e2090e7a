"""Raw images to rectified ones: distortion and rotation taken out by ROS's D, K, R and P.

The maps follow from the calibration alone and are kept, two cameras of two rigs at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import functools
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage, StereoPair
from lunar_stereo_recon.errors import CalibrationError, quoted
from lunar_stereo_recon.limits import MAX_DISTORTION, MAX_FOCAL_SIDES, MAX_OFFSET_PX

# Distortion model: numbers of coefficients it may have. Names of sensor_msgs/distortion_models.hpp
# and of the drivers that write 'fisheye' for the same. OpenCV tells the polynomials apart by their
# number of coefficients: 4 and 5 plumb bob, 8 rational, 12 thin prism, 14 tilted sensor.
COEFFICIENTS = {
    '': (0,),
    'plumb_bob': (0, 4, 5),
    'rational_polynomial': (8, 12, 14),
    'equidistant': (4,),
    'fisheye': (4,),
}
FISHEYE = ('equidistant', 'fisheye')
MAPS_KEPT = 4
DEFAULT_MODEL = 'plumb_bob'
ROTATION_TOLERANCE = 1e-3
# The slope of the map, which tells where it folds, takes two pixels each way.
MIN_SIDE_PX = 2

ImageMap = tuple[NDArray[np.int16], NDArray[np.uint16]]


def fitting_coefficients(model: str, coefficients: Sequence[float]) -> tuple[float, ...]:
    """Return the coefficients in a number that the model has.

    Drivers pad with zeros, which say nothing, or leave out the last ones, which are then zero.

    Args:
        model: One of `COEFFICIENTS`; others are returned as they are.
        coefficients: As a camera_info has them.
    """
    found = tuple(map(float, coefficients))
    counts = COEFFICIENTS.get(model, ())
    if not counts or len(found) in counts:
        return found
    used = len(found)
    while used and found[used - 1] == 0:
        used -= 1
    enough = [count for count in counts if count >= used]
    if not enough or not found:
        return found
    return found[:used] + (0.0,) * (min(enough) - used)


@dataclass(frozen=True)
class RawCamera:
    """A camera with its distortion, and the rectified image that is wanted of it.

    Attributes:
        width, height: Size of both images, pixels.
        intrinsics: fx, fy, cx, cy of the raw image (K), pixels.
        distortion_model: One of `COEFFICIENTS`.
        distortion: Its coefficients in the order of OpenCV and ROS.
        rotation: 9 numbers by rows (R): rectified from raw camera axes.
        rectified: fx, fy, cx, cy of the rectified image (P), pixels.

    Raises:
        CalibrationError: Unknown model, another number of coefficients, a number outside of its
            range in `limits`, R is no rotation, or the image is too small.
    """

    width: int
    height: int
    intrinsics: tuple[float, float, float, float]
    distortion_model: str
    distortion: tuple[float, ...]
    rotation: tuple[float, ...]
    rectified: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        if self.distortion_model not in COEFFICIENTS:
            known = ', '.join(name for name in COEFFICIENTS if name)
            raise CalibrationError(
                f'distortion model is {quoted(self.distortion_model)}; one of {known} is needed'
            )
        counts = COEFFICIENTS[self.distortion_model]
        if len(self.distortion) not in counts:
            wanted = ' or '.join(map(str, counts))
            raise CalibrationError(
                f'distortion model {quoted(self.distortion_model)} has {len(self.distortion)} '
                f'coefficients; {wanted} are needed'
            )
        numbers = (*self.intrinsics, *self.distortion, *self.rotation, *self.rectified)
        if not all(math.isfinite(number) for number in numbers):
            raise CalibrationError(f'calibration of the raw camera is not finite: {numbers}')
        if min(self.width, self.height) < MIN_SIDE_PX:
            raise CalibrationError(
                f'raw image is {self.width}x{self.height}; at least {MIN_SIDE_PX} pixels each way '
                'are needed to rectify it'
            )
        if min(*self.intrinsics[:2], *self.rectified[:2]) <= 0:
            raise CalibrationError(
                f'focal lengths in K are {self.intrinsics[0]:g} and {self.intrinsics[1]:g}; '
                'positive ones are needed. Is the camera calibrated?'
            )
        side = max(self.width, self.height)
        highest = {
            'focal lengths in K': (self.intrinsics[:2], MAX_FOCAL_SIDES * side),
            'principal point in K': (self.intrinsics[2:], side + MAX_OFFSET_PX),
            'distortion': (self.distortion, MAX_DISTORTION),
        }
        for name, (values, limit) in highest.items():
            if any(abs(value) > limit for value in values):
                seen = ', '.join(f'{value:g}' for value in values)
                raise CalibrationError(f'{name}: {seen}; at most {limit:g} is plausible')
        rotation = self._rotation_matrix()
        error = np.abs(rotation @ rotation.T - np.eye(3)).max()
        if error > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
            raise CalibrationError(
                f'R is {", ".join(f"{number:g}" for number in self.rotation)}; a rotation is '
                'needed. Is the camera calibrated?'
            )

    def maps(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the raw column and row of each rectified pixel, (H, W) each."""
        size = (self.width, self.height)
        distortion = np.array(self.distortion, np.float64)
        arguments = (
            _matrix(self.intrinsics),
            distortion if distortion.size else None,
            self._rotation_matrix(),
            _matrix(self.rectified),
            size,
            cv2.CV_32FC1,
        )
        if self.distortion_model in FISHEYE:
            return cv2.fisheye.initUndistortRectifyMap(*arguments)
        return cv2.initUndistortRectifyMap(*arguments)

    def _rotation_matrix(self) -> NDArray[np.float64]:
        return np.array(self.rotation, np.float64).reshape(3, 3)


def rectified_image(raw: NDArray[Any], camera: RawCamera) -> NDArray[Any]:
    """Return the rectified image, of the raw one's size and type.

    Args:
        raw: (H, W) or (H, W, 3), uint8, uint16 or float32.
        camera: Its camera.

    Raises:
        CalibrationError: The calibration is for another size.
    """
    height, width = raw.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise CalibrationError(
            f'raw image is {width}x{height}, its calibration for {camera.width}x{camera.height}'
        )
    # The border is continued: black beyond it would be an edge that the matcher follows. What is
    # beyond is what `seen_mask` leaves out.
    return cv2.remap(
        raw, *_fixed_point_maps(camera), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


@functools.lru_cache(maxsize=MAPS_KEPT)
def seen_mask(camera: RawCamera) -> NDArray[np.bool_]:
    """Return (H, W) bool: rectified pixels that show something that the raw image holds.

    A distortion polynomial is fitted to the raw image only; farther out it may bend back into it
    and show it a second time, mirrored. Those pixels do not count.
    """
    columns, rows = camera.maps()
    inside = (columns >= 0) & (columns <= camera.width - 1)
    inside &= (rows >= 0) & (rows <= camera.height - 1)
    across_columns, across_rows = np.gradient(columns, axis=1), np.gradient(rows, axis=1)
    down_columns, down_rows = np.gradient(columns, axis=0), np.gradient(rows, axis=0)
    inside &= across_columns * down_rows > down_columns * across_rows
    _, regions = cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)
    known = regions[inside]
    seen = (
        regions == np.bincount(known).argmax() if known.size else np.zeros(inside.shape, np.bool_)
    )
    seen.setflags(write=False)
    return seen


def confidence_where_seen(
    confidence: FloatImage, disparity: FloatImage, pair: StereoPair
) -> FloatImage:
    """Return the confidence with 0 where one of the views does not see the point.

    Args:
        confidence: (H, W) float32.
        disparity: (H, W) float32, pixels, free of the principal points' offset.
        pair: The pair they are of; without masks everything is seen.
    """
    if pair.left_mask is None or pair.right_mask is None:
        return confidence
    height, width = confidence.shape
    columns = np.arange(width, dtype=np.float32) - disparity
    columns -= np.float32(pair.calibration.disparity_offset_px)
    rows = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None], columns.shape)
    seen_right = cv2.remap(
        pair.right_mask.astype(np.uint8),
        np.nan_to_num(columns, nan=-2.0),
        np.ascontiguousarray(rows),
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.where(pair.left_mask & (seen_right > 0), confidence, np.float32(0))


@functools.lru_cache(maxsize=MAPS_KEPT)
def _fixed_point_maps(camera: RawCamera) -> ImageMap:
    """Return the maps in the form that `cv2.remap` is fastest with; steps of 1/32 pixel."""
    return cv2.convertMaps(*camera.maps(), cv2.CV_16SC2)


def _matrix(intrinsics: tuple[float, float, float, float]) -> NDArray[np.float64]:
    fx, fy, cx, cy = intrinsics
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
