"""`python -m training teacher-time`: a full-size teacher beside the student, in one run."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
import json
from pathlib import Path

import numpy as np

from lunar_stereo_recon.backends import load_backend, RUNTIMES
from lunar_stereo_recon.benchmark.speed import median_ms
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from training.data.texture_pairs import texture_pair
from training.models.mast3r import Mast3rConfig
from training.models.timing import teacher_time

# What official MASt3R checkpoints are trained for.
SIZE = (512, 384)


@dataclass(frozen=True)
class TeacherRatio:
    """A MASt3R teacher and the student's network on images of one size.

    Attributes:
        width, height: Pixels.
        teacher_parameters: Number of the teacher's weights.
        teacher_ms, student_ms: Times.
        ratio: teacher_ms / student_ms.
    """

    width: int
    height: int
    teacher_parameters: int
    teacher_ms: float
    student_ms: float
    ratio: float

    def sentence(self) -> str:
        """Return the teacher's time beside the student's."""
        return (
            f'At {self.width}x{self.height} a MASt3R teacher of '
            f'{self.teacher_parameters / 1e6:.1f} M weights (torch, float32) takes '
            f"{self.teacher_ms:.0f} ms, the student's network {self.student_ms:.1f} ms: "
            f'{self.ratio:.0f} times faster.'
        )


def measure_teacher(
    model: Path | None,
    threads: int,
    backend: str = 'onnx',
    size: tuple[int, int] = SIZE,
    config: Mast3rConfig | None = None,
) -> TeacherRatio:
    """Time a teacher against a model file.

    Args:
        model: Model file of the student; the shipped one where None.
        threads: Threads of both.
        backend: What runs the student.
        size: Width and height of the images, pixels.
        config: Sizes of the teacher; the official ones where None.
    """
    student = load_backend(backend, model, threads=threads)
    student_ms = median_ms(student, _textured_pair(*size), size)
    teacher = teacher_time(*size, threads, config)
    return TeacherRatio(
        *size,
        teacher.parameters,
        teacher.milliseconds,
        student_ms,
        teacher.milliseconds / student_ms,
    )


def _textured_pair(width: int, height: int) -> StereoPair:
    made = texture_pair(0, 0, width, height)
    left, right = (made[view].astype(np.float32) / 255 for view in ('left', 'right'))
    # The network alone is timed: the rig does not matter.
    rig = StereoCalibration(
        width, width, (width - 1) / 2, (height - 1) / 2, (width - 1) / 2, 0.1, width, height
    )
    return StereoPair(left, right, rig)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'teacher-time', help='time a full-size MASt3R beside the student (3 GB of memory)'
    )
    parser.add_argument('--model', type=Path, help='model file (default: the shipped student)')
    parser.add_argument(
        '--backend', choices=RUNTIMES, default='onnx', help='runtime of the student'
    )
    parser.add_argument(
        '--threads', type=int, default=2, help='CPU threads of teacher and student'
    )
    parser.add_argument('--out', type=Path, help='JSON file to write the figures to')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.threads < 1:
        raise InputError(f'--threads is {args.threads}; at least 1 is needed')
    found = measure_teacher(args.model, args.threads, args.backend)
    print(found.sentence())
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(asdict(found), indent=1) + '\n', encoding='utf-8')
    return 0
