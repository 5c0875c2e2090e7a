"""StereoLunar folders: `NAME.jpg`, `NAME.exr` (depth) and `NAME.npz` (camera) for each view.

Views of a folder are a flight over one scene; pairs are views near each other in it, in both
orders. They are not rectified. Which pairs are left out is decided by recipe settings alone.
A folder with a pair index, as `lunar-stereo dataset --form stereolunar` writes it, has the pairs
that the index names, also in both orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
import OpenEXR

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import load_arrays
from lunar_stereo_recon.files.images import read_image
from lunar_stereo_recon.limits import MAX_SIDE_PX
from lunar_stereo_recon.simulation.dataset_forms import PAIR_INDEX
from training.data.batches import drawn_matches, StepBatches, UnsuitablePairError, vary_light
from training.recipe import DataRecipe

DEPTH_CHANNEL = 'Y'
# Half floats resolve 1 / 2048; a match is another surface from where depths differ by this share.
DEPTH_TOLERANCE = 0.01


@dataclass(frozen=True)
class LunarView:
    """One view.

    Attributes:
        image: (H, W, 3) float32 in [0, 1].
        depth: (H, W) float32, metres along the optical axis, NaN unknown.
        intrinsics: (3, 3), px.
        camera_to_world: (4, 4) float64, metres, OpenCV axes.
    """

    image: NDArray[np.float32]
    depth: NDArray[np.float32]
    intrinsics: NDArray[np.float64]
    camera_to_world: NDArray[np.float64]

    @property
    def points(self) -> NDArray[np.float64]:
        """Return (H, W, 3) points in this camera's frame."""
        rows, columns = np.indices(self.depth.shape, dtype=np.float64)
        rays = (
            np.stack([columns, rows, np.ones_like(rows)], axis=-1)
            @ np.linalg.inv(self.intrinsics).T
        )
        return rays * self.depth[..., None]


