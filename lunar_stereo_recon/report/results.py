"""What an evaluation found, pair by pair; as JSON and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.benchmark.methods import (
    Estimate,
    estimate_of,
    Estimator,
    score_estimate,
    WARM_UPS,
)
from lunar_stereo_recon.benchmark.report import with_intervals
from lunar_stereo_recon.datatypes import StereoPair
from lunar_stereo_recon.errors import InputError, ReconError
from lunar_stereo_recon.evaluation.scores import (
    GroundTruth,
    NUMBER_OF_SUMS,
    PairScore,
    SHOWN,
    subset_figures,
)
from lunar_stereo_recon.files.atomic import write_text
from lunar_stereo_recon.files.bounded import read_json
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from lunar_stereo_recon.report.sources import Source, SourcePair

FORMAT = 1
RESULTS = 'results.json'
# What is known of a pair without any truth: key, header, factor, decimals.
FACTS = (
    ('confident', 'confident %', 100, 1),
    ('mean_confidence', 'mean confidence', 1, 3),
    ('median_depth_m', 'median depth m', 1, 2),
    ('ms', 'ms', 1, 0),
)


@dataclass
class PairResult:
    """What was found of one pair.

    Attributes:
        id, stratum: Of the pair.
        size: Width and height of the images.
        facts: For each method the values of `FACTS`; None where a method has none.
        scores: For each method; empty without truth.
        panel: Picture of the pair, relative to the folder of the results; '' where there is none.
    """

    id: str
    stratum: str
    size: tuple[int, int]
    facts: dict[str, dict[str, float | None]]
    scores: dict[str, PairScore] = field(default_factory=dict)
    panel: str = ''

    def figures(self, method: str) -> dict[str, Any]:
        """Return the figures of one method on this pair; only with truth."""
        return subset_figures(self.scores[method].sums['all'])


@dataclass
class Results:
    """What was found of all pairs.

    Attributes:
        setting: Source, command, machine, versions, models: JSON types.
        methods: Their names, the one that the report is about first.
        mean_of_pairs: As for `scores.summarise`.
        pairs: Those that could be used.
        left_out: Why others could not, by id.
        losses: What could not be read of the source.
        maps: Figures of the map of the drive, by method; empty where no pair has a pose.
        map_picture: Picture of the first method's map, as `PairResult.panel`.
        flicker: Figures of `Flicker` by method; empty where no two frames have poses.
    """

    setting: dict[str, Any]
    methods: list[str]
    mean_of_pairs: bool = False
    pairs: list[PairResult] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    map_picture: str = ''
    flicker: dict[str, dict[str, float]] = field(default_factory=dict)

    def with_truth(self) -> list[PairResult]:
        """Return the pairs that have scores."""
        return [pair for pair in self.pairs if pair.scores]

    def scores(self, method: str) -> list[PairScore]:
        """Return one score for each pair with truth."""
        return [pair.scores[method] for pair in self.with_truth()]

    def summaries(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return figures with intervals by method and group; empty without any truth."""
        if not self.with_truth():
            return {}
        return {m: with_intervals(self.scores(m), self.mean_of_pairs) for m in self.methods}

    def facts(self, method: str, key: str) -> list[float]:
        """Return one of `FACTS` of all pairs that have it."""
        values = [pair.facts[method][key] for pair in self.pairs]
        return [value for value in values if value is not None]

    def ranked(self) -> list[PairResult]:
        """Return the pairs, the best first: by the first method's errors, or its confidence."""
        method = self.methods[0]
        known = self.with_truth()
        if known:
            return sorted(known, key=lambda pair: badness(pair.scores[method]))
        return sorted(self.pairs, key=lambda pair: -(pair.facts[method]['confident'] or 0.0))

    def document(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            'format': FORMAT,
            'setting': self.setting,
            'methods': self.methods,
            'mean_of_pairs': self.mean_of_pairs,
            'summaries': self.summaries(),
            'left_out': self.left_out,
            'losses': self.losses,
            'maps': self.maps,
            'map_picture': self.map_picture,
            'flicker': self.flicker,
            'pairs': [
                {
                    'id': pair.id,
                    'stratum': pair.stratum,
                    'size': list(pair.size),
                    'panel': pair.panel,
                    'facts': pair.facts,
                    'figures': {method: pair.figures(method) for method in pair.scores},
                    'scores': {name: _score_document(s) for name, s in pair.scores.items()},
                }
                for pair in self.pairs
            ],
        }

    def write(self, path: Path) -> None:
        """Write the document."""
        import json

        write_text(path, json.dumps(self.document(), separators=(',', ':')) + '\n')


def badness(score: PairScore) -> tuple[float, float]:
    """Return by what pairs are ranked: the share of bad pixels, then the mean error."""
    figures = subset_figures(score.sums['all'])
    return figures['bad2_all'], figures['epe_px']


