"""Features of images: computed once each, the same whoever reads them."""

import numpy as np
import pytest
import torch

from onenip.data.cache import Cache
from onenip.detector.embedding import Embedder
from onenip.model.folding import fold_network
from onenip.model.network import Network
from tests.tiny import SIZE, draw_normal, make_tiny_params


@pytest.fixture(scope="module")
def network():
    """A tiny network with random weights, of a standardisation that changes something."""
    torch.manual_seed(0)
    network = Network(make_tiny_params().model).eval()
    network.coarse_mean.fill_(0.25)
    return network


def draw(seed, *, zoom=1):
    image = draw_normal("disc", np.random.default_rng(seed))
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


@pytest.mark.parametrize("zoom", [1, 2])
def test_features_are_those_of_the_network(network, tmp_path, zoom):
    """Computed or read, they are bit for bit what an image that is judged gets, at every zoom."""
    image = draw(0, zoom=zoom)
    assert image.shape[0] == SIZE * zoom
    with torch.inference_mode():
        judged = fold_network(network).embed(torch.tensor(image)[None])
    for _ in range(2):
        embedder = Embedder(network, Cache(tmp_path))
        found = embedder.standardize(embedder.embed(image))
        for name in ("coarse", "fine", *(["detail"] if zoom > 1 else [])):
            ours, theirs = getattr(found, name), getattr(judged, name)
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()

    assert embedder.cache.made == {}


def test_only_new_images_are_embedded(network, tmp_path):
    """Three images of which two are known compute one, whatever the trained part has become."""
    known = Embedder(network, Cache(tmp_path))
    for seed in range(2):
        known.embed(draw(seed))
    with torch.no_grad():
        network.reconstruction.final_norm.bias.add_(1)
    later = Embedder(network, Cache(tmp_path))
    for seed in range(3):
        later.embed(draw(seed))

    assert later.cache.made == {later.kind: 1}


def test_features_of_other_weights_are_not_taken(network, tmp_path):
    """A backbone that differs in one weight has entries of its own."""
    first = Embedder(network, Cache(tmp_path))
    weight = next(iter(network.backbone.parameters()))
    with torch.no_grad():
        weight.view(-1)[0] += 1
        other = Embedder(network, Cache(tmp_path))
        weight.view(-1)[0] -= 1

    assert first.kind != other.kind


def test_an_image_whose_entry_is_gone_is_embedded_again(network, tmp_path):
    """What holds an image's features reads its pixels again where the cache was emptied."""
    embedder = Embedder(network, Cache(tmp_path))
    read = embedder.hold(lambda: draw(0))
    first = read()
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()

    assert torch.equal(read().coarse, first.coarse)
