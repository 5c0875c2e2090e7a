"""Make large layers small: truncation, selection, merging, and regression for what is lost.

Pure functions of tensors, without a model around them; linear layers are (weight, bias) with
weight (out, in). Attention projections stack heads in rows, the output projection in columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import Any

import torch
from torch import Tensor
import torch.nn.functional as F

from lunar_stereo_recon.errors import ModelError

Linear = tuple[Tensor, Tensor]

MATRIX_CUTS = ('svd', 'direct')


@dataclass(frozen=True)
class Read:
    """What a reader gets in place of the teacher's tokens t: matrix @ (student tokens) + offset.

    Attributes:
        matrix: (n, s).
        offset: (n,).
        scale: (s,) root mean square of the student's tokens as they are read.
    """

    matrix: Tensor
    offset: Tensor
    scale: Tensor


# --- Truncation -----


def truncate_matrix(matrix: Tensor, shape: tuple[int, int], cut: str = 'svd') -> Tensor:
    """Return a smaller matrix in place of a large one, as the paper does.

    With A = U S V^T of rank r = min(rows, columns of the result), 'svd' is the top-left block of
    the best rank-r approximation; 'direct' is the top-left block of A itself. Neither is a
    projection: rows and columns beyond the block are dropped.

    Args:
        matrix: (M, N).
        shape: Rows and columns wanted; where the matrix has fewer, the result has fewer.
        cut: 'svd' or 'direct'.

    Returns:
        (min(M, rows), min(N, columns)) in the matrix's dtype; half precision is computed in
        float32.

    Raises:
        ModelError: Unknown cut.
    """
    rows, columns = shape
    if cut == 'direct':
        return matrix[:rows, :columns].clone()
    if cut != 'svd':
        raise ModelError(f'unknown cut {cut!r}; known: {", ".join(MATRIX_CUTS)}')
    work = matrix if matrix.dtype == torch.float64 else matrix.float()
    u, s, vt = torch.linalg.svd(work, full_matrices=False)
    rank = min(rows, columns, len(s))
    return ((u[:rows, :rank] * s[:rank]) @ vt[:rank, :columns]).to(matrix.dtype)


def truncate_tensor(
    tensor: Tensor, shape: tuple[int, ...], cut: str = 'svd'
) -> tuple[Tensor, str]:
    """Return a teacher's tensor brought to a student's shape, and how.

    Equal shapes are copied; 1-D is cut; 2-D goes through `truncate_matrix`; with more
    dimensions the tensor is flattened to (first) x (rest) for it.

    Raises:
        ModelError: It cannot be: the teacher's is smaller, or has other dimensions.
    """
    if tuple(tensor.shape) == tuple(shape):
        return tensor.clone(), 'copied'
    if tensor.ndim != len(shape):
        raise ModelError(f'teacher has shape {tuple(tensor.shape)}, student {tuple(shape)}')
    if tensor.ndim == 1:
        if len(tensor) < shape[0]:
            raise ModelError(f'teacher has {len(tensor)} values, student {shape[0]}')
        return tensor[: shape[0]].clone(), 'cut 1-D'
    flat = tensor.flatten(1)
    rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
    if rows > flat.shape[0] or columns > flat.shape[1]:
        raise ModelError(f'teacher has shape {tuple(tensor.shape)}, student {tuple(shape)}')
    how = 'svd' if cut == 'svd' else 'top-left block'
    if tensor.ndim > 2:
        how += f' on the flattened {tensor.ndim}-D tensor'
    return truncate_matrix(flat, (rows, columns), cut).reshape(shape), how


# --- Basis ---------------------------------------------------------------------------------


def stream_basis(covariance: Tensor, width: int) -> tuple[Tensor, float]:
    """Return a basis of the residual stream that keeps the mean direction.

    Args:
        covariance: (n, n) symmetric second moments of the stream.
        width: Columns s of the basis, at most n.

    Returns:
        (n, s) orthonormal columns Q with Q 1/sqrt(s) = 1/sqrt(n), the rest spanning the
        strongest directions off the mean direction; and the fraction of the energy off the
        mean direction that it keeps.
    """
    size = covariance.shape[0]
    off_mean = _mean_first(size)[:, 1:]  # (n, n - 1): orthonormal, off the mean direction
    energy, vectors = torch.linalg.eigh(off_mean.T @ covariance @ off_mean)
    kept = energy[size - width :].clamp(min=0).sum()
    strongest = vectors.flip(-1)[:, : width - 1]
    # Nearly the identity, so that student channel k is nearly the stream's k-th direction.
    student = _mean_first(width)
    columns = torch.cat([covariance.new_full((size, 1), size**-0.5), off_mean @ strongest], dim=1)
    total = energy.clamp(min=0).sum()
    return columns @ student.T, float(kept / total) if total > 0 else 1.0


def _mean_first(size: int) -> Tensor:
    """Return the (size, size) reflection that swaps the first axis and the mean direction."""
    first = torch.zeros(size, dtype=torch.float64)
    first[0] = 1.0
    normal = first - size**-0.5
    length = normal.norm()
    if length == 0:
        return torch.eye(size, dtype=torch.float64)
    normal = normal / length
    return torch.eye(size, dtype=torch.float64) - 2.0 * torch.outer(normal, normal)


def principal_directions(moments: Tensor, width: int) -> Tensor:
    """Return the strongest directions (n, width); the identity where nothing is dropped."""
    if width == moments.shape[0]:
        return torch.eye(width, dtype=torch.float64)
    return torch.linalg.eigh(moments).eigenvectors.flip(-1)[:, :width]


# --- Regression ----------------------------------------------------------------------------


def ridge_correction(features: Tensor, residual: Tensor, strength: float) -> Linear:
    """Return matrix (o, p) and offset (o,) that predict residuals from features.

    Args:
        features: (N, p).
        residual: (N, o).
        strength: Regularisation relative to the mean variance of the features; infinite gives
            zeros.
    """
    outputs, inputs = residual.shape[1], features.shape[1]
    if math.isinf(strength):
        return residual.new_zeros(outputs, inputs), residual.new_zeros(outputs)
    feature_mean, residual_mean = features.mean(dim=0), residual.mean(dim=0)
    centred = features - feature_mean
    gram = centred.T @ centred  # (p, p)
    floor = strength * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
    gram.diagonal().add_(floor)
    matrix = torch.linalg.solve(gram, centred.T @ (residual - residual_mean)).T
    return matrix, residual_mean - matrix @ feature_mean


def refit(
    layer: Linear, features: Sequence[Tensor], residual: Sequence[Tensor], strength: float
) -> Linear:
    """Return a layer moved by the ridge correction from its inputs to what its output lacks.

    Args:
        layer: Weight (o, p) and bias.
        features: Its inputs, each (B, N, p).
        residual: What is wanted less what it gives, each (B, N, o).
        strength: As in `ridge_correction`.
    """
    matrix, offset = ridge_correction(
        torch.cat([part.flatten(0, 1) for part in features]),
        torch.cat([part.flatten(0, 1) for part in residual]),
        strength,
    )
    return layer[0] + matrix, layer[1] + offset


# --- Attention -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """Projections of one attention, heads stacked in rows (in `output`, in columns)."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear


