"""Pictures of the rendered Moon as a rover's mast camera takes them, and a sheet of many."""

from __future__ import annotations

from collections.abc import Sequence
import math

import cv2
import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.camera import automatic_gain, expose, Sensor, Window
from lunar_stereo_recon.simulation.renderer import render
from lunar_stereo_recon.simulation.scene import Lighting, View
from lunar_stereo_recon.simulation.terrain import Terrain
from lunar_stereo_recon.simulation.traverse import attitude_on_ground

GreyImage = NDArray[np.uint8]

_HEIGHT_M = 1.6
_PITCH_DEG = -9.0
_FOCAL = 0.85  # of the image width, 61 degrees wide
_MARGIN = 6
_LABEL_ROWS = 26
_LABEL_COLUMNS = 132


def standing_view(terrain: Terrain, heading_deg: float, size: tuple[int, int]) -> View:
    """Return the camera of a rover that stands at the origin.

    Args:
        terrain: The ground.
        heading_deg: Direction of view, counterclockwise from x.
        size: Width and height, pixels.
    """
    width, height = size
    ground, rotation = attitude_on_ground(
        terrain, 0.0, 0.0, math.radians(heading_deg), math.radians(_PITCH_DEG)
    )
    position = torch.tensor([0.0, 0.0, ground + _HEIGHT_M])
    focal = _FOCAL * width
    return View(position, rotation, focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)


def picture(terrain: Terrain, view: View, lighting: Lighting, samples: int = 4) -> GreyImage:
    """Return what an automatically exposed camera takes, shape (H, W).

    Raises:
        InputError: No ground is in view, or none of it is lit.
    """
    seen = render(terrain, view, lighting, samples)
    # A film's response, as in the pictures that people know from the Moon.
    gain = automatic_gain(seen, 0.75, 0.97)
    sensor = Sensor(
        gain=0.75 * gain, response='gamma', read_noise_dn=0.05, vignetting=0.1, bits=16
    )
    window = Window(0, 0, view.width, view.height, view.width, view.height)
    image = expose(seen.radiance.cpu().numpy(), sensor, window, np.random.default_rng(0))
    return image.astype(np.uint8)


def contact_sheet(
    pictures: Sequence[Sequence[GreyImage]], rows: Sequence[str], columns: Sequence[str]
) -> GreyImage:
    """Return pictures of one size in rows and columns with labels.

    Raises:
        InputError: Labels and pictures do not fit each other.
    """
    if len(pictures) != len(rows) or any(len(row) != len(columns) for row in pictures):
        raise InputError(f'{len(rows)} by {len(columns)} labels do not fit the pictures')
    height, width = pictures[0][0].shape
    step_y, step_x = height + _MARGIN, width + _MARGIN
    sheet = np.full(
        (_LABEL_ROWS + len(rows) * step_y, _LABEL_COLUMNS + len(columns) * step_x), 255, np.uint8
    )
    for k, text in enumerate(columns):
        _write(sheet, text, _LABEL_COLUMNS + k * step_x + width // 2, _LABEL_ROWS // 2)
    for j, text in enumerate(rows):
        top = _LABEL_ROWS + j * step_y
        _write(sheet, text, _LABEL_COLUMNS // 2, top + height // 2)
        for k, image in enumerate(pictures[j]):
            left = _LABEL_COLUMNS + k * step_x
            sheet[top : top + height, left : left + width] = image
    return sheet


def _write(sheet: GreyImage, text: str, x: int, y: int) -> None:
    """Write text centred at a point."""
    style = {'fontFace': cv2.FONT_HERSHEY_SIMPLEX, 'fontScale': 0.5, 'thickness': 1}
    (width, height), _ = cv2.getTextSize(text, **style)
    cv2.putText(
        sheet, text, (x - width // 2, y + height // 2), color=0, lineType=cv2.LINE_AA, **style
    )
