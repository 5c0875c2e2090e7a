"""Pictures for people: colour scales with labelled bars, contact sheets, views of a cloud.

Images are (H, W, 3) uint8 RGB. Pixels without a value are drawn in `NO_VALUE_COLOR`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]

NO_VALUE_COLOR = (70, 70, 74)
PAPER_COLOR = (250, 250, 250)
INK_COLOR = (25, 25, 28)
# Not black, so that black shadows on the ground differ from holes in the cloud.
SPACE_COLOR = (24, 30, 44)
FONT = cv2.FONT_HERSHEY_DUPLEX
# Steps of a scale that people count in.
ROUND_STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class ColorScale:
    """A mapping of values to colours that can draw its own legend.

    Attributes:
        label: What is shown, with unit.
        low, high: Values of the two ends; beyond them colours stay the same.
        color_map: One of OpenCV's COLORMAP_* numbers.
        logarithmic: Equal ratios instead of equal differences get equal steps of colour.
        reverse: The low end takes the last colour of the map.
    """

    label: str
    low: float
    high: float
    color_map: int
    logarithmic: bool = False
    reverse: bool = False

    def position(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return where values lie on the scale, 0 at `low` to 1 at `high`; NaN stays NaN."""
        values = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log(np.maximum(values, 1e-9)), math.log(low), math.log(high)
        return np.clip((values - low) / (high - low), 0.0, 1.0)

    def colors(self, values: NDArray[Any]) -> RgbImage:
        """Return the colours of (H, W) values."""
        position = self.position(values)
        levels = np.rint(255 * np.nan_to_num(1 - position if self.reverse else position))
        mapped = cv2.applyColorMap(levels.astype(np.uint8), self.color_map)
        image = np.asarray(cv2.cvtColor(mapped, cv2.COLOR_BGR2RGB), np.uint8)
        image[~np.isfinite(values)] = NO_VALUE_COLOR
        return image

    def ticks(self) -> list[float]:
        """Return round values along the scale, about three to seven."""
        if self.logarithmic:
            return _logarithmic_ticks(self.low, self.high)
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 10) for index in range(first, last + 1)]

    def bar(self, width: int, no_value: str = '') -> RgbImage:
        """Return the legend, `width` pixels wide: label, colours, ticks.

        Args:
            width: Pixels.
            no_value: What a missing value means here; adds its colour to the legend.
        """
        image = np.full((58, width, 3), PAPER_COLOR, np.uint8)
        margin = 14
        ramp = np.linspace(0.0, 1.0, width - 2 * margin)
        low, high = (math.log(v) if self.logarithmic else v for v in (self.low, self.high))
        values = low + ramp * (high - low)
        values = np.exp(values) if self.logarithmic else values
        image[22:36, margin : width - margin] = self.colors(values[None, :])
        draw_text(image, self.label, (margin, 15), 0.42)
        if no_value:
            text_width = _text_width(no_value, 0.38)
            left = width - margin - text_width - 16
            image[6:16, left : left + 11] = NO_VALUE_COLOR
            draw_text(image, no_value, (left + 16, 15), 0.38)
        free = 2  # column from which on no number stands yet
        for tick in self.ticks():
            column = margin + round(float(self.position(np.array(tick))) * (len(ramp) - 1))
            image[36:40, column] = INK_COLOR
            text = f'{tick:g}'
            text_width = _text_width(text, 0.4)
            start = min(max(column - text_width // 2, 2), width - 2 - text_width)
            if start >= free:
                draw_text(image, text, (start, 53), 0.4)
                free = start + text_width + 4
        return image


def depth_scale(depths: Iterable[NDArray[Any]]) -> ColorScale:
    """Return one logarithmic scale, near red to far blue, for all the depth maps (metres)."""
    valid = [depth[np.isfinite(depth)] for depth in depths]
    values = np.concatenate([np.zeros(0), *valid])
    low, high = np.percentile(values, [0.5, 96]) if values.size else (1.0, 10.0)
    high = max(high, 1.5 * low)
    return ColorScale(
        'depth, m', float(low), float(high), cv2.COLORMAP_TURBO, logarithmic=True, reverse=True
    )


def height_scale(heights: NDArray[Any]) -> ColorScale:
    """Return a scale for heights, metres, low violet to high yellow."""
    low, high = np.percentile(heights, [1, 99]) if heights.size else (0.0, 1.0)
    return ColorScale('height, m', float(low), float(max(high, low + 0.1)), cv2.COLORMAP_PLASMA)


TRUSTED_CONFIDENCE = 0.5
CONFIDENCE_SCALE = ColorScale('confidence', 0.0, 1.0, cv2.COLORMAP_VIRIDIS)
ERROR_SCALE = ColorScale('disparity error, px', 0.0, 3.0, cv2.COLORMAP_INFERNO)


@dataclass(frozen=True)
class SheetRow:
    """One frame of a contact sheet.

    Attributes:
        caption: A line above the pictures.
        left: (H, W, 3) uint8 RGB left image.
        depth: (H, W) metres, NaN where there is none.
        confidence: (H, W) in [0, 1].
        error_px: (H, W) absolute disparity error, NaN where unknown; None without ground truth.
    """

    caption: str
    left: RgbImage
    depth: NDArray[np.floating]
    confidence: NDArray[np.floating]
    error_px: NDArray[np.floating] | None = None


def contact_sheet(title: str, rows: Sequence[SheetRow], picture_width: int = 400) -> RgbImage:
    """Return one picture: a row a frame, left image, depth, confidence and error side by side.

    The error column is there when any row has one. Colour scales are shared by all rows and
    drawn at the foot.
    """
    # What is not trusted, the sky above all, would stretch the scale over thousands of metres.
    trusted = [row.depth[row.confidence >= TRUSTED_CONFIDENCE] for row in rows]
    scale = depth_scale(trusted)
    with_error = any(row.error_px is not None for row in rows)
    gap = 8
    strips = [_title_strip(title, with_error, picture_width, gap)]
    for row in rows:
        pictures = [row.left, scale.colors(row.depth), CONFIDENCE_SCALE.colors(row.confidence)]
        if with_error:
            error = row.error_px if row.error_px is not None else np.full(row.depth.shape, np.nan)
            pictures.append(ERROR_SCALE.colors(error))
        body = side_by_side([_to_width(p, picture_width) for p in pictures], gap)
        caption = np.full((26, body.shape[1], 3), PAPER_COLOR, np.uint8)
        draw_text(caption, row.caption, (gap, 18), 0.46)
        strips += [caption, body]
    legends = [
        np.full((58, picture_width, 3), PAPER_COLOR, np.uint8),
        scale.bar(picture_width, 'no estimate'),
        CONFIDENCE_SCALE.bar(picture_width),
    ]
    if with_error:
        legends.append(ERROR_SCALE.bar(picture_width, 'no estimate or truth'))
    strips.append(side_by_side(legends, gap))
    return np.concatenate(strips)


def _title_strip(title: str, with_error: bool, picture_width: int, gap: int) -> RgbImage:
    names = ['left image', 'depth', 'confidence', *(['error'] if with_error else [])]
    width = len(names) * picture_width + (len(names) + 1) * gap
    strip = np.full((58, width, 3), PAPER_COLOR, np.uint8)
    draw_text(strip, title, (gap, 24), 0.62)
    for index, name in enumerate(names):
        draw_text(strip, name, (gap + index * (picture_width + gap), 50), 0.5)
    return strip


def render_cloud(
    points: NDArray[np.floating],
    colors: NDArray[np.uint8],
    eye: NDArray[np.floating],
    target: NDArray[np.floating],
    *,
    up: NDArray[np.floating] | tuple[float, float, float] = (0.0, 0.0, 1.0),
    size: tuple[int, int] = (1280, 720),
    field_of_view_deg: float = 60.0,
    point_size_m: float = 0.012,
) -> RgbImage:
    """Return a picture of a cloud, near points in front of far ones.

    Args:
        points: (N, 3), metres.
        colors: (N, 3) uint8 RGB.
        eye: Where the viewer stands, in the frame of the points.
        target: Where the viewer looks.
        up: Direction that points upwards in the picture.
        size: Width and height, pixels.
        field_of_view_deg: Horizontal.
        point_size_m: Edge of the square that stands for a point.
    """
    width, height = size
    rotation = _look_at(np.asarray(eye, float), np.asarray(target, float), np.asarray(up, float))
    local = (np.asarray(points, float) - eye) @ rotation.T
    focal = 0.5 * width / math.tan(math.radians(field_of_view_deg) / 2)
    in_front = local[:, 2] > 0.05
    local, colors = local[in_front], colors[in_front]
    columns = np.rint(focal * local[:, 0] / local[:, 2] + (width - 1) / 2).astype(int)
    rows = np.rint(focal * local[:, 1] / local[:, 2] + (height - 1) / 2).astype(int)
    edges = np.clip(np.ceil(focal * point_size_m / local[:, 2]), 1, 15).astype(int)
    image = np.full((height, width, 3), SPACE_COLOR, np.uint8)
    nearest = np.full(height * width, np.inf)
    flat = image.reshape(-1, 3)
    for edge in np.unique(edges):
        chosen = edges == edge
        for down in range(edge):
            for right in range(edge):
                _splat(
                    flat,
                    nearest,
                    columns[chosen] + right - edge // 2,
                    rows[chosen] + down - edge // 2,
                    local[chosen, 2],
                    colors[chosen],
                    width,
                )
    return image


def _splat(
    flat: NDArray[Any],
    nearest: NDArray[Any],
    columns: NDArray[Any],
    rows: NDArray[Any],
    depth: NDArray[Any],
    colors: NDArray[Any],
    width: int,
) -> None:
    """Write one pixel for each point where it is the nearest so far."""
    height = len(nearest) // width
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    index = (rows * width + columns)[inside]
    depth, colors = depth[inside], colors[inside]
    closer = depth < nearest[index]
    index, depth, colors = index[closer], depth[closer], colors[closer]
    # Of several points in one pixel, the last assignment stays: let it be the nearest.
    order = np.argsort(-depth, kind='stable')
    nearest[index[order]] = depth[order]
    flat[index[order]] = colors[order]


def _look_at(eye: NDArray[Any], target: NDArray[Any], up: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rotation into a camera (x right, y down, z forward) that looks at `target`."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def draw_text(image: RgbImage, text: str, origin: tuple[int, int], size: float) -> None:
    """Write one line of ASCII text; `origin` is the left end of its base line (x, y)."""
    cv2.putText(image, text, origin, FONT, size, INK_COLOR, 1, cv2.LINE_AA)


def _text_width(text: str, size: float) -> int:
    return cv2.getTextSize(text, FONT, size, 1)[0][0]


def _to_width(image: RgbImage, width: int) -> RgbImage:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    smaller = width < image.shape[1]
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def side_by_side(pictures: Sequence[RgbImage], gap: int) -> RgbImage:
    """Return pictures of one height beside each other, `gap` pixels between and around."""
    height = pictures[0].shape[0]
    spacer = np.full((height, gap, 3), PAPER_COLOR, np.uint8)
    columns = [spacer]
    for picture in pictures:
        columns += [picture, spacer]
    return np.concatenate(columns, axis=1)


def _round_step(step: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    for factor in ROUND_STEPS:
        if factor * power >= step * (1 - 1e-9):
            return factor * power
    return 10 * power


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [factor * 10.0**power for power in powers for factor in ROUND_STEPS]
    return [value for value in candidates if low * 0.999 <= value <= high * 1.001]
