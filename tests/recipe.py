"""Weights and inputs drawn from the recipe behind the authors' numbers, with nothing else at hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import timm
import torch
from torch import Tensor

from onenip.model.network import Network
from onenip.model.refiner import upsample_logits
from onenip.model.weights import name_efficientnet
from onenip.params.presets import load_preset
from onenip.synthesis.noise import draw_perlin
from onenip.training.authors import BACKBONE, load_authors_backbone, load_trained, name_trained
from onenip.training.step import dice_loss, feature_mse, mask_cross_entropy


def spell_trained(network: Network) -> dict[str, Tensor]:
    """A paper network's trained part under the authors' names, without `reconstruction.`."""
    state = network.state_dict()
    return {theirs: state[ours] for theirs, ours in name_trained(network).items()}


def spell_backbone() -> dict[str, Tensor]:
    """A random EfficientNet-B4 under the authors' names, without `backbone.`."""
    state = timm.create_model(BACKBONE, pretrained=False).state_dict()
    return {theirs: state[ours] for theirs, ours in name_efficientnet(BACKBONE).items()}


def list_shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Shape of each tensor."""
    return {key: list(value.shape) for key, value in state.items()}


def draw_weights(shapes: Mapping[str, list[int]], seed: int) -> dict[str, Tensor]:
    """The recipe: keys in sorted order, one generator."""
    rng = np.random.default_rng(seed)
    state = {}
    for key in sorted(shapes):
        if key.endswith("num_batches_tracked"):
            continue
        a = rng.standard_normal(shapes[key], dtype=np.float32)
        if key.endswith("running_var"):
            a = np.abs(a) * 0.1 + 1
        elif key.endswith("running_mean"):
            a = a * 0.1
        elif a.ndim == 1:
            a = a * 0.1 + key.endswith("weight")
        else:
            a = a / np.sqrt(np.prod(shapes[key][1:]))
        state[key] = torch.tensor(np.asarray(a, np.float32))
    return state


def draw_features() -> list[Tensor]:
    """Query and prompt features, [2, 272, 14, 14] each."""
    rng = np.random.default_rng(11)
    return [torch.tensor(rng.standard_normal((2, 272, 14, 14), dtype=np.float32)) for _ in range(2)]


def compute_numbers() -> dict[str, Tensor]:
    """What this code makes of the recipe, thinned out; see tests/golden/README.md."""
    torch.manual_seed(0)
    network = Network(load_preset("paper").model).eval()
    load_trained(network, draw_weights(list_shapes(spell_trained(network)), 7), origin="recipe")
    load_authors_backbone(network, draw_weights(list_shapes(spell_backbone()), 13), origin="recipe")
    query, prompt = draw_features()
    images = np.random.default_rng(17).standard_normal((2, 3, 224, 224), dtype=np.float32)
    rng = np.random.default_rng(19)
    target = torch.tensor(rng.standard_normal((2, 272, 14, 14), dtype=np.float32))
    mask = torch.tensor(rng.random((2, 224, 224)) > 0.8).float()
    with torch.inference_mode():
        restored = network.decode(network.encode(query), network.encode(prompt))
        logits = upsample_logits(
            network.refiner((restored - query).abs()), network.params.input_size
        )
        neck = network.fuse(network.backbone.forward_normalized(torch.tensor(images))).coarse
        losses = [feature_mse(restored, target), mask_cross_entropy(logits, mask)]
        losses += [dice_loss(logits.sigmoid(), mask, overlap_weight=weight) for weight in (1, 2)]
        numbers = {
            "features": restored[:, ::32, ::2, ::2],
            "map": network.restoration_map(restored, query)[:, ::16, ::16],
            "logits": logits[:, ::16, ::16],
            "neck": neck[:, ::32, ::2, ::2],
            "losses": torch.stack(losses),
            "noise": torch.tensor(draw_perlin((64, 64), (4, 8), np.random.default_rng(29)))[
                ::4, ::4
            ],
        }
    return {key: value.clone().contiguous() for key, value in numbers.items()}
