"""The map of the ground of a recorded drive: its picture, and its figures against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.bags.reader import BagFrame
from lunar_stereo_recon.datatypes import FloatImage, Reconstruction, StereoCalibration
from lunar_stereo_recon.evaluation.terrain_scores import hazard_figures, height_error
from lunar_stereo_recon.files.results import write_png
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.terrain import (
    depth_deviation_m,
    TerrainLayers,
    TerrainMap,
    TerrainOptions,
)
from lunar_stereo_recon.visualize import (
    ColorScale,
    draw_text,
    height_scale,
    PAPER_COLOR,
    RgbImage,
    side_by_side,
)

# What true depths are trusted with: they are exact, but cells are not points.
TRUE_SIGMA_M = 0.002
_PANEL_PX = 300
_GAP_PX = 8
_TITLE_PX = 30


class TerrainDrive:
    """Maps the posed frames of a recording as `terrain_node` does.

    Args:
        options: Of the map; where the poses are exact, their errors are best left out.
    """

    def __init__(self, options: TerrainOptions | None = None) -> None:
        self._map = TerrainMap(options or TerrainOptions())
        self._truth = TerrainMap(self._map.options)
        self._start_ns: int | None = None
        self._with_truth = 0

    def add(
        self,
        depth: FloatImage,
        confidence: FloatImage,
        sigma_m: FloatImage | None,
        camera: StereoCalibration,
        map_from_camera: NDArray[np.float64] | None,
        stamp_ns: int,
        true_depth: FloatImage | None,
    ) -> None:
        """Add a frame; without a pose, or with a stamp before the last one, it is left out.

        Args:
            depth: (H, W) metres; NaN invalid.
            confidence: (H, W) in [0, 1].
            sigma_m: (H, W) standard deviation of the depth, metres; None takes what the
                confidence says.
            camera: Calibration of the images.
            map_from_camera: (4, 4) pose of the left camera, the map's z up; None unknown.
            stamp_ns: Time of the frame.
            true_depth: (H, W) metres, NaN unknown; None where the frame has none.
        """
        if map_from_camera is None:
            return
        start_ns = stamp_ns if self._start_ns is None else self._start_ns
        time_s = 1e-9 * (stamp_ns - start_ns)
        if self._start_ns is not None and time_s < self._map.time_s:
            return
        self._start_ns = start_ns
        place = map_from_camera[:3, :3], map_from_camera[:3, 3], time_s
        points, sure = points_from_depth(depth, camera).reshape(-1, 3), confidence.reshape(-1)
        sigma: NDArray[Any] | None = sigma_m
        if sigma is None:
            sigma = depth_deviation_m(sure, points[:, 2], camera.fx * camera.baseline_m)
        self._map.add(points, sigma.reshape(-1), sure, *place)
        # Without truth the map of it only moves along.
        true = np.full_like(depth, np.nan) if true_depth is None else true_depth
        self._with_truth += true_depth is not None
        ones: FloatImage = np.ones(len(points), np.float32)
        self._truth.add(
            points_from_depth(true, camera).reshape(-1, 3), TRUE_SIGMA_M * ones, ones, *place
        )

    def add_result(self, result: Reconstruction, frame: BagFrame) -> None:
        """Add the result of a frame of a bag."""
        self.add(
            result.depth,
            result.confidence,
            result.depth_sigma_m,
            result.calibration,
            None if frame.pose is None else frame.pose.matrix,
            frame.stamp_ns,
            frame.depth(),
        )

    def figures(self) -> dict[str, Any]:
        """Return figures of the map for JSON, none where no frame has a pose."""
        if self._map.empty:
            return {}
        layers = self._map.layers()
        figures: dict[str, Any] = {'map_cells': int(np.isfinite(layers.height).sum())}
        if self._with_truth:
            truth = self._truth.layers()
            figures['map_height_error'] = height_error(layers, truth)
            figures['map_hazards'] = hazard_figures(layers, truth, self._map.options.hazard)
        return figures

    def picture(self) -> RgbImage | None:
        """Return the picture of the map; None where no frame has a pose."""
        return None if self._map.empty else terrain_picture(self._map.layers())

    def write(self, directory: Path) -> dict[str, Any]:
        """Write `map.png` where there is a map; return its figures."""
        picture = self.picture()
        if picture is not None:
            write_png(directory / 'map.png', picture)
        return self.figures()


def terrain_picture(layers: TerrainLayers) -> RgbImage:
    """Return height, deviation, slope and cost of the known ground, x to the right, y upwards."""
    known = np.isfinite(layers.height)
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return np.full((_TITLE_PX, 4 * _PANEL_PX, 3), PAPER_COLOR, np.uint8)
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cost = np.where(layers.cost < 0, np.nan, layers.cost.astype(np.float32))
    high = float(np.nanpercentile(layers.deviation, 95))
    panels = (
        (height_scale(layers.height[known]), layers.height),
        (ColorScale('deviation, m', 0.0, max(high, 0.01), cv2.COLORMAP_VIRIDIS), layers.deviation),
        (ColorScale('slope, degrees', 0.0, 30.0, cv2.COLORMAP_INFERNO), layers.slope),
        (ColorScale('cost (100: not drivable)', 0.0, 100.0, cv2.COLORMAP_TURBO), cost),
    )
    scale = max(1, _PANEL_PX // max(columns[-1] + 1 - columns[0], 1))
    pictures = []
    for colors, values in panels:
        picture = colors.colors(values[part][::-1])
        large = np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)
        width = max(large.shape[1], _PANEL_PX)
        paper = np.full((large.shape[0], width, 3), PAPER_COLOR, np.uint8)
        paper[:, : large.shape[1]] = large
        pictures.append(np.concatenate([paper, colors.bar(width, 'unknown')]))
    body = side_by_side(pictures, _GAP_PX)
    title = np.full((_TITLE_PX, body.shape[1], 3), PAPER_COLOR, np.uint8)
    size = ' x '.join(f'{layers.cell_m * len(each):.1f}' for each in (columns, rows))
    text = f'{size} m seen, cells of {layers.cell_m:g} m; x to the right, y upwards'
    draw_text(title, text, (_GAP_PX, 20), 0.5)
    return np.concatenate([title, body])
