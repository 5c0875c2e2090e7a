"""Real ground: elevation models as terrain, with synthetic detail below their resolution.

GeoTIFF or whatever else GDAL reads (LOLA and LROC NAC products, which you download yourself), or
NumPy with metres per cell. World frame of the terrain: the chosen centre is the origin, x and y
are the projection's easting and northing, z is measured from the ground at the centre, at right
angles to the sphere there: far ground sinks below the horizon as it does on the Moon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import math
from pathlib import Path
from typing import Any
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import mapped_array
from lunar_stereo_recon.limits import MAX_DEM_CELLS, MAX_HEIGHT_M
from lunar_stereo_recon.simulation.splines import spline_weights
from lunar_stereo_recon.simulation.terrain import make_terrain, Terrain
from lunar_stereo_recon.simulation.terrain_config import FloatGrid, TerrainConfig

# The IAU's sphere of the Moon, for latitude and longitude.
_MOON_RADIUS_M = 1_737_400
_MOON = f'+proj=longlat +R={_MOON_RADIUS_M} +no_defs'
# Waves that a model cannot hold: shorter than three of its cells.
_RESOLVED_CELLS = 3.0
# Coarser grids that are added while the model reaches farther than the terrain's configuration.
_FAR_CELLS, _FAR_RATIO = 512, 8


@dataclass(frozen=True)
class Dem:
    """An elevation model, north up.

    Attributes:
        heights: (H, W) metres, row 0 in the north; NaN in holes.
        cell_m: Distance of neighbouring heights, metres.
        latitude_deg, longitude_deg: Of its middle, east positive; NaN where not known.
        north_deg: Direction of true north at its middle, counterclockwise from x; 90 where the
            grid's north is true north.
        source: Where it comes from, for messages.
    """

    heights: FloatGrid
    cell_m: float
    latitude_deg: float = math.nan
    longitude_deg: float = math.nan
    north_deg: float = 90.0
    source: str = 'elevation model'

    def __post_init__(self) -> None:
        if self.heights.ndim != 2 or min(self.heights.shape) < 4:
            raise InputError(f'{self.source}: shape {self.heights.shape}; (H, W) is needed')
        if not (math.isfinite(self.cell_m) and self.cell_m > 0):
            raise InputError(f'{self.source}: {self.cell_m} metres per cell; more is needed')
        if bool(np.any(np.abs(self.heights) > MAX_HEIGHT_M)):
            raise InputError(
                f'{self.source}: heights to {np.nanmax(np.abs(self.heights)):g} m; at most '
                f'{MAX_HEIGHT_M:g} are read, and holes are NaN or the no-data value'
            )

    @property
    def half_size_m(self) -> float:
        """Return how far the model reaches from its middle on each side, metres."""
        return 0.5 * (min(self.heights.shape) - 1) * self.cell_m


def read_dem(
    path: str | Path,
    cell_m: float | None = None,
    center_m: tuple[float, float] = (0.0, 0.0),
    reach_m: float = 50_000.0,
) -> Dem:
    """Return the part of an elevation model around a place.

    Args:
        path: `.npy` (H, W) metres, north up, or a raster that GDAL reads.
        cell_m: Metres per cell; needed for `.npy`, else it replaces what the file says.
        center_m: Place east and north of the model's middle, metres.
        reach_m: Half of the largest side that is read.

    Raises:
        InputError: The file cannot be read, has no scale, is not projected in metres and north
            up, or the place is not in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'no elevation model at {path}')
    for name, value in (('metres per cell', cell_m), ('metres of reach', reach_m)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f'{path}: {value} {name}; a positive number is needed')
    if not all(map(math.isfinite, center_m)):
        raise InputError(f'{path}: {center_m} is not a place; metres east and north are needed')
    if path.suffix == '.npy':
        return _read_numpy(path, cell_m, center_m, reach_m)
    return _read_raster(path, cell_m, center_m, reach_m)


def dem_terrain(dem: Dem, config: TerrainConfig) -> Terrain:
    """Return a terrain whose shape above the model's resolution is the model's.

    Rocks, and waves and craters too small for the model, follow from the configuration; its tilt
    is not used. Grids that reach beyond the model are left out, and where the model reaches
    farther, coarser grids are added, up to its edge.

    Raises:
        InputError: The model is smaller than the finest grid, or has holes where it is used.
    """
    config = _fitted(config, dem)
    ground = _sampled(dem, 2, dem.cell_m)[1, 1]

    def relief(k: int) -> FloatGrid:
        cells, cell_m = config.cells[k], config.cell_sizes_m[k]
        squared = ((np.arange(cells + 1) - 0.5 * cells) * cell_m) ** 2
        drop = (squared[:, None] + squared[None, :]) / (2 * _MOON_RADIUS_M)
        return (_sampled(dem, cells, cell_m) - ground - drop).astype(np.float32)

    return make_terrain(config, relief)


