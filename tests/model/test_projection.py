"""Linear layers that train through convolutions are linear layers."""

import pytest
import torch
from torch.nn import functional

from onenip.model.layers import Projection, project


@pytest.mark.parametrize("tokens", [196, 20, 13, 1], ids=lambda n: f"{n}-tokens")
def test_training_gives_the_same_values_and_gradients(tokens):
    """Values and all three gradients equal those of torch's linear layer, whatever the count of tokens."""
    torch.manual_seed(0)
    x = torch.randn(3, tokens, 12, requires_grad=True)
    weight = torch.randn(8, 12, requires_grad=True)
    bias = torch.randn(8, requires_grad=True)
    upstream = torch.randn(3, tokens, 8)

    ours = project(x, weight, bias, training=True)
    theirs = functional.linear(x, weight, bias)

    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight, bias), upstream),
        torch.autograd.grad(theirs, (x, weight, bias), upstream),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-4)


def test_tokens_need_not_be_contiguous():
    """Features come as channels first."""
    layer = Projection(12, 8).train()
    x = torch.randn(2, 12, 30).mT

    assert torch.allclose(layer(x), functional.linear(x, layer.weight, layer.bias), atol=1e-5)


def test_outside_training_it_is_torchs_to_the_last_bit():
    """What is served and exported does not depend on how it was trained."""
    layer = Projection(12, 8).eval()
    x = torch.randn(1, 196, 12)

    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))
