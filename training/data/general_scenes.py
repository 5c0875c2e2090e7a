"""General scenes: stereo pairs of random things in random places, with exact disparity.

A student that is shown only ground learns that everything is ground. Here shapes of all kinds
(polygons, blobs, sticks of 1.5 px and up, frames with holes, fences, rocks, boxes) stand on and
above ground, in rooms and in open space, in any direction. Each surface is a texture in the
columns of the right view and a disparity over the left one; the nearer surface hides the farther
one in each view by itself, so that disparities are exact and occlusions are true.

Written by `python -m training general-scenes`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
import functools
import json
from multiprocessing import get_context
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError
from training.data.texture_pairs import regolith_texture, spectral_noise

WIDTH, HEIGHT = 608, 448
# Seeds of the splits share nothing.
SPLITS = {'train': 0, 'calibration': 1, 'test': 2}
# Largest disparity of a scene, as shares of the width.
REACH = (0.04, 0.3)
# Only for what wants metres: disparities are drawn in pixels.
BASELINE_M = 0.3
# For `lunar-stereo bench`: no depth is too far to count, and what is in shadow is not known.
META = {'stratum': 'general', 'depth_limited': False, 'shadow_known': False}
# Columns that a window of a surface has to spare, for interpolation and borders.
_MARGIN = 8
_SUPERSAMPLING = 4
# Steeper along the row than this, a surface would hide parts of itself from the right view.
_STEEPEST = 0.6
_PHOTO_SIDES = (200, 1600)
_PHOTO_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
SEEN, HIDDEN, OUT_OF_FRAME = 0, 1, 2

# Half width, half height, a function that draws it on a canvas, and what kind it is.
Shape = tuple[float, float, Callable[[NDArray[Any], int, NDArray[Any]], None], str]


@dataclass
class Surface:
    """One surface over a window of the left view.

    Attributes:
        left, top: Column and row of the window's corner in the left view, pixels.
        disparity: (h, w) float32, pixels.
        cover: (h, w) float32 in [0, 1]: share of the pixel that the surface covers.
        shade: (h, w) float32: what its relief does to the light, 1 without any.
        stands: Whether it throws a shadow on what is behind it.
    """

    left: int
    top: int
    disparity: NDArray[Any]
    cover: NDArray[Any]
    shade: NDArray[Any]
    stands: bool = False


class Photographs:
    """Grey photographs of a folder, as textures."""

    def __init__(self, folder: Path | None) -> None:
        """List the images of a folder and below; None: no photographs.

        Raises:
            InputError: The folder holds no image.
        """
        self.paths: list[Path] = []
        if folder is not None:
            self.paths = sorted(
                path for path in folder.rglob('*') if path.suffix.lower() in _PHOTO_SUFFIXES
            )
            if not self.paths:
                raise InputError(f'{folder}: no .jpg, .png or .webp image in it or below')

    def draw(self, rng: np.random.Generator) -> NDArray[Any] | None:
        """Return a grey image (H, W) uint8, or None where there are no photographs."""
        for _ in range(8 if self.paths else 0):
            path = self.paths[rng.integers(len(self.paths))]
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            if image is not None and min(image.shape) >= _PHOTO_SIDES[0]:
                return image
        return None


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def photo_texture(
    rng: np.random.Generator, photo: NDArray[Any], height: int, width: int
) -> NDArray[Any]:
    """Return (height, width) float32 cut from a photograph, mirrored where it is too small."""
    scale = rng.uniform(0.5, 1.6)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=method)
    if rng.random() < 0.5:
        photo = photo[:, ::-1]
    if rng.random() < 0.3:
        photo = photo[::-1]
    rows = _mirrored(int(rng.integers(0, 2 * photo.shape[0])), height, photo.shape[0])
    columns = _mirrored(int(rng.integers(0, 2 * photo.shape[1])), width, photo.shape[1])
    texture = photo[np.ix_(rows, columns)].astype(np.float32) / 255
    return (texture - texture.mean()) * rng.uniform(0.5, 1.5) + np.float32(rng.uniform(0.2, 0.7))


def _mirrored(start: int, count: int, size: int) -> NDArray[Any]:
    place = (start + np.arange(count)) % (2 * size)
    return np.where(place < size, place, 2 * size - 1 - place)


def waves(rng: np.random.Generator, height: int, width: int) -> NDArray[Any]:
    """Return (height, width) float32 of a repetitive texture: stripes or a grid."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), _log_uniform(rng, 4, 50)
    phase = (columns * np.cos(angle) + rows * np.sin(angle)) * (2 * np.pi / period)
    pattern = np.sin(phase)
    if rng.random() < 0.5:
        across = (rows * np.cos(angle) - columns * np.sin(angle)) * (2 * np.pi / period)
        pattern = pattern * np.sin(across)
    if rng.random() < 0.5:
        pattern = np.sign(pattern)
    noise = spectral_noise(rng, height, width, 1.5)
    return 0.5 + 0.3 * rng.uniform(0.1, 1) * pattern + 0.03 * noise


