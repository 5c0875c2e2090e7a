"""A network that a file asks for has sizes that can be built."""

import dataclasses
import time

import pytest

from lunar_stereo_recon.errors import ModelError
from training.models.checkpoints import parse_constructor
from training.models.mast3r import Mast3rConfig
from training.models.sizes import check_sizes
from training.students import CONFIGS, student_config


@pytest.mark.parametrize('kind', CONFIGS)
def test_known_networks_are_within_the_limits(kind):
    check_sizes(CONFIGS[kind], kind)


@pytest.mark.parametrize(
    'name, value', [('encoder_depth', 10**9), ('decoder_width', -1), ('mlp_ratio', float('inf'))]
)
def test_other_sizes_are_refused_at_once(name, value):
    start = time.monotonic()
    with pytest.raises(ModelError, match=name):
        student_config('mast3r', {name: value})
    with pytest.raises(ModelError, match=name):
        check_sizes(dataclasses.replace(Mast3rConfig(), **{name: value}), 'file')
    assert time.monotonic() - start < 1.0


def test_a_constructor_in_too_many_brackets_is_refused():
    with pytest.raises(ModelError, match='cannot be read'):
        parse_constructor('f(a=' + '(' * 9000)
