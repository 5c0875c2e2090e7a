"""`python -m training campaign NAME --minutes 9 --resume`: commands in turn, in timed pieces.

A campaign is a YAML file with a list of command lines, `lunar-stereo ...` or those of `python -m
training`: data, student, export. One command, given once with all the time there is or several
times with less, is the whole campaign: steps have shares of the time, what is done is remembered,
and a stopped step continues where it was.

A step is a command line, or a mapping of

* `run`: the command line;
* `share`: its part of the time that no step has in `minutes`, relative to the other shares. The
  step ends with it: a data set is then as large as it got, and the learning rate of a training
  comes to its end just then. Without a time budget it runs to its own end;
* `minutes`: the most that it takes; kept free for it while the steps before have shares;
* `makes`: a file or folder without which the step is not done, whatever is remembered: what it
  made may have been left on another machine.

In texts `{out}` is the folder of results, `{data}` that of rendered pairs, `{workers}` the number
of processes that leave one core free.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
import json
import os
from pathlib import Path
import shlex
import sys
import time
from typing import Any

import torch
import yaml

from lunar_stereo_recon import cli as package_cli
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.yaml_files import read_yaml
from training import cli

PACKAGE_COMMAND = 'lunar-stereo'
STATE = 'campaign.json'
KEYS = ('run', 'share', 'minutes', 'makes')


@dataclass(frozen=True)
class Step:
    """One command line.

    Attributes:
        text: As in the file; it is remembered by it.
        args: Parsed; `work` of them, where a command has it, takes a time budget in `minutes`
            and returns whether it came to its end.
        share: Share of the time, relative to other steps'; 0 for a step that runs to its end.
        minutes: Kept free for it.
        makes: Without which it is not done; None: what is remembered counts.
    """

    text: str
    args: argparse.Namespace
    share: float = 0.0
    minutes: float = 0.0
    makes: Path | None = None

    def run(self, left: float | None, allotted: float | None, resume: bool) -> bool:
        """Run; return whether the step is done.

        Args:
            left: Minutes of this call; None: no end.
            allotted: Minutes that the step has, in this call and later ones; None: no end.
            resume: Continue with the existing results.

        Raises:
            InputError: The command reports a failure.
        """
        if hasattr(self.args, 'resume'):
            self.args.resume = resume
        if not hasattr(self.args, 'work'):
            status = self.args.run(self.args)
            if status:
                raise InputError(f'step {self.text!r} ended with status {status}')
            return True
        if hasattr(self.args, 'finish_in'):
            self.args.minutes, self.args.finish_in = left, allotted
            return self.args.work(self.args)
        limits = [limit for limit in (left, allotted) if limit is not None]
        self.args.minutes = min(limits, default=None)
        finished = self.args.work(self.args)
        # A share that is spent ends it, the end of the call does not.
        return finished or (allotted is not None and left is not None and allotted <= left)


@dataclass(frozen=True)
class Record:
    """What is remembered of a step: how long it ran, in all calls, and whether it is done."""

    seconds: float = 0.0
    done: bool = False


def read_campaign(
    path: Path, out: Path = Path('runs'), data: Path | None = None, device: str | None = None
) -> list[Step]:
    """Return the steps of a campaign, a YAML file with a list `steps`.

    Args:
        path: The file.
        out: Folder of results.
        data: Folder of rendered pairs; None: `data` in `out`.
        device: For the steps that can use one; None: 'cuda' for those that find it usable.

    Raises:
        InputError: The file is missing or of another form, or a step is no known command; all are
            looked at before the first is run.
    """
    try:
        content = read_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f'campaign {path}: {error}') from error
    steps = content.get('steps') if isinstance(content, dict) and set(content) == {'steps'} else 0
    if not (isinstance(steps, list) and steps and all(isinstance(s, (str, dict)) for s in steps)):
        raise InputError(
            f'campaign {path}: one key, steps, with a list of command lines is needed'
        )
    cores = len(os.sched_getaffinity(0))
    names = {'out': out, 'data': data or out / 'data', 'workers': max(cores - 1, 1)}
    found = [_step(entry if isinstance(entry, dict) else {'run': entry}, names) for entry in steps]
    for step in found:
        if hasattr(step.args, 'device'):
            step.args.device = device or _best_device(step)
    return found


def _best_device(step: Step) -> str:
    """Return 'cuda' where a step can use it; say so where only its rendering cannot."""
    if not torch.cuda.is_available():
        return 'cpu'
    if hasattr(step.args, 'rocks'):
        from lunar_stereo_recon.simulation.renderer import rendering_device

        try:
            rendering_device('cuda', step.args.rocks)
        except InputError as error:
            print(f'step {step.text!r} renders on the CPU: {error}', file=sys.stderr)
            return 'cpu'
    return 'cuda'


def _step(entry: dict[str, Any], names: dict[str, Any]) -> Step:
    text = entry.get('run')
    unknown = sorted(set(entry) - set(KEYS), key=str)
    if unknown or not isinstance(text, str):
        raise InputError(f'step {entry}: keys are {", ".join(KEYS)}, and run is a command line')
    numbers = {key: entry.get(key, 0) for key in ('share', 'minutes')}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise InputError(f'step {text!r}: {key} is {value!r}; a number, 0 or more, is needed')
    makes = entry.get('makes')
    try:
        product = None if makes is None else Path(str(makes).format(**names))
        step = parse_step(text.format(**names))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'step {text!r}: {error} is not known in braces; there are {", ".join(names)}'
        ) from error
    return replace(step, text=text, makes=product, **numbers)


def parse_step(text: str) -> Step:
    """Return a step from its command line.

    Raises:
        InputError: It is no known command, or an argument is wrong.
    """
    words = shlex.split(text)
    try:
        if words[:1] == [PACKAGE_COMMAND]:
            return Step(text, package_cli.build_parser().parse_args(words[1:]))
        return Step(text, cli.build_parser().parse_args(words))
    except SystemExit as error:
        raise InputError(f'step {text!r} is not a command line of this package') from error


class Campaign:
    """The steps, and what is remembered of them in a JSON file."""

    def __init__(self, steps: Sequence[Step], path: Path, resume: bool = False) -> None:
        """Read the file where the campaign goes on.

        Raises:
            InputError: It is damaged.
        """
        self.steps, self.path = steps, path
        self.resume = resume
        there = _read_records(path) if resume else {}
        self.records = {step.text: there.get(step.text, Record()) for step in steps}
        for step in steps:
            # What has to be made anew has its share anew.
            if step.makes and not step.makes.exists():
                self.records[step.text] = Record()

    def is_done(self, step: Step) -> bool:
        """Return whether a step is done."""
        return self.records[step.text].done

    def run(self, minutes: float | None = None, calls: int = 1) -> bool:
        """Run what is not done yet, until the time is spent; return whether all is done.

        Args:
            minutes: Budget of this call; a step that cannot be stopped may run over it.
            calls: So many calls of this length, this one included, are to bring the campaign to
                its end.

        Raises:
            InputError: A step failed.
        """
        started = time.monotonic()
        for number, step in enumerate(self.steps, start=1):
            if self.is_done(step):
                continue
            spent = (time.monotonic() - started) / 60
            left = allotted = None
            if minutes is not None:
                left = minutes - spent
                if left <= 0:
                    return False
                allotted = self.allotted(step, minutes * calls - spent)
            share = '' if allotted is None else f' ({allotted:.1f} min)'
            print(f'[{number}/{len(self.steps)}] {step.text}{share}', flush=True)
            if not self._run_step(step, left, allotted):
                return False
        return True

    def allotted(self, step: Step, remaining: float) -> float | None:
        """Return the minutes that a step still has, None where it runs to its own end.

        Args:
            step: The next one.
            remaining: Minutes for all that is to do, in this call and later ones.
        """
        if not step.share:
            return None
        to_do = [other for other in self.steps if not self.is_done(other)]
        spent = self.records[step.text].seconds / 60
        shared = remaining + spent - sum(other.minutes for other in to_do)
        part = step.share / sum(other.share for other in to_do)
        return max(part * shared - spent, 0.0)

    def _run_step(self, step: Step, left: float | None, allotted: float | None) -> bool:
        started = time.monotonic()
        done = step.run(left, allotted, self.resume)
        seconds = self.records[step.text].seconds + time.monotonic() - started
        self.records[step.text] = Record(seconds, done)
        _write_records(self.path, self.records)
        return done


def _read_records(path: Path) -> dict[str, Record]:
    if not path.exists():
        return {}
    try:
        steps: Any = json.loads(path.read_text(encoding='utf-8'))['steps']
        return {
            str(text): Record(float(value['seconds']), bool(value['done']))
            for text, value in steps.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path}: not a readable state of a campaign: {error}') from error


def _write_records(path: Path, records: dict[str, Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    steps = {
        text: {'seconds': round(record.seconds, 3), 'done': record.done}
        for text, record in records.items()
    }
    partial.write_text(json.dumps({'steps': steps}, indent=1) + '\n', encoding='utf-8')
    os.replace(partial, path)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'campaign', help='data, student, export: several commands in timed pieces'
    )
    parser.add_argument('campaign', help='YAML file, or the name of one in training/campaigns/')
    parser.add_argument(
        '--out', type=Path, default=Path('runs'), help='folder of results (default: runs)'
    )
    parser.add_argument('--data', type=Path, help='folder of rendered pairs (default: OUT/data)')
    parser.add_argument(
        '--minutes',
        type=float,
        help='minutes for this call, shared by the steps (default: no limit)',
    )
    parser.add_argument(
        '--calls',
        type=int,
        default=1,
        help='number of calls of --minutes, this one included, in which everything is '
        'to be done (default: 1)',
    )
    parser.add_argument('--resume', action='store_true', help='leave out the steps that are done')
    parser.add_argument(
        '--device',
        help='device for rendering and training: cpu or cuda (default: cuda if a step can use it)',
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='only print the steps and which of them are done'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run a piece of the campaign."""
    if args.calls < 1:
        raise InputError(f'--calls is {args.calls}; this one is at least 1')
    path = Path(args.campaign)
    if not path.suffix:
        path = Path(__file__).parents[1] / 'campaigns' / f'{args.campaign}.yaml'
    steps = read_campaign(path, args.out, args.data, args.device)
    campaign = Campaign(steps, args.out / f'{path.stem}_{STATE}', args.resume or args.dry_run)
    if args.dry_run:
        for step in steps:
            print(f'{"done" if campaign.is_done(step) else "to do"}: {step.text}')
        return 0
    if campaign.run(args.minutes, args.calls):
        print('all steps are done')
    else:
        print('the time is over; call again with --resume to continue')
    return 0
