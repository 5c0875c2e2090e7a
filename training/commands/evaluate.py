"""`python -m training evaluate CHECKPOINT FOLDER`: the paper's tables, for teachers and students.

Pairs of any pose are put through the networks at the official size and crop, and scored against
depth and cameras: depth with the scale met, clouds and ground after a similarity, pose from
matched descriptors, and what each student retains of its teacher. Flight students take part where
the pairs are rectified.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
import csv
from dataclasses import dataclass
import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn
import torch.nn.functional as F
from tqdm import tqdm

from lunar_stereo_recon.errors import InputError, ModelError
from training.checkpoint import trained_network
from training.data.stereolunar import fitted, list_view_pairs, LunarView, moved_points, read_view
from training.evaluation.pointmap_scores import (
    align,
    cloud_scores,
    depth_scores,
    Scores,
    terrain_scores,
)
from training.evaluation.relative_pose import (
    area_under_recall,
    AUC_DEG,
    pose_errors,
    pose_from_matches,
    reciprocal_matches,
    strongest,
)
from training.models.checkpoints import load_pointmap_model
from training.models.flight import FlightStudent, SIZE_MULTIPLE
from training.models.lunar_teacher import match_both_views, pointmaps_from_disparity
from training.models.mast3r import Mast3r
from training.models.pair_reconstruction import LONG_SIDE
from training.students import grey

LOG = logging.getLogger(__name__)
PATCH = 16
# Rectified: the right camera is turned by less, and stands off the row by less of the baseline.
RECTIFIED_DEG, RECTIFIED_SHARE = 0.01, 1e-3
# Scores of which more is better; all others are errors.
MORE_IS_BETTER = ('delta', 'pearson', 'ssim', 'corr', 'under', 'agree', 'auc')
# The published loader drops depth beyond this percentile of a view.
DEPTH_PERCENTILE = 98
DIGITS = 4


@dataclass(frozen=True)
class Prediction:
    """Of one pair; descriptors and confidences are None where a network gives none.

    Attributes:
        left, right: (H, W, 3) points of both views in the left camera's frame, any unit.
        descriptors: Two (H, W, D), unit length.
        weights: Two (H, W), how sure a match at a pixel is.
    """

    left: NDArray[np.float64]
    right: NDArray[np.float64]
    descriptors: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    weights: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class TruePair:
    """Both views at the network's size, and what is true of them.

    Attributes:
        left, right: The views.
        points: (H, W, 3) of the left and of the right one, metres, the left camera's frame.
        left_to_right: (4, 4).
    """

    left: LunarView
    right: LunarView

    @property
    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the true points of both views."""
        return self.left.points, moved_points(self.right, self.left)

    @property
    def left_to_right(self) -> NDArray[np.float64]:
        """Return the transform of points from the left camera's frame to the right one's."""
        return np.linalg.inv(self.right.camera_to_world) @ self.left.camera_to_world


Predictor = Callable[[TruePair], Prediction]


def official_size(height: int, width: int, long_side: int = LONG_SIDE) -> tuple[int, int]:
    """Return height and width that the official loader cuts an image to.

    The long side is brought to 512, both sides to multiples of 16; a square becomes 4:3.

    Raises:
        InputError: Nothing is left of the shorter side.
    """
    scale = long_side / max(height, width)
    rows, columns = (round(side * scale) // PATCH * PATCH for side in (height, width))
    if height == width:
        rows = 3 * columns // 4 // PATCH * PATCH
    if not rows or not columns:
        raise InputError(f'image of {width}x{height} has no {PATCH} pixels left of a side')
    return rows, columns


def read_pair(stems: tuple[Path, Path], long_side: int, percentile: float) -> TruePair:
    """Read a pair at the network's size; depth beyond a percentile of each view is unknown.

    Raises:
        InputError: A file cannot be read.
    """
    views = []
    for stem in stems:
        view = read_view(stem)
        if percentile < 100 and np.isfinite(view.depth).any():
            farthest = np.nanpercentile(view.depth, percentile)
            depth = np.where(view.depth > farthest, np.float32(np.nan), view.depth)
            view = LunarView(view.image, depth, view.intrinsics, view.camera_to_world)
        height, width = view.depth.shape
        views.append(fitted(view, *official_size(height, width, long_side)))
    return TruePair(views[0], views[1])


class PointmapPredictor:
    """A MASt3R, MOONSt3R or paper student."""

    def __init__(self, network: Mast3r, device: torch.device) -> None:
        self.network, self.device = network.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, pair: TruePair) -> Prediction:
        """Return the prediction of a pair."""
        views = [
            torch.from_numpy(view.image).permute(2, 0, 1)[None].to(self.device)
            for view in (pair.left, pair.right)
        ]
        out = {
            name: value[0].float().cpu().numpy()
            for name, value in self.network(*views).items()
            if isinstance(value, torch.Tensor)
        }
        return Prediction(
            out['pointmap1'].astype(np.float64),
            out['pointmap2'].astype(np.float64),
            (out['desc1'], out['desc2']),
            (out['conf1'] * out['desc_conf1'], out['conf2'] * out['desc_conf2']),
        )


