"""`python -m training campaign NAME --minutes 9 --resume`: commands in turn, in timed pieces.

A campaign is a YAML file with a list of command lines, `lunar-stereo ...` or those of `python -m
training`: data, teacher, student, export. What is done is remembered, the step that was stopped
goes on where it was, so that one command, given as often as it takes, is the whole campaign.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import json
import os
from pathlib import Path
import shlex
import time
from typing import Any

import yaml

from lunar_stereo_recon.errors import InputError

PACKAGE_COMMAND = 'lunar-stereo'
STATE = 'campaign.json'


@dataclass(frozen=True)
class Step:
    """One command line.

    Attributes:
        text: As in the file; a step is known as done by it.
        args: Parsed; `work` of them, where a command has it, takes a time budget in `minutes`
            and returns whether it came to its end.
    """

    text: str
    args: argparse.Namespace

    def run(self, minutes: float | None, resume: bool) -> bool:
        """Run; return whether the step is done.

        Raises:
            InputError: The command reports a failure.
        """
        if hasattr(self.args, 'work'):
            self.args.minutes = minutes
            self.args.resume = resume
            return self.args.work(self.args)
        status = self.args.run(self.args)
        if status:
            raise InputError(f'step {self.text!r} ended with status {status}')
        return True


def read_campaign(path: Path) -> list[Step]:
    """Return the steps of a campaign, a YAML file with a list `steps`.

    Raises:
        InputError: The file is missing or of another form, or a step is no known command; all are
            looked at before the first is run.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f'campaign {path}: {error}') from error
    steps = content.get('steps') if isinstance(content, dict) and set(content) == {'steps'} else 0
    if not (isinstance(steps, list) and steps and all(isinstance(step, str) for step in steps)):
        raise InputError(
            f'campaign {path}: one key, steps, with a list of command lines is needed'
        )
    return [parse_step(text) for text in steps]


def parse_step(text: str) -> Step:
    """Return a step from its command line.

    Raises:
        InputError: It is no known command, or an argument is wrong.
    """
    # The parser of all commands knows this one too.
    from training.__main__ import build_parser

    words = shlex.split(text)
    try:
        if words[:1] == [PACKAGE_COMMAND]:
            from lunar_stereo_recon import cli

            return Step(text, cli.build_parser().parse_args(words[1:]))
        return Step(text, build_parser().parse_args(words))
    except SystemExit as error:
        raise InputError(f'step {text!r} is not a command line of this package') from error


def run_campaign(
    steps: Sequence[Step], state_path: Path, minutes: float | None = None, resume: bool = False
) -> bool:
    """Run what is not done yet, until the time is spent; return whether all is done.

    Args:
        steps: In their order.
        state_path: JSON file in which done steps are remembered.
        minutes: Budget of this call; a step that cannot be stopped may run over it.
        resume: Go on from the file; else all is done anew.

    Raises:
        InputError: The file is damaged, or a step failed.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    done = _read_done(state_path) if resume else []
    for number, step in enumerate(steps, start=1):
        if step.text in done:
            continue
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if left is not None and left <= 0:
            return False
        print(f'[{number}/{len(steps)}] {step.text}', flush=True)
        if not step.run(left, resume):
            return False
        done.append(step.text)
        _write_done(state_path, done)
    return True


def _read_done(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        done: Any = json.loads(path.read_text(encoding='utf-8'))['done']
        return [str(text) for text in done]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: not a readable state of a campaign: {error}') from error


def _write_done(path: Path, done: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps({'done': done}, indent=1) + '\n', encoding='utf-8')
    os.replace(partial, path)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'campaign', help='data, teacher, student, export: several commands in timed pieces'
    )
    parser.add_argument('campaign', help='YAML file, or the name of one in training/campaigns/')
    parser.add_argument(
        '--out', type=Path, default=Path('runs'), help='where done steps are noted (default: runs)'
    )
    parser.add_argument('--minutes', type=float, help='stop after so long; call again to go on')
    parser.add_argument('--resume', action='store_true', help='leave out what is done')
    parser.add_argument('--dry-run', action='store_true', help='print the steps and what is done')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run a piece of the campaign."""
    path = Path(args.campaign)
    if not path.suffix:
        path = Path(__file__).parent / 'campaigns' / f'{args.campaign}.yaml'
    steps = read_campaign(path)
    state_path = args.out / f'{path.stem}_{STATE}'
    if args.dry_run:
        done = _read_done(state_path)
        for step in steps:
            print(f'{"done" if step.text in done else "to do"}: {step.text}')
        return 0
    if run_campaign(steps, state_path, args.minutes, args.resume):
        print('all steps are done')
    else:
        print('time is spent; call again with --resume to go on')
    return 0
