"""Losses, each a scalar to minimise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def dice_loss(probability: Tensor, target: Tensor, *, overlap_weight: float) -> Tensor:
    """Dice loss, mean over samples, with squares in the denominator and smoothing 1.

    Args:
        probability: [B, ...] float, 0..1.
        target: [B, ...] float, 0..1, the same shape.
        overlap_weight: 2 for Dice proper, 0 at a perfect match; 1 for the authors', about 0.5
            there.

    Returns:
        Scalar, 0..1.

    Source: OneNIP section 3.5; V-Net (3DV 2016), equation 3.
    """
    p, t = probability.flatten(1), target.flatten(1)
    overlap = overlap_weight * (p * t).sum(1)
    total = (p.square() + t.square()).sum(1)
    return (1 - (overlap + 1) / (total + 1)).mean()


def mask_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross entropy of logits [B, ...] and soft targets, 0..1, of the same shape."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def feature_mse(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of features of any shape: the paper's feature loss."""
    return torch.mean((reconstruction - target).square())
