"""The transformer: its neighbour mask, its parts, its jitter."""

import pytest
import torch
from torch import nn

from onenip.model.reconstruction import (
    Attention,
    Reconstruction,
    build_neighbor_mask,
    jitter_features,
)


def build(**changes):
    settings = {
        "channels": 12,
        "grid": (4, 5),
        "width": 8,
        "heads": 2,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "feedforward": 16,
        "dropout": 0.0,
        "neighbor_size": 3,
    }
    torch.manual_seed(0)
    return Reconstruction(**{**settings, **changes})


@pytest.mark.parametrize(("grid", "size"), [((5, 5), 3), ((4, 7), 5), ((6, 3), 1)])
def test_the_neighbour_mask_equals_the_plain_double_loop(grid, size):
    """A token may attend to exactly those outside its window."""
    height, width = grid
    mask = build_neighbor_mask(grid, size)

    for a in range(height * width):
        for b in range(height * width):
            dy, dx = abs(a // width - b // width), abs(a % width - b % width)
            assert bool(mask[a, b]) == (dy > size // 2 or dx > size // 2)


def test_attention_equals_the_librarys():
    """Packed attention gives what torch's MultiheadAttention gives on the same weights."""
    ours = Attention(width=8, heads=2)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.packed_weight,
            "in_proj_bias": ours.packed_bias,
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    q, k, v = torch.randn(3, 2, 20, 8)
    mask = build_neighbor_mask((4, 5), 3)

    expected, _ = theirs(q, k, v, attn_mask=~mask, need_weights=False)

    assert torch.allclose(ours(q, k, v, mask=mask), expected, atol=1e-6)


def test_a_prompts_encoding_serves_any_number_of_queries():
    """Encoding a prompt once and decoding many queries equals doing it pair by pair."""
    model = build().eval()
    queries, prompt = torch.randn(3, 20, 12), torch.randn(1, 20, 12)

    together = model.decode(model.encode(queries), model.encode(prompt).expand(3, -1, -1))
    alone = torch.cat([model(query[None], prompt) for query in queries])

    assert torch.allclose(together, alone, atol=1e-5)


def test_the_encoder_does_not_see_a_tokens_neighbours():
    """One encoder layer's attention at a token is blind to a change in its own window."""
    model = build(encoder_layers=1, grid=(5, 5))
    layer = model.encoder[0]
    x = torch.randn(1, 25, 8)
    changed = x.clone()
    changed[0, 13] += 1.0  # (2, 3), beside the centre (2, 2)
    attend = layer.attention

    before = attend(x, x, x, mask=model.mask)[0, 12]
    after = attend(torch.cat([x[:, :12], x[:, 12:]], 1), changed, changed, mask=model.mask)[0, 12]

    assert torch.equal(before, after)


@pytest.mark.parametrize("change", [{"neighbor_size": 0}, {"heads": 4}, {"grid": (2, 9)}])
def test_every_setting_gives_the_querys_shape(change):
    """Whatever the settings, features come back in the shape in which they went in."""
    model = build(**change)
    n = model.position().shape[0]

    assert model(torch.randn(2, n, 12), torch.randn(2, n, 12)).shape == (2, n, 12)


def test_position_embeddings_are_columns_then_rows():
    """Token (y, x) gets [column x, row y]."""
    position = build().position
    token = position()[2 * 5 + 3]

    assert torch.equal(token, torch.cat([position.column[3], position.row[2]]))


def test_jitter_is_in_proportion_to_the_tokens_norm():
    """Noise of a token has a standard deviation of norm / C * scale."""
    tokens = torch.ones(1, 400, 64) * torch.linspace(1, 3, 400)[None, :, None]

    noise = jitter_features(tokens, scale=20.0, probability=1.0, seeds=[0]) - tokens
    expected = tokens.norm(dim=-1) / 64 * 20

    assert torch.allclose(noise.std(-1) / expected, torch.ones(1, 400), atol=0.4)
    assert float((noise.std(-1) / expected).mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("scale", "probability"), [(0.0, 1.0), (20.0, 0.0)])
def test_jitter_can_be_off(scale, probability):
    """No scale or no probability leaves the features alone."""
    tokens = torch.randn(1, 4, 8)

    jittered = jitter_features(tokens, scale=scale, probability=probability, seeds=[0])

    assert torch.equal(jittered, tokens)
