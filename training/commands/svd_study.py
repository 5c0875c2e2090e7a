"""Compare starts of a smaller decoder: `python -m training svd-study`.

A small teacher learns disparity on synthetic stereo patches, then smaller decoders are started
from it at random, by truncation and on a shared basis. Each is measured before any training, on
pairs that neither the teacher nor the calibration saw; all get the teacher's encoder tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn, Tensor
import torch.nn.functional as F
from tqdm import tqdm

from training.models.decoder import (
    DecoderBlock,
    grid_positions,
    LAYER_NORM_EPS,
    rotary_tables,
)
from training.start.decoder_source import CalibrationTokens, DecoderLayout
from training.start.init_plan import STRATEGIES
from training.start.reduction import ridge_correction
from training.start.shared_basis import shared_basis
from training.start.svd_init import truncate

PATCH = 8
GRID = (4, 12)
MAX_DISPARITY_PX = 16.0
ENCODER_WIDTH = 64
RIDGE_OF_MEASURE = 1e-6


@dataclass(frozen=True)
class Size:
    """Sizes of one decoder."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float

    def __str__(self) -> str:
        return f'{self.width}/{self.depth}/{self.heads} ratio {self.mlp_ratio:g}'


TEACHER = Size(64, 6, 4, 4.0)
STUDENTS = (
    Size(48, 6, 4, 4.0),
    Size(32, 6, 4, 4.0),
    Size(32, 6, 2, 1.0),
    Size(48, 3, 4, 4.0),
    Size(32, 3, 2, 1.0),
)
TRAINED = (STUDENTS[2], STUDENTS[4])
TRAINED_STARTS = ('random', 'truncate', 'basis')