def _read_numpy(
    path: Path, cell_m: float | None, center_m: tuple[float, float], reach_m: float
) -> Dem:
    if cell_m is None:
        raise InputError(f'{path} has no scale; metres per cell are needed')
    heights = mapped_array(path, 'elevation model')
    if heights.ndim != 2 or heights.dtype.kind not in 'fiu':
        raise InputError(f'{path}: {heights.dtype} {heights.shape}; (H, W) numbers are needed')
    rows, columns = _window(heights.shape, cell_m, center_m, reach_m, path)
    return Dem(heights[rows, columns].astype(np.float32), cell_m, source=str(path))


def _read_raster(
    path: Path, cell_m: float | None, center_m: tuple[float, float], reach_m: float
) -> Dem:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.windows import Window

    try:
        with warnings.catch_warnings():
            # A raster without a place is refused below, in words.
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            raster = rasterio.open(path)
        with raster:
            cell_m = _raster_scale(raster, path) if cell_m is None else cell_m
            shape = raster.height, raster.width
            rows, columns = _window(shape, cell_m, center_m, reach_m, path)
            part = raster.read(1, window=Window.from_slices(rows, columns), masked=True)
            heights = part.astype(np.float32).filled(np.nan)
            heights = heights * np.float32(raster.scales[0]) + np.float32(raster.offsets[0])
            place = _place_on_moon(raster, rows, columns)
    except RasterioError as error:
        raise InputError(f'{path}: GDAL cannot read it: {error}') from error
    return Dem(heights, cell_m, *place, source=str(path))


def _raster_scale(raster: Any, path: Path) -> float:
    """Return metres per cell of a raster that is projected, north up and has square cells."""
    step = raster.transform
    if raster.crs is None or step.is_identity:
        raise InputError(f'{path} has no scale; metres per cell are needed')
    if not raster.crs.is_projected:
        raise InputError(
            f'{path} is in degrees, not projected in metres; `gdalwarp -t_srs` projects it'
        )
    if step.b or step.d or step.a <= 0 or abs(step.a + step.e) > 1e-6 * step.a:
        raise InputError(
            f'{path}: cells of {step.a:g} by {-step.e:g}, turned by {step.b:g}, {step.d:g}; '
            'square cells, north up, are needed'
        )
    return step.a * raster.crs.linear_units_factor[1]


def _place_on_moon(raster: Any, rows: slice, columns: slice) -> tuple[float, float, float]:
    """Return latitude, longitude and the direction of true north at the middle of a window."""
    from rasterio.crs import CRS
    from rasterio.warp import transform

    if raster.crs is None:
        return math.nan, math.nan, 90.0
    moon = CRS.from_proj4(_MOON)
    column, row = 0.5 * (columns.start + columns.stop), 0.5 * (rows.start + rows.stop)
    x, y = raster.xy(row - 0.5, column - 0.5)
    (longitude,), (latitude,) = transform(raster.crs, moon, [x], [y])
    # Some metres towards the pole that is farther away, where north is still a direction.
    step = -1e-3 if latitude > 0 else 1e-3
    (there_x,), (there_y,) = transform(moon, raster.crs, [longitude], [latitude + step])
    north = math.degrees(math.atan2((there_y - y) / step, (there_x - x) / step)) % 360.0
    return latitude, longitude, north


def _window(
    shape: tuple[int, ...],
    cell_m: float,
    center_m: tuple[float, float],
    reach_m: float,
    path: Path,
) -> tuple[slice, slice]:
    """Return the largest square of cells around a place that is inside the model and `reach`."""
    height, width = shape
    row = 0.5 * (height - 1) - center_m[1] / cell_m
    column = 0.5 * (width - 1) + center_m[0] / cell_m
    inside = min(row, column, height - 1 - row, width - 1 - column)
    half = math.floor(min(inside, reach_m / cell_m))
    if half < 2:
        raise InputError(
            f'{path}: {center_m[0]:g} m east and {center_m[1]:g} m north of its middle is outside '
            f'or at the edge; it is {width * cell_m:g} by {height * cell_m:g} m'
        )
    cells = (2 * half + 1) ** 2
    if cells > MAX_DEM_CELLS:
        raise InputError(
            f'{path}: {2 * half * cell_m:g} m of it are {cells} cells; at most {MAX_DEM_CELLS} '
            'are read: make it smaller with `gdalwarp -tr`'
        )
    first_row, first_column = round(row) - half, round(column) - half
    return (
        slice(max(first_row, 0), min(first_row + 2 * half + 1, height)),
        slice(max(first_column, 0), min(first_column + 2 * half + 1, width)),
    )


