"""Batches of stereo pairs, a pure function of (seed, step).

Because nothing depends on what was drawn before, a resumed run sees exactly the batches that an
uninterrupted one would have seen, with any number of loader processes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
import logging
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import check_rendered_pair, load_arrays
from training.recipe import DataRecipe

LOG = logging.getLogger(__name__)
# So many of the pairs of a recipe with bent rows have them.
BENT_SHARE = 0.4
# Lunar pairs stand on their ground: they are turned upside down so many times as often.
LUNAR_FLIPS = 0.3
ARRAYS = ('left', 'right', 'disparity', 'shadow', 'occlusion')
# What only some sets hold: pairs with labels from a teacher have its confidence, warped textures
# the right view's disparity.
OPTIONAL_ARRAYS = ('confidence', 'intrinsics', 'disparity_right')
# A batch has these only where all of its pairs do.
DROPPED_UNLESS_IN_ALL = ('intrinsics', 'disparity_right')
SEEN, HIDDEN, OUT_OF_FRAME = 0, 1, 2
# A place is hidden where the other view has something nearer by this, pixels.
HIDDEN_BY_PX = 1.0
# Neighbouring disparities that differ by less belong to one surface, pixels.
ONE_SURFACE_PX = 0.5


class UnsuitablePairError(InputError):
    """A filter of the recipe leaves the pair out."""


def read_sample(path: Path) -> dict[str, np.ndarray]:
    """Read one rendered pair.

    Returns:
        `left`, `right` (H, W) float32 in [0, 1]; `disparity` (H, W) float32 px, NaN in the sky;
        `shadow` (H, W) bool; `occlusion` (H, W) uint8: 0 seen, 1 hidden, 2 outside the right
        image; where the file has them `confidence` (H, W) float32 in [0, 1] of the disparity,
        `intrinsics` (3, 3) px and `disparity_right` (H, W) float32 px, of the right view, NaN
        unknown.

    Raises:
        InputError: The file cannot be read, or an array is missing.
    """
    sample = load_arrays(path, 'rendered pair', ARRAYS, OPTIONAL_ARRAYS)
    for name in OPTIONAL_ARRAYS:
        if name in sample:
            sample[name] = sample[name].astype(np.float32)
    scale = 1.0 / np.iinfo(sample['left'].dtype).max
    for view in ('left', 'right'):
        sample[view] = sample[view].astype(np.float32) * np.float32(scale)
    return sample


def load_rendered_pair(path: Path) -> tuple[StereoPair, NDArray[np.float32]]:
    """Return a rendered pair and its true disparity (H, W), pixels, NaN in the sky.

    Raises:
        InputError: The file is not a readable rendered pair.
    """
    sample = read_sample(path)
    camera = load_arrays(path, 'rendered pair', ('intrinsics', 'baseline_m'))
    check_rendered_pair({**sample, **camera}, path, ('disparity',))
    intrinsics, baseline_m = camera['intrinsics'], float(camera['baseline_m'])
    height, width = sample['disparity'].shape
    fx, fy, cx, cy = (float(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    calibration = StereoCalibration(fx, fy, cx, cy, cx, baseline_m, width, height)
    return StereoPair(sample['left'], sample['right'], calibration), sample['disparity']


def vary_light(
    left: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the views as another, worse pair of cameras would give them, clipped to [0, 1].

    Exposure, gamma and noise of both; gain, black level, gamma, focus and dust of each; JPEG.
    """
    exposure = np.exp(rng.uniform(np.log(0.3), np.log(1.9))) if rng.random() < 0.4 else 1.0
    gamma = np.exp(rng.uniform(-0.4, 0.4)) if rng.random() < 0.4 else 1.0
    noise = rng.uniform(0.0, 0.012) if rng.random() < 0.4 else 0.0
    blurred_view = rng.integers(0, 8)  # 0 and 1: that view is out of focus
    unlike = rng.random() < 0.3
    dusty = rng.random() < 0.15
    quality = int(rng.integers(30, 90)) if rng.random() < 0.2 else None
    views = []
    for number, image in enumerate((left, right)):
        gain = rng.uniform(0.85, 1.15) if unlike else rng.uniform(0.94, 1.06)
        own_gamma = np.exp(rng.uniform(-0.25, 0.25)) if unlike else 1.0
        black = rng.uniform(-0.02, 0.02) if unlike else 0.0
        if dusty:
            image = image * dust_shadow(image.shape, rng)
        image = np.clip(image * (exposure * gain) + black, 0.0, 1.0)
        image = image ** np.float32(gamma * own_gamma)
        if number == blurred_view:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3))
        if noise:
            image = image + rng.normal(0.0, noise, image.shape)
        image = np.clip(image, 0.0, 1.0).astype(np.float32)
        views.append(compressed(image, quality) if quality else image)
    return views[0], views[1]


