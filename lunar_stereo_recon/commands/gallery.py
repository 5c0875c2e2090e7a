"""`lunar-stereo gallery`: kinds of rendered ground under several suns, on one sheet."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
import sys
from typing import Any, TYPE_CHECKING

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lunar_stereo_recon.simulation.dem import Dem
    from lunar_stereo_recon.simulation.terrain import Terrain
    from lunar_stereo_recon.simulation.terrain_config import TerrainConfig


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'gallery', help='render one sheet of pictures: kinds of ground under several suns'
    )
    parser.add_argument('--out', type=Path, required=True, help='folder for sheet and pictures')
    parser.add_argument('--presets', nargs='+', help='kinds of ground (default: all)')
    parser.add_argument(
        '--elevations',
        type=float,
        nargs='+',
        default=[3.0, 10.0, 25.0, 55.0],
        help='elevations of the sun, degrees (default: 3 10 25 55)',
    )
    parser.add_argument(
        '--sun-azimuth',
        type=float,
        default=115.0,
        help='azimuth of the sun, degrees counterclockwise from the direction of view '
        '(default: 115)',
    )
    parser.add_argument(
        '--site',
        type=float,
        nargs=2,
        metavar=('LATITUDE', 'LONGITUDE'),
        help='use the sun over this site at the times of --utc; degrees, north and east positive',
    )
    parser.add_argument('--utc', nargs='+', help='times in UTC, like 2026-11-24T12:00:00Z')
    parser.add_argument(
        '--dem', type=Path, help='elevation model: GeoTIFF or another raster, or .npy'
    )
    parser.add_argument(
        '--cell-m', type=float, help="metres per cell of the elevation model (default: the file's)"
    )
    parser.add_argument(
        '--place',
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=('EAST', 'NORTH'),
        help='place in the elevation model, metres from its middle (default: 0 0)',
    )
    parser.add_argument(
        '--heading',
        type=float,
        default=0.0,
        help='direction of view, degrees counterclockwise from x',
    )
    parser.add_argument(
        '--rocks',
        default='heightfield',
        help='form of the rocks: heightfield, or mesh, with overhangs (default: heightfield)',
    )
    parser.add_argument('--seed', type=int, default=1, help='seed of everything random')
    parser.add_argument(
        '--width', type=int, default=480, help='width of each picture, pixels (default: 480)'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Render all pictures and write them and their sheet."""
    import cv2
    from tqdm import tqdm

    from lunar_stereo_recon.simulation.gallery import contact_sheet, picture, standing_view
    from lunar_stereo_recon.simulation.presets import PRESETS, site_preset
    from lunar_stereo_recon.simulation.scene import Lighting

    if args.width < 64:
        raise InputError(f'pictures are {args.width} wide; 64 or more is needed')
    names = args.presets or (['mare'] if args.dem else list(PRESETS))
    presets = [site_preset(name) for name in names]
    dem = _elevation_model(args)
    suns = _suns(args, dem)
    lights = [Lighting(elevation, azimuth) for _, elevation, azimuth in suns]
    args.out.mkdir(parents=True, exist_ok=True)
    size = args.width, 2 * args.width // 3
    rows = []
    with tqdm(total=len(names) * len(suns), unit='picture') as bar:
        for name, preset in zip(names, presets, strict=True):
            config = replace(preset.terrain_config(args.seed), rock_form=args.rocks)
            terrain = _terrain(config, dem)
            view = standing_view(terrain, args.heading, size)
            row = []
            for (label, *_), light in zip(suns, lights, strict=True):
                row.append(picture(terrain, view, light))
                file_name = f'{name}_{label}.png'.replace(' ', '_').replace(':', '')
                _write(cv2, args.out / file_name, row[-1])
                bar.update()
            rows.append(row)
    sheet = args.out / 'gallery.jpg'
    _write(cv2, sheet, contact_sheet(rows, names, [label for label, *_ in suns]))
    print(f'{sheet}: {len(names) * len(suns)} pictures')
    return 0


def _elevation_model(args: argparse.Namespace) -> Dem | None:
    if args.dem is None:
        return None
    from lunar_stereo_recon.simulation.dem import read_dem

    return read_dem(args.dem, args.cell_m, tuple(args.place))


def _terrain(config: TerrainConfig, dem: Dem | None) -> Terrain:
    from lunar_stereo_recon.simulation.dem import dem_terrain
    from lunar_stereo_recon.simulation.terrain import make_terrain

    return make_terrain(config) if dem is None else dem_terrain(dem, config)


def _suns(args: argparse.Namespace, dem: Dem | None) -> list[tuple[str, float, float]]:
    """Return label, elevation and world azimuth of every sun, degrees."""
    if not args.utc:
        if args.site:
            raise InputError('--site needs --utc')
        azimuth = args.heading + args.sun_azimuth
        return [(f'sun {value:g} deg', value, azimuth) for value in args.elevations]
    from lunar_stereo_recon.simulation.sun import parse_utc, sun_position

    # The grid's north of an elevation model is not always true north.
    turn = 0.0 if dem is None else dem.north_deg - 90.0
    site = args.site or ((dem.latitude_deg, dem.longitude_deg) if dem else None)
    if site is None or site[0] != site[0]:
        raise InputError('--utc needs --site, or an elevation model that knows its place')
    suns = []
    for text in args.utc:
        sun = sun_position(site[0], site[1], parse_utc(text))
        print(
            f'{text}: sun {sun.elevation_deg:.2f} degrees high, {sun.azimuth_deg:.2f} from north',
            file=sys.stderr,
        )
        suns.append((text, sun.elevation_deg, sun.world_azimuth_deg + turn))
    return suns


def _write(cv2: Any, path: Path, image: NDArray[np.uint8]) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 80] if path.suffix == '.jpg' else []
    try:
        encoded, data = cv2.imencode(path.suffix, image, quality)
        if not encoded:
            raise InputError(f'cannot encode {path}')
        write_bytes(path, data.tobytes())
    except cv2.error as error:
        raise InputError(f'cannot write {path}: no form of images has this ending') from error
    except OSError as error:
        raise InputError(f'cannot write {path}: {error.strerror}') from error
