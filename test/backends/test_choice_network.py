import numpy as np
import onnx
import pytest

from lunar_stereo_recon.backends import CHOICE_NETWORK, load_chooser
from lunar_stereo_recon.backends.choice_network import ChoiceNetwork
from lunar_stereo_recon.backends.model_seal import seal_model
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.residual import CANDIDATES, EVIDENCE

SHAPE = (len(CANDIDATES) + 1, 40, 56)


def planes(height, width):
    return np.random.default_rng(0).random((len(EVIDENCE), height, width)).astype(np.float32)


def test_an_answer_for_each_pixel():
    answer = load_chooser()(planes(*SHAPE[1:]))
    assert answer.shape == SHAPE and answer.dtype == np.float32
    assert np.isfinite(answer).all()


@pytest.mark.parametrize('size', [(33, 47), (40, 1), (7, 8)])
def test_images_of_any_size(size):
    assert load_chooser()(planes(*size)).shape == (SHAPE[0], *size)


def test_each_size_is_answered_as_if_it_were_the_only_one():
    network = load_chooser()
    first = network(planes(40, 56))
    assert network(planes(48, 64)).shape == (SHAPE[0], 48, 64)
    np.testing.assert_array_equal(network(planes(40, 56)), first)


def test_it_is_loaded_once():
    assert load_chooser(1) is load_chooser(1)


def test_a_damaged_file_is_refused(tmp_path):
    damaged = tmp_path / 'choice.onnx'
    content = bytearray(CHOICE_NETWORK.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ModelError, match='damaged'):
        ChoiceNetwork(damaged)


def test_a_network_for_other_evidence_is_refused(tmp_path):
    model = onnx.load(CHOICE_NETWORK)
    onnx.helper.set_model_props(model, {'evidence': 'taste smell'})
    other = tmp_path / 'choice.onnx'
    onnx.save(model, other)
    seal_model(other)
    with pytest.raises(ModelError, match="made for the evidence 'taste smell'"):
        ChoiceNetwork(other)
    with pytest.raises(ModelError, match='no model file'):
        ChoiceNetwork(tmp_path / 'none.onnx')
