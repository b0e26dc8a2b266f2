"""The training set: what is new costs, what there is does not."""

import pytest

from onenip.data.cache import Cache
from onenip.data.manifest import select
from onenip.training.batches import build_training_set
from onenip.training.fit import build_network, start_fabric
from tests.tiny import draw_tiny_data, list_samples, make_tiny_params


@pytest.fixture(scope="module")
def network():
    """A tiny network with its backbone's weights."""
    params = make_tiny_params()
    return build_network(params, start_fabric(params.train))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """30 normal images, of two categories in turns."""
    folder = draw_tiny_data(
        tmp_path_factory.mktemp("many"), train=15, test_good=0, defective=0, seed=5
    )
    found = list_samples(folder, make_tiny_params(data={"calibration_fraction": 0.0}))
    by_category = (select(found, category=name) for name in ("disc", "stripes"))
    return [sample for pair in zip(*by_category, strict=True) for sample in pair]


def build(network, samples, cache, **options):
    return build_training_set(network, samples, seed=0, cache=cache, progress=False, **options)


def count(cache):
    """How many images were decoded, and how many were embedded."""
    sums = {kind.partition("/")[0]: count for kind, count in cache.made.items()}
    return sums.get("images", 0), sums.get("features", 0)


def test_new_images_alone_are_decoded_and_embedded(network, samples, tmp_path):
    """With 20 new images 20 are computed, and the training set is what it would be without a cache."""
    build(network, samples[:10], Cache(tmp_path))
    cache, empty = Cache(tmp_path), Cache()
    grown, plain = build(network, samples, cache), build(network, samples, empty)

    assert count(cache) == (20, 20)
    assert count(empty) == (30, 30)
    for category in ("disc", "stripes"):
        assert (grown.statistics[category].memory == plain.statistics[category].memory).all()
        assert (grown.embeddings[category] == plain.embeddings[category]).all()


def test_images_of_a_large_set_wait_until_they_are_drawn(network, samples, tmp_path):
    """Beyond a number of each category nothing is computed beforehand, and the rest when it is asked for."""
    cache = Cache(tmp_path)
    data = build(network, samples, cache, limit=4, embeds_all=False)
    before = count(cache)
    other = next(i for i in data.list_indices("disc") if i not in data.measured["disc"])
    data.match(int(other))

    assert before == (8, 8)
    assert count(cache) == (9, 9)
