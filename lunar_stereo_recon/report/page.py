"""The results of an evaluation as Markdown, and as one HTML page that needs nothing outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import html
from pathlib import Path
from typing import Any

import numpy as np

from lunar_stereo_recon.benchmark.tables import interval_table, subset_table
from lunar_stereo_recon.evaluation.flicker import flicker_table
from lunar_stereo_recon.evaluation.scores import DETAILED_SUBSETS, RANGES_M
from lunar_stereo_recon.evaluation.terrain_scores import map_tables
from lunar_stereo_recon.files.bounded import read_bounded
from lunar_stereo_recon.files.html_page import (
    html_document,
    table_of_markdown,
    titled_picture,
)
from lunar_stereo_recon.limits import MAX_IMAGE_BYTES
from lunar_stereo_recon.report.clouds import ViewedCloud
from lunar_stereo_recon.report.results import FACTS, PairResult, Results

STYLE = """
table { font-size: 13px; display: block; overflow-x: auto; }
td, th { padding: 4px 8px; } h2 { margin-top: 36px; }
code { background: #eee; padding: 1px 4px; } ul { margin: 4px 0; }
.chart { background: #fff; border: 1px solid #ddd; margin: 6px 0; }
"""
MOST_LISTED = 20
# What the pixels are, beside their distance.
KINDS = tuple(name for name in DETAILED_SUBSETS if name not in (*RANGES_M, 'all'))
NO_TRUTH = (
    'No pair has a known truth: there are no errors here, only what the methods say of themselves.'
)
MAP_CAPTION = 'The ground as terrain_node maps it: height, its deviation, slope and cost.'
Summaries = Mapping[str, Mapping[str, Any]]


def setting_lines(results: Results) -> list[str]:
    """Return what was evaluated, with which command and on which machine, a line each."""
    setting = results.setting
    known = len(results.with_truth())
    sizes = sorted({f'{w}x{h}' for w, h in (pair.size for pair in results.pairs)})
    machine = setting['machine']
    versions = ', '.join(f'{name} {version}' for name, version in setting['versions'].items())
    lines = [
        f'{setting["source"]}: {len(results.pairs)} pairs, {known} of them with a known truth; '
        f'{", ".join(sizes)} pixels.',
        f'{machine["processor"]}, {machine["cores"]} cores usable, '
        f'{setting["threads"]} threads, {machine["system"]}; {versions}.',
    ]
    lines += [f'{name}: {about}.' for name, about in setting['models'].items()]
    return [*lines, f'Command: `{setting["command"]}`']


def loss_lines(results: Results) -> list[str]:
    """Return what could not be used, a line each, the first of many."""
    lines = [f'{name}: {reason}' for name, reason in results.left_out.items()]
    if len(lines) > MOST_LISTED:
        lines = [*lines[:MOST_LISTED], f'and {len(lines) - MOST_LISTED} more pairs']
    return [*results.losses, *lines]


def facts_table(results: Results) -> str:
    """Return what is known without any truth: a line for each method, medians over pairs."""
    lines = ['| method | pairs | ' + ' | '.join(header for _, header, *_ in FACTS) + ' |']
    lines.append('|---' * (2 + len(FACTS)) + '|')
    for method in results.methods:
        cells = [method, str(len(results.pairs))]
        for key, _, factor, decimals in FACTS:
            values = results.facts(method, key)
            cells.append(f'{factor * np.median(values):.{decimals}f}' if values else '')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def tables(results: Results, summaries: Summaries) -> list[tuple[str, str]]:
    """Return titles and Markdown tables."""
    found = [('What users get, medians over pairs', facts_table(results))]
    titles = ('Heights of the map', 'Hazards of the map')
    found += list(zip(titles, map_tables(results.maps), strict=False))
    found += [('Flicker', table) for table in flicker_table(results.flicker)]
    if not summaries:
        return found
    first = next(iter(summaries.values()))
    found.append(('Against the truth', subset_table(summaries, 'overall', 'all')))
    if len(results.with_truth()) > 1:
        found.append(('95 % intervals over pairs', interval_table(summaries, 'overall')))
    found += [
        (f'At {name}', subset_table(summaries, 'overall', name))
        for name in RANGES_M
        if first['overall'][name]['pixels']
    ]
    strata = [name for name in first if name != 'overall']
    if len(strata) > 1:
        found += [(f'Stratum {name}', subset_table(summaries, name, 'all')) for name in strata]
    found += [
        (f'Pixels: {name}', subset_table(summaries, 'overall', name))
        for name in KINDS
        if first['overall'][name]['pixels']
    ]
    return found


def as_markdown(results: Results, summaries: Summaries) -> str:
    """Return the report as Markdown."""
    parts = ['# Evaluation', '\n'.join(f'{line}  ' for line in setting_lines(results))]
    if not summaries:
        parts.append(NO_TRUTH)
    losses = loss_lines(results)
    if losses:
        parts += ['## Not used', '\n'.join(f'- {line}' for line in losses)]
    if results.map_picture:
        parts += ['## Map of the drive', f'![{MAP_CAPTION}]({results.map_picture})']
    for title, table in tables(results, summaries):
        parts += [f'## {title}', table]
    return '\n\n'.join(parts) + '\n'


def chosen_panels(results: Results) -> list[tuple[str, PairResult]]:
    """Return the best, the median and the worst pair of those with a picture, by name."""
    ranked = [pair for pair in results.ranked() if pair.panel]
    if not ranked:
        return []
    # Of one or two pairs one would have two names; it is shown once.
    places = {len(ranked) // 2: 'median', 0: 'best', len(ranked) - 1: 'worst'}
    return [(places[place], ranked[place]) for place in sorted(places)]


def as_html(
    results: Results, summaries: Summaries, folder: Path, clouds: Sequence[ViewedCloud]
) -> str:
    """Return the report as a page with charts (extra [report]).

    Args:
        results: The results.
        summaries: Of `results.summaries()`.
        folder: Where the pictures of the pairs are.
        clouds: What can be turned.
    """
    from lunar_stereo_recon.report import charts

    facts = '<br>\n'.join(marked(line) for line in setting_lines(results))
    parts = [f'<h1>{html.escape(_headline(results, summaries))}</h1>']
    parts.append(f'<p class="facts">{facts}</p>')
    if not summaries:
        parts.append(f'<p>{NO_TRUTH}</p>')
    losses = loss_lines(results)
    if losses:
        items = ''.join(f'<li>{html.escape(line)}</li>' for line in losses)
        parts.append(f'<h2>Not used</h2>\n<ul>{items}</ul>')
    for index, view in enumerate(clouds):
        parts += [
            f'<h2>3D: {html.escape(view.title)}</h2>',
            f'<p>{len(view.points):,} points of {html.escape(results.methods[0])}; drag to turn, '
            'scroll to come nearer.</p>',
            _chart(charts.as_html(charts.cloud(view), f'cloud{index}')),
        ]
    if results.map_picture:
        content = read_bounded(folder / results.map_picture, MAX_IMAGE_BYTES)
        parts.append(titled_picture('Map of the drive', MAP_CAPTION, content))
    figures = {}
    if summaries:
        figures['Error by distance'] = charts.error_by_range(summaries)
        if len(next(iter(summaries.values()))) > 2:
            figures['Error by stratum'] = charts.bad_by_stratum(summaries)
        figures['Error by kind of pixel'] = charts.bad_by_subset(summaries, KINDS)
        figures['Sparsification'] = charts.sparsification(results)
        figures['Reliability of the confidence'] = charts.reliability(results)
    figures['By pair'] = charts.by_pair(results)
    for name, figure in figures.items():
        if figure is not None and figure.data and len(figure.data[0].x):
            parts.append(f'<h2>{name}</h2>')
            parts.append(_chart(charts.as_html(figure, name.replace(' ', '-').lower())))
    for place, pair in chosen_panels(results):
        content = read_bounded(folder / pair.panel, MAX_IMAGE_BYTES)
        parts.append(titled_picture(f'{place.capitalize()}: {pair.id}', _caption(pair), content))
    for title, table in tables(results, summaries):
        parts += [f'<h2>{html.escape(title)}</h2>', table_of_markdown(table)]
    title = f'Evaluation: {results.setting["source"]}'
    return html_document(title, '\n'.join(parts), STYLE, [charts.script()])


def _headline(results: Results, summaries: Summaries) -> str:
    method = results.methods[0]
    name = Path(results.setting['source']).name
    if not summaries:
        confident = float(np.median(results.facts(method, 'confident') or [0.0]))
        return f'{name}: {100 * confident:.0f} % of the pixels confident ({method})'
    figures = summaries[method]['overall']['all']
    return (
        f'{name}: EPE {figures["epe_px"]:.2f} px, depth wrong by '
        f'{100 * figures["absrel"]:.2f} % on average ({method})'
    )


def _caption(pair: PairResult) -> str:
    if not pair.scores:
        return ''
    texts = []
    for method in pair.scores:
        figures = pair.figures(method)
        texts.append(
            f'{method}: EPE {figures["epe_px"]:.2f} px, bad-1-all {100 * figures["bad1_all"]:.1f} '
            f'%, bad-2-all {100 * figures["bad2_all"]:.1f} %'
        )
    return '; '.join(texts)


def _chart(content: str) -> str:
    return f'<div class="chart">{content}</div>'


def marked(line: str) -> str:
    """Return a line as HTML, what stands between back-quotes as code."""
    parts = html.escape(line).split('`')
    return ''.join(f'<code>{p}</code>' if i % 2 else p for i, p in enumerate(parts))
