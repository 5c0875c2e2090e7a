"""The benchmark's figures as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lunar_stereo_recon.benchmark.bootstrap import paired_differences
from lunar_stereo_recon.benchmark.methods import MethodScores
from lunar_stereo_recon.benchmark.profile import Profile
from lunar_stereo_recon.benchmark.release import change_text, SUBSET_FIGURES, SUBSETS
from lunar_stereo_recon.benchmark.speed import Roofline, Throughput
from lunar_stereo_recon.geometry.sigma import WITHIN_ONE, WITHIN_TWO

# Key in the figures, header, factor, decimals.
SUBSET_COLUMNS = (
    ('density', 'density %', 100, 2),
    ('epe_px', 'EPE px', 1, 3),
    ('bad05', 'bad-0.5 %', 100, 2),
    ('bad1', 'bad-1 %', 100, 2),
    ('bad2', 'bad-2 %', 100, 2),
    ('bad05_all', 'bad-0.5-all %', 100, 2),
    ('bad1_all', 'bad-1-all %', 100, 2),
    ('bad2_all', 'bad-2-all %', 100, 2),
    ('absrel', 'AbsRel %', 100, 2),
    ('delta105', 'delta<1.05 %', 100, 2),
)
GROUP_COLUMNS = (
    ('slope_deg', 'slope deg', 1, 2),
    ('ause', 'AUSE', 1, 3),
    ('ece', 'ECE', 1, 4),
)
TIME_COLUMNS = (('ms_median', 'ms p50', 1, 0), ('ms_p95', 'ms p95', 1, 0))
# Subset (None: of the group), key, header, factor, decimals.
INTERVAL_COLUMNS = (
    ('all', 'epe_px', 'EPE px', 1, 3),
    ('all', 'bad05_all', 'bad-0.5-all %', 100, 2),
    ('all', 'bad1_all', 'bad-1-all %', 100, 2),
    ('all', 'bad2_all', 'bad-2-all %', 100, 2),
    ('shadow', 'bad2_all', 'shadow bad-2-all %', 100, 2),
    ('all', 'absrel', 'AbsRel %', 100, 2),
    ('all', 'delta105', 'delta<1.05 %', 100, 2),
    (None, 'slope_deg', 'slope deg', 1, 2),
    (None, 'ause', 'AUSE', 1, 3),
    (None, 'ece', 'ECE', 1, 4),
)
# What decides a release, and the share of points that are confident.
COMPACT_COLUMNS = (
    *SUBSET_FIGURES[:6],
    ('confident', 'confident %', 100, 1),
    *SUBSET_FIGURES[6:],
)
CALIBRATION_COLUMNS = (
    ('ece', 'ECE'),
    ('ece_low', 'lower half'),
    ('ece_mass', 'equal mass'),
    ('ece_below', 'below 0.5'),
    ('ece_above', 'from 0.5'),
)
DIFFERENCE_COLUMNS = (
    ('epe_px', 'EPE px', 1, 3),
    ('bad05_all', 'bad-0.5 %', 100, 2),
    ('bad1_all', 'bad-1 %', 100, 2),
    ('bad2_all', 'bad-2 %', 100, 2),
)

OPERATORS_SHOWN = 12
Results = Mapping[str, Mapping[str, Any]]


def subset_table(results: Results, group: str, subset: str) -> str:
    """Return a line a method for one group of pairs and one subset of their pixels."""
    with_group = subset == 'all'
    columns = [*SUBSET_COLUMNS, *(GROUP_COLUMNS if with_group else ())]
    rows = []
    for method, summary in results.items():
        figures = summary[group]
        cells = [_number(figures[subset][key], *form) for key, _, *form in SUBSET_COLUMNS]
        if with_group:
            cells += [_number(figures[key], *form) for key, _, *form in GROUP_COLUMNS]
        rows.append([method, *cells])
    return _table(['method', *(header for _, header, *_ in columns)], rows)


def compact_table(results_by_set: Sequence[tuple[str, Results]]) -> str:
    """Return a line for each set, subset with pixels and method."""
    rows = []
    for name, results in results_by_set:
        for subset in SUBSETS:
            for method, summary in results.items():
                figures = summary['overall'][subset]
                if figures['pixels']:
                    # Without a confidence nothing is sure.
                    shown = figures if figures['sure'] else {**figures, 'sure_wrong': None}
                    cells = [_number(shown[key], *form) for key, _, *form in COMPACT_COLUMNS]
                    time = summary['overall']['ms_median'] if subset == 'all' else None
                    cells.append(_number(time, 1, 0))
                    rows.append([name, subset, str(figures['pixels']), method, *cells])
    headers = [header for _, header, *_ in COMPACT_COLUMNS]
    return _table(['set', 'subset', 'pixels', 'method', *headers, 'ms p50'], rows)


def calibration_table(results_by_set: Sequence[tuple[str, Results]]) -> str:
    """Return a line for each set and method with a confidence: what it said, what was right.

    Below 0.5, from 0.5, and over bins of equal numbers of pixels, least confident first.
    """
    rows = []
    for name, results in results_by_set:
        for method, summary in results.items():
            figures = summary['overall']
            bins = figures['calibration']
            if bins is None:
                continue
            cells = [_number(figures[key], 1, 4) for key, _ in CALIBRATION_COLUMNS]
            for part in (bins['below'], bins['above']):
                cells += [_number(part['share'], 100, 1), _said_and_right(part)]
            cells.append(' '.join(_said_and_right(part) for part in bins['equal_mass']))
            rows.append([name, method, *cells])
    headers = ['set', 'method', *(header for _, header in CALIBRATION_COLUMNS)]
    for part in ('below 0.5', 'from 0.5'):
        headers += [f'{part}, % of pixels', f'{part}: said/right %']
    return _table([*headers, 'equal mass: said/right %'], rows)


def _said_and_right(part: Mapping[str, float | None]) -> str:
    if part['said'] is None:
        return ''
    return f'{_number(part["said"], 100, 1)}/{_number(part["right"], 100, 1)}'


def sigma_table(results_by_set: Sequence[tuple[str, Results]]) -> str:
    """Return a line for each set, method with a sigma, and subset with enough pixels.

    Largest distance of the shares within one and two sigma from those of a normal distribution
    over ten bins of equal numbers of pixels; then the bins, smallest sigma first.
    """
    rows = []
    for name, results in results_by_set:
        for method, summary in results.items():
            for subset, bins in (summary['overall']['sigma'] or {}).items():
                if bins:
                    gaps = [
                        _number(max(abs(each[key] - share) for each in bins), 100, 1)
                        for key, share in (('within_one', WITHIN_ONE), ('within_two', WITHIN_TWO))
                    ]
                    said = ' '.join(
                        f'{each["sigma_px"]:.3f}: {_number(each["within_one"], 100, 0)}/'
                        f'{_number(each["within_two"], 100, 0)}'
                        for each in bins
                    )
                    rows.append([name, method, subset, *gaps, said])
    headers = ['set', 'method', 'subset', 'one: largest gap', 'two: largest gap']
    return _table([*headers, 'sigma px: within one/two %'], rows)


def interval_table(results: Results, group: str) -> str:
    """Return the main figures with their 95 % intervals over pairs."""
    rows = []
    for method, summary in results.items():
        figures, spread = summary[group], summary[group]['intervals']
        cells = []
        for subset, key, _, factor, decimals in INTERVAL_COLUMNS:
            value = (figures[subset] if subset else figures)[key]
            interval = (spread.get(subset, {}) if subset else spread).get(key)
            text = _number(value, factor, decimals)
            if text and interval:
                low, high = (_number(end, factor, decimals) for end in interval)
                text = f'{text} ({low} to {high})'
            cells.append(text)
        rows.append([method, *cells])
    return _table(['method', *(column[2] for column in INTERVAL_COLUMNS)], rows)


def speed_table(results: Results, memory_mb: Mapping[str, float]) -> str:
    """Return times of each method and the largest resident memory of a process running it."""
    rows = [
        [
            method,
            *(_number(summary['overall'][key], *form) for key, _, *form in TIME_COLUMNS),
            _number(memory_mb.get(method), 1, 0),
        ]
        for method, summary in results.items()
    ]
    return _table(['method', *(header for _, header, *_ in TIME_COLUMNS), 'peak MB'], rows)


def stage_table(stages_ms: Mapping[str, Mapping[str, float]]) -> str:
    """Return the median time of each stage of the pipeline."""
    stages = list(dict.fromkeys(stage for times in stages_ms.values() for stage in times))
    rows = [
        [method, *(_number(times.get(stage), 1, 1) for stage in stages)]
        for method, times in stages_ms.items()
    ]
    return _table(['method', *(f'{stage} ms' for stage in stages)], rows)


def difference_table(before: MethodScores, after: MethodScores) -> str:
    """Return what a second method changes against a first, by stratum, with 95 % intervals."""
    strata = list(dict.fromkeys(score.tag for score in before.pairs))
    rows = []
    for group in [*strata, 'overall']:
        first, second = (
            [score for score in scores.pairs if group in ('overall', score.tag)]
            for scores in (before, after)
        )
        cells = []
        changes = paired_differences(first, second)['all']
        for key, _, factor, decimals in DIFFERENCE_COLUMNS:
            cells.append(change_text(*changes[key], factor, decimals))
        rows.append([group, *cells])
    return _table(['stratum', *(header for _, header, *_ in DIFFERENCE_COLUMNS)], rows)


def degradation_table(variants: Mapping[str, Results], key: str) -> str:
    """Return one figure over all pixels, a line a degradation and a column a method.

    The last line is the mean over the degradations, without the undisturbed pairs.
    """
    _, _, factor, decimals = next(column for column in SUBSET_COLUMNS if column[0] == key)
    values = {
        name: [summary['overall']['all'][key] for summary in results.values()]
        for name, results in variants.items()
    }
    disturbed = [line for name, line in values.items() if name != 'none']
    means = [sum(column) / len(column) for column in zip(*disturbed, strict=True)]
    lines = [*values.items(), ('mean of the degradations', means)]
    rows = [[name, *(_number(value, factor, decimals) for value in line)] for name, line in lines]
    return _table(['degradation', *next(iter(variants.values()))], rows)


def speed_text(throughput: Throughput, roofline: Roofline) -> str:
    """Return time against size and the roofline, in words and a table."""
    share = roofline.gflops_reached / roofline.gflops_of_matrix_product
    operators = ', '.join(f'{n} {g:.2f}' for n, g in roofline.gflop_by_operator.items())
    lines = [
        _sizes_text(throughput),
        '',
        f'Roofline at 640x480: {roofline.gflop:.2f} GFLOP ({operators or "none"}) in '
        f'{roofline.milliseconds:.1f} ms are {roofline.gflops_reached:.1f} GFLOP/s; a large '
        f'matrix product reaches {roofline.gflops_of_matrix_product:.1f} GFLOP/s with the same '
        f'threads: {100 * share:.0f} %.',
    ]
    if roofline.uncounted:
        lines.append(f'Not counted: {", ".join(roofline.uncounted)}.')
    return '\n'.join(lines)


def _sizes_text(throughput: Throughput) -> str:
    """Return time against size as a table and a line through it."""
    rows = [
        [f'{width}x{height}', f'{pixels:.3f}', f'{time:.1f}', f'{pixels * 1e3 / time:.2f}']
        for (width, height), pixels, time in zip(
            throughput.sizes, throughput.megapixels, throughput.milliseconds, strict=True
        )
    ]
    return (
        _table(['size', 'megapixels', 'ms', 'megapixels/s'], rows)
        + f'\n\nLine through them: {throughput.offset_ms:.1f} ms + '
        f'{throughput.ms_per_megapixel:.1f} ms a megapixel, R2 {throughput.explained:.4f}.'
    )


def profile_text(profile: Profile) -> str:
    """Return a pair beside filled SGBM, its stages, the network's operations, peers, the map."""
    pair, operations, terrain = profile.pair, profile.operations, profile.terrain
    stages = [[name, f'{time:.1f}'] for name, time in pair.stages_ms.items()]
    slowest = list(operations.milliseconds.items())[:OPERATORS_SHOWN]
    rest = operations.total_ms - sum(time for _, time in slowest)
    operators = [[name, str(operations.nodes[name]), f'{time:.1f}'] for name, time in slowest]
    lines = [
        f'A pair takes {pair.pair_ms:.1f} ms, filled SGBM 3WAY in turns with it '
        f'{pair.sgbm_ms:.1f} ms: a ratio of {pair.ratio:.2f} (lower quartiles of {pair.rounds}; '
        f'{pair.core_seconds_a_megapixel:.2f} core-seconds a megapixel).',
        '',
        _table(['stage', 'ms'], stages),
        '',
        'Processor time of whole pairs, all threads, by the size of their images; the network '
        'sees no more than its own width:',
        '',
        _sizes_text(profile.sizes),
        '',
        f'Operations of the network at 640x480 in onnxruntime: {operations.total_ms:.1f} ms'
        + (
            f', {operations.over_products:.2f} times its convolutions and matrix products.'
            if operations.over_products
            else '.'
        ),
        '',
        _table(['operator', 'nodes', 'ms'], [*operators, ['others', '', f'{rest:.1f}']]),
    ]
    if profile.peers:
        rows = [
            [
                peer.file,
                peer.runtime,
                f'{peer.width}x{peer.height}',
                '-' if peer.milliseconds is None else f'{peer.milliseconds:.1f}',
                peer.error
                if peer.milliseconds is None
                else f'{peer.milliseconds / operations.total_ms:.2f}',
            ]
            for peer in profile.peers
        ]
        headers = ['peer', 'runtime', 'size', 'ms', "over the student's operations"]
        lines += ['', _table(headers, rows)]
    lines += [
        '',
        f'A cloud of 640x480 points takes {terrain.frame_ms:.1f} ms of the processor in '
        f'terrain_node: {terrain.read_ms:.1f} to read it, {terrain.add_ms:.1f} to add it to the '
        f'map, {terrain.layers_ms:.1f} for slopes, steps and costs, {terrain.message_ms:.1f} for '
        f'the message. The map has {terrain.length_m:g} x {terrain.length_m:g} m in cells of '
        f'{terrain.cell_m:g} m, of which {100 * terrain.known:.0f} % are known.',
    ]
    return '\n'.join(lines)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ['---'] * len(headers), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _number(value: float | None, factor: float, decimals: int) -> str:
    return '' if value is None else f'{factor * value:.{decimals}f}'
