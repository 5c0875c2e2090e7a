"""How long a teacher's forward pass takes here; the time does not depend on its weights."""

from __future__ import annotations

from dataclasses import dataclass
import time

import torch
from tqdm import tqdm

from training.models.mast3r import Mast3r, Mast3rConfig

REPEATS = 3


@dataclass(frozen=True)
class ForwardTime:
    """Time of one pair through a network.

    Attributes:
        parameters: Number of weights.
        width, height: Width and height of each image, pixels.
        milliseconds: The best of several runs, after one that does not count.
    """

    parameters: int
    width: int
    height: int
    milliseconds: float


def teacher_time(
    width: int, height: int, threads: int, config: Mast3rConfig | None = None
) -> ForwardTime:
    """Time a MASt3R teacher on the CPU; at full size it takes 3 GB of memory.

    Args:
        width, height: Width and height of each image, multiples of 16.
        threads: Threads of torch, for this measurement.
        config: Sizes; the official ones where None.

    Raises:
        InputError: A side is not a multiple of 16.
    """
    # Drawing 700 million random weights would take longer than the measurement.
    with torch.device('meta'):
        network = Mast3r(config or Mast3rConfig())
    network = network.to_empty(device='cpu').eval()
    for weight in network.parameters():
        torch.nn.init.constant_(weight, 1e-3)
    image = torch.full((1, 3, height, width), 0.5)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds = []
    try:
        with torch.inference_mode():
            for _ in tqdm(range(1 + REPEATS), desc='timing', unit='pair'):
                start = time.perf_counter()
                network(image, image)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads_before)
    parameters = sum(weight.numel() for weight in network.parameters())
    return ForwardTime(parameters, width, height, 1e3 * min(seconds[1:]))
