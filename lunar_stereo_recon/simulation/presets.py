"""Named kinds of lunar ground, as changes to `TerrainConfig`.

What is published:
- Slope and Hurst exponent: at 17 m the median bidirectional slope is about 2 degrees in the maria
  and 7.5 in the highlands, and the maria have the lower exponent (LOLA; Rosenburg et al., J.
  Geophys. Res. 116, E02001, 2011).
- Craters: those of metres to some hundred metres are in equilibrium in the maria, at 10^-1.1 D^-2
  larger than D metres on a square metre (Trask, JPL TR 32-800, 1966; Moore et al., Moon and
  Planets 23, 231, 1980); `crater_density` 1 is that. Depth over diameter of fresh ones is 0.2
  (Pike, Geophys. Res. Lett. 1, 291, 1974), below a kilometre 0.1 to 0.2 (Sun et al., Icarus 309,
  61, 2018).
- Rocks: the covered area falls exponentially with size (Golombek and Rapp, J. Geophys. Res. 102,
  4117, 1997), on the Moon too (Chang'E-3: Di et al., Planet. Space Sci. 120, 103, 2016).
- Sun: at a pole its centre stands at most 1.5 degrees high, the tilt of the Moon's axis.
What is our choice, by eye against Surveyor, Apollo and Chang'E pictures: the roughness at 1 m,
which no orbiter resolves; the crater densities below 1, which stand for what a rover's camera
still tells from its surroundings; the numbers and wear of rocks; the suns away from the pole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig


@dataclass(frozen=True)
class SitePreset:
    """A kind of ground and the sun that goes with it.

    Attributes:
        ground: The terrain, with seed 0.
        sun_elevation_deg: A typical height of the sun above the horizon, degrees.
    """

    ground: TerrainConfig
    sun_elevation_deg: float

    def terrain_config(self, seed: int) -> TerrainConfig:
        """Return the terrain's configuration with another seed."""
        return replace(self.ground, seed=seed)


PRESETS = {
    'mare': SitePreset(
        TerrainConfig(
            0, hurst=0.76, roughness_m=0.04, tilt_deg=2.0, rock_density=0.08, rock_wear=0.5
        ),
        sun_elevation_deg=25.0,
    ),
    'highland': SitePreset(
        TerrainConfig(
            0,
            hurst=0.95,
            roughness_m=0.06,
            tilt_deg=7.5,
            crater_density=0.9,
            rock_density=0.15,
            rock_wear=0.6,
        ),
        sun_elevation_deg=25.0,
    ),
    # A rover's sites are the sunlit ridges: the local slope adds to the height of the sun.
    'south_pole': SitePreset(
        TerrainConfig(
            0,
            hurst=0.95,
            roughness_m=0.05,
            tilt_deg=5.0,
            crater_density=0.8,
            rock_density=0.1,
            rock_wear=0.6,
        ),
        sun_elevation_deg=3.0,
    ),
    # The rim of a young crater.
    'boulder_field': SitePreset(
        TerrainConfig(
            0,
            roughness_m=0.05,
            tilt_deg=4.0,
            crater_density=0.4,
            rock_area=0.08,
            rock_max_m=2.5,
            rock_brightness=1.15,
            rock_wear=0.35,
        ),
        sun_elevation_deg=20.0,
    ),
    'smooth': SitePreset(
        TerrainConfig(
            0,
            hurst=0.9,
            roughness_m=0.012,
            tilt_deg=1.0,
            crater_density=0.05,
            crater_depth=0.08,
            rock_density=0.01,
            rock_wear=0.5,
        ),
        sun_elevation_deg=25.0,
    ),
}


def site_preset(name: str) -> SitePreset:
    """Return a preset by its name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f'no terrain preset {name!r}; there are {", ".join(sorted(PRESETS))}')
    return PRESETS[name]
