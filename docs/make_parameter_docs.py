"""Writes the help of the nodes' parameters wherever it is shown beside the nodes themselves.

The help is in `lunar_stereo_recon/ros/parameters.py`. This makes config/reconstruction.yaml of it,
and the tables of the pages between `<!-- parameters: ... -->` and `<!-- end of parameters -->`.
The first comment names a dataclass; parameters after it are those of the table, each with the
first sentence of its help.

python docs/make_parameter_docs.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
import re
import textwrap
from typing import Any

import yaml

from lunar_stereo_recon.ros import parameters

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / 'config' / 'reconstruction.yaml'
TABLE = re.compile(r'(<!-- parameters: (\w+)(.*?) -->\n)(.*?)(<!-- end of parameters -->)', re.S)
FILE_HEAD = """\
# Parameters of reconstruction_node with their defaults. Made by docs/make_parameter_docs.py: copy
# what you change into a file of your own. [start] marks those that can only be set at start.
/**:
  ros__parameters:
"""


def pages() -> list[Path]:
    """Return the pages that have a table of parameters."""
    texts = {path: path.read_text(encoding='utf-8') for path in (ROOT / 'docs').rglob('*.md')}
    texts[ROOT / 'README.md'] = (ROOT / 'README.md').read_text(encoding='utf-8')
    return sorted(path for path, text in texts.items() if TABLE.search(text))


def parameters_file() -> str:
    """Return the text of config/reconstruction.yaml."""
    entries = []
    for item in dataclasses.fields(parameters.ReconstructionParameters):
        start = '' if item.metadata['dynamic'] else ' [start]'
        comment = textwrap.fill(
            parameters.help_text(item) + start,
            width=99,
            initial_indent='    # ',
            subsequent_indent='    # ',
            break_long_words=False,
            break_on_hyphens=False,
        )
        default = parameters.default_of(item)
        if isinstance(default, list):
            value = f'{item.name}: {yaml.safe_dump(default, default_flow_style=True)}'
        else:
            value = yaml.safe_dump({item.name: default})
        entries.append(f'{comment}\n    {value}')
    return FILE_HEAD + '\n'.join(entries)


def with_tables(page: str) -> str:
    """Return the text of a page with its tables made anew."""
    return TABLE.sub(lambda match: match[1] + _table(match[2], match[3].split()) + match[5], page)


def _table(kind: str, names: list[str]) -> str:
    fields = {item.name: item for item in dataclasses.fields(getattr(parameters, kind))}
    lines = ['| parameter | default | meaning |', '|---|---|---|']
    for name in names or fields:
        item = fields[name]
        text = item.metadata['description']
        if names:
            text = re.split(r'(?<=\.) (?=[A-Z0-9])', text)[0]
        star = ' *' if item.metadata['dynamic'] and not names else ''
        lines.append(f'| `{name}`{star} | {_default(item)} | {text} |')
    return '\n'.join(lines) + '\n'


def _default(item: dataclasses.Field[Any]) -> str:
    """Return a default value as a table shows it, with its unit."""
    default, unit = parameters.default_of(item), item.metadata['unit']
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        if tuple(default) == item.metadata['choices']:
            return 'all'
        shown = [str(value) for value in default if value != '']
        return f'[{", ".join(shown)}]'
    text = f'{default:g}' if isinstance(default, float) else str(default) or "''"
    return f'{text} {unit}'.strip()


if __name__ == '__main__':
    FILE.write_text(parameters_file(), encoding='utf-8')
    for path in pages():
        path.write_text(with_tables(path.read_text(encoding='utf-8')), encoding='utf-8')
