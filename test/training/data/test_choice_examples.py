import numpy as np
import pytest

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.residual import CANDIDATES, EVIDENCE
from lunar_stereo_recon.pipeline import StereoReconstructor
from training.data.choice_examples import (
    ChoiceCrops,
    CROP_HEIGHT,
    CROP_WIDTH,
    make_examples,
    read_example,
    spoiled,
)


@pytest.fixture(scope='module')
def frames(tmp_path_factory):
    """Return a folder with one frame: noise, shifted by 12 px, half of it in the sky."""
    folder = tmp_path_factory.mktemp('frames')
    rng = np.random.default_rng(0)
    texture = (rng.random((192, 268)) * 255).astype(np.uint8)
    truth = np.full((192, 256), 12, np.float32)
    truth[:40] = np.nan
    np.savez(
        folder / '000000.npz',
        left=texture[:, :256],
        right=texture[:, 12:],
        disparity=truth,
        shadow=np.zeros(truth.shape, bool),
        occlusion=np.zeros(truth.shape, np.uint8),
        intrinsics=np.array([[200, 0, 127.5], [0, 200, 95.5], [0, 0, 1.0]]),
        baseline_m=0.3,
    )
    return folder


@pytest.fixture(scope='module')
def examples(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp('examples')
    engine = StereoReconstructor(load_backend('onnx'))
    (path,) = make_examples(engine, sorted(frames.glob('*.npz')), folder, seed=0)
    return folder, path, engine


def test_an_example_is_what_a_rover_sees(examples):
    planes, prior, steps, truth = read_example(examples[1])
    assert planes.shape == (len(EVIDENCE), 192, 256)
    assert steps.shape == (len(CANDIDATES) - 1, 192, 256) and prior.shape == truth.shape
    assert np.isnan(truth[:40]).all()
    assert np.isfinite(planes).all() and np.isfinite(prior).all() and np.isfinite(steps).all()
    # What is farther is no nearer.
    assert (steps[1] <= 0).all() and (steps[2] >= 0).all()


def test_examples_that_are_there_are_kept(examples, frames):
    folder, path, engine = examples
    before = path.stat().st_mtime_ns
    make_examples(engine, sorted(frames.glob('*.npz')), folder, seed=1)
    assert path.stat().st_mtime_ns == before


def test_crops_depend_on_seed_and_number_alone(examples):
    first, again = (ChoiceCrops([examples[0]], 3)[5] for _ in range(2))
    np.testing.assert_array_equal(first.evidence, again.evidence)
    assert first.evidence.shape == (len(EVIDENCE), CROP_HEIGHT, CROP_WIDTH)
    assert first.candidates.shape == (len(CANDIDATES), CROP_HEIGHT, CROP_WIDTH)
    other = ChoiceCrops([examples[0]], 4)[5]
    assert not np.array_equal(first.evidence, other.evidence)


def test_examples_that_are_too_small_are_refused(tmp_path):
    np.savez(
        tmp_path / '000000.npz',
        evidence=np.zeros((len(EVIDENCE), 96, 96), np.float16),
        prior=np.zeros((96, 96), np.float32),
        steps=np.zeros((3, 96, 96), np.float16),
        truth=np.zeros((96, 96), np.float32),
    )
    with pytest.raises(InputError, match='96x96 pixels; at least 192x160'):
        ChoiceCrops([tmp_path], 0)[0]


def test_only_bright_places_are_spoiled():
    rng = np.random.default_rng(0)
    left = np.full((120, 160), 0.5, np.float32)
    left[:60] = 0.02
    disparity = np.full(left.shape, 30, np.float32)
    change = np.abs(spoiled(disparity, left, rng) - disparity)
    assert change[:50].max() == 0
    assert 0.5 < change[66:].max()
    assert (change[66:] > 0.25).mean() > 0.02
