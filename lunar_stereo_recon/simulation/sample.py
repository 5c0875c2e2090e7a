"""One rendered stereo pair with exact ground truth, from a scene that was drawn before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import atomic_file
from lunar_stereo_recon.simulation.camera import expose, right_view, Window
from lunar_stereo_recon.simulation.camera_faults import CameraFaults
from lunar_stereo_recon.simulation.renderer import hapke_reflectance, hidden_from, render
from lunar_stereo_recon.simulation.rock_mesh import joined, RockMeshes
from lunar_stereo_recon.simulation.scene import Lighting, Rendering, View
from lunar_stereo_recon.simulation.scene_drawing import (
    log_uniform,
    random_sign,
    sample_dust,
    sample_sensor,
    SceneConfig,
)
from lunar_stereo_recon.simulation.terrain import Terrain
from lunar_stereo_recon.simulation.traverse import attitude_on_ground, rounded, rover_frame

NO_FAULTS = CameraFaults()
# The largest disparity that the flight student matches, as a fraction of the image width.
_MAX_DISPARITY = 180 / 640
# A rover turns back from steeper ground.
_MAX_TILT_RAD = math.radians(20.0)


@dataclass(frozen=True)
class Sample:
    """One rendered pair.

    Attributes:
        left, right: (H, W) uint8 images.
        disparity: (H, W) float32, pixels, left view; NaN in the sky.
        shadow: (H, W) bool, no direct sunlight at the left pixel.
        occlusion: (H, W) uint8, 0 seen in the right image, 1 hidden, 2 outside its frame.
        intrinsics: (3, 3) float64 matrix of both cameras for this window, pixels.
        baseline_m: Metres.
        meta: How the pair was made (JSON types only).
        depth_left, depth_right: (H, W) float32, metres along each camera's own axis, NaN in the
            sky. They and the poses are not part of the `.npz` file.
        poses: (2, 4, 4) float64 world from left and from right camera, metres, OpenCV axes.
        intrinsics_right: (3, 3) float64 true matrix of the right camera, pixels.
        rock: (H, W) bool, on a rock; None where rocks are part of the heightfield.
        parts: (H, W) bool, on a part of the rover; None where none was put into view.
    """

    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    disparity: NDArray[np.float32]
    shadow: NDArray[np.bool_]
    occlusion: NDArray[np.uint8]
    intrinsics: NDArray[np.float64]
    baseline_m: float
    meta: dict[str, Any]
    depth_left: NDArray[np.float32]
    depth_right: NDArray[np.float32]
    poses: NDArray[np.float64]
    intrinsics_right: NDArray[np.float64]
    rock: NDArray[np.bool_] | None = None
    parts: NDArray[np.bool_] | None = None

    @property
    def disparity_right(self) -> NDArray[np.float32]:
        """Return the right view's disparity (H, W), pixels, NaN in the sky."""
        return (self.intrinsics_right[0, 0] * self.baseline_m / self.depth_right).astype(
            np.float32
        )

    def save(self, path: Path) -> None:
        """Write the sample to an .npz file; the file appears only when it is complete."""
        masks = {'rock': self.rock, 'parts': self.parts}
        known: dict[str, Any] = {name: mask for name, mask in masks.items() if mask is not None}
        with atomic_file(path) as file:
            np.savez_compressed(
                file,
                left=self.left,
                right=self.right,
                disparity=rounded(self.disparity, 15),
                shadow=self.shadow,
                occlusion=self.occlusion,
                intrinsics=self.intrinsics,
                baseline_m=np.float64(self.baseline_m),
                meta=np.array(json.dumps(self.meta)),
                **known,
            )


