"""Per-category state (prompts, statistics, memory) and the anomaly maps computed from it.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `N = h * w`, `C` channels, `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onenip.detector.scoring import Fusion
from onenip.model.network import CategoryStatistics, Features, Network
from onenip.model.refiner import upsample_logits

_MIN_REACH_PROMPTS, _MIN_REACH_NORMALS = 3, 5  # with fewer their spread says little
_REACH_SPREADS = 4.0  # of training images: those of another product lie 12 spreads away and more


@dataclass(frozen=True)
class Excluded:
    """Memory tokens that images may not match, being their own.

    Attributes:
        fine: [B, M] bool; None for none.
        detail: [B, M] bool, of the memory of details; None for none.
    """

    fine: Tensor | None = None
    detail: Tensor | None = None


NONE_EXCLUDED = Excluded()


@dataclass(frozen=True)
class CategoryState:
    """Tensors that the network needs of a category.

    Attributes:
        prompts: [K, H, W, 3] uint8 at input size.
        encoded: [K, N, D] float, the prompts' encoded tokens.
        embeddings: [K, C] float, the prompts' mean coarse features, by which the nearest one is found.
        statistics: channel statistics and memory.
    """

    prompts: Tensor
    encoded: Tensor
    embeddings: Tensor
    statistics: CategoryStatistics


def build_state(network: Network, prompts: Tensor, statistics: CategoryStatistics) -> CategoryState:
    """State of a category from its prompts [K, H, W, 3] uint8 and its statistics."""
    device = network.coarse_mean.device
    with torch.inference_mode():
        coarse = torch.cat(
            [network.embed(prompt[None].to(device)).coarse for prompt in prompts]
        )  # [K, C, h, w]
        encoded = torch.cat([network.encode(one[None]) for one in coarse])  # [K, N, D]
    return CategoryState(prompts, encoded, embed_globally(coarse), statistics.to(device))


def draw_fused(
    network: Network, features: Features, state: CategoryState, fusion: Fusion
) -> Tensor:
    """Fused maps [B, H, W] of images of one category, from their features."""
    return fusion.fuse(draw_maps(network, features, state))


def draw_maps(
    network: Network,
    features: Features,
    state: CategoryState,
    *,
    excluded: Excluded = NONE_EXCLUDED,
) -> dict[str, Tensor]:
    """Every kind of map of images of one category, each restored with the prompt nearest to it.

    Args:
        network: in eval mode.
        features: of the images.
        state: of the category.
        excluded: memory tokens that an image may not match, being its own.

    Returns:
        As `draw_restored`.
    """
    distances = measure_distances(embed_globally(features.coarse), state.embeddings)  # [B, K]
    prompts = state.encoded.index_select(0, distances.argmin(1))  # [B, N, D]
    restored = network.decode(network.encode(features.coarse), prompts)  # [B, C, h, w]
    return draw_restored(network, features, restored, state.statistics, excluded=excluded)


def draw_restored(
    network: Network,
    features: Features,
    restored: Tensor,
    statistics: CategoryStatistics,
    *,
    excluded: Excluded = NONE_EXCLUDED,
) -> dict[str, Tensor]:
    """Every kind of map of images of one category, given their reconstruction.

    Args:
        network: in eval mode.
        features: of the images.
        restored: their reconstructed coarse features, [B, C, h, w].
        statistics: of the category.
        excluded: memory tokens that an image may not match, being its own.

    Returns:
        `restoration`, `refined` (logits) and, with a memory, `distance`; with a zoom also `detail` and
        `refined_detail`, the last two on its finer grid: [B, H, W] float each.
    """
    error = (restored - features.coarse).abs()
    maps = {"restoration": network.restoration_map(restored, features.coarse)}
    distance, maps["refined"] = _match_and_refine(
        network, error, features.fine, statistics, excluded.fine
    )
    if distance is not None:
        maps["distance"] = distance
    if statistics.detail is not None and features.detail is not None:
        distance, maps["refined_detail"] = _match_and_refine(
            network, error, features.detail, statistics.detail, excluded.detail
        )
        if distance is not None:
            maps["detail"] = distance
    return maps


def _match_and_refine(
    network: Network,
    error: Tensor,
    fine: Tensor,
    statistics: CategoryStatistics,
    excluded: Tensor | None,
) -> tuple[Tensor | None, Tensor]:
    """Map of distances to the memory, None without one, and refined map, of features on some fine grid."""
    fine = statistics.standardize(fine)
    tokens = network.average_tokens(fine) if fine.shape[1] else fine
    distance, matched = fine[:, :0].flatten(1), fine[:, :0]
    map_ = None
    if network.uses_memory:
        match = network.match(tokens, statistics.memory, excluded=excluded)
        distance, matched = match.distance, statistics.memory[match.index]
        map_ = network.distance_map(distance.unflatten(1, fine.shape[2:]))
    logits = network.refine(
        error=error, fine=fine, tokens=tokens, distance=distance, matched=matched
    )
    return map_, upsample_logits(logits, network.params.input_size)


def embed_globally(coarse: Tensor) -> Tensor:
    """Mean of coarse features [B, C, h, w] over positions, [B, C]: a description of the whole image."""
    return coarse.float().mean((2, 3))


def measure_reach(embeddings: Tensor, *, normals: int) -> float | None:
    """Distance from a category's nearest prompt beyond which an image shows something else.

    The last prompt is the normal image that lies farthest from the others, so no normal image of the training
    lies farther; defects may, and further normal images, by a part of it.

    Args:
        embeddings: [K, C] float, of the category's prompts, in the order in which they were chosen.
        normals: how many normal images they were chosen from; None with few, or with few prompts.
    """
    if len(embeddings) < _MIN_REACH_PROMPTS or normals < _MIN_REACH_NORMALS:
        return None
    spread = float((embeddings[:-1] - embeddings[-1]).norm(dim=1).min())
    return _REACH_SPREADS * spread


def measure_distances(embeddings: Tensor, prompts: Tensor) -> Tensor:
    """Euclidean distances [B, K] of images' global embeddings [B, C] from those of prompts [K, C]."""
    return (embeddings[:, None] - prompts).square().sum(2).sqrt()
