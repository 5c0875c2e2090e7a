"""Plots of a few lines or points, drawn without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math

import cv2
import numpy as np

from lunar_stereo_recon.visualize import draw_text, INK_COLOR, PAPER_COLOR, RgbImage

SIZE = (640, 440)
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 58, 56
LEGEND_LINE = 20
GRID_COLOR = (222, 222, 224)
COLORS = ((31, 98, 176), (196, 78, 42), (60, 140, 70), (120, 90, 160))


@dataclass(frozen=True)
class Series:
    """Points of a plot.

    Attributes:
        label: For the legend.
        x, y: Coordinates.
        line: Joined by a line instead of drawn as dots.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    line: bool = False


def draw_plot(
    title: str, x_label: str, y_label: str, series: Sequence[Series], least: float = 0.0
) -> RgbImage:
    """Return a plot with axes from `least` up to a round number above the largest value."""
    # The legend stands above the axes: nowhere in them is there always room.
    top = TOP + LEGEND_LINE * len(series)
    width, height = SIZE[0], SIZE[1] + top
    image = np.full((height, width, 3), PAPER_COLOR, np.uint8)
    x_ticks = _ticks(least, max(max(line.x) for line in series))
    y_ticks = _ticks(least, max(max(line.y) for line in series))

    def place(x: float, y: float) -> tuple[int, int]:
        across = (x - least) / (x_ticks[-1] - least)
        up = (y - least) / (y_ticks[-1] - least)
        return (
            round(LEFT + across * (width - LEFT - RIGHT)),
            round(height - BOTTOM - up * (height - top - BOTTOM)),
        )

    for tick in x_ticks:
        foot = place(tick, least)
        cv2.line(image, foot, place(tick, y_ticks[-1]), GRID_COLOR, 1)
        draw_text(image, f'{tick:g}', (foot[0] - 10, foot[1] + 18), 0.4)
    for tick in y_ticks:
        foot = place(least, tick)
        cv2.line(image, foot, place(x_ticks[-1], tick), GRID_COLOR, 1)
        draw_text(image, f'{tick:g}', (foot[0] - 42, foot[1] + 4), 0.4)
    for number, line in enumerate(series):
        color = COLORS[number % len(COLORS)]
        points = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
        if line.line:
            cv2.polylines(image, [np.array(points, np.int32)], False, color, 1, cv2.LINE_AA)
        else:
            for point in points:
                cv2.circle(image, point, 4, color, -1, cv2.LINE_AA)
        legend = (26, 46 + LEGEND_LINE * number)
        cv2.circle(image, (legend[0] - 8, legend[1] - 4), 4, color, -1, cv2.LINE_AA)
        draw_text(image, line.label, (legend[0] + 4, legend[1]), 0.42)
    origin = place(least, least)
    cv2.line(image, origin, place(x_ticks[-1], least), INK_COLOR, 1)
    cv2.line(image, origin, place(least, y_ticks[-1]), INK_COLOR, 1)
    draw_text(image, title, (14, 24), 0.52)
    draw_text(image, y_label, (14, top - 8), 0.4)
    draw_text(image, x_label, (width // 2 - 60, height - 14), 0.42)
    return image


def _ticks(least: float, largest: float) -> list[float]:
    """Return four to eight round values from `least` to at least `largest`."""
    span = max(largest - least, 1e-6)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= 7.5)
    return [least + step * index for index in range(math.ceil(span / step - 1e-9) + 1)]