class StereoLunarPairs(StepBatches):
    """Pairs of neighbouring views with pointmaps and matches."""

    def list_entries(self, recipe: DataRecipe) -> Sequence[Any]:
        """Return pairs of views."""
        return list_view_pairs(recipe.train, recipe.max_frame_distance)

    def read(self, entry: tuple[Path, Path], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one pair.

        Returns:
            `left`, `right` (H, W, 3) in [0, 1]; `pointmap1`, `pointmap2` (H, W, 3) metres in the
            left camera's frame, NaN unknown; `valid1`, `valid2` (H, W) bool; and with
            `data.matches` the matches, as `data.sample_matches` gives them.

        Raises:
            UnsuitablePairError: The views overlap less than `data.min_overlap`.
            InputError: A file cannot be read.
        """
        size = self.recipe.crop_height, self.recipe.crop_width
        left, right = (fitted(read_view(stem), *size) for stem in entry)
        seen, pixels = corresponding_pixels(left, right)
        overlap = seen.mean()
        if overlap < self.recipe.min_overlap:
            raise UnsuitablePairError(f'{entry[0]}, {entry[1].name}: overlap is {overlap:.2f}')
        item = {
            'left': left.image,
            'right': right.image,
            'pointmap1': left.points.astype(np.float32),
            'pointmap2': moved_points(right, left).astype(np.float32),
            'valid1': np.isfinite(left.depth),
            'valid2': np.isfinite(right.depth),
        }
        if self.recipe.matches:
            rows, columns = np.nonzero(seen)
            source = np.stack([columns, rows], axis=1)
            item |= drawn_matches(source, pixels[rows, columns], self.recipe.matches, rng)
        if self.recipe.photometric and not self.recipe.fixed_crops:
            item['left'], item['right'] = vary_light(item['left'], item['right'], rng)
        return item


def list_view_pairs(
    folders: Sequence[str | Path], max_distance: int = 1, root: Path | None = None
) -> list[tuple[Path, Path]]:
    """Return pairs of view stems (path without suffix), in both orders and a fixed order.

    Args:
        folders: Folders of loose views, with a pair index, or split files of the published form
            (`.npz` with `scenes`, `images` and `pairs` of scene, view, view), whose pairs come in
            the order that they have there only.
        max_distance: Of loose views, further apart in the sequence, make no pair.
        root: Folder of the scenes of split files; None: that of the file.

    Raises:
        InputError: No folder is named, one holds no two neighbouring views or is of two forms,
            or an index names files that are not there.
    """
    if not folders:
        raise InputError('data.train is empty; it must list StereoLunar folders')
    pairs: list[tuple[Path, Path]] = []
    for entry in folders:
        folder = Path(entry).expanduser()
        if folder.suffix == '.npz':
            pairs += _indexed_pairs(folder, root or folder.parent)
            continue
        stems = [path.with_suffix('') for path in sorted(folder.glob('*.exr'))]
        if (folder / PAIR_INDEX).is_file():
            if stems:
                raise InputError(
                    f'{folder} has a pair index ({PAIR_INDEX}) and {len(stems)} loose views; '
                    'one of the two forms is needed'
                )
            both = _indexed_pairs(folder / PAIR_INDEX, folder)
            pairs += [pair for one, two in both for pair in ((one, two), (two, one))]
            continue
        alone = [p for p in folder.glob('*.npz') if not p.with_suffix('.exr').exists()]
        if stems and alone:
            raise InputError(
                f'{folder} holds {len(stems)} views and {len(alone)} .npz without depth '
                f'({alone[0].name}); rendered pairs, or split files, belong in another folder'
            )
        found = [
            (stems[i], stems[j])
            for i in range(len(stems))
            for j in range(max(0, i - max_distance), min(len(stems), i + max_distance + 1))
            if i != j
        ]
        if not found:
            raise InputError(f'{folder}: {len(stems)} views (.exr); at least 2 are needed')
        pairs += found
    return pairs


def _indexed_pairs(path: Path, root: Path) -> list[tuple[Path, Path]]:
    """Return the pairs that an index names, in the order that it has them.

    Raises:
        InputError: It cannot be read, or names no pairs, or files that are not there.
    """
    # Text must be stored as text: arrays of Python objects could run code when they are read.
    arrays = load_arrays(path, 'pair index', ('scenes', 'images', 'pairs'), optional=('sceneids',))
    try:
        pairs = np.atleast_2d(arrays['pairs']).astype(np.int64)
        names, scenes = arrays['images'], arrays['scenes']
        if (pairs < 0).any():  # would count from the end
            raise ValueError(f'number {pairs.min()} of a scene or view')
        if 'sceneids' in arrays:  # of each image
            scene_of, views = arrays['sceneids'], pairs[:, :2]
            stems = {i: root / str(scenes[scene_of[i]]) / str(names[i]) for i in np.unique(views)}
            found = [(stems[i], stems[j]) for i, j in views]
        else:  # of each pair
            found = [
                (
                    root / str(scenes[scene]) / str(names[i]),
                    root / str(scenes[scene]) / str(names[j]),
                )
                for scene, i, j in pairs[:, :3]
            ]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f'{path}: not a list of pairs (scenes, images, pairs of scene, view, view): {error}'
        ) from error
    if not found:
        raise InputError(f'{path}: names no pairs')
    views_named = sorted({stem for pair in found for stem in pair})
    lacking = [stem for stem in views_named if not stem.with_name(f'{stem.name}.jpg').is_file()]
    if lacking:
        raise InputError(
            f'{path}: {len(lacking)} of {len(views_named)} images that it names are not there; '
            f'the first is {lacking[0]}.jpg'
        )
    return found


def read_view(stem: Path) -> LunarView:
    """Read a view.

    Args:
        stem: Path of its files without suffix.

    Raises:
        InputError: A file is missing or cannot be read, or they do not fit each other.
    """
    image = read_image(stem.with_suffix('.jpg'))
    channels = image[..., None].repeat(3, axis=2) if image.ndim == 2 else image
    depth = read_depth(stem.with_suffix('.exr'))
    if depth.shape != image.shape[:2]:
        raise InputError(
            f'{stem}: image is {image.shape[1]}x{image.shape[0]}, depth '
            f'{depth.shape[1]}x{depth.shape[0]}'
        )
    camera = stem.with_suffix('.npz')
    arrays = load_arrays(camera, 'camera file', ('intrinsics', 'cam2world'))
    intrinsics, pose = (arrays[name].astype(np.float64) for name in ('intrinsics', 'cam2world'))
    if intrinsics.shape != (3, 3) or pose.shape != (4, 4):
        raise InputError(
            f'{camera}: intrinsics {intrinsics.shape}, cam2world {pose.shape}; (3, 3) and '
            '(4, 4) are needed'
        )
    scale = np.float32(1.0 / np.iinfo(image.dtype).max)
    return LunarView(channels.astype(np.float32) * scale, depth, intrinsics, pose)


def read_depth(path: Path) -> NDArray[np.float32]:
    """Return depth (H, W), metres, NaN where it is not positive and finite.

    Raises:
        InputError: The file is missing or damaged, or has no channel `Y`.
    """
    if not path.is_file():
        raise InputError(f'no depth at {path}')
    try:
        # Its window is read first: a few bytes may claim gigabytes.
        low, high = OpenEXR.File(str(path), header_only=True).header()['dataWindow']
        width, height = (int(high[axis]) - int(low[axis]) + 1 for axis in (0, 1))
        if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
            raise InputError(
                f'{path}: EXR of {width}x{height}; 1 to {MAX_SIDE_PX} pixels each way are read'
            )
        channels = OpenEXR.File(str(path)).channels()
    except (RuntimeError, ValueError, TypeError, LookupError, OSError) as error:
        raise InputError(f'{path}: not a readable EXR file: {error}') from error
    if DEPTH_CHANNEL not in channels:
        raise InputError(f'{path}: channels {", ".join(channels)}; {DEPTH_CHANNEL!r} is needed')
    depth = channels[DEPTH_CHANNEL].pixels.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))


def fitted(view: LunarView, height: int, width: int) -> LunarView:
    """Return the view scaled to cover a size, then cut about the centre; the camera goes along."""
    rows, columns = view.depth.shape
    scale = max(height / rows, width / columns)
    size = max(width, round(columns * scale)), max(height, round(rows * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    window = np.s_[top : top + height, left : left + width]
    image, depth = view.image, view.depth
    if size != (columns, rows):
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        # Between two depths there may be no surface.
        depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
    intrinsics = view.intrinsics.copy()
    for axis, (ratio, offset) in enumerate(((size[0] / columns, left), (size[1] / rows, top))):
        intrinsics[axis] *= ratio
        # Pixel centres stay pixel centres.
        intrinsics[axis, 2] = (view.intrinsics[axis, 2] + 0.5) * ratio - 0.5 - offset
    return LunarView(
        np.ascontiguousarray(image[window]),
        np.ascontiguousarray(depth[window]),
        intrinsics,
        view.camera_to_world,
    )


def corresponding_pixels(
    left: LunarView, right: LunarView
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return where the right view sees the left view's points, and at which pixels.

    Returns:
        (H, W) bool, and (H, W, 2) x, y in the right view (0 where not seen).
    """
    points = moved_points(left, right)
    depth = points[..., 2]
    with np.errstate(invalid='ignore', divide='ignore'):
        projected = points @ right.intrinsics.T
        pixels = np.rint(projected[..., :2] / projected[..., 2:])
        height, width = right.depth.shape
        inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels < (width, height)).all(-1)
    pixels = np.where(inside[..., None], pixels, 0).astype(np.int64)
    there = right.depth[pixels[..., 1], pixels[..., 0]]
    with np.errstate(invalid='ignore'):
        seen = inside & (np.abs(there - depth) < DEPTH_TOLERANCE * depth)
    return seen, pixels


def moved_points(view: LunarView, to: LunarView) -> NDArray[np.float64]:
    """Return a view's points (H, W, 3) in another's camera frame."""
    transform = np.linalg.inv(to.camera_to_world) @ view.camera_to_world
    return view.points @ transform[:3, :3].T + transform[:3, 3]