@dataclass(frozen=True)
class HeadSlot:
    """Which teacher head a student head takes, and which copy of it this one is."""

    head: int
    copy: int
    copies: int


def assign_heads(importance: Tensor, count: int) -> list[HeadSlot]:
    """Return, for each student head, the teacher head it takes.

    The most important heads are taken; with more student heads than teacher heads, each is
    taken again in that order, and its copies share its values.
    """
    order = importance.argsort(descending=True).tolist()
    taken = [order[index % len(order)] for index in range(count)]
    slots = []
    for head in sorted(set(taken)):
        copies = taken.count(head)
        slots += [HeadSlot(head, copy, copies) for copy in range(copies)]
    return slots


def rotary_groups(teacher_width: int, student_width: int, swap_axes: bool) -> list[list[int]]:
    """Return, for each rotary pair of a student head, the teacher's pairs that it stands for.

    Pair j of a half of width m turns by position * 100^(-2j/m); each teacher pair goes to the
    student pair of the nearest frequency in the half of the same axis. A pair is named by its
    first component; the second is a quarter of the head further.

    Args:
        teacher_width, student_width: Widths of one head.
        swap_axes: The student's first half turns by what turns the teacher's second.

    Returns:
        student_width / 2 lists, in the order of student pair names; empty where a wider student
        has frequencies that the teacher has not.
    """
    many, few = teacher_width // 4, student_width // 4
    groups: list[list[int]] = [[] for _ in range(2 * few)]
    for half in (0, 1):
        to = 1 - half if swap_axes else half
        for pair in range(many):
            nearest = min(range(few), key=lambda j: (abs(j / few - pair / many), j))
            groups[to * few + nearest].append(2 * half * many + pair)
    return groups


