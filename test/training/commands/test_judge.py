import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.residual import EVIDENCE
from training.commands import judge


def test_the_choice_is_learnt_from_what_it_is_worth():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((len(EVIDENCE), 6000)).astype(np.float32)
    better = features[0] + 0.5 * np.abs(features[1]) > 0.3
    worth = rng.random(6000).astype(np.float32)
    # What is worth nothing may be wrong.
    worthless = rng.random(6000) < 0.3
    shown = np.where(worthless, ~better, better)
    fitted = judge.fit(features, shown, np.where(worthless, np.float32(0), worth), steps=400)
    assert ((fitted.log_odds(features) > 0) == better).mean() > 0.95


def test_the_same_data_give_the_same_judge():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((len(EVIDENCE), 500)).astype(np.float32)
    data = features, features[0] > 0, np.ones(500, np.float32)
    assert judge.fit(*data, steps=20).to_json() == judge.fit(*data, steps=20).to_json()


def test_nothing_to_choose_from_is_said():
    with pytest.raises(InputError, match='0 frames'):
        judge.collect(None, [], 0)


def test_only_bright_places_are_spoiled():
    rng = np.random.default_rng(0)
    left = np.full((120, 160), 0.5, np.float32)
    left[:60] = 0.02
    disparity = np.full(left.shape, 30, np.float32)
    change = np.abs(judge.spoiled(disparity, left, rng) - disparity)
    assert change[:50].max() == 0
    assert 0.5 < change[66:].max()
    assert (change[66:] > 0.25).mean() > 0.02
