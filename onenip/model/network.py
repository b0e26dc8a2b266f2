"""The detector's network: backbone, reconstruction and refiner, composed.

Knows no category names, thresholds or files: a category comes in as encoded prompts and
`CategoryStatistics`.

Axes: `B` batch, `H W` input pixels, `h w` the grid of tokens, `C` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from onenip.model.features import Backbone, fuse_levels
from onenip.model.memory import match_tokens
from onenip.model.reconstruction import Reconstruction
from onenip.model.refiner import EvidenceRefiner, PaperRefiner, upsample_logits
from onenip.params import ModelParams

_MEASURED_TOGETHER = 16  # images: statistics of many need no more memory than those of few
_FINE_STRIDE = 8  # px: the grid that tokens are matched on, if the backbone is that fine


@dataclass(frozen=True)
class Features:
    """Features of a batch of images on two grids.

    Attributes:
        coarse: [B, C, h, w] float, to be reconstructed; standardised per channel with `model.standardize`.
        fine: [B, C, h8, w8] float, to be matched with the memory; C is 0 if nothing reads them.
        detail: [B, C, z * h8, z * w8] float, the same of images at a zoom z; None of images at input size.
    """

    coarse: Tensor
    fine: Tensor
    detail: Tensor | None = None

    def __getitem__(self, rows: slice | list[int]) -> Features:
        """Features of some of the images."""
        detail = None if self.detail is None else self.detail[rows]
        return Features(self.coarse[rows], self.fine[rows], detail)


@dataclass(frozen=True)
class CategoryStatistics:
    """Mean, spread and memory of a category's fine features.

    Attributes:
        mean: [C] float, of fine features over the category's normal images.
        std: [C] float, above 0.
        memory: [M, C] float, standardised and averaged tokens; M is 0 without a memory.
        detail: the same of the features of images at the category's zoom; None without zoom.
    """

    mean: Tensor
    std: Tensor
    memory: Tensor
    detail: CategoryStatistics | None = None

    @classmethod
    def measure(cls, features: Sequence[Tensor]) -> Self:
        """Statistics of features [C, h, w] of each normal image, with an empty memory."""
        channels = features[0].shape[0]
        if channels == 0:
            return cls(torch.zeros(0), torch.zeros(0), torch.zeros(0, 0))
        total = torch.zeros(2, channels, dtype=torch.float64)  # of values and of squares
        count = 0
        for start in range(0, len(features), _MEASURED_TOGETHER):
            parts = [one.flatten(1) for one in features[start : start + _MEASURED_TOGETHER]]
            values = torch.cat(parts, dim=1).double()  # [C, positions]
            total += torch.stack([values.sum(1), values.square().sum(1)]).cpu()
            count += values.shape[1]
        mean, square = total / count
        std = (square - mean.square()).clamp_min(0).sqrt().float()
        memory = torch.zeros(0, channels)
        found = cls(mean.float(), std + 1e-4 * std.mean() + 1e-6, memory)
        return found.to(features[0].device)

    def with_memory(self, memory: Tensor) -> CategoryStatistics:
        """The same statistics with memory tokens [M, C]."""
        return replace(self, memory=memory)

    def to(self, device: torch.device) -> Self:
        """The same statistics on a device."""
        detail = None if self.detail is None else self.detail.to(device)
        return type(self)(self.mean.to(device), self.std.to(device), self.memory.to(device), detail)

    def standardize(self, fine: Tensor) -> Tensor:
        """Fine features [B, C, h, w] with the category's own zero mean and unit variance."""
        return standardize(fine.float(), self.mean, self.std)


@dataclass(frozen=True)
class Match:
    """Nearest memory tokens of a batch of queries.

    Attributes:
        distance: [B, N8] float, N8 = h8 * w8.
        index: [B, N8] int64, into the category's memory.
    """

    distance: Tensor
    index: Tensor


