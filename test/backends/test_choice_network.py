import numpy as np
import onnx
import pytest

from lunar_stereo_recon.backends import CHOICE_NETWORK, load_chooser
from lunar_stereo_recon.backends.choice_network import (
    ChoiceNetwork,
    pixels_of_cells,
    shared_choice,
)
from lunar_stereo_recon.backends.choice_self_test import ANSWER_KEY
from lunar_stereo_recon.backends.model_seal import seal_model
from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.geometry.residual import CANDIDATES, EVIDENCE

SIZE = 128, 208
SHAPE = (len(CANDIDATES) + 1, 40, 56)


def changed(folder, change):
    """Write the shipped chooser with a change to its graph or metadata, sealed."""
    model = onnx.load(CHOICE_NETWORK)
    change(model)
    onnx.save(model, folder / 'choice.onnx')
    seal_model(folder / 'choice.onnx')
    return folder / 'choice.onnx'


def with_entry(text):
    def change(model):
        entries = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, entries | {ANSWER_KEY: text})

    return change


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


def test_the_pixels_of_a_cell_come_in_their_places():
    cells = np.random.default_rng(0).random((20, 23, 9)).astype(np.float32)
    expected = cells.reshape(5, 2, 2, 23, 9).transpose(0, 3, 1, 4, 2).reshape(5, 46, 18)
    np.testing.assert_array_equal(pixels_of_cells(cells), expected)


def test_a_file_that_puts_the_pixels_in_their_places_itself_answers_the_same(tmp_path):
    def put(model):
        graph = model.graph
        graph.node[-1].output[0] = 'cells'
        graph.node.append(
            onnx.helper.make_node(
                'DepthToSpace', ['cells'], ['preferences'], blocksize=2, mode='CRD'
            )
        )
        graph.output[0].type.CopyFrom(
            onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, (1, 5, None, None))
        )

    network = ChoiceNetwork(changed(tmp_path, put))
    given = planes(40, 56)
    np.testing.assert_array_equal(network(given), load_chooser()(given))


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
    other = changed(
        tmp_path, lambda model: onnx.helper.set_model_props(model, {'evidence': 'taste smell'})
    )
    with pytest.raises(ModelError, match="made for the evidence 'taste smell'"):
        ChoiceNetwork(other)
    with pytest.raises(ModelError, match='no model file'):
        ChoiceNetwork(tmp_path / 'none.onnx')


def test_shipped_chooser_has_a_known_answer():
    # A new file without one gets it by `python -m training known-answer FILE`.
    assert ChoiceNetwork(CHOICE_NETWORK).is_tested


def test_the_known_answer_does_not_depend_on_the_size():
    for size in ((120, 192), (128, 192), (121, 301), (480, 640), (40, 56)):
        network = ChoiceNetwork(CHOICE_NETWORK)
        network(planes(*size))
        network.check_answer()


@pytest.mark.parametrize('bit', [23, 30, 31])
def test_a_chooser_with_a_wrong_weight_is_refused(bit, tmp_path):
    def damage(model):
        weight = next(w for w in model.graph.initializer if w.name.endswith('cells.weight'))
        values = np.frombuffer(weight.raw_data, np.uint32).copy()
        values[np.abs(values.view(np.float32)).argmax()] ^= np.uint32(1 << bit)
        weight.raw_data = values.tobytes()

    with pytest.raises(ModelError, match='choice.onnx fails its self-test'):
        ChoiceNetwork(changed(tmp_path, damage))


def test_an_answer_that_changes_later_is_refused(monkeypatch):
    network = ChoiceNetwork(CHOICE_NETWORK)
    network(planes(*SIZE))
    network.check_answer()
    size, session = network._opened

    class Damaged:
        def run(self, outputs, inputs):
            (answer,) = session.run(outputs, inputs)
            answer[0, 8:12] *= 1.01
            return [answer]

    monkeypatch.setattr(network, '_opened', (size, Damaged()))
    with pytest.raises(ModelError, match='fails its self-test: it is .* off the known answer'):
        network.check_answer()


def test_content_that_changed_in_memory_is_not_opened_again(monkeypatch):
    network = ChoiceNetwork(CHOICE_NETWORK)
    content = bytearray(network._content)
    content[100_000] ^= 1
    monkeypatch.setattr(network, '_content', bytes(content))
    with pytest.raises(ModelError, match='damaged'):
        network(planes(40, 56))


@pytest.mark.parametrize('text', ['{', '[1, 2]', '"a"', '9' * 400, '[NaN]', '[' * 100_000])
def test_a_known_answer_that_is_none_is_refused(text, tmp_path):
    with pytest.raises(ModelError, match=ANSWER_KEY):
        ChoiceNetwork(changed(tmp_path, with_entry(text)))


def test_a_chooser_without_a_known_answer_is_used_with_a_warning(tmp_path, caplog):
    shared_choice(changed(tmp_path, with_entry('')), 1)
    assert f'has no {ANSWER_KEY}' in caplog.text
