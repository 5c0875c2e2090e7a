"""A model is what its maker wrote, and computes what its maker saw, or it is refused."""

from pathlib import Path
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lunar_stereo_recon.backends import DEFAULT_MODEL, load_backend, model_file, self_test
from lunar_stereo_recon.backends.model_seal import check_model_file, seal_model
from lunar_stereo_recon.datatypes import DisparityPrediction
from lunar_stereo_recon.errors import ModelError


@pytest.mark.parametrize('name', ['flight', 'flight_int8', 'choice'])
def test_each_flipped_bit_of_a_shipped_model_is_seen(name, tmp_path):
    content = bytearray(model_file(name).read_bytes())
    damaged = tmp_path / 'damaged.onnx'
    randomness = random.Random(0)
    for _ in range(60):
        at, bit = randomness.randrange(len(content) - 100), 1 << randomness.randrange(8)
        content[at] ^= bit
        damaged.write_bytes(content)
        with pytest.raises(ModelError, match='the file is damaged'):
            check_model_file(damaged)
        content[at] ^= bit


def test_a_flipped_digit_of_the_seal_is_seen(tmp_path):
    content = bytearray(DEFAULT_MODEL.read_bytes())
    content[-1] ^= 0x80
    (tmp_path / 'damaged.onnx').write_bytes(content)
    with pytest.raises(ModelError, match='the file is damaged'):
        check_model_file(tmp_path / 'damaged.onnx')


def test_a_sealed_file_is_still_a_model_and_sealing_again_changes_nothing(model_maker):
    path = model_maker()
    seal_model(path)
    once = path.read_bytes()
    seal_model(path)
    assert path.read_bytes() == once
    assert load_backend('onnx', path).metadata['file_sha256'] in once.decode('latin1')


def test_a_model_without_a_seal_is_used_with_a_warning(model_maker, caplog):
    load_backend('onnx', model_maker())
    assert 'damage to it would go unnoticed' in caplog.text


@pytest.mark.parametrize('runtime', ['onnx', 'openvino'])
def test_a_model_that_answers_otherwise_than_its_maker_saw_is_refused(runtime, model_maker):
    pytest.importorskip({'onnx': 'onnxruntime'}.get(runtime, runtime))
    path = model_maker(metadata={'self_test_px': str([7.0] * 20)})
    with pytest.raises(ModelError, match='fails its self-test'):
        load_backend(runtime, path)


def test_a_model_that_is_wrong_where_its_maker_kept_no_answer_is_refused():
    answer = np.full((self_test.HEIGHT, self_test.WIDTH), self_test.SHIFT_PX, np.float32)
    entry = self_test.self_test_entry(DisparityPrediction(answer, answer))

    def check(disparity, text=entry):
        backend = SimpleNamespace(
            predict=lambda left, right: DisparityPrediction(disparity, answer),
            metadata={self_test.KEY: text},
            provider='CPU',
        )
        self_test.check_answer(backend, Path('mine.onnx'))

    check(answer)
    for spoilt in (15.0, np.nan):
        damaged = answer.copy()
        damaged[17:40, 50:70] = spoilt
        with pytest.raises(ModelError, match='fails its self-test on CPU: 4.8% of the pixels'):
            check(damaged)
    # Whose maker saw another answer is no student that knows the pair.
    check(answer + 7, self_test.self_test_entry(DisparityPrediction(answer + 7, answer)))


@pytest.mark.parametrize('entry', ['{', '[1, 2]', '"a"', '[[1], 2]', '[' * 100_000, '9' * 400])
def test_a_self_test_that_is_none_is_refused(entry, model_maker):
    with pytest.raises(ModelError, match='self_test_px'):
        load_backend('onnx', model_maker(metadata={'self_test_px': entry}))


@pytest.mark.parametrize('limit', ['inf', '1e300', 'nan', '0'])
def test_search_range_out_of_bounds_is_refused(limit, model_maker):
    with pytest.raises(ModelError, match='max_disparity_px'):
        load_backend('onnx', model_maker(metadata={'max_disparity_px': limit}))


def test_a_key_asks_for_a_signature(tmp_path):
    key = tmp_path / 'maker.pem'
    with pytest.raises(ModelError, match='no model_key at'):
        load_backend(key=key)
    key.write_text('')
    with pytest.raises(ModelError, match='no signature at .*flight.onnx.sig'):
        load_backend(key=key)


def test_a_signature_is_checked(tmp_path):
    signing = pytest.importorskip('model_signing.signing')
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = {}
    for name in ('maker', 'other'):
        private = ec.generate_private_key(ec.SECP256R1())
        keys[name] = tmp_path / f'{name}.pem'
        keys[name].write_bytes(
            private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        (tmp_path / f'{name}.key').write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    model = Path(shutil.copy(DEFAULT_MODEL, tmp_path / 'mine.onnx'))
    signing.Config().use_elliptic_key_signer(private_key=tmp_path / 'maker.key').sign(
        model, tmp_path / 'mine.onnx.sig'
    )
    check_model_file(model, keys['maker'])
    with pytest.raises(ModelError, match='is not signed by'):
        check_model_file(model, keys['other'])
    content = bytearray(model.read_bytes())
    content[1000] ^= 1
    model.write_bytes(content)
    seal_model(model)  # whoever changes a file can seal it, but not sign it
    with pytest.raises(ModelError, match='is not signed by'):
        check_model_file(model, keys['maker'])


def test_openvino_sends_no_telemetry():
    pytest.importorskip('openvino')
    code = (
        'import sys\n'
        'from lunar_stereo_recon.backends import openvino_backend\n'
        'sent = [name for name in sys.modules if name.startswith("openvino_telemetry.")]\n'
        'assert sys.modules["openvino_telemetry"] is None and not sent, sent\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_a_model_that_fails_when_run_is_refused(tmp_path):
    onnx = pytest.importorskip('onnx')
    from onnx import helper, TensorProto

    shape = ['b', 1, 'h', 'w']
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ('left', 'right')
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in ('disparity', 'confidence')
    ]
    entries = {'format_version': '1', 'max_disparity_px': '8'}

    def model(name, nodes, initializers=()):
        graph = helper.make_graph(nodes, 'bad', inputs, outputs, list(initializers))
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
        helper.set_model_props(made, entries)
        onnx.save(made, tmp_path / name)
        return tmp_path / name

    seven = helper.make_tensor('seven', TensorProto.INT64, [1], [7])
    fails = [
        helper.make_node('Reshape', ['left', 'seven'], ['disparity']),
        helper.make_node('Identity', ['right'], ['confidence']),
    ]
    with pytest.raises(ModelError, match='fails when run'):
        load_backend('onnx', model('fails.onnx', fails, [seven]))
    scalar = [
        helper.make_node('ReduceMean', ['left'], ['disparity'], keepdims=0),
        helper.make_node('ReduceMean', ['right'], ['confidence'], keepdims=0),
    ]
    with pytest.raises(ModelError, match=r'output disparity has shape \(\)'):
        load_backend('onnx', model('scalar.onnx', scalar))


def test_answers_do_not_depend_on_run_or_threads():
    rng = np.random.default_rng(1)
    left, right = rng.random((2, 96, 160), np.float32)
    answers = [load_backend('onnx', threads=n).predict(left, right) for n in (1, 1, 2)]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.disparity, answers[0].disparity)
        np.testing.assert_array_equal(answer.confidence, answers[0].confidence)


def test_name_that_is_too_long_for_a_file_is_refused():
    with pytest.raises(ModelError, match=r'first 80 of 5000 characters.*too long'):
        model_file('x' * 5000)
