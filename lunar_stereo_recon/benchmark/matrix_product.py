"""How fast this machine multiplies large matrices; run as a program, with a size.

A program of its own, because the library behind NumPy reads its number of threads only once, when
it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
import subprocess
import sys
import time

import numpy as np

SIZE = 2048
REPEATS = 5
THREAD_VARIABLES = ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS')


def gflops_reached(threads: int, size: int = SIZE) -> float:
    """Return the GFLOP/s of the best of several float32 products, in a process of its own."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    command = [sys.executable, '-m', 'lunar_stereo_recon.benchmark.matrix_product', str(size)]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(run.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """Print GFLOP/s."""
    size = int((argv or sys.argv[1:])[0])
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        np.matmul(left, right)
        seconds.append(time.perf_counter() - start)
    print(2 * size**3 / min(seconds) / 1e9)
    return 0


if __name__ == '__main__':
    sys.exit(main())
