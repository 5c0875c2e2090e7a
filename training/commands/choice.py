"""Train the network that chooses between a student's disparity and what matching found around it.

Take frames that the student was not trained on. The choice is learnt by what it is worth: how much
smaller the error becomes, counted at the bounds that the benchmark reports.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor
from tqdm import tqdm

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.residual import CANDIDATES, EVIDENCE
from lunar_stereo_recon.pipeline import StereoReconstructor
from training.data.batches import list_samples
from training.data.choice_examples import ChoiceCrops, make_examples
from training.data.origin import claim
from training.losses.stereo import edge_weights
from training.models.choice import ChoiceStudent, export_choice

BATCH, LEARNING_RATE, WARMUP_SHARE, WEIGHT_DECAY = 8, 3e-3, 0.1, 1e-3
# What an error costs: each bound that it is above, and a little for its size, pixels.
BOUNDS_PX = {0.5: 0.3, 1.0: 0.5, 2.0: 0.5}
COST_A_PIXEL, LARGEST_ERROR_PX = 0.1, 4.0
# A bound is as soft as this, pixels, and a difference of cost as this.
BOUND_SOFTNESS_PX, COST_SOFTNESS = 0.05, 0.08
# Beside the cross entropy, the expected cost itself; and the likelihood of the error.
EXPECTED_COST_WEIGHT, LIKELIHOOD_WEIGHT = 0.3, 0.05
LARGEST_LOGGED_ERROR_PX, LARGEST_LOG_ERROR = 16.0, 4.0
EDGE_WEIGHT = 2.0
NO_CHOICE = 99.0
REPORT_EVERY = 100


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'choice', help='train what chooses between network and matching, on frames of its own'
    )
    parser.add_argument('model', type=Path, help='.onnx file of the student')
    parser.add_argument(
        'data', type=Path, nargs='+', help='folders of rendered full frames, each drawn equally'
    )
    parser.add_argument('--out', type=Path, required=True, help='.onnx file to write')
    parser.add_argument(
        '--examples', type=Path, required=True, help='folder for the examples, 9 MB a frame'
    )
    parser.add_argument('--start', type=Path, help='.safetensors of an earlier call')
    parser.add_argument('--steps', type=int, default=7500)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=0, help='0 leaves it to the runtime')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make examples, train, and write the file for the rover and one to train on.

    Raises:
        InputError: A number is out of range, or a frame cannot be read.
    """
    if args.steps < 1:
        raise InputError(f'--steps is {args.steps}; at least 1 is needed')
    if args.threads:
        torch.set_num_threads(args.threads)
    engine = StereoReconstructor(load_backend('onnx', args.model, threads=args.threads))
    model = hashlib.sha256(args.model.read_bytes()).hexdigest()
    folders = []
    for number, folder in enumerate(args.data):
        folders.append(args.examples / f'{number}_{folder.name}')
        paths = list_samples([folder])
        folders[-1].mkdir(parents=True, exist_ok=True)
        claim(folders[-1], {'model': model}, '--examples')
        make_examples(engine, paths, folders[-1], args.seed)
    torch.manual_seed(args.seed)
    network = ChoiceStudent()
    if args.start:
        network.load_state_dict(_weights(args.start))
    train(network, ChoiceCrops(folders, args.seed), args.steps)
    training = f'{args.steps} steps of {BATCH} crops, seed {args.seed}'
    export_choice(network, args.out, {'name': 'choice', 'training': training})
    save_file(network.state_dict(), args.out.with_suffix('.safetensors'))
    print(f'{args.out}: {args.out.stat().st_size / 2**10:.0f} KiB')
    return 0


def _weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a .safetensors file.

    Raises:
        InputError: It is none, or of another network.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f'--start {path} is no readable .safetensors file: {error}') from error
    shapes = {name: weight.shape for name, weight in ChoiceStudent().state_dict().items()}
    if {name: weight.shape for name, weight in weights.items()} != shapes:
        raise InputError(f'--start {path} holds the weights of another network than a chooser')
    return weights