def _pair_rows(width: int) -> list[int]:
    """Return the first components of a head's rotary pairs."""
    quarter = width // 4
    return [*range(quarter), *range(2 * quarter, 3 * quarter)]


def merge_pairs(query: Tensor, key: Tensor, scale_q: Tensor, scale_k: Tensor) -> tuple[Any, ...]:
    """Return the one rotary pair closest to the sum of several of about one frequency.

    As complex rows u (query) and v (key), a pair adds Re(conj(u x) (v y) e^(i angle)) to the
    logit; the sum over pairs is a complex matrix, whose best approximation of rank one is one
    pair again.

    Args:
        query, key: (G, p) complex rows, one a pair.
        scale_q, scale_k: (p,) size of the inputs, the weight of errors in each.

    Returns:
        Complex rows (p,) of query and key.
    """
    if len(query) == 1:
        return query[0], key[0]
    q_u, r_u = torch.linalg.qr((query.conj() * scale_q).T)
    q_v, r_v = torch.linalg.qr((key * scale_k).T)
    left, strength, right = torch.linalg.svd(r_u @ r_v.T)
    root = strength[0].sqrt()
    return (root * (q_u @ left[:, 0])).conj() / scale_q, root * (q_v @ right[0]) / scale_k


def _reduce_logits(
    query: Linear, key: Linear, reads: tuple[Read, Read], groups: list[list[int]], start: Linear
) -> tuple[Linear, Linear]:
    """Return one student head's query and key rows from one teacher head's.

    Args:
        query, key: Rows of the teacher head, reading student tokens.
        reads: How queries and keys read the stream, for the size of their inputs.
        groups: As from `rotary_groups`.
        start: The student's own key rows, kept where a pair stands for nothing (the query's are
            zero there, so the function is that of the teacher and both can learn).
    """
    width = 2 * len(groups)
    step_t, step_s = len(query[0]) // 4, width // 4
    one = torch.ones(1, dtype=torch.float64)
    scale_q, scale_k = (torch.cat([read.scale, one]).clamp(min=1e-6) for read in reads)
    # (d, s + 1): a row of weights with its bias.
    rows_q, rows_k = (torch.cat([w, b[:, None]], dim=1) for w, b in (query, key))
    new_q = torch.zeros(width, rows_q.shape[1], dtype=torch.float64)
    new_k = torch.cat([start[0], start[1][:, None]], dim=1)
    for first, group in zip(_pair_rows(width), groups, strict=True):
        if not group:
            continue
        second = [pair + step_t for pair in group]
        u, v = merge_pairs(
            torch.complex(rows_q[group], rows_q[second]),
            torch.complex(rows_k[group], rows_k[second]),
            scale_q,
            scale_k,
        )
        new_q[first], new_q[first + step_s] = u.real, u.imag
        new_k[first], new_k[first + step_s] = v.real, v.imag
    new_q *= math.sqrt(width / len(query[0]))  # the student divides by its own head width
    return (new_q[:, :-1], new_q[:, -1]), (new_k[:, :-1], new_k[:, -1])


def _reduce_values(
    value: Linear, output: Tensor, scale: Tensor, slot: HeadSlot, start: Linear
) -> tuple[Linear, Tensor, Tensor]:
    """Return one student head's value rows, output columns and what its bias adds.

    A narrower head keeps the strongest directions of output @ value; copies of one head share
    them. A wider one keeps its own start in the rows beyond, with output columns of zero.

    Args:
        value: Rows (d, s) and bias (d,) of the teacher head, reading student tokens.
        output: (s, d) columns that write the stream.
        scale: (s,) size of the inputs.
        slot: Which copy this is.
        start: The student's own value rows (d', s) and bias.
    """
    weight, bias = value
    wide, narrow = len(weight), len(start[0])
    nothing = torch.zeros(len(output), dtype=torch.float64)
    if narrow >= wide:
        new_weight, new_bias = start[0].clone(), start[1].clone()
        new_weight[:wide], new_bias[:wide] = weight, bias
        return (new_weight, new_bias), F.pad(output, (0, narrow - wide)), nothing
    scale = scale.clamp(min=1e-6)
    q_o, r_o = torch.linalg.qr(output)
    q_v, r_v = torch.linalg.qr((weight * scale).T)
    left, strength, right = torch.linalg.svd(r_o @ r_v.T)  # (d, d), (d,), (d, d)
    part = slice(slot.copy * narrow, (slot.copy + 1) * narrow)
    left, right = q_o @ left[:, part], right[part] @ q_v.T  # (s, d'), (d', s)
    size = strength.mean().sqrt().clamp(min=1e-12)
    missing = narrow - left.shape[1]  # copies may outnumber the directions there are
    new_weight = F.pad(right * size / scale, (0, 0, 0, missing))
    columns = F.pad(left * strength[part] / size, (0, missing))
    # Attention weights add up to one, so the value's bias reaches the stream as it is.
    adds = output @ bias / slot.copies
    return (new_weight, torch.zeros(narrow, dtype=torch.float64)), columns, adds


