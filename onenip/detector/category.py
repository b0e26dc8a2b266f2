"""Per-category state (prompts, statistics, memory) and the anomaly maps computed from it.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `N = h * w`, `C` channels, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onenip.detector.prediction import REACH_SPREADS, UNLIKE_SPREADS
from onenip.detector.scoring import Fusion, Scale
from onenip.errors import CheckpointError
from onenip.model.network import CategoryStatistics, Features, Network
from onenip.model.refiner import upsample_logits

_MIN_REACH_PROMPTS, _MIN_REACH_NORMALS = 3, 5  # with fewer their spread says little


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


def dump_state(name: str, state: CategoryState) -> dict[str, Tensor]:
    """Tensors of a model file that hold a category's state, which `read_state` reads back."""
    tensors = {kind: getattr(state, kind) for kind in ("prompts", "encoded", "embeddings")}
    for prefix, one in (("", state.statistics), ("detail.", state.statistics.detail)):
        if one is not None:
            memory = one.memory.half()
            tensors |= {
                f"{prefix}mean": one.mean,
                f"{prefix}std": one.std,
                f"{prefix}memory": memory,
            }
    return {f"category.{name}.{key}": tensor for key, tensor in tensors.items()}


def read_state(
    network: Network, tensors: Mapping[str, Tensor], name: str, *, zooms: bool, origin: str
) -> CategoryState:
    """State of a category, on the network's device, of a model file's tensors.

    Args:
        network: folded.
        tensors: of the model file.
        name: of the category.
        zooms: whether it has statistics of details, too.
        origin: what to call the model in errors.

    Raises:
        CheckpointError: if a tensor is missing or does not fit the network.
    """
    prefix = f"category.{name}."
    try:
        prompts = tensors[f"{prefix}prompts"]
        known = [_take_statistics(tensors, prefix)]
        if zooms:
            known.append(_take_statistics(tensors, f"{prefix}detail."))
    except KeyError as error:
        raise CheckpointError(f"{origin}: tensor {error} is missing") from error
    tokens = [tensors.get(prefix + kind) for kind in ("encoded", "embeddings")]
    _check_category(network, name, prompts, tokens, known, origin=origin)
    device = network.coarse_mean.device
    statistics = replace(known[0], detail=known[1] if zooms else None).to(device)
    encoded, embeddings = tokens
    if encoded is None or embeddings is None:  # of a model of an earlier version
        return build_state(network, prompts, statistics)
    return CategoryState(prompts, encoded.to(device), embeddings.to(device), statistics)


def draw_fused(
    network: Network, features: Features, state: CategoryState, fusion: Fusion
) -> tuple[Tensor, Tensor]:
    """Fused maps [B, H, W] of images of one category, from their features, and `measure_unlike` of each."""
    maps = draw_maps(network, features, state)
    return fusion.fuse(maps), measure_unlike(maps, fusion.scales)


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
    return REACH_SPREADS * spread


def measure_unlike(maps: Mapping[str, Tensor], scales: Mapping[str, Scale]) -> Tensor:
    """Share [B] of each image that is unlike a category's memory; 0 without one. See `Prediction`."""
    if "distance" not in maps:
        return maps["restoration"].new_zeros(len(maps["restoration"]))
    scale = scales["distance"]
    limit = scale.mean + UNLIKE_SPREADS * scale.std
    return (maps["distance"] > limit).float().mean((1, 2))


def measure_distances(embeddings: Tensor, prompts: Tensor) -> Tensor:
    """Euclidean distances [B, K] of images' global embeddings [B, C] from those of prompts [K, C]."""
    return (embeddings[:, None] - prompts).square().sum(2).sqrt()


def _take_statistics(tensors: Mapping[str, Tensor], prefix: str) -> CategoryStatistics:
    """Statistics and memory among a model's tensors.

    Raises:
        KeyError: naming a tensor that is missing.
    """
    mean, std, memory = (tensors[prefix + name] for name in ("mean", "std", "memory"))
    return CategoryStatistics(mean, std, memory.float())


def _check_category(
    network: Network,
    name: str,
    prompts: Tensor,
    tokens: Sequence[Tensor | None],
    statistics: Sequence[CategoryStatistics],
    *,
    origin: str,
) -> None:
    """Make sure that the tensors of a category fit the network; its tokens may be absent.

    Raises:
        CheckpointError: naming the category and the first that does not.
    """
    checks = {
        "prompts": prompts.dtype == torch.uint8
        and len(prompts) > 0
        and tuple(prompts.shape[1:]) == (*network.params.input_size, 3),
    }
    positions = network.grid[0] * network.grid[1]
    sizes = ((positions, network.params.width), (network.channels,))
    for kind, tensor, size in zip(("encoded", "embeddings"), tokens, sizes, strict=True):
        fits = tensor is None or (
            tensor.is_floating_point() and tensor.shape == (len(prompts), *size)
        )
        checks[kind] = fits
    for prefix, one in zip(("", "detail."), statistics, strict=False):
        mean, std, memory = one.mean, one.std, one.memory
        checks |= {
            f"{prefix}mean": len(mean) in (0, network.channels),
            f"{prefix}std": std.shape == mean.shape and bool((std > 0).all()),
            f"{prefix}memory": memory.shape[1:] == mean.shape
            and (len(memory) > 0) == network.uses_memory,
        }
    for key, fits in checks.items():
        if not fits:
            raise CheckpointError(f"{origin}: tensor category.{name}.{key} does not fit the model")
