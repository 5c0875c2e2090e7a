import shutil

import onnx
import pytest

from lunar_stereo_recon.backends import CHOICE_NETWORK, DEFAULT_MODEL, load_backend
from lunar_stereo_recon.backends.choice_network import ChoiceNetwork
from lunar_stereo_recon.backends.choice_self_test import ANSWER_KEY
from lunar_stereo_recon.backends.model_seal import seal_model
from training.cli import main


def entries(model):
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize(
    ('shipped', 'key'), [(CHOICE_NETWORK, ANSWER_KEY), (DEFAULT_MODEL, 'self_test_px')]
)
def test_a_file_without_an_answer_gets_one_and_stays_the_same(shipped, key, tmp_path):
    path = shutil.copy(shipped, tmp_path / 'mine.onnx')
    model = onnx.load(path)
    whole = entries(model)
    onnx.helper.set_model_props(model, {k: v for k, v in whole.items() if k != key})
    onnx.save(model, path)
    seal_model(path)
    assert main(['known-answer', str(path)]) == 0
    written = onnx.load(path)
    assert written.graph == model.graph
    assert set(entries(written)) == set(whole)
    first = path.read_bytes()
    assert main(['known-answer', str(path)]) == 0
    assert path.read_bytes() == first
    assert ChoiceNetwork(path).is_tested if key == ANSWER_KEY else load_backend('onnx', path)


def test_damaged_files_and_others_are_refused(tmp_path, capsys):
    damaged = tmp_path / 'damaged.onnx'
    content = bytearray(CHOICE_NETWORK.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    assert main(['known-answer', str(damaged)]) == 2
    assert 'the file is damaged' in capsys.readouterr().err
    assert damaged.read_bytes() == bytes(content)
    assert main(['known-answer', str(tmp_path / 'none.onnx')]) == 2
