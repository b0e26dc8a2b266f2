"""Dropout whose masks are cheap on a CPU, where torch draws every element by itself, on one core."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
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