def dust_shadow(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return the light (H, W) float32 in (0, 1] that comes through a few grains on the lens."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    light = np.ones(shape[:2], np.float32)
    for _ in range(rng.integers(1, 6)):
        row, column = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        radius = shape[1] * np.exp(rng.uniform(np.log(0.02), np.log(0.12)))
        distance2 = (columns - column) ** 2 + (rows - row) ** 2
        light *= 1 - rng.uniform(0.1, 0.45) * np.exp(-distance2 / radius**2)
    return light if len(shape) == 2 else light[..., None]


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """Return an image in [0, 1] as JPEG of this quality keeps it."""
    _, data = cv2.imencode(
        '.jpg', np.rint(image * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED).astype(np.float32) / np.float32(255)


def misalign_rows(image: np.ndarray, offset_px: float, roll_deg: float) -> np.ndarray:
    """Return the image rolled about its centre, then moved down (bilinear, border repeated)."""
    centre = ((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, roll_deg, 1.0)
    matrix[1, 2] += offset_px
    return cv2.warpAffine(
        image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def use_one_thread(worker: int) -> None:
    """Keep a loader process to one core: there are as many of them as cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def exchange_views(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the pair seen in a mirror: the right view becomes the left one, and back."""
    mirrored = {
        'left': sample['right'],
        'right': sample['left'],
        'disparity': sample['disparity_right'],
        'disparity_right': sample['disparity'],
        'shadow': np.zeros_like(sample['shadow']),  # known of the left view alone
    }
    mirrored = {name: np.ascontiguousarray(array[:, ::-1]) for name, array in mirrored.items()}
    disparity, other = mirrored['disparity'], mirrored['disparity_right']
    landing = np.rint(np.arange(disparity.shape[1]) - np.nan_to_num(disparity)).astype(np.int64)
    there = np.take_along_axis(other, landing.clip(0, disparity.shape[1] - 1), axis=1)
    occlusion = np.where(there > disparity + HIDDEN_BY_PX, np.uint8(HIDDEN), np.uint8(SEEN))
    mirrored['occlusion'] = np.where(landing < 0, np.uint8(OUT_OF_FRAME), occlusion)
    kept = {name: sample[name] for name in sample if name not in mirrored}
    if 'intrinsics' in kept:
        kept['intrinsics'] = kept['intrinsics'].copy()
        kept['intrinsics'][0, 2] = disparity.shape[1] - 1 - kept['intrinsics'][0, 2]
    return kept | mirrored


def flip_rows(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the pair upside down: the same matching problem."""
    flipped = {
        name: np.ascontiguousarray(array[::-1])
        for name, array in sample.items()
        if name != 'intrinsics'
    }
    if 'intrinsics' in sample:
        flipped['intrinsics'] = sample['intrinsics'].copy()
        flipped['intrinsics'][1, 2] = sample['left'].shape[0] - 1 - sample['intrinsics'][1, 2]
    return flipped


def zoom(sample: dict[str, NDArray[Any]], scale: float) -> dict[str, NDArray[Any]]:
    """Return the pair at another size; its disparities grow with it."""
    height, width = (round(side * scale) for side in sample['left'].shape[:2])
    factor_y, factor_x = height / sample['left'].shape[0], width / sample['left'].shape[1]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR

    def resized(array: NDArray[Any], interpolation: int) -> NDArray[Any]:
        return cv2.resize(array, (width, height), interpolation=interpolation)

    zoomed: dict[str, NDArray[Any]] = {}
    for name, array in sample.items():
        if name in ('left', 'right'):
            zoomed[name] = resized(array, method)
        elif name == 'intrinsics':
            move_x, move_y = 0.5 * factor_x - 0.5, 0.5 * factor_y - 0.5
            scaling = np.array([[factor_x, 0, move_x], [0, factor_y, move_y], [0, 0, 1]])
            zoomed[name] = (scaling @ array).astype(array.dtype)
        elif name.startswith('disparity'):
            nearest = resized(array, cv2.INTER_NEAREST_EXACT)
            smooth = resized(array, cv2.INTER_LINEAR)
            # Between two surfaces there is none.
            same = np.abs(smooth - nearest) < ONE_SURFACE_PX
            zoomed[name] = np.where(same, smooth, nearest) * np.float32(factor_x)
        else:
            # What OpenCV resizes: neither half floats nor booleans.
            plain = np.float32 if array.dtype.kind == 'f' else np.uint8
            nearest = resized(array.astype(plain), cv2.INTER_NEAREST_EXACT)
            zoomed[name] = nearest.astype(array.dtype)
    return zoomed


def bend_rows(
    image: NDArray[np.float32], rng: np.random.Generator, largest_px: float
) -> NDArray[np.float32]:
    """Return the image with rows that bend by up to so much, as a lens that moved does it."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    across, down = columns / image.shape[1] * 2 - 1, rows / image.shape[0] * 2 - 1
    weights = rng.normal(size=5)
    bend = weights[0] + weights[1] * across + weights[2] * down
    bend = bend + weights[3] * across * down + weights[4] * across**2
    bend *= rng.uniform(0, largest_px) / np.abs(bend).max()
    rows = (rows + bend).astype(np.float32)
    return cv2.remap(image, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


class StepBatches(Dataset[Any]):
    """Item `step` is that step's batch (this process's share of it).

    Attributes:
        entries: What an item is read from.
        unsuitable: Entries that a filter of the recipe left out, so far.
    """

    def __init__(
        self,
        recipe: DataRecipe,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """List what there is.

        Raises:
            InputError: A folder holds no pairs, or fewer than `data.max_pairs`.
        """
        self.recipe, self.seed = recipe, seed
        self.entries = self._drawn(self.list_entries(recipe))
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        # In shared memory: loader processes count together.
        self._unreadable = torch.zeros(len(self.entries), dtype=torch.bool).share_memory_()
        self.unsuitable: set[Any] = set()

    def _drawn(self, entries: Sequence[Any]) -> Sequence[Any]:
        count = self.recipe.max_pairs
        if not count:
            return entries
        if count > len(entries):
            raise InputError(f'data.max_pairs is {count}, but there are {len(entries)} pairs')
        order = np.random.default_rng([self.seed, 3]).permutation(len(entries))
        return [entries[i] for i in order[:count]]

    @property
    def unreadable(self) -> list[Any]:
        """Return the entries that could not be read, so far, by any loader process."""
        return [self.entries[i] for i in self._unreadable.nonzero()[:, 0].tolist()]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return a batch: `left`, `right` (B, C, H, W), the rest as `read` gives it."""
        items = range(self.rank, self.batch_size, self.world_size)
        return stack([self.item(step * self.batch_size + number) for number in items])

    def item(self, number: int) -> dict[str, np.ndarray]:
        """Return item `number` of the endless stream, cropped and varied."""
        first, count, number_there, salt = self._source(number)
        epoch, place = divmod(number_there, count)
        order = first + np.random.default_rng([self.seed, epoch, *salt]).permutation(count)
        for shift in range(count):
            index = int(order[(place + shift) % count])
            rng = np.random.default_rng(self._crop_seed(number, epoch, index))
            try:
                return self.read(self.entries[index], rng)
            except UnsuitablePairError:
                self.unsuitable.add(self.entries[index])
            except InputError as error:
                self._count_unreadable(index, error)
        raise InputError(
            f'none of {count} pairs can be used: {len(self.unreadable)} are not '
            f'readable, {len(self.unsuitable)} do not pass the filters of the recipe'
        )

    def _source(self, number: int) -> tuple[int, int, int, tuple[int, ...]]:
        """Return the entries that an item is drawn from, and what number it is among theirs.

        Returns:
            First entry, number of entries, number of the item, what its draw depends on besides.
        """
        return 0, len(self.entries), number, ()

    def _crop_seed(self, number: int, epoch: int, index: int) -> list[int]:
        if self.recipe.fixed_crops:
            return [self.seed, 2, index, epoch % self.recipe.fixed_crops]
        return [self.seed, 1, number]

    def _count_unreadable(self, index: int, error: InputError) -> None:
        if not self._unreadable[index]:
            self._unreadable[index] = True
            LOG.warning('left out: %s', error)
        count = int(self._unreadable.sum())
        limit = self.recipe.max_unreadable_fraction * len(self.entries)
        if count > limit:
            raise InputError(
                f'{count} of {len(self.entries)} pairs cannot be read, '
                f'data.max_unreadable_fraction allows {limit:.1f}; last: {self.entries[index]}: '
                f'{error}'
            ) from error

    @abstractmethod
    def list_entries(self, recipe: DataRecipe) -> Sequence[Any]:
        """Return what items are read from, in a fixed order."""

    @abstractmethod
    def read(self, entry: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one item.

        Raises:
            UnsuitablePairError: A filter of the recipe leaves it out.
            InputError: It cannot be read.
        """


class RenderedPairs(StepBatches):
    """Pairs of .npz files, rendered or labelled by a teacher."""

    # Pairs stand on their ground though both views have a disparity.
    lunar = False
    # Entries that are not replayed.
    _new = 0

    def list_entries(self, recipe: DataRecipe) -> Sequence[Any]:
        """Return the files, those that are replayed last."""
        new = list_samples(recipe.train)
        self._new = len(new)
        return new + (list_samples(recipe.replay) if recipe.replay else [])

    def _source(self, number: int) -> tuple[int, int, int, tuple[int, ...]]:
        share = self.recipe.replay_share
        if not share:
            return super()._source(number)
        # Replayed items are spread evenly over the stream.
        replayed = math.floor(number * share)
        count = self._new
        if math.floor((number + 1) * share) > replayed:
            return count, len(self.entries) - count, replayed, (1,)
        return 0, count, number - replayed, ()

    def read(self, entry: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return `left`, `right`, `disparity`, `shadow`, `occlusion` (H, W), and more.

        With `data.matches` also `matches1`, `matches2` (N, 2) and `matches_valid` (N,); what else
        the file has, see `read_sample`.
        """
        return self.prepared(read_sample(entry), rng)

    def prepared(
        self, sample: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Return the sample cropped and varied, with matches where the recipe wants some."""
        item = self.crop_and_vary(sample, rng)
        if self.recipe.matches:
            item |= sample_matches(item['disparity'], item['occlusion'], self.recipe.matches, rng)
        return item

    def crop_and_vary(
        self, sample: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Return a random crop (the same columns of both views) under random light.

        Raises:
            InputError: The pair is smaller than the crop.
        """
        height, width = self.recipe.crop_height, self.recipe.crop_width
        if not self.recipe.fixed_crops:
            sample = self._turned(sample, rng)
        rows, columns = sample['left'].shape
        if rows < height or columns < width:
            raise InputError(f'pair is {columns}x{rows}, smaller than the crop {width}x{height}')
        top = rng.integers(0, rows - height + 1)
        start = rng.integers(0, columns - width + 1)
        crop = {
            name: np.ascontiguousarray(array[top : top + height, start : start + width])
            for name, array in sample.items()
            if name != 'intrinsics'
        }
        if 'intrinsics' in sample:
            crop['intrinsics'] = sample['intrinsics'].copy()
            crop['intrinsics'][:2, 2] -= start, top
        seen_left_of_crop = crop['disparity'] > np.arange(width)
        crop['occlusion'] = np.where(seen_left_of_crop, np.uint8(OUT_OF_FRAME), crop['occlusion'])
        if self.recipe.fixed_crops:
            return crop
        offset, roll = self.recipe.max_vertical_offset_px, self.recipe.max_roll_deg
        if self.recipe.max_row_bend_px and rng.random() < BENT_SHARE:
            crop['right'] = bend_rows(crop['right'], rng, self.recipe.max_row_bend_px)
        elif offset or roll:
            crop['right'] = misalign_rows(
                crop['right'], rng.uniform(-offset, offset), rng.uniform(-roll, roll)
            )
        if self.recipe.photometric:
            crop['left'], crop['right'] = vary_light(crop['left'], crop['right'], rng)
        return crop

    def _turned(
        self, sample: dict[str, NDArray[Any]], rng: np.random.Generator
    ) -> dict[str, NDArray[Any]]:
        """Return the pair upside down, mirrored, larger or smaller, as the recipe has it."""
        recipe = self.recipe
        if 'disparity_right' in sample and rng.random() < recipe.mirrored_share:
            # How sure a label is is known of the left view alone.
            sample = sample if 'confidence' in sample else exchange_views(sample)
        general = 'disparity_right' in sample and not self.lunar
        if rng.random() < (
            recipe.flipped_share if general else LUNAR_FLIPS * recipe.flipped_share
        ):
            sample = flip_rows(sample)
        if rng.random() < recipe.zoomed_share:
            rows, columns = sample['left'].shape
            fits = max(recipe.crop_height / rows, recipe.crop_width / columns)
            least, most = max(fits, recipe.least_zoom), recipe.most_zoom
            if least < most:
                sample = zoom(sample, float(np.exp(rng.uniform(np.log(least), np.log(most)))))
        return sample


class PairsOnTheFly(RenderedPairs):
    """Pairs that are rendered when they are needed: as many terrains as there are steps for.

    Item i of the stream is pair i of `lunar-stereo dataset` with the recipe's seed and the crop
    for its window. Both views have their disparity, so that pointmap students can learn from them.
    """

    lunar = True

    def list_entries(self, recipe: DataRecipe) -> Sequence[Any]:
        """Return none: pairs are made by their number."""
        return ()

    def item(self, number: int) -> dict[str, np.ndarray]:
        """Return item `number` of the endless stream, varied."""
        # Needs the renderer (extra [sim]), which pairs on disk do not.
        from lunar_stereo_recon.simulation.dataset import DatasetOptions, make_sample

        size = self.recipe.crop_width, self.recipe.crop_height
        pair = make_sample(DatasetOptions(self.seed, 'train', size), number)
        scale = np.float32(1.0 / np.iinfo(pair.left.dtype).max)
        sample = {
            'left': pair.left.astype(np.float32) * scale,
            'right': pair.right.astype(np.float32) * scale,
            'disparity': pair.disparity,
            'disparity_right': pair.disparity_right,
            'shadow': pair.shadow,
            'occlusion': pair.occlusion,
            'intrinsics': pair.intrinsics.astype(np.float32),
        }
        return self.prepared(sample, np.random.default_rng([self.seed, 1, number]))


def sample_matches(
    disparity: np.ndarray, occlusion: np.ndarray, count: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return `matches1`, `matches2` (count, 2) int64 pixels x, y and `matches_valid` (count,).

    Drawn among pixels that both views see; where there are fewer, the rest is not valid.

    Args:
        disparity: (H, W) px, NaN unknown.
        occlusion: (H, W), 0 where both views see the pixel.
        count: How many.
        rng: Draws them.
    """
    seen = np.isfinite(disparity) & (occlusion == SEEN)
    rows, columns = np.nonzero(seen)
    right_columns = np.rint(columns - disparity[rows, columns]).astype(np.int64)
    inside = (right_columns >= 0) & (right_columns < disparity.shape[1])
    left = np.stack([columns, rows], axis=1)[inside]
    right = np.stack([right_columns, rows], axis=1)[inside]
    return drawn_matches(left, right, count, rng)


def drawn_matches(
    left: np.ndarray, right: np.ndarray, count: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return `count` of the matching pixels left, right (N, 2), as `sample_matches` does."""
    chosen = rng.permutation(len(left))[:count]
    matches = {
        'matches1': np.zeros((count, 2), np.int64),
        'matches2': np.zeros((count, 2), np.int64),
        'matches_valid': np.arange(count) < len(chosen),
    }
    matches['matches1'][: len(chosen)] = left[chosen]
    matches['matches2'][: len(chosen)] = right[chosen]
    return matches


def list_samples(folders: Sequence[str | Path]) -> list[Path]:
    """Return the `.npz` files of the folders in a fixed order.

    Raises:
        InputError: No folder is named, or one is missing or empty.
    """
    if not folders:
        raise InputError('data.train is empty; it must list folders of rendered pairs')
    paths = []
    for folder in folders:
        found = sorted(
            path
            for path in Path(folder).expanduser().glob('*.npz')
            if not path.name.startswith('.')  # unfinished
        )
        if not found:
            raise InputError(f'{folder}: no .npz pairs found')
        if found[0].with_suffix('.exr').exists():
            raise InputError(
                f'{folder} holds StereoLunar views ({found[0].stem}.exr), not rendered pairs; '
                'data.kind stereolunar reads them'
            )
        paths += found
    return paths


def stack(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Return samples as one batch of tensors; grey images get a channel dimension.

    Where only some pairs have a confidence, the others' is 1; where some have no intrinsics or
    no right disparity, the batch has none.

    Raises:
        InputError: The samples hold different arrays.
    """
    if any('confidence' in sample for sample in samples):
        for sample in samples:
            sample.setdefault('confidence', np.ones(sample['left'].shape, np.float32))
    for name in DROPPED_UNLESS_IN_ALL:
        if not all(name in sample for sample in samples):
            samples = [{k: v for k, v in sample.items() if k != name} for sample in samples]
    names = {frozenset(sample) for sample in samples}
    if len(names) > 1:
        lacking = sorted(frozenset.union(*names) - frozenset.intersection(*names))
        raise InputError(f'only some pairs of a batch have {", ".join(lacking)}')
    batch = {
        name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in samples[0]
    }
    for view in ('left', 'right'):
        image = batch[view]
        batch[view] = image[:, None] if image.ndim == 3 else image.permute(0, 3, 1, 2).contiguous()
    return batch