def _fitted(config: TerrainConfig, dem: Dem) -> TerrainConfig:
    """Return the configuration with grids as far as the model reaches."""
    grids = [
        (cells, size)
        for cells, size in zip(config.cells, config.cell_sizes_m, strict=True)
        if 0.5 * cells * size <= dem.half_size_m
    ]
    if not grids:
        raise InputError(
            f'{dem.source} reaches {dem.half_size_m:g} m from the place; the finest grid needs '
            f'{0.5 * config.cells[0] * config.cell_sizes_m[0]:g} m'
        )
    while 0.5 * _FAR_CELLS * _FAR_RATIO * grids[-1][1] <= dem.half_size_m:
        grids.append((_FAR_CELLS, _FAR_RATIO * grids[-1][1]))
    cells, sizes = zip(*grids, strict=True)
    below = min(_RESOLVED_CELLS * dem.cell_m, config.detail_below_m)
    return replace(config, cells=cells, cell_sizes_m=sizes, detail_below_m=below, tilt_deg=0.0)


def _sampled(dem: Dem, cells: int, cell_m: float) -> FloatGrid:
    """Return the model's heights (cells + 1, cells + 1) at the vertices of a grid, south first.

    Raises:
        InputError: There are holes where the grid is.
    """
    heights, step, middle = _averaged(dem, cell_m)
    at = (np.arange(cells + 1) - 0.5 * cells) * cell_m / step
    # Four heights belong to each point; at the edge the outermost ones serve twice.
    rows, columns = np.clip(middle[0] - at, 0, None), np.clip(middle[1] + at, 0, None)
    first_row, first_column = (max(math.floor(v.min()) - 8, 0) for v in (rows, columns))
    last_row, last_column = (math.ceil(v.max()) + 10 for v in (rows, columns))
    part = heights[first_row:last_row, first_column:last_column].astype(np.float64)
    holes = ~np.isfinite(part)
    if holes.any():
        row, column = np.argwhere(holes)[0]
        raise InputError(
            f'{dem.source}: {holes.sum()} of {holes.size} heights below the terrain are holes, '
            f'{(column + first_column - middle[1]) * step:.0f} m east and '
            f'{(middle[0] - row - first_row) * step:.0f} m north of the place for example; '
            'fill them (gdal_fillnodata) or choose another place'
        )
    # A cubic B-spline through the heights has no kinks in slope or curvature, which low sun would
    # show as ripples with the period of the model's cells.
    spline = np.linalg.solve(_spline_matrix(part.shape[0]), part)
    spline = np.linalg.solve(_spline_matrix(part.shape[1]), spline.T).T
    by_row = spline_weights(rows - first_row, part.shape[0])
    by_column = spline_weights(columns - first_column, part.shape[1])
    return (by_row @ spline @ by_column.T).astype(np.float32)


def _averaged(dem: Dem, cell_m: float) -> tuple[FloatGrid, float, tuple[float, float]]:
    """Return heights, their distance and where the model's middle is (row, column).

    They are averaged where a grid is coarser than the model.
    """
    factor = max(math.floor(cell_m / dem.cell_m), 1)
    height, width = (size // factor for size in dem.heights.shape)
    part = dem.heights[: height * factor, : width * factor]
    if factor > 1:
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    row, column = (((size - 1) / 2 - (factor - 1) / 2) / factor for size in dem.heights.shape)
    return part, factor * dem.cell_m, (row, column)


def _spline_matrix(count: int) -> NDArray[np.float64]:
    """Return (N, N): heights at the knots from coefficients of a cubic B-spline."""
    matrix = np.diag(np.full(count, 4 / 6))
    matrix += np.diag(np.full(count - 1, 1 / 6), 1) + np.diag(np.full(count - 1, 1 / 6), -1)
    matrix[0, 0] = matrix[-1, -1] = 5 / 6
    return matrix
