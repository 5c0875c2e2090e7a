"""Records what a start from a teacher did to each entry, and which block comes from which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
import re

from torch import Tensor

from lunar_stereo_recon.errors import ModelError

StateDict = Mapping[str, Tensor]

LEFT_ALONE = 'left alone'
STRATEGIES = ('uniform', 'last_k', 'first_k')


@dataclass(frozen=True)
class PlanEntry:
    """One entry of a student's state dict.

    Attributes:
        student: Its name.
        shape: Its shape.
        teacher: Name of the teacher's entry that it was made from, or None.
        how: What was done, in words; begins with 'left alone' where nothing was.
    """

    student: str
    shape: tuple[int, ...]
    teacher: str | None
    how: str

    @property
    def changed(self) -> bool:
        """Return whether the entry was made from the teacher."""
        return not self.how.startswith(LEFT_ALONE)


@dataclass(frozen=True)
class InitResult:
    """A student's new state dict and how it came about.

    Attributes:
        state: Every entry of the student, those left alone unchanged.
        plan: One line an entry, in the student's order.
        stream_basis: (teacher width, student width) float64 orthonormal columns, or None where
            the method has no common basis. Teacher tokens are about basis @ student tokens.
        encoder_basis: The same from student to teacher encoder channels; a good start for the
            projector of a feature loss.
    """

    state: dict[str, Tensor]
    plan: list[PlanEntry]
    stream_basis: Tensor | None = None
    encoder_basis: Tensor | None = None


def layer_mapping(teacher_depth: int, student_depth: int, strategy: str = 'uniform') -> list[int]:
    """Return, for each student block, the teacher block that it starts from.

    Args:
        teacher_depth, student_depth: Numbers of decoder blocks.
        strategy: 'uniform' spreads over the teacher, 'last_k' and 'first_k' take an end.

    Raises:
        ModelError: The student is deeper than the teacher, has no block, or the strategy is
            unknown.
    """
    if not 0 < student_depth <= teacher_depth:
        raise ModelError(
            f'student decoder has {student_depth} blocks, teacher {teacher_depth}; '
            f'1 to {teacher_depth} can be initialised'
        )
    if strategy == 'uniform':
        return [i * teacher_depth // student_depth for i in range(student_depth)]
    if strategy == 'last_k':
        return list(range(teacher_depth - student_depth, teacher_depth))
    if strategy == 'first_k':
        return list(range(student_depth))
    raise ModelError(f'unknown layer mapping {strategy!r}; known: {", ".join(STRATEGIES)}')


def decoder_depth(state: StateDict, prefix: str, name: str) -> int:
    """Return the number of `dec_blocks` in a state dict.

    Raises:
        ModelError: There is none, or numbers are missing.
    """
    pattern = re.compile(re.escape(prefix) + r'dec_blocks\.(\d+)\.')
    found = {int(match[1]) for key in state if (match := pattern.match(key))}
    if not found or found != set(range(len(found))):
        raise ModelError(
            f'{name} state dict has decoder blocks {sorted(found)} under '
            f'{prefix + "dec_blocks"!r}; 0, 1, ... are needed'
        )
    return len(found)


def teacher_block_prefix(teacher: StateDict, prefix: str, decoder: str) -> str:
    """Return where the teacher keeps a decoder, 'dec_blocks' or 'dec_blocks2'.

    A teacher whose views share one decoder has `dec_blocks` alone: it serves both.
    """
    own = f'{prefix}{decoder}.'
    if any(key.startswith(own) for key in teacher):
        return own
    return f'{prefix}dec_blocks.'


def format_plan(plan: Iterable[PlanEntry]) -> str:
    """Return the plan as a table, one line an entry, and a summary line."""
    entries = list(plan)
    rows = [
        (
            entry.student,
            'x'.join(map(str, entry.shape)) or 'scalar',
            '' if entry.teacher in (None, entry.student) else f'from {entry.teacher}',
            entry.how,
        )
        for entry in entries
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        '  '.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    counts = Counter(entry.changed for entry in entries)
    lines.append(
        f'{counts[True]} entries initialised from the teacher, {counts[False]} left alone'
    )
    return '\n'.join(lines)
