"""The results of one run of the benchmark as JSON, Markdown and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lunar_stereo_recon.benchmark import tables
from lunar_stereo_recon.benchmark.bootstrap import intervals
from lunar_stereo_recon.benchmark.methods import Estimator, FILL, filled, MethodScores
from lunar_stereo_recon.benchmark.pairs import BenchmarkPair
from lunar_stereo_recon.benchmark.plots import draw_plot, Series
from lunar_stereo_recon.benchmark.profile import Profile
from lunar_stereo_recon.benchmark.speed import Roofline, Throughput
from lunar_stereo_recon.evaluation.scores import (
    CONFIDENCE_BINS,
    PairScore,
    subset_figures,
    summarise,
)
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from lunar_stereo_recon.visualize import contact_sheet, RgbImage, SheetRow

UNDISTURBED = 'none'
ALONE, REFINED = 'student', 'student + refinement'


@dataclass
class BenchmarkRun:
    """What was measured, and on what.

    Attributes:
        setting: Machine, threads, versions, model, data: JSON types.
        pairs: The pairs scored.
        scores: By degradation (`UNDISTURBED` first), then by method.
        memory_mb: Largest resident memory by method; a filled one is its matcher's.
        speed: Throughput and roofline, where asked for.
        profile: Where the time goes, where asked for.
    """

    setting: dict[str, Any]
    pairs: Sequence[BenchmarkPair]
    scores: dict[str, dict[str, MethodScores]]
    memory_mb: dict[str, float] = field(default_factory=dict)
    speed: tuple[Throughput, Roofline] | None = None
    profile: Profile | None = None

    def summaries(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return figures with intervals: degradation, method, group (stratum or 'overall')."""
        return {
            variant: {name: with_intervals(found.pairs) for name, found in methods.items()}
            for variant, methods in self.scores.items()
        }

    def stages_ms(self) -> dict[str, dict[str, float]]:
        """Return the median time of each stage, for the methods that have stages."""
        return {
            method: {
                stage: float(np.median([times[stage] for times in found.stages_ms]))
                for stage in found.stages_ms[0]
            }
            for method, found in self.scores[UNDISTURBED].items()
            if found.stages_ms[0]
        }

    def document(self, summaries: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything as JSON types."""
        document: dict[str, Any] = {
            'setting': self.setting,
            'results': summaries,
            'memory_mb': self.memory_mb,
            'stages_ms': self.stages_ms(),
            'pairs': [
                {'id': pair.id, 'stratum': pair.stratum, 'methods': self._of_pair(index)}
                for index, pair in enumerate(self.pairs)
            ],
        }
        if self.speed:
            throughput, roofline = self.speed
            document |= {'throughput': asdict(throughput), 'roofline': asdict(roofline)}
        if self.profile:
            document['profile'] = asdict(self.profile)
        return document

    def _of_pair(self, index: int) -> dict[str, dict[str, float | None]]:
        return {
            method: {
                **subset_figures(found.pairs[index].sums['all']),
                'ause': found.pairs[index].ause,
                'ms': found.pairs[index].milliseconds,
            }
            for method, found in self.scores[UNDISTURBED].items()
        }

    def markdown(self, summaries: Mapping[str, Any]) -> str:
        """Return the report."""
        results = summaries[UNDISTURBED]
        first = next(iter(results.values()))
        groups = [name for name in first if name != 'overall']
        parts = [_setting_text(self.setting, len(self.pairs), groups)]
        parts += ['## Overall', tables.subset_table(results, 'overall', 'all')]
        parts += ['### 95 % intervals over pairs', tables.interval_table(results, 'overall')]
        parts += ['### Time and memory', tables.speed_table(results, self.memory_mb)]
        stages = self.stages_ms()
        if stages:
            parts.append(tables.stage_table(stages))
        if any(summary['overall']['calibration'] for summary in results.values()):
            groups_ = [(g, {m: {'overall': s[g]} for m, s in results.items()}) for g in first]
            parts += ['### Calibration of the confidence', tables.calibration_table(groups_)]
        if any(summary['overall']['sigma'] for summary in results.values()):
            groups_ = [(g, {m: {'overall': s[g]} for m, s in results.items()}) for g in first]
            parts += ['### Calibration of sigma', tables.sigma_table(groups_)]
        for group in groups:
            parts += [f'## Stratum {group}', tables.subset_table(results, group, 'all')]
            if first[group]['shadow']['pixels']:
                parts += ['In shadow:', tables.subset_table(results, group, 'shadow')]
        for subset, figures in first['overall'].items():
            if subset != 'all' and isinstance(figures, dict) and figures.get('pixels'):
                title = f'## {TITLES.get(subset, subset)}: {figures["pixels"]} pixels'
                parts += [title, tables.subset_table(results, 'overall', subset)]
        scores = self.scores[UNDISTURBED]
        if ALONE in scores and REFINED in scores and len(self.pairs) > 1:
            title = '## What refinement changes (negative is better)'
            parts += [title, tables.difference_table(scores[ALONE], scores[REFINED])]
        if len(summaries) > 1:
            for key, name in (('bad2_all', 'bad-2-all %'), ('epe_px', 'EPE px')):
                parts += [f'## Degraded images, {name}', tables.degradation_table(summaries, key)]
        if self.speed:
            parts += ['## Speed of the network alone', tables.speed_text(*self.speed)]
        if self.profile:
            parts += ['## Where the time goes', tables.profile_text(self.profile)]
        return '\n\n'.join(parts) + '\n'

    def plots(self) -> dict[str, RgbImage]:
        """Return pictures by file name: calibration of the confidence, time against pixels."""
        found = {}
        curves = [
            _reliability_series(method, scores.pairs)
            for method, scores in self.scores[UNDISTURBED].items()
            if scores.pairs[0].reliability is not None
        ]
        if curves:
            ideal = Series('as it should be', (0.0, 1.0), (0.0, 1.0), line=True)
            found['reliability.png'] = draw_plot(
                'Calibration of the confidence',
                'confidence',
                'share of pixels with an error below 1 px',
                [ideal, *curves],
            )
        if self.speed:
            throughput, _ = self.speed
            ends = [0.0, max(throughput.megapixels)]
            line = [throughput.offset_ms + throughput.ms_per_megapixel * x for x in ends]
            found['throughput.png'] = draw_plot(
                'Time of the network against pixels',
                'megapixels',
                'milliseconds',
                [
                    Series('median', throughput.megapixels, throughput.milliseconds),
                    Series(f'R2 {throughput.explained:.4f}', ends, line, line=True),
                ],
            )
        return found


TITLES = {
    'noc': 'Seen by both cameras',
    'lit': 'In sunlight',
    'shadow': 'In shadow',
    'occluded': 'Not seen by the right camera',
    **{name: f'At {name}' for name in ('2-5 m', '5-10 m', '10-20 m', '20-40 m')},
}


def contact_sheets(
    pairs: Sequence[BenchmarkPair],
    scores: Sequence[PairScore],
    method: str,
    estimator: Estimator,
) -> dict[str, RgbImage]:
    """Return one sheet a stratum with its best, median and worst pair, by share of bad pixels."""
    sheets = {}
    for stratum in dict.fromkeys(pair.stratum for pair in pairs):
        ranked = sorted(
            (index for index, pair in enumerate(pairs) if pair.stratum == stratum),
            key=lambda index: _badness(scores[index]),
        )
        # Of one or two pairs one would have two names; it is shown once.
        names = {ranked[len(ranked) // 2]: 'median', ranked[0]: 'best', ranked[-1]: 'worst'}
        rows = []
        for index in sorted(names, key=ranked.index):
            pair, figures = pairs[index], subset_figures(scores[index].sums['all'])
            caption = (
                f'{names[index]}: {pair.id}, EPE {figures["epe_px"]:.2f} px, '
                f'bad-1 {100 * figures["bad1_all"]:.1f} %, '
                f'bad-2 {100 * figures["bad2_all"]:.1f} %'
            )
            rows.append(_sheet_row(caption, pair, method, estimator))
        sheets[stratum] = contact_sheet(f'{stratum}: {method}', rows)
    return sheets


def _sheet_row(caption: str, pair: BenchmarkPair, method: str, estimator: Estimator) -> SheetRow:
    images, truth = pair.load()
    estimate = estimator(images)
    estimate = filled(estimate) if method.endswith(FILL) else estimate
    confidence = estimate.confidence
    error = np.abs(np.where(truth.valid, estimate.disparity - truth.disparity, np.nan))
    grey = np.clip(images.left * 255 + 0.5, 0, 255).astype(np.uint8)
    return SheetRow(
        caption,
        np.repeat(grey[..., None], 3, axis=2),
        # Without the sky, whose depths would take up the scale.
        np.where(
            truth.valid, depth_from_disparity(estimate.disparity, images.calibration), np.nan
        ),
        np.full(error.shape, np.nan) if confidence is None else confidence,
        error,
    )


def _badness(score: PairScore) -> tuple[float, float]:
    figures = subset_figures(score.sums['all'])
    return figures['bad2_all'], figures['epe_px']


def with_intervals(
    scores: Sequence[PairScore], mean_of_pairs: bool = False
) -> dict[str, dict[str, Any]]:
    """Return what `scores.summarise` does, each group with the `intervals` of its figures."""
    summary = summarise(scores, mean_of_pairs)
    for group, figures in summary.items():
        members = [score for score in scores if group in ('overall', score.tag)]
        figures['intervals'] = intervals(members, mean_of_pairs)
    return summary


def _reliability_series(method: str, scores: Sequence[PairScore]) -> Series:
    bins = [score.reliability['all'] for score in scores if score.reliability is not None]
    fine = np.sum(bins, axis=0)
    pixels, confidence, correct = fine.reshape(3, CONFIDENCE_BINS, -1).sum(axis=2)
    seen = pixels > 0
    return Series(
        method,
        (confidence[seen] / pixels[seen]).tolist(),
        (correct[seen] / pixels[seen]).tolist(),
    )


def _setting_text(setting: Mapping[str, Any], pairs: int, strata: Sequence[str]) -> str:
    machine, versions = setting['machine'], setting['versions']
    lines = [
        '# Benchmark',
        '',
        f'{setting["data"]}: {pairs} pairs, {", ".join(setting["sizes"])}; '
        f'strata {", ".join(strata)}.',
        f'{machine["processor"]}, {machine["cores"]} cores usable, '
        f'{setting["threads"]} threads, {machine["system"]}; '
        + ', '.join(f'{name} {version}' for name, version in versions.items())
        + '.',
    ]
    model = setting.get('model')
    if model:
        lines.append(
            f'Model {model["name"]} ({model["megabytes"]:.1f} MB, weights '
            f'{model["weights_sha256"][:12]}) on {model["runs on"]}.'
        )
    return '\n'.join(lines)
