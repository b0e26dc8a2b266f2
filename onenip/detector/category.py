"""What a network keeps of a category, and the maps that it draws with that.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `N = h * w`, `C` channels, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onenip.detector.scoring import fuse_maps
from onenip.model.file import CategorySpec
from onenip.model.network import CategoryStatistics, Features, Network
from onenip.model.refiner import upsample_logits
from onenip.params import CalibrateParams


@dataclass(frozen=True)
class CategoryState:
    """Tensors that the network needs of a category.

    Attributes:
        prompts: [K, H, W, 3] uint8 at input size.
        encoded: [K, N, D] float, the prompts' encoded tokens.
        embeddings: [K, C] float, the prompts' mean coarse features, which tell categories apart.
        statistics: usual features and memory.
    """

    prompts: Tensor
    encoded: Tensor
    embeddings: Tensor
    statistics: CategoryStatistics


def build_state(network: Network, prompts: Tensor, statistics: CategoryStatistics) -> CategoryState:
    """What the network needs of a category, from its prompts [K, H, W, 3] uint8 and its statistics."""
    device = network.coarse_mean.device
    with torch.inference_mode():
        coarse = torch.cat(
            [network.embed(prompt[None].to(device)).coarse for prompt in prompts]
        )  # [K, C, h, w]
        encoded = torch.cat([network.encode(one[None]) for one in coarse])  # [K, N, D]
    return CategoryState(prompts, encoded, embed_globally(coarse), statistics)


def draw_maps(
    network: Network,
    features: Features,
    restored: Tensor,
    statistics: CategoryStatistics,
    *,
    excluded: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every kind of map of a batch of one category.

    Args:
        network: in eval mode.
        features: of the queries.
        restored: their reconstruction, [B, C, h, w].
        statistics: the category's.
        excluded: [B, M] bool, memory tokens that an image may not match, being its own.

    Returns:
        `restoration`, `refined` (logits) and, with a memory, `distance`: [B, H, W] float each.
    """
    fine = statistics.standardize(features.fine)
    maps = {"restoration": network.restoration_map(restored, features.coarse)}
    distance, matched = fine[:, :0].flatten(1), fine[:, :0]
    if network.uses_memory:
        match = network.match(network.average_tokens(fine), statistics.memory, excluded=excluded)
        distance, matched = match.distance, statistics.memory[match.index]
        maps["distance"] = network.distance_map(distance)
    logits = network.refine(
        coarse=features.coarse, restored=restored, fine=fine, distance=distance, matched=matched
    )
    maps["refined"] = upsample_logits(logits, network.params.input_size)
    return maps


def fuse_for(maps: Mapping[str, Tensor], params: CalibrateParams, category: CategorySpec) -> Tensor:
    """Fused map [B, H, W] by a category's own scales."""
    return fuse_maps(
        maps, params=params, scales=category.scales, fusion_constant=category.fusion_constant
    )


def embed_globally(coarse: Tensor) -> Tensor:
    """Mean of coarse features [B, C, h, w] over positions, [B, C]: what an image looks like."""
    return coarse.float().mean((2, 3))
