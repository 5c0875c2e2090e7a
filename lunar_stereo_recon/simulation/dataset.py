"""Random rendered stereo pairs with exact ground truth; `lunar-stereo dataset` writes them.

Pair number i of a seed and split is always the same, so a stopped run continues where it was.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
import json
import math
import multiprocessing
from pathlib import Path
import sys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
import torch

from lunar_stereo_recon import __version__
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.atomic import atomic_file, write_json
from lunar_stereo_recon.simulation.camera import (
    expose,
    right_view,
    Sensor,
    Window,
)
from lunar_stereo_recon.simulation.camera_faults import CameraFaults
from lunar_stereo_recon.simulation.dataset_forms import (
    remove_unfinished,
    write_pair_files,
    write_pair_index,
    write_scene_bag,
    write_view_folder,
)
from lunar_stereo_recon.simulation.renderer import (
    Box,
    Hapke,
    hapke_reflectance,
    hidden_from,
    Lighting,
    render,
    Rendering,
    rendering_device,
    View,
)
from lunar_stereo_recon.simulation.rock_mesh import joined, RockMeshes
from lunar_stereo_recon.simulation.terrain import make_terrain, Terrain, TerrainConfig
from lunar_stereo_recon.simulation.traverse import attitude_on_ground, rounded, rover_frame

STRATA = ('nominal', 'lowsun', 'opposition', 'smooth')
SPLITS = {'train': 1, 'calibration': 2, 'test': 3}
# Pairs that share a terrain: making one takes longer than rendering a pair on it. All of one
# group belong to one stratum, because the stratum also shapes the ground.
VIEWS_PER_TERRAIN = 8
# How the pairs are stored; see `folders`.
FORMS = {'pairs': write_pair_files, 'stereolunar': write_view_folder, 'bags': write_scene_bag}
# What is done when all pairs are there.
FINISH = {'stereolunar': write_pair_index, 'bags': remove_unfinished}
MANIFEST = 'dataset.json'
NO_FAULTS = CameraFaults()
# The largest disparity that the flight student matches, as a fraction of the image width.
_MAX_DISPARITY = 180 / 640
_FRAME = (640, 480)
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


@dataclass(frozen=True)
class SceneConfig:
    """What one pair shows and how it is taken.

    Attributes:
        stratum: One of STRATA.
        frame_width, frame_height: The whole camera frame, pixels.
        focal: Focal length as a fraction of the frame width.
        baseline_m: Distance of the cameras, metres.
        height_m: Height of the cameras over the ground, metres.
        pitch_deg, roll_deg: Attitude relative to the ground below the rover.
        heading_deg: Direction of view in the world.
        distance_m: Distance of the rover from the terrain's centre, behind it.
        lateral_m: Sideways offset from the terrain's centre.
        lighting: Sun, ambient light, reflectance.
        rover: Boxes that cast the rover's shadow.
        shift_y_px, roll_right_deg: Errors of the right camera's rectification.
    """

    stratum: str
    frame_width: int
    frame_height: int
    focal: float
    baseline_m: float
    height_m: float
    pitch_deg: float
    roll_deg: float
    heading_deg: float
    distance_m: float
    lateral_m: float
    lighting: Lighting
    rover: tuple[Box, ...]
    shift_y_px: float
    roll_right_deg: float


def sample_terrain_config(stratum: str, rng: np.random.Generator) -> TerrainConfig:
    """Return a random kind of ground for a stratum."""
    seed = int(rng.integers(0, 2**62))
    if stratum == 'smooth':
        return TerrainConfig(
            seed,
            hurst=rng.uniform(0.75, 0.95),
            roughness_m=log_uniform(rng, 0.004, 0.03),
            crater_density=log_uniform(rng, 0.01, 0.4),
            crater_depth=rng.uniform(0.06, 0.16),
            rock_density=log_uniform(rng, 0.003, 0.08),
            rock_exponent=rng.uniform(1.8, 2.6),
            rock_max_m=rng.uniform(0.4, 1.5),
            rock_brightness=rng.uniform(0.9, 1.4),
            albedo_noise=log_uniform(rng, 0.01, 0.06),
            tilt_deg=abs(rng.normal(0, 3)),
        )
    return TerrainConfig(
        seed,
        hurst=rng.uniform(0.6, 0.95),
        roughness_m=log_uniform(rng, 0.012, 0.1),
        crater_density=log_uniform(rng, 0.05, 1.0),
        crater_depth=rng.uniform(0.08, 0.2),
        rock_density=log_uniform(rng, 0.03, 1.5),
        rock_exponent=rng.uniform(1.7, 2.7),
        rock_max_m=log_uniform(rng, 0.4, 2.5),
        rock_brightness=rng.uniform(0.9, 1.7),
        albedo_noise=log_uniform(rng, 0.02, 0.15),
        tilt_deg=abs(rng.normal(0, 4)),
    )


def sample_scene_config(stratum: str, rng: np.random.Generator) -> SceneConfig:
    """Return a random camera, light and pose for a stratum."""
    width, height = _FRAME
    focal = rng.uniform(0.6, 1.0) if rng.random() < 0.75 else log_uniform(rng, 0.5, 2.0)
    camera_height = rng.uniform(0.7, 2.0) if rng.random() < 0.75 else log_uniform(rng, 0.3, 3.0)
    elevation, away = _sample_sun(stratum, rng)
    heading = rng.uniform(0, 360)
    rover: tuple[Box, ...] = ()
    if rng.random() < (0.85 if stratum == 'opposition' else 0.5):
        rover = sample_rover(camera_height, rng)
    return SceneConfig(
        stratum=stratum,
        frame_width=width,
        frame_height=height,
        focal=focal,
        baseline_m=log_uniform(rng, 0.05, 0.6),
        height_m=camera_height,
        pitch_deg=rng.uniform(-28, -5) if rng.random() < 0.8 else rng.uniform(-38, 0),
        roll_deg=rng.normal(0, 2.0),
        heading_deg=heading,
        distance_m=rng.uniform(1.0, 6.0),
        lateral_m=rng.uniform(-4.0, 4.0),
        lighting=Lighting(
            elevation,
            heading + away,
            ambient=log_uniform(rng, 0.001, 0.02),
            bounce=log_uniform(rng, 0.001, 0.02),
            hapke=_sample_hapke(rng),
        ),
        rover=rover,
        shift_y_px=_often_zero(rng, 0.5, 0.25, 1.0),
        roll_right_deg=_often_zero(rng, 0.7, 0.01, 0.03),
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


def make_sample(
    seed: int,
    split: str,
    index: int,
    size: tuple[int, int] | None = None,
    samples: int = 2,
    faults: CameraFaults = NO_FAULTS,
    rocks: str = 'heightfield',
) -> Sample:
    """Return pair number `index` of a seed and split.

    The last terrain is kept: pairs of one terrain in turn cost less.
    """
    stratum, terrain = _group_ground(seed, split, index // VIEWS_PER_TERRAIN, rocks)
    return _sample_on(terrain, stratum, seed, split, index, size, samples, faults)


def write_dataset(
    out: Path,
    count: int,
    seed: int,
    split: str = 'train',
    size: tuple[int, int] | None = (384, 256),
    workers: int = 1,
    samples: int = 2,
    form: str = 'pairs',
    faults: CameraFaults = NO_FAULTS,
    rocks: str = 'heightfield',
    device: str = 'cpu',
) -> Generator[int, None, None]:
    """Write pairs 0..count-1 of a seed and split with a manifest; existing pairs are kept.

    The manifest `dataset.json` holds the options, and seed and parameters of every terrain.

    Args:
        out: Folder, made if it is not there.
        count: Number of pairs, those that are there included.
        seed, split: Which pairs; no terrain of one split occurs in another.
        size: Width and height of the windows; None writes whole frames.
        workers: Processes; 0 or 1 works in this one. They share the device: making terrains,
            exposing and compressing stay work for the CPU, and more of it than rendering on a GPU.
        samples: Rays a pixel.
        form: One of FORMS.
        faults: What the cameras do wrong; raw images go into bags only.
        rocks: One of `terrain.ROCK_FORMS`. Places, sizes and views come from the same numbers;
            meshes are worn by chance too.
        device: What renders, 'cpu' or 'cuda'. The pairs are the same to a rounding error.

    Yields:
        How many pairs were written, each time that those of one terrain are done.

    Raises:
        InputError: An option is unknown, the device is not there or cannot render such rocks, or
            the folder holds pairs of other options.
    """
    rendering_device(device, rocks)
    if form not in FORMS:
        raise InputError(f'form is {form!r}; one of {sorted(FORMS)} is needed')
    if count < 1:
        raise InputError(f'{count} pairs asked for; 1 or more are needed')
    if size and not (0 < size[0] <= _FRAME[0] and 0 < size[1] <= _FRAME[1]):
        raise InputError(f'window {size[0]}x{size[1]} does not fit in {_FRAME[0]}x{_FRAME[1]}')
    if form == 'bags' and count % VIEWS_PER_TERRAIN:
        raise InputError(
            f'{count} pairs asked for; a bag holds the {VIEWS_PER_TERRAIN} pairs of one terrain, '
            'a multiple of which is needed'
        )
    if faults.distortion and form != 'bags':
        raise InputError(f'form {form!r} holds no distortion; raw images go into bags')
    if faults.colour == 'bayer_rggb' and size is not None:
        raise InputError('a window may begin at any colour filter; Bayer images need whole frames')
    options = {
        'version': __version__,
        'form': form,
        'split': split,
        'seed': seed,
        'size': list(size) if size else None,
        'samples': samples,
        # As JSON gives them back.
        'faults': json.loads(json.dumps(asdict(faults))),
        'rocks': rocks,
    }
    _write_manifest(out, options, count)
    yield from write_pairs(
        out, range(count), seed, split, size, workers, samples, form, faults, rocks, device
    )
    if form in FINISH:
        FINISH[form](out)


def _write_manifest(out: Path, options: dict[str, Any], count: int) -> None:
    """Write or extend the manifest.

    Raises:
        InputError: The one that is there says other options, or cannot be read.
    """
    path = out / MANIFEST
    if path.exists():
        try:
            # Older manifests do not say what all rocks were then.
            there = {'rocks': 'heightfield', **json.loads(path.read_text(encoding='utf-8'))}
            differing = [name for name in options if there[name] != options[name]]
            count = max(count, there['count'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}: not a readable manifest of a data set: {error}') from error
        if differing:
            was, wanted = (
                ', '.join(f'{name} {source[name]}' for name in differing)
                for source in (there, options)
            )
            raise InputError(f'{out} holds pairs of {was}; {wanted} belongs in another folder')
    terrains = []
    for group in range(-(-count // VIEWS_PER_TERRAIN)):
        stratum, config = _group_config(options['seed'], options['split'], group, options['rocks'])
        last = min((group + 1) * VIEWS_PER_TERRAIN, count) - 1
        pairs = [group * VIEWS_PER_TERRAIN, last]
        terrains.append({'stratum': stratum, 'pairs': pairs, 'terrain': asdict(config)})
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {**options, 'count': count, 'terrains': terrains}, indent=1)


def write_pairs(
    out: Path,
    indices: Iterable[int],
    seed: int,
    split: str = 'train',
    size: tuple[int, int] | None = (384, 256),
    workers: int = 1,
    samples: int = 2,
    form: str = 'pairs',
    faults: CameraFaults = NO_FAULTS,
    rocks: str = 'heightfield',
    device: str = 'cpu',
) -> Iterator[int]:
    """Write chosen pairs as `write_dataset` does, without a manifest."""
    out.mkdir(parents=True, exist_ok=True)
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(index // VIEWS_PER_TERRAIN, []).append(index)
    jobs = [
        (out, wanted, seed, split, size, samples, group, form, faults, rocks, device)
        for group, wanted in groups.items()
    ]
    if workers <= 1:
        yield from map(_write_group, jobs)
        return
    with multiprocessing.get_context('spawn').Pool(workers, start_worker) as pool:
        yield from pool.imap_unordered(_write_group, jobs)


def start_worker() -> None:
    """Keep a process to one core: there may be as many of them as cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _write_group(job: tuple[Any, ...]) -> int:
    out, wanted, seed, split, size, samples, group, form, faults, rocks, device = job
    stratum, config = _group_config(seed, split, group, rocks)
    # Made when the first pair is missing: it takes longer than the pair.
    ground = cache(lambda: make_terrain(config))
    rendered = cache(lambda: ground().to(rendering_device(device, rocks)))

    def make(index: int) -> Sample:
        return _sample_on(ground(), stratum, seed, split, index, size, samples, faults, rendered())

    return FORMS[form](out, f'{group:05d}_{stratum}', wanted, make)


