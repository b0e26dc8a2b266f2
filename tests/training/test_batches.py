"""Features of normal images, computed once and kept."""

import numpy as np
import pytest
import torch

from onenip.model.network import Network
from onenip.training.batches import embed_cached
from tests.tiny import draw_normal, make_tiny_params


@pytest.fixture(scope="module")
def network():
    """A tiny network with random weights."""
    torch.manual_seed(0)
    return Network(make_tiny_params().model).eval()


def draw(seed):
    rng = np.random.default_rng(seed)
    return np.stack([draw_normal("disc", rng) for _ in range(3)])


def embed(network, images, folder):
    return embed_cached(network, images, cache_dir=folder, progress=False)


def test_features_come_back_as_they_were(network, tmp_path):
    """Cached features are those that were computed, and another image has others."""
    computed = embed(network, draw(0), None)
    first, again = (embed(network, draw(0), tmp_path) for _ in range(2))
    other = embed(network, draw(1), tmp_path)

    for kind in ("coarse", "fine"):
        values = getattr(computed, kind)
        assert torch.equal(getattr(first, kind), values)
        assert torch.equal(getattr(again, kind), values)
        assert not torch.equal(getattr(other, kind), values)


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda _: b"", lambda b: b"x" + b[1:]])
def test_a_damaged_entry_is_made_anew(network, tmp_path, damage):
    """A file that was cut off, emptied or overwritten is not trusted."""
    first = embed(network, draw(0), tmp_path).coarse.clone()
    (file,) = tmp_path.glob("*/coarse.npy")
    file.write_bytes(damage(file.read_bytes()))

    assert torch.equal(embed(network, draw(0), tmp_path).coarse, first)


def test_features_of_other_weights_are_not_taken(network, tmp_path):
    """A backbone that differs in one weight has an entry of its own."""
    embed(network, draw(0), tmp_path)
    weight = next(iter(network.backbone.parameters()))
    with torch.no_grad():
        weight.view(-1)[0] += 1
        embed(network, draw(0), tmp_path)
        weight.view(-1)[0] -= 1

    assert len(list(tmp_path.iterdir())) == 2


def test_only_the_latest_entries_are_kept(network, tmp_path):
    """The cache does not grow with each data set that was ever trained on."""
    for seed in range(5):
        embed(network, draw(seed), tmp_path)

    assert len(list(tmp_path.iterdir())) == 3
