"""Files of a map: GeoTIFF of the elevations (rasterio), LAZ of the points (laspy)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.elevation import ElevationMap
from lunar_stereo_recon.evaluation.fusion import FusedCloud
from lunar_stereo_recon.files.atomic import atomic_path

BANDS = (
    ('height', 'metre'),
    ('deviation', 'metre'),
    ('slope', 'degree'),
    ('count', ''),
    ('confidence', ''),
)
LAZ_STEP_M = 0.001


def write_geotiff(path: Path, elevation: ElevationMap, crs: str | None = None) -> None:
    """Write the bands height, deviation, slope, count, confidence as float32; NaN is no data.

    Args:
        path: File to write.
        elevation: The map.
        crs: Coordinate reference system in a form that GDAL knows (EPSG:..., IAU_2015:..., WKT);
            without one the coordinates are metres in the frame of the poses.

    Raises:
        InputError: GDAL does not know the system.
    """
    import rasterio
    from rasterio.crs import CRS
    from rasterio.errors import CRSError
    from rasterio.transform import from_origin

    try:
        system = CRS.from_user_input(crs) if crs else None
    except CRSError as error:
        raise InputError(f'{crs} is not a coordinate reference system: {error}') from error
    height, width = elevation.height.shape
    with atomic_path(path) as unfinished:
        with rasterio.open(
            unfinished,
            'w',
            driver='GTiff',
            height=height,
            width=width,
            count=len(BANDS),
            dtype='float32',
            nodata=float('nan'),
            crs=system,
            transform=from_origin(
                elevation.west_m, elevation.north_m, elevation.cell_m, elevation.cell_m
            ),
            compress='deflate',
        ) as raster:
            for number, (name, unit) in enumerate(BANDS, start=1):
                raster.write(getattr(elevation, name), number)
                raster.set_band_description(number, name)
                raster.set_band_unit(number, unit)


def write_laz(path: Path, cloud: FusedCloud) -> None:
    """Write the points with colour, and with confidence and observations as extra dimensions."""
    import laspy

    header = laspy.LasHeader(point_format=7, version='1.4')
    header.scales = np.full(3, LAZ_STEP_M)
    header.offsets = np.floor(cloud.points.mean(axis=0)) if len(cloud.points) else np.zeros(3)
    header.add_extra_dims(
        [
            laspy.ExtraBytesParams('confidence', np.float32),
            laspy.ExtraBytesParams('observations', np.uint32),
        ]
    )
    points = laspy.LasData(header)
    points.x, points.y, points.z = cloud.points.T
    # LAS has 16 bits a colour: 255 becomes 65535.
    points.red, points.green, points.blue = cloud.colors.T.astype(np.uint16) * 257
    points['confidence'] = cloud.confidence
    points['observations'] = cloud.observations.astype(np.uint32)
    with atomic_path(path) as unfinished:
        points.write(unfinished)
