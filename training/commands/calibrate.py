"""Fit the confidence of a finished model on rendered frames that it was not trained on.

The model is run as on a rover, refinement included, so the confidence is calibrated for what
users get. Sky has no surface to be right about and counts as wrong, with a tenth of its pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import onnx

from lunar_stereo_recon.backends import load_backend, model_seal
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.scores import ause, expected_calibration_error
from lunar_stereo_recon.files.arrays import load_arrays
from lunar_stereo_recon.geometry.confidence import (
    calibrated_confidence,
    ConfidenceCalibration,
    fit_confidence,
)
from lunar_stereo_recon.pipeline import StereoReconstructor
from training.data.batches import list_samples, read_sample

CORRECT_BELOW_PX = 1.0
SKY_SHARE = 0.1
PIXELS_PER_FRAME = 15000
HELD_OUT_EVERY = 4


def load_rendered_pair(path: Path) -> tuple[StereoPair, NDArray[np.float32]]:
    """Return a rendered pair and its true disparity (H, W), pixels, NaN in the sky.

    Raises:
        InputError: The file is not a readable rendered pair.
    """
    sample = read_sample(path)
    camera = load_arrays(path, 'rendered pair', ('intrinsics', 'baseline_m'))
    intrinsics, baseline_m = camera['intrinsics'], float(camera['baseline_m'])
    height, width = sample['disparity'].shape
    fx, fy, cx, cy = (float(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    calibration = StereoCalibration(fx, fy, cx, cy, cx, baseline_m, width, height)
    return StereoPair(sample['left'], sample['right'], calibration), sample['disparity']


def chosen_pixels(
    error: NDArray[np.floating], rng: np.random.Generator, count: int = PIXELS_PER_FRAME
) -> NDArray[np.intp]:
    """Return flat indices of pixels to fit on; `error` is NaN in the sky."""
    ground, sky = np.flatnonzero(~np.isnan(error)), np.flatnonzero(np.isnan(error))
    ground = rng.choice(ground, min(count, ground.size), replace=False)
    sky = rng.choice(sky, min(int(SKY_SHARE * count), sky.size), replace=False)
    return np.concatenate([ground, sky])


def matched_frames(
    engine: StereoReconstructor, paths: Sequence[Path]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield each frame's features (K, H, W) and disparity error (H, W), NaN in the sky."""
    for path in paths:
        pair, truth = load_rendered_pair(path)
        engine.reset_rows()
        engine.match(pair)  # tells how the rows of this frame's rig are aligned
        matched = engine.match(pair)
        error = np.abs(matched.disparity - truth)
        # No estimate where there is ground is as wrong as can be.
        error[np.isnan(error) & np.isfinite(truth)] = np.inf
        error[np.isnan(truth)] = np.nan
        yield matched.features, error


def fit(
    engine: StereoReconstructor, paths: Sequence[Path], seed: int = 0
) -> ConfidenceCalibration:
    """Return the calibration fitted on some pixels of each frame."""
    rng = np.random.default_rng(seed)
    features, correct = [], []
    for planes, error in matched_frames(engine, paths):
        pixels = chosen_pixels(error, rng)
        features.append(planes.reshape(len(planes), -1)[:, pixels])
        correct.append(error.ravel()[pixels] < CORRECT_BELOW_PX)
    return fit_confidence(np.concatenate(features, axis=1), np.concatenate(correct))


def score(
    engine: StereoReconstructor, paths: Sequence[Path], calibration: ConfidenceCalibration
) -> dict[str, float]:
    """Return the calibration error, AUSE and mean confidence of ground and sky."""
    confidences, corrects, areas, skies = [], [], [], []
    for planes, error in matched_frames(engine, paths):
        confidence = calibrated_confidence(planes, calibration)
        ground = np.isfinite(error)
        confidences.append(confidence[ground])
        corrects.append(error[ground] < CORRECT_BELOW_PX)
        areas.append(ause(error[ground].astype(np.float64), confidence[ground]))
        skies.append(confidence[np.isnan(error)])
    confidence, correct = np.concatenate(confidences), np.concatenate(corrects)
    sky = np.concatenate(skies)
    return {
        'ece': expected_calibration_error(confidence, correct),
        'ause': float(np.mean([area for area in areas if area is not None])),
        'mean_confidence': float(confidence.mean()),
        'correct': float(correct.mean()),
        'sky_confidence': float(sky.mean()) if sky.size else 0.0,
    }


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'calibrate', help="fit a model's confidence on frames apart from training"
    )
    parser.add_argument('model', type=Path, help='.onnx file of the model')
    parser.add_argument('data', type=Path, nargs='+', help='folders of rendered full frames')
    parser.add_argument('--out', type=Path, help='JSON file to write the calibration to')
    parser.add_argument(
        '--write', action='store_true', help='store the calibration in the metadata of the model'
    )
    parser.add_argument(
        '--threads', type=int, default=0, help='CPU threads; 0 leaves the number to the runtime'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit on three frames of four, report on the fourth, then fit on all."""
    engine = StereoReconstructor(load_backend('onnx', args.model, threads=args.threads))
    paths = list_samples(args.data)
    held_out = paths[::HELD_OUT_EVERY]
    fitted_on = [path for path in paths if path not in held_out]
    if not fitted_on:
        raise InputError(f'{len(paths)} frames in {args.data}; at least 2 are needed')
    for name, value in score(engine, held_out, fit(engine, fitted_on)).items():
        print(f'held out {name:16s} {value:.4f}')
    calibration = fit(engine, paths)
    text = json.dumps(calibration.to_metadata())
    for name, weight in calibration.weights.items():
        print(f'{name:16s} {weight:+.3f}')
    if args.out:
        args.out.write_text(text, encoding='utf-8')
    if args.write:
        store(args.model, text)
    return 0


def store(model_path: Path, calibration: str) -> None:
    """Write the calibration (JSON) into a model's metadata, the rest untouched."""
    model = onnx.load(model_path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    entries['confidence_calibration'] = calibration
    entries.pop(model_seal.KEY, None)
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, model_path)
    model_seal.seal_model(model_path)
