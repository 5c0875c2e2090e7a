"""Turn a model's convolutions into int8 (static quantization), from a sample of frames.

Weights are quantized channel by channel, activations by their range over the frames. What gives
pixels (`float32_nodes` of the metadata) stays in float, and so does everything that is no
convolution (attention, correlation, softmax, warping): it takes little of the time and needs the
range. Fit the confidence again afterwards: `python -m training calibrate --write`.

Pays on processors with 8-bit dot products (AVX-512 VNNI, AVX-VNNI, Arm dotprod); elsewhere the
float model may well be faster: `lunar-stereo bench --speed` tells.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import tempfile

import numpy as np
from numpy.typing import NDArray
import onnx
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from lunar_stereo_recon.backends import load_backend, model_seal
from lunar_stereo_recon.backends.onnx_backend import OnnxBackend
from lunar_stereo_recon.errors import InputError
from training.data.batches import list_samples, read_sample

QUANTIZED = ('Conv',)
MAX_FRAMES = 16


class FrameReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds pairs to the quantizer, cut to the network's grid."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = iter(tqdm(paths, desc='measuring activations', unit='frame'))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next pair's `left` and `right` (1, 1, H, W), None after the last."""
        path = next(self._paths, None)
        if path is None:
            return None
        pair = grid_pair(path)
        return {view: pair[view][None, None] for view in ('left', 'right')}


def grid_pair(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return `left`, `right` in [0, 1] and `disparity` (H, W), cut to multiples of 32.

    Raises:
        InputError: The file cannot be read, or the pair is smaller than 32 pixels.
    """
    sample = read_sample(path)
    multiple = OnnxBackend.size_multiple
    height, width = (size // multiple * multiple for size in sample['left'].shape)
    if not (height and width):
        raise InputError(f'{path}: pair of {sample["left"].shape}; at least 32x32 is needed')
    return {name: sample[name][:height, :width] for name in ('left', 'right', 'disparity')}


def quantize(source: Path, target: Path, paths: Sequence[Path], reduce_range: bool) -> None:
    """Write the int8 form of a model, the metadata with it.

    Args:
        source: Float `.onnx` as `python -m training export` writes it.
        target: `.onnx` to write.
        paths: Rendered pairs (`.npz`) that give the ranges of the activations.
        reduce_range: Weights of 7 bits, for x86 processors without VNNI, where products of
            8 bits can saturate.
    """
    float_model = onnx.load(source)
    metadata = {entry.key: entry.value for entry in float_model.metadata_props}
    metadata.pop(model_seal.KEY, None)
    kept = json.loads(metadata.get('float32_nodes', '[]'))
    with tempfile.TemporaryDirectory() as folder:
        inferred = Path(folder) / 'inferred.onnx'
        quant_pre_process(str(source), str(inferred), skip_symbolic_shape=True)
        quantize_static(
            str(inferred),
            str(target),
            FrameReader(paths),
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=kept,
            per_channel=True,
            reduce_range=reduce_range,
        )
    model = onnx.load(target)
    metadata['name'] = f'{metadata.get("name") or source.stem}-int8'
    metadata['quantization'] = json.dumps(
        {
            'operators': list(QUANTIZED),
            'activations': 'uint8',
            'weights': 'int8 per channel',
            'reduce_range': reduce_range,
            'in_float': len(kept),
            'frames': len(paths),
        }
    )
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, target)
    model_seal.seal_model(target)


def differences(
    source: Path, target: Path, paths: Sequence[Path], threads: int
) -> NDArray[np.float32]:
    """Return (N,) pixels: by how much the two models' disparities of the ground differ."""
    models = [load_backend('onnx', path, threads=threads) for path in (source, target)]
    found = []
    for path in tqdm(paths, desc='comparing', unit='frame'):
        pair = grid_pair(path)
        first, second = (model.predict(pair['left'], pair['right']).disparity for model in models)
        found.append(np.abs(first - second)[np.isfinite(pair['disparity'])])
    return np.concatenate(found)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('quantize', help='write the int8 form of an ONNX model')
    parser.add_argument('model', type=Path, help='.onnx file in float')
    parser.add_argument('data', type=Path, nargs='+', help='folders of rendered full frames')
    parser.add_argument('--out', type=Path, required=True, help='.onnx file to write')
    parser.add_argument(
        '--frames', type=int, default=MAX_FRAMES, help='largest number of frames to use'
    )
    parser.add_argument(
        '--reduce-range', action='store_true', help='use 7-bit weights, for x86 without VNNI'
    )
    parser.add_argument(
        '--threads', type=int, default=0, help='CPU threads; 0 leaves the number to the runtime'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize on some frames, compare on others."""
    if args.frames < 1:
        raise InputError(f'--frames is {args.frames}; at least 1 is needed')
    # Fails in plain words where the file is not a model of this package.
    load_backend('onnx', args.model, threads=args.threads)
    paths = list_samples(args.data)
    fitted_on = paths[: args.frames]
    compared = paths[args.frames :][: args.frames] or fitted_on
    args.out.parent.mkdir(parents=True, exist_ok=True)
    quantize(args.model, args.out, fitted_on, args.reduce_range)
    change = differences(args.model, args.out, compared, args.threads)
    print(
        f'{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB; against the float model on '
        f'{len(compared)} frames: median {np.median(change):.3f} px, '
        f'{100 * (change > 0.5).mean():.2f} % of the pixels over 0.5 px'
    )
    return 0
