"""Fusing the kinds of map into one, and pooling a map to an image's score.

Pure functions of one image's maps: a score never depends on other images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, zeros_like
from torch.nn import functional

from onenip.errors import ParamsError
from onenip.model.file import MapScale
from onenip.params import CalibrateParams


class Scale(Protocol):
    """Mean and standard deviation of one kind of map over normal images."""

    @property
    def mean(self) -> float | Tensor:
        """Mean over pixels."""
        ...

    @property
    def std(self) -> float | Tensor:
        """Standard deviation over pixels."""
        ...


@dataclass(frozen=True)
class Fusion:
    """The rule by which the kinds of map of a category become one map.

    Attributes:
        params: the rule and the weights.
        scales: mean and standard deviation by kind of map, for the rule `standardized`.
        constant: (max + min) / 2 of restoration maps over calibration images, for the rule `paper`.
    """

    params: CalibrateParams
    scales: Mapping[str, Scale]
    constant: float | Tensor

    def fuse(self, maps: Mapping[str, Tensor]) -> Tensor:
        """One map of several kinds.

        Args:
            maps: [B, H, W] float each, by kind: `restoration` (L2 distance), `distance` (to the memory;
                absent without one) and `refined` (logits).

        Returns:
            [B, H, W] float; higher is more anomalous.

        Raises:
            ParamsError: if no kind of map that there is has a weight.

        Source: OneNIP section 3.6; spec section 7.
        Differs: the constant is fixed at training time, where the authors' code takes it from the test
            set.
        """
        if self.params.fusion == "paper":
            return 0.5 * maps["restoration"] + 0.5 * self.constant * maps["refined"].sigmoid()
        fused = zeros_like(maps["restoration"])
        weights = {kind: w for kind, w in self.params.fusion_weights.items() if kind in maps}
        total = sum(weights.values())
        if total <= 0:
            raise ParamsError(
                f"calibrate.fusion_weights: no weight above 0 for any of {', '.join(maps)}",
                key="calibrate.fusion_weights",
            )
        for kind, weight in weights.items():
            if weight > 0:
                scale = self.scales[kind]
                fused = fused + weight / total * (maps[kind] - scale.mean) / scale.std
        return fused


def score_maps(fused: Tensor, params: CalibrateParams) -> Tensor:
    """Image scores [B] of fused maps [B, H, W], pooled as the params say.

    Source: OneNIP section 3.6 and spec section 7 for `peak`: average pooling with stride 1, then the maximum.
    """
    if params.pooling == "top":
        count = max(round(params.pooling_share * fused.shape[1] * fused.shape[2]), 1)
        return fused.flatten(1).topk(count, dim=1).values.mean(1)
    side = params.pooling_px
    height, width = min(side, fused.shape[1]), min(side, fused.shape[2])
    # One axis, then the other: the same mean with far fewer additions.
    columns = functional.avg_pool2d(fused[:, None], (height, 1), stride=1)
    pooled = functional.avg_pool2d(columns, (1, width), stride=1)
    return pooled.flatten(1).amax(1)


def measure_scale(maps: Tensor) -> MapScale:
    """Mean and standard deviation over pixels of a usual normal image: medians over maps [B, H, W]."""
    values = maps.double().flatten(1)
    mean = float(values.mean(1).quantile(0.5))
    variance = float((values - mean).square().mean(1).quantile(0.5))
    return MapScale(mean=mean, std=max(variance**0.5, 1e-6))
