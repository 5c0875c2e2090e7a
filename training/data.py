"""Batches of stereo pairs with ground truth, a pure function of (seed, step).

Because nothing depends on what was drawn before, a resumed run sees exactly the batches that an
uninterrupted one would have seen, with any number of loader processes.
"""

from __future__ import annotations

from collections.abc import Sequence
import logging
from pathlib import Path
import zipfile

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lunar_stereo_recon.errors import InputError
from training.recipe import DataRecipe

LOG = logging.getLogger(__name__)


def read_sample(path: Path) -> dict[str, np.ndarray]:
    """Read one rendered pair.

    Returns:
        `left`, `right` (H, W) float32 in [0, 1]; `disparity` (H, W) float32 px, NaN in the sky;
        `shadow` (H, W) bool; `occlusion` (H, W) uint8: 0 seen, 1 hidden, 2 outside the right
        image.

    Raises:
        InputError: The file cannot be read, or an array is missing.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            sample = {
                name: arrays[name]
                for name in ('left', 'right', 'disparity', 'shadow', 'occlusion')
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'{path}: not a readable rendered pair: {error}') from error
    scale = 1.0 / np.iinfo(sample['left'].dtype).max
    for view in ('left', 'right'):
        sample[view] = sample[view].astype(np.float32) * np.float32(scale)
    return sample


def vary_light(
    left: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the views with another exposure, gamma, gain mismatch and noise, clipped to [0, 1]."""
    exposure = np.exp(rng.uniform(np.log(0.4), np.log(1.8))) if rng.random() < 0.4 else 1.0
    gamma = np.exp(rng.uniform(-0.4, 0.4)) if rng.random() < 0.4 else 1.0
    noise = rng.uniform(0.0, 0.012) if rng.random() < 0.4 else 0.0
    blurred_view = rng.integers(0, 8)  # 0 and 1: that view is out of focus
    views = []
    for number, image in enumerate((left, right)):
        mismatch = rng.uniform(0.94, 1.06)
        image = np.clip(image * (exposure * mismatch), 0.0, 1.0) ** np.float32(gamma)
        if number == blurred_view:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
        if noise:
            image = image + rng.normal(0.0, noise, image.shape)
        views.append(np.clip(image, 0.0, 1.0).astype(np.float32))
    return views[0], views[1]


def shift_rows(image: np.ndarray, offset_px: float) -> np.ndarray:
    """Return the image moved down by a fraction of a row (bilinear, border repeated)."""
    matrix = np.array([[1, 0, 0], [0, 1, offset_px]], np.float64)
    return cv2.warpAffine(
        image, matrix, image.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


class RenderedPairs(Dataset):
    """Item `step` is that step's batch (this process's share of it)."""

    def __init__(
        self,
        recipe: DataRecipe,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """List the files.

        Raises:
            InputError: A folder holds no pairs.
        """
        self.recipe, self.seed = recipe, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.paths = list_samples(recipe.train)
        self.unreadable: set[Path] = set()

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return `left`, `right` (B, 1, H, W) and `disparity`, `shadow`, `occlusion` (B, H, W)."""
        items = range(self.rank, self.batch_size, self.world_size)
        return stack([self.item(step * self.batch_size + number) for number in items])

    def item(self, number: int) -> dict[str, np.ndarray]:
        """Return item `number` of the endless stream, cropped and varied."""
        epoch, place = divmod(number, len(self.paths))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))
        rng = np.random.default_rng([self.seed, 1, number])
        for shift in range(len(self.paths)):
            path = self.paths[order[(place + shift) % len(self.paths)]]
            try:
                return self.crop_and_vary(read_sample(path), rng)
            except InputError as error:
                self._count_unreadable(path, error)
        raise InputError(f'none of {len(self.paths)} pairs could be read')

    def _count_unreadable(self, path: Path, error: InputError) -> None:
        if path not in self.unreadable:
            self.unreadable.add(path)
            LOG.warning('left out: %s', error)
        limit = self.recipe.max_unreadable_fraction * len(self.paths)
        if len(self.unreadable) > limit:
            raise InputError(
                f'{len(self.unreadable)} of {len(self.paths)} pairs cannot be read, '
                f'data.max_unreadable_fraction allows {limit:.1f}; last: {path}: {error}'
            ) from error

    def crop_and_vary(
        self, sample: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Return a random crop (the same columns of both views) under random light.

        Raises:
            InputError: The pair is smaller than the crop.
        """
        height, width = self.recipe.crop_height, self.recipe.crop_width
        rows, columns = sample['left'].shape
        if rows < height or columns < width:
            raise InputError(f'pair is {columns}x{rows}, smaller than the crop {width}x{height}')
        top = rng.integers(0, rows - height + 1)
        start = rng.integers(0, columns - width + 1)
        crop = {
            name: np.ascontiguousarray(array[top : top + height, start : start + width])
            for name, array in sample.items()
        }
        seen_left_of_crop = crop['disparity'] > np.arange(width)
        crop['occlusion'] = np.where(seen_left_of_crop, np.uint8(2), crop['occlusion'])
        if self.recipe.max_vertical_offset_px:
            limit = self.recipe.max_vertical_offset_px
            crop['right'] = shift_rows(crop['right'], rng.uniform(-limit, limit))
        if self.recipe.photometric:
            crop['left'], crop['right'] = vary_light(crop['left'], crop['right'], rng)
        return crop


def list_samples(folders: Sequence[str | Path]) -> list[Path]:
    """Return the `.npz` files of the folders in a fixed order.

    Raises:
        InputError: No folder is named, or one is missing or empty.
    """
    if not folders:
        raise InputError('data.train is empty; it must list folders of rendered pairs')
    paths = []
    for folder in folders:
        found = sorted(Path(folder).expanduser().glob('*.npz'))
        if not found:
            raise InputError(f'{folder}: no .npz pairs found')
        paths += found
    return paths


def stack(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Return samples as one batch of tensors; images get a channel dimension."""
    batch = {
        name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in samples[0]
    }
    for view in ('left', 'right'):
        batch[view] = batch[view][:, None]
    return batch
