"""Position of the sun over a lunar site at a time; needs no download and no kernel files.

Sun and Moon come from the analytic series of ERFA (the Earth's to some kilometres, the Moon's to
some ten); the Moon's axes follow the IAU working group's expressions (Archinal et al., Celest.
Mech. Dyn. Astron. 109, 101, 2011), which are the mean-Earth frame to 0.005 degrees. Heights above
the sphere, refraction (there is none) and light time (0.001 degrees) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
import math

import erfa
import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError

_J2000 = 2451545.0
# Arguments E1..E13: degrees at J2000 and degrees a day.
_ARGUMENTS = np.array(
    [
        (125.045, -0.0529921),
        (250.089, -0.1059842),
        (260.008, 13.0120009),
        (176.625, 13.3407154),
        (357.529, 0.9856003),
        (311.589, 26.4057084),
        (134.963, 13.0649930),
        (276.617, 0.3287146),
        (34.226, 1.7484877),
        (15.134, -0.1589763),
        (119.743, 0.0036096),
        (239.961, 0.1643573),
        (25.053, 12.9590088),
    ]
)
# Amplitudes of sin E (right ascension), cos E (declination) and sin E (prime meridian), degrees.
_RIGHT_ASCENSION = np.array(
    [-3.8787, -0.1204, 0.0700, -0.0172, 0, 0.0072, 0, 0, 0, -0.0052, 0, 0, 0.0043]
)
_DECLINATION = np.array(
    [1.5419, 0.0239, -0.0278, 0.0068, 0, -0.0029, 0.0009, 0, 0, 0.0008, 0, 0, -0.0009]
)
_MERIDIAN = np.array(
    [
        *(3.5610, 0.1208, -0.0642, 0.0158, 0.0252, -0.0066, -0.0047),
        *(-0.0046, 0.0028, 0.0052, 0.0040, 0.0019, -0.0044),
    ]
)


@dataclass(frozen=True)
class SunPosition:
    """Where the sun's centre stands.

    Attributes:
        elevation_deg: Above the level horizon; negative at night.
        azimuth_deg: Clockwise from north.
    """

    elevation_deg: float
    azimuth_deg: float

    @property
    def world_azimuth_deg(self) -> float:
        """Return the azimuth as `Lighting` takes it: counterclockwise from x (east)."""
        return (90.0 - self.azimuth_deg) % 360.0


def parse_utc(text: str) -> datetime:
    """Return a time given as ISO 8601, `2026-11-24T12:00:00Z`; without a zone it is UTC.

    Raises:
        InputError: The text is no such time.
    """
    try:
        # Python 3.10 does not read the Z.
        time = datetime.fromisoformat(text.strip().removesuffix('Z'))
    except ValueError as error:
        raise InputError(
            f'time is {text!r}; ISO 8601 is needed, like 2026-11-24T12:00:00Z'
        ) from error
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time


def sun_position(latitude_deg: float, longitude_deg: float, time: datetime) -> SunPosition:
    """Return where the sun stands over a site.

    Args:
        latitude_deg: Selenographic (mean Earth), north positive.
        longitude_deg: East positive.
        time: With a time zone.

    Raises:
        InputError: The site is not on the Moon, or the time has no zone or is far away.
    """
    if not (-90 <= latitude_deg <= 90 and -180 <= longitude_deg <= 360):
        raise InputError(
            f'site is at latitude {latitude_deg}, longitude {longitude_deg}; -90..90 and '
            '-180..360 degrees are needed'
        )
    latitude, longitude = math.radians(latitude_deg), math.radians(longitude_deg)
    sin_b, cos_b = math.sin(latitude), math.cos(latitude)
    sin_l, cos_l = math.sin(longitude), math.cos(longitude)
    axes = np.array(
        [
            [-sin_l, cos_l, 0.0],
            [-sin_b * cos_l, -sin_b * sin_l, cos_b],
            [cos_b * cos_l, cos_b * sin_l, sin_b],
        ]
    )
    east, north, up = axes @ sun_direction(time)
    return SunPosition(
        math.degrees(math.asin(min(max(up, -1.0), 1.0))),
        math.degrees(math.atan2(east, north)) % 360.0,
    )


def sun_direction(time: datetime) -> NDArray[np.float64]:
    """Return the unit vector from the Moon's centre to the sun in the Moon's own axes."""
    if time.tzinfo is None:
        raise InputError(f'time {time.isoformat()} has no zone; a time in UTC is needed')
    utc = time.astimezone(timezone.utc)
    if not 1960 <= utc.year <= 2100:
        raise InputError(f'time {utc.isoformat()} is outside 1960 to 2100')
    one, two = erfa.taitt(*erfa.utctai(*_julian_date(utc)))
    # Terrestrial time for barycentric dynamical time: they differ by 2 ms at most.
    earth_from_sun = erfa.epv00(one, two)[0]['p']
    moon_from_earth = erfa.moon98(one, two)['p']
    direction = _moon_axes(float(one - _J2000 + two)) @ -(earth_from_sun + moon_from_earth)
    return direction / np.linalg.norm(direction)


def _julian_date(utc: datetime) -> tuple[float, float]:
    seconds = utc.second + 1e-6 * utc.microsecond
    return erfa.dtf2d('UTC', utc.year, utc.month, utc.day, utc.hour, utc.minute, seconds)


def _moon_axes(days: float) -> NDArray[np.float64]:
    """Return (3, 3) Moon-fixed from ICRF axes, days after J2000 (dynamical time)."""
    centuries = days / 36525.0
    angles = np.radians(_ARGUMENTS[:, 0] + _ARGUMENTS[:, 1] * days)
    ascension = 269.9949 + 0.0031 * centuries + _RIGHT_ASCENSION @ np.sin(angles)
    declination = 66.5392 + 0.0130 * centuries + _DECLINATION @ np.cos(angles)
    meridian = 38.3213 + 13.17635815 * days - 1.4e-12 * days**2 + _MERIDIAN @ np.sin(angles)
    turn = _about_z(math.radians(ascension + 90.0))
    return _about_z(math.radians(meridian)) @ _about_x(math.radians(90.0 - declination)) @ turn


def _about_z(angle: float) -> NDArray[np.float64]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


def _about_x(angle: float) -> NDArray[np.float64]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])
