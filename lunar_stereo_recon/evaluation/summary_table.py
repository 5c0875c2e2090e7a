"""The summary of a run over a recording as a table for the terminal."""

from __future__ import annotations

from typing import Any

from lunar_stereo_recon.evaluation.terrain_scores import map_tables


def format_summary(summary: dict[str, Any]) -> str:
    """Return the table of a summary, the content of `summary.json`."""
    frames, machine = summary['frames'], summary['machine']
    reasons = ', '.join(f'{number} {name}' for name, number in frames['reasons'].items())
    latency = summary.get('latency_ms') or summary.get('node_latency_ms')
    lines = [
        '',
        f'frames            {frames["in"]} in, {frames["out"]} out, {frames["dropped"]} dropped'
        + (f' ({reasons})' if reasons else ''),
        f'rate              {summary["rate_hz"]:.1f} Hz',
    ]
    if latency:
        lines.append(f'latency           p50 {latency["p50"]:.0f} ms, p95 {latency["p95"]:.0f} ms')
    lines += [
        f'machine           {machine["processor"]}, {machine["cores"]} cores',
        f'fused cloud       {_cloud_text(summary["cloud"])}',
        '',
        *_accuracy_table(summary['accuracy'], summary['backend']),
        '',
        *(
            line
            for table in map_tables({'the drive': summary})
            for line in (*table.split('\n'), '')
        ),
    ]
    return '\n'.join(lines)


def _cloud_text(cloud: dict[str, Any]) -> str:
    source = (
        f'{cloud["frames"]} frames' if cloud['posed'] else 'one frame, as the bag has no poses'
    )
    return f'{cloud["points"]:,} points of {source}, voxels of {100 * cloud["voxel_m"]:.0f} cm'


def _accuracy_table(accuracy: dict[str, Any], backend: str) -> list[str]:
    """Return lines that compare the published clouds with SGBM where there is ground truth."""
    if 'published' not in accuracy:
        density = 100 * accuracy['image_density']
        return [f'points on {density:.1f} % of the pixels; the bag has no ground truth']
    names = {'published': f'node ({backend})', 'sgbm': 'SGBM', 'sgbm_filled': 'SGBM, filled'}
    rows = (
        ('density, %', 'density', 100, '.1f'),
        ('mean error, px', 'epe_px', 1, '.3f'),
        ('error > 0.5 px, %', 'bad05', 100, '.2f'),
        ('error > 1 px, %', 'bad1', 100, '.2f'),
        ('error > 2 px, %', 'bad2', 100, '.2f'),
        ('> 2 px or missing, %', 'bad2_all', 100, '.2f'),
        ('depth error, %', 'absrel', 100, '.2f'),
        ('depth within 5 %, %', 'delta105', 100, '.2f'),
    )
    width = 16
    lines = [' ' * 22 + ''.join(f'{name:>{width}}' for name in names.values())]
    for label, key, factor, form in rows:
        cells = (format(factor * accuracy[name][key], form) for name in names)
        lines.append(f'{label:<22}' + ''.join(f'{cell:>{width}}' for cell in cells))
    lines.append('against ground truth up to 40 m; errors are of the estimated pixels')
    return lines
