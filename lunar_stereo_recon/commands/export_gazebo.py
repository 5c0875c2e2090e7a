"""`lunar-stereo export-gazebo`: a Gazebo world of the ground that the renderer renders."""

from __future__ import annotations

import argparse
from dataclasses import replace
import json
from pathlib import Path
import sys
from typing import Any

# Coarser than for pictures: physics and COLLADA's text want fewer triangles.
_ROCK_EDGE_M = 0.05


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'export-gazebo', help='write a lunar terrain as a Gazebo world (SDF, meshes, textures)'
    )
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    parser.add_argument('--preset', default='mare', help='kind of ground (default: mare)')
    parser.add_argument('--seed', type=int, default=1, help='seed of everything random')
    parser.add_argument(
        '--sun-elevation', type=float, help="elevation of the sun, degrees (default: the preset's)"
    )
    parser.add_argument(
        '--sun-azimuth',
        type=float,
        default=120.0,
        help='azimuth of the sun, degrees counterclockwise from +x (default: 120)',
    )
    parser.add_argument(
        '--cells',
        type=int,
        default=512,
        help='mesh cells along a side of the two finest patches, a power of two (default: 512)',
    )
    parser.add_argument(
        '--texels',
        type=int,
        default=4096,
        help='texels along a side of the textures of these patches (default: 4096)',
    )
    parser.add_argument(
        '--rocks',
        default='heightfield',
        help='form of the rocks: heightfield, part of the ground, or mesh, with '
        'overhangs (default: heightfield)',
    )
    parser.add_argument(
        '--reuse',
        action='store_true',
        help='keep an existing world that was written with the same options',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the terrain, write the world and say what was written."""
    from tqdm import tqdm

    from lunar_stereo_recon.simulation.gazebo import export_world, WorldOptions
    from lunar_stereo_recon.simulation.gazebo_rover import DESCRIPTION_FILE
    from lunar_stereo_recon.simulation.presets import site_preset
    from lunar_stereo_recon.simulation.terrain import make_terrain

    preset = site_preset(args.preset)
    config = replace(preset.terrain_config(args.seed), rock_form=args.rocks)
    elevation = preset.sun_elevation_deg if args.sun_elevation is None else args.sun_elevation
    options = WorldOptions(elevation, args.sun_azimuth, args.cells, args.texels)
    about = {
        'preset': args.preset,
        'seed': args.seed,
        'rocks': args.rocks,
        'cells': args.cells,
        'texels': args.texels,
        'sun_elevation_deg': elevation,
        'sun_azimuth_deg': args.sun_azimuth,
    }
    written = args.out / DESCRIPTION_FILE
    if args.reuse and _is_same(written, about):
        print(f'{args.out} has this world already')
        return 0
    written.unlink(missing_ok=True)
    print(f'terrain {args.preset}, seed {args.seed} ...', file=sys.stderr, flush=True)
    terrain = make_terrain(config, rock_edge_m=_ROCK_EDGE_M)
    with tqdm(total=1.0, bar_format='{desc} {percentage:3.0f}% {elapsed}<{remaining}') as bar:

        def say(text: str, share: float) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update(share - bar.n)

        world = export_world(terrain, args.out, options, about, say)
    _print_summary(world, json.loads(written.read_text(encoding='utf-8')))
    return 0


def _is_same(written: Path, about: dict[str, Any]) -> bool:
    """Return whether a complete world with these options is there."""
    try:
        description = json.loads(written.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return all(description.get(name) == value for name, value in about.items())


def _print_summary(world: Path, description: dict[str, Any]) -> None:
    print(f'{"ground":>12} {"cell":>8} {"triangles":>10}   mesh against terrain between vertices')
    for patch in description['patches']:
        reach, cell = f'+-{patch["half_size_m"]:g} m', f'{patch["cell_m"]:g} m'
        difference = patch['height_difference_m']
        print(
            f'{reach:>12} {cell:>8} {patch["triangles"]:>10}   '
            f'median {1e3 * difference["median"]:.1f} mm, '
            f'99 % below {1e3 * difference["p99"]:.0f} mm'
        )
    spawn = description['spawn']
    print(f'rover starts at x {spawn["x"]} y {spawn["y"]} z {spawn["z"]} m')
    print(f'gz sim {world}')
