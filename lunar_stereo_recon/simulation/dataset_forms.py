"""Writes the pairs of a data set in its forms: pairs, StereoLunar folders and bags.

Each form writes the pairs of one terrain and tells which are there already. What is written
appears under its name only when it is complete, so that a stopped run leaves nothing half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import shutil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.bags.writer import BagWriter
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import atomic_file, atomic_path, write_bytes
from lunar_stereo_recon.simulation.sample import Sample
from lunar_stereo_recon.simulation.traverse import START_STAMP_NS, TraverseFrame, write_frame

# Views that dust3r's and MASt3R's loaders find through this file: scenes, images, pairs, cameras.
PAIR_INDEX = 'all_metadata.npz'
_JPEG_QUALITY = 95
_PARTIAL = '.partial'
_BAG_PERIOD_NS = 1_000_000_000


def write_pair_files(
    out: Path, scene: str, wanted: Sequence[int], make: Callable[[int], Sample]
) -> int:
    """Write `NNNNNN.npz` per pair; return how many were not there yet."""
    missing = [index for index in wanted if not (out / f'{index:06d}.npz').exists()]
    for index in missing:
        make(index).save(out / f'{index:06d}.npz')
    return len(missing)


def write_view_folder(
    out: Path, scene: str, wanted: Sequence[int], make: Callable[[int], Sample]
) -> int:
    """Write two views per pair to the folder of the scene; return how many pairs were missing.

    Pair i is `im_<2i>` (left) and `im_<2i + 1>` (right), each `.jpg`, `.exr` (channel Y, metres
    along the optical axis, 0 unknown) and `.npz` (`intrinsics` (3, 3) in pixels, `cam2world`
    (4, 4) in metres, OpenCV axes). The terrain is the world that all views of a folder share.

    Raises:
        InputError: An image is not of 8 bits, which JPEG needs.
    """
    folder = out / scene
    missing = [i for i in wanted if not _stem(folder, 2 * i + 1).with_suffix('.npz').exists()]
    folder.mkdir(exist_ok=True)
    for index in missing:
        sample = make(index)
        depths = sample.depth_left, sample.depth_right
        for side, image in enumerate((sample.left, sample.right)):
            if image.dtype != np.uint8:
                raise InputError(f'pair {index} has {image.dtype} images; JPEG holds 8 bits')
            matrix = (sample.intrinsics, sample.intrinsics_right)[side]
            stem = _stem(folder, 2 * index + side)
            _write_view(stem, image, depths[side], matrix, sample.poses[side])
    return len(missing)


def write_pair_index(out: Path) -> int:
    """Write the index of all complete pairs under `out`; return their number.

    The arrays are those of dust3r's indoor data sets: `scenes` (S,), `images` (M,) names
    without suffix, `sceneids` (M,), `intrinsics` (M, 3, 3), `trajectories` (M, 4, 4) and `pairs`
    (P, 2), numbers of images.
    """
    scenes: list[str] = []
    images: list[str] = []
    scene_ids: list[int] = []
    intrinsics: list[NDArray[Any]] = []
    trajectories: list[NDArray[Any]] = []
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        stems = [path.with_suffix('') for path in sorted(folder.glob('im_*.npz'))]
        numbers = {int(stem.name[3:]) for stem in stems}
        for stem in stems:
            if int(stem.name[3:]) ^ 1 not in numbers:
                continue  # its partner was never finished
            with np.load(stem.with_suffix('.npz')) as camera:
                intrinsics.append(camera['intrinsics'])
                trajectories.append(camera['cam2world'])
            images.append(stem.name)
            scene_ids.append(len(scenes))
        scenes.append(folder.name)
    _replace_npz(
        out / PAIR_INDEX,
        scenes=np.array(scenes),
        images=np.array(images),
        sceneids=np.array(scene_ids, np.int64),
        intrinsics=np.array(intrinsics, np.float32).reshape(-1, 3, 3),
        trajectories=np.array(trajectories, np.float32).reshape(-1, 4, 4),
        pairs=np.arange(len(images), dtype=np.int64).reshape(-1, 2),
    )
    return len(images) // 2


def write_scene_bag(
    out: Path, scene: str, wanted: Sequence[int], make: Callable[[int], Sample]
) -> int:
    """Write the pairs of one terrain as a bag, one a second; return how many, 0 if it is there.

    The pairs are unrelated views with cameras of their own: each image's camera_info is that of
    its stamp. Topics as `traverse.write_bag`, with depth for every pair; raw images (with
    distortion) are `image_raw` instead of `image_rect`.
    """
    bag_path = out / scene
    if bag_path.exists():
        return 0
    # In a folder of its own, because a bag's file is named after the bag's folder.
    partial = out / _PARTIAL / scene
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(exist_ok=True)
    with BagWriter(partial) as bag:
        for index in wanted:
            sample = make(index)
            frame, calibration = _bag_frame(sample, index)
            faults = sample.meta.get('faults', {})
            write_frame(
                bag,
                frame,
                calibration,
                with_depth=True,
                encoding=_encoding(sample),
                distortion=faults.get('distortion', ()),
            )
    os.replace(partial, bag_path)
    return len(wanted)


def remove_unfinished(out: Path) -> None:
    """Remove what a stopped run left of unfinished bags."""
    shutil.rmtree(out / _PARTIAL, ignore_errors=True)


def _encoding(sample: Sample) -> str:
    """Return ROS's name of the images' encoding."""
    colour = sample.meta['sensors'][0]['colour']
    return colour + ('8' if sample.left.dtype == np.uint8 else '16')


def _bag_frame(sample: Sample, index: int) -> tuple[TraverseFrame, StereoCalibration]:
    k = sample.intrinsics
    height, width = sample.left.shape[:2]
    calibration = StereoCalibration(
        k[0, 0], k[1, 1], k[0, 2], k[1, 2], k[0, 2], sample.baseline_m, width, height
    )
    frame = TraverseFrame(
        START_STAMP_NS + index * _BAG_PERIOD_NS,
        sample.left,
        sample.right,
        sample.depth_left,
        sample.shadow,
        sample.poses[0][:3, 3],
        sample.poses[0][:3, :3],
    )
    return frame, calibration


def _stem(folder: Path, number: int) -> Path:
    return folder / f'im_{number:06d}'


def _write_view(
    stem: Path,
    image: NDArray[np.uint8],
    depth: NDArray[np.float32],
    intrinsics: NDArray[np.float64],
    pose: NDArray[np.float64],
) -> None:
    """Write a view; its camera file comes last and makes it complete."""
    import OpenEXR

    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    jpeg = stem.with_suffix('.jpg')
    encoded, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not encoded:
        raise InputError(f'cannot encode {jpeg}')
    write_bytes(jpeg, data.tobytes())
    known = np.nan_to_num(depth, nan=0.0).astype(np.float32)
    header = {'compression': OpenEXR.ZIP_COMPRESSION, 'type': OpenEXR.scanlineimage}
    with atomic_path(stem.with_suffix('.exr')) as path:
        OpenEXR.File(header, {'Y': known}).write(str(path))
    _replace_npz(
        stem.with_suffix('.npz'),
        intrinsics=intrinsics.astype(np.float32),
        cam2world=pose.astype(np.float32),
    )


def _replace_npz(path: Path, **arrays: Any) -> None:
    with atomic_file(path) as file:
        np.savez(file, **arrays)
