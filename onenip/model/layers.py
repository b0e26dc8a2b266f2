"""Layers of the trained part: dropout, linear layers of tokens, batch normalisation shared by processes."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

_LEVELS = 1 << 16  # a mask is decided by 16 random bits an element


class Dropout(nn.Module):
    """`torch.nn.Dropout`; on a CPU the masks come from a faster generator, seeded by torch's own.

    Args:
        probability: chance that an element is set to 0, in training only; the others grow to make up for it.

    Source: Srivastava et al. 2014; the generator is SFC64 (PractRand).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self._dropped = round(probability * _LEVELS)
        self._scale = _LEVELS / max(_LEVELS - self._dropped, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Float of any shape, to the same."""
        if not self.training or self._dropped == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.probability)
        return x * self._draw_mask(x)

    def _draw_mask(self, x: Tensor) -> Tensor:
        """0 where an element is dropped, else what it grows by: the shape and dtype of `x`."""
        bits = _draw_bits(x.numel()).view(x.shape)  # uniform in -2**15..2**15 - 1
        mask = torch.empty(x.shape, dtype=x.dtype)
        torch.ge(bits, self._dropped - _LEVELS // 2, out=mask)
        return mask.mul_(self._scale)


class ReluDropout(Dropout):
    """Dropout of `relu(x)`; on a CPU it keeps one tensor for the gradient, where the two keep three."""

    def forward(self, x: Tensor) -> Tensor:
        """Float of any shape, to the same."""
        if not self.training or self._dropped == 0 or x.device.type != "cpu":
            return super().forward(functional.relu(x))
        result: Tensor = _MaskedRelu.apply(x, self._draw_mask(x), self._scale)
        return result


class _MaskedRelu(torch.autograd.Function):
    """`relu(x) * mask`, whose gradient is `scale` where the result is above 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        result = functional.relu(x).mul_(mask)
        ctx.save_for_backward(result)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, result, 0).mul_(ctx.scale), None, None


def _draw_bits(count: int) -> Tensor:
    """16 random bits each, [count] int16."""
    seed = int(torch.randint(2**62, ()).item())
    raw = np.random.SFC64(seed).random_raw(-(-count // 4))
    return torch.from_numpy(raw.view(np.int16))[:count]


class Projection(nn.Linear):
    """`torch.nn.Linear` of tokens."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """[B, N, C] to [B, N, C']."""
        return project(input, self.weight, self.bias, training=self.training)


def project(x: Tensor, weight: Tensor, bias: Tensor, *, training: bool) -> Tensor:
    """`x @ weight.T + bias`; in training it differs from torch's linear layer by rounding alone.

    Args:
        x: tokens, [B, N, C] float; copied where they are not contiguous.
        weight: [C', C].
        bias: [C'].
        training: whether to go through oneDNN, which pays for many samples at a time.

    Returns:
        [B, N, C'].
    """
    side = _divide_evenly(x.shape[1])
    fits = side > 1 and x.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not (training and fits):
        return functional.linear(x, weight, bias)
    image = x.unflatten(1, (side, -1)).permute(0, 3, 1, 2)  # [B, C, side, N / side], channels last
    projected = functional.conv2d(image, weight[:, :, None, None], bias)
    return projected.permute(0, 2, 3, 1).flatten(1, 2)


@functools.cache
def _divide_evenly(count: int) -> int:
    """The largest divisor of a count that is not above its square root."""
    return next(side for side in range(math.isqrt(count), 0, -1) if count % side == 0)


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
