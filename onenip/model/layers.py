"""Batch normalisation whose statistics are those of the whole batch, however many processes share it.

torch's own `SyncBatchNorm` does this on GPUs alone; here one process, many, CPU and GPU give the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes that train together.

    With one process, and in eval mode, it is torch's, to the last bit; tensors have the same names. All
    processes must give batches of one size.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """[B, C, H, W] to the same."""
        if not (self.training and _is_shared()):
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        processes = distributed.get_world_size()
        x = input.float()  # mixed precision gives halves
        mean = _SumOverProcesses.apply(x.mean((0, 2, 3))) / processes  # [C]
        centred = x - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().mean((0, 2, 3))) / processes  # [C]
        count = processes * input.numel() / input.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # unbiased
        scale = self.weight * (variance + self.eps).rsqrt()  # [C]
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _is_shared() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
