"""Two results on the same pairs: paired differences, and the pairs that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import html
from pathlib import Path
from typing import Any

from lunar_stereo_recon.benchmark.bootstrap import mean_difference
from lunar_stereo_recon.benchmark.release import (
    Change,
    change_document,
    change_table,
    change_text,
    compare,
    group_change_table,
)
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.scores import PairScore, RANGES_M
from lunar_stereo_recon.files.bounded import read_bounded
from lunar_stereo_recon.files.html_page import (
    html_document,
    table_of_markdown,
    titled_picture,
)
from lunar_stereo_recon.limits import MAX_IMAGE_BYTES
from lunar_stereo_recon.report.page import marked, setting_lines, STYLE
from lunar_stereo_recon.report.results import FACTS, PairResult, Results

# So many that got better most, and as many that got worse most.
MOST_CHANGED = 3
OVERALL = 'all pairs'
# By these pairs are ranked; without truth by the share of confident pixels, of which more is
# better.
BY_ERROR, BY_CONFIDENCE = 'bad-1-all %', 'confident pixels lost, %'


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        name: For the tables.
        results: Its results.
        method: Which of their methods.
        folder: Where their pictures are.
    """

    name: str
    results: Results
    method: str
    folder: Path


@dataclass(frozen=True)
class Comparison:
    """What changed from one to the other.

    Attributes:
        before, after: The two.
        pairs: The same pairs of both, (before, after) each.
        changes: Of the figures against truth; empty without.
        facts: Of `FACTS`: (header, before, after, change with interval) as text.
        by_pair: (id, change) of every pair, in the order of the source; positive is worse.
        measure: What `by_pair` counts.
        alone: Pairs that only one of the two has.
    """

    before: Side
    after: Side
    pairs: list[tuple[PairResult, PairResult]]
    changes: list[Change]
    facts: list[tuple[str, str, str, str]]
    by_pair: list[tuple[str, float]]
    measure: str
    alone: list[str]

    def counts(self) -> tuple[int, int]:
        """Return how many pairs got better, and how many worse."""
        values = [change for _, change in self.by_pair]
        return sum(v < 0 for v in values), sum(v > 0 for v in values)

    def most_changed(self) -> list[tuple[str, float]]:
        """Return the pairs that got better most, then those that got worse most."""
        ranked = sorted(self.by_pair, key=lambda item: item[1])
        better = [item for item in ranked[:MOST_CHANGED] if item[1] < 0]
        worse = [item for item in ranked[::-1][:MOST_CHANGED] if item[1] > 0]
        return better + worse

    def document(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        better, worse = self.counts()
        return {
            'before': self.before.name,
            'after': self.after.name,
            'settings': [self.before.results.setting, self.after.results.setting],
            'pairs': len(self.pairs),
            'pairs_of_one_alone': self.alone,
            'changes': change_document(self.changes),
            'measure': self.measure,
            'better': better,
            'worse': worse,
            'by_pair': dict(self.by_pair),
        }


def compared(before: Side, after: Side) -> Comparison:
    """Return what changed on the pairs that both have.

    Raises:
        InputError: They have no pair in common, or a pair's truth differs.
    """
    first, second = ({pair.id: pair for pair in side.results.pairs} for side in (before, after))
    common = [(pair, second[name]) for name, pair in first.items() if name in second]
    alone = [name for name in [*first, *second] if name not in first or name not in second]
    if not common:
        raise InputError(
            f'{before.name} and {after.name} have no pair in common: '
            f'{", ".join(list(first)[:3])} and {", ".join(list(second)[:3])}'
        )
    for one, other in common:
        _check_same(one, other, before, after)
    known = [(one, other) for one, other in common if one.scores]
    by_pair: list[tuple[str, float]]
    if known:
        measure = BY_ERROR
        by_pair = [
            (a.id, 100 * (_bad1(b, after.method) - _bad1(a, before.method))) for a, b in known
        ]
    else:
        measure = BY_CONFIDENCE
        by_pair = [
            (a.id, 100 * (_confident(a, before.method) - _confident(b, after.method)))
            for a, b in common
        ]
    return Comparison(
        before,
        after,
        common,
        _changes(known, before, after),
        _facts(common, before.method, after.method),
        by_pair,
        measure,
        alone,
    )


def _check_same(one: PairResult, other: PairResult, before: Side, after: Side) -> None:
    known = [
        (pair.size, int(pair.scores[side.method].sums['all'][0]) if pair.scores else 0)
        for pair, side in ((one, before), (other, after))
    ]
    if known[0] != known[1]:
        texts = [f'{w}x{h} with {pixels} pixels of truth' for (w, h), pixels in known]
        raise InputError(
            f'pair {one.id} is {texts[0]} in {before.name} and {texts[1]} in {after.name}; the '
            'same data is needed'
        )


def _bad1(pair: PairResult, method: str) -> float:
    return float(pair.figures(method)['bad1_all'])


def _confident(pair: PairResult, method: str) -> float:
    return pair.facts[method]['confident'] or 0.0


def _changes(
    known: Sequence[tuple[PairResult, PairResult]], before: Side, after: Side
) -> list[Change]:
    if not known:
        return []
    strata = list(dict.fromkeys(one.stratum for one, _ in known))
    groups = {OVERALL: list(known)}
    if len(strata) > 1:
        groups |= {name: [pair for pair in known if pair[0].stratum == name] for name in strata}
    found = []
    mean = before.results.mean_of_pairs
    for name, members in groups.items():
        old = [one.scores[before.method] for one, _ in members]
        new = [other.scores[after.method] for _, other in members]
        found += compare(name, old, new, mean)
    # The distances as sets of their own: `compare` has none.
    for name in RANGES_M:
        old = [_only(one.scores[before.method], name) for one, _ in known]
        new = [_only(other.scores[after.method], name) for _, other in known]
        there = [index for index, score in enumerate(old) if score.sums['all'][0] > 0]
        if there:
            old, new = ([scores[index] for index in there] for scores in (old, new))
            found += compare(f'at {name}', old, new, mean)
    if any(
        one.scores[before.method].reliability is None
        or other.scores[after.method].reliability is None
        for one, other in known
    ):
        # Of a method without confidence nothing is sure, so nothing that is sure is wrong.
        found = [change for change in found if change.figure != 'sure_wrong']
    return found


def _only(score: PairScore, subset: str) -> PairScore:
    """Return the score of one subset of the pixels, as if there were no others."""
    return PairScore(score.tag, {'all': score.sums[subset]})


def _facts(
    common: Sequence[tuple[PairResult, PairResult]], before: str, after: str
) -> list[tuple[str, str, str, str]]:
    found = []
    for key, header, factor, decimals in FACTS:
        values = [(a.facts[before][key], b.facts[after][key]) for a, b in common]
        known = [(a, b) for a, b in values if a is not None and b is not None]
        if known:
            first, second = ([pair[side] for pair in known] for side in (0, 1))
            means = (sum(first) / len(first), sum(second) / len(second))
            change, interval = mean_difference(first, second)
            old, new = (f'{factor * value:.{decimals}f}' for value in means)
            found.append((header, old, new, change_text(change, interval, factor, decimals)))
    return found


def tables(comparison: Comparison) -> list[tuple[str, str]]:
    """Return titles and Markdown tables."""
    before, after = comparison.before.name, comparison.after.name
    rows = [f'| {" | ".join(row)} |' for row in comparison.facts]
    head = f'| mean over pairs | {before} | {after} | change |'
    found = [('What users get', '\n'.join([head, '|---|---|---|---|', *rows]))]
    if comparison.changes:
        found.append(('Errors, change with 95 % interval', change_table(comparison.changes)))
        whole = [change for change in comparison.changes if not change.subset]
        if whole:
            found.append(('Confidence, change with 95 % interval', group_change_table(whole)))
    lines = [f'| {name} | {change:+.2f} |' for name, change in comparison.most_changed()]
    if lines:
        head = f'| pair | {comparison.measure} |'
        found.append(('Pairs that changed most', '\n'.join([head, '|---|---|', *lines])))
    return found


def headline(comparison: Comparison) -> str:
    """Return the result in one sentence."""
    better, worse = comparison.counts()
    text = (
        f'{comparison.after.name} against {comparison.before.name}: {better} pairs better, '
        f'{worse} worse, {len(comparison.by_pair) - better - worse} the same'
    )
    for change in comparison.changes:
        if (change.set_name, change.subset, change.figure) == (OVERALL, 'all', 'bad1_all'):
            texts = change_text(change.change, change.interval, 100, 2)
            text += f'; bad-1 {texts} points, {change.verdict}'
    return text


def facts(comparison: Comparison) -> list[str]:
    """Return what both ran on and how, a line each."""
    lines = []
    for side in (comparison.before, comparison.after):
        lines += [f'{side.name} ({side.method}):', *setting_lines(side.results)]
    if comparison.alone:
        lines.append(f'Not compared, because only one has them: {", ".join(comparison.alone)}.')
    return list(dict.fromkeys(lines))


def as_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = ['# Comparison', headline(comparison)]
    parts.append('\n'.join(f'{line}  ' for line in facts(comparison)))
    parts.append('Negative is better; (+) is better beyond its interval, (!) worse.')
    for title, table in tables(comparison):
        parts += [f'## {title}', table]
    return '\n\n'.join(parts) + '\n'


def as_html(comparison: Comparison) -> str:
    """Return the comparison as a page (extra [report])."""
    from lunar_stereo_recon.report import charts

    lines = '<br>\n'.join(marked(line) for line in facts(comparison))
    parts = [
        f'<h1>{html.escape(headline(comparison))}</h1>',
        f'<p class="facts">{lines}</p>',
        '<p>Negative is better; (+) is better beyond its interval, (!) worse.</p>',
    ]
    names, values = zip(*comparison.by_pair, strict=True)
    figure = charts.change_by_pair(names, values, f'change of {comparison.measure}')
    parts += ['<h2>Change of each pair</h2>', charts.as_html(figure, 'change-by-pair')]
    for title, table in tables(comparison):
        parts += [f'<h2>{html.escape(title)}</h2>', table_of_markdown(table)]
    found = {one.id: (one, other) for one, other in comparison.pairs}
    for name, change in comparison.most_changed():
        seen = set()
        for side, pair in zip((comparison.before, comparison.after), found[name], strict=True):
            path = side.folder / pair.panel
            title = f'{name}: {change:+.2f} {comparison.measure}'
            if not pair.panel or not path.is_file():
                parts.append(f'<h2>{html.escape(title)}</h2><p>No picture in {side.name}.</p>')
            elif path not in seen:
                seen.add(path)
                content = read_bounded(path, MAX_IMAGE_BYTES)
                shared = found[name][0] is found[name][1]
                caption = (
                    f'{comparison.before.name}, {comparison.after.name}' if shared else side.name
                )
                parts.append(titled_picture(title, caption, content))
    return html_document(headline(comparison), '\n'.join(parts), STYLE, [charts.script()])
