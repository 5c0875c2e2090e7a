"""Parts of the rover that its own cameras see: their pixels are no ground and no obstacle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import StereoPair
from lunar_stereo_recon.errors import InputError

BoolImage = NDArray[np.bool_]
# A mask of another size fits if its sides have the same ratio, to about a pixel.
RATIO_TOLERANCE = 0.01


@dataclass(frozen=True)
class Polygon:
    """An area of an image of any size.

    Attributes:
        corners: (N, 2), columns and rows, pixels.
    """

    corners: NDArray[np.float64]

    def drawn(self, width: int, height: int) -> BoolImage:
        """Return the area in an image of this size, its border included."""
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [np.rint(self.corners).astype(np.int32)], 1)
        return np.asarray(mask > 0, np.bool_)


@dataclass(frozen=True)
class SelfMask:
    """Which pixels of the rectified views show the rover itself.

    Attributes:
        left, right: (H, W) bool, of any size with the ratio of the images, or a polygon in pixels
            of the images; None is none.
        left_name, right_name: Where they come from, for texts.
    """

    left: BoolImage | Polygon | None
    right: BoolImage | Polygon | None = None
    left_name: str = 'self_mask'
    right_name: str = 'self_mask_right'


def without_rover(pair: StereoPair, mask: SelfMask) -> StereoPair:
    """Return the pair with the rover's own pixels marked as not seen.

    They get no disparity, and neither does what would be matched with them in the right view.

    Raises:
        InputError: A mask is of a size that does not fit the images.
    """
    height, width = pair.left.shape
    left = fitted(mask.left, width, height, mask.left_name)
    right = fitted(mask.right, width, height, mask.right_name)
    return replace(
        pair,
        left_mask=~left if pair.left_mask is None else pair.left_mask & ~left,
        right_mask=~right if pair.right_mask is None else pair.right_mask & ~right,
        own_mask=left,
    )


def fitted(mask: BoolImage | Polygon | None, width: int, height: int, name: str) -> BoolImage:
    """Return a mask at the size of the images; without one, nothing is masked.

    Raises:
        InputError: Its sides have another ratio than those of the images.
    """
    if mask is None:
        return np.zeros((height, width), np.bool_)
    if isinstance(mask, Polygon):
        return mask.drawn(width, height)
    if mask.shape == (height, width):
        return mask
    own_height, own_width = mask.shape
    if abs(own_width * height - own_height * width) > RATIO_TOLERANCE * own_width * height:
        raise InputError(
            f'{name} is {own_width}x{own_height}, but the camera_info says {width}x{height}; a '
            'mask of that size, or of the same ratio, is needed'
        )
    scaled = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(scaled > 0, np.bool_)
