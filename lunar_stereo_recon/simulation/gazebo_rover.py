"""Facts about a Gazebo rover and its world for launch files; needs no simulator and no torch.

The rig is read from the rover's SDF, so that transforms and calibration have one source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
import xml.etree.ElementTree as ElementTree

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.arrays import load_arrays
from lunar_stereo_recon.files.bounded import read_json
from lunar_stereo_recon.files.rigs import FrameTransform, optical_frame
from lunar_stereo_recon.geometry.rotation import rotation_from_rpy

DESCRIPTION_FILE = 'world.json'
START_HEIGHTS_FILE = 'start_heights.npz'
# A rover starts this much above the highest ground below it, metres.
DROP_M = 0.02


@dataclass(frozen=True)
class RoverRig:
    """The stereo rig of a rover model.

    Attributes:
        left, right: Optical frames of the cameras in the base frame.
        baseline_m: Distance of the optical centres, metres.
    """

    left: FrameTransform
    right: FrameTransform
    baseline_m: float


def read_rig(model_sdf: Path, base: str = 'base_link') -> RoverRig:
    """Return the stereo rig of a model: the sensors `left_camera` and `right_camera`.

    Args:
        model_sdf: SDF file with one model.
        base: Link whose frame the transforms start from.

    Raises:
        InputError: The file is not such a model, or the cameras are not on one link.
    """
    try:
        model = ElementTree.parse(model_sdf).getroot().find('model')
    except OSError as error:
        raise InputError(f'cannot read the rover {model_sdf}: {error.strerror}') from error
    except ElementTree.ParseError as error:
        raise InputError(f'the rover {model_sdf} is not XML: {error}') from error
    if model is None:
        raise InputError(f'{model_sdf} has no <model>')
    links = {link.get('name', ''): link for link in model.findall('link')}
    if base not in links:
        raise InputError(f'{model_sdf} has no link {base!r}; it has {", ".join(links)}')
    left, right = (_camera(model_sdf, links, f'{side}_camera') for side in ('left', 'right'))
    if left[0] != right[0]:
        raise InputError(
            f'{model_sdf} has the left camera on link {left[0]!r} and the right one on '
            f'{right[0]!r}; Gazebo writes a baseline only for cameras of one link'
        )
    from_base = np.linalg.inv(_link_pose(model_sdf, links, base)) @ _link_pose(
        model_sdf, links, left[0]
    )
    _check_projection(model_sdf, right[1])
    offset = np.linalg.inv(_pose(left[1].find('pose'))) @ _pose(right[1].find('pose'))
    return RoverRig(
        _transform(base, left[1], from_base),
        _transform(base, right[1], from_base),
        float(np.linalg.norm(offset[:3, 3])),
    )


def read_world(folder: Path) -> dict[str, Any]:
    """Return the description of an exported world (`world.json`).

    Raises:
        InputError: The folder holds no complete world.
    """
    path = folder / DESCRIPTION_FILE
    try:
        description = read_json(path)
        missing = {'world', 'name', 'spawn'} - description.keys()
    except OSError as error:
        raise InputError(
            f'{folder} holds no world ({DESCRIPTION_FILE}: {error.strerror}); '
            '`lunar-stereo export-gazebo --out FOLDER` makes one'
        ) from error
    except (ValueError, AttributeError) as error:
        raise InputError(f'{path} is not the description of a world: {error}') from error
    if missing:
        raise InputError(f'{path} lacks {", ".join(sorted(missing))} of the world')
    return description


def start_height(folder: Path, x_m: float, y_m: float) -> float:
    """Return the height to put the rover down at a place of an exported world, metres.

    Raises:
        InputError: The place is outside the table of heights, or there is none.
    """
    path = folder / START_HEIGHTS_FILE
    table = load_arrays(path, 'heights of the ground', ('position_m', 'highest_m'))
    position, highest = table['position_m'], table['highest_m']
    if position.ndim != 1 or not len(position) or highest.shape != 2 * position.shape:
        raise InputError(f'{path}: {position.shape} places with {highest.shape} heights')
    if max(abs(x_m), abs(y_m)) > position[-1]:
        raise InputError(
            f'a start at x {x_m:g} y {y_m:g} m is outside of the ground whose heights are known, '
            f'+-{position[-1]:g} m'
        )
    row, column = (int(np.argmin(np.abs(position - value))) for value in (y_m, x_m))
    return float(highest[row, column]) + DROP_M


def _camera(
    path: Path, links: dict[str, ElementTree.Element], name: str
) -> tuple[str, ElementTree.Element]:
    for link_name, link in links.items():
        for sensor in link.findall('sensor'):
            if sensor.get('name') == name and sensor.get('type') == 'camera':
                return link_name, sensor
    raise InputError(f'{path} has no sensor {name!r} of type camera')


def _check_projection(path: Path, sensor: ElementTree.Element) -> None:
    for name in ('p_fx', 'tx'):
        if sensor.find(f'camera/lens/projection/{name}') is None:
            raise InputError(
                f'{path}: sensor {sensor.get("name")!r} has no <{name}> in lens/projection; '
                'Gazebo renders with a wrong default where one of the values is missing'
            )


def _transform(
    base: str, sensor: ElementTree.Element, link_in_base: NDArray[np.float64]
) -> FrameTransform:
    pose = link_in_base @ _pose(sensor.find('pose'))
    name = sensor.get('name', '').removesuffix('_camera')
    frame = sensor.findtext('camera/optical_frame_id') or f'{name}_camera_optical_frame'
    return optical_frame(base, frame, pose)


def _link_pose(
    path: Path, links: dict[str, ElementTree.Element], name: str
) -> NDArray[np.float64]:
    """Return the (4, 4) pose of a link in its model, following relative_to."""
    pose, seen = np.eye(4), set()
    while name:
        if name not in links or name in seen:
            raise InputError(f'{path}: the pose of link {name!r} leads nowhere')
        seen.add(name)
        element = links[name].find('pose')
        pose = _pose(element) @ pose
        name = '' if element is None else element.get('relative_to', '')
    return pose


def _pose(element: ElementTree.Element | None) -> NDArray[np.float64]:
    """Return the (4, 4) matrix of an SDF <pose>: x y z roll pitch yaw, metres and radians."""
    matrix = np.eye(4)
    if element is not None and element.text:
        x, y, z, roll, pitch, yaw = (float(value) for value in element.text.split())
        matrix[:3, :3] = rotation_from_rpy(roll, pitch, yaw)
        matrix[:3, 3] = x, y, z
    return matrix
