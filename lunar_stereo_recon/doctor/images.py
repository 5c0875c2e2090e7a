"""The images alone: exposure, saturation, noise, texture, and frames that do not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np

from lunar_stereo_recon.datatypes import FloatImage, StereoPair
from lunar_stereo_recon.doctor.findings import Finding, Severity

# Grey values of [0, 1].
WHITE, BLACK = 0.99, 0.02
# Shares of the pixels.
SATURATED_SHARE, SATURATED_FAULT = 0.1, 0.3
DARK_LEVEL, DARK_FAULT = 0.12, 0.04
LOW_CONTRAST = 0.1
NOISY = 0.04
SMOOTH_SHARE, SMOOTH_FAULT = 0.5, 0.9
# Texture must be this much above the noise, standard deviations over a window.
TEXTURE_WINDOW_PX = 9
TEXTURE_ABOVE_NOISE = 1.5
LEAST_TEXTURE = 0.003
# Of neighbouring pixels (Immerkaer 1996): its answer to white noise is six standard deviations.
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_MEDIAN_OF_NORMAL = 0.6745
_SIDES = ('left', 'right')


@dataclass(frozen=True)
class Exposure:
    """What one image's grey values say.

    Attributes:
        white, black: Shares of saturated and of black pixels.
        bright: 98th percentile, [0, 1].
        contrast: That minus the 2nd percentile.
        noise: Standard deviation of the noise, [0, 1].
        smooth: Share of the lit pixels without texture above the noise.
    """

    white: float
    black: float
    bright: float
    contrast: float
    noise: float
    smooth: float


def exposure_of(image: FloatImage, mask: np.ndarray | None = None) -> Exposure:
    """Return the exposure of (H, W) grey values; only where the camera saw something."""
    seen = np.ones(image.shape, np.bool_) if mask is None else mask
    values = image[seen] if seen.any() else image.ravel()
    low, high = np.percentile(values, [2, 98])
    lit = seen & (image > BLACK) & (image < WHITE)
    noise = smooth = 0.0
    if lit.any():
        response = np.abs(cv2.filter2D(image, cv2.CV_32F, _NOISE_KERNEL))[lit]
        noise = float(np.median(response)) / 6 / _MEDIAN_OF_NORMAL
        smooth = float(np.mean(texture_of(image)[lit] < least_texture(noise)))
    return Exposure(
        white=float(np.mean(values >= WHITE)),
        black=float(np.mean(values <= BLACK)),
        bright=float(high),
        contrast=float(high - low),
        noise=noise,
        smooth=smooth,
    )


def texture_of(image: FloatImage) -> FloatImage:
    """Return (H, W): standard deviation of the grey values over small windows."""
    size = (TEXTURE_WINDOW_PX, TEXTURE_WINDOW_PX)
    mean = cv2.blur(image, size)
    return np.sqrt(np.maximum(cv2.blur(image * image, size) - mean * mean, 0))


def least_texture(noise: float) -> float:
    """Return the standard deviation that something to match has at least."""
    return max(LEAST_TEXTURE, TEXTURE_ABOVE_NOISE * noise)


def check_images(pairs: Sequence[StereoPair]) -> list[Finding]:
    """Return what the grey values of a few pairs say, both sides."""
    sides = {
        'left': [exposure_of(pair.left, pair.left_mask) for pair in pairs],
        'right': [exposure_of(pair.right, pair.right_mask) for pair in pairs],
    }
    findings = []
    for side, found in sides.items():
        median = Exposure(
            **{
                entry.name: float(np.median([getattr(each, entry.name) for each in found]))
                for entry in fields(Exposure)
            }
        )
        findings += [_exposure(side, median), _texture(side, median)]
    return [*findings, *_frozen(pairs)]


def _exposure(side: str, found: Exposure) -> Finding:
    text = (
        f'{side}: {100 * found.white:.1f} % of the pixels are white, {100 * found.black:.0f} % '
        f'black; bright ones at {found.bright:.2f} of white, noise {100 * found.noise:.1f} %'
    )
    name = 'exposure'
    if found.white > SATURATED_SHARE:
        severity = Severity.FAULT if found.white > SATURATED_FAULT else Severity.WARNING
        return Finding(
            name,
            severity,
            text,
            'overexposed: nothing can be matched in white. Shorter exposure or less gain; with '
            "16-bit data check the parameter 'white_level'",
        )
    if found.bright < DARK_LEVEL:
        severity = Severity.FAULT if found.bright < DARK_FAULT else Severity.WARNING
        return Finding(
            name,
            severity,
            text,
            'underexposed: longer exposure or more gain. 12-bit data in 16 bits looks like this '
            "too: set the parameter 'white_level' (--white-level) to 4095",
        )
    if found.noise > NOISY:
        return Finding(
            name,
            Severity.WARNING,
            text,
            'noisy: longer exposure and less gain, and weaker JPEG compression',
        )
    return Finding(name, Severity.GOOD, text)


def _texture(side: str, found: Exposure) -> Finding:
    text = (
        f'{side}: {100 * found.smooth:.0f} % of the lit pixels have no texture above the noise; '
        f'contrast {found.contrast:.2f} of white'
    )
    name = 'texture'
    if found.contrast < LOW_CONTRAST or found.smooth > SMOOTH_SHARE:
        severity = Severity.FAULT if found.smooth > SMOOTH_FAULT else Severity.WARNING
        return Finding(
            name,
            severity,
            text,
            'little to match: check focus, dust and fog on the lens; lower sun, a lamp from the '
            'side or a projector makes texture. The confidence tells where depth is a guess',
        )
    return Finding(name, Severity.GOOD, text)


def _frozen(pairs: Sequence[StereoPair]) -> list[Finding]:
    findings = []
    if any(np.array_equal(pair.left, pair.right) for pair in pairs):
        findings.append(
            Finding(
                'one camera twice',
                Severity.FAULT,
                'left and right image are the same, pixel by pixel',
                'both topics carry one camera: look at the remappings and the driver',
            )
        )
    repeated = {side: _repetitions([getattr(pair, side) for pair in pairs]) for side in _SIDES}
    for side, same in repeated.items():
        if not same:
            continue
        # A simulator without noise repeats both views while the rover stands.
        both = all(repeated.values())
        findings.append(
            Finding(
                'frozen camera',
                Severity.NOTE if both else Severity.FAULT,
                f'{side}: {same} of {len(pairs) - 1} images equal the one before, pixel by pixel',
                'the driver repeats frames with new stamps, or a simulated rover stands still'
                if both
                else 'the driver repeats a frame with new stamps: restart the camera',
            )
        )
    return findings


def _repetitions(views: Sequence[FloatImage]) -> int:
    return sum(np.array_equal(one, other) for one, other in zip(views, views[1:], strict=False))
