"""Export a trained student to ONNX, with all that the runtime needs in the file's metadata."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any
import warnings

import numpy as np
import onnx
import onnxruntime
from safetensors.torch import save_file
import torch
from torch import nn, Tensor

from lunar_stereo_recon.backends import self_test
from lunar_stereo_recon.backends.model_seal import seal_model
from lunar_stereo_recon.backends.student_file import WIDTH_KEY
from lunar_stereo_recon.datatypes import DisparityPrediction
from lunar_stereo_recon.errors import InputError, ModelError
from lunar_stereo_recon.files.bounded import read_json
from training.checkpoint import FLIGHT_KIND, load_network
from training.models.checkpoints import save_model
from training.models.flight import FlightConfig, FlightStudent, Float32Conv
from training.models.mast3r import Mast3r

FORMAT_VERSION = '1'
OPSET = 18
OUTPUTS = ('disparity', 'confidence', 'descriptors_left', 'descriptors_right')
# Share of pixels that may differ by more than 0.01 px between torch and onnxruntime: where two
# bins tie, rounding decides which one is the strongest.
PARITY_PX, PARITY_SHARE = 0.01, 1e-3


class ExportedStudent(nn.Module):
    """The graph in the file: grey images in, `OUTPUTS` out."""

    def __init__(self, student: FlightStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in the order of `OUTPUTS`."""
        output = self.student(left, right)
        output['confidence'] = output['confidence_logit'].sigmoid()
        return tuple(output[name] for name in OUTPUTS)


def load_student(path: Path | str, name: str = '') -> tuple[FlightStudent, dict[str, Any]]:
    """Return the averaged flight student of a checkpoint, in evaluation mode, and the checkpoint.

    Args:
        path: Checkpoint of a run, a folder.
        name: Which student, where there are several.

    Raises:
        ModelError: The checkpoint is damaged, its weights do not fit its configuration, or the
            student is of another kind.
    """
    student, content = load_network(path, name)
    if not isinstance(student, FlightStudent):
        raise ModelError(
            f'{path}: {name or "its student"} is a {type(student).__name__}; only flight '
            'students are exported to ONNX, others to .safetensors'
        )
    return student, content


