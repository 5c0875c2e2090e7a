"""The calibration alone: baseline and its unit, focal length against the image, raw or not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.doctor.findings import Finding, Severity
from lunar_stereo_recon.doubts import baseline_doubt, looks_raw
from lunar_stereo_recon.messages import StereoTopics

# Horizontal fields of view of rectified cameras, degrees.
NARROWEST_DEG, WIDEST_DEG = 8.0, 140.0
# A principal point is in the middle of the image, give or take this share of a side.
CENTRE_SHARE = 0.2
# fx and fy of a rectified camera; drivers that stretch their images differ.
ASPECT_SHARE = 0.1


def check_calibration(calibration: StereoCalibration, source: str) -> list[Finding]:
    """Return what the numbers of a rectified rig say.

    Args:
        calibration: The rig.
        source: Where it comes from, for texts.
    """
    return [
        _baseline(calibration, source),
        _focal_length(calibration, source),
        _principal_point(calibration, source),
    ]


def check_raw(
    topics: StereoTopics,
    left_info: Any,
    right_info: Any,
    rectify: bool | None,
    raw: bool | None = None,
) -> Finding:
    """Return whether the images are raw, and whether they are taken so.

    Args:
        topics: Names of the rig.
        left_info, right_info: camera_infos.
        rectify: What the user says; None follows the names and the distortion.
        raw: What those say; None finds it out.
    """
    distorted = any(bool(np.any(info.d)) for info in (left_info, right_info))
    if raw is None:
        raw = looks_raw(topics, left_info, right_info)
    name = 'raw or rectified'
    if raw and rectify is False:
        return Finding(
            name,
            Severity.WARNING,
            f'{topics.left_image} looks raw (D is not 0) and is taken as it is',
            'leave --no-rectify (rectify:=false, detect_raw:=false) away unless the images are '
            'rectified already; see the rows',
        )
    if raw or rectify:
        how = 'D of its camera_info is not 0' if distorted else 'as you say'
        return Finding(
            name,
            Severity.NOTE,
            f'{topics.left_image} has raw images ({how}): they are rectified here',
            'rectify:=true says so and publishes the rectified image; --no-rectify where the '
            'images are rectified already',
        )
    what = 'is called rectified' if distorted else 'has no distortion in its camera_info'
    return Finding(name, Severity.GOOD, f'{topics.left_image} {what}: taken as rectified')


def _baseline(calibration: StereoCalibration, source: str) -> Finding:
    doubt = baseline_doubt(calibration.baseline_m, source)
    text = f'{calibration.baseline_m:.4g} m'
    if doubt:
        return Finding(
            'baseline',
            Severity.FAULT,
            f'{text}, which is hardly the distance of two cameras',
            'P[3] of the right camera is -fx * baseline in pixels times metres; mend it, or set '
            "the parameter 'baseline' to metres. Every depth is wrong by the same factor",
        )
    return Finding('baseline', Severity.GOOD, text)


def _focal_length(calibration: StereoCalibration, source: str) -> Finding:
    view_deg = 2 * math.degrees(math.atan(calibration.width / 2 / calibration.fx))
    text = (
        f'fx {calibration.fx:.4g} px for images {calibration.width} px wide: a field of view of '
        f'{view_deg:.3g} deg'
    )
    if not NARROWEST_DEG <= view_deg <= WIDEST_DEG:
        return Finding(
            'focal length',
            Severity.WARNING,
            text,
            f'few lenses have that: is {source} in pixels, and for images of this size?',
        )
    if abs(calibration.fy / calibration.fx - 1) > ASPECT_SHARE:
        return Finding(
            'focal length',
            Severity.WARNING,
            f'{text}; fy is {calibration.fy:.4g} px',
            'fx and fy of a rectified camera are nearly equal: was the image stretched without '
            'its camera_info?',
        )
    return Finding('focal length', Severity.GOOD, text)


def _principal_point(calibration: StereoCalibration, source: str) -> Finding:
    places = {
        'left cx': calibration.cx / calibration.width,
        'right cx': calibration.cx_right / calibration.width,
        'cy': calibration.cy / calibration.height,
    }
    text = (
        f'left ({calibration.cx:.4g}, {calibration.cy:.4g}), right cx '
        f'{calibration.cx_right:.4g} of {calibration.width}x{calibration.height}'
    )
    off = {name: place for name, place in places.items() if abs(place - 0.5) > CENTRE_SHARE}
    if not off:
        return Finding('principal point', Severity.GOOD, text)
    factors = sorted(2 * place for place in off.values())
    resized = len(off) == len(places) and factors[-1] < 1.2 * factors[0]
    reason = (
        f'the camera_info is for images {factors[0]:.2g} times as large, or its binning is '
        'applied twice'
        if resized
        else 'a window of a larger sensor has it so; else the calibration is of another camera'
    )
    return Finding(
        'principal point',
        Severity.WARNING,
        f'{text}: far from the middle ({", ".join(off)})',
        f'{reason}. Resize or crop image and camera_info together ({source})',
    )
