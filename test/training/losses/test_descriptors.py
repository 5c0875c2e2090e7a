"""Losses over descriptors: reference values, and where they are least."""

from __future__ import annotations

import math

import pytest
import torch

from training.losses import descriptors as losses


def test_matching(reference):
    descriptors = (reference.leaf('pred1_desc'), reference.leaf('pred2_desc'))
    confidence = (reference.leaf('pred1_desc_conf'), reference.leaf('pred2_desc_conf'))
    pixels, valid = reference.pair('corres#_xy'), reference.inputs['valid_corres']
    loss, monitors = losses.confidence_weighted_matching(descriptors, confidence, pixels, valid)
    reference.agrees('conf_matching', loss)
    reference.agrees('matching_infonce_proper', monitors['matching'])
    names = ('match_desc1', 'match_desc2', 'match_dc1', 'match_dc2')
    leaves = dict(zip(names, (*descriptors, *confidence), strict=True))
    reference.gradients_agree(loss, leaves)


def test_matching_of_equal_unit_descriptors_is_near_its_minimum():
    eye = torch.eye(8)[None]
    loss = losses.infonce(eye, eye)
    assert loss.max().item() < 1e-4
    assert losses.infonce(eye, eye.roll(1, 1)).min().item() > 30.0
    # Impossible matches are floored: a wrong label cannot blow up a step.
    assert losses.infonce(eye, eye.roll(1, 1), temperature=0.01).max().item() == pytest.approx(
        -2 * math.log(1e-8), rel=1e-4
    )