def evaluate(
    source: Source,
    estimators: Mapping[str, Estimator],
    methods: Sequence[str],
    setting: dict[str, Any],
    seen: Callable[[SourcePair, StereoPair, GroundTruth | None, Mapping[str, Estimate]], str],
    done: Callable[[], object] = lambda: None,
) -> Results:
    """Run methods on every pair; one that cannot be used is named with its reason.

    Args:
        source: The pairs.
        estimators: Those that the methods need, without `FILL`.
        methods: Names of estimators, some with `FILL` after them.
        setting: See `Results`.
        seen: Called with each pair and its estimates by method; returns the name of a picture.
        done: Called after each pair.

    Raises:
        InputError: No pair can be used.
    """
    results = Results(setting, list(methods), source.mean_of_pairs)
    for item in source.pairs():
        try:
            images, truth = item.load()
            for _ in range(0 if results.pairs else WARM_UPS):
                for estimate in estimators.values():
                    estimate(images)
            found = {name: estimate(images) for name, estimate in estimators.items()}
        except ReconError as error:
            results.left_out[item.id] = str(error)
        else:
            estimates = {name: estimate_of(found, name) for name in methods}
            results.pairs.append(_pair_result(item, images, truth, estimates))
            results.pairs[-1].panel = seen(item, images, truth, estimates)
        done()
    results.losses = list(source.losses)
    if not results.pairs:
        reasons = list(results.left_out.values()) or results.losses or ['there are none']
        raise InputError(f'{source.path}: no pair can be used: {reasons[0]}')
    return results


def _pair_result(
    item: SourcePair,
    images: StereoPair,
    truth: GroundTruth | None,
    estimates: Mapping[str, Estimate],
) -> PairResult:
    height, width = images.left.shape
    result = PairResult(item.id, item.stratum, (width, height), {})
    for method, estimate in estimates.items():
        result.facts[method] = _facts(images, estimate)
        if truth is not None and truth.valid.any():
            result.scores[method] = score_estimate(estimate, images, truth, item.stratum)
    return result


def shown(estimate: Estimate) -> NDArray[np.bool_]:
    """Return (H, W): which pixels a user gets: confident ones, or all of a matcher without."""
    known = np.isfinite(estimate.disparity) & (estimate.disparity > 0)
    return known if estimate.confidence is None else known & (estimate.confidence >= SHOWN)


def _facts(images: StereoPair, estimate: Estimate) -> dict[str, float | None]:
    given = shown(estimate)
    depth = depth_from_disparity(estimate.disparity, images.calibration)[given]
    confidence = estimate.confidence
    return {
        'confident': float(given.mean()),
        'mean_confidence': None if confidence is None else float(np.mean(confidence)),
        'median_depth_m': float(np.median(depth)) if depth.size else None,
        'ms': estimate.milliseconds,
    }


def load_results(path: Path) -> Results:
    """Return the results that `lunar-stereo evaluate` wrote: its folder, or the file in it.

    Raises:
        InputError: There are none, or they are damaged or of another format.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        document = read_json(file)
    except OSError as error:
        raise InputError(f'cannot read results {file}: {error.strerror}') from error
    except ValueError as error:
        raise InputError(f'results {file} are not JSON: {error}') from error
    found = document.get('format') if isinstance(document, dict) else None
    if found != FORMAT:
        raise InputError(
            f'{file} has format {found!r}; {FORMAT}, as `lunar-stereo evaluate` writes, is needed'
        )
    try:
        return Results(
            document['setting'],
            list(document['methods']),
            bool(document['mean_of_pairs']),
            [_pair_of(pair) for pair in document['pairs']],
            dict(document['left_out']),
            list(document['losses']),
            dict(document.get('maps', {})),
            str(document.get('map_picture', '')),
            dict(document.get('flicker', {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f'{type(error).__name__}: {error}'
        raise InputError(f'results {file} are damaged ({what})') from error


def _pair_of(document: Mapping[str, Any]) -> PairResult:
    width, height = document['size']
    return PairResult(
        str(document['id']),
        str(document['stratum']),
        (int(width), int(height)),
        {method: dict(facts) for method, facts in document['facts'].items()},
        {method: _score_of(score) for method, score in document['scores'].items()},
        str(document['panel']),
    )


def _score_document(score: PairScore) -> dict[str, Any]:
    document = asdict(score)
    document['sums'] = {name: _numbers(values) for name, values in score.sums.items()}
    for name in ('slope', 'sparsification'):
        values = getattr(score, name)
        document[name] = None if values is None else _numbers(values)
    if score.reliability is not None:
        document['reliability'] = {n: _numbers(v) for n, v in score.reliability.items()}
    if score.sigma is not None:
        document['sigma'] = {n: _numbers(v) for n, v in score.sigma.items()}
    return document


def _numbers(values: NDArray[np.float64]) -> Any:
    """Return nested lists of full precision, whole numbers without a point."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]
    return [int(value) if value == int(value) else float(value) for value in values]


def _score_of(document: Mapping[str, Any]) -> PairScore:
    sums = {name: np.array(values, np.float64) for name, values in document['sums'].items()}
    for name, values in sums.items():
        if values.shape != (NUMBER_OF_SUMS,):
            raise ValueError(f'sums of {name} have shape {values.shape}, not {(NUMBER_OF_SUMS,)}')
    bins, sigma, slope, curves = (
        document[n] for n in ('reliability', 'sigma', 'slope', 'sparsification')
    )
    return PairScore(
        document['tag'],
        sums,
        document['ause'],
        None if bins is None else {n: np.array(v, np.float64) for n, v in bins.items()},
        document['milliseconds'],
        None if slope is None else np.array(slope, np.float64),
        None if sigma is None else {n: np.array(v, np.float64) for n, v in sigma.items()},
        None if curves is None else np.array(curves, np.float64),
    )