class FlightPredictor:
    """A network that matches rows, on rectified pairs."""

    def __init__(self, network: FlightStudent, device: torch.device) -> None:
        self.network, self.device = network.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, pair: TruePair) -> Prediction:
        """Return the prediction of a pair.

        Raises:
            InputError: The pair is not rectified; says how far.
        """
        check_rectified(pair)
        height, width = pair.left.depth.shape
        # Cells that the network is made of go beyond the image, whose border is repeated there.
        beyond = (0, -width % SIZE_MULTIPLE, 0, -height % SIZE_MULTIPLE)
        views = [
            F.pad(
                grey(torch.from_numpy(view.image).permute(2, 0, 1)[None]).to(self.device),
                beyond,
                mode='replicate',
            )
            for view in (pair.left, pair.right)
        ]
        output, other = match_both_views(self.network, *views)
        intrinsics = torch.from_numpy(pair.left.intrinsics)[None].float().to(self.device)
        points = pointmaps_from_disparity(
            output['disparity'].float(), other['disparity'].float(), intrinsics
        )
        left_points, right_points = (
            view[0, :height, :width].double().cpu().numpy() for view in points
        )
        return Prediction(left_points, right_points)


def check_rectified(pair: TruePair) -> None:
    """Refuse a pair whose rows do not match.

    Raises:
        InputError: The pair is not rectified; says how far.
    """
    pose = pair.left_to_right
    angle = np.degrees(np.arccos(np.clip((np.trace(pose[:3, :3]) - 1) / 2, -1, 1)))
    baseline = -pose[0, 3]
    off = float(np.hypot(pose[1, 3], pose[2, 3]))
    same = np.allclose(pair.left.intrinsics, pair.right.intrinsics, rtol=1e-4)
    if angle > RECTIFIED_DEG or baseline <= 0 or off > RECTIFIED_SHARE * baseline or not same:
        raise InputError(
            f'not rectified: right camera turned by {angle:.3g} degrees, {baseline:.4g} m along '
            f'the row, {off:.4g} m off it' + ('' if same else ', of other intrinsics')
        )


def score_pair(prediction: Prediction, pair: TruePair) -> Scores:
    """Return all scores of a pair; `rra` and `rta` only where there are descriptors.

    Raises:
        InputError: Too little of it is known.
    """
    truth = pair.points
    depth, true_depth = prediction.left[..., 2], truth[0][..., 2]
    known = np.isfinite(depth) & np.isfinite(true_depth) & (depth > 0)
    if not known.any():
        raise InputError('no pixel has a depth in front of the camera and a true one')
    scale = float(np.median(true_depth[known] / depth[known]))
    scores = {f'scale_{k}': v for k, v in depth_scores(scale * depth, true_depth).items()}
    both, true_both = (
        np.concatenate([view.reshape(-1, 3) for view in views])
        for views in ((prediction.left, prediction.right), truth)
    )
    move = align(both, true_both)
    aligned = move(prediction.left)
    scores |= {f'sim3_{k}': v for k, v in depth_scores(aligned[..., 2], true_depth).items()}
    counted = np.isfinite(true_both).all(-1)
    scores |= cloud_scores(move(both)[counted], true_both)
    scores |= terrain_scores(aligned, truth[0])
    if prediction.descriptors is not None and prediction.weights is not None:
        matches = strongest(reciprocal_matches(*prediction.descriptors), prediction.weights)
        found = pose_from_matches(*matches, (pair.left.intrinsics, pair.right.intrinsics))
        scores['rra'], scores['rta'] = pose_errors(found, pair.left_to_right)
    return scores