class Network(nn.Module):
    """Backbone, reconstruction and refiner.

    An image may come in at a zoom, a whole multiple of the input size. It is reduced to that for all but a
    second memory, which matches its tokens on a grid that is finer by as much.

    Args:
        params: the architecture.

    Raises:
        ParamsError: if the backbone, its levels and the input size do not fit together.

    Source: OneNIP (ECCV 2024), figure 2.
    """

    coarse_mean: Tensor
    coarse_std: Tensor

    def __init__(self, params: ModelParams) -> None:
        super().__init__()
        self.params = params
        self.backbone = Backbone(
            name=params.backbone,
            indices=params.levels,
            input_size=params.input_size,
            padding_size=params.padding_size,
        )
        self.grid, self.fine_grid, self._fine_level = _plan_grids(self.backbone, params.input_size)
        channels = sum(self.backbone.channels)
        self.channels = channels
        self.register_buffer("coarse_mean", torch.zeros(channels))
        self.register_buffer("coarse_std", torch.ones(channels))
        self.reconstruction = Reconstruction(
            channels=channels,
            grid=self.grid,
            width=params.width,
            heads=params.heads,
            encoder_layers=params.encoder_layers,
            decoder_layers=params.decoder_layers,
            feedforward=params.feedforward,
            dropout=params.dropout,
            neighbor_size=params.neighbor_size,
        )
        self.refiner: PaperRefiner | EvidenceRefiner
        if params.refiner == "paper":
            self.refiner = PaperRefiner(channels=channels, width=params.refiner_width)
        else:
            self.refiner = EvidenceRefiner(
                channels=self._count_evidence(),
                width=params.refiner_width,
                dropout=params.refiner_dropout,
            )

    @property
    def uses_memory(self) -> bool:
        """True if a category needs a token memory."""
        return self.params.memory_tokens > 0

    @property
    def reads_fine(self) -> bool:
        """True if anything needs fine features."""
        return self.uses_memory or not isinstance(self.refiner, PaperRefiner)

    def embed(self, images: Tensor) -> Features:
        """Features of images [B, H, W, 3] uint8, RGB, 0..255, at input size or at a zoom of it."""
        return self.standardize_coarse(self.embed_raw(images, self.backbone))

    def embed_raw(self, images: Tensor, backbone: Backbone) -> Features:
        """The same as a backbone alone gives them: this network's, or the same folded; not standardised."""
        zoom = images.shape[1] // self.params.input_size[0]
        if zoom == 1:
            return self._fuse_raw(backbone(images))
        pixels = images.permute(0, 3, 1, 2).float()
        reduced = functional.avg_pool2d(pixels, zoom).permute(0, 2, 3, 1)
        features = self._fuse_raw(backbone(reduced))
        return replace(features, detail=self._fuse_finest(backbone(images)))

    def fuse(self, levels: list[Tensor]) -> Features:
        """Features on both grids of the backbone's levels [B, C_i, h_i, w_i]."""
        return self.standardize_coarse(self._fuse_raw(levels))

    def standardize_coarse(self, raw: Features) -> Features:
        """Features whose coarse ones are standardised; see `standardize`."""
        return replace(raw, coarse=self.standardize(raw.coarse))

    def _fuse_raw(self, levels: list[Tensor]) -> Features:
        coarse = fuse_levels(levels, grid=self.grid, pooling=self.params.pooling)
        if not self.reads_fine:
            return Features(coarse, coarse[:, :0])
        return Features(coarse, self._fuse_finest(levels))

    def _fuse_finest(self, levels: list[Tensor]) -> Tensor:
        """The backbone's levels on the grid of tokens that are matched, [B, C, h, w]."""
        finest = levels[self._fine_level]
        return fuse_levels(levels, grid=(finest.shape[-2], finest.shape[-1]), pooling="area")

    def standardize(self, coarse: Tensor) -> Tensor:
        """Coarse features [B, C, h, w], standardised over the training normals with `model.standardize`."""
        if not self.params.standardize:
            return coarse
        return standardize(coarse, self.coarse_mean, self.coarse_std)

    def encode(self, coarse: Tensor) -> Tensor:
        """Encoded tokens [B, N, D] of coarse features [B, C, h, w]."""
        return self.reconstruction.encode(coarse.flatten(2).mT)

    def decode(self, query: Tensor, prompt: Tensor) -> Tensor:
        """Reconstructed coarse features [B, C, h, w] of encoded queries and prompts [B, N, D]."""
        tokens = self.reconstruction.decode(query, prompt)  # [B, N, C]
        return tokens.mT.unflatten(2, self.grid)

    def average_tokens(self, fine: Tensor) -> Tensor:
        """Standardised fine features [B, C, h, w] as tokens averaged over their window, [B, N, C]."""
        window = self.params.memory_window
        averaged = functional.avg_pool2d(
            fine, window, stride=1, padding=window // 2, count_include_pad=False
        )
        return averaged.flatten(2).mT

    def match(self, tokens: Tensor, memory: Tensor, *, excluded: Tensor | None = None) -> Match:
        """Nearest memory tokens [M, C] of each query's tokens [B, N, C].

        Args:
            tokens: averaged tokens of the queries.
            memory: the category's memory.
            excluded: [B, M] bool, memory tokens that a query may not match; None for none.
        """
        pairs = [
            match_tokens(query, memory, excluded=None if excluded is None else excluded[i])
            for i, query in enumerate(tokens)
        ]
        return Match(torch.stack([d for d, _ in pairs]), torch.stack([i for _, i in pairs]))

    def refine(
        self,
        *,
        error: Tensor,
        fine: Tensor,
        tokens: Tensor,
        distance: Tensor,
        matched: Tensor,
    ) -> Tensor:
        """Logits at the refiner's own resolution.

        Args:
            error: absolute error of the reconstruction, [B, C, h, w].
            fine: standardised fine features, [B, C, h8, w8].
            tokens: the same averaged, [B, N8, C].
            distance: of the tokens to the nearest memory tokens, [B, N8]; unread without a memory.
            matched: those memory tokens, [B, N8, C]; unread without a memory.

        Returns:
            [B, 1, h', w'].
        """
        if isinstance(self.refiner, PaperRefiner):
            return self.refiner(error)
        size = (fine.shape[-2], fine.shape[-1])
        evidence: list[Tensor] = []
        for kind in self.params.evidence:
            if kind == "restoration":
                evidence.append(resize(error, size))
            elif kind == "distance":
                evidence.append(distance.unflatten(1, size)[:, None] * (2 / self.channels**0.5))
            elif kind == "residual":
                evidence.append((tokens - matched).abs().mT.unflatten(2, size))
            else:
                evidence.append(fine)
        return self.refiner(torch.cat(evidence, dim=1))

    def restoration_map(self, restored: Tensor, coarse: Tensor) -> Tensor:
        """L2 distance over channels, at input size: [B, H, W].

        Source: OneNIP section 3.6.
        """
        distance = (restored - coarse).square().sum(1, keepdim=True).sqrt()  # [B, 1, h, w]
        return upsample_logits(distance, self.params.input_size)

    def distance_map(self, distance: Tensor) -> Tensor:
        """Distances to the nearest memory tokens [B, h, w], at input size: [B, H, W]."""
        return upsample_logits(distance[:, None], self.params.input_size)

    def _count_evidence(self) -> int:
        return sum(1 if kind == "distance" else self.channels for kind in self.params.evidence)


def check_architecture(params: ModelParams) -> None:
    """Make sure that a network can be built from params, without its weights: a tenth of a second.

    Raises:
        ParamsError: if the backbone, its levels and the input size do not fit together; it names the key.
    """
    with torch.device("meta"):
        Network(params)


def standardize(maps: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """[B, C, h, w] less `mean` [C], over `std` [C]."""
    return (maps - mean[:, None, None]) / std[:, None, None]


def _plan_grids(
    backbone: Backbone, input_size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Token grids (h, w), coarse and fine, as the backbone really gives them, and the fine one's level."""
    with torch.no_grad():
        levels = backbone(torch.zeros(1, *input_size, 3, dtype=torch.uint8))
    grids = {
        stride: (x.shape[-2], x.shape[-1])
        for x, stride in zip(levels, backbone.strides, strict=True)
    }
    fine = min((stride for stride in grids if stride >= _FINE_STRIDE), default=max(grids))
    return grids[max(grids)], grids[fine], list(backbone.strides).index(fine)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, C, h, w] on another grid, bilinear with aligned corners."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)
