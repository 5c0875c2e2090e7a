"""A run's figures over time: `metrics.jsonl`, TensorBoard events, and curves as PNG."""

from __future__ import annotations

from collections import defaultdict
import json
from pathlib import Path
from typing import Any

from lunar_stereo_recon.errors import InputError

METRICS = 'metrics.jsonl'
# Folder for the figures of a run that was begun anew.
BEFORE = 'before'
# A moving mean over this share of a curve is drawn on top of it.
SMOOTHED_SHARE = 0.05


class ScalarLog:
    """Writes rows to `metrics.jsonl` and to TensorBoard events in a run's folder.

    Attributes:
        fresh: The run begins anew; figures of the one before are moved into `before` when the
            first row is written.
    """

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self.folder, self.fresh = folder, fresh
        self._events: Any = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one row of training figures."""
        self._row({'step': step, **values})
        self._scalars(step, values)

    def write_validation(self, step: int, figures: dict[str, float], student: str = '') -> None:
        """Write the figures of one student on the validation frames."""
        row = {'step': step, 'validation': figures}
        self._row({**row, 'student': student} if student else row)
        prefix = f'{student}/validation' if student else 'validation'
        self._scalars(step, {f'{prefix}/{name}': value for name, value in figures.items()})

    def _row(self, row: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.fresh:
            self._move_old_figures()
            self.fresh = False
        with (self.folder / METRICS).open('a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')

    def _move_old_figures(self) -> None:
        for path in (self.folder / METRICS, *self.folder.glob('events.out.tfevents.*')):
            if path.exists():
                (self.folder / BEFORE).mkdir(exist_ok=True)
                path.replace(self.folder / BEFORE / path.name)

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.folder))
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by name; validation figures as `validation/NAME`.

    Where a run was resumed from an older checkpoint, the later row of a step counts.

    Raises:
        InputError: There is no log, or a line is damaged.
    """
    path = folder / METRICS
    if not path.is_file():
        raise InputError(f'no {METRICS} in {folder}')
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        try:
            row = json.loads(line)
            step = row.pop('step')
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f'{path}, line {number}: not a row of figures: {error}') from error
        student = row.pop('student', '')
        for name, value in row.pop('validation', {}).items():
            row[f'{student}/validation/{name}' if student else f'validation/{name}'] = value
        for name, value in row.items():
            curves[name][step] = value
    return {name: sorted(points.items()) for name, points in curves.items()}


def draw_curves(folders: list[Path], path: Path) -> None:
    """Draw every figure of some runs, a panel each.

    Raises:
        InputError: A folder has no readable log.
    """
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot

    runs = {folder.name: read_curves(folder) for folder in folders}
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    columns = min(4, max(1, len(names)))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout='constrained'
    )
    for axis, name in zip(axes.flat, names, strict=False):
        for run, curves in runs.items():
            _draw(axis, curves.get(name, []), run)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel('step', fontsize=8)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    axes[0, 0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(axis: Any, points: list[tuple[int, float]], run: str) -> None:
    if not points:
        return
    steps, values = zip(*points, strict=True)
    span = max(1, round(SMOOTHED_SHARE * len(values)))
    smooth = [
        sum(values[max(0, i - span) : i + 1]) / (i + 1 - max(0, i - span))
        for i in range(len(values))
    ]
    (line,) = axis.plot(steps, values, alpha=0.3, linewidth=0.8)
    axis.plot(steps, smooth, color=line.get_color(), linewidth=1.4, label=run)
    if min(values) > 0 and max(values) > 20 * min(values):
        axis.set_yscale('log')
