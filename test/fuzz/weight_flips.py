"""Flip bits in the weights of a model and see who notices: the seal, then the self-test alone.

PYTHONPATH=. python test/fuzz/weight_flips.py --flips 200

With the seal intact every flip must be refused. With the seal made anew, as by someone who
changes a file on purpose or before it is sealed, the runtime and the self-test are what is left.
What they take is compared with the intact model on another pair, end to end.
"""

from __future__ import annotations

import argparse
from collections import Counter
import logging
from pathlib import Path
import random
import sys
import tempfile

import cv2
import numpy as np
import onnx

from lunar_stereo_recon.backends import load_backend, model_file
from lunar_stereo_recon.backends.model_seal import check_model_file, seal_model
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor

HEIGHT, WIDTH = 192, 320
RIG = StereoCalibration(300.0, 300.0, 159.5, 95.5, 159.5, 0.2, WIDTH, HEIGHT)
# Accepted points that differ by more than a pixel; beyond this share of them a result is wrong.
WRONG_SHARE = 0.01
SURE = 0.5
TOP_EXPONENT_BIT = 30


def other_pair() -> StereoPair:
    """Return a wavy scene of 10 to 14 px that the self-test does not use."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    noise = np.random.default_rng(3).standard_normal((HEIGHT, WIDTH + 32)).astype(np.float32)
    texture = np.clip(0.5 + 0.4 * cv2.GaussianBlur(noise, (0, 0), 1.2), 0, 1)
    disparity = 12 + 2 * np.sin(2 * np.pi * rows / 96)
    left = cv2.remap(texture, columns - disparity + 32, rows, cv2.INTER_LANCZOS4)
    return StereoPair(np.clip(left, 0, 1), np.ascontiguousarray(texture[:, 32:]), RIG)


def answer(path: Path) -> Reconstruction:
    """Return what a model makes of that pair.

    Raises:
        ModelError: It is refused.
    """
    backend = load_backend('onnx', path, threads=1)
    options = ReconstructionOptions(confidence_threshold=0.0)
    return StereoReconstructor(backend, options).reconstruct(other_pair())


def outcome(result: Reconstruction, intact: Reconstruction) -> str:
    """Say in a word what a damaged model's answer is worth."""
    sure = np.isfinite(result.disparity) & (result.confidence >= SURE)
    known = np.isfinite(intact.disparity)
    off = np.abs(result.disparity - intact.disparity)[sure & known]
    if off.size and (off > 1).mean() > WRONG_SHARE:
        return 'taken and wrong'
    if sure.sum() < 0.9 * (intact.confidence >= SURE).sum():
        return 'taken, less sure'
    return 'taken, no harm'


def campaign(model: Path, flips: int, seed: int, top_bit: bool) -> Counter:
    """Return counts of outcomes; the first part of a name is whether the seal was made anew."""
    randomness = random.Random(seed)
    counts: Counter = Counter()
    content = onnx.load(model)
    weights = [w for w in content.graph.initializer if w.data_type == onnx.TensorProto.FLOAT]
    sizes = [len(w.raw_data) // 4 for w in weights]
    raw = model.read_bytes()
    intact = answer(model)
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / 'damaged.onnx'
        for _ in range(flips):
            weight = randomness.choices(weights, sizes)[0]
            element = randomness.randrange(len(weight.raw_data) // 4)
            bit = TOP_EXPONENT_BIT if top_bit else randomness.randrange(32)
            before = weight.raw_data
            values = np.frombuffer(before, '<u4').copy()
            values[element] ^= np.uint32(1 << bit)
            weight.raw_data = values.tobytes()
            # The same bit in the file as it was sealed.
            place = raw.index(before) + 4 * element + bit // 8
            with_seal = bytearray(raw)
            with_seal[place] ^= 1 << bit % 8
            damaged.write_bytes(with_seal)
            try:
                check_model_file(damaged)
                counts['seal intact: TAKEN'] += 1
            except ModelError:
                counts['seal intact: refused'] += 1
            onnx.save(content, damaged)
            seal_model(damaged)
            weight.raw_data = before
            try:
                counts[f'seal made anew: {outcome(answer(damaged), intact)}'] += 1
            except ModelError as error:
                who = 'the self-test' if 'self-test' in str(error) else 'the runtime'
                counts[f'seal made anew: refused by {who}'] += 1
    return counts


def main() -> int:
    """Return 1 where a flip went unnoticed although the seal was intact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='flight', help='.onnx file or a shipped name')
    parser.add_argument('--flips', type=int, default=200, help='of each kind')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    unnoticed = 0
    for top_bit in (False, True):
        counts = campaign(model_file(args.model), args.flips, args.seed, top_bit)
        print('top exponent bits' if top_bit else 'any bits')
        for name, count in sorted(counts.items()):
            print(f'  {name}: {count}', flush=True)
        unnoticed += counts['seal intact: TAKEN']
    return 1 if unnoticed else 0


if __name__ == '__main__':
    sys.exit(main())
