"""Fit the confidence and the sigma of a finished model on frames that it was not trained on.

The model is run as on a rover, refinement included, so both are calibrated for what users get.
Sky has no surface to be right about and counts as wrong, with a tenth of its pixels; it says
nothing about sigma. Every frame is matched once, and what was found is kept in temporary files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import tempfile

import numpy as np
from numpy.typing import NDArray
import onnx
from tqdm import tqdm

from lunar_stereo_recon.backends import load_backend, model_seal
from lunar_stereo_recon.backends.choice_network import ChoiceNetwork
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.scores import (
    ause,
    expected_calibration_error,
    sigma_bins,
    sigma_counts,
)
from lunar_stereo_recon.geometry.confidence import (
    calibrated_confidence,
    ConfidenceCalibration,
    fit_confidence,
)
from lunar_stereo_recon.geometry.sigma import disparity_sigma, fit_sigma, SigmaCalibration
from lunar_stereo_recon.pipeline import filled_disparity, Matched, StereoReconstructor
from training.data.batches import list_samples, load_rendered_pair

CORRECT_BELOW_PX = 1.0
SKY_SHARE = 0.1
PIXELS_PER_FRAME = 15000
HELD_OUT_EVERY = 4


def chosen_pixels(
    error: NDArray[np.floating], rng: np.random.Generator, count: int = PIXELS_PER_FRAME
) -> NDArray[np.intp]:
    """Return flat indices of pixels to fit on; `error` is NaN in the sky."""
    ground, sky = np.flatnonzero(~np.isnan(error)), np.flatnonzero(np.isnan(error))
    ground = rng.choice(ground, min(count, ground.size), replace=False)
    sky = rng.choice(sky, min(int(SKY_SHARE * count), sky.size), replace=False)
    return np.concatenate([ground, sky])


@dataclass(frozen=True)
class MatchedFrame:
    """What was found in a frame, in a file, and what is true of it.

    Attributes:
        path: The file, with features, disparity, left image and true disparity.
    """

    path: Path

    def error(self) -> NDArray[np.float32]:
        """Return the disparity error (H, W) before the fill, signed; NaN in the sky."""
        with np.load(self.path) as arrays:
            return _error(arrays['disparity'], arrays['truth'])

    def features(self) -> NDArray[np.float32]:
        """Return (K, H, W), see `geometry.confidence`."""
        with np.load(self.path) as arrays:
            return np.asarray(arrays['features'])

    def filled(
        self, calibration: ConfidenceCalibration
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return how far the fill moves the disparity, and the error after it, (H, W) each."""
        with np.load(self.path) as arrays:
            found, features = arrays['disparity'], arrays['features']
            matched = Matched(found, features, (0.0, np.inf))
            confidence = calibrated_confidence(features, calibration)
            disparity = filled_disparity(matched, confidence, arrays['left'])
            return np.abs(disparity - found), _error(disparity, arrays['truth'])


def _error(disparity: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float32]:
    error = disparity - truth
    # No estimate where there is ground is as wrong as can be.
    error[np.isnan(error) & np.isfinite(truth)] = np.inf
    error[np.isnan(truth)] = np.nan
    return error


def match_frames(
    engine: StereoReconstructor, paths: Sequence[Path], folder: Path
) -> list[MatchedFrame]:
    """Match each frame as on a rover; return what was found, in files of a folder."""
    frames = []
    for number, path in enumerate(tqdm(paths, desc='matching', unit='frame')):
        pair, truth = load_rendered_pair(path)
        engine.reset_rows()
        engine.match(pair)  # tells how the rows of this frame's rig are aligned
        matched = engine.match(pair)
        frames.append(MatchedFrame(folder / f'{number:06d}.npz'))
        np.savez(
            frames[-1].path,
            features=matched.features,
            disparity=matched.disparity,
            left=pair.left,
            truth=truth,
        )
    return frames


def fit(frames: Sequence[MatchedFrame], seed: int = 0) -> ConfidenceCalibration:
    """Return the confidence fitted on some pixels of each frame."""
    rng = np.random.default_rng(seed)
    features, correct = [], []
    for frame in frames:
        error, planes = np.abs(frame.error()), frame.features()
        pixels = chosen_pixels(error, rng)
        features.append(planes.reshape(len(planes), -1)[:, pixels])
        correct.append(error.ravel()[pixels] < CORRECT_BELOW_PX)
    return fit_confidence(np.concatenate(features, axis=1), np.concatenate(correct))


