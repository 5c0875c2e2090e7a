"""Decides whether a model may replace another: differences on the same pairs, one verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lunar_stereo_recon.benchmark.bootstrap import GROUP, Interval, paired_differences
from lunar_stereo_recon.evaluation.scores import PairScore, summarise

# Figures of a subset, and of a whole group of pairs: key, header, factor, decimals. Of all of
# them less is better; what is missing counts as wrong.
SUBSET_FIGURES = (
    ('epe_px', 'EPE px', 1, 3),
    ('bad05_all', 'bad-0.5 %', 100, 2),
    ('bad1_all', 'bad-1 %', 100, 2),
    ('bad2_all', 'bad-2 %', 100, 2),
    ('ece', 'ECE', 1, 4),
    ('sure_wrong', 'sure yet wrong %', 100, 2),
    ('flying', 'flying %', 100, 2),
    ('flying_1px', 'flying >1 px %', 100, 2),
)
GROUP_FIGURES = (
    ('ece_low', 'ECE lower half', 1, 4),
    ('ece_mass', 'ECE equal mass', 1, 4),
    ('ece_below', 'ECE below 0.5', 1, 4),
    ('ece_above', 'ECE from 0.5', 1, 4),
    ('ause', 'AUSE', 1, 3),
)
SUBSETS = (
    'all',
    'lit',
    'shadow',
    'occluded',
    'rocks',
    'lit rocks',
    'rover parts',
    'edges',
    'thin',
)
# The verdict rests on these. More would be more chances of a veto by accident.
DECISIVE = {
    'all': ('epe_px', 'bad1_all', 'bad2_all', 'ece', 'sure_wrong', 'flying'),
    **dict.fromkeys(SUBSETS[1:], ('bad1_all',)),
}
# In less, a figure is an accident of a few things.
FEWEST_PIXELS = 1000
REASONS = 6
BETTER, EQUAL, WORSE, UNDECIDED = 'better', 'equal', 'worse', 'undecided'


@dataclass(frozen=True)
class Change:
    """One figure of two models on the same pairs.

    Attributes:
        set_name, subset, figure: What is compared; subset '' for figures of a whole group.
        before, after: Scores of the older and of the newer model.
        change: After minus before, from unrounded sums.
        interval: Its 95 % interval over pairs; None for a single pair.
        verdict: 'better' or 'worse' where the whole interval says so and the change is not below
            the last digit of the tables, 'equal' where it does not; 'undecided' without interval.
        decisive: Whether the release depends on it.
    """

    set_name: str
    subset: str
    figure: str
    before: float
    after: float
    change: float
    interval: Interval | None
    verdict: str
    decisive: bool

    def text(self) -> str:
        """Return set, subset, figure and change with its interval."""
        _, header, factor, decimals = FORMS[self.figure]
        name = ' '.join(part for part in (self.set_name + ':', self.subset, header) if part)
        return f'{name} {change_text(self.change, self.interval, factor, decimals)}'


FORMS = {form[0]: form for form in (*SUBSET_FIGURES, *GROUP_FIGURES)}


def compare(
    set_name: str,
    before: Sequence[PairScore],
    after: Sequence[PairScore],
    mean_of_pairs: bool = False,
    decides: bool = True,
) -> list[Change]:
    """Return the changes of every figure on one set.

    Args:
        set_name: For the texts.
        before, after: Scores of the older and of the newer model on the same pairs.
        mean_of_pairs: As for `scores.summarise`.
        decides: Whether the release depends on this set.
    """
    differences = paired_differences(before, after, mean_of_pairs)
    first, second = (summarise(scores, mean_of_pairs)['overall'] for scores in (before, after))
    changes = []
    for subset in SUBSETS:
        pixels = first.get(subset, {'pixels': 0})['pixels']
        for form in SUBSET_FIGURES if pixels else ():
            key = form[0]
            if key in differences.get(subset, {}):
                decisive = decides and pixels >= FEWEST_PIXELS and key in DECISIVE[subset]
                values = first[subset][key], second[subset][key]
                found = differences[subset][key]
                changes.append(_change(set_name, subset, form, values, found, decisive))
    for form in GROUP_FIGURES:
        key = form[0]
        if key in differences[GROUP]:
            values = first[key], second[key]
            changes.append(_change(set_name, '', form, values, differences[GROUP][key], False))
    return changes


def _change(
    set_name: str,
    subset: str,
    form: tuple[str, str, int, int],
    values: tuple[float, float],
    found: tuple[float, Interval | None],
    decisive: bool,
) -> Change:
    key, _, factor, decimals = form
    change, interval = found
    verdict = UNDECIDED
    if interval is not None:
        seen = abs(change) * factor >= 0.5 * 10**-decimals
        verdict = EQUAL
        if seen and interval[0] > 0:
            verdict = WORSE
        elif seen and interval[1] < 0:
            verdict = BETTER
    return Change(
        set_name,
        subset,
        key,
        *values,
        change,
        interval,
        verdict,
        decisive and interval is not None,
    )


def release_line(changes_by_model: Mapping[str, Sequence[Change]]) -> str:
    """Return the one line: whether the newer model may follow each of the older ones, and why.

    Args:
        changes_by_model: All changes against each older model.
    """
    reasons = []
    for model, changes in changes_by_model.items():
        worse = [change for change in changes if change.decisive and change.verdict == WORSE]
        if worse:
            # The gravest first: by the share of the older figure that was added to it.
            worse.sort(key=lambda change: change.change / max(change.before, 1e-6), reverse=True)
            texts = [change.text() for change in worse[:REASONS]]
            more = len(worse) - len(texts)
            tail = f'; and {more} more' if more else ''
            reasons.append(f'it is worse than {model} at {"; ".join(texts)}{tail}')
    if reasons:
        return f'May be released: no, because {", and ".join(reasons)}.'
    counts = []
    for model, changes in changes_by_model.items():
        decisive = [change for change in changes if change.decisive]
        if not decisive:
            return (
                f'May be released: no, because nothing decides against {model}: no set has two '
                'pairs or more.'
            )
        better = sum(change.verdict == BETTER for change in decisive)
        sets = len({change.set_name for change in decisive})
        counts.append(f'{model} ({sets} sets, {len(decisive)} figures, {better} of them better)')
    return (
        'May be released: yes, because it is nowhere worse beyond its interval than '
        f'{" nor ".join(counts)}.'
    )


def may_be_released(changes_by_model: Mapping[str, Sequence[Change]]) -> bool:
    """Return what `release_line` says."""
    return all(
        any(change.decisive for change in changes)
        and not any(change.decisive and change.verdict == WORSE for change in changes)
        for changes in changes_by_model.values()
    )


def group_change_table(changes: Sequence[Change]) -> str:
    """Return a line for each set: the changes of the figures of its whole."""
    headers = ['set', *(header for _, header, *_ in GROUP_FIGURES)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for change in changes:
        if not change.subset:
            rows.setdefault((change.set_name, ''), {})[change.figure] = _cell(change)
    return _lines(headers, rows, GROUP_FIGURES)


def change_table(changes: Sequence[Change]) -> str:
    """Return a line for each set and subset: every change with its interval.

    A figure that got worse beyond its interval has an exclamation mark, one that got better a
    plus sign in brackets.
    """
    headers = ['set', 'subset', *(header for _, header, *_ in SUBSET_FIGURES)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for change in changes:
        if change.subset:
            cells = rows.setdefault((change.set_name, change.subset), {})
            cells[change.figure] = _cell(change)
    return _lines(headers, rows, SUBSET_FIGURES)


def _cell(change: Change) -> str:
    _, _, factor, decimals = FORMS[change.figure]
    text = change_text(change.change, change.interval, factor, decimals)
    return text + {WORSE: ' (!)', BETTER: ' (+)'}.get(change.verdict, '')


def _lines(
    headers: Sequence[str],
    rows: Mapping[tuple[str, str], Mapping[str, str]],
    figures: Sequence[tuple[str, str, int, int]],
) -> str:
    lines = [headers, ['---'] * len(headers)]
    for (set_name, subset), cells in rows.items():
        names = [set_name, subset] if subset else [set_name]
        lines.append([*names, *(cells.get(key, '') for key, *_ in figures)])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def change_text(change: float, interval: Interval | None, factor: float, decimals: int) -> str:
    """Return a change with its sign and, where there is one, its interval."""
    values = (change, *(interval or ()))
    texts = [f'{factor * value:+.{decimals}f}' for value in values]
    return texts[0] if interval is None else f'{texts[0]} ({texts[1]} to {texts[2]})'


def change_document(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Return the changes as JSON types."""
    return [asdict(change) for change in changes]
