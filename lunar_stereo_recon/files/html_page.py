"""HTML pages that refer to nothing outside: pictures and scripts are inside the file."""

from __future__ import annotations

import base64
from collections.abc import Iterable
import html
from pathlib import Path

import cv2

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import write_text
from lunar_stereo_recon.visualize import RgbImage

JPEG_QUALITY = 88
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #19191c; background: #fafafa;
  max-width: 1160px; margin: 24px auto; padding: 0 16px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 28px 0 2px; }
p { margin: 4px 0 10px; } .facts { color: #55555c; }
table { border-collapse: collapse; width: 100%; background: #fff; }
td, th { text-align: left; vertical-align: top; padding: 7px 10px; border: 1px solid #ddd; }
img { max-width: 100%; border: 1px solid #ddd; }
"""


def html_document(title: str, body: str, style: str = '', scripts: Iterable[str] = ()) -> str:
    """Return a page.

    Args:
        title: Plain text.
        body: HTML.
        style: CSS beside that of every page.
        scripts: JavaScript that runs before the body is read; the text itself, not where it is.
    """
    code = ''.join(f'<script>{script}</script>\n' for script in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>{_STYLE}{style}</style>
{code}</head>
<body>
{body}
</body>
</html>
"""


def jpeg(image: RgbImage) -> bytes:
    """Return a picture (H, W, 3) RGB as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def jpeg_url(content: bytes) -> str:
    """Return a JPEG as a URL that contains it."""
    return f'data:image/jpeg;base64,{base64.b64encode(content).decode("ascii")}'


def titled_picture(title: str, caption: str, content: bytes) -> str:
    """Return a heading, a line and a JPEG below it, as HTML."""
    name = html.escape(title)
    return (
        f'<h2>{name}</h2>\n<p>{html.escape(caption)}</p>\n'
        f'<img alt="{name}" src="{jpeg_url(content)}">'
    )


def table_of_markdown(text: str) -> str:
    """Return a Markdown table, whose second line is its rule, as HTML."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip('| ').split(' |')] for line in text.splitlines()
    )
    rows = [f'<tr>{"".join(f"<th>{html.escape(cell)}</th>" for cell in head)}</tr>']
    rows += [f'<tr>{"".join(f"<td>{html.escape(c)}</td>" for c in line)}</tr>' for line in lines]
    return '<table>\n' + '\n'.join(rows) + '\n</table>'


def write_page(path: Path, document: str) -> None:
    """Write a page; its folder is made.

    Raises:
        InputError: The path is a folder.
        OSError: It cannot be written.
    """
    if path.is_dir():
        raise InputError(f'{path} is a folder; a file name for the page is needed')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, document)
