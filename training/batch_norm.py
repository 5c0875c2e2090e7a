"""Batch normalisation over all processes of a run, on any device.

With plain batch norm each process normalises by its own share of the batch, so two processes do
not compute what one would. PyTorch's own synchronized form runs on GPUs only.
"""

from __future__ import annotations

import torch
from torch import distributed, nn, Tensor
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all processes' items."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        x32 = x.float()
        # Processes hold equally many items of equal size, so means of means are means.
        mean = _mean_over_processes(x32.mean(dim=(0, 2, 3)))
        centred = x32 - mean[:, None, None]
        variance = _mean_over_processes(centred.square().mean(dim=(0, 2, 3)))
        self._update_running(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * gain[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _update_running(self, mean: Tensor, variance: Tensor, local_count: int) -> None:
        count = local_count * distributed.get_world_size()
        momentum = 0.1 if self.momentum is None else self.momentum
        with torch.no_grad():
            for name, value in (('mean', mean), ('var', variance * count / max(count - 1, 1))):
                self.get_buffer(f'running_{name}').lerp_(value, momentum)
            self.get_buffer('num_batches_tracked').add_(1)


def _mean_over_processes(value: Tensor) -> Tensor:
    return all_reduce(value) / distributed.get_world_size()


def share_batch_norms(module: nn.Module) -> None:
    """Replace every batch norm inside a module; parameters, buffers and names stay."""
    for name, child in module.named_children():
        if type(child) is not nn.BatchNorm2d:
            share_batch_norms(child)
            continue
        shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
        shared.weight, shared.bias = child.weight, child.bias
        shared.load_state_dict(child.state_dict())
        setattr(module, name, shared.to(child.weight.device))
