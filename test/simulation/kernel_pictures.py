"""Pictures that the tests compare between the CPU's loops and the kernels for CUDA.

As a script it renders them with the kernels, without a GPU, and writes them to the file that it is
given. The kernels run in numba's CUDA simulator, which is Python, on tensors of a stand-in for the
device: one that refuses what a real one would.

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
from torch.utils._pytree import tree_leaves, tree_map_only

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.simulation import renderer
from lunar_stereo_recon.simulation.camera import camera_rotation, Sensor
from lunar_stereo_recon.simulation.camera_faults import CameraFaults
from lunar_stereo_recon.simulation.renderer import hidden_from, render
from lunar_stereo_recon.simulation.scene import Box, Hapke, Lighting, View
from lunar_stereo_recon.simulation.sunlit import sunlit_ground
from lunar_stereo_recon.simulation.terrain import make_terrain
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig
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
        seen = render(terrain, camera, *options)
        for part in ('radiance', 'depth', 'shadow'):
            found[f'{name}_{part}'] = getattr(seen, part)
    found['hidden'] = hidden_from(terrain, view, seen.depth, place + 0.4 * view.rotation[:, 0])
    rays = view.rays().to(device)
    for name, limit, from_surface in (('near', 2.0, False), ('far', math.inf, True)):
        limits = torch.full((len(rays),), limit, device=device)
        hits = renderer.trace(terrain, place.to(device), rays, limits, from_surface)
        found[f'{name}_depth'], found[f'{name}_level'] = hits.depth, hits.level
    pictured = {name: value.cpu().numpy() for name, value in found.items()}
    return pictured | drive_frame(terrain, CameraFaults(lamp_strength=0.02, ground_light_rays=2))


def drive_frame(terrain, faults: CameraFaults, gain: float = 0.0) -> dict[str, np.ndarray]:
    """Return the images of a rover's cameras, depth and shadow, and how the left one stands."""
    calibration = StereoCalibration(29.0, 29.0, 19.5, 14.5, 19.5, 0.3, WIDTH, HEIGHT)
    sensor = Sensor(gain=0.0)
    config = TraverseConfig(GROUND, Rig(calibration), LOW_SUN, sensor=sensor, samples=1)
    config = replace(config, faults=faults)
    frame, _ = render_frame(config, terrain, RoverPose(0.0, -1.0, 0.3, 0.2), gain, 0)
    parts = ('left', 'right', 'depth', 'shadow', 'position_m', 'rotation')
    return {f'frame_{part}': getattr(frame, part) for part in parts}


_tensor = torch.tensor


def tensor_on(data, *, device=None, **kwargs) -> torch.Tensor:
    """Return data as a tensor of a device; `torch.tensor` itself forgets them on 'meta'."""
    made = _tensor(data, **kwargs)
    return made if device is None else made.to(device)


class DeviceTensor(torch.Tensor):
    """A tensor of the stand-in: `held`, a tensor of the CPU, that only its mode gets at."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> DeviceTensor:
        """Wrap a tensor."""
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=StandIn.DEVICE,
        )
        tensor.held = held
        return tensor

    def new_tensor(self, data, **kwargs) -> torch.Tensor:
        """Return data as a tensor of this device; torch's own forgets them on 'meta'."""
        return _tensor(data, dtype=self.dtype, **kwargs).to(StandIn.DEVICE)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Refuse what goes on outside the mode."""
        raise RuntimeError(f'{function.name()} outside of the stand-in device')


class StandIn(TorchDispatchMode):
    """A device that is none: torch's operations on its tensors run on the CPU, and are counted.

    As on CUDA, one operation takes tensors of one device, but for those with a single value; there
    is no NumPy array of its tensors.
    """

    # Of the devices of every PyTorch the one that computes nothing by itself.
    DEVICE = torch.device('meta')

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run one operation."""
        kwargs = kwargs or {}
        name = function.name()
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        other = [t for t in tensors if t.dim() > 0 and not isinstance(t, DeviceTensor)]
        # Only copies go from one to the other; an index of the device may be on the CPU.
        free = name in ('aten::_to_copy', 'aten::copy_')
        free = free or (name.startswith('aten::index') and isinstance(args[0], DeviceTensor))
        if here and other and not free:
            raise RuntimeError(f'{name}: tensors of the CPU and of the device')
        named = kwargs.get('device')
        is_here = bool(here) if named is None else torch.device(named) == self.DEVICE
        if here or is_here:
            self.operations[name] += 1
        plain = tree_map_only(DeviceTensor, lambda tensor: tensor.held, (args, kwargs))
        plain = tree_map_only(torch.device, lambda device: torch.device('cpu'), plain)
        with torch._C._DisableTorchDispatch():
            result = function(*plain[0], **plain[1])
        # In place: the same tensor as was given, not another around it.
        if tensors and name.endswith(('_', '_.Tensor', '_.Scalar')) and 'index_put' not in name:
            return args[0]
        return tree_map_only(torch.Tensor, DeviceTensor, result) if is_here else result


def use_simulator() -> None:
    """Let the kernels run in numba's simulator, on tensors of the stand-in device."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    from lunar_stereo_recon.simulation import kernels

    @contextmanager
    def no_stream(device: torch.device) -> Iterator[int]:
        assert device == StandIn.DEVICE
        yield 0

    def device_array(tensor: torch.Tensor) -> FakeCUDAArray:
        assert isinstance(tensor, DeviceTensor) and tensor.held.is_contiguous()
        return FakeCUDAArray(tensor.held.numpy())

    torch.tensor = tensor_on
    kernels._stream = no_stream
    kernels.device_array = device_array


def main(path: str) -> None:
    """Write the pictures, and how many operations of torch on the device a pair takes."""
    use_simulator()
    with StandIn() as device:
        found = pictures(str(StandIn.DEVICE))
        terrain = make_terrain(GROUND).to(StandIn.DEVICE)
        device.operations.clear()
        drive_frame(terrain, CameraFaults(), gain=100.0)
    print(dict(device.operations))
    np.savez(path, operations=device.operations.total(), **found)


if __name__ == '__main__':
    main(sys.argv[1])
