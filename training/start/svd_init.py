"""Start a student from its teacher's decoder and heads.

Two methods: `truncate`, the paper's, takes each matrix by itself; `shared_basis` (in
`shared_basis.py`) projects all of them on one basis of the residual stream, so that what one
block writes is what the next one reads. Encoders are never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import re

from torch import nn, Tensor

from lunar_stereo_recon.errors import ModelError
from training.models.flight import FlightStudent
from training.models.mast3r import Mast3r
from training.models.paper_students import PaperStudent
from training.start.decoder_source import CalibrationTokens, DecoderLayout
from training.start.init_plan import (
    decoder_depth,
    InitResult,
    layer_mapping,
    LEFT_ALONE,
    PlanEntry,
    StateDict,
    teacher_block_prefix,
)
from training.start.reduction import truncate_tensor
from training.start.shared_basis import shared_basis

METHODS = ('shared_basis', 'truncate', 'direct')
MAST3R_HEADS = ('downstream_head1.', 'downstream_head2.')
_SINGLE_ENTRIES = ('mask_token', 'decoder_embed.', 'dec_norm.')
_BLOCK = re.compile(r'(dec_blocks2?)\.(\d+)\.(.+)')


@dataclass(frozen=True)
class SvdInit:
    """How a student starts.

    Attributes:
        method: 'shared_basis', 'truncate' (truncated SVD of each matrix) or 'direct' (its
            top-left block).
        strategy: Layer mapping: 'uniform', 'last_k' or 'first_k'.
        ridge: Strength of the calibrated refit of `shared_basis`.
    """

    method: str = 'shared_basis'
    strategy: str = 'uniform'
    ridge: float = 0.1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ModelError(
                f'unknown initialisation {self.method!r}; known: {", ".join(METHODS)}'
            )


def decoder_layout(model: nn.Module) -> DecoderLayout:
    """Return heads, prefix, bands and position order of a model's decoder.

    Raises:
        ModelError: The model has no decoder of the MASt3R kind.
    """
    if isinstance(model, PaperStudent):
        return DecoderLayout(model.config.decoder_heads, column_first=model.spec.column_first)
    if isinstance(model, Mast3r):
        return DecoderLayout(model.config.decoder_heads)
    if isinstance(model, FlightStudent):
        config = model.config
        return DecoderLayout(config.decoder_heads, 'decoder.', config.band_rows)
    raise ModelError(f'{type(model).__name__} has no decoder that can start from a teacher')


def initialise(
    student: nn.Module,
    teacher_state: StateDict,
    student_layout: DecoderLayout,
    teacher_layout: DecoderLayout,
    options: SvdInit,
    calibration: CalibrationTokens | None = None,
    heads: tuple[str, ...] = MAST3R_HEADS,
) -> InitResult:
    """Load a start from the teacher into the student, in place, and return what was done.

    Args:
        student: Its decoder has the names of `models/decoder.py`.
        teacher_state: The teacher's state dict.
        student_layout, teacher_layout: Heads and prefixes of both decoders.
        options: Which method and layer mapping.
        calibration: The teacher's encoder tokens on some pairs, for `shared_basis`.
        heads: Prefixes of head entries to start from the teacher's of equal name.

    Raises:
        ModelError: A size cannot be mapped; the message names the entry and both shapes.
    """
    state = student.state_dict()
    if options.method == 'shared_basis':
        result = shared_basis(
            state,
            teacher_state,
            student_layout,
            teacher_layout,
            calibration=calibration,
            strategy=options.strategy,
            heads=heads,
            ridge=options.ridge,
        )
    else:
        result = truncate(
            state,
            teacher_state,
            strategy=options.strategy,
            cut='svd' if options.method == 'truncate' else 'direct',
            student_prefix=student_layout.prefix,
            teacher_prefix=teacher_layout.prefix,
            heads=heads,
        )
    student.load_state_dict(result.state, strict=True)
    return result


def truncate(
    student: Mapping[str, Tensor],
    teacher: StateDict,
    strategy: str = 'uniform',
    cut: str = 'svd',
    student_prefix: str = '',
    teacher_prefix: str = '',
    heads: tuple[str, ...] = MAST3R_HEADS,
) -> InitResult:
    """Start a student from truncated teacher matrices, each by itself (the paper's method).

    Touched are mask token, decoder embedding, decoder norm, decoder blocks by the layer mapping
    and heads by equal name. Head tensors that the teacher has smaller keep their start.

    Args:
        student, teacher: State dicts with the names of `models/decoder.py`.
        strategy: Layer mapping.
        cut: 'svd' or 'direct', see `truncate_matrix`.
        student_prefix, teacher_prefix: Where the decoder is in each state dict.
        heads: Prefixes of head entries.

    Raises:
        ModelError: A decoder matrix is larger in the student than in the teacher.
    """
    mapping = layer_mapping(
        decoder_depth(teacher, teacher_prefix, 'teacher'),
        decoder_depth(student, student_prefix, 'student'),
        strategy,
    )
    state = dict(student)
    plan = []
    for key, value in student.items():
        source = _teacher_entry(key, teacher, mapping, student_prefix, teacher_prefix, heads)
        shape = tuple(value.shape)
        if source is None:
            plan.append(PlanEntry(key, shape, None, f'{LEFT_ALONE}: not from the teacher'))
            continue
        try:
            made, how = truncate_tensor(teacher[source].detach(), shape, cut)
        except ModelError as error:
            is_matrix = value.ndim == 2
            if is_matrix or not key.startswith(heads):
                raise ModelError(f'cannot initialise {key!r} from {source!r}: {error}') from error
            plan.append(PlanEntry(key, shape, source, f'{LEFT_ALONE}: {error}'))
            continue
        state[key] = made.to(value)
        plan.append(PlanEntry(key, shape, source, how))
    return InitResult(state, plan)


def _teacher_entry(
    key: str,
    teacher: StateDict,
    mapping: list[int],
    student_prefix: str,
    teacher_prefix: str,
    heads: tuple[str, ...],
) -> str | None:
    """Return the teacher's entry for a student's, or None where it has none."""
    source: str | None = None
    if key.startswith(heads):
        source = key
    elif key.startswith(student_prefix):
        name = key[len(student_prefix) :]
        if match := _BLOCK.match(name):
            decoder = teacher_block_prefix(teacher, teacher_prefix, match[1])
            source = f'{decoder}{mapping[int(match[2])]}.{match[3]}'
        elif name.startswith(_SINGLE_ENTRIES):
            source = teacher_prefix + name
    return source if source in teacher else None