def render_sample(
    terrain: Terrain,
    scene: SceneConfig,
    rng: np.random.Generator,
    size: tuple[int, int] | None = None,
    samples: int = 2,
    faults: CameraFaults = NO_FAULTS,
    rendered: Terrain | None = None,
    parts: RockMeshes | None = None,
) -> Sample | None:
    """Return a rendered pair, or None where the view is not usable.

    Args:
        terrain: The ground, on the CPU: where the rover stands.
        scene: Camera, light and pose.
        rng: Source of the window's place and of the sensor.
        size: Width and height of a random window; None renders the whole frame.
        samples: Rays a pixel.
        faults: What the cameras do wrong.
        rendered: The same ground on the device that renders it; None: the CPU.
        parts: Parts of the rover in view, in the frame of `traverse.rover_frame` below the left
            camera; only on a CPU.

    A view is not usable when something stands right in front of the camera, when a camera is
    below the ground, or when there is mostly sky.
    """
    rendered = terrain if rendered is None else rendered
    window = _sample_window(scene, size, rng)
    left = _left_view(terrain, scene, window)
    if left is None:
        return None
    heading = math.radians(scene.heading_deg)
    if parts is not None:
        stand = rover_frame(left, heading, scene.height_m, 0.0).numpy()
        rendered = replace(rendered, rocks=joined([rendered.rocks, parts.moved(stand)]))
    probe = _nearest_and_sky(rendered, left)
    if probe is None:
        return None
    nearest, sky = probe
    if nearest < 0.3 or sky > (0.7 if size is None else 0.3):
        return None
    largest = _MAX_DISPARITY * scene.frame_width * rng.uniform(0.25, 1.0)
    baseline = min(scene.baseline_m, largest * nearest / left.fx)
    if baseline < 0.04:
        return None
    left = replace(left, distortion=faults.distortion)
    right = right_view(left, baseline, scene.shift_y_px, math.radians(scene.roll_right_deg))
    right = faults.right(right)
    if _buried(terrain, right):
        return None
    lighting, rover = scene.lighting, scene.rover
    rover_pose = rover_frame(left, heading, scene.height_m, baseline)
    seen = []
    for view in (left.to(rendered.device), right.to(rendered.device)):
        lit = faults.render(rendered, view, lighting, samples, rover, rover_pose)
        seen.append(faults.lit_by_lamps(lit, rendered, view, left, lighting))
    seen_left, seen_right = (_on_cpu(each) for each in seen)
    disparity = left.fx * baseline / seen_left.depth
    if not float(torch.nan_to_num(disparity).max()) <= 192 / 640 * scene.frame_width:
        return None
    rock, of_rover = _on_meshes(terrain, seen[0])
    images, sensors = _take_pictures(scene, window, seen_left, seen_right, rng, faults)
    return Sample(
        left=images[0],
        right=images[1],
        disparity=disparity.numpy(),
        shadow=seen_left.shadow.numpy(),
        occlusion=_occlusion(rendered, left, right, seen[0].depth, disparity),
        intrinsics=_matrix(left),
        baseline_m=baseline,
        meta={
            **asdict(replace(scene, rover=())),
            'rover_boxes': len(rover),
            'window': asdict(window),
            'sensors': [asdict(sensor) for sensor in sensors],
            **({} if faults == NO_FAULTS else {'faults': asdict(faults)}),
        },
        depth_left=seen_left.depth.numpy(),
        depth_right=seen_right.depth.numpy(),
        poses=np.stack([_pose(left), _pose(right)]),
        intrinsics_right=_matrix(right),
        rock=rock,
        parts=of_rover if parts is not None else None,
    )


