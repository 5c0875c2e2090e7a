"""Pictures of a report: views with their rows, row errors, depth, exposure, stamps."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.benchmark.plots import draw_plot, Series
from lunar_stereo_recon.datatypes import FloatImage, Reconstruction, StereoPair
from lunar_stereo_recon.doctor.findings import Picture
from lunar_stereo_recon.doctor.images import (
    BLACK,
    exposure_of,
    least_texture,
    texture_of,
    WHITE,
)
from lunar_stereo_recon.doctor.rows import BEND_PX, RowErrors, tile_centres
from lunar_stereo_recon.doctor.streams import offsets_s, Stream
from lunar_stereo_recon.visualize import (
    ColorScale,
    CONFIDENCE_SCALE,
    depth_scale,
    RgbImage,
    TRUSTED_CONFIDENCE,
)

VIEW_WIDTH = 560
GAP = 8
LINES = 8
LINE_COLOR = (255, 190, 60)
WHITE_COLOR, BLACK_COLOR, SMOOTH_COLOR = (230, 50, 40), (60, 110, 230), (240, 200, 70)
GOOD_COLOR, BAD_COLOR = (70, 200, 90), (235, 60, 50)
# Points of the plot of stamps.
MOST_POINTS = 600


def views_picture(pair: StereoPair) -> Picture:
    """Return both views beside each other, with lines that should meet the same things."""
    both = _beside(_view(pair.left), _view(pair.right))
    for index in range(1, LINES):
        row = index * both.shape[0] // LINES
        both[row, :] = LINE_COLOR
    return Picture(
        'Left and right view',
        'Each line should cross the same things in both views.',
        both,
    )


def rows_picture(pair: StereoPair, errors: RowErrors) -> Picture:
    """Return the left view with the row error of each part of the image."""
    image = (0.6 * _view(pair.left)).astype(np.uint8)
    scale = image.shape[1] / errors.size[0]
    columns, rows = tile_centres(*errors.size)
    bends = errors.bends
    for column, row, error, bend in zip(
        columns.ravel(), rows.ravel(), errors.tiles.ravel(), bends.ravel(), strict=True
    ):
        place = round(float(column) * scale), round(float(row) * scale)
        if not np.isfinite(error):
            _light_text(image, '?', (place[0] - 4, place[1]), (200, 200, 200))
            continue
        color = BAD_COLOR if abs(bend) >= BEND_PX else GOOD_COLOR
        tip = place[0], round(place[1] + float(np.clip(20 * error, -60, 60)))
        cv2.arrowedLine(image, place, tip, color, 2, cv2.LINE_AA, tipLength=0.3)
        _light_text(image, f'{error:+.2f}', (place[0] + 8, place[1] + 5), color)
    return Picture(
        'Row errors',
        'Pixels by which the right view is low (down) or high (up), arrows 20 times as long; red '
        'parts do not follow offset and roll.',
        image,
    )


def depth_picture(result: Reconstruction, calibrated: bool) -> Picture:
    """Return disparity or depth of the first pair and its confidence."""
    if calibrated:
        trusted = result.depth[result.confidence >= TRUSTED_CONFIDENCE]
        scale, values = depth_scale([trusted]), result.depth
    else:
        values = result.disparity
        low, high = np.nanpercentile(values, [1, 99])
        scale = ColorScale(
            'disparity, px', float(low), float(max(high, low + 1)), cv2.COLORMAP_TURBO
        )
    pictures = []
    for each, map_of in ((scale, values), (CONFIDENCE_SCALE, result.confidence)):
        colors = _to_width(each.colors(map_of))
        pictures.append(np.vstack([colors, each.bar(VIEW_WIDTH)]))
    what = 'Depth' if calibrated else 'Disparity'
    return Picture(
        f'{what} and confidence',
        f'{what} of every pixel (left), and the probability that it is right (right).',
        _beside(*pictures),
    )


def exposure_picture(pair: StereoPair) -> Picture:
    """Return both views with what is white, black or without texture in colours."""
    return Picture(
        'Exposure and texture',
        'Red is white (saturated), blue black, yellow lit but without texture above the noise.',
        _beside(*(_marked(image) for image in (pair.left, pair.right))),
    )


def stamps_picture(left: Stream, right: Stream) -> Picture | None:
    """Return distances of stamps over time; None for fewer than two images."""
    if left.stamps_ns.size < 2:
        return None
    times = (left.stamps_ns - left.stamps_ns.min()) * 1e-9
    steps = np.abs(np.diff(left.stamps_ns)) * 1e-6
    series = [_series('left image after the one before, ms', times[1:], steps)]
    offsets = np.abs(offsets_s(left, right)) * 1e3
    if offsets.size:
        series.append(_series('left to right, ms', times, offsets))
    if max(max(each.y) for each in series) <= 0 or max(series[0].x) <= 0:
        return None
    return Picture(
        'Stamps',
        'Even steps are a flat line; gaps stand out. The distance of left and right should be 0.',
        draw_plot('Stamps', 'time, s', 'milliseconds', series),
    )


def _series(label: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> Series:
    step = -(-len(x) // MOST_POINTS)
    if step > 1:  # of each group the largest, so that no gap is left out
        count = len(x) // step * step
        x, y = x[:count:step], y[:count].reshape(-1, step).max(axis=1)
    return Series(label, x.tolist(), y.tolist(), line=True)


def _marked(image: FloatImage) -> RgbImage:
    noise = exposure_of(image).noise
    colors = np.repeat(np.rint(255 * image).astype(np.uint8)[..., None], 3, axis=2)
    lit = (image > BLACK) & (image < WHITE)
    colors[lit & (texture_of(image) < least_texture(noise))] = SMOOTH_COLOR
    colors[image >= WHITE] = WHITE_COLOR
    colors[image <= BLACK] = BLACK_COLOR
    return _to_width(colors)


def _view(image: FloatImage) -> RgbImage:
    grey = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return _to_width(np.repeat(grey[..., None], 3, axis=2))


def _to_width(image: RgbImage) -> RgbImage:
    height = max(1, round(image.shape[0] * VIEW_WIDTH / image.shape[1]))
    smaller = image.shape[1] > VIEW_WIDTH
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST
    return np.asarray(
        cv2.resize(image, (VIEW_WIDTH, height), interpolation=interpolation), np.uint8
    )


def _beside(left: RgbImage, right: RgbImage) -> RgbImage:
    gap = np.full((left.shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _light_text(
    image: RgbImage, text: str, origin: tuple[int, int], color: tuple[int, int, int]
) -> None:
    """Write on a dark picture: a dark rim, then the colour."""
    for thickness, tint in ((2, (0, 0, 0)), (1, color)):
        cv2.putText(
            image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.5, tint, thickness, cv2.LINE_AA
        )