class PatchStereo(nn.Module):
    """Patch encoder, MASt3R decoder, one disparity a token of the left view."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, ENCODER_WIDTH, PATCH, PATCH)
        )
        self.enc_norm = nn.LayerNorm(ENCODER_WIDTH, eps=LAYER_NORM_EPS)
        self.decoder_embed = nn.Linear(ENCODER_WIDTH, size.width)
        self.dec_blocks, self.dec_blocks2 = (
            nn.ModuleList(
                DecoderBlock(size.width, size.heads, size.mlp_ratio) for _ in range(size.depth)
            )
            for _ in range(2)
        )
        self.dec_norm = nn.LayerNorm(size.width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(size.width, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Return (B, N, E) tokens of (B, 1, H, W)."""
        return self.enc_norm(self.encoder(image).flatten(2).transpose(1, 2))

    def decode(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views' last tokens (B, N, C), before the last norm."""
        tables = rotary_tables(grid_positions(*GRID), self.size.width // self.size.heads)
        x, y = self.decoder_embed(left), self.decoder_embed(right)
        for one, two in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            x, y = one(x, y, tables, tables), two(y, x, tables, tables)
        return x, y

    def read_out(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B, 2, N) disparities in px of both views' tokens from their last tokens."""
        tokens = torch.stack([x, y], dim=1)
        return MAX_DISPARITY_PX * self.head(self.dec_norm(tokens))[..., 0]

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return (B, 2, N) disparities in px of two views (B, 1, H, W)."""
        return self.read_out(*self.decode(self.encode(left), self.encode(right)))


def synthetic_pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return left and right views (B, 1, H, W) of textured planes, and (B, 2, N) disparities.

    Texture is noise at several scales; the plane's disparity changes linearly over the image.
    """
    height, width = GRID[0] * PATCH, GRID[1] * PATCH
    wide = width + 2 * int(MAX_DISPARITY_PX)
    texture = torch.zeros(count, 1, height, wide)
    for scale in (1, 2, 4, 8):
        noise = torch.randn(count, 1, height // scale, wide // scale, generator=generator)
        texture += F.interpolate(noise, size=(height, wide), mode='bilinear', align_corners=False)
    start = torch.rand(count, 1, 1, generator=generator) * 0.6 + 0.2
    slope = (torch.rand(count, 2, 1, generator=generator) - 0.5) * 0.4
    rows = torch.linspace(-0.5, 0.5, height)[:, None].expand(height, width)
    columns = torch.linspace(-0.5, 0.5, width).expand(height, width)
    disparity = (start + slope[:, :1] * rows + slope[:, 1:] * columns) * MAX_DISPARITY_PX
    left = _sample(texture, columns, disparity / 2)
    right = _sample(texture, columns, -disparity / 2)
    truth = F.avg_pool2d(disparity[:, None], PATCH).flatten(2)
    return left, right, truth.expand(-1, 2, -1)


def _sample(texture: Tensor, columns: Tensor, shift: Tensor) -> Tensor:
    """Return views of the texture's middle, moved right by shift (B, H, W) px."""
    height, wide = texture.shape[-2:]
    width = columns.shape[-1]
    x = columns * (width - 1) + (wide - 1) / 2 - shift
    y = torch.arange(height).view(1, -1, 1).expand(len(texture), -1, width).float()
    grid = torch.stack([2 * x / (wide - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return F.grid_sample(texture, grid, align_corners=True)


def train_teacher(steps: int, generator: torch.Generator) -> PatchStereo:
    """Return a teacher trained on synthetic pairs."""
    teacher = PatchStereo(TEACHER)
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, max(steps, 2))
    progress = tqdm(range(steps), desc='teacher', unit='step')
    for step in progress:
        left, right, truth = synthetic_pairs(16, generator)
        loss = F.smooth_l1_loss(teacher(left, right), truth)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            progress.set_postfix_str(f'loss {loss.item():.3f} px')
    return teacher.eval()


@dataclass(frozen=True)
class Measure:
    """How near a student's decoder is to its teacher's, on held-out pairs.

    Attributes:
        stream: Error of the last tokens after the best linear map back to the teacher's width,
            fitted on the calibration pairs; fraction of the variance.
        output: The same error of the disparity that the teacher's read-out gives on them, px.
        own: Mean absolute difference from the teacher's disparity through the student's own
            read-out as started; px.
    """

    stream: float
    output: float
    own: float


@torch.no_grad()
def measure(
    student: PatchStereo, teacher: PatchStereo, fit: Sequence[Tensor], held: Sequence[Tensor]
) -> Measure:
    """Measure a student on tokens (left, right) `held`, its linear map fitted on `fit`."""
    small, large = (torch.stack(model.decode(*fit), dim=1) for model in (student, teacher))
    width = small.shape[-1]
    matrix, offset = ridge_correction(
        small.reshape(-1, width).double(),
        large.reshape(-1, large.shape[-1]).double(),
        RIDGE_OF_MEASURE,
    )
    small, large = (torch.stack(model.decode(*held), dim=1) for model in (student, teacher))
    mapped = (small.double() @ matrix.T + offset).float()
    variance = (large - large.mean(dim=(0, 1, 2))).square().mean()
    wanted = teacher.read_out(large[:, 0], large[:, 1])
    output = teacher.read_out(mapped[:, 0], mapped[:, 1]) - wanted
    own = student.read_out(small[:, 0], small[:, 1]) - wanted
    return Measure(
        ((mapped - large).square().mean() / variance).item(),
        output.abs().mean().item(),
        own.abs().mean().item(),
    )


def starts(
    student: PatchStereo, teacher: PatchStereo, tokens: CalibrationTokens, strategy: str
) -> dict[str, dict[str, Tensor]]:
    """Return the student's state after each way to start."""
    state, source = student.state_dict(), teacher.state_dict()
    heads = ('head.',)

    def basis(calibration: CalibrationTokens | None, refit: bool) -> dict[str, Tensor]:
        layouts = DecoderLayout(student.size.heads), DecoderLayout(TEACHER.heads)
        return shared_basis(
            state,
            source,
            *layouts,
            calibration=calibration,
            strategy=strategy,
            heads=heads,
            refit=refit,
            readers={'^head$': 'normed'},
        ).state

    return {
        'random': dict(state),
        'direct': truncate(state, source, strategy, cut='direct', heads=heads).state,
        'truncate': truncate(state, source, strategy, heads=heads).state,
        'basis, weights only': basis(None, refit=False),
        'basis, no refit': basis(tokens, refit=False),
        'basis': basis(tokens, refit=True),
    }


def train_student(
    student: PatchStereo, teacher: PatchStereo, steps: int, held: Sequence[Tensor], seed: int
) -> list[float]:
    """Train a student's decoder on the teacher's disparity; return held-out errors in px.

    The errors are mean absolute differences from the teacher after 1/4, 1/2 and all steps. The
    encoder is the teacher's and stays as it is; every start sees the same pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.01)
    errors = []
    for step in tqdm(range(1, steps + 1), desc='student', unit='step', leave=False):
        with torch.no_grad():
            tokens = [teacher.encode(view) for view in synthetic_pairs(16, generator)[:2]]
            wanted = teacher.read_out(*teacher.decode(*tokens))
        loss = F.smooth_l1_loss(student.read_out(*student.decode(*tokens)), wanted)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        if step in (steps // 4, steps // 2, steps):
            with torch.no_grad():
                wanted = teacher.read_out(*teacher.decode(*held))
                difference = student.read_out(*student.decode(*held)) - wanted
            errors.append(difference.abs().mean().item())
    return errors


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser('svd-study', help='compare starts of a smaller decoder')
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument('--steps', type=int, default=2500, help='training steps of the teacher')
    parser.add_argument('--pairs', type=int, default=64, help='number of calibration pairs')
    parser.add_argument(
        '--student-steps',
        type=int,
        default=0,
        help='training steps of the students after their start (default: none)',
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--strategy',
        default='uniform',
        choices=STRATEGIES,
        help='which layers of the teacher the student takes',
    )


def run(args: argparse.Namespace) -> int:
    """Train the teacher, start each student in each way, print a table."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    teacher = train_teacher(args.steps, generator)
    with torch.no_grad():
        left, right, truth = synthetic_pairs(64, generator)
        error = (teacher(left, right) - truth).abs().mean().item()
        constant = (truth - truth.mean()).abs().mean().item()
        fit, held = (
            [teacher.encode(view) for view in synthetic_pairs(count, generator)[:2]]
            for count in (args.pairs, 64)
        )
    print(f'teacher {TEACHER}: error on new pairs {error:.2f} px (a constant: {constant:.2f})')
    tokens = CalibrationTokens(fit[0], fit[1], GRID)
    print(f'{"student":<17}{"start":<21}{"stream %":>9}{"output px":>11}{"own px":>9}')
    trained = []
    for size in (TEACHER, *STUDENTS):
        student = PatchStereo(size)
        for name, state in starts(student, teacher, tokens, args.strategy).items():
            student.load_state_dict(state)
            found = measure(student, teacher, fit, held)
            print(
                f'{size!s:<17}{name:<21}{100 * found.stream:9.2f}{found.output:11.3f}'
                f'{found.own:9.3f}',
                flush=True,
            )
            if args.student_steps and size in TRAINED and name in TRAINED_STARTS:
                errors = train_student(student, teacher, args.student_steps, held, args.seed)
                trained.append((size, name, errors))
    if trained:
        print(f'px from the teacher after 1/4, 1/2 and all of {args.student_steps} steps')
    for size, name, errors in trained:
        print(f'{size!s:<17}{name:<21}' + ''.join(f'{error:9.3f}' for error in errors))
    return 0
