"""Weights and inputs drawn from the recipe behind the reference's numbers, with nothing else at hand.

The reference's names of tensors are spelt from ours, the other way round than `onenip.reference` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import timm
import torch
from torch import Tensor

from onenip.losses import dice_loss, feature_mse, mask_cross_entropy
from onenip.network import Network
from onenip.noise import draw_perlin
from onenip.preset import load_preset
from onenip.reference import BACKBONE, load_reference_backbone, load_trained, rename_trained
from onenip.weights import rename_efficientnet

_ENCODER = (
    (".attention.", ".self_attn."), ("attention_norm", "norm1"),
    ("feedforward_norm", "norm2"), ("expand", "linear1"), ("contract", "linear2"),
)  # fmt: skip
_DECODER = (
    ("prompt_reads", "cross_attn_prompt_to_image"), ("query_norm", "norm3"),
    ("query_reads", "cross_attn_image_to_prompt"), ("prompt_norm", "norm1"),
    ("feedforward_norm", "norm2"), ("expand", "mlp.lin1"), ("contract", "mlp.lin2"),
)  # fmt: skip
_OTHERS = (
    ("input_projection", "input_proj"), ("output_projection", "output_proj"),
    ("position.row", "pos_embed.row_embed.weight"),
    ("position.column", "pos_embed.col_embed.weight"),
    ("final_norm", "transformer.decoder.norm"),
    ("final_attention", "transformer.decoder.final_attn_token_to_image"),
)  # fmt: skip
_PACKED = (("packed_", "in_proj_"), (".output.", ".out_proj."))
_BLOCKS = {"0": "upconv1.0", "1": "upconv1.1", "3": "upconv1.3"}
_BLOCKS |= {"4": "upconv2.0", "5": "upconv2.1", "7": "upconv2.3"}


def spell_trained(network: Network) -> dict[str, Tensor]:
    """A paper network's trained part under the reference's names, without `reconstruction.`."""
    spelt = {}
    for key, value in network.reconstruction.state_dict().items():
        pairs, text = _OTHERS, key
        for part, own in (("encoder", _ENCODER), ("decoder", _DECODER)):
            if key.startswith(f"{part}."):
                pairs = own
                text = f"transformer.{part}.layers." + key.removeprefix(f"{part}.")
        for ours, theirs in (*pairs, *_PACKED):
            text = text.replace(ours, theirs)
        assert rename_trained(text) == key
        spelt[text] = value
    for key, value in network.refiner.state_dict().items():
        parts = key.split(".")
        name = f"{_BLOCKS[parts[1]]}.{parts[2]}" if parts[0] == "blocks" else key
        spelt[f"seghead.{name}"] = value
    return spelt


def spell_backbone() -> dict[str, Tensor]:
    """A random EfficientNet-B4 under the reference's names, without `backbone.`."""
    model = timm.create_model(BACKBONE, pretrained=False)
    spelt, number = {}, 0
    plain = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    full = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    full |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    squeeze = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
    for i, stage in enumerate(model.blocks):
        for block in stage:
            names = (plain if i == 0 else full) | squeeze
            for key, value in block.state_dict().items():
                inner = next(name for name in names if key.startswith(name + "."))
                spelt[f"_blocks.{number}.{names[inner]}.{key.removeprefix(inner + '.')}"] = value
            number += 1
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    for ours, theirs in (outer | {"classifier": "_fc"}).items():
        for key, value in getattr(model, ours).state_dict().items():
            spelt[f"{theirs}.{key}"] = value
    assert set(rename_efficientnet(spelt, BACKBONE)) == set(model.state_dict())
    return spelt


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
    load_reference_backbone(
        network, draw_weights(list_shapes(spell_backbone()), 13), origin="recipe"
    )
    query, prompt = draw_features()
    images = np.random.default_rng(17).standard_normal((2, 3, 224, 224), dtype=np.float32)
    rng = np.random.default_rng(19)
    target = torch.tensor(rng.standard_normal((2, 272, 14, 14), dtype=np.float32))
    mask = torch.tensor(rng.random((2, 224, 224)) > 0.8).float()
    with torch.inference_mode():
        restored = network.decode(network.encode(query), network.encode(prompt))
        logits = network.enlarge(network.refiner((restored - query).abs()))
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
