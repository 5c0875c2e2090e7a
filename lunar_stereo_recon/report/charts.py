"""The charts of a report, with plotly, whose script goes into the page (extra [report])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from lunar_stereo_recon.evaluation.scores import (
    CONFIDENCE_BINS,
    CURVE_POINTS,
    pooled_reliability,
    RANGES_M,
)
from lunar_stereo_recon.report.clouds import ViewedCloud
from lunar_stereo_recon.report.results import Results

COLORS = ('#2468b4', '#c8641e', '#3c8c46', '#8c50a0', '#787878')
HEIGHT_PX = 380
CLOUD_HEIGHT_PX = 620
# A cell of the reliability diagram with fewer pixels is an accident.
FEWEST_PIXELS = 50
Summaries = Mapping[str, Mapping[str, Any]]


def script() -> str:
    """Return plotly's JavaScript."""
    return get_plotlyjs()


def as_html(figure: go.Figure, name: str) -> str:
    """Return a figure as HTML, for a page that has the `script`."""
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={'displaylogo': False, 'responsive': True},
    )


def error_by_range(summaries: Summaries) -> go.Figure:
    """Return the mean relative error of the depth, and the share of bad pixels, by distance."""
    figure = _bars(summaries, 'overall', RANGES_M, 'absrel', 100)
    return _laid_out(figure, 'distance', 'mean relative depth error, %')


def bad_by_stratum(summaries: Summaries) -> go.Figure:
    """Return the share of bad pixels in each stratum and overall."""
    figure = go.Figure()
    for color, (method, groups) in zip(COLORS, summaries.items(), strict=False):
        names = [name for name in groups if name != 'overall'] + ['overall']
        values = [_value(groups[name], 'all', 'bad1_all', 100) for name in names]
        figure.add_bar(name=method, x=names, marker_color=color, **_with_error_bars(values))
    return _laid_out(figure, 'stratum', 'pixels wrong by more than 1 px or missing, %')


def bad_by_subset(summaries: Summaries, subsets: Sequence[str]) -> go.Figure:
    """Return the share of bad pixels in the subsets that there are: shadow, rocks, edges."""
    figure = _bars(summaries, 'overall', subsets, 'bad1_all', 100)
    return _laid_out(figure, 'pixels', 'wrong by more than 1 px or missing, %')


def _bars(
    summaries: Summaries, group: str, subsets: Sequence[str] | Mapping[str, Any], key: str, by: int
) -> go.Figure:
    figure = go.Figure()
    first = next(iter(summaries.values()))[group]
    names = [name for name in subsets if first.get(name, {'pixels': 0})['pixels']]
    for color, (method, groups) in zip(COLORS, summaries.items(), strict=False):
        values = [_value(groups[group], name, key, by) for name in names]
        figure.add_bar(name=method, x=names, marker_color=color, **_with_error_bars(values))
    return figure


def _value(figures: Mapping[str, Any], subset: str, key: str, by: int) -> list[float]:
    """Return a figure and the ends of its interval, which are the figure where there is none."""
    value = figures[subset][key]
    low, high = figures['intervals'].get(subset, {}).get(key, (value, value))
    return [by * value, by * low, by * high]


def _with_error_bars(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    middle, low, high = np.array(values).reshape(-1, 3).T
    return {
        'y': middle,
        'error_y': {
            'type': 'data',
            'symmetric': False,
            'array': np.maximum(high - middle, 0),
            'arrayminus': np.maximum(middle - low, 0),
        },
    }


def sparsification(results: Results) -> go.Figure | None:
    """Return the mean error of what is left when the least confident pixels are removed."""
    figure = go.Figure()
    shares = np.linspace(0, 100, CURVE_POINTS)
    for color, method in zip(COLORS, results.methods, strict=False):
        curves = [s.sparsification for s in results.scores(method) if s.sparsification is not None]
        if not curves:
            continue
        by_confidence, oracle = np.mean(curves, axis=0)
        areas = [score.ause for score in results.scores(method) if score.ause is not None]
        name = f'{method}, AUSE {np.mean(areas):.3f}' if areas else method
        figure.add_scatter(x=shares, y=by_confidence, name=name, line_color=color)
        figure.add_scatter(
            x=shares,
            y=oracle,
            name=f'{method}: by true error',
            line={'color': color, 'dash': 'dot'},
        )
    if not figure.data:
        return None
    return _laid_out(figure, 'removed, least confident first, %', 'mean error of the rest, px')


def reliability(results: Results) -> go.Figure | None:
    """Return how often confidences come true."""
    figure = go.Figure()
    for color, method in zip(COLORS, results.methods, strict=False):
        bins = pooled_reliability(results.scores(method), 'all')
        if bins is None:
            continue
        pixels, confidence, right = bins.reshape(3, CONFIDENCE_BINS, -1).sum(axis=2)
        seen = pixels >= FEWEST_PIXELS
        figure.add_scatter(
            x=confidence[seen] / pixels[seen],
            y=right[seen] / pixels[seen],
            name=method,
            mode='lines+markers',
            line_color=color,
            customdata=pixels[seen],
            hovertemplate='said %{x:.3f}, right %{y:.3f}, %{customdata:,} pixels',
        )
    if not figure.data:
        return None
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        name='as it should be',
        mode='lines',
        line={'color': '#999', 'dash': 'dot'},
    )
    return _laid_out(figure, 'confidence', 'share of pixels with an error below 1 px')


