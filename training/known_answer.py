"""Writes the known answer of the self-test into a model file, see the modules of `backends`."""

from __future__ import annotations

from pathlib import Path
import tempfile

import onnx

from lunar_stereo_recon.backends import choice_network, choice_self_test, model_seal, self_test
from lunar_stereo_recon.backends.choice_network import ChoiceNetwork
from lunar_stereo_recon.backends.onnx_backend import OnnxBackend
from lunar_stereo_recon.files.atomic import write_bytes


def write_known_answer(path: Path) -> None:
    """Ask a student or a chooser for its answer, and write it into the file's sealed metadata.

    An answer that is there is replaced; all else stays as it is, to the last bit of the weights.

    Raises:
        ModelError: The file is missing, damaged, or neither student nor chooser.
    """
    model_seal.check_model_file(path)
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    for key in (model_seal.KEY, self_test.KEY, choice_self_test.ANSWER_KEY):
        metadata.pop(key, None)
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / path.name
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, bare)
        model_seal.seal_model(bare)
        key, answer = _answer(bare, metadata)
        onnx.helper.set_model_props(model, metadata | {key: answer})
        onnx.save(model, bare)
        model_seal.seal_model(bare)
        write_bytes(path, bare.read_bytes())


def _answer(path: Path, metadata: dict[str, str]) -> tuple[str, str]:
    """Return key and text of the entry."""
    if choice_network.EVIDENCE_KEY in metadata:
        return choice_self_test.ANSWER_KEY, ChoiceNetwork(path, 1).known_answer()
    prediction = OnnxBackend(path, threads=1).predict(*self_test.self_test_pair())
    return self_test.KEY, self_test.self_test_entry(prediction)
