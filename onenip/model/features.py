"""Frozen backbone and neck: images to one multi-scale feature map.

Knows timm and nothing else of the project. Channels and strides come from timm's own metadata.

Axes: `B` batch, `H W` image pixels, `h w` a grid of features, `C` channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from onenip.errors import ParamsError

Pooling = Literal["bilinear", "area"]


class Backbone(nn.Module):
    """A timm model cut off after its last used block, frozen, always in eval mode.

    Args:
        name: a timm model that gives feature maps or ViT tokens.
        indices: which of timm's feature levels (or, for a ViT, blocks) are used; empty for all levels
            of stride 16 or finer.
        input_size: (H, W) in px.
        padding_size: input side in px for which "same" padding is computed once and kept for every
            input size; None for dynamic padding. The authors' EfficientNet-B4 keeps 380's.

    Raises:
        ParamsError: if timm has no such model, it gives no such levels, or it does not take the input
            size.

    Source: OneNIP section 3.1; the authors' code, "Backbone and neck".
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        name: str,
        indices: Sequence[int],
        input_size: tuple[int, int],
        padding_size: int | None = None,
    ) -> None:
        super().__init__()
        self.model = _create_model(name, indices, input_size)
        facts: Any = self.model.feature_info
        self.channels: tuple[int, ...] = tuple(facts.channels())
        self.strides: tuple[int, ...] = tuple(facts.reduction())
        config = _read_config(name)
        self.register_buffer("mean", torch.tensor(config["mean"]) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]) * 255, persistent=False)
        if padding_size is not None:
            _freeze_padding(self.model, padding_size)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002  # frozen: stays in eval mode
        """Stay in eval mode, whatever the modules around do."""
        return super().train(mode=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images, finest first.

        Args:
            images: [B, H, W, 3] uint8, RGB, 0..255.

        Returns:
            A [B, C, h, w] float32 map for each level.
        """
        x = (images.to(self.mean.dtype) - self.mean) / self.std  # [B, H, W, 3]
        return self.forward_normalized(x.permute(0, 3, 1, 2))

    def forward_normalized(self, images: Tensor) -> list[Tensor]:
        """Feature maps of [B, 3, H, W] float images that are normalised already."""
        maps: list[Tensor] = self.model(images.contiguous(memory_format=torch.channels_last))
        return maps


def fuse_levels(
    maps: Sequence[Tensor], *, grid: tuple[int, int], pooling: Pooling = "bilinear"
) -> Tensor:
    """Bring every map to one grid and concatenate them: the neck, without parameters.

    Args:
        maps: [B, C_i, h_i, w_i] each.
        grid: (h, w) of the result.
        pooling: "bilinear" samples at the grid's corners-aligned points, as the paper does; "area"
            averages all that a coarser cell covers.

    Returns:
        [B, sum of C_i, h, w].
    """
    return torch.cat([_resize_map(x, grid, pooling) for x in maps], dim=1)


def _resize_map(x: Tensor, grid: tuple[int, int], pooling: Pooling) -> Tensor:
    if tuple(x.shape[-2:]) == grid:
        return x
    shrinks = x.shape[-2] >= grid[0] and x.shape[-1] >= grid[1]
    if pooling == "area" and shrinks:
        return functional.adaptive_avg_pool2d(x, grid)
    return functional.interpolate(x, size=grid, mode="bilinear", align_corners=True)


def _create_model(name: str, indices: Sequence[int], input_size: tuple[int, int]) -> nn.Module:
    if name not in timm.list_models():
        raise ParamsError(f"model.backbone: timm has no model {name!r}", key="model.backbone")
    sized: dict[str, Any] = {"img_size": input_size} if takes_one_size(name) else {}
    try:
        if not indices:
            probe: Any = timm.create_model(name, pretrained=False, features_only=True, **sized)
            strides = probe.feature_info.reduction()
            indices = [i for i, stride in enumerate(strides) if stride <= 16]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(
                name,
                pretrained=False,
                features_only=True,
                feature_cls="getter",
                out_indices=tuple(indices),
                **sized,
            )
    except (RuntimeError, AssertionError, IndexError, ValueError, AttributeError) as error:
        raise ParamsError(
            f"model.backbone: {name} gives no features at model.levels {list(indices)} "
            f"for model.input_size {list(input_size)}: {error}",
            key="model.levels",
        ) from error


def _read_config(name: str) -> dict[str, Any]:
    """Timm's own facts about a model: normalisation, input size."""
    config = timm.get_pretrained_cfg(name)
    assert config is not None, name
    return config.to_dict()


def takes_one_size(name: str) -> bool:
    """Whether a timm model is built for images of one size."""
    return bool(_read_config(name).get("fixed_input_size")) or name.startswith("vit_")


def _freeze_padding(model: nn.Module, side: int) -> None:
    """Replace dynamic "same" padding by what it is for a `side` x `side` input."""
    sizes: dict[nn.Module, tuple[int, int]] = {}
    convolutions = [m for m in model.modules() if type(m).__name__ == "Conv2dSame"]

    def note_size(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[module] = (inputs[0].shape[-2], inputs[0].shape[-1])

    handles = [m.register_forward_pre_hook(note_size) for m in convolutions]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    for handle in handles:
        handle.remove()
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if child in sizes and isinstance(child, nn.Conv2d):
                setattr(parent, key, _FixedPadding.of(child, sizes[child]))


class _FixedPadding(nn.Conv2d):
    """A convolution whose "same" padding was computed for another input size."""

    pads: tuple[int, int, int, int]

    @classmethod
    def of(cls, conv: nn.Conv2d, size: tuple[int, int]) -> _FixedPadding:
        """The same convolution, padded as for an input of `size` (h, w)."""
        fixed = cls(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            stride=(conv.stride[0], conv.stride[1]),
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        fixed.load_state_dict(conv.state_dict())
        totals = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, k, s in zip(size, conv.kernel_size, conv.stride, strict=True)
        ]
        top, left = totals[0] // 2, totals[1] // 2
        fixed.pads = (left, totals[1] - left, top, totals[0] - top)
        return fixed

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """[B, C, H, W] to [B, C', H', W']."""
        return functional.conv2d(
            functional.pad(input, self.pads),
            self.weight,
            self.bias,
            self.stride,
            0,
            self.dilation,
            self.groups,
        )