def _group_config(
    seed: int, split: str, group: int, rocks: str = 'heightfield'
) -> tuple[str, TerrainConfig]:
    """Return stratum and ground of a group of pairs."""
    if split not in SPLITS:
        raise InputError(f'split is {split!r}; one of {sorted(SPLITS)} is needed')
    # The split is part of the seed: no terrain of one split occurs in another.
    rng = np.random.default_rng([SPLITS[split], seed, group, 0x6E0])
    stratum = STRATA[group % len(STRATA)]
    config = sample_terrain_config(stratum, rng)
    if rocks != 'heightfield':
        config = replace(config, rock_form=rocks, rock_wear=rng.uniform(0.0, 0.8))
    return stratum, config


@lru_cache(maxsize=1)
def _group_ground(seed: int, split: str, group: int, rocks: str) -> tuple[str, Terrain]:
    stratum, config = _group_config(seed, split, group, rocks)
    return stratum, make_terrain(config)


def _sample_on(
    terrain: Terrain,
    stratum: str,
    seed: int,
    split: str,
    index: int,
    size: tuple[int, int] | None,
    samples: int,
    faults: CameraFaults = NO_FAULTS,
    rendered: Terrain | None = None,
) -> Sample:
    rng = np.random.default_rng([SPLITS[split], seed, index, 0x5A3])
    for _ in range(200):
        scene = sample_scene_config(stratum, rng)
        sample = render_sample(terrain, scene, rng, size, samples, faults, rendered)
        if sample is not None:
            return sample
    raise InputError(f'no usable view found for pair {index} of seed {seed}, split {split}')


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _often_zero(rng: np.random.Generator, zero: float, sigma: float, limit: float) -> float:
    """Return 0 with a probability, else a normal number cut at a limit."""
    if rng.random() < zero:
        return 0.0
    return float(np.clip(rng.normal(0, sigma), -limit, limit))


