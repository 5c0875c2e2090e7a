"""Lamps and light from the ground around."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation.renderer import render  # noqa: E402
from lunar_stereo_recon.simulation.scene import Hapke, Lighting  # noqa: E402
from lunar_stereo_recon.simulation.secondary_light import (  # noqa: E402
    headlamps,
    Lamp,
    with_ground_light,
    with_lamps,
)

NIGHT = Lighting(-5.0, 0.0, ambient=0.0, bounce=0.0, night=True)


def test_lamp_falls_with_the_square_of_the_distance(shaped_terrain, view_from):
    ground = shaped_terrain(lambda x, y: 0.0)
    view = view_from((0.0, 0.0, 1.0), pitch_deg=-90.0)
    dark = render(ground, view, NIGHT, samples=1)
    assert float(dark.radiance.max()) == 0.0
    centre = []
    for height in (1.0, 2.0):
        lamp = Lamp((0.0, 0.0, height), (0.0, 0.0, -1.0), strength=0.5, beam_deg=20.0)
        centre.append(float(with_lamps(dark, ground, view, [lamp], Hapke()).radiance[24, 32]))
    assert centre[0] / centre[1] == pytest.approx(4.0, rel=0.03)
    # Half of the light at the angle of the beam: seen 20 degrees off, less by the cosine as well.
    straight = Lamp((0.0, 0.0, 1.0), (0.0, 0.0, -1.0), strength=0.5, beam_deg=20.0)
    turned = dataclasses.replace(
        straight, direction=(np.sin(np.radians(20.0)), 0.0, -np.cos(np.radians(20.0)))
    )
    both = [
        float(with_lamps(dark, ground, view, [lamp], Hapke()).radiance[24, 32])
        for lamp in (straight, turned)
    ]
    assert both[1] / both[0] == pytest.approx(0.5, abs=0.03)
    assert torch.equal(with_lamps(dark, ground, view, [], Hapke()).radiance, dark.radiance)


def test_ground_casts_the_lamps_shadow(shaped_terrain, view_from):
    ground = shaped_terrain(lambda x, y: np.where((np.abs(x) < 0.2), 0.6, 0.0))
    view = view_from((-2.0, 0.0, 3.0), pitch_deg=-60.0)
    dark = render(ground, view, NIGHT, samples=1)
    lit = with_lamps(dark, ground, view, headlamps(view, 0.2, 0.5, 80.0), Hapke())
    low = with_lamps(dark, ground, view, [Lamp((-3.0, 0.0, 0.3), (1, 0, 0), 0.5, 80.0)], Hapke())
    points = view.position_m + view.rays() * dark.depth.reshape(-1, 1)
    behind = ((points[:, 0] > 0.6) & torch.isfinite(points[:, 0])).reshape(48, 64)
    before = ((points[:, 0] < -0.6) & torch.isfinite(points[:, 0])).reshape(48, 64)
    assert behind.sum() > 50 and before.sum() > 50
    assert (low.radiance[behind] == 0).all() and (low.radiance[before] > 0).float().mean() > 0.9
    assert (lit.radiance[before] > 0).all()


def test_lit_wall_lightens_the_shadow_before_it(shaped_terrain, view_from):
    """A trench: its shaded side gets light from the sunlit one; flat ground gets none."""
    sun = Lighting(30.0, 180.0, ambient=0.0, bounce=0.0)
    trench = shaped_terrain(lambda x, y: np.clip(np.abs(x) - 0.5, 0.0, 1.2) - 1.2)
    view = view_from((0.0, 0.0, 2.0), pitch_deg=-89.0)
    seen = render(trench, view, sun, samples=1)
    shade = seen.shadow & torch.isfinite(seen.depth)
    assert shade.sum() > 100
    assert float(seen.radiance[shade].max()) == 0.0
    lighter = with_ground_light(seen, trench, view, sun)
    again = with_ground_light(seen, trench, view, sun)
    assert torch.equal(lighter.radiance, again.radiance)
    assert (lighter.radiance[shade] > 0).float().mean() > 0.95
    sunlit = seen.radiance[~shade & torch.isfinite(seen.depth)].mean()
    # Once reflected by ground of about 0.1, and from a part of the sky only.
    assert 1e-3 < float(lighter.radiance[shade].mean() / sunlit) < 0.1
    flat = shaped_terrain(lambda x, y: 0.0)
    even = render(flat, view, sun, samples=1)
    assert torch.equal(with_ground_light(even, flat, view, sun).radiance, even.radiance)


def test_wrong_lamps_and_rays(shaped_terrain, view_from):
    with pytest.raises(InputError, match='no direction'):
        Lamp((0, 0, 0), (0, 0, 0))
    with pytest.raises(InputError, match='beam 120'):
        Lamp((0, 0, 0), (1, 0, 0), beam_deg=120.0)
    ground, view = shaped_terrain(lambda x, y: 0.0), view_from()
    seen = render(ground, view, Lighting(40.0, 0.0), samples=1)
    with pytest.raises(InputError, match='0 rays'):
        with_ground_light(seen, ground, view, Lighting(40.0, 0.0), rays=0)
