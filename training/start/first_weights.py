"""A student's weights before the first step: published ones, or from its teacher."""

from __future__ import annotations

import torch
from torch import nn

from lunar_stereo_recon.errors import InputError
from training.checkpoint import trained_network
from training.frozen_teacher import Batch, Teacher
from training.learner import Learner
from training.losses.features import FeatureProjector
from training.models.checkpoints import load_encoder_weights
from training.models.flight import FlightStudent
from training.models.paper_students import PaperStudent
from training.start.decoder_source import CalibrationTokens
from training.start.grow import grow, refuse_other_matching
from training.start.init_plan import format_plan, LEFT_ALONE
from training.start.new_decoder import DecoderExchange
from training.start.svd_init import decoder_layout, initialise, MAST3R_HEADS, SvdInit


def start_student(learner: Learner, teacher: Teacher | None, pairs: Batch | None) -> str:
    """Give a student its first weights and return the printed plan, '' for a random start.

    Args:
        learner: Its student is changed in place; projectors too, where a common basis is known.
        teacher: Needed by the methods that start from one.
        pairs: A batch that 'shared_basis' is fitted to.

    Raises:
        InputError: The student's encoder takes no published weights.
        ModelError: A file does not fit, or a size cannot be mapped.
    """
    start, student = learner.recipe.start, learner.student
    if start.encoder:
        if not isinstance(student, PaperStudent):
            raise InputError(f'start.encoder is for S1 to S4, not for a {learner.recipe.kind}')
        load_encoder_weights(student, start.encoder)
    plan = _grown(student, start.grow_from)
    if start.method == 'random':
        return '\n'.join(plan)
    if teacher is None:
        raise InputError(f'start.method {start.method!r} needs a teacher')
    fitted_to = exchange = None
    if start.method == 'shared_basis' and pairs is not None:
        grid = pairs['left'].shape[-2] // 16, pairs['left'].shape[-1] // 16
        fitted_to = CalibrationTokens(*teacher.encoder_tokens(pairs), grid)
        if start.grow_from and isinstance(student, FlightStudent):
            # Pairs may be on the teacher's device already, the student is not yet.
            exchange = DecoderExchange(student, {k: v.cpu() for k, v in pairs.items()})
    result = initialise(
        student,
        {name: value.cpu() for name, value in teacher.network.state_dict().items()},
        decoder_layout(student),
        decoder_layout(teacher.network),
        SvdInit(start.method, start.mapping, start.ridge),
        fitted_to,
        # The flight student's heads read other features than its teacher's: only the decoder.
        () if isinstance(student, FlightStudent) else MAST3R_HEADS,
    )
    encoder_basis = result.encoder_basis
    if exchange and fitted_to and encoder_basis is not None:
        tokens = torch.cat([fitted_to.left, fitted_to.right]).double()
        matrix, fits = exchange.fit(tokens @ encoder_basis)
        encoder_basis, plan = encoder_basis @ matrix, plan + fits
    for part, basis in (('encoder', encoder_basis), ('decoder', result.stream_basis)):
        projector = learner.projectors[part] if part in learner.projectors else None
        if basis is not None and isinstance(projector, FeatureProjector):
            projector.start_from(basis.float())
    untouched = f'{LEFT_ALONE}: not from the teacher'
    plan += format_plan(result.plan).splitlines()
    return '\n'.join(line for line in plan if not line.endswith(untouched))


def _grown(student: nn.Module, path: str) -> list[str]:
    if not path:
        return []
    smaller = trained_network(path)
    if not isinstance(student, FlightStudent) or not isinstance(smaller, FlightStudent):
        raise InputError(
            f'start.grow_from is for flight networks; {path} is a {type(smaller).__name__}, the '
            f'student a {type(student).__name__}'
        )
    refuse_other_matching(student.config, smaller.config)
    return grow(student, smaller.state_dict())
