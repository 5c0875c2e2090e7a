"""A stereo rover's drive over the terrain, frame by frame or as a ROS 2 bag.

`python -m lunar_stereo_recon.simulation.traverse --out DIR --seed 10` writes the bag that the demo
replays. World frame (`map`): x east, y north, z up; poses are of the left camera's optical frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
import math
from pathlib import Path
import sys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
import torch
from tqdm import tqdm

from lunar_stereo_recon.bags.writer import (
    BagWriter,
    make_message,
    pose_message,
    transform_message,
)
from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.rotation import quaternion_from_rotation
from lunar_stereo_recon.result_messages import camera_info_message, image_message
from lunar_stereo_recon.simulation.camera import (
    automatic_gain,
    camera_rotation,
    expose,
    Motion,
    right_view,
    Sensor,
    Window,
)
from lunar_stereo_recon.simulation.camera_faults import CameraFaults
from lunar_stereo_recon.simulation.renderer import check_camera
from lunar_stereo_recon.simulation.rock_mesh import joined, RockMeshes
from lunar_stereo_recon.simulation.scene import Box, Hapke, Lighting, Rendering, SunlitGround, View
from lunar_stereo_recon.simulation.terrain import make_terrain, Terrain
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig

MAP_FRAME = 'map'
SIDES = ('left', 'right')
CAMERA_FRAMES = ('left_camera_optical_frame', 'right_camera_optical_frame')
# A second whose number is easy to recognise; the Moon has no calendar of its own.
START_STAMP_NS = 1_800_000_000 * 1_000_000_000
# Half of the length and width over which the ground's slope is taken, metres.
_HALF_BASE_M = 0.6
_HALF_TRACK_M = 0.5
# What a camera may move during its exposure must be over the fine ground, too.
_MARGIN_M = 0.3

SMALL_ROVER = (
    Box((-0.35, 0.0, 0.55), (0.45, 0.30, 0.16)),
    Box((-0.10, 0.0, 1.00), (0.03, 0.03, 0.36)),
    Box((-0.12, 0.0, 1.40), (0.05, 0.24, 0.06)),
    Box((0.05, 0.40, 0.15), (0.15, 0.06, 0.15)),
    Box((0.05, -0.40, 0.15), (0.15, 0.06, 0.15)),
    Box((-0.75, 0.40, 0.15), (0.15, 0.06, 0.15)),
    Box((-0.75, -0.40, 0.15), (0.15, 0.06, 0.15)),
)


@dataclass(frozen=True)
class Rig:
    """A rectified stereo camera on a mast.

    Attributes:
        calibration: Intrinsics and baseline.
        height_m: Height of the cameras above the ground, metres.
        pitch_deg: Angle of the optical axes above the rover's level; negative looks down.
    """

    calibration: StereoCalibration
    height_m: float = 1.4
    pitch_deg: float = -16.0


@dataclass(frozen=True)
class TraverseConfig:
    """A drive along an arc over a terrain.

    Attributes:
        terrain: The ground.
        rig: The cameras.
        lighting: Sun, ambient light and reflectance.
        frames: Number of stereo pairs.
        rate_hz: Pairs a second.
        speed_m_s: Speed along the arc.
        turn_deg_s: Change of heading, counterclockwise.
        start_m: x and y of the start, metres.
        heading_deg: Heading at the start, counterclockwise from x.
        rover: Boxes that cast the rover's shadow.
        sensor: Both cameras' sensor; a gain of 0 is replaced by automatic exposure.
        samples: Rays a pixel.
        faults: What the cameras do wrong. Where it names no motion, the rover's own drive blurs
            the images and carries a late right camera away.
        parts: Parts of the rover that its cameras see, in the frame of `rover_frame`; only on a
            CPU.
    """

    terrain: TerrainConfig
    rig: Rig
    lighting: Lighting
    frames: int = 18
    rate_hz: float = 2.0
    speed_m_s: float = 0.3
    turn_deg_s: float = 1.5
    start_m: tuple[float, float] = (-4.0, 0.0)
    heading_deg: float = 0.0
    rover: tuple[Box, ...] = SMALL_ROVER
    sensor: Sensor = field(default_factory=lambda: Sensor(gain=0.0))
    samples: int = 4
    faults: CameraFaults = field(default_factory=CameraFaults)
    parts: RockMeshes | None = None


@dataclass(frozen=True)
class RoverPose:
    """Where a rover is on its way.

    Attributes:
        time_s: Since the start.
        x_m, y_m: Point on the ground between the cameras.
        heading_rad: Counterclockwise from x.
    """

    time_s: float
    x_m: float
    y_m: float
    heading_rad: float


@dataclass(frozen=True)
class TraverseFrame:
    """One stereo pair of a drive with its truth.

    Attributes:
        stamp_ns: Nanoseconds since the epoch.
        left, right: (H, W) uint8 rectified images, unless the faults say otherwise.
        depth: (H, W) float32, metres along the left optical axis, NaN in the sky.
        shadow: (H, W) bool, no direct sunlight.
        position_m: (3,) left optical centre in the map.
        rotation: (3, 3) map from left optical frame.
    """

    stamp_ns: int
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    depth: NDArray[np.float32]
    shadow: NDArray[np.bool_]
    position_m: NDArray[np.float64]
    rotation: NDArray[np.float64]


def demo_traverse(seed: int) -> TraverseConfig:
    """Return the drive of the demo bag: cratered ground with rocks under a sun from the side."""
    calibration = StereoCalibration(
        fx=460.0,
        fy=460.0,
        cx=319.5,
        cy=239.5,
        cx_right=319.5,
        baseline_m=0.3,
        width=640,
        height=480,
    )
    return TraverseConfig(
        terrain=TerrainConfig(
            seed, roughness_m=0.04, crater_density=0.7, rock_density=0.5, tilt_deg=2.0
        ),
        rig=Rig(calibration),
        lighting=Lighting(22.0, 115.0, ambient=0.004, bounce=0.004, hapke=Hapke()),
        sensor=Sensor(gain=0.0, shot_noise_dn=1.0, read_noise_dn=0.35, psf_sigma_px=0.45),
    )


def ground_plane(
    terrain: Terrain, x_m: float, y_m: float, heading_rad: float
) -> tuple[float, float, float]:
    """Return height (m), slope ahead and slope to the left of the ground under a rover.

    Args:
        terrain: The ground.
        x_m, y_m: Centre of the rover.
        heading_rad: Its heading, counterclockwise from x.
    """
    cos, sin = math.cos(heading_rad), math.sin(heading_rad)
    # A plane through many points: single stones below a wheel do not tilt a rover with bogies.
    steps = torch.linspace(-1.0, 1.0, 7)
    along, across = torch.meshgrid(_HALF_BASE_M * steps, _HALF_TRACK_M * steps, indexing='ij')
    along, across = along.reshape(-1), across.reshape(-1)
    x = x_m + along * cos - across * sin
    y = y_m + along * sin + across * cos
    z = terrain.height_at(x, y)
    ahead = float((along * z).sum() / along.square().sum())
    left = float((across * z).sum() / across.square().sum())
    return float(z.median()), ahead, left


def attitude_on_ground(
    terrain: Terrain,
    x_m: float,
    y_m: float,
    heading_rad: float,
    pitch_rad: float,
    roll_rad: float = 0.0,
) -> tuple[float, torch.Tensor]:
    """Return the ground's height (m) and the (3, 3) camera rotation of a rover that stands on it.

    Args:
        terrain: The ground.
        x_m, y_m: Where the rover stands.
        heading_rad: Its heading, counterclockwise from x.
        pitch_rad, roll_rad: Attitude of the camera relative to the rover's level.
    """
    height, ahead, left = ground_plane(terrain, x_m, y_m, heading_rad)
    rotation = camera_rotation(
        heading_rad, pitch_rad + math.atan(ahead), roll_rad + math.atan(left)
    )
    return height, rotation


def rover_frame(
    left: View, heading_rad: float, height_m: float, baseline_m: float
) -> torch.Tensor:
    """Return (4, 4) map from rover frame: upright on the ground below the middle of the rig."""
    pose = torch.eye(4)
    pose[0, 0], pose[0, 1] = math.cos(heading_rad), -math.sin(heading_rad)
    pose[1, 0], pose[1, 1] = math.sin(heading_rad), math.cos(heading_rad)
    pose[:3, 3] = left.position_m + 0.5 * baseline_m * left.rotation[:, 0]
    pose[2, 3] = left.position_m[2] - height_m
    return pose


def drive(config: TraverseConfig) -> list[RoverPose]:
    """Return the poses along the arc, one for each frame."""
    step_s, turn_rad_s = 1.0 / config.rate_hz, math.radians(config.turn_deg_s)
    poses = [RoverPose(0.0, *config.start_m, math.radians(config.heading_deg))]
    for number in range(1, config.frames):
        pose = moved(poses[-1], step_s, config.speed_m_s, turn_rad_s)
        poses.append(replace(pose, time_s=number * step_s))
    return poses[: config.frames]


def left_camera(terrain: Terrain, rig: Rig, pose: RoverPose) -> View:
    """Return the left camera of a rig on a rover that stands at a pose."""
    height, rotation = attitude_on_ground(
        terrain, pose.x_m, pose.y_m, pose.heading_rad, math.radians(rig.pitch_deg)
    )
    middle = torch.tensor([pose.x_m, pose.y_m, height + rig.height_m])
    c = rig.calibration
    position = middle - 0.5 * c.baseline_m * rotation[:, 0]
    return View(position, rotation, c.fx, c.fy, c.cx, c.cy, c.width, c.height)


def render_traverse(
    config: TraverseConfig, terrain: Terrain | None = None
) -> Iterator[TraverseFrame]:
    """Yield the frames of a drive, one after the other.

    Args:
        config: The drive.
        terrain: The ground if it is there already; None makes it from the configuration.

    Raises:
        InputError: The drive leaves the finest grid, or a camera is below the ground.
    """
    terrain = make_terrain(config.terrain) if terrain is None else terrain
    # One exposure for the whole drive, as a rover keeps it while the sun stands still.
    gain = config.sensor.gain
    for number, pose in enumerate(drive(config)):
        frame, gain = render_frame(config, terrain, pose, gain, number)
        yield frame


def render_frame(
    config: TraverseConfig,
    terrain: Terrain,
    pose: RoverPose,
    gain: float,
    number: int,
    sunlit: SunlitGround | None = None,
) -> tuple[TraverseFrame, float]:
    """Return what the rover sees at a pose, and the gain that was used.

    Args:
        config: Rig, light, rover, sensor, samples and faults; of the drive, speed and turn.
        terrain: The ground; rendered on its device.
        pose: Where the rover is.
        gain: Gain of the sensor; 0 is automatic.
        number: Number of the frame; the noise follows from it.
        sunlit: See `renderer.render`.

    Raises:
        InputError: The pose is off the finest grid, or a camera is below the ground.
    """
    c, lighting = config.rig.calibration, config.lighting
    faults = _with_motion(config, terrain, pose)
    left, right = _cameras(config, faults, terrain, pose)
    stand = rover_frame(left, pose.heading_rad, config.rig.height_m, c.baseline_m)
    if config.parts is not None:
        parts = config.parts.moved(stand.numpy())
        terrain = replace(terrain, rocks=joined([terrain.rocks, parts]))
    seen = []
    for view in (left, right):
        lit = faults.render(terrain, view, lighting, config.samples, config.rover, stand, sunlit)
        seen.append(faults.lit_by_lamps(lit, terrain, view, left, lighting))
    gain = gain if gain > 0.0 else automatic_gain(seen[0])
    images = _images(config, seen, gain, number)
    frame = TraverseFrame(
        stamp_ns=START_STAMP_NS + round(pose.time_s * 1e9),
        left=images[0],
        right=images[1],
        depth=seen[0].depth.cpu().numpy(),
        shadow=seen[0].shadow.cpu().numpy(),
        position_m=left.position_m.double().numpy(),
        rotation=left.rotation.double().numpy(),
    )
    return frame, gain


def check_pose(config: TraverseConfig, terrain: Terrain, pose: RoverPose) -> None:
    """Refuse a pose that cannot be rendered.

    Raises:
        InputError: A camera would be off the finest grid, would come less than `_MARGIN_M` from
            its end if the rover turned on the spot, or would be below the ground.
    """
    around_m = _MARGIN_M + 0.5 * config.rig.calibration.baseline_m
    reach = terrain.levels[0].half_size_m - around_m
    if max(abs(pose.x_m), abs(pose.y_m)) > reach:
        raise InputError(
            f'the rover would be at x {pose.x_m:.2f} m, y {pose.y_m:.2f} m; the fine ground ends '
            f'at {reach:.2f} m'
        )
    for view in _cameras(config, _with_motion(config, terrain, pose), terrain, pose):
        check_camera(terrain, view)


def _cameras(
    config: TraverseConfig, faults: CameraFaults, terrain: Terrain, pose: RoverPose
) -> tuple[View, View]:
    """Return the left and the right camera of a rover that stands at a pose."""
    left = replace(
        left_camera(terrain, config.rig, pose), distortion=tuple(config.faults.distortion)
    )
    return left, faults.right(right_view(left, config.rig.calibration.baseline_m))


def _with_motion(config: TraverseConfig, terrain: Terrain, pose: RoverPose) -> CameraFaults:
    """Return the faults with the motion that the cameras have on the rover."""
    faults = config.faults
    if faults.motion != Motion() or (faults.exposure_s == 0 and faults.time_offset_s == 0):
        return faults
    # In the camera's axes, from where it stands a moment before and after.
    step_s = 0.05
    turn = math.radians(config.turn_deg_s)
    before, after = (
        left_camera(terrain, config.rig, moved(pose, seconds, config.speed_m_s, turn))
        for seconds in (-step_s, step_s)
    )
    now = left_camera(terrain, config.rig, pose).rotation.double()
    velocity = now.T @ (after.position_m - before.position_m).double() / (2 * step_s)
    spin = now.T @ after.rotation.double() @ before.rotation.double().T @ now
    x, y, z = (float(v) for v in velocity)
    turns = np.degrees(cv2.Rodrigues(spin.numpy())[0][:, 0]) / (2 * step_s)
    about_x, about_y, about_z = (float(v) for v in turns)
    return replace(faults, motion=Motion((x, y, z), (about_x, about_y, about_z)))


def moved(pose: RoverPose, seconds: float, speed_m_s: float, turn_rad_s: float) -> RoverPose:
    """Return the pose after a time at constant speed and turn, counterclockwise."""
    turned = pose.heading_rad + turn_rad_s * seconds
    middle = 0.5 * (pose.heading_rad + turned)
    return RoverPose(
        pose.time_s + seconds,
        pose.x_m + speed_m_s * seconds * math.cos(middle),
        pose.y_m + speed_m_s * seconds * math.sin(middle),
        turned,
    )


def write_bag(
    out: Path, config: TraverseConfig, depth_every: int = 3, depth_bits: int = 12
) -> dict[str, int]:
    """Write a drive as a ROS 2 bag (mcap) and return the number of messages per topic.

    Topics: /stereo/left|right/image_rect and camera_info, /ground_truth/depth (32FC1, metres, 0
    where there is no surface), /ground_truth/pose (PoseStamped of the left optical frame in
    `map`) and /tf.

    Args:
        out: Directory of the new bag; a bag that is there is replaced.
        config: The drive.
        depth_every: Ground-truth depth with every n-th frame (it is the largest part).
        depth_bits: Bits kept of the depth's mantissa (12: relative error 1.2e-4), which lets
            it compress.

    Raises:
        InputError: `out` exists and is not a bag, or `depth_every` is not positive.
    """
    if depth_every < 1:
        raise InputError(f'depth with every {depth_every}-th frame; 1 or more is needed')
    with BagWriter(out, overwrite=True) as bag:
        frames = tqdm(render_traverse(config), total=config.frames, unit='frame')
        for number, frame in enumerate(frames):
            with_depth = number % depth_every == 0
            faults = config.faults
            write_frame(
                bag,
                frame,
                config.rig.calibration,
                with_depth,
                depth_bits,
                faults.encoding,
                faults.distortion,
            )
        return bag.counts


def write_frame(
    bag: BagWriter,
    frame: TraverseFrame,
    calibration: StereoCalibration,
    with_depth: bool,
    depth_bits: int = 12,
    encoding: str = 'mono8',
    distortion: Sequence[float] = (),
) -> None:
    """Write a pair with its calibration and truth to a bag; `write_bag` names the topics.

    Args:
        bag: The bag.
        frame: Images and truth.
        calibration: Calibration of the rectified images.
        with_depth: Write the depth too.
        depth_bits: See `write_bag`.
        encoding: ROS's name of the images' encoding.
        distortion: k1, k2, p1, p2, k3 of both cameras; such images go to `image_raw`.
    """
    _write_images(bag, frame, calibration, encoding, distortion)
    _write_pose(bag, frame)
    if with_depth:
        depth = rounded(np.nan_to_num(frame.depth, nan=0.0), depth_bits)
        message = image_message(make_message, depth, '32FC1', frame.stamp_ns, CAMERA_FRAMES[0])
        bag.write('/ground_truth/depth', message, frame.stamp_ns)


def rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return values rounded to a number of mantissa bits; NaN stays NaN.

    The zeros that this leaves in each number compress well.
    """
    drop = 23 - bits
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    half, mask = np.uint32(1 << (drop - 1)), np.uint32((0xFFFFFFFF >> drop) << drop)
    short = ((raw + half) & mask).view(np.float32)
    return np.where(np.isfinite(values), short, values)