def train(network: ChoiceStudent, crops: ChoiceCrops, steps: int) -> list[dict[str, float]]:
    """Train in place and return what was printed: the mean costs over `REPORT_EVERY` steps.

    `chosen` lies between `best`, the best candidate everywhere, and `prior` when it has learnt
    something.
    """
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, steps, pct_start=WARMUP_SHARE
    )
    network.train()
    reports, sums, counted = [], dict.fromkeys(('loss', 'chosen', 'prior', 'best'), 0.0), 0
    for step in tqdm(range(steps), unit='step'):
        batch = [crops[step * BATCH + item] for item in range(BATCH)]
        planes, candidates, truth = (
            torch.from_numpy(np.stack([getattr(example, name) for example in batch]))
            for name in ('evidence', 'candidates', 'truth')
        )
        with torch.autocast('cpu', torch.bfloat16):
            output = network(planes)
        loss, figures = choice_loss(output.float(), planes, candidates, truth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        counted += 1
        for name, value in figures.items():
            sums[name] += float(value)
        if counted == REPORT_EVERY or step + 1 == steps:
            reports.append({name: value / counted for name, value in sums.items()})
            costs = ', '.join(f'{name} {value:.4f}' for name, value in reports[-1].items())
            tqdm.write(f'step {step + 1}: {costs}')
            sums, counted = dict.fromkeys(sums, 0.0), 0
    return reports


def choice_loss(
    output: Tensor, planes: Tensor, candidates: Tensor, truth: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the mean costs, see `train`.

    The preferences are pulled towards a soft minimum of the candidates' costs, a pixel counting
    as much as its candidates differ, and near edges three times that. Where the right camera does
    not see the prior there is no choice. The expected error is learnt as the scale of a Laplace
    distribution; where there is no surface (sky) nothing is right.

    Args:
        output: (B, 5, H, W) of the network.
        planes: (B, K, H, W), the evidence.
        candidates: (B, 4, H, W), pixels.
        truth: (B, H, W), pixels, NaN unknown.
    """
    count = len(CANDIDATES)
    inside = (planes[:, EVIDENCE.index('inside')] > 0.5).to(output.dtype)
    known = torch.isfinite(truth).to(output.dtype)
    errors = (candidates - truth.nan_to_num(0.0)[:, None]).abs()  # [B, 4, H, W]
    costs = error_cost(errors)
    least, most = costs.min(1).values, costs.max(1).values
    preferences = output[:, :count].clone()
    preferences[:, 0] += NO_CHOICE * (1 - inside)
    wanted = (-(costs - least[:, None]) / COST_SOFTNESS).softmax(1)
    entropy = -(wanted * preferences.log_softmax(1)).sum(1)
    entropy = entropy + (wanted * wanted.clamp_min(1e-9).log()).sum(1)
    expected = (preferences.softmax(1) * costs).sum(1) - least
    chosen = preferences.argmax(1, keepdim=True)
    error = errors.gather(1, chosen)[:, 0].clamp_max(LARGEST_LOGGED_ERROR_PX)
    error = torch.where(known > 0, error, torch.full_like(error, LARGEST_LOGGED_ERROR_PX))
    log_error = output[:, count].clamp(-LARGEST_LOG_ERROR, LARGEST_LOG_ERROR)
    likelihood = (error * (-log_error).exp() + log_error).mean()
    pixels = known.sum().clamp_min(1)
    # Beside edges the choice matters most.
    asked = known * inside * edge_weights(truth, EDGE_WEIGHT)
    loss = (entropy * (most - least) * asked).sum() / pixels
    loss = loss + EXPECTED_COST_WEIGHT * (expected * asked).sum() / pixels
    loss = loss + LIKELIHOOD_WEIGHT * likelihood
    costs_of = {'chosen': costs.gather(1, chosen)[:, 0], 'prior': costs[:, 0], 'best': least}
    means = {name: (cost * known).sum() / pixels for name, cost in costs_of.items()}
    return loss, {'loss': loss.detach(), **means}


def error_cost(errors: Tensor) -> Tensor:
    """Return what errors (any shape, pixels) cost."""
    cost = COST_A_PIXEL * errors.clamp_max(LARGEST_ERROR_PX)
    for bound, price in BOUNDS_PX.items():
        cost = cost + price * torch.sigmoid((errors - bound) / BOUND_SOFTNESS_PX)
    return cost
