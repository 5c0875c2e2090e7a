"""Frames of a recording with labels, in the form of rendered pairs.

A label is the word of a teacher network on the pair alone, or what a whole drive says: the
disparities of many frames, brought together by the recorded poses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn, Tensor
from tqdm import tqdm

from lunar_stereo_recon.backends import load_backend, model_file
from lunar_stereo_recon.bags.reader import BagFrame, StereoBagReader
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import load_arrays
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor
from lunar_stereo_recon.preprocess import aligned_principal_points, network_pair
from training.checkpoint import trained_network
from training.data.origin import claim
from training.frozen_teacher import network_digest
from training.fused_labels import fused_disparity, PosedFrame
from training.losses.stereo import occlusion_from_disparity
from training.models.flight import FlightStudent, SIZE_MULTIPLE, warp_row
from training.models.lunar_teacher import match_both_views
from training.models.pair_reconstruction import (
    LONG_SIDE,
    network_window,
    reconstruct_pair,
    rgb_tensor,
)

# Disparities of both views that differ by more do not support each other.
CONSISTENT_PX = 1.0
# Frames before and after one that have a say in its label.
REACH = 20


def label_rows(
    network: FlightStudent, pair: StereoPair, device: torch.device
) -> dict[str, NDArray[Any]]:
    """Return a pair with the labels of a row-matching teacher, at its network size.

    The confidence is 0 where the right view's disparity contradicts the left's.

    Returns:
        The arrays of a rendered pair, and `confidence` (H, W) in [0, 1].
    """
    pair = network_pair(aligned_principal_points(pair), SIZE_MULTIPLE)
    views = [torch.from_numpy(view)[None, None].to(device) for view in (pair.left, pair.right)]
    with torch.no_grad():
        output, other = match_both_views(network, *views)
        disparity = output['disparity']
        there = warp_row(other['disparity'][:, None], disparity[:, None])[:, 0]
        consistent = (there - disparity).abs() <= CONSISTENT_PX
        confidence = output['confidence_logit'].sigmoid() * consistent
    return labelled_pair(pair.left, pair.right, disparity[0], confidence[0], pair.calibration)


def label_pointmaps(network: Any, pair: StereoPair) -> dict[str, NDArray[Any]]:
    """Return a pair with the labels of a MASt3R teacher, at its network size.

    Depth is made metric by the rig's baseline and turned into disparity; as `label_rows`.
    """
    pair = aligned_principal_points(pair)
    grey8 = [np.rint(view * 255).astype(np.uint8) for view in (pair.left, pair.right)]
    result = reconstruct_pair(network, grey8[0], grey8[1], pair.calibration)
    window = network_window(pair.left.shape[1], pair.left.shape[0], LONG_SIDE)
    left, right = (window.fit_image(rgb_tensor(view))[0].numpy() for view in grey8)
    columns = result.disparity + np.float32(result.calibration.disparity_offset_px)
    confidence = np.where(np.isfinite(columns), result.confidence, 0)
    return labelled_pair(
        left,
        right,
        torch.from_numpy(columns),
        torch.from_numpy(np.nan_to_num(confidence)),
        result.calibration,
    )


def labelled_pair(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    disparity: Tensor,
    confidence: Tensor,
    calibration: StereoCalibration,
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a labelled pair; images in [0, 1], all (H, W)."""
    disparity = disparity.float().cpu()
    return {
        # 16 bits keep what 12-bit cameras give.
        'left': np.rint(left * 65535).astype(np.uint16),
        'right': np.rint(right * 65535).astype(np.uint16),
        'disparity': disparity.numpy(),
        'confidence': confidence.float().cpu().numpy().astype(np.float16),
        'shadow': np.zeros(left.shape, bool),
        'occlusion': occlusion_from_disparity(disparity[None])[0].numpy(),
        'intrinsics': calibration.intrinsics,
        'baseline_m': np.float64(calibration.baseline_m),
    }


def labelled(
    network: nn.Module, pair: StereoPair, device: torch.device
) -> dict[str, NDArray[Any]]:
    """Return a pair with the labels of a teacher of either kind."""
    if isinstance(network, FlightStudent):
        return label_rows(network, pair, device)
    return label_pointmaps(network, pair)


def chosen_frames(reader: StereoBagReader, count: int) -> Iterator[BagFrame]:
    """Yield up to `count` frames, evenly spread over the recording."""
    total = max(reader.frame_count, 1)
    chosen = set(np.linspace(0, total - 1, min(count, total)).astype(int).tolist())
    for frame in reader.frames():
        if frame.index in chosen:
            yield frame