def _sample_sun(stratum: str, rng: np.random.Generator) -> tuple[float, float]:
    """Return the sun's elevation and its azimuth relative to the heading, degrees."""
    if stratum == 'lowsun':
        return rng.uniform(2, 13), rng.uniform(0, 360)
    if stratum == 'opposition':
        return log_uniform(rng, 6, 40), 180 + rng.normal(0, 22)
    if stratum == 'smooth':
        return rng.uniform(8, 75), rng.uniform(0, 360)
    return (rng.uniform(13, 55) if rng.random() < 0.8 else rng.uniform(1, 80)), rng.uniform(0, 360)


def _sample_hapke(rng: np.random.Generator) -> Hapke:
    return Hapke(
        w=rng.uniform(0.15, 0.45),
        b=rng.uniform(0.15, 0.4),
        c=rng.uniform(0.1, 0.7),
        B0=rng.uniform(0.6, 1.8),
        h=rng.uniform(0.03, 0.12),
        theta_bar_deg=rng.uniform(5, 25),
    )


def sample_rover(height_m: float, rng: np.random.Generator) -> tuple[Box, ...]:
    """Return body, mast, camera bar and wheels of a random rover below the cameras."""
    length, width = rng.uniform(0.4, 1.1), rng.uniform(0.35, 0.8)
    deck = height_m * rng.uniform(0.3, 0.65)
    floor = deck * rng.uniform(0.3, 0.6)
    back = rng.uniform(0.1, 0.6) * length
    pole = rng.uniform(0.015, 0.06)
    bar = rng.uniform(0.1, 0.4)
    boxes = [
        Box((-back, 0.0, (deck + floor) / 2), (length / 2, width / 2, (deck - floor) / 2)),
        Box((-0.1, 0.0, (deck + height_m) / 2), (pole, pole, (height_m - deck) / 2)),
        Box((-0.12, 0.0, height_m), (0.06, bar, rng.uniform(0.03, 0.12))),
    ]
    wheel = rng.uniform(0.08, 0.2)
    for x in (-back - length / 2, -back + length / 2):
        for y in (-width / 2 - 0.06, width / 2 + 0.06):
            boxes.append(Box((x, y, wheel), (wheel, 0.06, wheel)))
    if rng.random() < 0.4:
        panel = rng.uniform(0.3, 0.9)
        boxes.append(Box((-back - 0.2, 0.0, deck + 0.05), (panel * 0.5, panel, 0.015)))
    return tuple(boxes)


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
    left = _sample_sensor(255.0 * target / level, rng)
    right = replace(left, dust=_sample_dust(rng), psf_sigma_px=left.psf_sigma_px)
    if rng.random() < 0.5:
        right = replace(
            right,
            gain=left.gain * float(np.clip(rng.lognormal(0, 0.08), 0.7, 1.4)),
            psf_sigma_px=max(left.psf_sigma_px + rng.normal(0, 0.1), 0.2),
            black_level_dn=left.black_level_dn + abs(rng.normal(0, 0.7)),
        )
    if rng.random() < 0.12:
        right = replace(right, defocus_px=rng.uniform(0.5, 1.5), defocus_side=_sign(rng))
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