def texture(
    rng: np.random.Generator, height: int, width: int, photographs: Photographs
) -> NDArray[Any]:
    """Return (height, width) float32 radiance, about 0 to 1.6."""
    kind = rng.random()
    photo = photographs.draw(rng) if kind < 0.5 else None
    if photo is not None:
        found = photo_texture(rng, photo, height, width)
    elif kind < 0.7:
        found = regolith_texture(rng, height, width).astype(np.float32)
        found /= np.percentile(found, 97) + 1e-6
    elif kind < 0.86:
        contrast = 0.18 * rng.uniform(0.1, 1.5)
        found = 0.5 + contrast * spectral_noise(rng, height, width, rng.uniform(0.8, 2.4))
    elif kind < 0.92:
        found = waves(rng, height, width)
    else:
        contrast = rng.uniform(0, 0.03)
        found = rng.uniform(0.05, 0.9) + contrast * spectral_noise(rng, height, width, 1.5)
    rows = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None]
    slope = rng.uniform(-0.4, 0.4, 2)
    lit = found * (1 + slope[0] * rows + slope[1] * columns)
    return (np.clip(lit, 0, 1.6) * rng.uniform(0.4, 1.2)).astype(np.float32)


def _outline(rng: np.random.Generator, radius: float) -> NDArray[Any]:
    """Return a closed curve about the origin, (N, 2) pixels: a polygon or a rounded blob."""
    corners = int(rng.integers(3, 12))
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    reach = radius * rng.uniform(0.5, 1.2, corners)
    points = reach * np.cos(angle) * rng.uniform(0.5, 1.6) + 1j * reach * np.sin(angle)
    if rng.random() < 0.5:
        spectrum = np.fft.fft(points) / corners
        share = np.fft.fftfreq(corners, 1 / corners)
        turn = np.linspace(0, 1, 60, endpoint=False)
        points = np.exp(2j * np.pi * turn[:, None] * share[None]) @ spectrum
    return np.stack([points.real, points.imag], axis=1)


def _drawn_cover(
    height: int, width: int, draw: Callable[[NDArray[Any], int], None]
) -> NDArray[Any]:
    """Return (height, width) float32 cover of what `draw(canvas, scale)` draws in white."""
    canvas = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    draw(canvas, _SUPERSAMPLING)
    cover = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return cover.astype(np.float32) / 255


