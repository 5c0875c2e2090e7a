"""A report as text for a terminal, and as one HTML file that holds its pictures."""

from __future__ import annotations

import base64
import html
from pathlib import Path
import textwrap

import cv2

from lunar_stereo_recon.doctor.findings import Finding, Report, Severity
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import atomic_file
from lunar_stereo_recon.visualize import RgbImage

WIDTH = 96
NAME_WIDTH = 24
JPEG_QUALITY = 88
WORDS = {
    Severity.FAULT: 'FAULT',
    Severity.WARNING: 'WARNING',
    Severity.NOTE: 'note',
    Severity.GOOD: 'good',
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #19191c; background: #fafafa;
  max-width: 1160px; margin: 24px auto; padding: 0 16px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 28px 0 2px; }
p { margin: 4px 0 10px; } .facts { color: #55555c; }
table { border-collapse: collapse; width: 100%; background: #fff; }
td, th { text-align: left; vertical-align: top; padding: 7px 10px; border: 1px solid #ddd; }
.word { color: #fff; font-weight: 600; text-align: center; white-space: nowrap; }
.FAULT { background: #c4342b; } .WARNING { background: #d08a14; }
.note { background: #6a7f9a; } .good { background: #3c8c46; }
.name { white-space: nowrap; font-weight: 600; } img { max-width: 100%; border: 1px solid #ddd; }
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
        f'<h2>{html.escape(picture.title)}</h2>\n<p>{html.escape(picture.caption)}</p>\n'
        f'<img alt="{html.escape(picture.title)}" src="{_data_url(picture.image)}">'
        for picture in report.pictures
    )
    source = html.escape(report.source)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Stereo check: {source}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{source}: {html.escape(verdict(report))}</h1>
<p class="facts">{html.escape(report.facts)}</p>
<table>
<tr><th></th><th>what</th><th>measured</th><th>what to do</th></tr>
{rows}
</table>
{pictures}
</body>
</html>
"""


def write_page(path: Path, report: Report) -> None:
    """Write the HTML document; its folder is made.

    Raises:
        InputError: The path is a folder.
        OSError: It cannot be written.
    """
    if path.is_dir():
        raise InputError(f'{path} is a folder; a file name for the page is needed')
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(as_html(report).encode('utf-8'))


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


def _data_url(image: RgbImage) -> str:
    _, data = cv2.imencode(
        '.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    return f'data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode("ascii")}'
