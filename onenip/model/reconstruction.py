"""The prompt-guided transformer that reconstructs normal features and restores anomalous ones.

Takes and gives tokens; knows nothing of images, backbones or losses.

Axes: `B` batch, `N = h * w` tokens, `C` feature channels, `D` transformer width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Reconstruction(nn.Module):
    """Reconstruct a query's features from what a normal prompt of its category shows.

    Args:
        channels: `C`, feature channels of a token.
        grid: token grid (h, w).
        width: `D`, divisible by `heads` and by 2.
        heads: attention heads.
        encoder_layers: self-attention layers, shared by queries and prompts.
        decoder_layers: bidirectional decoder layers.
        feedforward: hidden width of the feed-forward parts.
        dropout: probability, in training only.
        neighbor_size: side of the window around a token that it may not attend to; odd, 1 masks
            only the token itself, 0 masks nothing.

    Source: OneNIP (ECCV 2024), section 3.2 and 3.3.
    """

    mask: Tensor | None

    def __init__(
        self,
        *,
        channels: int,
        grid: tuple[int, int],
        width: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        feedforward: int,
        dropout: float,
        neighbor_size: int,
    ) -> None:
        super().__init__()
        self.input_projection = nn.Linear(channels, width)
        self.output_projection = nn.Linear(width, channels)
        self.position = PositionEmbedding(grid=grid, width=width)
        self.encoder = nn.ModuleList(
            EncoderLayer(width=width, heads=heads, feedforward=feedforward, dropout=dropout)
            for _ in range(encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(width=width, heads=heads, feedforward=feedforward, dropout=dropout)
            for _ in range(decoder_layers)
        )
        self.final_attention = Attention(width=width, heads=heads)
        self.final_norm = nn.LayerNorm(width)
        mask = build_neighbor_mask(grid, neighbor_size) if neighbor_size else None
        self.register_buffer("mask", mask, persistent=False)
        self._initialise()

    def encode(self, tokens: Tensor) -> Tensor:
        """Encoded tokens of queries or prompts.

        Args:
            tokens: features, [B, N, C] float.

        Returns:
            [B, N, D]; a prompt's may be kept and given to `decode` again and again.
        """
        position = self.position()  # [N, D]
        encoded = self.input_projection(tokens)  # [B, N, D]
        for layer in self.encoder:
            encoded = layer(encoded, position=position, mask=self.mask)
        return encoded

    def decode(self, query: Tensor, prompt: Tensor) -> Tensor:
        """Reconstruct the query's features as if it were free of defects.

        Args:
            query: encoded queries, [B, N, D].
            prompt: encoded prompts, [B, N, D].

        Returns:
            Reconstructed features, [B, N, C].
        """
        position = self.position()
        for layer in self.decoder:
            query, prompt = layer(query, prompt, position=position, mask=self.mask)
        read = self.final_attention(prompt + position, query + position, query, mask=None)
        return self.output_projection(self.final_norm(prompt + read))  # [B, N, C]

    def forward(self, query: Tensor, prompt: Tensor) -> Tensor:
        """Encode both, then decode: [B, N, C] and [B, N, C] to [B, N, C]."""
        return self.decode(self.encode(query), self.encode(prompt))

    def _initialise(self) -> None:
        """Xavier-uniform weights and zero biases, as the authors' code does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