def _sample_sensor(gain: float, rng: np.random.Generator) -> Sensor:
    kind = rng.random()
    response = 'linear' if kind < 0.65 else ('gamma' if kind < 0.92 else 'log')
    if response != 'linear':
        # A response curve brightens; the exposure that a camera chooses makes up for it.
        gain *= rng.uniform(0.45, 0.9)
    return Sensor(
        gain=gain,
        response=response,
        shot_noise_dn=log_uniform(rng, 0.5, 4.0),
        read_noise_dn=log_uniform(rng, 0.15, 1.5 if response == 'linear' else 0.5),
        pattern_noise=log_uniform(rng, 0.0005, 0.01),
        black_level_dn=rng.uniform(0, 3) if rng.random() < 0.3 else 0.0,
        vignetting=rng.uniform(0.0, 0.3),
        psf_sigma_px=rng.uniform(0.3, 0.8),
        defocus_px=rng.uniform(0.5, 1.5) if rng.random() < 0.1 else 0.0,
        defocus_side=_sign(rng),
        dust=_sample_dust(rng),
        bits=8 if rng.random() < 0.7 else 12,
    )


def _sample_dust(rng: np.random.Generator) -> tuple[tuple[float, float, float, float], ...]:
    if rng.random() < 0.8:
        return ()
    return tuple(
        (
            rng.random(),
            rng.random(),
            log_uniform(rng, 0.005, 0.06),
            rng.uniform(0.02, 0.25),
        )
        for _ in range(int(rng.integers(1, 6)))
    )


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


if __name__ == '__main__':
    from lunar_stereo_recon.cli import main

    sys.exit(main(['dataset', *sys.argv[1:]]))
