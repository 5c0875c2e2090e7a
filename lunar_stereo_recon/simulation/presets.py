"""Named kinds of lunar ground, as changes to `TerrainConfig`.

Slopes and Hurst exponents follow LOLA's global statistics: at 17 m the median bidirectional slope
is about 2 degrees in the maria and 7.5 in the highlands, and the maria have the lower Hurst
exponent (Rosenburg et al., J. Geophys. Res. 116, E02001, 2011). Rock counts span what the
Surveyor landers saw, from smooth mare to the blocky rim of Tycho.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.terrain import TerrainConfig


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
        TerrainConfig(0, hurst=0.76, roughness_m=0.04, tilt_deg=2.0, rock_density=0.08),
        sun_elevation_deg=25.0,
    ),
    'highland': SitePreset(
        TerrainConfig(
            0, hurst=0.95, roughness_m=0.06, tilt_deg=7.5, crater_density=0.9, rock_density=0.15
        ),
        sun_elevation_deg=25.0,
    ),
    # The sun's centre never rises above 1.5 degrees plus the local slope.
    'south_pole': SitePreset(
        TerrainConfig(
            0, hurst=0.95, roughness_m=0.05, tilt_deg=5.0, crater_density=0.8, rock_density=0.1
        ),
        sun_elevation_deg=3.0,
    ),
    'boulder_field': SitePreset(
        TerrainConfig(
            0,
            roughness_m=0.05,
            tilt_deg=4.0,
            crater_density=0.4,
            rock_density=0.8,
            rock_exponent=2.0,
            rock_max_m=2.5,
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
