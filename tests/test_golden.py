"""Our own numbers on the recipe's weights, compared with those that are kept: nothing drifts unseen."""

import json

import pytest
import torch
from safetensors.torch import load_file

from onenip.model.network import Network
from onenip.params.presets import load_preset
from tests.golden.write import GOLDEN
from tests.paths import SHARED
from tests.recipe import compute_numbers, list_shapes, spell_backbone, spell_trained

PARITY = SHARED / "spec" / "parity"


@pytest.fixture(scope="module")
def numbers():
    return compute_numbers()


def test_the_numbers_are_those_that_are_kept(numbers):
    """Each agrees to 1e-4 of its range, the losses and the noise to 1e-6."""
    kept = load_file(GOLDEN)

    assert numbers.keys() == kept.keys()
    for key, expected in kept.items():
        tolerance = 1e-6 if key in ("losses", "noise") else 1e-4
        difference = (numbers[key] - expected).abs().max() / expected.abs().max()
        assert float(difference) < tolerance, key


def test_numbers_are_kept_small():
    """A copy of a few kilobytes, and nothing that is not finite."""
    assert GOLDEN.stat().st_size < 20_000
    assert all(torch.isfinite(value).all() for value in load_file(GOLDEN).values())


@pytest.mark.parity
@pytest.mark.skipif(not PARITY.is_dir(), reason="the authors' numbers are not at hand")
def test_the_recipe_knows_the_references_tensors():
    """Names and shapes that the recipe spells are the authors' complete lists."""
    network = Network(load_preset("paper").model)

    for state, file in (
        (spell_trained(network), "reconstruction_keys.json"),
        (spell_backbone(), "backbone_keys.json"),
    ):
        listed = json.loads((PARITY / file).read_text())
        counters = {
            k: [] for k in state if k.endswith("num_batches_tracked")
        }  # some lists lack them
        assert list_shapes(state) == counters | listed
