"""OpenCV's classical matchers, with which the student is compared; they need no weights.

128 disparities, block 5 (block matching: 15). Semi-global matching gets the left border padded by
the search range, so that the first columns are not blind; block matching is there with and
without, since padding costs it as many gross errors as it gains estimates.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage
from lunar_stereo_recon.errors import InputError, ModelError

SGBM_MODES = {'sgbm': cv2.StereoSGBM_MODE_SGBM_3WAY, 'sgbm_hh': cv2.StereoSGBM_MODE_HH}
FIXED_POINT_SCALE = 16.0
BM_BLOCK = 15
# OpenCV's matchers fail on narrower or lower images.
MIN_SIDE_PX = {'sgbm': 5, 'sgbm_hh': 5, 'bm': BM_BLOCK + 1, 'bm_padded': BM_BLOCK + 1}
# Share of answers with an error below 1 px on lunar rover pairs; the matchers grade none of them.
ANSWER_CONFIDENCE = 0.97


class ClassicalBackend:
    """Semi-global matching ('sgbm', 'sgbm_hh') or block matching ('bm', 'bm_padded').

    See `Backend`.

    Args:
        method: Which matcher.
        num_disparities: Search range, pixels, a positive multiple of 16.

    Raises:
        ModelError: Unknown method or unusable search range.
    """

    size_multiple = 1
    max_width_px: int | None = None
    provider_fallback = ''
    choice = ''
    confidence_calibration: dict[str, Any] | None = None
    metadata: dict[str, str] = {}

    def __init__(self, method: str = 'sgbm', num_disparities: int = 128) -> None:
        if num_disparities <= 0 or num_disparities % 16:
            raise ModelError(
                f'num_disparities is {num_disparities}; a positive multiple of 16 is needed'
            )
        self.name = method
        self.provider = f'OpenCV {cv2.__version__}'
        self.max_disparity_px = float(num_disparities - 1)
        self._padding = 0 if method == 'bm' else num_disparities
        self._matcher = _matcher(method, num_disparities)

    def predict(self, left: FloatImage, right: FloatImage) -> DisparityPrediction:
        """Match two images (H, W) float32 in [0, 1]; NaN where the matcher has no answer.

        Raises:
            InputError: The images are smaller than a matching block.
        """
        if min(left.shape) < MIN_SIDE_PX[self.name]:
            raise InputError(
                f'images are {left.shape[1]}x{left.shape[0]}; {self.name} needs at least '
                f'{MIN_SIDE_PX[self.name]} pixels each way'
            )
        padding = self._padding
        left_8, right_8 = (
            cv2.copyMakeBorder(_to_uint8(image), 0, 0, padding, 0, cv2.BORDER_REPLICATE)
            for image in (left, right)
        )
        fixed_point = self._matcher.compute(left_8, right_8)[:, padding:]
        disparity = fixed_point.astype(np.float32) / np.float32(FIXED_POINT_SCALE)
        found = disparity > 0
        disparity[~found] = np.nan
        confidence = np.where(found, np.float32(ANSWER_CONFIDENCE), np.float32(np.nan))
        return DisparityPrediction(disparity, confidence)


def _matcher(method: str, num_disparities: int) -> Any:
    if method in ('bm', 'bm_padded'):
        return cv2.StereoBM_create(numDisparities=num_disparities, blockSize=BM_BLOCK)
    if method not in SGBM_MODES:
        known = ', '.join(['bm', 'bm_padded', *SGBM_MODES])
        raise ModelError(f"unknown classical matcher '{method}'; known are {known}")
    return cv2.StereoSGBM_create(
        minDisparity=0,
        numDisparities=num_disparities,
        blockSize=5,
        P1=8 * 5 * 5,
        P2=32 * 5 * 5,
        disp12MaxDiff=1,
        uniquenessRatio=10,
        speckleWindowSize=100,
        speckleRange=2,
        mode=SGBM_MODES[method],
    )


def _to_uint8(image: FloatImage) -> np.ndarray:
    return np.clip(image * 255.0 + 0.5, 0, 255).astype(np.uint8)
