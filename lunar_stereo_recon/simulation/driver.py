"""Drives a rover over a terrain without leaving the ground that can be rendered."""

from __future__ import annotations

from dataclasses import replace
import math

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.terrain import Terrain
from lunar_stereo_recon.simulation.traverse import check_pose, moved, RoverPose, TraverseConfig

# How fast the rover turns away from what it cannot pass.
ESCAPE_TURN_RAD_S = math.radians(20.0)
# So that a straight drive does not go to and fro on one line.
PAST_THE_MIDDLE_RAD = math.radians(35.0)
# Within this of the middle's direction, the middle is no way out.
ESCAPED_RAD = math.radians(45.0)


class Driver:
    """Moves a rover step by step.

    Attributes:
        pose: Where the rover is; its cameras can always be rendered.
        obstacle: Why the last step did not go ahead; '' where it did.
    """

    def __init__(self, config: TraverseConfig, terrain: Terrain, start: RoverPose) -> None:
        """Put the rover at its start.

        Args:
            config: The rig and its faults.
            terrain: The ground.
            start: First pose.

        Raises:
            InputError: It cannot stand there.
        """
        check_pose(config, terrain, start)
        self.pose = start
        self.obstacle = ''
        self._config = config
        self._terrain = terrain
        self._escape_rad: float | None = None

    def obey(self, seconds: float, speed_m_s: float, turn_rad_s: float) -> None:
        """Take a step under command: what cannot be passed stops the rover, but not its turn."""
        self._escape_rad = None
        self._step(seconds, speed_m_s, turn_rad_s)

    def roam(self, seconds: float, speed_m_s: float, turn_rad_s: float) -> None:
        """Take a step on the rover's own: it turns away from what it cannot pass."""
        if self._escape_rad is None:
            self._step(seconds, speed_m_s, turn_rad_s)
            if self.obstacle:
                self._escape_rad = self._way_out(backwards=speed_m_s < 0)
            return
        left = math.remainder(self._escape_rad - self.pose.heading_rad, 2 * math.pi)
        turn = math.copysign(min(abs(left), ESCAPE_TURN_RAD_S * seconds), left)
        self._step(seconds, 0.0, turn / seconds)
        if turn == left:
            self._escape_rad = None

    def _way_out(self, backwards: bool) -> float:
        """Return a heading to try: past the middle, or aside where it was headed for already."""
        pose = self.pose
        inwards = math.atan2(-pose.y_m, -pose.x_m) + (math.pi if backwards else 0.0)
        if abs(math.remainder(inwards - pose.heading_rad, 2 * math.pi)) > ESCAPED_RAD:
            return inwards + PAST_THE_MIDDLE_RAD
        return pose.heading_rad + math.pi / 2

    def _step(self, seconds: float, speed_m_s: float, turn_rad_s: float) -> None:
        """Go ahead, else turn on the spot, else stand; time goes on all the same."""
        ahead = moved(self.pose, seconds, speed_m_s, turn_rad_s)
        turned = replace(ahead, x_m=self.pose.x_m, y_m=self.pose.y_m)
        self.obstacle = ''
        for pose in (ahead, turned):
            try:
                check_pose(self._config, self._terrain, pose)
            except InputError as error:
                self.obstacle = self.obstacle or str(error)
                continue
            self.pose = pose
            return
        self.pose = replace(self.pose, time_s=ahead.time_s)
