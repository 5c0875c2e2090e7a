"""The hazard grid of a reconstruction: direction of gravity, place of the cells, message."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import Reconstruction
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.hazard import (
    GridLayout,
    hazard_map,
    HazardOptions,
    measured_points,
)
from lunar_stereo_recon.geometry.rotation import (
    BODY_FROM_OPTICAL,
    quaternion_from_rotation,
    rotation_from_quaternion,
    rotation_from_rpy,
    without_yaw,
)
from lunar_stereo_recon.messages import stamp_ns
from lunar_stereo_recon.result_messages import MakeMessage, occupancy_grid_message

# Attitudes come at 100 Hz and more; half a second of them waits for the image to be reconstructed.
ATTITUDES_KEPT = 400
MAX_ATTITUDE_AGE_NS = 500_000_000


@dataclass(frozen=True)
class GridFrame:
    """A frame with gravity down, its grid, and how the grid is placed in a message.

    Attributes:
        rotation: (3, 3), this frame from the optical frame.
        translation: (3,), the camera in this frame, metres.
        layout: The cells, in this frame.
        frame_id: Frame of the message: this one, or the optical frame.
    """

    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    layout: GridLayout
    frame_id: str

    def message(
        self,
        make: MakeMessage,
        result: Reconstruction,
        options: HazardOptions,
        min_confidence: float,
    ) -> Any:
        """Return the OccupancyGrid of a reconstruction, at the height of its ground.

        Args:
            make: Message factory.
            result: The reconstruction; its measured points count.
            options: What the rover can do.
            min_confidence: Points below it do not count.
        """
        measured = measured_points(result, min_confidence)
        points = measured.points @ self.rotation.T.astype(np.float32)
        # Far from the origin of a map float32 knows centimetres only: points stay near the camera.
        near = np.array([self.layout.x_m, self.layout.y_m, self.translation[2]])
        points += (self.translation - near).astype(np.float32)
        layout = replace(self.layout, x_m=0.0, y_m=0.0)
        found = hazard_map(points, layout, options, measured.plain)
        height = found.ground_m if math.isfinite(found.ground_m) else 0.0
        corner, axes = near + [0.0, 0.0, height], np.eye(3)
        if self.frame_id == result.frame_id:
            corner, axes = self.rotation.T @ (corner - self.translation), self.rotation.T
        return occupancy_grid_message(
            make,
            found.hazard,
            self.layout.cell_m,
            corner.tolist(),
            quaternion_from_rotation(axes).tolist(),
            result.stamp_ns,
            self.frame_id,
        )


def frame_of_transform(
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    frame_id: str,
    range_m: float,
    cell_m: float,
) -> GridFrame:
    """Return the grid around the camera in a frame of TF; cells keep their places as it moves.

    Args:
        rotation: (3, 3), frame from optical frame.
        translation: (3,), camera in the frame, metres.
        frame_id: The frame.
        range_m: How far the grid reaches to each side of the camera, metres.
        cell_m: Edge of a cell, metres.
    """
    half = math.ceil(range_m / cell_m)
    x_m, y_m = (float((math.floor(value / cell_m) - half) * cell_m) for value in translation[:2])
    layout = GridLayout(x_m, y_m, 2 * half, 2 * half, cell_m)
    return GridFrame(rotation, translation, layout, frame_id)


def frame_of_attitude(
    level_from_body: NDArray[np.float64],
    camera_pitch_deg: float,
    optical_frame: str,
    range_m: float,
    cell_m: float,
) -> GridFrame:
    """Return the grid ahead of a camera of which only the attitude is known.

    Args:
        level_from_body: (3, 3) to axes with z up from the body's (x forward, y left, z up).
        camera_pitch_deg: Pitch of the camera in the body; negative looks down.
        optical_frame: Frame of the message; the grid lies in it with its own axes.
        range_m: How far the grid reaches ahead, and to the left and right, metres.
        cell_m: Edge of a cell, metres.
    """
    mounting = rotation_from_rpy(0.0, -math.radians(camera_pitch_deg), 0.0)
    rotation = without_yaw(level_from_body @ mounting) @ BODY_FROM_OPTICAL
    cells = math.ceil(range_m / cell_m)
    layout = GridLayout(0.0, -cells * cell_m, cells, 2 * cells, cell_m)
    return GridFrame(rotation, np.zeros(3), layout, optical_frame)


class Attitudes:
    """The last messages of an Imu. Filled in one thread and read in another."""

    def __init__(self, topic: str) -> None:
        """Start with none; `topic` is for texts."""
        self._topic = topic
        self._messages: deque[Any] = deque(maxlen=ATTITUDES_KEPT)

    def add(self, message: Any) -> None:
        """Keep a `sensor_msgs` Imu."""
        self._messages.append(message)

    def clear(self) -> None:
        """Forget them: time went back."""
        self._messages.clear()

    def level_from_body(self, at_ns: int) -> NDArray[np.float64]:
        """Return the (3, 3) rotation to axes with z up, of the message nearest to a time.

        Raises:
            InputError: There is none within half a second, or its orientation is none.
        """
        messages = list(self._messages)
        if not messages:
            raise InputError(f'no Imu message has arrived on {self._topic}')
        nearest = min(messages, key=lambda message: abs(stamp_ns(message) - at_ns))
        gap_ns = abs(stamp_ns(nearest) - at_ns)
        if gap_ns > MAX_ATTITUDE_AGE_NS:
            raise InputError(
                f'the nearest Imu on {self._topic} is {gap_ns * 1e-9:.3g} s from the image; at '
                f'most {MAX_ATTITUDE_AGE_NS * 1e-9:g} s is allowed'
            )
        # By sensor_msgs/Imu: -1 says that there is no estimate of the orientation.
        if nearest.orientation_covariance[0] == -1:
            raise InputError(
                f'the Imu on {self._topic} has no orientation; a filter such as '
                'imu_filter_madgwick adds it'
            )
        orientation = nearest.orientation
        try:
            return rotation_from_quaternion(
                np.array([orientation.x, orientation.y, orientation.z, orientation.w])
            )
        except InputError as error:
            raise InputError(f'the Imu on {self._topic}: {error}') from error
