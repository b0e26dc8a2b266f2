"""From maps to scores: fusing the kinds of map, and pooling a map to an image's score.

Pure functions of one image's maps: a score never depends on other images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from onenip.model.file import MapScale
from onenip.params import CalibrateParams

MAP_KINDS = ("restoration", "distance", "refined")


def fuse_maps(
    maps: Mapping[str, Tensor],
    *,
    params: CalibrateParams,
    scales: Mapping[str, MapScale],
    fusion_constant: float,
) -> Tensor:
    """One map of several kinds.

    Args:
        maps: [B, H, W] float each, by kind: `restoration` (L2 distance), `distance` (to the memory;
            absent without one) and `refined` (logits).
        params: the rule.
        scales: usual values of each kind over normal images, for `standardized`.
        fusion_constant: (max + min) / 2 of restoration maps over calibration images, for `paper`.

    Returns:
        [B, H, W] float; higher is more anomalous.

    Source: OneNIP section 3.6; spec section 7.
    Differs: the constant is fixed at training time, where the authors' code takes it from the test set.
    """
    if params.fusion == "paper":
        return 0.5 * maps["restoration"] + 0.5 * fusion_constant * maps["refined"].sigmoid()
    fused = torch.zeros_like(maps["restoration"])
    total = sum(weight for kind, weight in params.fusion_weights.items() if kind in maps)
    for kind, weight in params.fusion_weights.items():
        if kind in maps and weight > 0:
            fused = fused + weight / total * (maps[kind] - scales[kind].mean) / scales[kind].std
    return fused


def score_maps(fused: Tensor, *, pooling_px: int) -> Tensor:
    """Image scores [B] of fused maps [B, H, W]: the maximum after average pooling with stride 1.

    Source: OneNIP section 3.6; spec section 7.
    """
    height, width = min(pooling_px, fused.shape[1]), min(pooling_px, fused.shape[2])
    columns = functional.avg_pool2d(
        fused[:, None], (height, 1), stride=1
    )  # one axis, then the other:
    pooled = functional.avg_pool2d(
        columns, (1, width), stride=1
    )  # the same mean, far fewer additions
    return pooled.flatten(1).amax(1)


def measure_scale(maps: Tensor) -> MapScale:
    """Usual values of normal images' maps [B, H, W]."""
    values = maps.double()
    return MapScale(mean=float(values.mean()), std=max(float(values.std(correction=0)), 1e-6))


def resize_map(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map [h, w] at another size (H, W) in px, bilinear: [H, W] float32."""
    if values.shape == size:
        return values
    resized = functional.interpolate(
        torch.tensor(values)[None, None], size=size, mode="bilinear", align_corners=False
    )
    return resized[0, 0].numpy()
