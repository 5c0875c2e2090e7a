"""`lunar-stereo fuse`: a recorded drive with its poses becomes one map, points and grid."""

from __future__ import annotations

import argparse
from collections import Counter
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

from lunar_stereo_recon.commands.replay import (
    add_bag_arguments,
    check_bag_numbers,
    check_numbers,
    opened_bag,
    pair_options,
    print_doubts,
)
from lunar_stereo_recon.commands.run import (
    add_reconstruction_arguments,
    add_self_mask_argument,
    reconstructor,
)
from lunar_stereo_recon.errors import InputError, ReconError
from lunar_stereo_recon.extras import require
from lunar_stereo_recon.files.atomic import write_text

if TYPE_CHECKING:
    import numpy as np

    from lunar_stereo_recon.bags.poses import CameraPoses
    from lunar_stereo_recon.bags.reader import BagFrame
    from lunar_stereo_recon.datatypes import Reconstruction, StereoPair


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'fuse',
        help='merge a recorded drive into one map',
        description='Reconstruct every posed frame of a rosbag2 recording and merge them: '
        'map.ply, map.laz, dem.tif (height, deviation, slope, count, confidence), relief.png, '
        'map.png, map.json. Poses come from a PoseStamped, an Odometry or the transforms on /tf. '
        'With true depth in the bag, errors of heights and hazards are measured too. Needs the '
        'extra [map].',
    )
    parser.add_argument('bag', type=Path, help='Recording: a rosbag2 folder, .mcap or .db3')
    parser.add_argument('--out', type=Path, default=Path('out/map'), help='folder for results')
    parser.add_argument(
        '--cell',
        type=float,
        default=0.05,
        metavar='M',
        help='edge of the cells of the elevation grid, metres',
    )
    parser.add_argument(
        '--voxel',
        type=float,
        default=0.02,
        metavar='M',
        help='edge of the voxels of the point cloud, metres',
    )
    parser.add_argument(
        '--map-range',
        type=float,
        default=8.0,
        metavar='M',
        help='largest depth of the points that are used, metres',
    )
    parser.add_argument(
        '--crs',
        help='coordinate reference system of the poses, for the GeoTIFF, for example '
        'IAU_2015:30135 (default: `crs` in the custom_data of the bag, or none)',
    )
    parser.add_argument(
        '--pose-topic',
        default='',
        metavar='TOPIC',
        help='PoseStamped or Odometry, or tf (default: the first one that is there of: '
        'ground_truth/pose, an Odometry that TF connects with the camera, TF)',
    )
    parser.add_argument(
        '--pose-frame',
        default='',
        metavar='FRAME',
        help='frame whose pose a PoseStamped is (default: the left camera)',
    )
    parser.add_argument(
        '--map-frame',
        default='',
        metavar='FRAME',
        help='fixed frame of poses by TF, z up (default: the top of the tree)',
    )
    add_bag_arguments(parser)
    add_reconstruction_arguments(parser)
    add_self_mask_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merge the frames, write the files, print the figures."""
    from tqdm import tqdm

    from lunar_stereo_recon.bags.poses import read_camera_poses
    from lunar_stereo_recon.evaluation.elevation import (
        ElevationFusion,
        height_errors,
        shaded_relief,
    )
    from lunar_stereo_recon.evaluation.fusion import VoxelFusion
    from lunar_stereo_recon.evaluation.terrain_drive import TerrainDrive
    from lunar_stereo_recon.files.results import write_ply_points, write_png
    from lunar_stereo_recon.geometry.terrain import TerrainOptions
    from lunar_stereo_recon.offline import outcomes

    require('rasterio', 'laspy', 'lazrs')
    check_bag_numbers(args)
    check_numbers(
        ('--cell', args.cell, True),
        ('--voxel', args.voxel, True),
        ('--map-range', args.map_range, True),
    )
    from lunar_stereo_recon.evaluation.map_files import write_geotiff, write_laz

    grid = ElevationFusion(args.cell, args.map_range)
    truth = ElevationFusion(args.cell, args.map_range)
    terrain = TerrainDrive(TerrainOptions(max_range_m=min(args.map_range, 10.0)))
    voxels = VoxelFusion(args.voxel, args.confidence, args.map_range)
    left_out: Counter[str] = Counter()
    merged = with_truth = 0
    with opened_bag(args) as reader:
        poses = read_camera_poses(reader, args.pose_topic, args.map_frame, args.pose_frame)
        crs = args.crs or reader.custom_data.get('crs')
        engine = reconstructor(args)
        bar = tqdm(reader.frames(), total=reader.frame_count, unit='frame')
        placed = (frame for frame in bar if _placed(frame, poses, left_out))
        for outcome in outcomes(placed, engine, pair_options(args)):
            if outcome.pair is None or outcome.result is None:
                left_out[outcome.error] += 1
                continue
            if not merged:
                print_doubts(outcome.frame, outcome.pair, args)
            try:
                true = _truth(outcome.frame, outcome.pair, outcome.result)
            except ReconError as error:
                left_out[str(error)] += 1
                continue
            pose = poses.of(outcome.frame)
            assert pose is not None
            voxels.add(outcome.result, pose)
            grid.add(outcome.result, pose)
            terrain.add(
                outcome.result.depth,
                outcome.result.confidence,
                outcome.result.depth_sigma_m,
                outcome.result.calibration,
                pose,
                outcome.frame.stamp_ns,
                None if true is None else true.depth,
            )
            if true is not None:
                truth.add(true, pose)
                with_truth += 1
            merged += 1
    if not merged:
        raise InputError(f'{args.bag}: no frame can be used: {dict(left_out)}')
    elevation, cloud = grid.map(), voxels.cloud()
    args.out.mkdir(parents=True, exist_ok=True)
    about = f'frame {poses.frame_id}: z up, metres'
    write_ply_points(args.out / 'map.ply', cloud.points, cloud.colors, cloud.confidence, about)
    write_laz(args.out / 'map.laz', cloud)
    write_geotiff(args.out / 'dem.tif', elevation, crs)
    write_png(args.out / 'relief.png', shaded_relief(elevation))
    summary: dict[str, Any] = {
        'bag': str(args.bag),
        'frame_id': poses.frame_id,
        'poses': poses.source,
        'crs': crs,
        'frames': {'merged': merged, 'left_out': dict(left_out), 'with_truth': with_truth},
        'points': len(cloud.points),
        'grid': {'cell_m': args.cell, 'shape': list(elevation.height.shape)},
    }
    if with_truth:
        try:
            summary['height_error'] = height_errors(elevation, truth.map())
        except InputError as error:  # the map is good without; the reason takes its place
            summary['height_error'] = str(error)
    summary |= terrain.write(args.out)
    text = json.dumps(summary, indent=2)
    write_text(args.out / 'map.json', text + '\n')
    print(text)
    return 0


def _placed(frame: BagFrame, poses: CameraPoses, left_out: Counter[str]) -> bool:
    """Say whether the pose of a frame is known; count it where not."""
    try:
        known = poses.of(frame) is not None
    except InputError as error:
        left_out[str(error)] += 1
        return False
    if not known:
        left_out['no pose at its stamp'] += 1
    return known


def _truth(frame: BagFrame, pair: StereoPair, result: Reconstruction) -> Reconstruction | None:
    """Return the frame as it truly is; None where the bag has no true depth for it."""
    import dataclasses

    import numpy as np

    from lunar_stereo_recon.geometry.camera import points_from_depth

    depth = frame.depth()
    if depth is None:
        return None
    certain: np.ndarray[Any, Any] = np.ones_like(depth)
    points = points_from_depth(depth, pair.calibration)
    return dataclasses.replace(result, depth=depth, points=points, confidence=certain)