def summary(rows: Sequence[Scores]) -> Scores:
    """Return means over pairs where a score is known; medians of poses, and areas under recall."""
    found: Scores = {'pairs': float(len(rows))}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.array([row.get(name, np.nan) for row in rows])
        values = values[~np.isnan(values)]
        if name in ('rra', 'rta'):
            found[f'{name}_median'] = float(np.median(values))
        else:
            found[name] = float(values.mean()) if len(values) else math.nan
    if any('rra' in row for row in rows):
        worst = [max(row['rra'], row['rta']) for row in rows if 'rra' in row]
        for limit in AUC_DEG:
            found[f'auc_{limit}'] = area_under_recall(worst, limit)
    return found


def retention(student: Scores, teacher: Scores) -> Scores:
    """Return per cent of the teacher's quality: ratio of scores, of errors the inverse ratio."""
    kept = {}
    for name, value in student.items():
        other = teacher.get(name, math.nan)
        if name == 'pairs' or name.startswith('parameters'):
            continue
        better = any(part in name for part in MORE_IS_BETTER)
        top, bottom = (value, other) if better else (other, value)
        kept[name] = 100 * top / bottom if bottom else (100.0 if top == bottom else math.nan)
    return kept


def evaluate(predict: Predictor, pairs: Iterator[tuple[str, TruePair]]) -> dict[str, Scores]:
    """Return the scores of each pair by name; pairs that cannot be scored are named and left out.

    Raises:
        InputError: None can be scored.
    """
    found, refused = {}, []
    for name, pair in pairs:
        try:
            found[name] = score_pair(predict(pair), pair)
        except InputError as error:
            refused.append(f'{name}: {error}')
    for text in refused[:5]:
        LOG.warning('left out: %s', text)
    if not found:
        raise InputError(f'none of {len(refused)} pairs can be scored; {refused[:1]}')
    return found


def load_predictor(path: Path, name: str | None, device: torch.device) -> tuple[Predictor, int]:
    """Return what predicts with a checkpoint's network, and its number of parameters.

    Args:
        path: Checkpoint of a run, `.safetensors`, or official `.pth`.
        name: S1 to S4 where a `.pth` does not say so; student of a run that has several.
        device: Where it runs.

    Raises:
        ModelError: It cannot be read, or is no such network.
    """
    network: nn.Module
    if path.suffix == '.pth':
        network = load_pointmap_model(path, name)
    else:
        network = trained_network(path, name or '')
    count = sum(p.numel() for p in network.parameters())
    if isinstance(network, FlightStudent):
        return FlightPredictor(network, device), count
    if isinstance(network, Mast3r):
        return PointmapPredictor(network, device), count
    raise ModelError(f'{path} holds a {type(network).__name__}, which predicts no points')


def named(text: str) -> tuple[str, Path, str | None]:
    """Return name, path and kind of `PATH`, `NAME=PATH` or `NAME=PATH:STUDENT`."""
    name, equals, rest = text.partition('=')
    path_text, colon, kind = (rest if equals else text).partition(':')
    path = Path(path_text).expanduser()
    own = path.parent.name if path.name == 'checkpoint' else path.stem
    return (name if equals else own), path, (kind if colon else None)


def markdown(table: dict[str, Scores]) -> str:
    """Return a table with a row a score and a column a network."""
    names = list(table)
    lines = [f'| | {" | ".join(names)} |', f'|---|{"---|" * len(names)}']
    for score in _scores_of(table):
        lines.append(f'| {score} | {" | ".join(_text(table[n].get(score)) for n in names)} |')
    return '\n'.join(lines) + '\n'


def latex(table: dict[str, Scores]) -> str:
    """Return the same as a LaTeX tabular."""
    names = list(table)
    lines = [
        f'\\begin{{tabular}}{{l{"r" * len(names)}}}',
        '\\hline',
        ' & '.join(['', *map(_escaped, names)]) + r' \\',
        '\\hline',
    ]
    for score in _scores_of(table):
        cells = [_escaped(score), *(_text(table[name].get(score)) for name in names)]
        lines.append(' & '.join(cells) + r' \\')
    return '\n'.join([*lines, '\\hline', '\\end{tabular}']) + '\n'


def _scores_of(table: dict[str, Scores]) -> list[str]:
    return list(dict.fromkeys(score for scores in table.values() for score in scores))


def _text(value: float | None) -> str:
    if value is None or math.isnan(value):
        return '-'
    return f'{value:.{DIGITS}g}' if abs(value) < 10**DIGITS else f'{value:.0f}'


def _escaped(text: str) -> str:
    for character in '_%&#':
        text = text.replace(character, f'\\{character}')
    return text