def by_pair(results: Results) -> go.Figure:
    """Return every pair in the order of the source: its errors, or what is confident of it."""
    figure = go.Figure()
    known = results.with_truth()
    for color, method in zip(COLORS, results.methods, strict=False):
        if known:
            y = [100 * pair.figures(method)['bad1_all'] for pair in known]
        else:
            y = [100 * (pair.facts[method]['confident'] or 0) for pair in results.pairs]
        names = [pair.id for pair in known or results.pairs]
        figure.add_scatter(
            x=list(range(len(names))),
            y=y,
            text=names,
            name=method,
            mode='lines+markers',
            line_color=color,
            hovertemplate='%{text}: %{y:.2f} %',
        )
    what = 'wrong by more than 1 px or missing, %' if known else 'confident pixels, %'
    return _laid_out(figure, 'pair, in the order of the source', what)


def change_by_pair(names: Sequence[str], changes: Sequence[float], label: str) -> go.Figure:
    """Return the change of each pair, sorted; those that got better are green."""
    order = np.argsort(changes)
    values = np.array(changes)[order]
    figure = go.Figure()
    figure.add_bar(
        x=list(range(len(values))),
        y=values,
        text=[names[i] for i in order],
        marker_color=['#3c8c46' if value <= 0 else '#c4342b' for value in values],
        hovertemplate='%{text}: %{y:+.3f}',
        textposition='none',
    )
    return _laid_out(figure, 'pairs, sorted', label)


def cloud(view: ViewedCloud) -> go.Figure:
    """Return a cloud that can be turned, coloured by the image, by confidence or by height."""
    x, y, z = view.points.T
    ends = np.percentile(view.points, [1, 99], axis=0)
    spans = np.maximum(ends[1] - ends[0], 0.1)
    figure = go.Figure()
    hexes = [f'#{r:02x}{g:02x}{b:02x}' for r, g, b in view.colors.tolist()]
    figure.add_scatter3d(
        x=x, y=y, z=z, mode='markers', marker={'size': 1.8, 'color': hexes}, name='points'
    )
    figure.add_scatter3d(
        x=view.cameras[:, 0],
        y=view.cameras[:, 1],
        z=view.cameras[:, 2],
        mode='lines+markers',
        marker={'size': 3, 'color': '#ff5050'},
        line={'color': '#ff5050', 'width': 3},
        name='left camera',
    )
    # Two digits are what a colour shows; each more would be a byte a point in the page.
    choices: dict[str, tuple[Any, str | None, bool]] = {
        'image': (hexes, None, False),
        'height': (_two_digits(z), 'Plasma', True),
    }
    if view.confidence is not None:
        choices['confidence'] = (_two_digits(view.confidence), 'Viridis', True)
    buttons = [
        {
            'label': f'colour: {name}',
            'method': 'restyle',
            'args': [
                {
                    'marker.color': [color],
                    'marker.colorscale': [scale],
                    'marker.showscale': [bar],
                },
                [0],
            ],
        }
        for name, (color, scale, bar) in choices.items()
    ]
    axis = {'backgroundcolor': '#181e2c', 'gridcolor': '#39415a', 'color': '#aab'}
    # Steps are metres on all axes; the view is from behind and above the first camera.
    ratio = spans / spans.max()
    figure.update_layout(
        height=CLOUD_HEIGHT_PX,
        margin={'l': 0, 'r': 0, 't': 0, 'b': 0},
        paper_bgcolor='#181e2c',
        font_color='#dde',
        showlegend=False,
        updatemenus=[
            {
                'buttons': buttons,
                'x': 0.01,
                'xanchor': 'left',
                'y': 0.99,
                'bgcolor': '#fff',
                'font': {'color': '#222'},
            }
        ],
        scene={
            'aspectmode': 'data',
            'xaxis': axis | {'title': 'x, m'},
            'yaxis': axis | {'title': 'y, m'},
            'zaxis': axis | {'title': 'z, m'},
            'camera': {'eye': _eye(view, ratio), 'up': {'x': 0, 'y': 0, 'z': 1}},
        },
    )
    return figure


def _two_digits(values: Any) -> list[float]:
    return np.round(np.asarray(values, np.float64), 2).tolist()


def _eye(view: ViewedCloud, ratio: Any) -> dict[str, float]:
    """Return where to look from: behind the first camera, above the ground."""
    middle = np.median(view.points, axis=0)
    back = view.cameras[0, :2] - middle[:2]
    length = float(np.linalg.norm(back))
    direction = back / length if length > 1e-6 else np.array([0.0, -1.0])
    reach = 0.9 + 0.4 * float(ratio[:2].min())
    return {'x': float(reach * direction[0]), 'y': float(reach * direction[1]), 'z': 0.7}


def _laid_out(figure: go.Figure, x: str, y: str) -> go.Figure:
    figure.update_layout(
        height=HEIGHT_PX,
        margin={'l': 60, 'r': 10, 't': 16, 'b': 50},
        template='plotly_white',
        xaxis_title=x,
        yaxis_title=y,
        legend={'orientation': 'h', 'y': 1.12},
        barmode='group',
    )
    return figure
