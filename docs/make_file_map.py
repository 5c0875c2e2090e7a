"""Writes docs/file_map.md from the first lines of the modules' docstrings.

python docs/make_file_map.py
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'file_map.md'

HEAD = """# File map

One line for each module, made by `python docs/make_file_map.py` from the first lines of the
docstrings.

## A frame's journey

The stages in reading order. `lunar_stereo_recon/pipeline.py` is their table of contents.

`ros/stereo_sync` (or `bags/reader`) → `messages` → `geometry/rectify` (raw images) → `preprocess`
→ `backends` → `geometry/residual` → `geometry/refine` → `geometry/confidence` → `geometry/fill`
→ `geometry/disparity`, `geometry/camera` → `result_messages`

## Where to look

| you hear | look in |
|---|---|
| "the confidence is wrong" | `geometry/confidence.py`; its calibration: `{calibrate}` |
| "the depth is wrong" | `backends/`, `geometry/residual.py`, `geometry/refine.py` |
| "a rock is missing or washed out" | `geometry/residual.py`, `training/commands/choice.py` |
| "nothing is seen there, and yet there are points" | `geometry/fill.py` |
| "a bag does not open" | `bags/storage.py`; what is read from it: `bags/reader.py` |
| "no pair, although both cameras publish" | `ros/stereo_sync.py`, `pairing.py` |
| "an image or a camera_info is refused" | `messages.py`, `files/calibrations.py` |
| "depth is bad on my rig" | `doctor/examination.py` |
| "the right rows are too low" | `geometry/row_alignment.py` |
| "raw images come out bent" | `geometry/rectify.py` |
| "a flat place is marked as a hazard" | `geometry/hazard.py` |
| "a parameter is refused" | `ros/parameters.py`, `ros/node_parameters.py` |
| "the doctor says something wrong" | `doctor/` |
| "a launch argument does nothing" | `ros/launch_arguments.py` |
| "the simulated sun is wrong" | `simulation/sun.py` |
| "the SVD start is slow" | `{svd_init}`, `{shared_basis}` |
"""

TAIL = """
## Other folders

| folder | content |
|---|---|
| `launch/` | launch files |
| `config/` | parameters, camera presets, views for RViz and Foxglove, the Gazebo rover |
| `lunar_stereo_recon/weights/` | the shipped models and their model card |
| `lunar_stereo_recon/data/` | the demo drive, the definition of the benchmark |
| `training/recipes/`, `training/campaigns/` | runs and series of runs, as YAML |
| `docs/` | documentation |
| `test/` | tests, a mirror of the tree |
"""


def first_line(module: Path) -> str:
    """Return the first line of a module's docstring; '' where there is none."""
    return (ast.get_docstring(ast.parse(module.read_text(encoding='utf-8'))) or '').split('\n')[0]


def section(folder: Path) -> str:
    """Return a heading and a table of the modules that stand directly in a folder."""
    modules = sorted(folder.glob('*.py'), key=lambda path: (path.stem != '__init__', path.name))
    lines = [f'\n## `{folder.relative_to(ROOT).as_posix()}/`\n']
    if modules and modules[0].stem == '__init__':
        about = first_line(modules.pop(0))
        lines += [f'{about}\n'] if about else []
    if modules:
        lines += ['| module | content |', '|---|---|']
        lines += [f'| `{module.name}` | {first_line(module)} |' for module in modules]
    return '\n'.join(lines) + '\n'


def file_map() -> str:
    """Return the text of the page."""
    folders = [
        folder
        for top in ('lunar_stereo_recon', 'training')
        for folder in (ROOT / top, *sorted(p for p in (ROOT / top).rglob('*') if p.is_dir()))
        if any(folder.glob('*.py'))
    ]
    places = {
        path.stem: path.relative_to(ROOT).as_posix() for path in (ROOT / 'training').rglob('*.py')
    }
    return HEAD.format(**places) + ''.join(map(section, folders)) + TAIL


if __name__ == '__main__':
    PAGE.write_text(file_map(), encoding='utf-8')
