"""Pictures that the tests compare between the CPU's loops and the kernels for CUDA.

As a script it renders them with the kernels in numba's CUDA simulator, which runs them in Python
on a CPU, and writes them to the file that it is given:

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 python kernel_pictures.py PICTURES.npz
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
import math
import sys

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.simulation import renderer
from lunar_stereo_recon.simulation.camera import camera_rotation, Sensor
from lunar_stereo_recon.simulation.camera_faults import CameraFaults
from lunar_stereo_recon.simulation.renderer import Box, Hapke, hidden_from, Lighting, render, View
from lunar_stereo_recon.simulation.sunlit import sunlit_ground
from lunar_stereo_recon.simulation.terrain import make_terrain, TerrainConfig
from lunar_stereo_recon.simulation.traverse import render_frame, Rig, RoverPose, TraverseConfig

GROUND = TerrainConfig(
    6,
    cells=(32, 32, 16),
    cell_sizes_m=(0.16, 0.64, 5.12),
    roughness_m=0.2,
    rock_density=0.6,
    rock_max_m=1.0,
)
LOW_SUN = Lighting(6.0, 200.0, hapke=Hapke(theta_bar_deg=18.0))
WIDTH, HEIGHT = 40, 30


class Operations(TorchDispatchMode):
    """Counts the operations of torch that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count and run one operation."""
        self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


def pictures(device: str = 'cpu') -> dict[str, np.ndarray]:
    """Return what rays are traced for: views, single rays, sunlight, a frame of a drive."""
    terrain = make_terrain(GROUND).to(device)
    height = float(terrain.height_at(torch.tensor([-1.0]), torch.tensor([0.0]))[0])
    place = torch.tensor([-1.0, 0.0, height + 0.9])
    middle = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    view = View(place, camera_rotation(0.3, -0.2, 0.05), 28.0, 28.0, *middle, WIDTH, HEIGHT)
    raw = replace(view, distortion=(-0.2, 0.05, 0.002, -0.001, 0.01))
    box = (Box((0.3, 0.0, 0.7), (0.1, 0.4, 0.3)), Box((-0.4, 0.5, 0.2), (0.3, 0.1, 0.2)))
    pose = torch.eye(4)
    pose[:3, 3] = place - torch.tensor([0.0, 0.0, 0.9])
    sunlit = sunlit_ground(terrain, LOW_SUN)
    found = {f'sunlit_{k}': cells for k, cells in enumerate(sunlit.cells)}
    views = {
        'four_rays': (view, LOW_SUN, 4, box, pose),
        'raw': (raw, LOW_SUN, 2),
        'one_ray': (view, LOW_SUN, 1, box, pose, sunlit),
        'night': (view, Lighting(0.0, 0.0, ambient=0.01, bounce=0.0, night=True), 1),
    }
    for name, (camera, *options) in views.items():
        with Operations() as operations:
            seen = render(terrain, camera, *options)
        found[f'{name}_operations'] = torch.tensor(operations.names.total())
        for part in ('radiance', 'depth', 'shadow'):
            found[f'{name}_{part}'] = getattr(seen, part)
    found['hidden'] = hidden_from(terrain, view, seen.depth, place + 0.4 * view.rotation[:, 0])
    rays = view.rays().to(device)
    for name, limit, from_surface in (('near', 2.0, False), ('far', math.inf, True)):
        limits = torch.full((len(rays),), limit, device=device)
        hits = renderer.trace(terrain, place.to(device), rays, limits, from_surface)
        found[f'{name}_depth'], found[f'{name}_level'] = hits.depth, hits.level
    return {name: value.cpu().numpy() for name, value in found.items()} | drive_frame(terrain)


def drive_frame(terrain) -> dict[str, np.ndarray]:
    """Return the images, depth and shadow of a rover's cameras, lamps switched on."""
    calibration = StereoCalibration(29.0, 29.0, 19.5, 14.5, 19.5, 0.3, WIDTH, HEIGHT)
    config = TraverseConfig(
        GROUND,
        Rig(calibration),
        LOW_SUN,
        sensor=Sensor(gain=0.0),
        samples=1,
        faults=CameraFaults(lamp_strength=0.02),
    )
    frame, _ = render_frame(config, terrain, RoverPose(0.0, -1.0, 0.3, 0.2), 0.0, 0)
    parts = ('left', 'right', 'depth', 'shadow', 'position_m', 'rotation')
    return {f'frame_{part}': getattr(frame, part) for part in parts}


def use_simulator() -> None:
    """Let the kernels, in numba's simulator, take the place of the loops for tensors of a CPU."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    from lunar_stereo_recon.simulation import kernels

    @contextmanager
    def no_stream(device: torch.device) -> Iterator[int]:
        yield 0

    kernels._stream = no_stream
    kernels.device_array = lambda tensor: FakeCUDAArray(tensor.numpy())
    renderer._is_on_cpu = lambda terrain: False


if __name__ == '__main__':
    use_simulator()
    np.savez(sys.argv[1], **pictures())
