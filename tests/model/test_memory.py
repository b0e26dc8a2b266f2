"""The token memory: coverage, nearest tokens, exclusion."""

import numpy as np
import torch
from sklearn.metrics import pairwise_distances

from onenip.model.memory import match_tokens, select_coreset


def test_matches_equal_a_full_distance_matrix():
    """Nearest distances and indices are those of scikit-learn's pairwise distances."""
    query, memory = torch.randn(30, 6), torch.randn(50, 6)
    full = pairwise_distances(query.numpy(), memory.numpy())

    distance, index = match_tokens(query, memory)

    assert np.allclose(distance, full.min(1), atol=1e-4)
    assert np.array_equal(index, full.argmin(1))


def test_excluded_tokens_are_not_matched():
    """A query never matches a token that it excludes, unless nothing else is there."""
    tokens = torch.randn(10, 4)
    excluded = torch.zeros(10, dtype=torch.bool)
    excluded[3] = True

    _, index = match_tokens(tokens[3][None], tokens, excluded=excluded)
    _, only = match_tokens(tokens[3][None], tokens, excluded=torch.ones(10, dtype=torch.bool))

    assert int(index) != 3
    assert int(only) == 3


def test_a_coreset_covers_better_than_chance():
    """Its farthest token is nearer than that of a random choice of the same size."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.cat([torch.randn(500, 8), torch.randn(5, 8) + 20])

    picks = select_coreset(tokens, count=20, generator=generator)
    chance = torch.randperm(505, generator=generator)[:20]

    def radius(chosen):
        return float(match_tokens(tokens, tokens[chosen])[0].max())

    assert len(set(picks.tolist())) == 20
    assert radius(picks) < radius(chance)


def test_a_small_pool_is_kept_whole():
    """Fewer tokens than asked for are all kept."""
    picks = select_coreset(torch.randn(7, 3), count=20, generator=torch.Generator())

    assert picks.tolist() == list(range(7))
