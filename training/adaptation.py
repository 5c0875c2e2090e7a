"""Adapting a student that may not get worse: frames kept back, judging, an early end.

What a teacher is sure of are the easy pixels, and a student that learns them alone forgets the
others. So it is judged on three things that it never trains on: the labels of frames kept back,
whether its own two views agree there at every pixel, dark ones too, and pairs with exact truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import time

import numpy as np
import torch

from lunar_stereo_recon.errors import InputError, ReconError
from training.checkpoint import is_checkpoint
from training.data.batches import list_samples, read_sample
from training.models.flight import FlightStudent, SIZE_MULTIPLE, warp_row
from training.models.lunar_teacher import match_both_views
from training.trainer import Trainer
from training.validation import spread

# Kept back: the last of the labelled frames, and every eighth of the replayed pairs.
HELD_BACK_SHARE = 0.2
HELD_BACK_EVERY = 8
# At most this many frames of each kind are looked at.
FRAMES = 24
# Disparities of both views that differ by more contradict each other.
CONTRADICTION_PX = 1.0
BAD_PX = 2.0
STATE = 'adapt.json'
Figures = dict[str, float]


class AdaptationRefusedError(ReconError):
    """No student was better than it had been at the start."""


@dataclass(frozen=True)
class Split:
    """Folders of what is trained on and what is kept back, of labelled frames and exact pairs."""

    train: Path
    held_back: Path
    replay: Path
    replay_held_back: Path


def split_frames(folder: Path, labels: Path, replay: Sequence[Path]) -> Split:
    """Return folders of links to labelled frames and exact pairs, some of them kept back.

    The last frames of the recording are kept back, not every n-th: neighbours are alike.

    Raises:
        InputError: There are too few to keep any back.
    """
    split = Split(*(folder / name for name in ('train', 'held_back', 'replay', 'replay_kept')))
    frames, pairs = list_samples([labels]), list_samples(replay)
    for name, found in (('labelled frames', frames), ('pairs to replay', pairs)):
        if len(found) < 2:
            raise InputError(f'{len(found)} {name}; at least 2 are needed, one is kept back')
    kept = max(1, round(HELD_BACK_SHARE * len(frames)))
    _link(split.train, frames[:-kept])
    _link(split.held_back, frames[-kept:])
    _link(split.replay, [path for i, path in enumerate(pairs) if i % HELD_BACK_EVERY])
    _link(split.replay_held_back, pairs[::HELD_BACK_EVERY])
    return split


def _link(folder: Path, paths: Sequence[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob('*.npz'):
        old.unlink()
    for number, path in enumerate(paths):
        (folder / f'{number:06d}.npz').symlink_to(path.resolve())


@torch.no_grad()
def judge(
    network: FlightStudent, split: Split, min_confidence: float, device: torch.device
) -> Figures:
    """Return what a student is worth on what was kept back; less is better of each.

    Returns:
        `held_back_epe` px, against labels that are sure enough; `held_back_contradicting` %, of
        pixels that the other view should see, whose two disparities differ; `replay_epe` px and
        `replay_bad2_shadow` % (where there is shadow), against the truth.
    """
    network.eval()
    errors, contradictions = [], []
    for sample in _frames(split.held_back):
        views = [_tensor(sample[view], device) for view in ('left', 'right')]
        output, other = match_both_views(network, *views)
        disparity = output['disparity']
        there = warp_row(other['disparity'][:, None], disparity[:, None])[:, 0]
        inside = disparity <= torch.arange(disparity.shape[2], device=device)
        contradictions.append(((there - disparity).abs() > CONTRADICTION_PX)[inside].cpu().numpy())
        error = np.abs(disparity[0].cpu().numpy() - sample['disparity'])
        errors.append(error[(sample['confidence'] >= min_confidence) & np.isfinite(error)])
    figures = {
        'held_back_epe': _mean(errors),
        'held_back_contradicting': 100 * _mean(contradictions),
    }
    replayed, dark = [], []
    for sample in _frames(split.replay_held_back):
        disparity = network(*(_tensor(sample[view], device) for view in ('left', 'right')))
        error = np.abs(disparity['disparity'][0].cpu().numpy() - sample['disparity'])
        known = np.isfinite(error)
        replayed.append(error[known])
        dark.append(error[known & sample['shadow']] > BAD_PX)
    figures['replay_epe'] = _mean(replayed)
    if any(len(part) for part in dark):
        figures['replay_bad2_shadow'] = 100 * _mean(dark)
    return figures


def _frames(folder: Path) -> list[dict[str, np.ndarray]]:
    paths = list_samples([folder])
    found = []
    for index in spread(len(paths), FRAMES):
        sample = read_sample(paths[index])
        rows, columns = (side // SIZE_MULTIPLE * SIZE_MULTIPLE for side in sample['left'].shape)
        found.append(
            {k: v[:rows, :columns] for k, v in sample.items() if v.shape == sample['left'].shape}
        )
    return found


def _tensor(image: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image))[None, None].to(device)


def _mean(parts: Sequence[np.ndarray]) -> float:
    whole = np.concatenate(parts)
    return float(whole.mean()) if len(whole) else float('nan')


def worse(now: Figures, before: Figures) -> list[str]:
    """Return what got worse, as 'NAME BEFORE -> NOW'; a figure that cannot be told is worse."""
    return [
        f'{name} {value:.4g} -> {now.get(name, float("nan")):.4g}'
        for name, value in before.items()
        if not now.get(name, float('nan')) <= value
    ]


@dataclass
class Adaptation:
    """How far an adaptation is.

    Attributes:
        start: Figures of the student that it began as.
        best: Figures of the best student that is worse nowhere; the start's until there is one.
        best_step: Its step; 0: none yet.
        waited: Judgements since.
        reasons: What was worse at the last judgement.
    """

    start: Figures
    best: Figures
    best_step: int
    waited: int
    reasons: list[str]

    def text(self) -> str:
        """Return the figures before and after, a line each."""
        lines = [f'step {self.best_step} is better than the start and worse nowhere:']
        lines += [f'  {k}: {v:.4g} -> {self.best[k]:.4g}' for k, v in self.start.items()]
        return '\n'.join(lines)


def adapt_guarded(
    trainer: Trainer,
    split: Split,
    out: Path,
    patience: int = 4,
    minutes: float | None = None,
    resume: bool = False,
) -> Adaptation:
    """Train, judge every `validate_every` steps, and write the best student to `out/checkpoint`.

    A student is written where its labels' error on the frames kept back is smaller than that of
    all before and nothing else is worse than at the start. It ends after `patience` judgements
    without one.

    Args:
        trainer: Of one flight student with a start.
        split: Trained on by the trainer, and kept back.
        out: Folder of checkpoint and state.
        patience: See above.
        minutes: Of this call.
        resume: Go on with the state in `out`.

    Raises:
        AdaptationRefusedError: No student was better.
    """
    (member,) = trainer.students.values()
    threshold = member.learner.recipe.min_confidence
    deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def judged() -> Figures:
        network = member.average.module
        if not isinstance(network, FlightStudent):
            raise InputError(f'adapt is for flight students; this is a {type(network).__name__}')
        return judge(network, split, threshold, trainer.device)

    path = out / STATE
    if resume and trainer.step and path.exists():
        state = Adaptation(**json.loads(path.read_text(encoding='utf-8')))
    else:
        start = judged()
        state = Adaptation(start, start, 0, 0, [])
        if is_checkpoint(out / 'checkpoint'):
            (out / 'checkpoint' / 'index.json').unlink()  # of another adaptation
        # Before the first step: a run that is stopped goes on against this start.
        out.mkdir(parents=True, exist_ok=True)
        _write(path, state)
    total = trainer.recipe.optimizer.total_steps
    while trainer.step < total and state.waited < patience:
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if left is not None and left <= 0:
            break
        goal = min(trainer.step + trainer.recipe.validate_every, total)
        trainer.run(left, stop_at=goal)
        if trainer.step < goal and left is None:
            break
        now = judged()
        state.reasons = worse(now, state.start)
        state.waited += 1
        if not state.reasons and now['held_back_epe'] < state.best['held_back_epe']:
            state.best, state.best_step, state.waited = now, trainer.step, 0
            trainer.save(out / 'checkpoint')
        _write(path, state)
    if not state.best_step:
        reasons = '; '.join(state.reasons) or 'labels of the frames kept back are met no better'
        raise AdaptationRefusedError(
            f'no student is written: after {trainer.step} steps none was better than the one that '
            f'it began as ({reasons}). A better teacher or more varied frames are needed'
        )
    return state


def _write(path: Path, state: Adaptation) -> None:
    path.write_text(json.dumps(vars(state), indent=1), encoding='utf-8')
