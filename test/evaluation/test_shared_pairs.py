"""On pairs of an independent renderer, where they lie beside the checkout (../shared/data)."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends.sgbm_backend import ClassicalBackend
from lunar_stereo_recon.evaluation.scores import load_ground_truth, score_pair, summarise
from lunar_stereo_recon.files.manifests import load_manifest
from lunar_stereo_recon.geometry.disparity import fill_from_background
from lunar_stereo_recon.geometry.refine import refine_disparity, RefineOptions

DATA = Path(__file__).resolve().parents[2].parent / 'shared' / 'data'
MANIFEST = DATA / 'rover_dev' / 'manifest.json'

pytestmark = pytest.mark.skipif(not MANIFEST.is_file(), reason=f'no {MANIFEST}')


@pytest.fixture(scope='module')
def entries():
    """Return one pair of each tag."""
    return list({entry.tag: entry for entry in load_manifest(MANIFEST)}.values())


@pytest.fixture(scope='module')
def reference():
    spec = importlib.util.spec_from_file_location('reference_scorer', DATA / 'evaluate.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def truth_of(entry):
    size = entry.calibration.height, entry.calibration.width
    factor = entry.calibration.fx * entry.calibration.baseline_m
    return load_ground_truth(entry.ground_truth, *size, factor)


def smooth_error(shape, deviation, seed):
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 12)
    return noise * np.float32(deviation / noise.std())


def test_scores_are_those_of_the_reference(entries, reference):
    data = str(MANIFEST.parent)
    pairs = {pair['id']: pair for pair in reference.load_manifest(data)}
    expected, actual = [], []
    for seed, entry in enumerate(entries):
        rng = np.random.default_rng(seed)
        truth = truth_of(entry)
        disparity = truth.disparity + rng.normal(0, 1, truth.disparity.shape)
        disparity[rng.random(disparity.shape) < 0.1] = np.nan
        confidence = rng.random(disparity.shape)
        pair = pairs[entry.id]
        sums, area = reference.score_pair(
            pair, reference.load_gt(data, pair), disparity, confidence
        )
        expected.append((entry.tag, sums, area, 20.0))
        focal_times_baseline = entry.calibration.fx * entry.calibration.baseline_m
        actual.append(
            score_pair(disparity, truth, focal_times_baseline, confidence, entry.tag, 20.0)
        )
    ours = summarise(actual)
    for tag, figures in reference.summarise(expected).items():
        for name, value in figures.items():
            found = ours[tag][name]
            if isinstance(value, dict):
                found = {key: found[key] for key in value}
            assert found == pytest.approx(value, abs=1e-4), (tag, name)


def test_filling_is_that_of_the_reference(entries, reference):
    disparity = truth_of(entries[0]).disparity.astype(np.float32).copy()
    disparity[np.random.default_rng(0).random(disparity.shape) < 0.7] = np.nan
    np.testing.assert_array_equal(
        fill_from_background(disparity), reference.fill_background(disparity)
    )


def test_refinement_improves_a_soft_prior_on_every_kind_of_ground(entries):
    for seed, entry in enumerate(entries):
        pair, truth = entry.load_pair(), truth_of(entry)
        prior = np.nan_to_num(truth.disparity, nan=0.0).astype(np.float32)
        prior += smooth_error(prior.shape, 0.4, seed)
        refined = refine_disparity(pair.left, pair.right, prior, RefineOptions()).disparity
        before = np.abs(prior - truth.disparity)[truth.valid]
        after = np.abs(refined - truth.disparity)[truth.valid]
        assert after.mean() < 0.6 * before.mean(), entry.id
        assert (after > 0.5).mean() < 0.5 * (before > 0.5).mean(), entry.id
        assert (after > 2).mean() <= (before > 2).mean() + 3e-4, entry.id


def test_refinement_leaves_a_right_prior_right(entries):
    for entry in entries:
        pair, truth = entry.load_pair(), truth_of(entry)
        prior = np.nan_to_num(truth.disparity, nan=0.0).astype(np.float32)
        refined = refine_disparity(pair.left, pair.right, prior, RefineOptions()).disparity
        error = np.abs(refined - truth.disparity)[truth.valid]
        assert (error > 0.5).mean() < 0.01 and (error > 2).mean() < 1e-4, entry.id


def test_refinement_improves_a_classical_map(entries):
    entry = entries[0]
    pair, truth = entry.load_pair(), truth_of(entry)
    prior = fill_from_background(ClassicalBackend('bm').predict(pair.left, pair.right).disparity)
    refined = refine_disparity(pair.left, pair.right, prior, RefineOptions()).disparity
    before, after = (np.abs(d - truth.disparity)[truth.valid] for d in (prior, refined))
    for limit in (0.5, 1.0, 2.0):
        assert (after > limit).mean() < (before > limit).mean()
