"""`python -m training adapt`: fit a flight student to a camera, from a recording without labels.

A teacher labels frames of the recording, and what it is sure of becomes ground truth in the form
of rendered pairs. The student then goes on training on those and on pairs with exact truth, with
the recipe `adapt`. The last frames and some of the exact pairs are kept back: a student is written
only if it is better on these than at the start, and training stops when it gets no better.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn, Tensor
from tqdm import tqdm

from lunar_stereo_recon.bags.reader import BagFrame, StereoBagReader
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.files.arrays import load_arrays
from lunar_stereo_recon.preprocess import aligned_principal_points, network_pair
from training.adaptation import adapt_guarded, split_frames
from training.checkpoint import trained_network
from training.commands.train import join_processes, recipe_path
from training.frozen_teacher import network_digest
from training.losses.stereo import occlusion_from_disparity
from training.models.flight import FlightStudent, SIZE_MULTIPLE, warp_row
from training.models.lunar_teacher import match_both_views
from training.models.pair_reconstruction import (
    LONG_SIDE,
    network_window,
    reconstruct_pair,
    rgb_tensor,
)
from training.recipe import load_recipe
from training.trainer import Trainer

SHIPPED = Path(__file__).parents[1] / 'weights'
# Disparities of both views that differ by more do not support each other.
CONSISTENT_PX = 1.0
# What is rendered to be replayed where no folder is named.
REPLAY_PAIRS, REPLAY_SIZE, REPLAY_SEED = 64, (384, 256), 17


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
    _claim(folder, {'bag': str(bag), 'teacher': network_digest(network)})
    shares = []
    with StereoBagReader(bag) as reader:
        total = min(count, max(reader.frame_count, 1))
        for frame in tqdm(chosen_frames(reader, count), 'labelling', total, unit='frame'):
            path = folder / f'{frame.index:06d}.npz'
            if not path.exists():
                arrays = labelled(network, frame.pair(), torch.device(device))
                partial = path.with_suffix(f'.{os.getpid()}.partial')
                with partial.open('wb') as file:
                    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
                partial.rename(path)
            confidence = load_arrays(path, 'label', ('confidence',))['confidence']
            shares.append(float((confidence >= 0.5).mean()))
    if not shares:
        raise InputError(f'{bag}: no stereo frames')
    return shares


def _claim(folder: Path, source: dict[str, str]) -> None:
    """Write down what the labels of a folder are made from; refuse to mix two sources."""
    path = folder / 'source.json'
    if path.exists() and json.loads(path.read_text()) != source:
        raise InputError(
            f'{folder} holds labels made from {path.read_text()}; '
            f'choose another --out for {source}'
        )
    path.write_text(json.dumps(source))


def student_weights(name: str) -> Path:
    """Return the weights to start from: a file, or shipped ones by name.

    Raises:
        ModelError: There is no such file.
    """
    path = Path(name)
    if not path.suffix and len(path.parts) == 1:
        path = SHIPPED / f'{name}.safetensors'
    if not path.exists():
        raise ModelError(
            f'no weights to start from at {path}; give a checkpoint of a run or .safetensors'
        )
    return path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'adapt',
        help='fit a flight student to a camera from a bag without labels',
        description='A teacher labels the frames of a stereo bag; the student learns from them.',
    )
    parser.add_argument('--bag', type=Path, required=True, help='rosbag2 folder, .mcap or .db3')
    parser.add_argument(
        '--teacher',
        type=Path,
        required=True,
        help='network that labels the frames: checkpoint of a run, or a MASt3R .pth or '
        '.safetensors',
    )
    parser.add_argument(
        '--student',
        default='flight',
        help='student to start from: checkpoint or .safetensors (default: the shipped one)',
    )
    parser.add_argument(
        '--frames', type=int, default=400, help='largest number of frames to label'
    )
    parser.add_argument(
        '--replay',
        type=Path,
        nargs='+',
        metavar='FOLDER',
        help='pairs with exact disparity that the student must not forget (default: some '
        'are rendered)',
    )
    parser.add_argument(
        '--patience',
        type=int,
        default=4,
        metavar='N',
        help='stop after this many validations without improvement (default: 4)',
    )
    parser.add_argument('--out', type=Path, default=Path('runs/adapt'), help='folder of the run')
    parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', dest='overrides')
    parser.add_argument(
        '--minutes', type=float, help='stop with a checkpoint after this many minutes'
    )
    parser.add_argument(
        '--resume', action='store_true', help='continue from the checkpoint of the run'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.set_defaults(run=run)


def replay_folders(args: argparse.Namespace) -> list[Path]:
    """Return the folders of pairs with exact truth; some are rendered where none is named."""
    if args.replay:
        return list(args.replay)
    # Needs the renderer (extra [sim]), which pairs on disk do not.
    from lunar_stereo_recon.simulation.dataset import DatasetOptions, write_dataset

    folder = args.out / 'replay'
    options = DatasetOptions(REPLAY_SEED, 'train', REPLAY_SIZE)
    # The pairs are written while one goes over their numbers.
    with tqdm(total=REPLAY_PAIRS, desc='rendering', unit='pair') as bar:
        for number in write_dataset(folder, REPLAY_PAIRS, options):
            bar.update(number)
    return [folder]


def run(args: argparse.Namespace) -> int:
    """Label the bag, train, and keep the student only where it is better."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    device = join_processes(args.device)
    start = student_weights(args.student)
    network = trained_network(start)
    if not isinstance(network, FlightStudent):
        raise InputError(
            f'--student {start} is a {type(network).__name__}; a flight one is needed'
        )
    labels = args.out / 'labels'
    shares = label_bag(args.bag, args.teacher, labels, args.frames, device)
    print(f'{len(shares)} frames labelled; sure of {100 * np.mean(shares):.0f} % of the pixels')
    split = split_frames(args.out / 'split', labels, replay_folders(args))
    overrides = [
        f'data.train=["{split.train}"]',
        f'data.replay=["{split.replay}"]',
        f'students.flight.start.checkpoint="{start}"',
    ]
    recipe = load_recipe(recipe_path('adapt'), [*overrides, *args.overrides])
    trainer = Trainer(recipe, args.out / 'run', device, resume=args.resume)
    best = adapt_guarded(trainer, split, args.out, args.patience, args.minutes, args.resume)
    print(best.text())
    print(f'export it with: python -m training export {args.out / "checkpoint"} flight.onnx')
    return 0
