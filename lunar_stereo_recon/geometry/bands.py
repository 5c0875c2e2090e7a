"""Work on bands of rows, a thread each: most stages look only a few rows up and down.

OpenCV's and NumPy's loops let other threads run, and a band's temporaries stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import cv2

# Statistics are made on images reduced by up to this factor; bands begin at multiples of it.
ALIGNMENT_PX = 8


@dataclass(frozen=True)
class Band:
    """Rows of an image.

    Attributes:
        rows: Those that the band writes.
        seen: Those that it looks at, `rows` and some around them.
        own: Where `rows` are within `seen`.
    """

    rows: slice
    seen: slice
    own: slice


def bands_of(height: int, halo_px: int, threads: int) -> list[Band]:
    """Return bands that cover an image, at most one for each thread.

    Args:
        height: Of the image, pixels.
        halo_px: How far up and down a result depends on the images.
        threads: Threads that may be used.
    """
    halo = -(-halo_px // ALIGNMENT_PX) * ALIGNMENT_PX
    # With more rows around it than of its own, a band is hardly a gain.
    count = max(1, min(threads, height // max(ALIGNMENT_PX, 2 * halo)))
    borders = [height * i // count // ALIGNMENT_PX * ALIGNMENT_PX for i in range(count)]
    bands = []
    for start, stop in zip(borders, [*borders[1:], height], strict=True):
        first, last = max(0, start - halo), min(height, stop + halo)
        bands.append(
            Band(slice(start, stop), slice(first, last), slice(start - first, stop - first))
        )
    return bands


def over_bands(height: int, halo_px: int, work: Callable[[Band], None]) -> None:
    """Call `work` for each band of an image, with as many threads as OpenCV has.

    What it writes must not depend on the number of bands: the halo is for that.
    """
    bands = bands_of(height, halo_px, cv2.getNumThreads())
    if len(bands) == 1:
        work(bands[0])
        return
    # A worker for each band but the last, which the caller does itself.
    others = [_pool(len(bands) - 1).submit(work, band) for band in bands[:-1]]
    try:
        work(bands[-1])
    finally:
        for other in others:
            other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix='bands')
