"""A category's token memory: a fixed number of normal tokens, and the nearest one to each query token.

Its size is set by params and does not grow with the number of normal images. Knows nothing of images.

Axes: `M` tokens in memory, `N` tokens of a query, `C` channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PROJECTED = 64  # dimensions in which the coreset is chosen
_POOL_LIMIT = 200_000  # tokens that the coreset is chosen from, at most
_EXCLUDED = 1e9  # squared distance of a token that may not be matched


def select_coreset(tokens: Tensor, *, count: int, generator: torch.Generator) -> Tensor:
    """Indices of tokens that cover all the others: greedy k-center.

    Args:
        tokens: [T, C] float.
        count: how many to select; all where there are fewer.
        generator: source of the random projection and of the first pick.

    Returns:
        [min(count, T)] int64, sorted.

    Source: Sener and Savarese, ICLR 2018; PatchCore (CVPR 2022), section 3.2, with its random
        projection.
    """
    pool = torch.arange(len(tokens))
    if len(pool) > _POOL_LIMIT:
        pool = torch.randperm(len(tokens), generator=generator)[:_POOL_LIMIT].sort().values
    if len(pool) <= count:
        return pool
    projection = torch.randn(tokens.shape[1], _PROJECTED, generator=generator) / _PROJECTED**0.5
    points = tokens[pool].float() @ projection.to(tokens.device)  # [T, 64]
    lengths = points.square().sum(1)
    picks = torch.empty(count, dtype=torch.int64)
    picks[0] = int(torch.randint(len(pool), (), generator=generator))
    distance = torch.full_like(lengths, torch.inf)  # squared, to the nearest pick
    for i in range(1, count):
        last = points[picks[i - 1]]
        squared = torch.addmv(lengths, points, last, alpha=-2).add_(last.square().sum())
        torch.minimum(distance, squared, out=distance)
        picks[i] = distance.argmax()
    return pool[picks].sort().values


def match_tokens(
    query: Tensor, memory: Tensor, *, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Nearest memory token of each query token, by Euclidean distance.

    Args:
        query: [N, C] float.
        memory: [M, C] float.
        excluded: [M] bool, True for tokens that may not be matched (those of the query's own image);
            ignored where it would leave none.

    Returns:
        Distances [N] float and indices [N] int64.
    """
    squared = torch.addmm(memory.square().sum(1)[None], query, memory.T, alpha=-2)  # [N, M]
    if excluded is not None and not bool(excluded.all()):
        squared = squared.masked_fill(excluded[None], _EXCLUDED)
    nearest, index = squared.min(dim=1)
    distance = (nearest + query.square().sum(1)).clamp_min(0).sqrt()
    return distance, index
