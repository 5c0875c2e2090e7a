"""Start a student's decoder from its teacher's on one common basis of the residual stream.

All blocks of a decoder read and write one residual stream. With a basis Q (teacher width n,
student width s, orthonormal columns) the student's tokens z stand for teacher tokens Q z: a
matrix that writes the stream is multiplied by Q^T, one that reads it by Q. Between stream and
reader is a layer norm, which subtracts the mean over channels and so is not blind to rotation.
Q therefore takes the student's mean direction to the teacher's, Q 1/sqrt(s) = 1/sqrt(n): then
centring commutes with Q, and the norm's gain and bias are folded into the readers. With s = n
the student computes exactly what the teacher does.

Below full width, heads are selected and narrowed by rotary pairs, MLP units are selected, and,
with calibration tokens, what was lost is made up for by ridge regression: readers are refitted
to the teacher's normed tokens and writers to the teacher's residual stream, block after block on
the student's own activations. At full width there is nothing lost and the corrections are zero.

Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
import math

import torch
from torch import Tensor

from training.start.decoder_source import CalibrationTokens, check_sizes, Decoder, DecoderLayout
from training.start.decoder_start import DecoderStart
from training.start.head_start import HeadStart, STREAM_READERS
from training.start.init_plan import InitResult, LEFT_ALONE, PlanEntry, StateDict

_UNTOUCHED = f'{LEFT_ALONE}: not from the teacher'


def shared_basis(
    student: Mapping[str, Tensor],
    teacher: StateDict,
    student_layout: DecoderLayout,
    teacher_layout: DecoderLayout,
    calibration: CalibrationTokens | None = None,
    strategy: str = 'uniform',
    heads: tuple[str, ...] = ('downstream_head1.', 'downstream_head2.'),
    ridge: float = 0.1,
    refit: bool = True,
    readers: Mapping[str, str] = STREAM_READERS,
) -> InitResult:
    """Return a student's state dict on a common basis of its teacher's residual stream.

    Args:
        student, teacher: State dicts with the names of `models/decoder.py`. A decoder whose
            views share blocks has `dec_blocks` alone.
        student_layout, teacher_layout: Heads, prefix and positions of each.
        calibration: The teacher's encoder tokens on some pairs. Without, basis and importance
            come from the weights and nothing is refitted.
        strategy: Layer mapping, see `init_plan.layer_mapping`.
        heads: Prefixes of head entries to start from the teacher's of equal name.
        ridge: Strength of the refit's regularisation, relative to the mean feature variance.
        refit: Refit readers and writers on the calibration tokens.
        readers: What head layers read: a pattern of their names to 'hook', 'normed' or
            'encoder+normed', as in `STREAM_READERS`.

    Raises:
        ModelError: The student is wider or deeper than the teacher, or sizes do not fit.
    """
    source = Decoder.read(teacher, teacher_layout, 'teacher')
    target = Decoder.read(student, student_layout, 'student')
    check_sizes(source, target)
    with torch.no_grad():
        build = DecoderStart(source, target, calibration, strategy, ridge if refit else math.inf)
        build.embed()
        for index in range(target.depth):
            build.block(index)
        build.final_norm()
        HeadStart(build, student, teacher, heads, readers).run()
    state = {key: build.made.get(key, value).to(value) for key, value in student.items()}
    plan = [
        PlanEntry(key, tuple(value.shape), *build.notes.get(key, (None, _UNTOUCHED)))
        for key, value in student.items()
    ]
    return InitResult(state, plan, build.stream.basis, build.encoder_read.matrix)
