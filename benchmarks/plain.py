"""The paper's network written plainly, as a measure of what ours gains: nothing fused, nothing kept.

Its whole backbone runs for every image, tokens are [N, B, D], attention returns its weights, and the
neighbour mask is built by loops in each forward pass, as the reference does.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from onenip.model.network import Network
from onenip.model.refiner import PaperRefiner

_LITE2_LEVELS = (0, 1, 2, 4)  # blocks of EfficientNet-lite2 that give strides 2, 4, 8 and 16


class PlainNetwork(nn.Module):
    """The paper's network, written plainly: tokens [N, B, D], nothing fused, nothing kept."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        params = network.params
        self.params = params
        self.backbone: Any = timm.create_model(params.backbone, pretrained=False).eval()
        self.backbone.requires_grad_(requires_grad=False)
        self.fuse, self.mean, self.std = network.fuse, network.backbone.mean, network.backbone.std
        self.grid, width = network.grid, params.width
        self.input_projection = nn.Linear(network.channels, width)
        self.output_projection = nn.Linear(width, network.channels)
        self.position = nn.Parameter(torch.rand(self.grid[0] * self.grid[1], 1, width))
        self.encoder = nn.ModuleList(
            nn.ModuleList([_attention(params), *_norms(width, 2), _mlp(params, inner=True)])
            for _ in range(params.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            nn.ModuleList(
                [
                    _attention(params),
                    _attention(params),
                    *_norms(width, 3),
                    _mlp(params, inner=False),
                ]
            )
            for _ in range(params.decoder_layers)
        )
        self.final, self.final_norm = _attention(params), nn.LayerNorm(width)
        self.dropout = nn.Dropout(params.dropout)
        self.refiner = PaperRefiner(channels=network.channels, width=params.refiner_width)

    def embed(self, images: Tensor) -> Tensor:
        """Coarse features [B, C, h, w] of images [B, H, W, 3] uint8, through the whole backbone."""
        model = self.backbone
        x = ((images - self.mean) / self.std).permute(0, 3, 1, 2).contiguous()
        x, levels = model.bn1(model.conv_stem(x)), []
        for number, stage in enumerate(model.blocks):
            x = stage(x)
            if number in _LITE2_LEVELS:
                levels.append(x)
        model.bn2(model.conv_head(x))
        return self.fuse(levels).coarse

    def forward(self, queries: Tensor, prompts: Tensor, *, jitter_scale: float = 0.0) -> Tensor:
        """Reconstructed [kB, C, h, w] of queries [kB, C, h, w] by prompts [B, C, h, w], each used k times."""
        x = torch.cat([queries, prompts]).flatten(2).permute(2, 0, 1)  # [N, 3B, C]
        if jitter_scale:
            noise = torch.randn(x.shape) * x.norm(dim=2, keepdim=True) / x.shape[2] * jitter_scale
            x = x + noise
        mask, where = self._build_mask(), self.position
        x = self.input_projection(x)
        for attention, norm1, norm2, mlp in self.encoder:  # type: ignore[misc]
            x = norm1(x + attention(x + where, x + where, x, attn_mask=mask)[0])
            x = norm2(x + mlp(x))
        q, p = x[:, : len(queries)], x[:, len(queries) :].repeat(1, len(queries) // len(prompts), 1)
        for reads, is_read, norm1, norm2, norm3, mlp in self.decoder:  # type: ignore[misc]
            p = norm1(p + self.dropout(reads(p + where, q + where, q, attn_mask=mask)[0]))
            p = norm2(p + self.dropout(mlp(p)))
            q = norm3(q + self.dropout(is_read(q + where, p + where, p, attn_mask=mask)[0]))
        p = self.final_norm(p + self.final(p + where, q + where, q)[0])
        return self.output_projection(p).permute(1, 2, 0).unflatten(2, self.grid)

    def _build_mask(self) -> Tensor:
        height, width = self.grid
        reach = self.params.neighbor_size // 2
        mask = torch.zeros(height, width, height, width)
        for y in range(height):
            for x in range(width):
                rows = slice(max(y - reach, 0), y + reach + 1)
                mask[y, x, rows, max(x - reach, 0) : x + reach + 1] = float("-inf")
        return mask.reshape(height * width, height * width)


def _attention(params: Any) -> nn.Module:
    return nn.MultiheadAttention(params.width, params.heads)


def _norms(width: int, count: int) -> list[nn.Module]:
    return [nn.LayerNorm(width) for _ in range(count)]


def _mlp(params: Any, *, inner: bool) -> nn.Module:
    dropout = nn.Dropout(params.dropout if inner else 0.0)
    width, hidden = params.width, params.feedforward
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), dropout, nn.Linear(hidden, width))
