"""Batch normalisation folded into the convolutions before it: the same maps, with less to compute.

For inference alone; what is trained, saved and exported stays as it is.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from onenip.model.features import Backbone
from onenip.model.network import Network
from onenip.model.refiner import PaperRefiner

_TOLERANCE = 1e-4  # of the largest value

Part = TypeVar("Part", bound=nn.Module)

log = logging.getLogger(__name__)


def fold_network(network: Network) -> Network:
    """A copy of a network for inference, without the batch normalisation that follows a convolution.

    Its maps differ from the network's by rounding alone. Which normalisation follows which convolution is
    observed in a forward pass, so that any backbone can be folded. A normalisation that follows none is kept;
    a part whose output would change, since a convolution's output is read elsewhere too, is not folded.
    """
    folded = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(0)
    evidence = torch.randn(1, _count_inputs(network), *network.fine_grid, generator=generator)
    folded.backbone = fold_backbone(folded)
    with torch.no_grad():
        folded.refiner = _fold_part(folded.refiner, evidence.to(network.coarse_mean.device))
    return folded.to(memory_format=torch.channels_last)


def fold_backbone(network: Network) -> Backbone:
    """The folded backbone alone: a copy, or the backbone itself if there is nothing to fold."""
    generator = torch.Generator().manual_seed(0)
    size = network.params.input_size
    image = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        folded = _fold_part(network.backbone, image.to(network.coarse_mean.device))
    return folded.to(memory_format=torch.channels_last)


def _fold_part(part: Part, example: Tensor) -> Part:
    folded = copy.deepcopy(part)
    pairs = _observe_pairs(folded, example)
    if not pairs:
        return part
    for convolution, norm in pairs:
        _absorb(convolution, norm)
        _replace(folded, norm)
    for ours, theirs in zip(_run(folded, example), _run(part, example), strict=True):
        difference, limit = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not difference <= _TOLERANCE * limit:  # also where there are no numbers
            log.info("batch normalisation of the %s cannot be folded", type(part).__name__)
            return part
    return folded


def _run(part: nn.Module, example: Tensor) -> list[Tensor]:
    result = part(example)
    return result if isinstance(result, list) else [result]


def _count_inputs(network: Network) -> int:
    refiner = network.refiner
    first = refiner.blocks[0] if isinstance(refiner, PaperRefiner) else refiner.mix[0]
    return int(first.in_channels)  # type: ignore[arg-type]  # both are convolutions


def _observe_pairs(module: nn.Module, example: Tensor) -> list[tuple[Any, nn.BatchNorm2d]]:
    """Convolutions whose output goes into a batch normalisation, with that, in a forward pass."""
    # the tensors are kept, so that no id comes twice
    made_by: dict[int, tuple[nn.Module, Tensor]] = {}
    pairs: dict[nn.BatchNorm2d, list[nn.Module | None]] = {}

    def note_output(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made_by[id(output)] = (module, output)

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        maker, _ = made_by.get(id(inputs[0]), (None, None))
        assert isinstance(module, nn.BatchNorm2d)
        pairs.setdefault(module, []).append(maker)

    handles = []
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            handles.append(part.register_forward_hook(note_output))
        elif isinstance(part, nn.BatchNorm2d):
            handles.append(part.register_forward_pre_hook(note_input))
    module(example)
    for handle in handles:
        handle.remove()
    return [(m[0], norm) for norm, m in pairs.items() if len(m) == 1 and m[0] is not None]


def _absorb(convolution: Any, norm: nn.BatchNorm2d) -> None:
    """Change a convolution's weights, in double precision, to include the normalisation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # [C']
    bias = 0 if convolution.bias is None else convolution.bias.double()
    weight = convolution.weight.double()
    if isinstance(convolution, nn.ConvTranspose2d):
        assert convolution.groups == 1
        weight = weight * factor[None, :, None, None]
    else:
        weight = weight * factor[:, None, None, None]
    shift = (bias - norm.running_mean.double()) * factor + norm.bias.double()
    dtype = convolution.weight.dtype
    convolution.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(dtype), requires_grad=False)


def _replace(module: nn.Module, norm: nn.BatchNorm2d) -> None:
    """Replace a normalisation by its activation, which timm builds in, or by nothing."""
    rest = getattr(norm, "act", nn.Identity())
    for parent in module.modules():
        for name, child in parent.named_children():
            if child is norm:
                setattr(parent, name, rest)
