"""A report as text for a terminal, and as one HTML file that holds its pictures."""

from __future__ import annotations

import html
import textwrap

from lunar_stereo_recon.doctor.findings import Finding, Report, Severity
from lunar_stereo_recon.files.html_page import html_document, jpeg, titled_picture

WIDTH = 96
NAME_WIDTH = 24
WORDS = {
    Severity.FAULT: 'FAULT',
    Severity.WARNING: 'WARNING',
    Severity.NOTE: 'note',
    Severity.GOOD: 'good',
}
_STYLE = """
.word { color: #fff; font-weight: 600; text-align: center; white-space: nowrap; }
.FAULT { background: #c4342b; } .WARNING { background: #d08a14; }
.note { background: #6a7f9a; } .good { background: #3c8c46; }
.name { white-space: nowrap; font-weight: 600; }
"""


def verdict(report: Report) -> str:
    """Return one sentence about the whole."""
    counts = {
        severity: sum(finding.severity is severity for finding in report.findings)
        for severity in (Severity.FAULT, Severity.WARNING)
    }
    parts = [
        f'{count} {name}{"" if count == 1 else "s"}'
        for (_, count), name in zip(counts.items(), ('fault', 'warning'), strict=True)
        if count
    ]
    return ' and '.join(parts) if parts else 'nothing to complain of'


def as_text(report: Report) -> str:
    """Return the report for a terminal, the worst first."""
    lines = [f'{report.source}: {verdict(report)}', report.facts, '']
    for finding in report.findings:
        head = f'{WORDS[finding.severity]:8s}{finding.name}'
        lines += _wrapped(f'{head:{NAME_WIDTH + 8}s}', finding.measured)
        if finding.advice and finding.severity is not Severity.GOOD:
            lines += _wrapped(f'{"":{NAME_WIDTH + 8}s}', f'-> {finding.advice}')
    return '\n'.join(lines)


def as_html(report: Report) -> str:
    """Return the report as one HTML document that refers to nothing outside."""
    rows = '\n'.join(_row(finding) for finding in report.findings)
    pictures = '\n'.join(
        titled_picture(picture.title, picture.caption, jpeg(picture.image))
        for picture in report.pictures
    )
    body = f"""<h1>{html.escape(report.source)}: {html.escape(verdict(report))}</h1>
<p class="facts">{html.escape(report.facts)}</p>
<table>
<tr><th></th><th>what</th><th>measured</th><th>what to do</th></tr>
{rows}
</table>
{pictures}"""
    return html_document(f'Stereo check: {report.source}', body, _STYLE)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=' ' * len(head), break_on_hyphens=False
    )


def _row(finding: Finding) -> str:
    word = WORDS[finding.severity]
    advice = '' if finding.severity is Severity.GOOD else finding.advice
    return (
        f'<tr><td class="word {word}">{word}</td><td class="name">{html.escape(finding.name)}</td>'
        f'<td>{html.escape(finding.measured)}</td><td>{html.escape(advice)}</td></tr>'
    )
