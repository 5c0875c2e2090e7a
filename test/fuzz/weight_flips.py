"""Flip bits in the shipped models and see who notices: at rest in the file, and in memory.

PYTHONPATH=. python test/fuzz/weight_flips.py --file-flips 1000 --flips 100 --seed 1

At rest, any bit of a file may flip, and the seal must refuse each. In memory the seal has been
passed already: a bit of a weight flips in what is loaded, and the self-test is what is left. What
passes is compared with the intact model on scenes that the self-test does not use, end to end.
`choice` is flipped beside an intact `flight`. Exit status: 1 where the seal takes a flip, or where
a flip that the self-tests take makes accepted points wrong.
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

from lunar_stereo_recon.backends import CHOICE_NETWORK, load_backend, model_file
from lunar_stereo_recon.backends.choice_network import ChoiceNetwork
from lunar_stereo_recon.backends.model_seal import check_model_file, seal_model
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor

MODELS = ('flight', 'flight_int8', 'choice')
HEIGHT, WIDTH = 192, 320
RIG = StereoCalibration(300.0, 300.0, 159.5, 95.5, 159.5, 0.2, WIDTH, HEIGHT)
# Accepted points that differ by more than a pixel; beyond this share of them a result is wrong.
WRONG_SHARE = 0.01
WRONG = 'taken and WRONG'
SURE = 0.5
# The bit of a number that harms most: the top one of a float's exponent, an integer's sign.
WORST_BIT = {
    onnx.TensorProto.FLOAT: 30,
    onnx.TensorProto.INT8: 7,
    onnx.TensorProto.INT32: 31,
}
BITS = {onnx.TensorProto.FLOAT: 32, onnx.TensorProto.INT8: 8, onnx.TensorProto.INT32: 32}


def other_pairs() -> list[StereoPair]:
    """Return two scenes of 10 to 14 px that the self-test does not use: even light, and dim."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    waves = 12 + 2 * np.sin(2 * np.pi * rows / 96)
    steps = np.where((rows // 48 + columns // 80) % 2 == 0, np.float32(10), np.float32(14))
    pairs = []
    for seed, disparity, light in ((3, waves, 0.4), (4, steps, 0.1)):
        noise = np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH + 32))
        noise = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.2)
        texture = np.clip(light * (1.2 + noise), 0, 1)
        left = cv2.remap(texture, columns - disparity + 32, rows, cv2.INTER_LANCZOS4)
        pairs.append(StereoPair(np.clip(left, 0, 1), np.ascontiguousarray(texture[:, 32:]), RIG))
    return pairs


def answers(name: str, path: Path) -> list[Reconstruction]:
    """Return what the pipeline makes of those pairs with a model from another file.

    Raises:
        ModelError: It is refused.
    """
    chooser = ChoiceNetwork(path, 1) if name == 'choice' else None
    backend = load_backend('onnx', None if name == 'choice' else path, threads=1)
    options = ReconstructionOptions(confidence_threshold=0.0)
    results = []
    for pair in other_pairs():
        results.append(StereoReconstructor(backend, options, chooser).reconstruct(pair))
    return results


def outcome(results: list[Reconstruction], intact: list[Reconstruction]) -> str:
    """Say in a word what a damaged model's answers are worth, by the worst of them."""
    words = [_outcome(result, whole) for result, whole in zip(results, intact, strict=True)]
    return next(word for word in (WRONG, 'taken, less sure', 'taken, no harm') if word in words)


def _outcome(result: Reconstruction, intact: Reconstruction) -> str:
    sure = np.isfinite(result.disparity) & (result.confidence >= SURE)
    known = np.isfinite(intact.disparity)
    off = np.abs(result.disparity - intact.disparity)[sure & known]
    if off.size and (off > 1).mean() > WRONG_SHARE:
        return WRONG
    if sure.sum() < 0.9 * (intact.confidence >= SURE).sum():
        return 'taken, less sure'
    return 'taken, no harm'


def flips_at_rest(path: Path, flips: int, seed: int) -> Counter[str]:
    """Return how many flips of any bit of a file the seal refuses and takes."""
    randomness = random.Random(seed)
    content = bytearray(path.read_bytes())
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / path.name
        for _ in range(flips):
            at, bit = randomness.randrange(len(content)), 1 << randomness.randrange(8)
            content[at] ^= bit
            damaged.write_bytes(content)
            content[at] ^= bit
            try:
                check_model_file(damaged)
                counts['TAKEN'] += 1
            except ModelError:
                counts['refused'] += 1
    return counts


def flips_in_memory(name: str, path: Path, flips: int, seed: int, worst: bool) -> Counter[str]:
    """Return counts of outcomes of flipped weights; `worst` takes the bit that harms most.

    The bit is flipped in the graph that the runtime loads, under a seal of its own: what counts
    is that nothing before the self-test can see it.
    """
    randomness = random.Random(seed)
    counts: Counter[str] = Counter()
    graph = onnx.load(path)
    weights = [w for w in graph.graph.initializer if w.data_type in BITS and w.raw_data]
    sizes = [len(w.raw_data) for w in weights]
    intact = answers(name, path)
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / path.name
        for _ in range(flips):
            weight = randomness.choices(weights, sizes)[0]
            bits = BITS[weight.data_type]
            element = randomness.randrange(8 * len(weight.raw_data) // bits)
            bit = WORST_BIT[weight.data_type] if worst else randomness.randrange(bits)
            before = weight.raw_data
            flipped = bytearray(before)
            flipped[element * bits // 8 + bit // 8] ^= 1 << bit % 8
            weight.raw_data = bytes(flipped)
            onnx.save(graph, damaged)
            weight.raw_data = before
            seal_model(damaged)
            try:
                counts[outcome(answers(name, damaged), intact)] += 1
            except ModelError as error:
                self_test = 'self-test' in str(error)
                counts[f'refused by {"the self-test" if self_test else "the runtime"}'] += 1
    return counts


def main() -> int:
    """Return 1 where a flip did harm unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', choices=MODELS, default=MODELS)
    parser.add_argument('--file-flips', type=int, default=1000, help='of each file, at rest')
    parser.add_argument('--flips', type=int, default=100, help='of each kind, in memory')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    harm = 0
    for name in args.models:
        path = CHOICE_NETWORK if name == 'choice' else model_file(name)
        counts = {'at rest': flips_at_rest(path, args.file_flips, args.seed)}
        print(f'{name}, at rest: {dict(counts["at rest"])}', flush=True)
        for kind, worst in (('any bit', False), ('the worst bit', True)):
            counts[kind] = flips_in_memory(name, path, args.flips, args.seed, worst)
            print(f'{name}, in memory, {kind}: {dict(sorted(counts[kind].items()))}', flush=True)
        harm += counts['at rest']['TAKEN'] + sum(c[WRONG] for c in counts.values())
    return 1 if harm else 0


if __name__ == '__main__':
    sys.exit(main())