def write_csv(path: Path, table: dict[str, Scores]) -> None:
    """Write a row a score and a column a network, with all digits."""
    with path.open('w', newline='', encoding='utf-8') as file:
        rows = csv.writer(file)
        rows.writerow(['score', *table])
        for score in _scores_of(table):
            rows.writerow([score, *(scores.get(score, '') for scores in table.values())])


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'evaluate', help="the paper's tables of teachers and students on StereoLunar"
    )
    parser.add_argument(
        'checkpoint',
        help='PATH, NAME=PATH, or NAME=PATH:S2 of a .pth that does not say which student it is',
    )
    parser.add_argument('folder', type=Path, help='StereoLunar views, or the root of its scenes')
    parser.add_argument(
        '--pairs', type=Path, metavar='NPZ', help='split file with scenes, images, pairs'
    )
    parser.add_argument('--teacher', metavar='CHECKPOINT', help='retention is measured against it')
    parser.add_argument(
        '--also', nargs='*', default=[], metavar='CHECKPOINT', help='more columns of the tables'
    )
    parser.add_argument('--limit', type=int, help='largest number of pairs, evenly spread')
    parser.add_argument('--size', type=int, default=LONG_SIDE, help='long side, pixels')
    parser.add_argument(
        '--percentile',
        type=float,
        default=DEPTH_PERCENTILE,
        help="depth of a view beyond it is unknown (default: the published loader's, 98)",
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', type=Path, default=Path('runs/evaluation'), help='folder')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the tables, print the Markdown."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    texts = [args.checkpoint, *args.also, *([args.teacher] if args.teacher else [])]
    networks = [named(text) for text in texts]
    check_arguments(args, networks)
    stems = view_pairs(args.folder, args.pairs)
    if args.limit is not None and args.limit < len(stems):
        stems = [stems[i] for i in np.linspace(0, len(stems) - 1, args.limit).astype(int)]
    args.out.mkdir(parents=True, exist_ok=True)
    table: dict[str, Scores] = {}
    for name, path, kind in networks:
        predict, count = load_predictor(path, kind, torch.device(args.device))
        found = evaluate(predict, _read(stems, args.size, args.percentile, name))
        write_csv(args.out / f'pairs_{name}.csv', found)
        table[name] = {'parameters_millions': count / 1e6, **summary(list(found.values()))}
    tables = {'evaluation': table}
    if args.teacher:
        teacher = table[networks[-1][0]]
        tables['retention'] = {
            f'{name} ({scores["parameters_millions"]:.1f} M)': retention(scores, teacher)
            for name, scores in table.items()
            if scores is not teacher
        }
    for title, content in tables.items():
        (args.out / f'{title}.md').write_text(markdown(content), encoding='utf-8')
        (args.out / f'{title}.tex').write_text(latex(content), encoding='utf-8')
        write_csv(args.out / f'{title}.csv', content)
        print(f'{title}\n\n{markdown(content)}')
    return 0


def check_arguments(
    args: argparse.Namespace, networks: Sequence[tuple[str, Path, str | None]]
) -> None:
    """Refuse what would only fail after the first network is evaluated, or mean nothing.

    Raises:
        InputError: Names the argument, what it is and what is needed.
    """
    for number, (name, path, _) in enumerate(networks):
        if not name or Path(name).name != name:
            raise InputError(f'{path} is named {name!r}; a name of files is needed, NAME=PATH')
        if not path.exists():
            raise InputError(f'{name}: there is no checkpoint {path}')
        for other, other_path, _ in networks[:number]:
            if name == other:
                raise InputError(
                    f'{other_path} and {path} are both named {name!r}; give one as NAME=PATH'
                )
    if args.limit is not None and args.limit < 1:
        raise InputError(f'--limit is {args.limit}; 1 or more is needed')
    if not 0 < args.percentile <= 100:
        raise InputError(f'--percentile is {args.percentile:g}; above 0 and up to 100 is needed')


def view_pairs(folder: Path, index: Path | None) -> list[tuple[Path, Path]]:
    """Return the pairs of a split file, a root with one, or of loose views, each in one order.

    Raises:
        InputError: There are none, or files are missing.
    """
    if index is not None and not index.is_file():
        index = folder / index
    pairs = list_view_pairs([folder if index is None else index], root=folder)
    # Both orders are for training.
    return [pair for pair in pairs if index is not None or pair[0] < pair[1]]


def _read(
    stems: Sequence[tuple[Path, Path]], size: int, percentile: float, name: str
) -> Iterator[tuple[str, TruePair]]:
    for pair in tqdm(stems, desc=name, unit='pair'):
        left, right = pair
        yield f'{left.parent.name}/{left.name}, {right.name}', read_pair(pair, size, percentile)
