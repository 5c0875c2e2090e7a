"""Sunlight found once for the whole ground: the same pictures as by tracing it for each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation.renderer import render  # noqa: E402
from lunar_stereo_recon.simulation.scene import DARK, Lighting, LIT, MIXED  # noqa: E402
from lunar_stereo_recon.simulation.sunlit import sunlit_ground  # noqa: E402


@pytest.mark.parametrize('samples', [1, 4])
def test_pictures_stay_the_same(small_terrain, view_from, samples):
    low = Lighting(8.0, 200.0)
    sunlit = sunlit_ground(small_terrain, low)
    states = np.concatenate(sunlit.cells)
    assert all((states == kind).mean() > 0.03 for kind in (DARK, LIT, MIXED))
    height = float(small_terrain.height_at(torch.tensor([-1.5]), torch.tensor([0.0]))[0])
    view = view_from((-1.5, 0.0, height + 1.0), pitch_deg=-15.0, size=(160, 120))
    traced = render(small_terrain, view, low, samples)
    looked_up = render(small_terrain, view, low, samples, sunlit=sunlit)
    assert torch.equal(torch.isnan(traced.depth), torch.isnan(looked_up.depth))
    assert 0.05 < traced.shadow.float().mean() < 0.95
    assert (traced.shadow != looked_up.shadow).float().mean() < 1e-3
    difference = (traced.radiance - looked_up.radiance).abs()
    assert (difference > 0.02 * traced.radiance.max()).float().mean() < 2e-3


def test_states_are_what_the_sun_does(shaped_terrain):
    """A wall of 0.5 m across x = 0 with the sun at 30 degrees behind it: 0.87 m of shadow."""
    ground = shaped_terrain(lambda x, y: np.where(np.abs(x) < 0.07, 0.5, 0.0))
    cells = sunlit_ground(ground, Lighting(30.0, 180.0)).cells[0].reshape(64, 64).numpy()
    middles = (np.arange(64) + 0.5) * 0.125 - 4
    row = cells[32]
    assert (row[(middles > 0.3) & (middles < 0.6)] == DARK).all()
    assert (row[(middles > 1.2) | (middles < -0.4)] == LIT).all()
    assert (row[np.abs(middles - 0.87) < 0.1] == MIXED).all()


def test_another_sun_is_refused(shaped_terrain, view_from):
    ground = shaped_terrain(lambda x, y: 0.0)
    sunlit = sunlit_ground(ground, Lighting(30.0, 180.0))
    brighter = dataclasses.replace(sunlit.lighting, ambient=0.01)
    render(ground, view_from(), brighter, 1, sunlit=sunlit)
    with pytest.raises(InputError, match='elevation 30 and azimuth 180 degrees, not for 31 and'):
        render(ground, view_from(), Lighting(31.0, 180.0), 1, sunlit=sunlit)
