"""CUDA kernels of the renderer: a thread for each ray or pixel, by the rules of `compiled.py`.

Written with numba's CUDA target (package numba-cuda). Arrays are torch tensors of the device that
the kernels see without a copy; work goes to torch's current stream, so that it keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import math
from typing import Any
import warnings

from numba import cuda
import torch

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation.compiled import (
    first_hit,
    FROM_CAMERA_MIP,
    FROM_GROUND_MIP,
    ray_of_row,
    ray_through,
    shade_point,
)

# Small views are small launches, which is what was asked for.
warnings.filterwarnings('ignore', message='Grid size .* under-utilization')

# Threads of a block: rays that run side by side, and pixels (columns, rows) that lie together,
# because threads of a warp wait for the longest of their rays.
_RAYS = 128
_TILE = (8, 16)


@cuda.jit
def trace_kernel(grids, origin, direction, limit, mip, depth, hit_level):
    """Write one ray's first hit; see `compiled.trace_rays`."""
    i = cuda.grid(1)
    if i < direction.shape[0]:
        ray = ray_of_row(origin, direction, i)
        depth[i], hit_level[i] = first_hit(grids, ray, float(limit[i]), mip)


@cuda.jit
def render_kernel(
    scene,
    camera,
    bending,
    undistort_steps,
    rotation,
    ways,
    samples,
    radiance,
    depth,
    shadow,
):
    """Write what one pixel sees; see `render`."""
    u, v = cuda.grid(2)
    if v >= depth.shape[0] or u >= depth.shape[1]:
        return
    light, t, dark = 0.0, math.inf, False
    for way in range(ways.shape[0]):
        ray = ray_through(
            camera, bending, undistort_steps, rotation, u + ways[way, 0], v + ways[way, 1]
        )
        t, level = first_hit(scene[0], ray, math.inf, FROM_CAMERA_MIP)
        dark = False
        if level >= 0:
            sun = (ways[way, 2], ways[way, 3], ways[way, 4])
            more, dark = shade_point(scene, ray, t, level, -1, False, sun, ways[way, 5] > 0)
            light += more
    radiance[v, u] = light / samples
    depth[v, u] = t if t < math.inf else math.nan
    shadow[v, u] = dark


def check_compiler() -> None:
    """Look whether kernels can be compiled and run.

    Raises:
        InputError: numba finds no driver or no compiler of CUDA.
    """
    if not cuda.is_available():
        raise InputError(
            "device is 'cuda', but numba finds no driver or compiler of CUDA; the extra [cuda12] "
            f'or [cuda13] brings the compiler: that of CUDA {torch.version.cuda}, as PyTorch has '
            'it, is needed'
        )


def device_array(tensor: torch.Tensor) -> Any:
    """Return a tensor of a CUDA device as an array of numba on the same memory."""
    with cuda.gpus[tensor.device.index]:
        return cuda.as_cuda_array(tensor)


def trace(
    grids: tuple[Any, ...],
    origin: torch.Tensor,
    direction: torch.Tensor,
    limit: torch.Tensor,
    from_surface: bool,
    depth: torch.Tensor,
    level: torch.Tensor,
) -> None:
    """Write the ray parameters and levels of first hits; see `compiled.trace_rays`."""
    if len(direction) == 0:
        return
    mip = FROM_GROUND_MIP if from_surface else FROM_CAMERA_MIP
    rays = [device_array(tensor) for tensor in (origin, direction, limit)]
    hits = [device_array(tensor) for tensor in (depth, level)]
    with _stream(depth.device) as stream:
        trace_kernel[_blocks(len(direction), _RAYS), _RAYS, stream](grids, *rays, mip, *hits)


def render(
    scene: tuple[Any, ...],
    camera: tuple[Any, ...],
    bending: tuple[Any, ...],
    undistort_steps: int,
    rotation: Any,
    ways: Any,
    samples: int,
    radiance: torch.Tensor,
    depth: torch.Tensor,
    shadow: torch.Tensor,
) -> None:
    """Write what a view sees of ground without meshes.

    Args:
        scene: See `compiled.shade_rows`.
        camera, bending, undistort_steps, rotation: See `compiled.ray_through`.
        ways: (S, 6) the rays of each pixel, array on the device: place in the pixel, direction to
            the sun, and whether its light is asked for. Depth and shadow are those of the last.
        samples: Rays whose light is asked for.
        radiance: (H, W) float32 output.
        depth: (H, W) float32 output, metres, NaN in the sky.
        shadow: (H, W) bool output.
    """
    rows, columns = depth.shape
    tiles = _blocks(columns, _TILE[0]), _blocks(rows, _TILE[1])
    pictures = [device_array(tensor) for tensor in (radiance, depth, shadow)]
    with _stream(depth.device) as stream:
        render_kernel[tiles, _TILE, stream](
            scene, camera, bending, undistort_steps, rotation, ways, samples, *pictures
        )


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


@contextmanager
def _stream(device: torch.device) -> Iterator[Any]:
    """Make a device numba's current one, and give the stream that torch uses on it."""
    with cuda.gpus[device.index]:
        queue = torch.cuda.current_stream(device).cuda_stream
        yield cuda.external_stream(queue) if queue else 0