class PositionEmbedding(nn.Module):
    """Learned row and column embeddings; token (y, x) gets [column x, row y].

    Args:
        grid: token grid (h, w).
        width: `D`, even.
    """

    def __init__(self, *, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        height, columns = grid
        self.row = nn.Parameter(torch.rand(height, width // 2))
        self.column = nn.Parameter(torch.rand(columns, width // 2))

    def forward(self) -> Tensor:
        """Embeddings of all tokens in row-major order, [N, D]."""
        height, width = len(self.row), len(self.column)
        columns = self.column[None].expand(height, -1, -1)  # [h, w, D/2]
        rows = self.row[:, None].expand(-1, width, -1)  # [h, w, D/2]
        return torch.cat([columns, rows], dim=-1).flatten(0, 1)  # [N, D]


class Attention(nn.Module):
    """Multi-head attention with one packed projection for query, key and value.

    Args:
        width: `D`, divisible by `heads`.
        heads: number of heads.
    """

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.packed_weight = nn.Parameter(torch.empty(3 * width, width))
        self.packed_bias = nn.Parameter(torch.zeros(3 * width))
        self.output = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.packed_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
        """Attended values, [B, N, D].

        Args:
            query: [B, N, D].
            key: [B, N, D].
            value: [B, N, D].
            mask: [N, N] bool, True where a query token may attend to a key token; None for anywhere.
        """
        weights = self.packed_weight.chunk(3)
        biases = self.packed_bias.chunk(3)
        q, k, v = (
            self._split(functional.linear(x, w, b))
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )  # [B, heads, N, D/heads]
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(attended.transpose(1, 2).flatten(2))  # [B, N, D]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Neighbour-masked self-attention and a feed-forward part, post-norm."""

    def __init__(self, *, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width=width, heads=heads)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, position: Tensor, mask: Tensor | None) -> Tensor:
        """[B, N, D] to [B, N, D]; `position` is [N, D], `mask` [N, N] bool."""
        located = x + position
        x = self.attention_norm(x + self.attention(located, located, x, mask=mask))
        hidden = self.dropout(functional.relu(self.expand(x)))  # [B, N, feedforward]
        return self.feedforward_norm(x + self.contract(hidden))


class DecoderLayer(nn.Module):
    """One round in which the prompt reads the query and the query reads the prompt.

    Source: OneNIP section 3.3, bidirectional decoder.
    """

    def __init__(self, *, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.prompt_reads = Attention(width=width, heads=heads)
        self.prompt_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.query_reads = Attention(width=width, heads=heads)
        self.query_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query: Tensor, prompt: Tensor, *, position: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both [B, N, D], and both again; `position` is [N, D], `mask` [N, N] bool."""
        read = self.prompt_reads(prompt + position, query + position, query, mask=mask)
        prompt = self.prompt_norm(prompt + self.dropout(read))
        hidden = functional.relu(self.expand(prompt))  # [B, N, feedforward]
        prompt = self.feedforward_norm(prompt + self.dropout(self.contract(hidden)))
        read = self.query_reads(query + position, prompt + position, prompt, mask=mask)
        return self.query_norm(query + self.dropout(read)), prompt


def build_neighbor_mask(grid: tuple[int, int], size: int) -> Tensor:
    """Which tokens may attend to which: not to the window of `size` x `size` around themselves.

    Args:
        grid: token grid (h, w).
        size: side of the window in tokens, odd.

    Returns:
        [N, N] bool, True where attention is allowed.

    Source: OneNIP section 3.2 (after UniAD's neighbour-masked attention).
    """
    height, width = grid
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()  # [N]
    reach = size // 2
    near_y = (y[:, None] - y[None]).abs() <= reach
    near_x = (x[:, None] - x[None]).abs() <= reach
    return ~(near_y & near_x)


def jitter_features(
    tokens: Tensor, *, scale: float, probability: float, seeds: Sequence[int]
) -> Tensor:
    """Add gaussian noise in proportion to each token's norm.

    Args:
        tokens: [B, N, C].
        scale: noise per unit of (L2 norm of the token / C).
        probability: chance that a sample is jittered at all.
        seeds: root of each sample's noise, [B]; a sample's noise does not depend on its batch.

    Returns:
        [B, N, C].

    Source: OneNIP section 3.2, feature jitter (after UniAD).
    """
    if scale == 0 or probability == 0:
        return tokens
    noise = torch.stack([_draw_noise(tokens.shape[1:], probability, seed) for seed in seeds])
    return (
        tokens + noise.to(tokens) * (tokens.norm(dim=-1, keepdim=True) / tokens.shape[-1]) * scale
    )


def _draw_noise(size: torch.Size, probability: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if torch.rand((), generator=generator).item() >= probability:
        return torch.zeros(size)
    return torch.randn(size, generator=generator)