def weights_digest(student: nn.Module) -> str:
    """Return the SHA-256 of all weights, in the order of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in student.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def export_onnx(student: FlightStudent, path: Path, metadata: dict[str, str]) -> None:
    """Write the student as ONNX with dynamic height and width (multiples of 32).

    The metadata gets two more entries: `float32_nodes`, what a runtime must not round, and
    `self_test_px`, the student's own answer to the pair of the self-test.
    """
    example = torch.rand(1, 1, 96, 160), torch.rand(1, 1, 96, 160)
    sizes = {0: 'batch', 2: 'height', 3: 'width'}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # The tracer warns of every shape that it turns into a graph node.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            ExportedStudent(student).eval(),
            example,
            str(path),
            input_names=['left', 'right'],
            output_names=list(OUTPUTS),
            dynamic_axes={'left': sizes, 'right': sizes},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    onnx.checker.check_model(model)
    kept = json.dumps(float32_nodes(model, student))
    answer = self_test.self_test_entry(_answer(student))
    entries = {'float32_nodes': kept, self_test.KEY: answer}
    onnx.helper.set_model_props(model, metadata | entries)
    onnx.save(model, path)
    seal_model(path)


def _answer(student: FlightStudent) -> DisparityPrediction:
    with torch.no_grad():
        images = (torch.from_numpy(image)[None, None] for image in self_test.self_test_pair())
        output = student.eval()(*images)
    return DisparityPrediction(
        output['disparity'][0].numpy(), output['confidence_logit'][0].sigmoid().numpy()
    )


def float32_nodes(model: onnx.ModelProto, student: FlightStudent) -> list[str]:
    """Return the names of the convolutions that must not be rounded: what they give is pixels.

    Those of `Float32Conv`, and those with a fixed kernel.
    """
    weights = {
        f'student.{name}.weight'
        for name, module in student.named_modules()
        if isinstance(module, Float32Conv)
    }
    fixed = {node.output[0] for node in model.graph.node if node.op_type == 'Constant'}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == 'Conv' and node.input[1] in weights | fixed
    ]


def parity(student: FlightStudent, path: Path, size: tuple[int, int], seed: int = 0) -> float:
    """Return the share of pixels where torch and onnxruntime differ by over `PARITY_PX`.

    The images are smooth noise shifted by a constant disparity, so that there is a match.
    """
    rng = np.random.default_rng(seed)
    texture = rng.random((size[0], size[1] + 16), np.float32)
    left, right = texture[None, None, :, :-16], texture[None, None, :, 16:]
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    actual = session.run(['disparity'], {'left': left.copy(), 'right': right.copy()})[0]
    with torch.no_grad():
        expected = student(torch.from_numpy(left.copy()), torch.from_numpy(right.copy()))
    difference = np.abs(actual - expected['disparity'].numpy())
    return float((difference > PARITY_PX).mean())


def metadata_of(
    student: FlightStudent,
    content: dict[str, Any],
    confidence: dict[str, Any] | None,
    name: str = '',
    network_width: int | None = None,
) -> dict[str, str]:
    """Return the metadata written into the model file; every value is a string.

    The name is the student's where one is given, else the run's.
    """
    config: FlightConfig = student.config
    return {
        'format_version': FORMAT_VERSION,
        'name': name or content['recipe']['name'],
        'config': json.dumps(dataclasses.asdict(config)),
        'recipe': json.dumps(_names_only(content['recipe'])),
        'training': json.dumps({key: content[key] for key in ('step', 'seconds', 'git_commit')}),
        'weights_sha256': weights_digest(student),
        'max_disparity_px': str(config.max_disparity_px),
        'confidence_calibration': json.dumps(confidence or {}),
        **({WIDTH_KEY: str(network_width)} if network_width else {}),
    }


def _names_only(value: object) -> object:
    """Return a recipe with files and folders by their names: the rest is the maker's machine."""
    if isinstance(value, dict):
        return {key: _names_only(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_names_only(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and '/' in value else value


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('export', help='write a checkpoint as ONNX or .safetensors')
    parser.add_argument('checkpoint', type=Path, help='folder `checkpoint` of a run')
    parser.add_argument(
        'target',
        type=Path,
        help='file to write: .onnx for the rover, .safetensors to train on or for a '
        'student of the paper',
    )
    parser.add_argument(
        '--student', default='', metavar='NAME', help='name of the student, if the run has several'
    )
    parser.add_argument('--confidence', type=Path, help='JSON file of the confidence calibration')
    parser.add_argument(
        '--network-width',
        type=int,
        metavar='PIXELS',
        help='width that images are scaled to for this student (default: 640); .onnx alone',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    if args.target.suffix == '.safetensors':
        write_safetensors(args.checkpoint, args.target, args.student)
    else:
        write_onnx(args.checkpoint, args.target, args.confidence, args.student, args.network_width)
    return 0


def write_onnx(
    checkpoint: Path,
    target: Path,
    calibration: Path | None = None,
    name: str = '',
    network_width: int | None = None,
) -> None:
    """Export, then check the file against torch at two sizes.

    Raises:
        InputError: The calibration cannot be read.
        ModelError: The file does not agree with torch.
    """
    confidence = _calibration(calibration) if calibration else None
    student, content = load_student(checkpoint, name)
    export_onnx(student, target, metadata_of(student, content, confidence, name, network_width))
    for size in ((480, 640), (224, 352)):
        share = parity(student, target, size)
        if share > PARITY_SHARE:
            raise ModelError(
                f'{target}: at {size[1]}x{size[0]}, {100 * share:.2f} % of the disparities '
                f'differ from torch by over {PARITY_PX} px; at most {100 * PARITY_SHARE} % may'
            )
    print(f'{target}: {target.stat().st_size / 2**20:.1f} MiB, agrees with torch')


def _calibration(path: Path) -> dict[str, Any]:
    """Return a calibration as `calibrate --out` writes it.

    Raises:
        InputError: The file cannot be read, or holds none.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f'--confidence {path}: {error}') from error
    if not isinstance(content, dict):
        raise InputError(
            f'--confidence {path} holds a {type(content).__name__}; what calibrate '
            'writes is needed'
        )
    return content


def write_safetensors(checkpoint: Path, target: Path, name: str = '') -> None:
    """Write a student's weights, its configuration in the metadata."""
    student, content = load_network(checkpoint, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(student, FlightStudent):
        state = {key: value.contiguous() for key, value in student.state_dict().items()}
        metadata = metadata_of(student, content, None, name) | {'kind': FLIGHT_KIND}
        save_file(state, target, metadata)
    elif isinstance(student, Mast3r):
        save_model(student, target)
    print(f'{target}: {target.stat().st_size / 2**20:.1f} MiB')
