"""The kernels for CUDA: what they compute, and that they compile, both without a GPU."""

from __future__ import annotations

from contextlib import contextmanager
import os
from pathlib import Path
import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch')
numba = pytest.importorskip('numba')

from lunar_stereo_recon.simulation import renderer  # noqa: E402
from lunar_stereo_recon.simulation.renderer import render, rendering_device, trace  # noqa: E402
from lunar_stereo_recon.simulation.scene import Box, DARK, Lighting, LIT, MIXED  # noqa: E402

SCRIPT = Path(__file__).parent / 'kernel_pictures.py'
# Architectures that are compiled for: Volta's successors up to Hopper.
ARCHITECTURES = [(7, 5), (9, 0)]
# What numba's typed code and NVVM may differ by: the last digits, which at an edge decide.
DEPTH_TOLERANCE, RADIANCE_TOLERANCE = 1e-5, 1e-3


@pytest.fixture(scope='module')
def on_cpu() -> dict[str, np.ndarray]:
    """Return the pictures of the compiled loops."""
    return runpy.run_path(str(SCRIPT))['pictures']()


def assert_alike(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    """Compare the pictures of the loops with those of the kernels, at the stated tolerances."""
    assert one.keys() == two.keys()
    for name, expected in one.items():
        got = two[name]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
        if name.endswith('depth'):
            np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected), name)
            known = np.isfinite(expected)
            apart = np.abs(got[known] - expected[known]) > DEPTH_TOLERANCE * expected[known]
            assert known.mean() > 0.1 and apart.mean() < 1e-3, name
        elif name.endswith('radiance'):
            apart = np.abs(got - expected) > RADIANCE_TOLERANCE * expected.max()
            assert apart.mean() < 0.01, name
        elif name in ('frame_left', 'frame_right'):
            # A rounded radiance may fall on either side of a step.
            assert expected.std() > 10
            assert (np.abs(got.astype(int) - expected.astype(int)) <= 1).mean() > 0.99, name
        else:
            assert (got == expected).mean() > 0.998, name


def test_kernels_give_the_pictures_of_the_loops(on_cpu, tmp_path):
    """In numba's simulator: the kernels' own code, run in Python thread by thread."""
    pytest.importorskip('numba.cuda')
    out = tmp_path / 'pictures.npz'
    simulated = {'NUMBA_ENABLE_CUDASIM': '1', 'NUMBA_DISABLE_JIT': '1'}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(out)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), **simulated},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    with np.load(out) as pictures:
        assert_alike(on_cpu, {name: pictures[name] for name in pictures if name != 'operations'})
        # Of torch on the device, for a pair: each costs some microseconds, at any size.
        assert int(pictures['operations']) < 40, result.stdout
    assert 0.05 < on_cpu['four_rays_shadow'].mean() < 0.95
    states = np.concatenate([on_cpu[f'sunlit_{k}'] for k in range(3)])
    assert all((states == state).sum() > 20 for state in (DARK, LIT, MIXED))


@pytest.mark.gpu
def test_cuda_gives_the_pictures_of_the_loops(on_cpu):
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    assert rendering_device('cuda').type == 'cuda'
    assert_alike(on_cpu, runpy.run_path(str(SCRIPT))['pictures']('cuda'))


@pytest.fixture
def launches(monkeypatch) -> list:
    """Keep what kernels would be started with, on arrays of the CPU, instead of starting them."""
    kernels = pytest.importorskip('lunar_stereo_recon.simulation.kernels')
    kept: list = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, configuration):
            return lambda *arguments: kept.append((self.kernel, configuration, arguments))

    @contextmanager
    def no_stream(device):
        yield 0

    monkeypatch.setattr(kernels, '_stream', no_stream)
    monkeypatch.setattr(kernels, 'device_array', torch.Tensor.numpy)
    for name in ('trace_kernel', 'render_kernel'):
        monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name)))
    monkeypatch.setattr(renderer, '_is_on_cpu', lambda terrain: False)
    return kept


def test_a_view_is_one_launch_that_covers_every_pixel(small_terrain, view_from, launches):
    render(small_terrain, view_from((-1.5, 0.0, 2.0), size=(65, 50)), Lighting(40.0, 0.0), 4)
    [(_, (grid, block, _), _)] = launches
    for size, blocks, threads in zip((65, 50), grid, block, strict=True):
        assert blocks * threads >= size > (blocks - 1) * threads
    launches.clear()
    rays = torch.zeros(1000, 3)
    trace(small_terrain, rays[0], rays)
    [(_, (grid, block, _), _)] = launches
    assert grid * block >= 1000 > (grid - 1) * block
    trace(small_terrain, rays[0], rays[:0])
    assert len(launches) == 1


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_kernels_compile_for_gpus(
    small_terrain, view_from, launches, monkeypatch, tmp_path, architecture
):
    """With the real compiler, to PTX and machine code, for the arguments that a view needs."""
    cuda = pytest.importorskip('numba.cuda')
    if getattr(cuda, 'implementation', '') != 'NVIDIA':
        pytest.skip('numba-cuda (extra [cuda12] or [cuda13]) is not installed')
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvvm

    if not nvvm.is_available():
        pytest.skip('NVVM (extra [cuda12] or [cuda13]) is not installed')
    # Asked for by functions that kernels call; without a GPU there is no answer.
    device = SimpleNamespace(compute_capability=architecture)
    monkeypatch.setattr(dispatcher, 'get_current_device', lambda: device)
    view, low = view_from((-1.5, 0.0, 2.0)), Lighting(12.0, 0.0)
    pose = torch.eye(4)
    box = (Box((0.0, 0.0, 0.5), (0.1, 0.1, 0.1)),)
    trace(small_terrain, view.position_m, view.rays())
    render(small_terrain, view, low, 2, box, pose)
    for kernel, _, arguments in launches:
        types = tuple(numba.typeof(value) for value in arguments)
        ptx, _ = cuda.compile_ptx(kernel.py_func, types, cc=architecture)
        assert '.visible .entry' in ptx and f'.target sm_{architecture[0]}{architecture[1]}' in ptx
        # Everything is inside: nothing of Python or of numba's run time, which GPUs lack.
        assert '.extern' not in ptx
        assert machine_code(ptx, architecture)[:4] == b'\x7fELF'


def machine_code(ptx: str, architecture: tuple[int, int]) -> bytes:
    """Return PTX assembled for a GPU; it fails where a GPU could not run it."""
    linker = pytest.importorskip('cuda.bindings.nvjitlink')
    options = [f'-arch=sm_{architecture[0]}{architecture[1]}']
    link = linker.create(len(options), options)
    try:
        source = ptx.encode()
        linker.add_data(link, linker.InputType.PTX, source, len(source), 'kernel')
        linker.complete(link)
        code = bytearray(linker.get_linked_cubin_size(link))
        linker.get_linked_cubin(link, code)
    finally:
        linker.destroy(link)
    return bytes(code)
