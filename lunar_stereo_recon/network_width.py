"""Chooses the width of the network's input: the most detail that a time for a pair allows.

The network's time grows in proportion to its pixels; refinement is at the size of the images
whatever the network's.
"""

from __future__ import annotations

from collections.abc import Callable
import logging
import time

from lunar_stereo_recon.preprocess import content_width

# Multiples of 32; heights follow from the images. With the shipped student's 188 px of search,
# wider ones would no longer reach disparities of a quarter of the width.
NETWORK_WIDTHS = (320, 480, 640)
REPEATS = 3

logger = logging.getLogger(__name__)


def widest_within(
    target_ms: float,
    image_width: int,
    reconstruct: Callable[[int], object],
    own_width: int = NETWORK_WIDTHS[-1],
) -> int:
    """Return the largest of `NETWORK_WIDTHS` with which a pair takes no longer than the target.

    Widths that images of this size are never scaled to (see `preprocess.content_width`) are not
    tried. Where even the narrowest takes longer, it is returned, and a warning says so.

    Args:
        target_ms: Milliseconds for a pair.
        image_width: Pixels.
        reconstruct: Reconstructs a pair with the given width of the network.
        own_width: The network's own; wider ones are not tried.
    """
    offered = {own_width, *(width for width in NETWORK_WIDTHS if width < own_width)}
    widths = sorted({content_width(image_width, width) for width in offered}, reverse=True)
    for width in widths:
        slowest_ms = _slowest_ms(width, reconstruct)
        if slowest_ms <= target_ms:
            logger.info('network width %d px: a pair takes %.0f ms', width, slowest_ms)
            return width
    logger.warning(
        'a pair takes %.0f ms with the smallest network width, %d px; target_ms is %g',
        slowest_ms,
        widths[-1],
        target_ms,
    )
    return widths[-1]


def _slowest_ms(width: int, reconstruct: Callable[[int], object]) -> float:
    reconstruct(width)  # the first run of a size makes its plan
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        reconstruct(width)
        times.append(1e3 * (time.perf_counter() - start))
    return max(times)