def _on_meshes(
    terrain: Terrain, seen: Rendering
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """Return (H, W) masks: on the terrain's rocks, and on meshes put beside them."""
    if seen.triangle is None:
        return None, None
    triangle = seen.triangle.numpy()
    rocks = 0 if terrain.rocks is None else len(terrain.rocks.triangles)
    return (triangle >= 0) & (triangle < rocks), triangle >= rocks


def _matrix(view: View) -> NDArray[np.float64]:
    return np.array([[view.fx, 0, view.cx], [0, view.fy, view.cy], [0, 0, 1.0]])


def _pose(view: View) -> NDArray[np.float64]:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = view.rotation.numpy(), view.position_m.numpy()
    return pose


def _sample_window(
    scene: SceneConfig, size: tuple[int, int] | None, rng: np.random.Generator
) -> Window:
    width, height = scene.frame_width, scene.frame_height
    if size is None:
        return Window(0, 0, width, height, width, height)
    if size[0] > width or size[1] > height:
        raise InputError(f'window {size[0]}x{size[1]} does not fit in {width}x{height}')
    left = int(rng.integers(0, width - size[0] + 1))
    top = int(rng.integers(0, height - size[1] + 1))
    return Window(left, top, *size, width, height)


def _left_view(terrain: Terrain, scene: SceneConfig, window: Window) -> View | None:
    """Return the left camera on the ground, turned with the ground's slope; None if buried."""
    heading = math.radians(scene.heading_deg)
    ch, sh = math.cos(heading), math.sin(heading)
    x = -scene.distance_m * ch - scene.lateral_m * sh
    y = -scene.distance_m * sh + scene.lateral_m * ch
    pitch, roll = math.radians(scene.pitch_deg), math.radians(scene.roll_deg)
    ground, rotation = attitude_on_ground(terrain, x, y, heading, pitch, roll)
    if float(torch.acos(-rotation[2, 1].clamp(-1, 1))) > _MAX_TILT_RAD + abs(pitch) + abs(roll):
        return None
    focal = scene.focal * scene.frame_width
    view = View(
        torch.tensor([x, y, ground + scene.height_m]),
        rotation,
        focal,
        focal,
        (scene.frame_width - 1) / 2 - window.left,
        (scene.frame_height - 1) / 2 - window.top,
        window.width,
        window.height,
    )
    return None if _buried(terrain, view) else view


def _buried(terrain: Terrain, view: View) -> bool:
    x, y, z = view.position_m
    return not float(z) > float(terrain.height_at(x[None], y[None])[0]) + 0.15


def _nearest_and_sky(terrain: Terrain, view: View) -> tuple[float, float] | None:
    """Return the nearest depth (m) and the fraction of sky, from a coarse look."""
    step = 8
    coarse = View(
        view.position_m,
        view.rotation,
        view.fx / step,
        view.fy / step,
        (view.cx + 0.5) / step - 0.5,
        (view.cy + 0.5) / step - 0.5,
        view.width // step,
        view.height // step,
    )
    depth = render(terrain, coarse.to(terrain.device), Lighting(90.0, 0.0), samples=1).depth.cpu()
    known = torch.isfinite(depth)
    if not bool(known.any()):
        return None
    return float(depth[known].min()), 1.0 - float(known.float().mean())


def _on_cpu(seen: Rendering) -> Rendering:
    return Rendering(seen.radiance.cpu(), seen.depth.cpu(), seen.shadow.cpu())


def _occlusion(
    terrain: Terrain, left: View, right: View, depth: torch.Tensor, disparity: torch.Tensor
) -> NDArray[np.uint8]:
    view, other = left.to(terrain.device), right.to(terrain.device)
    hidden = hidden_from(terrain, view, depth, other.position_m).cpu().numpy()
    column = np.arange(left.width)[None, :] - np.nan_to_num(disparity.numpy())
    outside = column < 0
    return np.where(outside, 2, hidden.astype(np.uint8)).astype(np.uint8)


def _take_pictures(
    scene: Any, window: Any, seen_left: Any, seen_right: Any, rng: np.random.Generator, faults: Any
) -> tuple[Any, Any]:
    """Return both images and the two sensors that took them."""
    ground = torch.isfinite(seen_left.depth)
    level = float(np.quantile(seen_left.radiance[ground].numpy(), rng.uniform(0.85, 0.98)))
    # A window in deep shadow is exposed for the sunlit ground around it, as the frame would be.
    flat = _flat_ground_radiance(scene)
    level = max(level, rng.uniform(0.3, 0.9) * flat)
    target = rng.uniform(0.5, 0.95)
    if rng.random() < 0.2:
        target *= log_uniform(rng, 0.35, 2.0)
    left = sample_sensor(255.0 * target / level, rng)
    right = replace(left, dust=sample_dust(rng), psf_sigma_px=left.psf_sigma_px)
    if rng.random() < 0.5:
        right = replace(
            right,
            gain=left.gain * float(np.clip(rng.lognormal(0, 0.08), 0.7, 1.4)),
            psf_sigma_px=max(left.psf_sigma_px + rng.normal(0, 0.1), 0.2),
            black_level_dn=left.black_level_dn + abs(rng.normal(0, 0.7)),
        )
    if rng.random() < 0.12:
        right = replace(right, defocus_px=rng.uniform(0.5, 1.5), defocus_side=random_sign(rng))
    left, right = faults.sensor(left), faults.sensor(right)
    images = [
        expose(seen.radiance.numpy(), sensor, window, rng)
        for seen, sensor in ((seen_left, left), (seen_right, right))
    ]
    return images, (left, right)


def _flat_ground_radiance(scene: SceneConfig) -> float:
    """Return the radiance of level sunlit ground seen ahead, 20 degrees below the horizon."""
    sun = torch.tensor(scene.lighting.direction())
    heading = math.radians(scene.heading_deg)
    down = math.radians(20.0)
    to_camera = torch.tensor(
        [-math.cos(heading) * math.cos(down), -math.sin(heading) * math.cos(down), math.sin(down)]
    )
    phase = (sun @ to_camera)[None]
    value = hapke_reflectance(sun[2:3], to_camera[2:3], phase, scene.lighting.hapke)
    return float(value[0])
