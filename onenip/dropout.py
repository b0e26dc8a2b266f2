"""Dropout whose masks are cheap on a CPU, where torch draws every element by itself, on one core."""

from __future__ import annotations

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

    def forward(self, x: Tensor) -> Tensor:
        """Float of any shape, to the same."""
        if not self.training or self._dropped == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.probability)
        bits = _draw_bits(x.numel()).view(x.shape)  # uniform in -2**15..2**15 - 1
        kept = bits >= self._dropped - _LEVELS // 2
        scale = _LEVELS / max(_LEVELS - self._dropped, 1)
        return x * torch.where(kept, scale, 0.0).to(x.dtype)


def _draw_bits(count: int) -> Tensor:
    """16 random bits each, [count] int16."""
    seed = int(torch.randint(2**62, ()).item())
    raw = np.random.SFC64(seed).random_raw(-(-count // 4))
    return torch.from_numpy(raw.view(np.int16))[:count]
