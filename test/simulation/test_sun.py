"""The sun over lunar sites, against published positions."""

from __future__ import annotations

from datetime import datetime
import math

import pytest

pytest.importorskip('erfa')

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation.sun import (  # noqa: E402
    parse_utc,
    sun_direction,
    sun_position,
)

# Apollo Lunar Surface Journal, 'Sun and Earth: Altitudes and Azimuths at the Apollo Landing
# Sites' (Scotti and Fjeld, 2009); they state that ephemerides differ by up to 0.5 degrees.
APOLLO = [
    ('1969-07-20T20:17:39', 0.6875, 23.4333, 10.65, 88.81),
    ('1969-07-21T17:54:00', 0.6875, 23.4333, 21.65, 88.91),
    ('1969-11-19T06:54:36', -3.1975, -23.3856, 5.19, 91.16),
    ('1969-11-20T14:25:47', -3.1975, -23.3856, 21.11, 90.33),
]


def sub_solar_point(time: datetime) -> tuple[float, float]:
    """Return latitude and east longitude (degrees, -180..180) where the sun is in the zenith."""
    x, y, z = sun_direction(time)
    return math.degrees(math.asin(z)), math.degrees(math.atan2(y, x))


@pytest.mark.parametrize(('time', 'latitude', 'longitude', 'elevation', 'azimuth'), APOLLO)
def test_sun_over_apollo_sites(time, latitude, longitude, elevation, azimuth):
    sun = sun_position(latitude, longitude, parse_utc(time))
    assert sun.elevation_deg == pytest.approx(elevation, abs=0.1)
    assert sun.azimuth_deg == pytest.approx(azimuth, abs=0.3)
    assert (sun.world_azimuth_deg + sun.azimuth_deg) % 360 == pytest.approx(90.0)


def test_total_lunar_eclipse_has_the_sun_over_the_nearside():
    # Greatest eclipse of 2000-01-21: the Earth is between sun and Moon, so that the sun stands
    # where the Earth does on the Moon's sky, which librations move by up to 8 degrees.
    latitude, longitude = sub_solar_point(parse_utc('2000-01-21T04:43:30Z'))
    assert abs(latitude) < 1.6 and abs(longitude) < 8.5


def test_sub_solar_point_and_site_agree():
    time = parse_utc('2026-11-24T12:00:00Z')
    latitude, longitude = sub_solar_point(time)
    assert abs(latitude) < 1.6
    assert sun_position(latitude, longitude, time).elevation_deg == pytest.approx(90.0, abs=1e-4)
    assert sun_position(-latitude, longitude + 180, time).elevation_deg < -89.9
    # At the pole the sun's centre never rises above the tilt of the Moon's axis.
    assert abs(sun_position(-90.0, 0.0, time).elevation_deg) < 1.6


def test_the_sun_goes_round_once_in_a_synodic_month():
    first = sub_solar_point(parse_utc('2025-03-01T00:00:00'))[1]
    later = sub_solar_point(parse_utc('2025-03-02T00:00:00'))[1]
    assert (first - later) % 360 == pytest.approx(360 / 29.53, abs=0.3)


def test_wrong_times_and_places():
    with pytest.raises(InputError, match="'noon'; ISO 8601"):
        parse_utc('noon')
    with pytest.raises(InputError, match='no zone'):
        sub_solar_point(datetime(2026, 1, 1))
    with pytest.raises(InputError, match='outside 1960 to 2100'):
        sub_solar_point(parse_utc('1859-01-01'))
    with pytest.raises(InputError, match='latitude 91'):
        sun_position(91.0, 0.0, parse_utc('2026-01-01'))
