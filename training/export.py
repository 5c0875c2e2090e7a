"""Export a trained student to ONNX, with all that the runtime needs in the file's metadata."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.models.flight import FlightConfig, FlightStudent
from training.checkpoint import load_checkpoint
from training.trainer import flight_config

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


def load_student(path: Path | str) -> tuple[FlightStudent, dict]:
    """Return the averaged student of a checkpoint, in evaluation mode, and the checkpoint.

    Raises:
        ModelError: The checkpoint is damaged or its weights do not fit its configuration.
    """
    content = load_checkpoint(path)
    student = FlightStudent(flight_config(content['config']))
    prefix = 'module.'
    weights = {
        key.removeprefix(prefix): value
        for key, value in content['average'].items()
        if key.startswith(prefix)
    }
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f'{path}: {error}') from error
    return student.eval(), content


def weights_digest(student: nn.Module) -> str:
    """Return the SHA-256 of all weights, in the order of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in student.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def export_onnx(student: FlightStudent, path: Path, metadata: dict[str, str]) -> None:
    """Write the student as ONNX with dynamic height and width (multiples of 32)."""
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
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


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


def metadata_of(student: FlightStudent, content: dict, confidence: dict | None) -> dict[str, str]:
    """Return the metadata written into the model file; every value is a string."""
    config: FlightConfig = student.config
    return {
        'format_version': FORMAT_VERSION,
        'name': content['recipe']['name'],
        'config': json.dumps(dataclasses.asdict(config)),
        'recipe': json.dumps(content['recipe']),
        'training': json.dumps({key: content[key] for key in ('step', 'seconds', 'git_commit')}),
        'weights_sha256': weights_digest(student),
        'max_disparity_px': str(config.max_disparity_px),
        'confidence_calibration': json.dumps(confidence or {}),
    }


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('export', help='write a checkpoint as ONNX')
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('onnx', type=Path)
    parser.add_argument('--confidence', type=Path, help='JSON of the confidence calibration')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, then check the file against torch at two sizes."""
    student, content = load_student(args.checkpoint)
    confidence = json.loads(args.confidence.read_text()) if args.confidence else None
    export_onnx(student, args.onnx, metadata_of(student, content, confidence))
    for size in ((480, 640), (224, 352)):
        share = parity(student, args.onnx, size)
        if share > PARITY_SHARE:
            raise ModelError(
                f'{args.onnx}: at {size[1]}x{size[0]}, {100 * share:.2f} % of the disparities '
                f'differ from torch by over {PARITY_PX} px; at most {100 * PARITY_SHARE} % may'
            )
    print(f'{args.onnx}: {args.onnx.stat().st_size / 2**20:.1f} MiB, agrees with torch')
    return 0