def _images(config: TraverseConfig, seen: list[Rendering], gain: float, number: int) -> Any:
    c = config.rig.calibration
    window = Window(0, 0, c.width, c.height, c.width, c.height)
    sensor = config.faults.sensor(replace(config.sensor, gain=gain))
    rng = np.random.default_rng([config.terrain.seed, number, 0x1A6E])
    return [expose(view.radiance.cpu().numpy(), sensor, window, rng) for view in seen]


def _write_images(
    bag: BagWriter,
    frame: TraverseFrame,
    calibration: StereoCalibration,
    encoding: str,
    distortion: Sequence[float],
) -> None:
    # Calibration first: a reader that has the images of a stamp has all it needs.
    for side, name in zip(SIDES, CAMERA_FRAMES, strict=True):
        info = camera_info_message(
            make_message, calibration, frame.stamp_ns, name, right=side == 'right'
        )
        if distortion:
            info = replace(info, d=np.array(distortion, np.float64))
        bag.write(f'/stereo/{side}/camera_info', info, frame.stamp_ns)
    topic = 'image_raw' if distortion else 'image_rect'
    for side, image, name in zip(SIDES, (frame.left, frame.right), CAMERA_FRAMES, strict=True):
        picture = image_message(make_message, image, encoding, frame.stamp_ns, name)
        bag.write(f'/stereo/{side}/{topic}', picture, frame.stamp_ns)


def _write_pose(bag: BagWriter, frame: TraverseFrame) -> None:
    orientation = quaternion_from_rotation(frame.rotation)
    place = (frame.position_m, orientation, frame.stamp_ns, MAP_FRAME)
    bag.write('/ground_truth/pose', pose_message(*place), frame.stamp_ns)
    bag.write('/tf', transform_message(*place, CAMERA_FRAMES[0]), frame.stamp_ns)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the demo drive; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, required=True, help='directory of the new bag')
    parser.add_argument('--seed', type=int, default=10)
    parser.add_argument('--frames', type=int, default=18)
    parser.add_argument('--depth-every', type=int, default=3, help='depth with every n-th frame')
    args = parser.parse_args(argv)
    config = demo_traverse(args.seed)
    config = TraverseConfig(**{**vars(config), 'frames': args.frames})
    for topic, count in write_bag(args.out, config, args.depth_every).items():
        print(f'{topic}: {count}')
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f'{args.out}: {size / 1e6:.1f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