def fit_sigma_on(
    frames: Sequence[MatchedFrame], calibration: ConfidenceCalibration, seed: int = 0
) -> SigmaCalibration:
    """Return sigma fitted on some pixels of each frame, after the fill by that confidence."""
    rng = np.random.default_rng(seed)
    features, filled, errors = [], [], []
    for frame in frames:
        moved_px, error = frame.filled(calibration)
        known = np.flatnonzero(np.isfinite(error))
        pixels = rng.choice(known, min(PIXELS_PER_FRAME, known.size), replace=False)
        planes = frame.features()
        features.append(planes.reshape(len(planes), -1)[:, pixels])
        filled.append(moved_px.ravel()[pixels])
        errors.append(error.ravel()[pixels])
    return fit_sigma(
        np.concatenate(features, axis=1), np.concatenate(filled), np.concatenate(errors)
    )


def score(frames: Sequence[MatchedFrame], calibration: ConfidenceCalibration) -> dict[str, float]:
    """Return the calibration error, AUSE and mean confidence of ground and sky."""
    confidences, corrects, areas, skies = [], [], [], []
    for frame in frames:
        confidence, error = calibrated_confidence(frame.features(), calibration), frame.error()
        error = np.abs(error)
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


def score_sigma(
    frames: Sequence[MatchedFrame],
    calibration: ConfidenceCalibration,
    sigma_calibration: SigmaCalibration,
) -> list[dict[str, float]]:
    """Return `evaluation.scores.sigma_bins` of all pixels with an estimate."""
    counts = []
    for frame in frames:
        moved_px, error = frame.filled(calibration)
        sigma = disparity_sigma(frame.features(), moved_px, sigma_calibration)
        known = np.isfinite(error)
        counts.append(sigma_counts(sigma[known], np.abs(error[known])))
    return sigma_bins(np.sum(counts, axis=0))


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'calibrate', help="fit a model's confidence and sigma on frames apart from training"
    )
    parser.add_argument('model', type=Path, help='.onnx file of the model')
    parser.add_argument('data', type=Path, nargs='+', help='folders of rendered full frames')
    parser.add_argument('--out', type=Path, help='JSON file to write the calibration to')
    parser.add_argument(
        '--chooser', type=Path, help='.onnx file of `choice` (default: the shipped one)'
    )
    parser.add_argument(
        '--write', action='store_true', help='store the calibration in the metadata of the model'
    )
    parser.add_argument(
        '--threads', type=int, default=0, help='CPU threads; 0 leaves the number to the runtime'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit on three frames of four, report on the fourth, then fit on all."""
    backend = load_backend('onnx', args.model, threads=args.threads)
    chooser = ChoiceNetwork(args.chooser, args.threads) if args.chooser else None
    engine = StereoReconstructor(backend, chooser=chooser)
    paths = list_samples(args.data)
    if len(paths) < 2:
        raise InputError(f'{len(paths)} frames in {args.data}; at least 2 are needed')
    if args.out:  # before the work: a folder that cannot be made loses none
        args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='calibrate_') as folder:
        frames = match_frames(engine, paths, Path(folder))
        held_out = frames[::HELD_OUT_EVERY]
        _report(held_out, [frame for frame in frames if frame not in held_out])
        calibration = fit(frames)
        sigma = fit_sigma_on(frames, calibration)
    text = json.dumps({**calibration.to_metadata(), 'sigma': sigma.to_metadata()})
    print('feature           confidence   sigma')
    for name, weight in sigma.weights.items():
        print(f'{name:16s} {calibration.weights.get(name, 0.0):+10.3f} {weight:+10.3f}')
    if args.out:
        args.out.write_text(text, encoding='utf-8')
    if args.write:
        store(args.model, text)
    return 0


def _report(held_out: Sequence[MatchedFrame], fitted_on: Sequence[MatchedFrame]) -> None:
    """Print how well a fit on some frames serves others."""
    calibration = fit(fitted_on)
    for name, value in score(held_out, calibration).items():
        print(f'held out {name:16s} {value:.4f}')
    sigma = fit_sigma_on(fitted_on, calibration)
    print('held out  sigma, px  within one  within two sigma, %')
    for row in score_sigma(held_out, calibration, sigma):
        shares = (100 * row[name] for name in ('within_one', 'within_two'))
        print(f'{row["sigma_px"]:18.3f} {next(shares):11.1f} {next(shares):11.1f}')


def store(model_path: Path, calibration: str) -> None:
    """Write the calibrations (JSON) into a model's metadata, the rest untouched."""
    model = onnx.load(model_path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    entries['confidence_calibration'] = calibration
    entries.pop(model_seal.KEY, None)
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, model_path)
    model_seal.seal_model(model_path)