class SceneMaker:
    """Draws the surfaces of one scene and puts both views together."""

    def __init__(
        self, rng: np.random.Generator, width: int, height: int, photographs: Photographs
    ) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.photographs = photographs
        self.reach = float(rng.uniform(*REACH)) * width
        angle = rng.uniform(0, 2 * np.pi)
        self.sun = np.array([np.cos(angle), np.sin(angle)], np.float32)
        self.shadows = rng.random() < 0.5
        self.left = np.zeros((height, width), np.float32)
        self.right = np.zeros_like(self.left)
        self.disparity = np.full_like(self.left, -1.0)
        self.disparity_right = np.full_like(self.left, -1.0)
        self.layer = np.zeros((height, width), np.int16)
        self.layer_right = np.zeros_like(self.layer)
        self.count = 0

    # -- backgrounds -----------------------------------------------------------------------

    def backgrounds(self) -> list[Surface]:
        """Return the surfaces that fill the view: ground and sky, a slanted wall or a room."""
        kind = self.rng.random()
        if kind < 0.45:
            return self._ground()
        if kind < 0.75:
            return [self._full(self._plane(self.rng.uniform(0.02, 0.45), 0.2))]
        return self._room()

    def _grid(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return rows and columns of the window that both views can see."""
        rows = np.arange(self.height, dtype=np.float32)[:, None]
        columns = np.arange(-_MARGIN, self.width + int(self.reach) + _MARGIN, dtype=np.float32)
        return rows, columns[None]

    def _full(self, disparity: NDArray[Any], cover: NDArray[Any] | None = None) -> Surface:
        rows, columns = self._grid()
        size = rows.size, columns.size
        disparity = np.broadcast_to(disparity, size)
        if self.rng.random() < 0.7:
            roughness = self.rng.uniform(0, 1.5)
            disparity = disparity + roughness * spectral_noise(self.rng, *size, 2.4)
        if cover is None:
            cover = np.ones(disparity.shape, np.float32)
        disparity = np.clip(disparity, 0, self.reach).astype(np.float32)
        return Surface(-_MARGIN, 0, disparity, cover, np.ones_like(disparity))

    def _plane(self, middle: float, tilt: float) -> NDArray[Any]:
        rows, columns = self._grid()
        across, down = self.rng.uniform(-tilt, tilt, 2)
        place = across * (columns / self.width - 0.5) + down * (rows / self.height - 0.5)
        return self.reach * (middle + place)

    def _ground(self) -> list[Surface]:
        rows, columns = self._grid()
        upright = self.rng.random() < 0.75
        down = rows / self.height if upright else 1 - rows / self.height
        horizon = self.rng.uniform(-0.4, 0.5)
        roll = self.rng.uniform(-0.15, 0.15)
        depth = (down - horizon + roll * (columns / self.width - 0.5)) / (1 - horizon)
        disparity = self.reach * self.rng.uniform(0.3, 1.0) * depth
        ground = self._full(disparity, (depth > 0).astype(np.float32))
        far = self._full(np.float32(self.rng.uniform(0, 0.03)) * self.reach + 0 * columns)
        return [far, ground]

    def _room(self) -> list[Surface]:
        rows, columns = self._grid()
        across, down = columns / self.width - 0.5, rows / self.height - 0.5
        surfaces = [self._full(self._plane(self.rng.uniform(0.05, 0.25), 0.05))]
        for direction in (down, -down, across, -across):
            if self.rng.random() < 0.6:
                start = self.rng.uniform(-0.1, 0.35)
                slope = self.rng.uniform(0.5, 1.6) * self.reach
                disparity = slope * (direction - start) + 0.1 * self.reach
                surfaces.append(self._full(disparity + 0 * (across + down)))
        return surfaces

    # -- things ----------------------------------------------------------------------------

    def thing(self, behind: NDArray[Any]) -> Surface | None:
        """Return a thing, or None where it would lie outside of the view.

        Args:
            behind: (H, W) px, the disparity of the background in the left view.
        """
        rng = self.rng
        centre_x = rng.uniform(-20, self.width + 0.5 * self.reach)
        centre_y = rng.uniform(-20, self.height + 20)
        radius = _log_uniform(rng, 4, 0.2 * self.width)
        row = int(np.clip(centre_y, 0, self.height - 1))
        column = int(np.clip(centre_x, 0, self.width - 1))
        stands = rng.random() < 0.65
        middle = behind[row, column] + rng.uniform(0.3, 0.25 * self.reach) * rng.random()
        if not stands:
            middle = rng.uniform(0, self.reach)
        extent_x, extent_y, draw, kind = self._shape(radius)
        left = max(int(centre_x - extent_x) - 2, -_MARGIN)
        right = min(int(centre_x + extent_x) + 3, self.width + int(self.reach) + _MARGIN)
        top, bottom = max(int(centre_y - extent_y) - 2, 0), int(centre_y + extent_y) + 3
        bottom = min(bottom, self.height)
        if right - left < 3 or bottom - top < 3:
            return None
        origin = np.array([centre_x - left, centre_y - top])
        cover = _drawn_cover(bottom - top, right - left, lambda c, s: draw(c, s, origin))
        if cover.max() < 0.5:
            return None
        rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
        across, down = rng.uniform(-0.12, 0.12), rng.uniform(-0.15, 0.15)
        disparity = middle + across * (columns - centre_x) + down * (rows - centre_y)
        shade = np.ones_like(disparity)
        if kind == 'solid' and rng.random() < 0.75:
            relief = self._relief(cover, columns - centre_x)
            disparity, shade = disparity + relief, self._lit(relief)
        elif rng.random() < 0.3 and min(cover.shape) > 8:
            disparity = disparity + rng.uniform(0, 0.8) * spectral_noise(
                rng, cover.shape[0], cover.shape[1], 2.4
            )
        disparity = np.clip(disparity, 0, self.reach).astype(np.float32)
        return Surface(left, top, disparity, cover, shade, stands)

    def _shape(self, radius: float) -> Shape:
        """Return half width, half height, a function that draws, and what kind it is."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.55:
            points = _outline(rng, radius)
            extent = np.abs(points).max(0)

            def filled(canvas: NDArray[Any], scale: int, origin: NDArray[Any]) -> None:
                corners = np.round((points + origin) * scale).astype(np.int32)
                cv2.fillPoly(canvas, [corners], 255)

            return extent[0], extent[1], filled, 'solid'
        if kind < 0.7:
            sides = 2 * radius, 2 * radius * rng.uniform(0.3, 1.5)
            box = cv2.boxPoints(((0, 0), sides, rng.uniform(0, 180)))
            hole = 0.0 if rng.random() < 0.5 else rng.uniform(0.3, 0.85)
            extent = np.abs(box).max(0)

            def draw(canvas: NDArray[Any], scale: int, origin: NDArray[Any]) -> None:
                for size, tone in ((1.0, 255), (hole, 0)):
                    corners = np.round((box * size + origin) * scale).astype(np.int32)
                    cv2.fillPoly(canvas, [corners], tone)

            return extent[0], extent[1], draw, 'flat' if hole else 'solid'
        return self._sticks(kind)

    def _sticks(self, kind: float) -> Shape:
        """Return sticks, poles and fences as `_shape` does."""
        rng = self.rng
        angle = rng.choice([rng.uniform(0, np.pi), np.pi / 2, 0.0], p=[0.5, 0.4, 0.1])
        length = rng.uniform(0.06, 0.8) * self.width
        thickness = _log_uniform(rng, 1.5, 14)
        number = 1 if kind < 0.92 else int(rng.integers(3, 12))
        step = thickness * rng.uniform(2, 6)
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        extent = np.abs(along) * length / 2 + np.abs(across) * (number * step + thickness)

        def draw(canvas: NDArray[Any], scale: int, origin: NDArray[Any]) -> None:
            for stick in range(number):
                middle = origin + across * step * (stick - (number - 1) / 2)
                ends = [middle + sign * along * length / 2 for sign in (-1, 1)]
                side = across * thickness / 2
                corners = [ends[0] - side, ends[0] + side, ends[1] + side, ends[1] - side]
                cv2.fillPoly(canvas, [np.round(np.array(corners) * scale).astype(np.int32)], 255)

        return extent[0], extent[1], draw, 'flat'

    def _relief(self, cover: NDArray[Any], across: NDArray[Any]) -> NDArray[Any]:
        """Return (h, w) px that a solid stands out of its plane: rock, dome or box."""
        rng = self.rng
        if rng.random() < 0.3:
            edge = rng.uniform(-0.5, 0.5) * np.abs(across).max()
            left, right = rng.uniform(0, 0.4, 2)
            beyond = across - edge
            return -left * np.maximum(-beyond, 0) - right * np.maximum(beyond, 0)
        inside = cv2.copyMakeBorder((cover > 0.5).astype(np.uint8), 1, 1, 1, 1, 0, value=0)
        distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
        depth = max(float(distance.max()), 1.0)
        relief = rng.uniform(0.05, 0.5) * depth * np.sqrt(np.clip(distance / depth, 0, 1) + 0.05)
        if rng.random() < 0.6 and min(cover.shape) > 8:
            relief = relief + 0.06 * depth * rng.random() * spectral_noise(
                rng, cover.shape[0], cover.shape[1], 2.2
            )
        relief = cv2.GaussianBlur(relief.astype(np.float32), (0, 0), 1.0)
        steepest = float(np.abs(np.gradient(relief, axis=1)).max())
        return relief * min(1.0, 0.8 * _STEEPEST / max(steepest, 1e-6))

    def _lit(self, relief: NDArray[Any]) -> NDArray[Any]:
        if self.rng.random() < 0.3 or min(relief.shape) < 3:
            return np.ones_like(relief, dtype=np.float32)
        slope_y, slope_x = np.gradient(relief)
        light = 1 + self.rng.uniform(1, 5) * (self.sun[0] * slope_x + self.sun[1] * slope_y)
        return np.clip(light, 0.03, 2.0).astype(np.float32)

    # -- both views ------------------------------------------------------------------------

    def put(self, surface: Surface) -> None:
        """Put a surface into both views, wherever it is nearer than what is there."""
        rng = self.rng
        self.count += 1
        disparity, cover = surface.disparity, surface.cover
        rows_count, columns_count = disparity.shape
        least, most = float(disparity.min()), float(disparity.max())
        start = int(np.floor(surface.left - most)) - _MARGIN
        size = columns_count + int(np.ceil(most - least)) + 2 * _MARGIN
        own = texture(rng, rows_count, size, self.photographs)
        rows, columns = np.mgrid[:rows_count, :columns_count].astype(np.float32)
        # What the left view sees at x is the texture at x - disparity, in right columns.
        place = columns + surface.left - disparity - start
        image = surface.shade * cv2.remap(
            own, place, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
        )
        lines = slice(surface.top, surface.top + rows_count)
        first, last = max(surface.left, 0), min(surface.left + columns_count, self.width)
        if first < last:
            part = slice(first - surface.left, last - surface.left)
            self._blend(
                (lines, slice(first, last)),
                (self.left, self.disparity, self.layer),
                (image[:, part], disparity[:, part], cover[:, part]),
            )
        first = max(int(np.floor(surface.left - most)) - 1, 0)
        last = min(int(np.ceil(surface.left + columns_count - least)) + 1, self.width)
        if first >= last:
            return
        rows, columns = np.mgrid[:rows_count, first:last].astype(np.float32)
        # The left column of a right one: x = x_right + disparity(x), a contraction.
        found = (
            columns
            - surface.left
            + cv2.remap(
                disparity,
                columns - surface.left,
                rows,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )
        for _ in range(12):
            there = cv2.remap(
                disparity, found, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            found = columns - surface.left + there
        # Beyond its window a surface that fills the view goes on, a thing ends.
        cover_right = cv2.remap(cover, found, rows, cv2.INTER_LINEAR, borderValue=0)
        shade_right = cv2.remap(
            surface.shade, found, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        image = shade_right * own[:, first - start : last - start]
        if rng.random() < 0.15:
            image = image * np.float32(rng.uniform(0.8, 1.25))
        self._blend(
            (lines, slice(first, last)),
            (self.right, self.disparity_right, self.layer_right),
            (image, there, cover_right),
        )

    def _blend(
        self,
        where: tuple[slice, slice],
        views: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
        new: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    ) -> None:
        """Blend image, disparity and cover into view, its disparity and its layer."""
        image, disparity, cover = new
        view, nearest, layer = (array[where] for array in views)
        share = cover * (disparity >= nearest)
        view += share * (image - view)
        own = share >= 0.5
        nearest[own] = disparity[own]
        layer[own] = self.count

    def cast_shadows(self, things: Sequence[Surface]) -> None:
        """Darken the background where things stand between it and the sun."""
        light = np.ones((self.height, self.width), np.float32)
        darkness = self.rng.uniform(0.02, 0.6)
        for thing in things:
            if not thing.stands:
                continue
            height = self.rng.uniform(0.2, 1.2) * thing.cover.shape[0]
            move = -self.sun * height
            shear = np.array([[1, 0, thing.left + move[0]], [0, 1, thing.top + move[1]]], float)
            cover = cv2.warpAffine(thing.cover, shear, (self.width, self.height))
            light = np.minimum(light, 1 - (1 - darkness) * cover)
        self.left *= light
        rows, columns = np.mgrid[: self.height, : self.width].astype(np.float32)
        self.right *= cv2.remap(
            light, columns + self.disparity_right, rows, cv2.INTER_LINEAR, borderValue=1.0
        )

    def highlights(self) -> None:
        """Add reflections of the light that the two views see in unlike places."""
        rows, columns = np.mgrid[: self.height, : self.width].astype(np.float32)
        for _ in range(self.rng.integers(1, 4)):
            row, column = self.rng.uniform(0, self.height), self.rng.uniform(0, self.width)
            size = self.rng.uniform(3, 30)
            strength = self.rng.uniform(0.2, 1.0)
            for view in (self.left, self.right):
                place = (
                    column
                    + self.rng.uniform(-1, 1) * size
                    - 0.3 * self.reach * (view is self.right)
                )
                distance = (columns - place) ** 2 + (rows - row) ** 2
                view += strength * np.exp(-distance / (2 * size**2))

    def sample(self) -> dict[str, NDArray[Any]]:
        """Return the pair with its truth; see `general_scene`."""
        rng = self.rng
        blur = rng.uniform(0.3, 0.9)
        rows, columns = np.mgrid[: self.height, : self.width].astype(np.float32)
        landing = columns - self.disparity
        seen_there = cv2.remap(
            self.layer_right.astype(np.float32), np.round(landing), rows, cv2.INTER_NEAREST
        )
        occlusion = np.where(seen_there != self.layer, HIDDEN, SEEN)
        occlusion = np.where(landing < 0, OUT_OF_FRAME, occlusion).astype(np.uint8)
        bright = max(float(np.percentile(self.left, 96)), 0.05)
        gain, noise = rng.uniform(0.5, 0.95) / bright, rng.uniform(0, 2.5)
        views = []
        for view in (self.left, self.right):
            view = cv2.GaussianBlur(np.maximum(view, 0), (0, 0), blur) * gain
            grain = rng.normal(0, noise, view.shape) * np.sqrt(np.clip(view, 0.05, 1))
            views.append(np.clip(view * 255 + grain, 0, 255).round().astype(np.uint8))
        focal = 1.0 * self.width
        middle = (self.width - 1) / 2, (self.height - 1) / 2
        return {
            'left': views[0],
            'right': views[1],
            'disparity': self.disparity,
            'disparity_right': self.disparity_right,
            'shadow': np.zeros(self.left.shape, bool),
            'occlusion': occlusion,
            'baseline_m': np.array(BASELINE_M),
            'intrinsics': np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1]]),
        }


def general_scene(
    seed: int,
    number: int,
    photographs: Photographs,
    split: str = 'train',
    width: int = WIDTH,
    height: int = HEIGHT,
) -> dict[str, NDArray[Any]]:
    """Return one scene; a pure function of its arguments.

    Returns:
        `left`, `right` (H, W) uint8; `disparity` of the left and `disparity_right` of the right
        view, (H, W) float32 px; `occlusion` (H, W) uint8: 0 seen by both, 1 hidden from the right
        view, 2 outside of it; `shadow` (H, W) bool, False; `intrinsics` (3, 3) px;
        `baseline_m`.
    """
    maker = SceneMaker(
        np.random.default_rng([seed, SPLITS[split], number]), width, height, photographs
    )
    for surface in maker.backgrounds():
        maker.put(surface)
    count = int(_log_uniform(maker.rng, 2, 40))
    found = (maker.thing(maker.disparity) for _ in range(count))
    things = [thing for thing in found if thing is not None]
    if maker.shadows:
        maker.cast_shadows(things)
    for thing in things:
        maker.put(thing)
    if maker.rng.random() < 0.1:
        maker.highlights()
    return maker.sample()


@functools.cache
def _photographs(folder: Path | None) -> Photographs:
    return Photographs(folder)


def _write(job: tuple[Path, int, int, Path | None, str]) -> int:
    out, number, seed, photos, split = job
    cv2.setNumThreads(1)
    path = out / f'{number:06d}.npz'
    if not path.exists():
        partial = path.with_suffix('.partial')
        with partial.open('wb') as file:
            arrays: dict[str, Any] = general_scene(seed, number, _photographs(photos), split)
            np.savez(file, **arrays, meta=np.array(json.dumps(META)))
        os.replace(partial, path)
    return number


def write_scenes(
    out: Path, count: int, seed: int, photos: Path | None, split: str, workers: int
) -> Generator[int, None, None]:
    """Write what is missing of `count` scenes to `out`/NNNNNN.npz; yield each number."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(out, number, seed, photos, split) for number in range(count)]
    with get_context('spawn').Pool(workers) as pool:
        yield from pool.imap_unordered(_write, jobs, chunksize=8)