def label_bag(
    bag: Path, teacher: Path, folder: Path, count: int, device: str = 'cpu'
) -> list[float]:
    """Label frames of a recording and write them as `.npz` files.

    Frames that are there from an earlier call with the same teacher are kept.

    Returns:
        The share of pixels that the teacher is sure of, of each frame.

    Raises:
        InputError: The bag cannot be read or has no stereo frames, or the folder holds labels of
            another teacher or bag.
        ModelError: The teacher cannot be read.
    """
    network = trained_network(teacher).to(device).requires_grad_(False)
    folder.mkdir(parents=True, exist_ok=True)
    # A teacher is its weights, wherever they lie and whatever else lay there before.
    claim(folder, {'bag': str(bag), 'teacher': network_digest(network)}, '--out')
    shares = []
    with StereoBagReader(bag) as reader:
        total = min(count, max(reader.frame_count, 1))
        for frame in tqdm(chosen_frames(reader, count), 'labelling', total, unit='frame'):
            path = folder / f'{frame.index:06d}.npz'
            if not path.exists():
                arrays = labelled(network, frame.pair(), torch.device(device))
                _write(path, arrays)
            shares.append(_sure_share(path))
    if not shares:
        raise InputError(f'{bag}: no stereo frames')
    return shares


def label_drive(bag: Path, folder: Path, count: int) -> list[float]:
    """Label frames of a drive with what the frames around them saw, and write them as `.npz`.

    The shipped pipeline reconstructs each frame; see `training.fused_labels`. Frames without a
    pose are left out. The confidence of a label is 1, and 0 where frames do not agree.

    Returns:
        The share of pixels that have a label, of each frame.

    Raises:
        InputError: The bag cannot be read, fewer than two frames have a pose, or the folder holds
            labels of another origin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(model_file(None).read_bytes()).hexdigest()
    claim(folder, {'bag': str(bag), 'fused': digest, 'frames': str(count)}, '--out')
    shares = []
    with StereoBagReader(bag) as reader:
        total = min(count, max(reader.frame_count, 1))
        frames = tqdm(posed_frames(reader, count), 'labelling', total, unit='frame')
        for (index, pair, target), others in with_neighbours(frames, REACH):
            path = folder / f'{index:06d}.npz'
            if not path.exists():
                disparity = fused_disparity(target, [frame for _, _, frame in others])
                known = torch.from_numpy(np.isfinite(disparity))
                label = torch.from_numpy(np.nan_to_num(disparity))
                arrays = labelled_pair(pair.left, pair.right, label, known, pair.calibration)
                _write(path, arrays)
            shares.append(_sure_share(path))
    if len(shares) < 2:
        raise InputError(
            f'{bag}: {len(shares)} stereo frames with a pose; at least 2 are needed, which look '
            'at the same ground'
        )
    return shares


Posed = tuple[int, StereoPair, PosedFrame]


def posed_frames(reader: StereoBagReader, count: int) -> Iterator[Posed]:
    """Yield up to `count` frames that have a pose: number, pair at network size, and its result.

    All are reconstructed densely by the shipped pipeline.
    """
    reconstructor = StereoReconstructor(load_backend(), ReconstructionOptions(dense=True))
    for frame in chosen_frames(reader, count):
        if frame.pose is not None:
            pair = network_pair(aligned_principal_points(frame.pair()), SIZE_MULTIPLE)
            result = reconstructor.reconstruct(pair)
            yield frame.index, pair, PosedFrame(result, frame.pose.matrix)


def with_neighbours(items: Iterable[Posed], reach: int) -> Iterator[tuple[Posed, list[Posed]]]:
    """Yield each item with those up to `reach` before and after it; few are held at a time."""
    held: list[Posed] = []
    at = 0  # of the next one to yield, in `held`
    for item in items:
        held.append(item)
        if len(held) - at > reach:
            yield held[at], held[:at] + held[at + 1 :]
            at += 1
        if at > reach:
            del held[0]
            at -= 1
    while at < len(held):
        first = max(0, at - reach)
        yield held[at], held[first:at] + held[at + 1 :]
        at += 1


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    partial = path.with_suffix(f'.{os.getpid()}.partial')
    with partial.open('wb') as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    partial.rename(path)


def _sure_share(path: Path) -> float:
    confidence = load_arrays(path, 'label', ('confidence',))['confidence']
    return float((confidence >= 0.5).mean())