def _rows(layer: Linear, head: int, width: int) -> Linear:
    part = slice(head * width, (head + 1) * width)
    return layer[0][part], layer[1][part]


def head_importance(teacher: Attention, features: Sequence[Tensor], heads: int) -> Tensor:
    """Return (heads,) variance that each head adds; from the weights where no features are."""
    width = teacher.output[0].shape[1] // heads
    columns = teacher.output[0].unflatten(1, (heads, width)).transpose(0, 1)  # (H, s, d)
    if not features:
        values = teacher.value[0].unflatten(0, (heads, width))
        return (columns @ values).square().sum(dim=(1, 2))
    tokens = torch.cat([part.flatten(0, 1) for part in features])
    # (H, B * N, d)
    tokens = (tokens - tokens.mean(dim=0)).unflatten(1, (heads, width)).transpose(0, 1)
    return (tokens @ columns.transpose(1, 2)).square().sum(dim=(1, 2)) / tokens.shape[1]


def reduce_attention(
    teacher: Attention,
    start: Attention,
    slots: list[HeadSlot],
    reads: tuple[Read, Read],
    groups: list[list[int]],
) -> Attention:
    """Return a student's attention, head by head, from a teacher's that reads student tokens."""
    wide = 2 * sum(len(group) for group in groups)
    narrow = 2 * len(groups)
    queries: list[Linear] = []
    keys: list[Linear] = []
    values: list[Linear] = []
    columns: list[Tensor] = []
    bias = teacher.output[1].clone()
    for index, slot in enumerate(slots):
        query, key = _reduce_logits(
            _rows(teacher.query, slot.head, wide),
            _rows(teacher.key, slot.head, wide),
            reads,
            groups,
            _rows(start.key, index, narrow),
        )
        value, written, adds = _reduce_values(
            _rows(teacher.value, slot.head, wide),
            teacher.output[0][:, slot.head * wide : (slot.head + 1) * wide],
            reads[1].scale,
            slot,
            _rows(start.value, index, narrow),
        )
        bias += adds
        queries.append(query)
        keys.append(key)
        values.append(value)
        columns.append(written)
    output = torch.cat(columns, dim=1), bias
    return Attention(stack(queries), stack(keys), stack(values), output)


def stack(layers: Sequence[Linear]) -> Linear:
    return torch.cat([layer[0] for layer in layers]), torch.cat([layer[1] for layer in layers])


# --- MLP -----------------------------------------------------------------------------------


def reduce_units(
    fc1: Linear, fc2: Linear, units: Sequence[Tensor], scale: Tensor, start: tuple[Linear, Linear]
) -> tuple[Linear, Linear, str]:
    """Return the layers of a smaller MLP: the units that change the output most.

    Args:
        fc1, fc2: The teacher's, reading and writing student tokens.
        units: The teacher's activations (B, N, units) on calibration tokens; may be empty.
        scale: (s,) size of fc1's inputs, used where there are no activations.
        start: The student's own layers, for units that the teacher has not.
    """
    count, wanted = len(fc1[0]), len(start[0][0])
    if wanted >= count:
        weight, bias = start[0][0].clone(), start[0][1].clone()
        weight[:count], bias[:count] = fc1
        note = 'all units' if wanted == count else f'{count} units, {wanted - count} more silent'
        return (weight, bias), (F.pad(fc2[0], (0, wanted - count)), fc2[1].clone()), note
    size = fc2[0].square().sum(dim=0)
    if units:
        importance = torch.cat([part.flatten(0, 1) for part in units]).var(dim=0) * size
    else:
        importance = ((fc1[0] * scale).square().sum(dim=1) + fc1[1].square()) * size
    kept = importance.topk(wanted).indices.sort().values
    note = f'{wanted} of {count} units'
    return (fc1[0][kept], fc1[1][kept]), (fc2[0][:, kept], fc2[1].clone()), note
