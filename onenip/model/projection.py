"""Linear layers of tokens, trained on a CPU through oneDNN.

torch multiplies float32 matrices by MKL, which uses its widest instructions on Intel's processors alone;
convolutions go to oneDNN, which uses those of any processor. A linear layer is a 1 x 1 convolution.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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
